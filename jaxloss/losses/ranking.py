"""Lists of items: scores against how relevant each item is."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import soft_label_nll, softplus
from jaxloss.core.frames import listwise, pairwise
from jaxloss.core.types import Array, Mask, NonNegative, Real, Reduction, ValidMask, Weights

__all__ = ["list_softmax", "pairwise_logistic"]


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
    Returns: nats, in [0, inf); log(2) for equal scores. Memory is quadratic in the length of the list.
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
        where=where,
        weights=weights,
        reduction=reduction,
    )
