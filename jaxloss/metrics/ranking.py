"""Lists of items: an order by scores against how relevant each item is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.smooth_ranks import exponential_gains
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import listwise
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array, Mask, NonNegative, Real, ValidMask, Weights
from jaxloss.metrics.sorted_counts import SortedCounts, precision_sum, sorted_counts, tie_starts
from jaxloss.metrics.tallies import as_mean, safe

__all__ = ["mean_average_precision", "mean_reciprocal_rank", "ndcg", "precision_at", "recall_at"]


@compiled
def ndcg(
    scores: Real,
    relevance: NonNegative,
    *,
    k: int | None = None,
    gain: Literal["exponential", "linear"] = "exponential",
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """Normalised discounted cumulative gain: how much relevance stands near the top, against the best order.

        DCG / (DCG of the order by relevance),   DCG = sum over ranks i <= k of gain_i / log2(1 + i)
        gain = 2^relevance - 1

    Use for graded relevance where the first places matter most.

    Args:
      scores: [..., L] real. Equal ones count as all their orders do on average.
      relevance: [..., L] >= 0, the same shape; a negative one makes the metric nan, as a nan does.
      k: >= 1, how many places count; None is all.
      gain: "exponential", or "linear": the relevance itself.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: a `Mean` over lists, its value in [0, 1]. O(L log L) time. (scikit-learn has linear gain, and counts a list
      without a relevant item as 0.)
    Peers: sklearn.metrics.ndcg_score, rax.ndcg_metric, torchmetrics.retrieval.RetrievalNormalizedDCG.
    Reference: Jarvelin and Kekalainen (2002), Cumulated gain-based evaluation of IR techniques, ACM TOIS 20(4); gain:
      Burges et al. (2005), Learning to rank using gradient descent, ICML; ties: McSherry and Najork (2008), Computing
      information retrieval performance measures efficiently in the presence of tied scores, ECIR.
    """
    _at_least_one("ndcg", k)

    def value(scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
        r = jnp.where(valid, relevance, 0)
        top = jnp.max(r, axis=-1, keepdims=True, initial=0)
        gains = exponential_gains(relevance, valid) if gain == "exponential" else r / safe(top)
        # nan stands behind -inf, so that what does not exist is no tie of what does.
        key = jnp.where(valid, -scores, jnp.nan)
        key, by_score = lax.sort((key, gains), dimension=key.ndim - 1, num_keys=1, is_stable=False)
        best = -lax.sort(-gains, dimension=key.ndim - 1, is_stable=False)
        place = lax.broadcasted_iota(gains.dtype, gains.shape, gains.ndim - 1)
        discount = 1 / jnp.log1p(place + 1)  # log2 in both, which cancels
        if k is not None:
            discount = jnp.where(place < k, discount, 0)
        found = jnp.sum(discount * _mean_of_ties(by_score, tie_starts(key)), axis=-1)
        ideal = jnp.sum(discount * best, axis=-1)
        return found / safe(ideal), top[..., 0] > 0

    return _over_lists(value, scores, relevance, axis, valid, where, weights)


@compiled
def mean_reciprocal_rank(
    scores: Real,
    relevance: NonNegative,
    *,
    k: int | None = None,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """One over the rank of the first relevant item (MRR).

        mean over lists of 1 / rank,   rank = number of items that score at least as high as the best relevant one

    Use where one relevant item is enough.

    Args:
      scores: [..., L] real. Equal ones are retrieved together: a constant score earns 1 / L, not 1.
      relevance: [..., L] >= 0, the same shape; relevant is what is above 0. A negative one makes the metric nan, as a
        nan does.
      k: >= 1; a first relevant item beyond rank k counts 0. None is no bound.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: a `Mean` over lists, its value in (0, 1], 0 beyond k. O(L) time.
    Peers: rax.mrr_metric, torchmetrics.retrieval.RetrievalMRR.
    Reference: Voorhees (1999), The TREC-8 question answering track report, TREC.
    """
    _at_least_one("mean_reciprocal_rank", k)

    def value(scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
        relevant = valid & (relevance > 0)
        best = jnp.max(jnp.where(relevant, scores, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
        rank = jnp.sum(valid & (scores >= best), axis=-1, dtype=jnp.int32)
        reciprocal = 1 / jnp.maximum(rank, 1).astype(scores.dtype)
        return reciprocal if k is None else jnp.where(rank <= k, reciprocal, 0), jnp.any(relevant, axis=-1)

    return _over_lists(value, scores, relevance, axis, valid, where, weights)


@compiled
def mean_average_precision(
    scores: Real,
    relevance: NonNegative,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """The precision at each relevant item, averaged over a list's relevant items, then over lists (MAP).

        mean over lists of mean over relevant i of
        (number of relevant items scoring >= scores_i) / (number of items scoring >= scores_i)

    Use where all relevant items are to be found, and stand before the others.

    Args:
      scores: [..., L] real. Equal ones are retrieved together.
      relevance: [..., L] >= 0, the same shape; relevant is what is above 0. A negative one makes the metric nan, as a
        nan does.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: a `Mean` over lists, its value in (0, 1]. O(L log L) time.
    Peers: sklearn.metrics.label_ranking_average_precision_score, sklearn.metrics.average_precision_score,
      rax.ap_metric, torchmetrics.retrieval.RetrievalMAP.
    Reference: Buckley and Voorhees (2000), Evaluating evaluation measure stability, SIGIR.
    """

    def value(scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
        at = _relevant_counts(scores, relevance, valid)
        relevant = jnp.sum(at.positive, axis=-1)
        return precision_sum(at, scores.dtype) / jnp.maximum(relevant, 1).astype(scores.dtype), relevant > 0

    return _over_lists(value, scores, relevance, axis, valid, where, weights)


@compiled
def recall_at(
    scores: Real,
    relevance: NonNegative,
    *,
    k: int = 10,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """The share of a list's relevant items that stand among its first k.

        mean over lists of (number of relevant items in the first k places) / (number of relevant items)

    Use for retrieval, where what is missed at this stage is lost.

    Args:
      scores: [..., L] real. Equal ones count as all their orders do on average.
      relevance: [..., L] >= 0, the same shape; relevant is what is above 0. A negative one makes the metric nan, as a
        nan does.
      k: >= 1, how many places count.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: a `Mean` over lists, its value in [0, 1].
    Peers: rax.recall_metric, torchmetrics.retrieval.RetrievalRecall.
    Reference: Manning, Raghavan and Schutze (2008), Introduction to information retrieval, Cambridge, section 8.3;
      ties: McSherry and Najork (2008), ECIR.
    """
    _at_least_one("recall_at", k)

    def value(scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
        hits, relevant = _hits_at(k, scores, relevance, valid)
        return hits / jnp.maximum(relevant, 1).astype(scores.dtype), relevant > 0

    return _over_lists(value, scores, relevance, axis, valid, where, weights)


@compiled
def precision_at(
    scores: Real,
    relevance: NonNegative,
    *,
    k: int = 10,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """The share of the first k places that hold a relevant item.

        mean over lists of (number of relevant items in the first k places) / k

    Use where k items are shown.

    Args:
      scores: [..., L] real. Equal ones count as all their orders do on average.
      relevance: [..., L] >= 0, the same shape; relevant is what is above 0. A negative one makes the metric nan, as a
        nan does.
      k: >= 1, how many places count; a shorter list is divided by k too.
      axis: the axis of a list's items.
      valid: [..., L] bool, which items exist.
      where, weights: see `jaxloss.reduce`; one value a list. A list without a relevant item is absent.
    Returns: a `Mean` over lists, its value in [0, 1].
    Peers: rax.precision_metric, torchmetrics.retrieval.RetrievalPrecision.
    Reference: Manning, Raghavan and Schutze (2008), Introduction to information retrieval, Cambridge, section 8.4;
      ties: McSherry and Najork (2008), ECIR.
    """
    _at_least_one("precision_at", k)

    def value(scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
        hits, relevant = _hits_at(k, scores, relevance, valid)
        return hits / k, relevant > 0

    return _over_lists(value, scores, relevance, axis, valid, where, weights)


def _over_lists(
    value: Callable[[Array, Array, Array], tuple[Array, Array]],
    scores: Real,
    relevance: NonNegative,
    axis: int,
    valid: ValidMask,
    where: Mask,
    weights: Weights,
) -> Mean:
    """The mean over lists of `value(scores, relevance, valid)`, lists along the last axis; nan where one is unknown."""

    def of_lists(scores: Array, relevance: Array, *, axis: int, valid: Array) -> tuple[Array, Array]:
        scores, relevance, valid = (jnp.moveaxis(x, axis, -1) for x in (widen(scores), widen(relevance), valid))
        unknown = jnp.any(valid & (jnp.isnan(scores) | ~(relevance >= 0)), axis=-1)
        result, present = value(scores, relevance, valid)
        return jnp.where(unknown, jnp.nan, result), present | unknown

    return as_mean(
        listwise(
            of_lists,
            scores=lax.stop_gradient(scores),
            relevance=lax.stop_gradient(relevance),
            axis=axis,
            valid=valid,
            where=where,
            weights=weights,
            reduction="partial",
        )
    )


def _relevant_counts(scores: Array, relevance: Array, valid: Array) -> SortedCounts:
    # nan stands behind -inf, so that what does not exist is no tie of what does.
    signed = jnp.where(valid, jnp.where(relevance > 0, 1, -1), 0)
    return sorted_counts(jnp.where(valid, scores, jnp.nan), signed)


def _hits_at(k: int, scores: Array, relevance: Array, valid: Array) -> tuple[Array, Array]:
    """How many relevant items stand in the first k places, on average over the orders of ties; and how many exist."""
    at = _relevant_counts(scores, relevance, valid)
    relevant = jnp.sum(at.positive, axis=-1)
    if k >= scores.shape[-1]:
        return relevant.astype(scores.dtype), relevant
    # Only the ties around place k are cut.
    before, through = (x[..., k - 1] for x in (at.positives_before, at.positives_through))
    start, end = (x[..., k - 1] for x in (at.retrieved_before, at.retrieved_through))
    share = (k - start).astype(scores.dtype) / jnp.maximum(end - start, 1).astype(scores.dtype)
    return before.astype(scores.dtype) + share * (through - before).astype(scores.dtype), relevant


def _mean_of_ties(x: Array, first: Array) -> Array:
    """Each entry's mean over its run; `first` says where runs begin."""

    def of_one(x: Array, first: Array) -> Array:
        run = jnp.cumsum(first.astype(jnp.int32)) - 1
        ones = jnp.ones_like(x, jnp.int32)
        # Added run by run: a difference of cumulative sums would have no digit left beside large gains.
        total = (0 * x).at[run].add(x, indices_are_sorted=True)
        size = (0 * ones).at[run].add(ones, indices_are_sorted=True)
        return total[run] / size[run].astype(x.dtype)

    # Mapped, the scatter knows that lists do not meet, and leaves them on their devices.
    of_all = of_one
    for _ in range(x.ndim - 1):
        of_all = jax.vmap(of_all)
    return of_all(x, first)


def _at_least_one(name: str, k: int | None) -> None:
    if k is not None and k < 1:
        raise ValueError(f"`k` of {name} must be at least 1, got {k}")
