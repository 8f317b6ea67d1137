"""The logistic loss of all pairs of a list, each weighted by what a swap of its items would change in DCG.

A weight is |gain_i - gain_j| |discount_i - discount_j|. Within a level of `sorted_pairs.py` the first sign is known,
and in the order by score the second: so the weight is a sum of products of what one item has and what the other has.
The differences of discounts are carried along the order like distances, step by step, because subtracting the discounts
themselves would cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms import sorted_sums
from jaxloss.algorithms.smooth_ranks import discount, discount_gap
from jaxloss.algorithms.sorted_order import dense_grades, ends, inverse, iota, taken
from jaxloss.algorithms.sorted_pairs import Level, assigned, by_levels
from jaxloss.core.formulas import softplus
from jaxloss.core.types import Array

__all__ = ["swap_total"]

# Up to this length all pairs at once are faster than sorting.
_SHORT = 384


def swap_total(scores: Array, gains: Array, valid: Array, *, short: int = _SHORT) -> Array:
    """Each list's sum over gain_i > gain_j of (gain_i - gain_j) |discount_i - discount_j| softplus(s_j - s_i).

    scores: [..., L], float32 or wider; gains: >= 0. The discounts are those of the places in the order by falling
    score, of equal scores the first in the list first. Weights are constants: only the scores have slopes.
    """
    gains = lax.stop_gradient(gains)
    valid = valid & (jnp.isnan(scores) | True)  # spreads over a mesh as the scores do
    if scores.shape[-1] <= short:
        return _in_pairs(scores, gains, valid)
    return _total(scores, gains, dense_grades(gains, valid)[0], valid)


def _ranking(scores: Array) -> Array:
    """The order by rising score, of equal ones the last of the list first."""
    item = iota(scores > 0)
    _, order = lax.sort(
        (jnp.flip(lax.stop_gradient(scores), -1), jnp.flip(item, -1)), dimension=scores.ndim - 1, num_keys=1
    )
    return order


def _ranks(valid: Array) -> Array:
    """Of items by rising score, from 1; of an invalid item the rank of the valid one below it."""
    counted = jnp.flip(jnp.cumsum(jnp.flip(valid.astype(jnp.int32), -1), axis=-1), -1)
    return jnp.maximum(counted, 1)


def _in_pairs(scores: Array, gains: Array, valid: Array) -> Array:
    order = _ranking(scores)
    worth = discount(taken(_ranks(taken(valid, order)), inverse(order)).astype(scores.dtype))
    gains = jnp.where(valid, gains, 0)
    gain = jnp.maximum(gains[..., :, None] - gains[..., None, :], 0)
    weight = jnp.where(valid[..., None, :], gain * jnp.abs(worth[..., :, None] - worth[..., None, :]), 0)
    return jnp.sum(weight * softplus(scores[..., None, :] - scores[..., :, None]), axis=(-2, -1))


@jax.custom_jvp
def _total(scores: Array, gains: Array, grade: Array, valid: Array) -> Array:
    return _sweep(scores, gains, grade, valid)[0]


@_total.defjvp
def _total_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    total, slopes = _sweep(*primals)
    return total, jnp.sum(slopes * tangents[0], axis=-1)


@jax.custom_jvp
def _sweep(scores: Array, gains: Array, grade: Array, valid: Array) -> tuple[Array, Array]:
    return _swept(scores, gains, grade, valid)


@_sweep.defjvp
def _sweep_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    total, slopes = _sweep(*primals)
    _, slopes_dot = jax.jvp(lambda scores: _swept(scores, *primals[1:])[1], primals[:1], tangents[:1])
    return (total, slopes), (jnp.sum(slopes * tangents[0], axis=-1), slopes_dot)


def _swept(scores: Array, gains: Array, grade: Array, valid: Array) -> tuple[Array, Array]:
    order = _ranking(scores)
    ranks, ordered_gains = _ranks(taken(valid, order)), taken(gains, order)

    def of_level(level: Level) -> tuple[Array, Array]:
        return _of_level(level, taken(ordered_gains, level.place), taken(ranks, level.place))

    return by_levels(of_level, scores, order, grade, valid)[:2]


class _Run(NamedTuple):
    """A run of items of one group; if several groups meet in it, of the last one."""

    anew: Array  # bool [..., L]: begins a group
    length: Array  # from the item before the run to its last one: of the scores
    height: Array  # and of the discounts
    moments: list[Array]  # [C, ..., L]: sums of w, w times the distance x, times y, times x y
    decayed: Array  # [K, C, ..., L]: sums of w exp(-k x)
    raised: Array  # [K, C, ..., L]: sums of w y exp(-k x)


class _Side(NamedTuple):
    """Sums over the items of one side, of each of C kinds, by their distances: all [C, ..., L]."""

    y: Array
    xy: Array
    softplus: Array  # y log(1 + exp(-x))
    sigmoid: Array  # y / (1 + exp(x))


def _of_level(level: Level, gains: Array, ranks: Array) -> tuple[Array, Array]:
    # Groups stand in the order of their gains: the highest of a group's lower items is the highest so far. From there
    # the gains are >= 0 on both sides, and those of a pair add up to their difference.
    highest = lax.cummax(jnp.where(level.lower, gains, 0), axis=gains.ndim - 1)
    gain = jnp.where(level.upper | level.lower, jnp.abs(gains - taken(highest, ends(level.first))), 0)
    kinds = [level.upper, level.upper * gain, level.lower, level.lower * gain]
    below, above = _both_ways(level, jnp.stack([kind.astype(gain.dtype) for kind in kinds]), ranks)

    def with_lower(of_side: Array) -> Array:
        return gain * of_side[2] + of_side[3]

    def with_upper(of_side: Array) -> Array:
        return gain * of_side[0] + of_side[1]

    # A pair in the wrong order has x more than log(1 + exp(-x)), and a slope of 1 less sigmoid(-x).
    value = with_lower(below.softplus) + with_lower(above.softplus + above.xy)
    of_upper = -(with_lower(below.sigmoid) + with_lower(above.y - above.sigmoid))
    of_lower = with_upper(above.sigmoid) + with_upper(below.y - below.sigmoid)
    return assigned(level, value, of_upper, of_lower)


def _both_ways(level: Level, weights: Array, ranks: Array) -> tuple[_Side, _Side]:
    """For every item of C kinds [C, ..., L] the sums over the items of its group below it, and over those above."""
    within = ~level.first[..., 1:]
    step = jnp.where(within, level.score[..., 1:] - level.score[..., :-1], 0)
    rise = jnp.where(within, discount_gap(ranks[..., 1:], ranks[..., :-1], step.dtype), 0)
    none = 0 * level.score[..., :1]

    def each_way(gap: Array) -> Array:
        return jnp.stack([jnp.concatenate([none, gap], axis=-1), jnp.concatenate([none, jnp.flip(gap, -1)], axis=-1)])

    first = jnp.stack([level.first, jnp.flip(level.last, -1)])
    weights = jnp.stack([weights, jnp.flip(weights, -1)], axis=1)
    many = jnp.broadcast_to(weights[None], (sorted_sums.terms(step.dtype), *weights.shape))
    nothing = 0 * weights
    run = _Run(first, each_way(step), each_way(rise), [weights, nothing, nothing, nothing], many, 0 * many)
    done = sorted_sums.running(run, _joined)
    soft, slow = (sorted_sums.series(done.raised, table) for table in (sorted_sums.LOG1P, sorted_sums.RECIPROCAL))
    sums = done.moments[2], done.moments[3], soft, slow
    return _Side(*(a[:, 0] for a in sums)), _Side(*(jnp.flip(a[:, 1], -1) for a in sums))


def _joined(left: _Run, right: _Run) -> _Run:
    kept = jnp.where(right.anew, 0, jnp.ones_like(right.length))
    x, y = right.length[None], right.height[None]
    w, wx, wy, wxy = left.moments
    moved = w, wx + x * w, wy + y * w, wxy + x * wy + y * (wx + x * w)
    rates = jnp.arange(1, left.decayed.shape[0] + 1, dtype=x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
    decay = (kept[None] * jnp.exp(-rates * x))[:, None]
    return _Run(
        left.anew | right.anew,
        left.length + right.length,
        left.height + right.height,
        [kept[None] * m + own for m, own in zip(moved, right.moments, strict=True)],
        decay * left.decayed + right.decayed,
        decay * (left.raised + y[None] * left.decayed) + right.raised,
    )
