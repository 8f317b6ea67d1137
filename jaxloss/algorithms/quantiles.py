"""The best transport of one sample to another on a line: both in order, mass by mass.

Samples of n and m numbers have quantile functions with steps at i / n and j / m. On the merged grid, in units of
1 / (n m), both are constant: at most n + m - 1 pieces, known from the sizes alone.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss.algorithms.ordered import in_order
from jaxloss.algorithms.sorted_order import iota, taken
from jaxloss.core.numerics import absolute, differentiable
from jaxloss.core.types import Array

__all__ = ["transport_cost"]


def transport_cost(x: Array, y: Array, p: float) -> Array:
    """The integral over u in (0, 1) of |x's quantile - y's quantile|^p; samples [..., n] and [..., m], none empty."""
    x, y = in_order(x), in_order(y)
    n, m = x.shape[-1], y.shape[-1]
    if n == m:
        return jnp.sum(_power(x - y, p), axis=-1) / n
    of_x, of_y, mass = _pieces(n, m)
    width = jnp.asarray(mass / (n * m), x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.sum(width * _power(_picked(x, of_x) - _picked(y, of_y), p), axis=-1)


def _pieces(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each piece of the merged grid: the places of its two quantiles, and its mass in units of 1 / (n m)."""
    ends = np.union1d(np.arange(1, n + 1, dtype=np.int64) * m, np.arange(1, m + 1, dtype=np.int64) * n)
    starts = np.concatenate([[0], ends[:-1]])
    return (starts // m).astype(np.int32), (starts // n).astype(np.int32), (ends - starts).astype(np.float64)


def _picked(x: Array, places: np.ndarray) -> Array:
    # An index of each row, made from it: then rows on several devices stay there.
    row = jnp.asarray(places).reshape((1,) * (x.ndim - 1) + (-1,))
    still = 0 * iota((lax.stop_gradient(x) > 0)[..., :1])
    return taken(x, still + row)


def _power(d: Array, p: float) -> Array:
    if p == 1:
        return absolute(d)
    if p == 2:
        return jnp.square(d)
    return _POWERS(d, jnp.asarray(p, d.dtype))


def _size(d: Array) -> tuple[Array, Array]:
    alive = d != 0
    return alive, jnp.where(alive, jnp.abs(d), 1)


def _bent(d: Array, p: Array) -> Array:
    alive, size = _size(d)
    return jnp.where(alive, p * (p - 1) * jnp.power(size, p - 2), 0)


def _slope_value(d: Array, p: Array) -> Array:
    alive, size = _size(d)
    return jnp.where(alive, p * jnp.sign(d) * jnp.power(size, p - 1), 0)


def _power_value(d: Array, p: Array) -> Array:
    alive, size = _size(d)
    return jnp.where(alive, jnp.power(size, p), 0)


# At equality every derivative is 0, the infinite second one of 1 < p < 2 too.
_POWERS = differentiable(_power_value, differentiable(_slope_value, _bent, None), None)
