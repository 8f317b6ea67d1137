"""How many positives and negatives stand where in the order of falling scores, equal scores in one place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.sorted_order import lasts
from jaxloss.core.types import Array
from jaxloss.metrics.tallies import summed

__all__ = ["SortedCounts", "precision_sum", "sorted_counts", "tie_starts"]


class SortedCounts(NamedTuple):
    """Along the last axis, by falling scores. Of equal scores "through" counts all in, and "before" none."""

    positive: Array  # the item's own count
    negative: Array
    positives: Array  # sum up to the item
    negatives: Array
    positives_before: Array
    positives_through: Array
    retrieved_before: Array  # of both kinds
    retrieved_through: Array


def tie_starts(ordered: Array) -> Array:
    """Which items differ from the one before."""
    return jnp.concatenate([jnp.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], axis=-1)


def sorted_counts(scores: Array, signed: Array) -> SortedCounts:
    """From scores, and how often each counts: as a positive, or with a minus as a negative; 0 if it does not exist."""
    last = scores.ndim - 1
    # One operand for both kinds: a sort moves all its operands.
    ordered, signed = lax.sort((-scores, signed), dimension=last, num_keys=1, is_stable=False)
    positive, negative = jnp.maximum(signed, 0), jnp.maximum(-signed, 0)
    first = tie_starts(ordered)
    end = lasts(first)
    positives, negatives = jnp.cumsum(positive, axis=-1), jnp.cumsum(negative, axis=-1)

    def before(sums: Array, own: Array) -> Array:
        return lax.cummax(jnp.where(first, sums - own, 0), axis=last)

    def through(sums: Array) -> Array:
        whole = jnp.max(sums, axis=-1, keepdims=True, initial=0)
        return lax.cummin(jnp.where(end, sums, whole), axis=last, reverse=True)

    retrieved, either = positives + negatives, positive + negative
    return SortedCounts(
        positive,
        negative,
        positives,
        negatives,
        before(positives, positive),
        through(positives),
        before(retrieved, either),
        through(retrieved),
    )


def precision_sum(at: SortedCounts, dtype: Any) -> Array:
    """The sum over the positives of the precision of all that score as high as it, along the last axis."""
    retrieved = jnp.where(at.retrieved_through == 0, 1, at.retrieved_through)
    precision = at.positives_through.astype(dtype) / retrieved.astype(dtype)
    return summed(jnp.where(at.positive != 0, at.positive.astype(dtype) * precision, 0))
