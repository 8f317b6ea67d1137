"""Classes whose labels may be wrong: losses that do not insist on every one of them."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import label_nll
from jaxloss.core.frames import labelled
from jaxloss.core.numerics import differentiable, expm1, expm1_minus
from jaxloss.core.types import Array, Label, Logit, Mask, Positive, Reduction, ValidMask, Weights

__all__ = ["generalized_cross_entropy"]


def _power_gap_q_slope(nll: Array, q: Array) -> Array:
    # -(1 - (1 + u) exp(-u)) / q^2 with u = q nll: near 0 that is u^2 / 2, of which the difference has no digit.
    u = jnp.minimum(q * nll, 1e4)
    near = jnp.minimum(u, 2)
    gap = jnp.where(u <= 2, jnp.exp(-near) * expm1_minus(near), 1 - (1 + u) * jnp.exp(-u))
    return -gap / jnp.square(q)


# (1 - exp(-q nll)) / q: of a probability near 1 the difference 1 - p^q has no digit, of its logarithm it has all.
_power_gap = differentiable(
    lambda nll, q: -expm1(-q * nll) / q,
    lambda nll, q: jnp.exp(-q * nll),
    _power_gap_q_slope,
)


@compiled
def generalized_cross_entropy(
    logits: Logit,
    labels: Label,
    *,
    q: Positive = 0.7,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy that lets go of the examples that it can hardly believe.

        (1 - p^q) / q,   p = softmax(logits)[label]

    Use where a part of the labels is wrong: a q near 0 learns them by heart, and q = 1, the probability given to other
    classes, learns little at all where there are many.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      q: in (0, 1]; larger values forgive more. 0 itself is `softmax_cross_entropy`.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist; the others are ruled out.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, 1/q]; 1/q where the label is ruled out. A confident row keeps all digits.
    Gradient: p^q (softmax(logits) - onehot(label)): it fades where p is small, and with p itself where the label is
      ruled out.
    Peers: keras.losses.CategoricalGeneralizedCrossEntropy.
    Reference: Zhang and Sabuncu (2018), Generalized cross entropy loss for training deep neural networks with noisy
      labels, NeurIPS 31.
    """

    def value(z: Array, labels: Array, q: Array, *, axis: int, valid: Array | None = None) -> Array:
        if valid is not None:
            z = jnp.where(valid, z, -jnp.inf)
        nll = label_nll(z, labels, axis)
        return _power_gap(nll, jnp.broadcast_to(q, nll.shape))

    return labelled(
        value,
        logits=logits,
        labels=labels,
        axis=axis,
        valid=valid,
        scalars={"q": q},
        where=where,
        weights=weights,
        reduction=reduction,
    )
