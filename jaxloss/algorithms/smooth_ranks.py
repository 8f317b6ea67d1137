"""How far DCG by smooth ranks falls short of the ideal: of long lists in O(n log n) time and O(n) memory.

The smooth rank of an item is 1 + the sum over the others of sigmoid(their score - its own) (Qin, Liu and Li 2010): its
place in the order by score, less sigmoid(-|difference|) for each item before it, and as much more for each behind it.
Long lists are sorted, and `sorted_sigmoids.py` sums along the order. The slope in the scores is a second pair of sums,
of the sigmoid's slope. Ideal and DCG are subtracted item by item, in a form in which a list in good order keeps all its
digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.sorted_order import inverse, iota, taken
from jaxloss.algorithms.sorted_sigmoids import sides
from jaxloss.core.numerics import LN2, apart, expm1, log1p
from jaxloss.core.types import Array

__all__ = ["dcg_gap", "discount", "discount_gap", "exponential_gains"]

# Up to this length all pairs at once are faster than sorting.
_SHORT = 192


def exponential_gains(relevance: Array, valid: Array) -> Array:
    """2^relevance - 1, divided by 2 to the list's highest relevance, which no ratio of them notices: none overflows."""
    settled = jnp.where(valid, relevance, 0)
    top = jnp.max(lax.stop_gradient(settled), axis=-1, keepdims=True, initial=0)
    return jnp.where(valid, -jnp.exp2(settled - top) * expm1(-LN2 * settled), 0)


def discount(rank: Array) -> Array:
    """1 / log2(1 + rank): what a gain at that rank counts in DCG."""
    return LN2 / jnp.log1p(rank)


def discount_gap(rank: Array, farther: Array, dtype: jnp.dtype) -> Array:
    """discount(rank) - discount(farther) >= 0 of integer ranks, which keeps its digits where they are close."""
    ratio = (farther - rank).astype(dtype) / (1 + rank).astype(dtype)
    near, far = jnp.log1p(rank.astype(dtype)), jnp.log1p(farther.astype(dtype))
    return LN2 * jnp.log1p(ratio) / (near * far)


def dcg_gap(scores: Array, gains: Array, valid: Array, *, short: int = _SHORT) -> tuple[Array, Array]:
    """Each list's ideal DCG less its DCG by smooth ranks, and its ideal DCG: [..., L] -> [...], [...].

    scores: float32 or wider, in units of the sigmoid; gains: >= 0, and 0 where not `valid`.
    """
    # The last part says nothing: it spreads over a mesh as the scores do.
    return _gap(scores.shape[-1] <= short, scores, gains, valid & (jnp.isnan(scores) | True))


class _Swept(NamedTuple):
    gap: Array
    ideal: Array
    slope: Array  # of the gap in every score
    lost: Array  # of the gap in every gain
    counted: Array  # of the ideal in every gain


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gap(in_pairs: bool, scores: Array, gains: Array, valid: Array) -> tuple[Array, Array]:
    return _sweep(in_pairs, scores, gains, valid)[:2]


@_gap.defjvp
def _gap_rule(in_pairs: bool, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    swept = _sweep(in_pairs, *primals)
    return swept[:2], _along(swept, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sweep(in_pairs: bool, scores: Array, gains: Array, valid: Array) -> _Swept:
    return _swept(in_pairs, scores, gains, valid)


@_sweep.defjvp
def _sweep_rule(in_pairs: bool, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    scores, gains, valid = primals
    swept = _sweep(in_pairs, *primals)

    def slopes(scores: Array, gains: Array) -> tuple[Array, ...]:
        return _swept(in_pairs, scores, gains, valid)[2:]

    _, dots = jax.jvp(slopes, (scores, gains), tuple(tangents[:2]))
    return swept, _Swept(*_along(swept, tangents), *dots)


def _along(swept: _Swept, tangents: Sequence[Any]) -> tuple[Array, Array]:
    ds, dg = tangents[:2]
    return jnp.sum(swept.slope * ds + swept.lost * dg, axis=-1), jnp.sum(swept.counted * dg, axis=-1)


class _Ranks(NamedTuple):
    rank: Array
    ideal: Array  # the place in the best order, from 1
    beyond: Array  # rank - ideal


def _ranks(place: Array, ideal: Array, moved: Array) -> _Ranks:
    """From the place in the order by score, that in the best order, both integers, and what is smooth of the rank."""
    return _Ranks(
        place.astype(moved.dtype) + moved,
        ideal.astype(moved.dtype),
        (place - ideal).astype(moved.dtype) + moved,
    )


def _lost(ranks: _Ranks) -> Array:
    """discount(ideal) - discount(rank), by log((1 + rank) / (1 + ideal))."""
    part = ranks.beyond / (1 + ranks.ideal)
    near = jnp.abs(part) < 0.5
    ratio = (1 + ranks.rank) / (1 + ranks.ideal)
    longer = jnp.where(near, log1p(jnp.where(near, part, 0)), jnp.log(ratio))
    return LN2 * longer / (jnp.log1p(ranks.rank) * jnp.log1p(ranks.ideal))


def _rise(gains: Array, ranks: _Ranks) -> Array:
    """The slope of the gap in every rank."""
    return gains * LN2 / ((1 + ranks.rank) * jnp.square(jnp.log1p(ranks.rank)))


def _swept(in_pairs: bool, scores: Array, gains: Array, valid: Array) -> _Swept:
    last, item = scores.ndim - 1, iota(valid)
    # What is not valid comes last, where it is in nobody's way; a difference of two infinities would be nan.
    nowhere = float(jnp.finfo(scores.dtype).max)
    x, g, order = lax.sort((jnp.where(valid, -scores, nowhere), gains, item), dimension=last, num_keys=1)
    # Of equal gains in the order of the scores: a list in good order then has ranks near its places.
    _, best = lax.sort((-lax.stop_gradient(g), item), dimension=last, num_keys=1)
    real = x != nowhere
    moved, pulled = _in_pairs(x) if in_pairs else _in_order(x, real.astype(x.dtype))
    ranks = _ranks(1 + item, 1 + inverse(best), moved)
    lost, rise, counted = _lost(ranks), _rise(g, ranks), discount(ranks.ideal)
    slope = jnp.where(real, pulled(rise), 0)
    back = inverse(order)
    each = (taken(a, back) for a in (slope, lost, counted))
    return _Swept(jnp.sum(g * lost, axis=-1), jnp.sum(g * counted, axis=-1), *each)


def _in_order(x: Array, weight: Array) -> tuple[Array, Callable[[Array], Array]]:
    """What is smooth of the ranks of items in order, and what slopes in the ranks come to in the scores."""
    before, behind = sides(x, weight)
    steep = before.slopes() + behind.slopes()

    def pulled(rise: Array) -> Array:
        before, behind = sides(x, rise)
        return before.slopes() + behind.slopes() - rise * steep

    return behind.sigmoids() - before.sigmoids(), pulled


def _in_pairs(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """The same by all pairs. What is not valid is so far away that it counts nothing."""
    item = jnp.arange(x.shape[-1])
    sign = jnp.clip(item[None] - item[:, None], -1, 1).astype(x.dtype).reshape((1,) * (x.ndim - 1) + (item.size,) * 2)
    near = jnp.exp(-sign * (x[..., None, :] - x[..., :, None]))
    # Written out once, for both sums. Without a constant beside it, which XLA's CPU would write out as well.
    (signed,) = apart(sign * near / (1 + near))

    def pulled(rise: Array) -> Array:
        steep = jnp.abs(signed) - signed * signed
        return jnp.sum(steep * (rise[..., None, :] - rise[..., :, None]), axis=-1)

    return jnp.sum(signed, axis=-1), pulled
