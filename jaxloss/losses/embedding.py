"""Embeddings: what belongs together should lie together, and apart from the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import chex
import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.formulas import label_nll
from jaxloss.core.frames import Everyone, batchwise, eventwise
from jaxloss.core.numerics import absolute, norm, scale_exponent, unit, widen
from jaxloss.core.types import Array, AxisName, Mask, Positive, Real, Reduction, Weights

__all__ = ["info_nce", "triplet_margin"]


def _assert_vectors(queries: Array, extra: Sequence[Array]) -> None:
    message = f"`queries` {list(queries.shape)} must be [N, D]; flatten or vmap over further axes"
    demand(chex.assert_rank, queries, 2, error=ValueError, message=message)
    for negatives in extra:
        message = f"`negatives` {list(negatives.shape)} must be [M, D] or [N, M, D] beside `queries` [N, D]"
        message += f" {list(queries.shape)}"
        demand(chex.assert_rank, negatives, {2, 3}, error=ValueError, message=message)
        demand(chex.assert_axis_dimension, negatives, -1, queries.shape[1], error=ValueError, message=message)


@compiled
def info_nce(
    queries: Real,
    keys: Real,
    negatives: Real | None = None,
    *,
    temperature: Positive = 0.1,
    similarity: Literal["cosine", "dot"] = "cosine",
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of picking one's own key among the keys of the whole batch.

        logsumexp_j(s_ij) - s_ii,   s_ij = similarity(queries_i, keys_j) / temperature

    Use for two views of each example, with the rest of the batch as negatives.

    Args:
      queries, keys: [N, D] real, one shape; row i of `keys` is the positive of row i of `queries`.
      negatives: [M, D], further negatives of every row, or [N, M, D], of each row its own; None has none.
      temperature: > 0; smaller means that the hardest negatives dominate.
      similarity: "cosine", in which a zero vector has similarity 0 to all, or "dot".
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      where: [N] bool; an excluded row is no query, no key and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); log(N) for an uninformed model. Rows see each other: "partial" is marked as coupled.
      Within 8 (1 + k) ulp, k = |s| / value at most: a similarity of two vectors is itself a rounded sum.
    Gradient: (softmax(s_i) - onehot(i)) / temperature towards the similarities; 0 towards a zero vector.
    Peers: optax.losses.ntxent.
    Reference: van den Oord, Li and Vinyals (2018), Representation learning with contrastive predictive coding,
      arXiv:1807.03748, eq. 4.
    """
    own_negatives = getattr(negatives, "ndim", 0) == 3

    def ready(x: Array) -> Array:
        return unit(widen(x), -1) if similarity == "cosine" else widen(x)

    def value(queries: Array, keys: Array, *others: Array, everyone: Everyone) -> Array:
        *extra, temperature = others
        _assert_vectors(queries, extra)
        q, everyones_keys = ready(queries), ready(everyone.arrays[1])
        scores = jnp.matmul(q, everyones_keys.T, precision="highest")
        # An absent row is no negative; its own query keeps its own key, so that its softmax has something to hold.
        mine = jnp.expand_dims(everyone.own, 1) == jnp.expand_dims(jnp.arange(scores.shape[1]), 0)
        scores = jnp.where(jnp.expand_dims(everyone.present, 0) | mine, scores / temperature, -jnp.inf)
        if extra:
            pattern = "nd,nmd->nm" if own_negatives else "nd,md->nm"
            more = jnp.einsum(pattern, q, ready(extra[0]), precision="highest") / temperature
            scores = jnp.concatenate([scores, more], axis=1)
        return label_nll(scores, everyone.own, 1)

    rows = {"queries": queries, "keys": keys}
    if negatives is not None and own_negatives:
        rows["negatives"] = negatives
    return batchwise(
        value,
        **rows,
        alike=("queries", "keys"),
        shared={"negatives": negatives} if negatives is not None and not own_negatives else None,
        axis_name=axis_name,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


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
