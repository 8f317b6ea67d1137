"""Embeddings: what belongs together should lie together, and apart from the rest."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.frames import eventwise
from jaxloss.core.numerics import absolute, norm, scale_exponent, widen
from jaxloss.core.types import Array, Mask, Positive, Real, Reduction, Weights

__all__ = ["triplet_margin"]


def _distance(x: Array, y: Array, p: float, axis: int) -> Array:
    """|x - y| in the p-norm; at equality its gradient is 0, not nan."""
    difference = x - y
    if p == 2:
        return jnp.squeeze(norm(difference, axis), axis)
    if p == 1:
        return jnp.sum(absolute(difference), axis=axis)
    scale = scale_exponent(difference, axis)
    size = absolute(difference) / scale
    alive = size > 0
    total = jnp.sum(jnp.where(alive, jnp.power(jnp.where(alive, size, 1), p), 0), axis=axis)
    apart = total > 0
    return jnp.squeeze(scale, axis) * jnp.where(apart, jnp.power(jnp.where(apart, total, 1), 1 / p), 0)


@compiled
def triplet_margin(
    anchors: Real,
    positives: Real,
    negatives: Real,
    *,
    margin: Positive = 1.0,
    p: float = 2.0,
    swap: bool = False,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far the negative fails to be further from the anchor than the positive is, by a margin.

        max(0, |a - p| - |a - n| + margin),   a, p, n = anchors, positives, negatives

    Use when triplets are given; from labels alone they are mined.

    Args:
      anchors, positives, negatives: [..., D] real, one shape.
      margin: > 0, in units of distance.
      p: >= 1, a Python number, the degree of the norm.
      swap: whether |p - n| counts where it is shorter than |a - n|.
      axis: the axis of the vectors' components.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: units of distance, in [0, inf); 0 for a triplet that keeps the margin. Within 4 (1 + k) ulp,
      k = (|a - p| + |a - n| + margin) / value.
    Gradient: unit vectors along a - p and a - n while the margin is violated, 0 beyond; 0 between equal vectors.
    Peers: optax.losses.triplet_margin_loss, torch.nn.TripletMarginLoss, torch.nn.functional.triplet_margin_loss.
    Reference: Schroff, Kalenichenko and Philbin (2015), FaceNet, CVPR, eq. 3; swap: Balntas et al. (2016), BMVC.
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"`p` of triplet_margin must be a finite number >= 1, got {p}")

    def value(anchors: Array, positives: Array, negatives: Array, margin: Array, *, axis: int) -> Array:
        # Widened once: each input is used twice, and its two gradients are added before they are rounded.
        anchors, positives, negatives = (widen(x) for x in (anchors, positives, negatives))
        far = _distance(anchors, negatives, p, axis)
        if swap:
            far = jnp.minimum(far, _distance(positives, negatives, p, axis))
        violation = _distance(anchors, positives, p, axis) - far + margin
        return jnp.where(violation > 0, violation, 0)

    return eventwise(
        value,
        anchors=anchors,
        positives=positives,
        negatives=negatives,
        scalars={"margin": margin},
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )
