"""A list's softmax, smoothed labels, and losses made from a maximum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxloss import losses as jl
from jaxloss.compat.optax.arrays import Axes, aligned, floating, number, ordered_axes
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import reduce
from jaxloss.core.types import Array, ArrayLike

__all__ = ["make_fenchel_young_loss", "ranking_softmax_loss", "smooth_labels"]


def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: Callable[..., ArrayLike] | None = jnp.mean,
) -> Array:
    """Cross-entropy of a list's scores under its relevance: `jl.list_softmax(logits, labels * weights, valid=where)`.

    `reduce_fn` gets one value a list, and `where=`, which lists have an item; the mean over none is 0.
    """
    scores, relevance = floating("logits", logits), widen(number("labels", labels))
    if weights is not None:
        relevance = jnp.multiply(*aligned(relevance, widen(number("weights", weights))))
    valid, lists = None, None
    if where is None:
        scores, relevance = aligned(scores, relevance)
    else:
        scores, relevance, valid = aligned(scores, relevance, jnp.asarray(where).astype(bool))
        lists = jnp.any(valid, axis=-1)
    values = jl.list_softmax(scores, relevance, valid=valid, reduction="none")
    if reduce_fn is None:
        return values
    if reduce_fn is jnp.mean:
        return reduce(values, where=lists, reduction="mean")
    return jnp.asarray(reduce_fn(values, where=lists))


def smooth_labels(labels: ArrayLike, alpha: ArrayLike, *, axis: Axes = -1, where: ArrayLike | None = None) -> Array:
    """Distributions with alpha of their mass spread over all classes, those of `where`: no loss, and of their dtype.

    Integer labels need none: `jl.softmax_cross_entropy(logits, labels, label_smoothing=alpha)`.
    """
    t = floating("labels", labels)
    axes = ordered_axes(axis, t.ndim, "labels")
    share, dtype = jnp.asarray(alpha), jnp.result_type(t, alpha)
    t, share = aligned(widen(t), share)
    if where is None:
        even = share / math.prod(t.shape[a] for a in axes)
    else:
        t, share, kept = aligned(t, share, jnp.asarray(where).astype(bool))
        count = jnp.sum(kept, axis=axes, keepdims=True)
        even = jnp.where(count > 0, share / jnp.maximum(count, 1), 0)  # over no class nothing is spread
    return ((1 - share) * t + even).astype(dtype)


def make_fenchel_young_loss(max_fun: Callable[..., ArrayLike]) -> Callable[..., Array]:
    """The loss max_fun(scores) - <targets, scores>, over the last axis: what a regularised maximum has over a target.

    jaxloss has the usual ones by name, and exact: of logsumexp `jl.softmax_cross_entropy_with_soft_labels(scores,
    targets, reduction="none")`, of the sparse projections `jl.sparsemax` and `jl.entmax`.

    Args:
      max_fun: from scores [n] to a number; its gradient is the prediction. Arguments after `scores` and `targets` are
        passed on to it.
    """

    def fenchel_young_loss(scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any) -> Array:
        s, t = widen(number("scores", scores)), widen(number("targets", targets))
        highest = jnp.vectorize(lambda row: max_fun(row, *args, **kwargs), signature="(n)->()")(s)
        s, t = aligned(s, t)
        # What is ruled out and no target: 0 * -inf is 0 here, as in 0 log 0.
        at_target = jnp.sum(t * jnp.where((t == 0) & jnp.isinf(s), 0, s), axis=-1)
        return jnp.subtract(*aligned(highest, at_target))

    return fenchel_young_loss
