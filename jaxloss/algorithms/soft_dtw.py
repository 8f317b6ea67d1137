"""Soft dynamic time warping: the soft minimum over all alignments of two series, and the expected alignment.

Cells of one anti-diagonal depend only on the two before it, so a step of the loop is a whole diagonal. What a diagonal
holds is kept relative to its smallest entry: numbers of the size of the whole path's cost have lost the digits that
decide between two neighbours. (Cuturi and Blondel 2017, algorithms 1 and 2.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = ["soft_alignment_cost"]

# Stands for +inf outside the lattice, so that no difference of two is nan.
_OUTSIDE = 1e30


@jax.custom_jvp
def soft_alignment_cost(costs: Array, gamma: Array, last: Array) -> Array:
    """-gamma log sum over alignments of exp(-cost / gamma), [...].

    Args:
      costs: [..., N, M] float32 or wider, finite; an alignment goes by steps down, right or both.
      gamma: [], > 0.
      last: [..., 2] integer, the cell in which the alignments end; they begin at (0, 0).
    """
    return _forward(costs, gamma, last)[0]


@soft_alignment_cost.defjvp
def _rule(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Any]) -> tuple[Array, Array]:
    (costs, gamma, last), (d_costs, d_gamma, _) = primals, tangents
    value, before, taken = _forward(costs, gamma, last)
    expected, entropy = _backward(before, taken, gamma, last, costs.shape)
    return value, jnp.sum(expected * d_costs, axis=(-2, -1)) - entropy * d_gamma


def _skewed(costs: Array) -> Array:
    """[..., N, M] -> [N + M - 1, ..., N]: row i moved right by i, as one reshape of rows that are too long by one."""
    *batch, n, m = costs.shape
    padding = [(0, 0)] * (costs.ndim - 1) + [(0, n)]
    long = jnp.pad(costs, padding, constant_values=_OUTSIDE).reshape(*batch, n * (m + n))
    return jnp.moveaxis(long[..., : n * (m + n - 1)].reshape(*batch, n, m + n - 1), -1, 0)


def _straight(diagonals: Array, shape: tuple[int, ...]) -> Array:
    *batch, n, m = shape
    short = jnp.moveaxis(diagonals, 0, -1).reshape(*batch, n * (m + n - 1))
    padding = [(0, 0)] * len(batch) + [(0, n)]
    return jnp.pad(short, padding).reshape(*batch, n, m + n)[..., :m]


def _from_above(x: Array) -> Array:
    return jnp.concatenate([jnp.full_like(x[..., :1], _OUTSIDE), x[..., :-1]], axis=-1)


def _from_below(x: Array) -> Array:
    return jnp.concatenate([x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)


class _Choice(NamedTuple):
    """How the cells of a diagonal weigh the three cells before them."""

    soft_minimum: Array
    left: Array  # [..., N] each: the probability of having come from there
    above: Array
    corner: Array
    entropy: Array


def _choice(near: Array, far: Array, gamma: Array) -> _Choice:
    """From the values of the last diagonal and of the one before it."""
    cells = near, _from_above(near), _from_above(far)
    least = lax.stop_gradient(jnp.minimum(jnp.minimum(cells[0], cells[1]), cells[2]))
    # Beyond 800 exp(-x) is 0 in every format; without the bound the slope in gamma would be inf * 0.
    over = [jnp.minimum(cell - least, 800 * gamma) / gamma for cell in cells]
    parts = [jnp.exp(-x) for x in over]
    total = parts[0] + parts[1] + parts[2]
    # Of sum 1 whatever was rounded: taken from the soft minimum they would lose or make mass at every step.
    shares = [part / total for part in parts]
    log_total = jnp.log(total)
    entropy = log_total + shares[0] * over[0] + shares[1] * over[1] + shares[2] * over[2]
    return _Choice(least - gamma * log_total, shares[0], shares[1], shares[2], entropy)


def _forward(costs: Array, gamma: Array, last: Array) -> tuple[Array, Array, Array]:
    """The value; what each diagonal saw of the one before it, [N + M - 1, ..., N]; what each took from its own values.

    Cell (i, j) stands on diagonal i + j at i.
    """
    skewed = _skewed(costs)
    row, column = _end(last, costs[..., 0, 0])
    number = jnp.arange(skewed.shape[0])
    is_row, is_first = _one_hot(row, costs.shape[-2]), _one_hot(0 * row, costs.shape[-2])

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        near, far, sum_taken, value = carry
        cost, k = x
        least = jnp.where((k == 0) & is_first, 0, _choice(near, far, gamma).soft_minimum)
        here = least + cost
        value = jnp.where(row + column == k, sum_taken + jnp.sum(jnp.where(is_row, here, 0), axis=-1), value)
        taken = lax.stop_gradient(jnp.min(here, axis=-1, keepdims=True))
        return (here - taken, near - taken, sum_taken + taken[..., 0], value), (near, taken)

    outside = jnp.full_like(skewed[0], _OUTSIDE) + 0 * gamma
    none = jnp.sum(jnp.zeros_like(outside), axis=-1)
    (_, _, _, value), (before, taken) = lax.scan(step, (outside, outside, none, none), (skewed, number))
    return value, before, taken


def _backward(before: Array, taken: Array, gamma: Array, last: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """How likely each cell is on the path, [..., N, M], and the entropy of the path, [...]."""
    row, column = _end(last, before[0, ..., 0])
    is_row = _one_hot(row, shape[-2])
    number = jnp.arange(before.shape[0])
    # Two diagonals before, relative to the same: what the diagonal before saw, less what that one took.
    twice = jnp.concatenate([before[:1], before[:-1] - taken[:-1]])

    def step(carry: tuple[Array, Array, Array], x: Any) -> tuple[tuple[Array, Array, Array], Array]:
        to_here, to_next, entropy = carry
        near, far, k = x
        share = jnp.where((row + column == k)[..., None], is_row.astype(to_here.dtype), to_here)
        choice = _choice(near, far, gamma)
        entropy = entropy + jnp.where(k == 0, 0, jnp.sum(share * choice.entropy, axis=-1))
        to_next = to_next + share * choice.left + _from_below(share * choice.above)
        return (to_next, _from_below(share * choice.corner), entropy), share

    nothing = jnp.zeros_like(before[0])
    start = nothing, nothing, jnp.sum(nothing, axis=-1)
    (_, _, entropy), shares = lax.scan(step, start, (before, twice, number), reverse=True)
    return _straight(shares, shape), entropy


def _end(last: Array, like: Array) -> tuple[Array, Array]:
    """Row and column of the last cell, laid out over a mesh like the costs, also where it was made from nothing."""
    here = jnp.zeros_like(like, last.dtype)
    return last[..., 0] + here, last[..., 1] + here


def _one_hot(index: Array, size: int) -> Array:
    return lax.broadcasted_iota(index.dtype, (*index.shape, size), index.ndim) == index[..., None]
