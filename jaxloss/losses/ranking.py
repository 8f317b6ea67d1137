"""Lists of items: scores against how relevant each item is."""

from __future__ import annotations

import functools
from typing import Literal

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.sorted_order import iota, taken
from jaxloss.algorithms.sorted_pairs import pair_total
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import soft_label_nll, softplus
from jaxloss.core.frames import listwise, pairwise, pointwise
from jaxloss.core.numerics import differentiable, widen
from jaxloss.core.types import Array, Mask, NonNegative, Positive, Real, Reduction, Sign, ValidMask, Weights

__all__ = [
    "bayesian_personalized_ranking",
    "list_mle",
    "list_softmax",
    "margin_ranking",
    "pairwise_hinge",
    "pairwise_logistic",
    "pairwise_squared_hinge",
]

# Up to these lengths the plain form, of all pairs at once, is faster than sorting.
_SHORT_FOR_HINGE = 192
_SHORT_FOR_LOGISTIC = 256


@compiled
def list_softmax(
    scores: Real,
    relevance: NonNegative,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of a softmax over a list's scores under its relevance (ListNet).

        sum_j relevance_j (logsumexp(scores) - scores_j)

    Use to rank when a list has one or a few relevant items: clicks, choices.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape, taken as it is: normalise it for one weight a list.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a valid item is absent.
    Returns: nats times relevance, in [0, inf); 0 for a list of irrelevant items.
    Gradient: sum(relevance) softmax(scores) - relevance.
    Peers: rax.softmax_loss, optax.losses.ranking_softmax_loss.
    Reference: Cao, Qin, Liu, Tsai and Li (2007), Learning to rank: from pairwise approach to listwise approach, ICML.
    """

    def value(scores: Array, relevance: Array, *, axis: int, valid: Array) -> Array:
        return soft_label_nll(jnp.where(valid, scores, -jnp.inf), jnp.where(valid, relevance, 0), axis)

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
def list_mle(
    scores: Real,
    relevance: NonNegative,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-likelihood of the order by relevance under the Plackett-Luce model (ListMLE).

        sum_i log(sum over j >= i of exp(scores_j)) - scores_i,   items in the order of falling relevance

    Use when whole orders are observed: the model draws the items one by one, each by the softmax of the rest.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape; only its order counts. Of equal items the one that stands first in the
        list comes first.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a valid item is absent.
    Returns: nats, in [0, inf): minus the log-probability of the order; log(L!) for equal scores.
    Gradient: for each item, its probabilities of being drawn, summed over the draws up to its own, minus 1.
    Peers: rax.listmle_loss.
    Reference: Xia, Liu, Wang, Zhang and Li (2008), Listwise approach to learning to rank: theory and algorithm, ICML.
    """

    def value(scores: Array, relevance: Array, *, axis: int, valid: Array) -> Array:
        s, r, v = (jnp.moveaxis(x, axis, -1) for x in (widen(scores), relevance, valid))
        last = s.ndim - 1
        key = jnp.where(v, -lax.stop_gradient(r), jnp.inf)
        ordered, order = lax.sort((key, iota(key > 0)), dimension=last, num_keys=1, is_stable=True)
        s, exists = taken(s, order), ordered < jnp.inf
        # Of what comes after an item: logsumexp - s_i would be a difference of large numbers.
        behind = lax.cumlogsumexp(jnp.where(exists, s, -jnp.inf), axis=last, reverse=True)[..., 1:]
        contested = exists[..., 1:]
        gap = jnp.where(contested, behind, 0) - jnp.where(contested, s[..., :-1], 0)
        return jnp.sum(jnp.where(contested, softplus(gap), 0), axis=-1)

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
def pairwise_logistic(
    scores: Real,
    relevance: NonNegative,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    pairs: Literal["mean", "sum"] = "mean",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Logistic loss on the score difference of every pair of a more and a less relevant item (RankNet).

        mean over relevance_i > relevance_j of log(1 + exp(-(scores_i - scores_j)))

    Use to rank by graded relevance when the order matters everywhere in the list.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape; only its order counts.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      pairs: whether a list's value is the "mean" or the "sum" over its pairs.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a pair is absent.
    Returns: nats, in [0, inf); log(2) for equal scores. A list of n items takes O(n log n) time, times log2 of the
      number of its grades, and O(n) memory: long lists are sorted and summed to rounding error, not by pairs.
    Gradient: -sigmoid(-(s_i - s_j)) per pair towards s_i, the opposite towards s_j.
    Peers: rax.pairwise_logistic_loss.
    Reference: Burges et al. (2005), Learning to rank using gradient descent, ICML, eq. 3.
    """

    def value(difference: Array) -> Array:
        return softplus(-difference)

    return pairwise(
        value,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        pairs=pairs,
        beyond=(_SHORT_FOR_LOGISTIC, functools.partial(pair_total, "logistic")),
        where=where,
        weights=weights,
        reduction=reduction,
    )


# At the margin itself the slope is 0, in the engine for long lists too.
_hinge = differentiable(
    lambda difference, margin: jnp.maximum(margin - difference, 0),
    lambda difference, margin: -(margin - difference > 0).astype(difference.dtype),
    lambda difference, margin: (margin - difference > 0).astype(difference.dtype),
)


def _squared_hinge(difference: Array, margin: Array) -> Array:
    return jnp.square(_hinge(difference, margin))


@compiled
def pairwise_hinge(
    scores: Real,
    relevance: NonNegative,
    *,
    margin: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    pairs: Literal["mean", "sum"] = "mean",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Hinge loss on the score difference of every pair of a more and a less relevant item (ranking SVM).

        mean over relevance_i > relevance_j of max(0, margin - (scores_i - scores_j))

    Use to rank when a pair that is apart by the margin should count no more; with binary relevance it bounds 1 - AUC.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape; only its order counts.
      margin: > 0, in score units; how far the more relevant item must be ahead.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      pairs: whether a list's value is the "mean" or the "sum" over its pairs.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a pair is absent.
    Returns: score units, in [0, inf); `margin` for equal scores. A list of n items takes O(n log n) time, times log2 of
      the number of its grades, and O(n) memory: long lists are sorted, and each active pair is counted exactly.
    Gradient: -1 per pair closer than the margin towards s_i, the opposite towards s_j; 0 at the margin itself.
    Peers: rax.pairwise_hinge_loss (margin 1).
    Reference: Joachims (2002), Optimizing search engines using clickthrough data, KDD; sorted: Joachims (2006),
      Training linear SVMs in linear time, KDD.
    """
    return pairwise(
        _hinge,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        pairs=pairs,
        beyond=(_SHORT_FOR_HINGE, functools.partial(pair_total, "hinge")),
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def pairwise_squared_hinge(
    scores: Real,
    relevance: NonNegative,
    *,
    margin: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    pairs: Literal["mean", "sum"] = "mean",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared hinge loss on the score difference of every pair of a more and a less relevant item.

        mean over relevance_i > relevance_j of max(0, margin - (scores_i - scores_j))^2

    Use like `pairwise_hinge`, with a slope without jumps; with binary relevance it is a consistent surrogate of AUC.

    Args:
      scores: [..., L] real.
      relevance: [..., L] >= 0, the same shape; only its order counts.
      margin: > 0, in score units; how far the more relevant item must be ahead.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      pairs: whether a list's value is the "mean" or the "sum" over its pairs.
      where, weights, reduction: see `jaxloss.reduce`; one value a list. A list without a pair is absent.
    Returns: squared score units, in [0, inf); `margin`^2 for equal scores. A list of n items takes O(n log n) time,
      times log2 of the number of its grades, and O(n) memory.
    Gradient: -2 max(0, margin - (s_i - s_j)) per pair towards s_i, the opposite towards s_j.
    Peers: libauc.losses.PairwiseAUCLoss (surr_loss squared_hinge).
    Reference: Rust and Hocking (2023), A log-linear gradient descent algorithm for unbalanced binary classification
      using the all pairs squared hinge loss, arXiv:2302.11062.
    """
    return pairwise(
        _squared_hinge,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        pairs=pairs,
        beyond=(_SHORT_FOR_HINGE, functools.partial(pair_total, "squared_hinge")),
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def margin_ranking(
    scores_a: Real,
    scores_b: Real,
    signs: Sign,
    *,
    margin: NonNegative = 0.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Hinge loss on the score difference of given pairs.

        max(0, margin - signs (scores_a - scores_b))

    Use to rank when the pairs themselves are the data: this one before that one.

    Args:
      scores_a, scores_b: [...] real, one shape.
      signs: [...] 1 where a is to rank before b, -1 where b is to rank before a.
      margin: >= 0, in score units; how far the first must be ahead.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: score units, in [0, inf).
    Gradient: -signs towards a and signs towards b for a pair closer than the margin; 0 at the margin itself.
    Peers: torch.nn.MarginRankingLoss, torch.nn.functional.margin_ranking_loss.
    Reference: Herbrich, Graepel and Obermayer (2000), Large margin rank boundaries for ordinal regression, MIT Press.
    """

    def value(a: Array, b: Array, signs: Array, margin: Array) -> Array:
        return _hinge(signs * (a - b), margin)

    return pointwise(
        value,
        scores_a=scores_a,
        scores_b=scores_b,
        signs=signs,
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def bayesian_personalized_ranking(
    positive: Real,
    negative: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability that a chosen item outscores one that was not chosen (BPR).

        log(1 + exp(-(positive - negative)))

    Use to recommend from implicit feedback: for a user's every choice, draw an item that was not chosen.

    Args:
      positive, negative: [...] real, one shape: the scores of the chosen and of the drawn item.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); log(2) for equal scores.
    Gradient: -sigmoid(negative - positive) towards `positive`, the opposite towards `negative`.
    Peers: recbole.model.loss.BPRLoss.
    Reference: Rendle, Freudenthaler, Gantner and Schmidt-Thieme (2009), BPR: Bayesian personalized ranking from
      implicit feedback, UAI.
    """

    def value(positive: Array, negative: Array) -> Array:
        return softplus(negative - positive)

    return pointwise(value, positive=positive, negative=negative, where=where, weights=weights, reduction=reduction)
