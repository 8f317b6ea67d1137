"""Classes, from probabilities or logits, and hinges."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.compat.keras import probabilities
from jaxloss.compat.keras.loss import BoundLoss, Reduction, floating, matched
from jaxloss.core.frames import labelled
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, ArrayLike
from jaxloss.losses import binary as native_binary
from jaxloss.losses import multiclass as native

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "Hinge",
    "KLDivergence",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "hinge",
    "kl_divergence",
    "sparse_categorical_crossentropy",
    "squared_hinge",
]

Axes = int | tuple[int, ...] | None


def _one_shape(t: Array, p: Array) -> None:
    if t.shape != p.shape:
        raise ValueError(f"`y_true` {list(t.shape)} and `y_pred` {list(p.shape)} must have one shape")


# --- Two classes --------------------------------------------------------------------------------------------------


def binary_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: Axes = -1,
) -> Array:
    """`jaxloss.binary_cross_entropy`, or `jaxloss.sigmoid_cross_entropy` of logits: its mean over `axis`."""
    t, p = _binary_pair(y_true, y_pred, label_smoothing)
    if from_logits:
        return jnp.mean(native_binary.sigmoid_cross_entropy(p, t, reduction="none"), axis=axis)
    return jnp.mean(probabilities.binary_nll(p, t), axis=axis)


def binary_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    apply_class_balancing: bool = False,
    alpha: float = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: Axes = -1,
) -> Array:
    """`jaxloss.sigmoid_focal`, of probabilities too: its mean over `axis`."""
    t, p = _binary_pair(y_true, y_pred, label_smoothing)
    value = (
        native_binary.sigmoid_focal(p, t, gamma=gamma, reduction="none")
        if from_logits
        else probabilities.focal_binary_nll(p, t, gamma)
    )
    if apply_class_balancing:
        value = (alpha * t + (1 - alpha) * (1 - t)) * value
    return jnp.mean(value, axis=axis)


def _binary_pair(y_true: ArrayLike, y_pred: ArrayLike, label_smoothing: float) -> tuple[Array, Array]:
    t, p = matched(y_true, y_pred)
    _one_shape(t, p)
    return (t * (1 - label_smoothing) + 0.5 * label_smoothing if label_smoothing else t), p


# --- Several classes ----------------------------------------------------------------------------------------------


def categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Array:
    """`jaxloss.softmax_cross_entropy_with_soft_labels` of logits; of probabilities, -sum t log(p / sum p)."""
    t, p, axis = _class_pair(y_true, y_pred, label_smoothing, axis, "categorical_crossentropy")
    if from_logits:
        return native.softmax_cross_entropy_with_soft_labels(p, t, axis=axis, reduction="none")
    return jnp.sum(t * probabilities.class_nll(widen(p), axis), axis=axis)


def categorical_focal_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    alpha: ArrayLike = 0.25,
    gamma: float = 2.0,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    axis: int = -1,
) -> Array:
    """sum alpha t (1 - p)^gamma (-log p): what `jaxloss.softmax_focal` is of integer labels."""
    t, p, axis = _class_pair(y_true, y_pred, label_smoothing, axis, "categorical_focal_crossentropy")
    nll = (probabilities.logit_nll if from_logits else probabilities.class_nll)(widen(p), axis)
    balance = jnp.asarray(alpha, nll.dtype)
    if balance.ndim == 1:
        balance = jnp.expand_dims(balance, [i for i in range(nll.ndim) if i != axis])
    return jnp.sum(balance * probabilities.focal_nll(nll, t, gamma), axis=axis)


def _class_pair(
    y_true: ArrayLike, y_pred: ArrayLike, label_smoothing: float, axis: int, name: str
) -> tuple[Array, Array, int]:
    """Targets, smoothed; predictions; and the class axis counted from the front."""
    t, p = matched(y_true, y_pred, wide=False)
    _one_shape(t, p)
    axis = _class_axis(axis, p)
    if p.shape[axis] == 1:
        message = (
            f"{name} of one class is always 0, got {list(p.shape)}; two classes in one number are binary_{name[12:]}"
        )
        warnings.warn(message, SyntaxWarning, stacklevel=3)
    if label_smoothing:
        t = t * (1 - label_smoothing) + label_smoothing / p.shape[axis]
    return t, p, axis


def _class_axis(axis: int, p: Array) -> int:
    if isinstance(axis, bool) or not -p.ndim <= axis < p.ndim:
        raise ValueError(f"`axis` must be one of the {p.ndim} axes of `y_pred` {list(p.shape)}, got {axis!r}")
    return axis % p.ndim


def sparse_categorical_crossentropy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> Array:
    """`jaxloss.softmax_cross_entropy`, of probabilities too; 0 where the label is `ignore_class`."""
    found = _sparse(y_true, y_pred, from_logits, ignore_class, axis)
    return found[0] if isinstance(found, tuple) else found


def _sparse(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    from_logits: bool = False,
    ignore_class: int | None = None,
    axis: int = -1,
) -> Array | tuple[Array, Array]:
    p = floating(y_pred)
    axis = _class_axis(axis, p)
    labels = _labels(y_true, p, axis)
    kept = None if ignore_class is None else labels != ignore_class
    if from_logits:
        value = native.softmax_cross_entropy(p, labels, axis=axis, where=kept, reduction="none")
    else:
        value = _of_labels(probabilities.label_nll, p, labels, axis, kept)
    return value if kept is None else (value, kept)


def _labels(y_true: ArrayLike, p: Array, axis: int) -> Array:
    """Integer labels without the class axis, of which they may have kept one entry."""
    labels = jnp.asarray(y_true).astype(jnp.int32)
    return jnp.squeeze(labels, axis) if labels.ndim == p.ndim and labels.shape[axis] == 1 else labels


def _of_labels(loss: Callable[..., Array], p: Array, labels: Array, axis: int, kept: Array | None = None) -> Array:
    """`loss(p, labels, axis)` in the frame of `jaxloss.softmax_cross_entropy`: a label that is no class is nan."""

    def value(y_pred: Array, labels: Array, *, axis: int) -> Array:
        return loss(widen(y_pred), labels, axis)

    return labelled(value, y_pred=p, labels=labels, axis=axis, where=kept, reduction="none")


def categorical_generalized_cross_entropy(y_true: ArrayLike, y_pred: ArrayLike, q: float) -> Array:
    """(1 - p^q) / q, p the probability of the integer label; `jaxloss.generalized_cross_entropy` takes logits."""
    p = floating(y_pred)
    labels = _labels(y_true, p, -1)
    return _of_labels(lambda p, labels, axis: probabilities.label_power(p, labels, q), p, labels, -1)


def kl_divergence(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """sum t log(t / p) over the last axis, of probabilities; `jaxloss.kl_divergence` takes log(p)."""
    t, p = matched(y_true, y_pred)
    _one_shape(t, p)
    return jnp.sum(probabilities.relative_entropy(t, p), axis=-1)


# --- Hinges -------------------------------------------------------------------------------------------------------


def _signs(t: Array) -> Array:
    """Labels in {0, 1} as signs; a batch that holds anything else is taken as it is."""
    return jnp.where(jnp.all((t == 0) | (t == 1)), 2 * t - 1, t)


def _mean_hinge(loss: Callable[..., Array], y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    t, p = matched(y_true, y_pred)
    shape = jnp.broadcast_shapes(t.shape, p.shape)
    signs, scores = jnp.broadcast_to(_signs(t), shape), jnp.broadcast_to(p, shape)
    return jnp.mean(loss(scores, signs, reduction="none"), axis=-1)


def hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.hinge` of labels in {0, 1} or {-1, 1}, its mean over the last axis."""
    return _mean_hinge(native_binary.hinge, y_true, y_pred)


def squared_hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.squared_hinge` of labels in {0, 1} or {-1, 1}, its mean over the last axis."""
    return _mean_hinge(native_binary.squared_hinge, y_true, y_pred)


def categorical_hinge(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """max(0, 1 + max((1 - t) p) - sum(t p)) over the last axis; `jaxloss.multiclass_hinge` leaves out the label's 0."""
    t, p = matched(y_true, y_pred)
    rival = jnp.max((1 - t) * p, axis=-1)
    return jax.nn.relu(rival - jnp.sum(t * p, axis=-1) + 1)


# --- Classes ------------------------------------------------------------------------------------------------------


class BinaryCrossentropy(BoundLoss):
    """Yes or no: `jaxloss.sigmoid_cross_entropy` of logits, `jaxloss.binary_cross_entropy` of probabilities."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: Axes = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(binary_crossentropy, name=name, reduction=reduction, dtype=dtype, **options)


class BinaryFocalCrossentropy(BoundLoss):
    """Yes or no, easy entries counting less: `jaxloss.sigmoid_focal`, of logits."""

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: Axes = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "binary_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            binary_focal_crossentropy,
            name=name,
            reduction=reduction,
            dtype=dtype,
            apply_class_balancing=apply_class_balancing,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class CategoricalCrossentropy(BoundLoss):
    """One class, one-hot or soft: `jaxloss.softmax_cross_entropy_with_soft_labels`, of logits."""

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "label_smoothing": label_smoothing, "axis": axis}
        super().__init__(categorical_crossentropy, name=name, reduction=reduction, dtype=dtype, **options)


class CategoricalFocalCrossentropy(BoundLoss):
    """One class, one-hot or soft, easy examples counting less: `jaxloss.softmax_focal`, of integer labels."""

    def __init__(
        self,
        alpha: Any = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(
            categorical_focal_crossentropy,
            name=name,
            reduction=reduction,
            dtype=dtype,
            alpha=alpha,
            gamma=gamma,
            from_logits=from_logits,
            label_smoothing=label_smoothing,
            axis=axis,
        )


class SparseCategoricalCrossentropy(BoundLoss):
    """One class, an integer: `jaxloss.softmax_cross_entropy`. With `ignore_class` the mean is over the others."""

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: Reduction = "sum_over_batch_size",
        axis: int = -1,
        name: str = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        options = {"from_logits": from_logits, "ignore_class": ignore_class, "axis": axis}
        super().__init__(_sparse, name=name, reduction=reduction, dtype=dtype, **options)


class CategoricalGeneralizedCrossEntropy(BoundLoss):
    """Cross-entropy that forgives wrong labels, of probabilities: `jaxloss.generalized_cross_entropy`, of logits."""

    def __init__(
        self,
        q: float = 0.5,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "categorical_generalized_cross_entropy",
        dtype: Any = None,
    ) -> None:
        if not 0 < q < 1:
            raise ValueError(f"`q` must lie in (0, 1), got {q}")
        super().__init__(categorical_generalized_cross_entropy, name=name, reduction=reduction, dtype=dtype, q=q)


class KLDivergence(BoundLoss):
    """Divergence of predicted from true probabilities: `jaxloss.kl_divergence`, of log(p)."""

    def __init__(
        self, reduction: Reduction = "sum_over_batch_size", name: str = "kl_divergence", dtype: Any = None
    ) -> None:
        super().__init__(kl_divergence, name=name, reduction=reduction, dtype=dtype)


class Hinge(BoundLoss):
    """How far a score falls short of a margin of 1: `jaxloss.hinge`, of signs."""

    def __init__(self, reduction: Reduction = "sum_over_batch_size", name: str = "hinge", dtype: Any = None) -> None:
        super().__init__(hinge, name=name, reduction=reduction, dtype=dtype)


class SquaredHinge(BoundLoss):
    """The square of that: `jaxloss.squared_hinge`, of signs."""

    def __init__(
        self, reduction: Reduction = "sum_over_batch_size", name: str = "squared_hinge", dtype: Any = None
    ) -> None:
        super().__init__(squared_hinge, name=name, reduction=reduction, dtype=dtype)


class CategoricalHinge(BoundLoss):
    """The label's score against the best other, and against 0: `jaxloss.multiclass_hinge`, but for that 0."""

    def __init__(
        self, reduction: Reduction = "sum_over_batch_size", name: str = "categorical_hinge", dtype: Any = None
    ) -> None:
        super().__init__(categorical_hinge, name=name, reduction=reduction, dtype=dtype)
