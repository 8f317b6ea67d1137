"""Items of a list in order: dense grades, ties and groups, and moving along a permutation. All along the last axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = ["dense_grades", "ends", "inverse", "iota", "lasts", "partitioned", "put_back", "starts", "taken"]


def iota(like: Array) -> Array:
    """0, 1, ... along the last axis, made from an integer array, so that it varies over a mesh as that does."""
    return lax.broadcasted_iota(jnp.int32, like.shape, like.ndim - 1) + 0 * like.astype(jnp.int32)


def taken(x: Array, index: Array) -> Array:
    """x[index] for each list."""
    return jnp.take_along_axis(x, index, axis=-1, mode="clip")


def put_back(ordered: Array, order: Array) -> Array:
    """What stands in order, where it stood: of `taken(x, order)` x again, of each list."""

    def of_one(ordered: Array, order: Array) -> Array:
        return (0 * ordered).at[order].set(ordered, unique_indices=True, mode="promise_in_bounds")

    # Mapped, the scatter knows that lists do not meet, and leaves them on their devices.
    of_all: Callable[[Array, Array], Array] = of_one
    for _ in range(order.ndim - 1):
        of_all = jax.vmap(of_all)
    return of_all(ordered, order)


def inverse(order: Array) -> Array:
    """The permutation that undoes `order`, of each list."""
    return put_back(iota(order), order)


def starts(first: Array) -> Array:
    """Where each item's run begins, from which items begin one."""
    return lax.cummax(jnp.where(first, iota(first), 0), axis=first.ndim - 1)


def lasts(first: Array) -> Array:
    """Which items end a run, from which items begin one."""
    return jnp.concatenate([first[..., 1:], jnp.ones_like(first[..., :1])], axis=-1)


def ends(first: Array) -> Array:
    """Where each item's run ends, its last item counted in."""
    size = first.shape[-1]
    return lax.cummin(jnp.where(lasts(first), iota(first), size - 1), axis=first.ndim - 1, reverse=True)


def partitioned(first: Array, bit: Array) -> Array:
    """The permutation that puts the items without `bit` first within each run, and else keeps the order."""
    start, end = starts(first), ends(first)
    without = jnp.cumsum(1 - bit, axis=-1)
    before_run = taken(without - (1 - bit), start)
    zeros_before = without - (1 - bit) - before_run
    zeros = taken(without, end) - before_run
    place = start + jnp.where(bit > 0, zeros + (iota(bit) - start) - zeros_before, zeros_before)
    return inverse(place)


def dense_grades(relevance: Array, valid: Array) -> tuple[Array, Array]:
    """Each item's relevance as 0, 1, ... without gaps, and for each list the number of its pairs of unequal grades.

    Lists with two levels at most need no sort for it. What is not valid has grade 0 and is in no pair.
    """
    low = jnp.min(jnp.where(valid, relevance, jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
    top = jnp.max(jnp.where(valid, relevance, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    settled = jnp.where(valid, relevance, low)

    def of_two(r: Array, valid: Array, low: Array) -> tuple[Array, Array]:
        upper = valid & (r > low)
        highs = jnp.sum(upper, axis=-1).astype(r.dtype)
        return upper.astype(jnp.int32), highs * jnp.sum(valid & ~upper, axis=-1).astype(r.dtype)

    def of_many(r: Array, valid: Array, low: Array) -> tuple[Array, Array]:
        last = r.ndim - 1
        real = valid.astype(jnp.int32)
        ordered, real, index = lax.sort((r, real, iota(real)), dimension=last, num_keys=1)
        higher = ordered[..., 1:] > ordered[..., :-1]
        higher = jnp.concatenate([jnp.zeros_like(ordered[..., :1], bool), higher], axis=-1)
        grade = jnp.cumsum(higher.astype(jnp.int32), axis=-1)
        below = taken(jnp.cumsum(real, axis=-1) - real, starts(higher))
        count = jnp.sum((below * real).astype(r.dtype), axis=-1)
        return taken(grade, inverse(index)) * valid, count

    both = jnp.all((settled == low) | (settled == top) | ~valid)
    return lax.cond(both, of_two, of_many, settled, valid, low)
