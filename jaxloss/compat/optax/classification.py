"""Which class, or whether: cross-entropies, margins, and their relatives."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxloss import losses as jl
from jaxloss.algorithms.overlap import class_overlaps
from jaxloss.compat.optax.arrays import (
    Axes,
    aligned,
    assert_one_shape,
    entrywise,
    floating,
    labelled_rows,
    number,
    soft_rows,
)
from jaxloss.core.inputs import as_array
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "hinge_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
]


# --- Yes or no ----------------------------------------------------------------------------------------------------


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Binary cross-entropy on logits: `jl.sigmoid_cross_entropy(logits, labels, reduction="none")`."""
    loss = functools.partial(jl.sigmoid_cross_entropy, reduction="none")
    return entrywise(loss, [floating("logits", logits), number("labels", labels)])


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Binary cross-entropy of the hard: `jl.sigmoid_focal(logits, labels, alpha=alpha, gamma=gamma, reduction="none")`.

    jaxloss's `alpha` is optax's: the weight of yes, and 1 - alpha that of no.
    """

    def loss(x: Array, t: Array, gamma: Array, alpha: Array | None = None) -> Array:
        return jl.sigmoid_focal(x, t, gamma=gamma, alpha=alpha, reduction="none")

    options = [gamma] if alpha is None else [gamma, alpha]
    return entrywise(loss, [floating("logits", logits), number("labels", labels)], options)


def hinge_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> Array:
    """What lacks to a margin of 1, for targets -1 and 1: `jl.hinge(predictor_outputs, targets, reduction="none")`."""
    loss = functools.partial(jl.hinge, reduction="none")
    return entrywise(loss, [number("predictor_outputs", predictor_outputs), as_array("targets", targets)])


def perceptron_loss(predictor_outputs: ArrayLike, targets: ArrayLike) -> Array:
    """How far on the wrong side of 0: `jl.perceptron(predictor_outputs, targets, reduction="none")`; one shape."""
    scores, signs = number("predictor_outputs", predictor_outputs), as_array("targets", targets)
    assert_one_shape("predictor_outputs", scores, "targets", signs)
    return jl.perceptron(scores, signs, reduction="none")


def sparsemax_loss(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Hinge with a parabola: `jl.sparsemax_binary(logits, 2 * labels - 1, reduction="none")`; labels 0 and 1."""
    signs = jnp.where(as_array("labels", labels) != 0, 1, -1)
    return entrywise(functools.partial(jl.sparsemax_binary, reduction="none"), [number("logits", logits), signs])


# --- One of several -----------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """Cross-entropy of soft labels: `jl.softmax_cross_entropy_with_soft_labels(logits, labels, reduction="none")`.

    A `where` of the rank of `logits` is jaxloss's `valid`, which classes exist; one without `axis` is its `where`.
    """
    rows = soft_rows("logits", floating("logits", logits), number("labels", labels), axis, where)
    if rows.scores.shape[-1] == 0:
        return _of_no_class(rows.scores)
    return jl.softmax_cross_entropy_with_soft_labels(
        rows.scores, rows.targets, valid=rows.valid, where=rows.exists, reduction="none"
    )


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """The same: `jl.softmax_cross_entropy_with_soft_labels(logits, labels, reduction="none")` is safe at -inf."""
    return softmax_cross_entropy(logits, labels)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: int | tuple[int, ...] = -1, where: ArrayLike | None = None
) -> Array:
    """Negative log-probability of the label: `jl.softmax_cross_entropy(logits, labels, reduction="none")`.

    A `where` of the rank of `logits` is jaxloss's `valid`, which classes exist; one without `axis` is its `where`. Of
    several class axes a label is the flat index, the axes taken in the order given.
    """
    if axis is None:  # pyright: ignore[reportUnnecessaryComparison] whoever is not type-checked
        raise ValueError("`axis` must be an integer or a tuple of them, got None")
    rows = labelled_rows("logits", floating("logits", logits), labels, axis, where)
    return jl.softmax_cross_entropy(rows.scores, rows.labels, valid=rows.valid, where=rows.exists, reduction="none")


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Cross-entropy and epsilon times what the label's class is not given, for soft labels.

    Of integer labels `jl.poly_cross_entropy(logits, labels, epsilon=epsilon, reduction="none")`.
    """
    rows = soft_rows("logits", floating("logits", logits), floating("labels", labels), axis, where)
    z, t = rows.scores, rows.targets
    if z.shape[-1] == 0:
        return _of_no_class(z)
    return _poly(z, t, rows.valid, rows.exists, jnp.asarray(epsilon))


@functools.partial(jax.jit, inline=True)
def _poly(z: Array, t: Array, valid: Array | None, exists: Array | None, epsilon: Array) -> Array:
    if valid is not None:
        z, t = jnp.where(valid, z, -jnp.inf), jnp.where(valid, t, 0)
    if exists is not None:
        z, t = (jnp.where(exists[..., None], x, 0) for x in (z, t))
    loss = jl.softmax_cross_entropy_with_soft_labels(z, t, reduction="none")
    # sum of t (1 - p), where 1 - p of a confident class is what the others have, and no difference.
    missed, _ = class_overlaps(z, t, jnp.zeros((), loss.dtype), jnp.ones((), loss.dtype), z.ndim - 1, (), None)
    loss, epsilon, missed = aligned(loss, epsilon.astype(loss.dtype), jnp.sum(missed, axis=-1))
    return loss + epsilon * missed


def multiclass_hinge_loss(scores: ArrayLike, labels: ArrayLike) -> Array:
    """What the label's score lacks to a lead of 1: `jl.multiclass_hinge(scores, labels, reduction="none")`."""
    rows = labelled_rows("scores", number("scores", scores), labels)
    return jl.multiclass_hinge(rows.scores, rows.labels, reduction="none")


def multiclass_perceptron_loss(scores: ArrayLike, labels: ArrayLike) -> Array:
    """What the label's score lacks to the highest: `jl.multiclass_perceptron(scores, labels, reduction="none")`."""
    rows = labelled_rows("scores", number("scores", scores), labels)
    return jl.multiclass_perceptron(rows.scores, rows.labels, reduction="none")


def multiclass_sparsemax_loss(scores: ArrayLike, labels: ArrayLike) -> Array:
    """The loss of the projection onto the simplex: `jl.sparsemax(scores, labels, reduction="none")`."""
    rows = labelled_rows("scores", number("scores", scores), labels)
    return jl.sparsemax(rows.scores, rows.labels, reduction="none")


def _of_no_class(scores: Array) -> Array:
    """A sum over no class."""
    return jnp.zeros(scores.shape[:-1], jnp.promote_types(scores.dtype, jnp.float32))
