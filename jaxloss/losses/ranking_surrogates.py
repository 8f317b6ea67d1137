"""Surrogates of the metrics by which a ranking is judged: smooth in the scores, where the metrics have steps."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.smooth_ranks import dcg_gap, discount, exponential_gains
from jaxloss.algorithms.sorted_order import iota
from jaxloss.algorithms.swapped_pairs import swap_total
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import sigmoid
from jaxloss.core.frames import listwise
from jaxloss.core.numerics import widen
from jaxloss.core.sharding import is_label
from jaxloss.core.types import (
    Array,
    Mask,
    NonNegative,
    Positive,
    Probability,
    Real,
    Reduction,
    ValidMask,
    Weights,
)

__all__ = ["approx_mrr", "approx_ndcg", "auc_margin", "lambda_rank"]


@compiled
def approx_ndcg(
    scores: Real,
    relevance: NonNegative,
    *,
    temperature: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """1 - NDCG, the ranks replaced by sums of sigmoids (ApproxNDCG).

        1 - (1 / ideal) sum_i (2^relevance_i - 1) / log2(1 + rank_i)
        rank_i = 1 + sum over j != i of sigmoid((scores_j - scores_i) / temperature)

    Use to rank by graded relevance when the list is judged by NDCG: what stands at the top counts most.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape.
      temperature: > 0, in score units; the lower, the closer to NDCG and the smaller the gradient far from a tie.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without an item of relevance > 0, whose
        ideal is 0, is absent.
    Returns: in [0, 1); the ideal is the DCG of the items by falling relevance. A list of n items takes O(n log n) time
      and O(n) memory: long lists are sorted and summed to rounding error, not by pairs.
    Gradient: each pair moves both ranks by sigmoid' / temperature, and a rank r counts gain / (1 + r) / log(1 + r)^2.
    Peers: rax.approx_t12n (of rax.ndcg_metric).
    Reference: Qin, Liu and Li (2010), A general approximation framework for direct optimization of information
      retrieval measures, Information Retrieval 13(4).
    """

    def value(scores: Array, relevance: Array, temperature: Array, *, axis: int, valid: Array) -> tuple[Array, Array]:
        s, r, v = (jnp.moveaxis(x, axis, -1) for x in (widen(scores), widen(relevance), valid))
        gap, ideal = dcg_gap(s / temperature, exponential_gains(r, v).astype(s.dtype), v)
        return gap / jnp.where(ideal > 0, ideal, 1), ideal > 0

    return listwise(
        value,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def approx_mrr(
    scores: Real,
    relevance: NonNegative,
    *,
    temperature: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """1 - reciprocal rank of the first relevant item, the rank replaced by a sum of sigmoids (ApproxMRR).

        1 - 1 / rank,   rank = 1 + sum over j != i of sigmoid((scores_j - scores_i) / temperature)
        i: the item of the highest score among those with relevance >= 1

    Use to rank when one relevant item near the top is enough: questions with an answer, known items.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape; an item is relevant from 1 on.
      temperature: > 0, in score units; the lower, the closer to the reciprocal rank.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: in [0, 1); 0 for a list of one item. Of relevant items with equal scores the one that stands first in the
      list is ranked; the largest reciprocal rank among the relevant items is meant, as the smooth ranks fall with the
      scores.
    Gradient: sigmoid' / temperature / rank^2 for each other item, the opposite of their sum for the ranked one.
    Peers: rax.approx_t12n (of rax.mrr_metric).
    Reference: Qin, Liu and Li (2010), A general approximation framework for direct optimization of information
      retrieval measures, Information Retrieval 13(4).
    """

    def value(scores: Array, relevance: Array, temperature: Array, *, axis: int, valid: Array) -> tuple[Array, Array]:
        s, relevant = widen(scores), valid & (relevance >= 1)
        candidates = jnp.where(relevant, lax.stop_gradient(s), -jnp.inf)
        first = is_label(s, jnp.argmax(candidates, axis=axis), axis)
        top = jnp.sum(jnp.where(first, s, 0), axis=axis, keepdims=True)
        ahead = jnp.sum(jnp.where(valid & ~first, sigmoid((s - top) / temperature), 0), axis=axis)
        return ahead / (1 + ahead), jnp.any(relevant, axis=axis)

    return listwise(
        value,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def lambda_rank(
    scores: Real,
    relevance: NonNegative,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Logistic loss of every pair, weighted by what a swap of its items changes in NDCG (LambdaRank).

        sum over relevance_i > relevance_j of |change_ij| log(1 + exp(-(scores_i - scores_j)))
        change_ij = (2^relevance_i - 2^relevance_j) (1 / log2(1 + rank_i) - 1 / log2(1 + rank_j)) / ideal

    Use to rank by graded relevance when the list is judged by NDCG and the scores are far from good: a pair in the
    wrong order pulls however far apart its scores are, where the slope of `approx_ndcg` vanishes.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a pair is absent.
    Returns: nats times NDCG, in [0, inf). Ranks are the places by falling score, of equal scores the first in the list
      first; the ideal is the DCG by falling relevance. A list of n items takes O(n log n) time, times log2 of the
      number of its grades, and O(n) memory: long lists are sorted and summed to rounding error, not by pairs.
    Gradient: -|change_ij| sigmoid(-(s_i - s_j)) per pair towards s_i, the opposite towards s_j. The changes are
      constants (detached): neither they nor the relevance have a gradient.
    Peers: rax.dcg_lambdaweight (in rax.pairwise_logistic_loss: normalised, and times the list's length).
    Reference: Burges (2010), From RankNet to LambdaRank to LambdaMART: an overview, MSR-TR-2010-82; as a loss: Wang,
      Li, Golbandi, Bendersky and Najork (2018), The LambdaLoss framework for ranking metric optimization, CIKM.
    """

    def value(scores: Array, relevance: Array, *, axis: int, valid: Array) -> tuple[Array, Array]:
        s, r, v = (jnp.moveaxis(x, axis, -1) for x in (widen(scores), lax.stop_gradient(widen(relevance)), valid))
        gains = exponential_gains(r, v).astype(s.dtype)
        place = 1 + iota(v).astype(s.dtype)
        ideal = jnp.sum(-jnp.sort(-gains, axis=-1) * discount(place), axis=-1)
        low = jnp.min(jnp.where(v, r, jnp.inf), axis=-1, initial=jnp.inf)
        high = jnp.max(jnp.where(v, r, -jnp.inf), axis=-1, initial=-jnp.inf)
        return swap_total(s, gains, v) / jnp.where(ideal > 0, ideal, 1), ~(high <= low)

    return listwise(
        value,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def auc_margin(
    scores: Real,
    targets: Probability,
    *,
    margin: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Variance within two classes, and the squared shortfall of their means' distance (AUC margin).

        var(scores of positives) + var(scores of negatives) + max(0, margin - (mean of positives - mean of negatives))^2

    Use to raise the area under the ROC curve of unbalanced classes: each class counts alike, however rare it is.

    Args:
      scores: [..., L] real, often probabilities; an axis of examples, of one batch.
      targets: [..., L] in [0, 1], the same shape: 1 for a positive, 0 for a negative; between, the share of each class
        in which the example counts.
      margin: > 0, in score units; how far apart the means are to be.
      axis: the axis of the examples that are compared.
      valid: [..., L] bool, which examples exist.
      where, weights, reduction: see `jaxloss.reduce`; one value for each group of examples along `axis`. A group with
        one class only is absent.
    Returns: squared score units, in [0, inf). The paper's min-max problem with its inner variables at their optimum for
      this batch: a and b are the means, alpha = max(0, margin - (a - b)); not divided by the classes' shares.
    Gradient: 2 (s - mean) / n in its class, less 2 alpha / n for a positive, more for a negative.
    Peers: libauc.losses.AUCMLoss (version v2, with a, b and alpha learned; v1 is that times p (1 - p), p the share of
      positives).
    Reference: Yuan, Yan, Sonka and Yang (2021), Large-scale robust deep AUC maximization: a new surrogate loss and
      empirical studies on medical image classification, ICCV.
    """

    def value(scores: Array, targets: Array, margin: Array, *, axis: int, valid: Array) -> tuple[Array, Array]:
        s, t = widen(scores), widen(targets)
        share, other = jnp.where(valid, t, 0), jnp.where(valid, 1 - t, 0)
        # Nothing depends on the origin: about the scores' own mean nothing cancels that they have in common.
        size = jnp.sum(valid, axis=axis, keepdims=True, dtype=s.dtype)
        s = jnp.where(valid, s - lax.stop_gradient(jnp.sum(jnp.where(valid, s, 0), axis=axis, keepdims=True) / size), 0)

        def mean(x: Array, share: Array) -> Array:
            total = jnp.sum(share, axis=axis, keepdims=True)
            return jnp.sum(share * x, axis=axis, keepdims=True) / jnp.where(total > 0, total, 1)

        a, b = mean(s, share), mean(s, other)
        short = jnp.maximum(margin - (a - b), 0)
        spread = mean(jnp.square(s - a), share) + mean(jnp.square(s - b), other)
        both = (jnp.sum(share, axis=axis) > 0) & (jnp.sum(other, axis=axis) > 0)
        return jnp.squeeze(spread + jnp.square(short), axis), both

    return listwise(
        value,
        scores=scores,
        targets=targets,
        axis=axis,
        valid=valid,
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )
