"""Losses of all pairs of a list, in O(n log n) time and O(n) memory: sort by score, then sum along the order.

Two grades split the list into those above and those below, and a pair's loss is a sum over the other kind's items on
one side of an item (Joachims 2006, Rust and Hocking 2023). More grades are split by the bits of the dense grade, top
bit first: two items differ in a highest bit, so each pair is met once, in the group that shares the bits above. The
order by score within the groups of the next bit is a stable partition of this one: the list is sorted once.

Hinges are exact: the items of an item's active pairs reach up to a boundary, found by bisection. The logistic loss is a
polynomial in exp(-|difference|) (`sorted_sums.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms import sorted_sums
from jaxloss.algorithms.sorted_order import dense_grades, ends, inverse, iota, lasts, partitioned, starts, taken
from jaxloss.core.numerics import subtract
from jaxloss.core.types import Array

__all__ = ["Level", "assigned", "by_levels", "pair_total"]

Kind: TypeAlias = Literal["hinge", "squared_hinge", "logistic"]


def pair_total(
    kind: Kind, scores: Array, relevance: Array, valid: Array, margin: Array | None = None
) -> tuple[Array, Array]:
    """The sum of each list's pair losses and the number of its pairs: [..., L] -> [...], [...]. float32 or wider."""
    relevance = lax.stop_gradient(relevance)
    # An unknown relevance is in no pair. The last part says nothing: it spreads over a mesh as the scores do.
    valid = valid & ~jnp.isnan(relevance) & (jnp.isnan(scores) | True)
    grade, count = dense_grades(relevance.astype(jnp.promote_types(relevance.dtype, scores.dtype)), valid)
    width = jnp.ones((), scores.dtype) if margin is None else margin.astype(scores.dtype)
    return _total(kind, scores, width, grade, valid), count.astype(scores.dtype)


class Level(NamedTuple):
    """The items in order of (group, score), where the upper and the lower items of a group make pairs."""

    score: Array
    upper: Array  # bool: not an invalid item either
    lower: Array
    first: Array  # bool: begins a group
    last: Array
    place: Array  # where the item stands in the order by score alone


class _Carry(NamedTuple):
    """All in the present order."""

    place: Array  # where the item stands in the order by score
    grade: Array
    real: Array
    value: Array
    slope: Array
    pull: Array  # minus the slope, of an item as the upper one of its pairs: its share in the margin's slope


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(kind: Kind, scores: Array, margin: Array, grade: Array, valid: Array) -> Array:
    return _sweep(kind, scores, margin, grade, valid)[0]


@_total.defjvp
def _total_rule(kind: Kind, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    ds, dm = tangents[:2]
    total, slopes, pull = _sweep(kind, *primals)
    return total, jnp.sum(slopes * ds, axis=-1) + pull * dm


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sweep(kind: Kind, scores: Array, margin: Array, grade: Array, valid: Array) -> tuple[Array, Array, Array]:
    return _swept(kind, scores, margin, grade, valid)


@_sweep.defjvp
def _sweep_rule(kind: Kind, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    scores, margin, grade, valid = primals
    ds, dm = tangents[:2]
    total, slopes, pull = _sweep(kind, *primals)

    def slopes_of(scores: Array, margin: Array) -> tuple[Array, Array]:
        return _swept(kind, scores, margin, grade, valid)[1:]

    _, (slopes_dot, pull_dot) = jax.jvp(slopes_of, (scores, margin), (ds, dm))
    total_dot = jnp.sum(slopes * ds, axis=-1) + pull * dm
    return (total, slopes, pull), (total_dot, slopes_dot, pull_dot)


def _swept(kind: Kind, scores: Array, margin: Array, grade: Array, valid: Array) -> tuple[Array, Array, Array]:
    """Each list's total, its slope in every score, and its slope in the margin."""
    _, order = lax.sort((lax.stop_gradient(scores), iota(grade)), dimension=scores.ndim - 1, num_keys=1)

    def of_level(level: Level) -> tuple[Array, Array]:
        return _logistic(level) if kind == "logistic" else _hinge(level, margin, squared=kind == "squared_hinge")

    return by_levels(of_level, scores, order, grade, valid)


def by_levels(
    of_level: Callable[[Level], tuple[Array, Array]], scores: Array, order: Array, grade: Array, valid: Array
) -> tuple[Array, Array, Array]:
    """Each list's total, its slope in every score, and minus the slope in the scores of the upper items together.

    `of_level` gives each item's value and slope from the pairs of one bit of the grades; `order` sorts the scores.
    """
    ordered = taken(scores, order)
    zero = (0 * grade).astype(scores.dtype)
    start = _Carry(iota(grade), taken(grade, order), taken(valid, order), zero, zero, zero)
    deepest = max(scores.shape[-1] - 1, 1).bit_length() - 1

    def at_bit(carry: _Carry, bit: Array) -> tuple[_Carry, None]:
        above = carry.grade >> (bit + 1)
        carry = lax.cond(jnp.any(above > 0), lambda c: _regrouped(c, bit), _same, carry)
        split = jnp.any((carry.grade >> bit) > 0)
        return lax.cond(split, lambda c: _added(of_level, c, ordered, bit), _same, carry), None

    done, _ = lax.scan(at_bit, start, jnp.arange(deepest, -1, -1))
    total, pull = jnp.sum(done.value, axis=-1), jnp.sum(done.pull, axis=-1)
    return total, taken(done.slope, inverse(taken(order, done.place))), pull


def _same(carry: _Carry) -> _Carry:
    return carry


def _regrouped(carry: _Carry, bit: Array) -> _Carry:
    """From the order by (grade >> (bit + 2), score) to that by (grade >> (bit + 1), score)."""
    source = partitioned(_begins(carry.grade >> (bit + 2)), (carry.grade >> (bit + 1)) & 1)
    return _Carry(*(taken(x, source) for x in carry))


def _begins(group: Array) -> Array:
    ahead = group[..., 1:] != group[..., :-1]
    return jnp.concatenate([jnp.ones_like(group[..., :1], bool), ahead], axis=-1)


def _added(of_level: Callable[[Level], tuple[Array, Array]], carry: _Carry, ordered: Array, bit: Array) -> _Carry:
    first = _begins(carry.grade >> (bit + 1))
    upper = ((carry.grade >> bit) & 1) > 0
    kinds = carry.real & upper, carry.real & ~upper
    level = Level(taken(ordered, carry.place), *kinds, first, lasts(first), carry.place)
    value, slope = of_level(level)
    pull = jnp.where(level.upper, -slope, 0)
    return carry._replace(value=carry.value + value, slope=carry.slope + slope, pull=carry.pull + pull)


def _reach(level: Level, margin: Array) -> Array:
    """How many places an item's active pairs reach: down the order from an upper item, up from a lower one."""
    x, room_down, room_up = lax.stop_gradient(level.score), starts(level.first), ends(level.first)
    here = iota(level.first)
    room = jnp.where(level.upper, here - room_down, room_up - here)
    way = jnp.where(level.upper, -1, 1)
    limit = lax.stop_gradient(margin)

    def longer(step: Array, reach: Array) -> Array:
        farther = reach + (1 << (steps - 1 - step))
        there = taken(x, here + way * jnp.minimum(farther, room))
        # Exactly, with what rounding dropped of the difference: in a long list many pairs are within it of the margin.
        ahead, dropped = subtract(jnp.where(level.upper, x, there), jnp.where(level.upper, there, x))
        active = (ahead < limit) | ((ahead == limit) & (dropped < 0))
        return jnp.where((farther <= room) & active, farther, reach)

    steps = x.shape[-1].bit_length()
    return way * lax.fori_loop(0, steps, longer, 0 * here)


def _hinge(level: Level, margin: Array, *, squared: bool) -> tuple[Array, Array]:
    x = level.score
    kinds = jnp.stack([level.upper, level.lower]).astype(x.dtype)
    (below, _), (above, _) = sorted_sums.both_ways(x, kinds, level.first, level.last, degree=2 if squared else 1)
    edge = iota(level.first) + _reach(level, margin)
    x_edge = taken(x, edge)
    # Of an upper item the lower ones from its edge on; of a lower item the upper ones up to its edge.
    count, distance, *square = (
        jnp.where(level.upper, taken(up[1], edge), taken(down[0], edge)) for down, up in zip(below, above, strict=True)
    )
    rest = margin - jnp.where(level.upper, x - x_edge, x_edge - x)
    if squared:
        value = square[0] + rest * (2 * distance + rest * count)
        size = 2 * (distance + rest * count)
    else:
        value, size = distance + rest * count, count
    return assigned(level, value, -size, size)


def _logistic(level: Level) -> tuple[Array, Array]:
    x = level.score
    kinds = jnp.stack([level.upper, level.lower]).astype(x.dtype)
    below, above = sorted_sums.both_ways(
        x, kinds, level.first, level.last, degree=1, exponentials=sorted_sums.terms(x.dtype)
    )
    near = [sorted_sums.series(sums[:, 1], sorted_sums.LOG1P) for _, sums in (below, above)]
    value = above[0][1][1] + (near[0] + near[1])
    # sigmoid(-|z|) of the pairs on each side; a wrongly ordered pair has 1 - that.
    low, high = (sorted_sums.series(sums, sorted_sums.RECIPROCAL) for _, sums in (below, above))
    of_upper = -(above[0][0][1] - high[1] + low[1])
    of_lower = below[0][0][0] - low[0] + high[0]
    return assigned(level, value, of_upper, of_lower)


def assigned(level: Level, value: Array, of_upper: Array, of_lower: Array) -> tuple[Array, Array]:
    """A pair's value is counted at its upper item, its slope at both."""
    slope = jnp.where(level.upper, of_upper, jnp.where(level.lower, of_lower, 0))
    return jnp.where(level.upper, value, 0), slope
