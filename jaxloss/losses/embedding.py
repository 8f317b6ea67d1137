"""Embeddings: what belongs together should lie together, and apart from the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxloss.algorithms.linear_blocks import in_auto_mode
from jaxloss.algorithms.mined_triplets import of_anchors
from jaxloss.algorithms.tiled_contrast import Marks, alike, log_sum, of_rows, plan_for, ready, unlike
from jaxloss.core import inputs
from jaxloss.core.compiled import compiled, traced
from jaxloss.core.demand import demand
from jaxloss.core.formulas import softplus
from jaxloss.core.frames import Everyone, batchwise, eventwise, pointwise
from jaxloss.core.numerics import absolute, norm, scale_exponent, unit, widen
from jaxloss.core.reduction import admit_mask, reduce
from jaxloss.core.types import (
    Array,
    ArrayLike,
    AxisName,
    Binary,
    Label,
    Mask,
    NonNegative,
    Positive,
    Real,
    Reduction,
    Sign,
    Weights,
)

__all__ = [
    "circle",
    "contrastive_pair",
    "cosine_embedding",
    "hinge_embedding",
    "mined_triplet",
    "multi_similarity",
    "triplet_margin",
    "triplet_margin_with_distance",
]


def _of_pairs(
    formula: Callable[..., Array],
    *,
    x: ArrayLike,
    y: ArrayLike,
    beside: Mapping[str, ArrayLike],
    scalars: Mapping[str, ArrayLike],
    axis: int,
    where: Mask,
    weights: Weights,
    reduction: Reduction,
) -> Array:
    """A frame: one value per pair of vectors and what is known of it, [..., D], [..., D], [...] -> [...]."""
    named = inputs.admitted({"x": x, "y": y, **beside})
    full = inputs.assert_one_shape({"x": named["x"], "y": named["y"]})
    axes = inputs.canonical_axes(axis, full, "x")
    shape = inputs.without_axes(full, axes)
    for name in beside:
        found = list(named[name].shape)
        message = f"`{name}` {found} must be `x` {list(full)} without its axis {axis}: {list(shape)}"
        demand(chex.assert_shape, named[name], shape, error=ValueError, message=message)
    mask = admit_mask("where", where, shape)
    # Widened once: a vector is used more than once, and its gradients are added before they are rounded.
    ready = [widen(inputs.neutralised(array, mask, () if name in beside else axes)) for name, array in named.items()]
    value = formula(*ready, *inputs.as_scalars(scalars, inputs.wide_dtype(named.values())), axis=axes[0])
    return reduce(value, where=mask, weights=weights, reduction=reduction)


@compiled
def contrastive_pair(
    x: Real,
    y: Real,
    is_same: Binary,
    *,
    margin: Positive = 1.0,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Half the squared distance of pairs that belong together, and of others what they lack to a margin.

        1/2 d^2                      where is_same = 1,   d = |x - y|
        1/2 max(0, margin - d)^2     where is_same = 0

    Use when pairs are given, each with whether it belongs together: a siamese network.

    Args:
      x, y: [..., D] real, one shape.
      is_same: [...] 1 for a pair that belongs together, 0 for another.
      margin: > 0, in units of distance; pairs that do not belong together count up to here.
      axis: the axis of the vectors' components.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared units of distance, in [0, inf).
    Gradient: x - y for a pair that belongs together; -max(0, margin - d) along x - y for another, 0 between equal
      vectors.
    Peers: sentence_transformers.losses.ContrastiveLoss, tensorflow_addons.losses.ContrastiveLoss (twice as large).
    Reference: Hadsell, Chopra and LeCun (2006), Dimensionality reduction by learning an invariant mapping, CVPR, eq. 4.
    """

    def value(x: Array, y: Array, is_same: Array, margin: Array, *, axis: int) -> Array:
        difference = x - y
        # Not the square of the norm, whose second derivative at equality would be lost.
        together = 0.5 * jnp.sum(jnp.square(difference), axis=axis)
        room = margin - jnp.squeeze(norm(difference, axis), axis)
        apart = 0.5 * jnp.square(jnp.where(room <= 0, 0, room))
        return jnp.where(is_same > 0, together, apart)

    return _of_pairs(
        value,
        x=x,
        y=y,
        beside={"is_same": is_same},
        scalars={"margin": margin},
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def cosine_embedding(
    x: Real,
    y: Real,
    signs: Sign,
    *,
    margin: Real = 0.0,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the cosine of a pair that belongs together; of another, the cosine above a margin.

        1 - cos(x, y)                  where signs = 1
        max(0, cos(x, y) - margin)     where signs = -1

    Use like `contrastive_pair` when only direction carries meaning.

    Args:
      x, y: [..., D] real, one shape.
      signs: [...] 1 for a pair that belongs together, -1 for another.
      margin: in [-1, 1]; pairs that do not belong together count from this cosine on.
      axis: the axis of the vectors' components.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, 2]. The cosine of a zero vector is 0.
    Gradient: of each vector orthogonal to it, at most 1 / |x| long; 0 where either vector is 0.
    Peers: torch.nn.CosineEmbeddingLoss, torch.nn.functional.cosine_embedding_loss.
    Reference: Collobert et al. (2011), Torch7: a MATLAB-like environment for machine learning, BigLearn, NIPS workshop.
    """

    def value(x: Array, y: Array, signs: Array, margin: Array, *, axis: int) -> Array:
        u, v = unit(x, axis), unit(y, axis)
        alive = jnp.any(u != 0, axis=axis) & jnp.any(v != 0, axis=axis)
        # 1 - cos would have no digit left of a small angle.
        together = jnp.where(alive, 0.5 * jnp.sum(jnp.square(u - v), axis=axis), 1)
        excess = jnp.sum(u * v, axis=axis) - margin
        return jnp.where(signs > 0, together, jnp.where(excess <= 0, 0, excess))

    return _of_pairs(
        value,
        x=x,
        y=y,
        beside={"signs": signs},
        scalars={"margin": margin},
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def hinge_embedding(
    distances: NonNegative,
    signs: Sign,
    *,
    margin: Positive = 1.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """The distance of pairs that belong together, and of others what they lack to a margin.

        d                     where signs = 1,   d = distances
        max(0, margin - d)    where signs = -1

    Use like `contrastive_pair` with a distance of your own, taken before: nothing is squared.

    Args:
      distances: [...] real >= 0, one a pair.
      signs: [...] 1 for a pair that belongs together, -1 for another.
      margin: > 0, in units of distance; pairs that do not belong together count up to here.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: units of distance, in [0, inf).
    Gradient: 1 for a pair that belongs together; -1 for another within the margin, 0 at the margin and beyond.
    Peers: torch.nn.HingeEmbeddingLoss, torch.nn.functional.hinge_embedding_loss.
    Reference: Collobert et al. (2011), Torch7: a MATLAB-like environment for machine learning, BigLearn, NIPS workshop.
    """

    def value(distances: Array, signs: Array, margin: Array) -> Array:
        lacking = jnp.where(distances < margin, margin - distances, 0)
        return jnp.where(signs > 0, distances, lacking)

    return pointwise(
        value,
        distances=distances,
        signs=signs,
        scalars={"margin": margin},
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


def _euclidean(x: Array, y: Array) -> Array:
    return _distance(x, y, 2, -1)


def _apart_behind(x: Array, mask: Array | None, even: float, odd: float) -> Array:
    """`x` [..., D] with harmless vectors behind the mask, for distances that nobody here knows.

    Those of the three inputs differ in length and direction, are positive, and lie within the unit ball: a plain
    Euclidean distance has no gradient where its two vectors are equal, a plain angle none where they are parallel.
    """
    if mask is None:
        return x
    index = jnp.arange(x.shape[-1])
    vector = jnp.where(index % 2 == 0, even, odd) / math.sqrt(max(x.shape[-1], 1))
    vector = vector.reshape((1,) * (x.ndim - 1) + vector.shape)
    return jnp.where(jnp.expand_dims(mask, -1), x, vector.astype(x.dtype))


@traced
def triplet_margin_with_distance(
    anchors: Real,
    positives: Real,
    negatives: Real,
    *,
    distance: Callable[[Array, Array], Array] | None = None,
    margin: Positive = 1.0,
    swap: bool = False,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """`triplet_margin` with a distance of your own.

        max(0, d(a, p) - d(a, n) + margin),   a, p, n = anchors, positives, negatives, d = distance

    Use when triplets are given and their distance is learnt, or another than a norm (a cosine, a hyperbolic one).

    Args:
      anchors, positives, negatives: [..., D] real, one shape.
      distance: a function (x [..., D], y [..., D]) -> [...] of float32 or wider, its last axis that of `axis`. It may
        close over parameters, which then get their gradients, and may be another one in each call, for nothing of it is
        kept. None is the Euclidean distance.
      margin: > 0, in units of distance.
      swap: whether d(p, n) counts where it is shorter than d(a, n).
      axis: the axis of the vectors' components.
      where, weights, reduction: see `jaxloss.reduce`. Behind a mask `distance` sees vectors that are finite and differ.
    Returns: units of distance, in [0, inf) for distances >= 0; 0 for a triplet that keeps the margin. Not compiled by
      itself: call it within your own jit.
    Gradient: that of d(a, p) - d(a, n) while the margin is violated, 0 beyond; towards what `distance` closes over too.
    Peers: torch.nn.TripletMarginWithDistanceLoss, torch.nn.functional.triplet_margin_with_distance_loss.
    Reference: Schroff, Kalenichenko and Philbin (2015), FaceNet, CVPR, eq. 3; swap: Balntas et al. (2016), BMVC.
    """
    named = inputs.admitted({"anchors": anchors, "positives": positives, "negatives": negatives})
    full = inputs.assert_one_shape(named)
    (vector_axis,) = inputs.canonical_axes(axis, full, "anchors")
    shape = inputs.without_axes(full, (vector_axis,))
    mask = admit_mask("where", where, shape)
    # Widened once: each input is used twice, and its two gradients are added before they are rounded.
    vectors = [jnp.moveaxis(widen(x), vector_axis, -1) for x in named.values()]
    a, p, n = (
        _apart_behind(x, mask, even, odd)
        for x, (even, odd) in zip(vectors, ((0.5, 0.5), (0.25, 0.5), (0.125, 0.5)), strict=True)
    )
    (least,) = inputs.as_scalars({"margin": margin}, inputs.wide_dtype(named.values()))
    assert least is not None

    def between(x: Array, y: Array) -> Array:
        found = (_euclidean if distance is None else distance)(x, y)
        message = (
            f"`distance` returned {list(jnp.shape(found))} for vectors {list(x.shape)}; one value for each is due: "
            f"{list(shape)}"
        )
        demand(chex.assert_shape, found, shape, error=ValueError, message=message)
        return widen(jnp.asarray(found))

    far = between(a, n)
    if swap:
        far = jnp.minimum(far, between(p, n))
    violation = between(a, p) - far + least
    value = jnp.where(violation > 0, violation, 0)
    return reduce(value, where=mask, weights=weights, reduction=reduction)


@compiled
def mined_triplet(
    embeddings: Real,
    labels: Label,
    *,
    margin: Positive | None = 1.0,
    mining: Literal["all", "hard", "semi_hard"] = "all",
    average: Literal["active", "all"] = "active",
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far each row's negatives fail to be further away than its positives are, by a margin.

        mean over p and n of max(0, d_ap - d_an + margin),   d_ij = |embeddings_i - embeddings_j|,
        a the row itself, p the other rows of its label, n the rows of other labels

    Use to learn embeddings from class labels: batches hold several rows a class, and what to compare is found there.

    Args:
      embeddings: [N, D] real, taken as they are: bring them to length 1 before, if the margin is meant for that.
      labels: [N] integer >= 0; rows of equal label are each other's positives.
      margin: > 0, in units of distance; None is the soft form, log(1 + exp(d_ap - d_an)), which never ends.
      mining: "all" triplets; or for each row the farthest positive with the nearest negative ("hard", of equals the
        first); or each positive with the nearest of the negatives further than it ("semi_hard"), with the farthest
        negative where none is.
      average: over a row's triplets of positive value ("active"; a row without one has value 0) or over "all".
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      where: [N] bool; an excluded row is no anchor, no positive and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: units of distance (soft: nats), in [0, inf), one value a row; a row without a positive or a negative is
      absent. N rows take O(N^2 (D + log N)) time and O(N^2) memory for "all" and "semi_hard". Distances are summed from
      differences, and good to a few ulp between near rows far from 0 too. "partial" is marked as coupled.
    Gradient: for each active triplet the unit vectors along a - p and n - a; 0 between equal rows, and towards the
      choice of triplets.
    Peers: sentence_transformers.losses.BatchAllTripletLoss, sentence_transformers.losses.BatchHardTripletLoss,
      sentence_transformers.losses.BatchHardSoftMarginTripletLoss, tensorflow_addons.losses.TripletSemiHardLoss,
      tensorflow_addons.losses.TripletHardLoss, pytorch_metric_learning.losses.TripletMarginLoss.
    Reference: Hermans, Beyer and Leibe (2017), In defense of the triplet loss for person re-identification,
      arXiv:1703.07737; semi-hard: Schroff, Kalenichenko and Philbin (2015), FaceNet, CVPR.
    """

    def value(embeddings: Array, labels: Array, margin: Array | None, *, everyone: Everyone) -> tuple[Array, Array]:
        _assert_labels(embeddings, labels)
        mine, theirs = _marks(everyone, labels)
        return of_anchors(mining, average, embeddings, everyone.arrays[0], mine, theirs, margin)

    return batchwise(
        value,
        embeddings=_wide(embeddings),
        labels=labels,
        axis_name=axis_name,
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def multi_similarity(
    embeddings: Real,
    labels: Label,
    *,
    alpha: Positive = 2.0,
    beta: Positive = 50.0,
    base: Real = 0.5,
    epsilon: NonNegative | None = None,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Soft maxima of how far a row's positives are below a cosine, and its negatives above.

        log(1 + sum_p exp(-alpha (s_ip - base))) / alpha + log(1 + sum_n exp(beta (s_in - base))) / beta,
        s_ij = cos(embeddings_i, embeddings_j), p the other rows of the row's label, n the rows of other labels

    Use to learn embeddings from class labels; hard pairs weigh more by themselves, so that none need be mined.

    Args:
      embeddings: [N, D] real, brought to length 1.
      labels: [N] integer >= 0; rows of equal label are each other's positives.
      alpha: > 0; larger means that the farthest positives dominate.
      beta: > 0; larger means that the nearest negatives dominate.
      base: the cosine that positives should exceed and negatives should not.
      epsilon: >= 0, in units of cosine, mines pairs too: positives less than the largest negative + epsilon, negatives
        greater than the smallest positive - epsilon; 0.1 in the paper. None takes all pairs.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      where: [N] bool; an excluded row is no anchor, no positive and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: units of cosine, in [0, inf), one value a row; a row alone is absent. "partial" is marked as coupled.
    Gradient: -softmax of the positives beside 0, and softmax of the negatives beside 0, towards the cosines; 0 towards
      the choice of pairs.
    Peers: pytorch_metric_learning.losses.MultiSimilarityLoss.
    Reference: Wang, Han, Huang, Dong and Scott (2019), Multi-similarity loss with general pair weighting for deep
      metric learning, CVPR.
    """

    return _of_cosines(
        _similarities,
        embeddings=embeddings,
        labels=labels,
        axis_name=axis_name,
        scalars={"alpha": alpha, "beta": beta, "base": base, "epsilon": epsilon},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _similarities(
    s: Array, mine: Marks, theirs: Marks, alpha: Array, beta: Array, base: Array, epsilon: Array | None = None
) -> Array:
    """The multi-similarity of each row of a tile of cosines, and whether it has a pair."""
    near, far = alike(mine, theirs), unlike(mine, theirs)
    paired = jnp.any(near | far, axis=1)
    if epsilon is not None:
        c = jax.lax.stop_gradient(s)
        least = jnp.min(jnp.where(near, c, jnp.inf), axis=1, keepdims=True, initial=jnp.inf)
        most = jnp.max(jnp.where(far, c, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf)
        # A row without one kind of pair keeps all of the other.
        near, far = (
            near & ((c < most + epsilon) | (most == -jnp.inf)),
            far & ((c > least - epsilon) | (least == jnp.inf)),
        )
    pull = softplus(log_sum(jnp.where(near, -alpha * (s - base), -jnp.inf))) / alpha
    push = softplus(log_sum(jnp.where(far, beta * (s - base), -jnp.inf))) / beta
    return jnp.stack([jnp.where(paired, pull + push, 0), paired.astype(s.dtype)], axis=1)


@compiled
def circle(
    embeddings: Real,
    labels: Label,
    *,
    margin: Positive = 0.4,
    scale: Positive = 80.0,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Each row's positives against its negatives; a pair weighs by how far its cosine is from its goal.

        log(1 + sum_n exp(scale b_n (s_in - margin)) sum_p exp(-scale a_p (s_ip - 1 + margin))),
        a_p = max(0, 1 + margin - s_ip),   b_n = max(0, s_in + margin),   s_ij = cos(embeddings_i, embeddings_j),
        p the other rows of the row's label, n the rows of other labels

    Use to learn embeddings from class labels, like `multi_similarity`; its boundary is a circle of the two cosines.

    Args:
      embeddings: [N, D] real, brought to length 1.
      labels: [N] integer >= 0; rows of equal label are each other's positives.
      margin: > 0, in units of cosine: positives are to exceed 1 - margin, negatives to stay below margin. In the paper
        0.4 for retrieval, 0.25 for faces.
      scale: > 0, in the paper 80 for retrieval, 256 for faces.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      where: [N] bool; an excluded row is no anchor, no positive and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf), one value a row; a row without a positive or without a negative is absent.
      "partial" is marked as coupled.
    Gradient: -scale a_p sigmoid softmax_p and scale b_n sigmoid softmax_n towards the cosines: a and b are detached
      from them, as in the paper, so that this is not the slope of the value.
    Peers: pytorch_metric_learning.losses.CircleLoss, keras.losses.Circle.
    Reference: Sun et al. (2020), Circle loss: a unified perspective of pair similarity optimization, CVPR, section 3.
    """
    return _of_cosines(
        _circles,
        embeddings=embeddings,
        labels=labels,
        axis_name=axis_name,
        scalars={"margin": margin, "scale": scale},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _circles(s: Array, mine: Marks, theirs: Marks, margin: Array, scale: Array) -> Array:
    """The circle loss of each row of a tile of cosines, and whether it has both kinds of pairs."""
    near, far = alike(mine, theirs), unlike(mine, theirs)
    both = jnp.any(near, axis=1) & jnp.any(far, axis=1)
    c = jax.lax.stop_gradient(s)
    pull = -scale * jnp.maximum(1 + margin - c, 0) * (s - (1 - margin))
    push = scale * jnp.maximum(c + margin, 0) * (s - margin)
    sums = (log_sum(jnp.where(kept, x, -jnp.inf)) for kept, x in ((near, pull), (far, push)))
    total = sum(jnp.where(both, x, 0) for x in sums)
    return jnp.stack([jnp.where(both, softplus(total), 0), both.astype(s.dtype)], axis=1)


def _of_cosines(
    of_tile: Callable[..., Array],
    *,
    embeddings: Real,
    labels: Label,
    axis_name: AxisName,
    scalars: Mapping[str, ArrayLike | None],
    where: Mask,
    weights: Weights,
    reduction: Reduction,
) -> Array:
    """A value per row from all of its cosines, a tile of rows at a time: `of_tile` gives it, and whether it exists."""

    def formula(rows: Array, columns: Array, mine: Marks, theirs: Marks, *numbers: Array | None) -> Array:
        columns = ready(True, columns)
        plan = plan_for(rows, columns, cosine=True)
        given = tuple(number for number in numbers if number is not None)
        return of_rows(plan, of_tile, rows, columns, jnp.ones((), columns.dtype), mine, theirs, *given)

    def value(embeddings: Array, labels: Array, *numbers: Array | None, everyone: Everyone) -> tuple[Array, Array]:
        _assert_labels(embeddings, labels)
        mine, theirs = _marks(everyone, labels)
        arrays = jax.tree.leaves((embeddings, mine, everyone.arrays))
        found = in_auto_mode(formula, arrays, embeddings)(embeddings, everyone.arrays[0], mine, theirs, *numbers)
        return found[:, 0], jax.lax.stop_gradient(found[:, 1]) > 0

    return batchwise(
        value,
        embeddings=_wide(embeddings),
        labels=labels,
        axis_name=axis_name,
        scalars=scalars,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _marks(everyone: Everyone, labels: Array) -> tuple[Marks, Marks]:
    """Who the caller's rows are, and who all are."""
    mine = Marks(everyone.own, everyone.here, labels)
    return mine, Marks(everyone.index, everyone.present, everyone.arrays[1])


def _wide(embeddings: Real) -> Real:
    """Half precision to float32: a row is an anchor and others' negative, and its slopes are added before rounding."""
    if isinstance(embeddings, jax.Array) and embeddings.dtype in (jnp.bfloat16, jnp.float16):
        return widen(embeddings)
    return embeddings


def _assert_labels(embeddings: Array, labels: Array) -> None:
    message = f"`embeddings` {list(embeddings.shape)} must be [N, D]; flatten or vmap over further axes"
    demand(chex.assert_rank, embeddings, 2, error=ValueError, message=message)
    message = f"`labels` {list(labels.shape)} must be [N], one for each row of `embeddings` {list(embeddings.shape)}"
    demand(chex.assert_rank, labels, 1, error=ValueError, message=message)
