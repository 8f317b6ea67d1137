"""Sums of sigmoids and of their slopes over the items before and behind each item of a sorted list, in one scan.

With u = exp(-|x_t - x_s|) these are polynomials of u, and their sums follow from the exponential sums y_k, of w_s u^k,
as in `sorted_sums.py`. But the coefficients of 1 / (1 + u)^2 alternate, and add up to a hundredth of their size: of a
dense list, where all u are near 1, the rounded y_k would leave five digits. So the falls y_k - y_(k+1), sums of
w_s u^k (1 - u) >= 0, are carried beside them, and the polynomial is summed by parts: the partial sums of its
coefficients times the falls. No two large numbers are subtracted.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax.numpy as jnp

from jaxloss.algorithms.sorted_sums import RECIPROCAL, Table, running
from jaxloss.core.numerics import expm1
from jaxloss.core.types import Array

__all__ = ["RECIPROCAL_SQUARED", "Side", "sides"]

# 1 / (1 + u)^2 on [0, 1], like the tables of `sorted_sums.py`: relative errors 2.9e-8 and 3.6e-17.
RECIPROCAL_SQUARED = (
    (
        0.9999999895785757,
        -1.9999968787806817,
        2.999843949972297,
        -3.9969090561948746,
        4.967857971417397,
        -5.798171945761154,
        6.168227679115786,
        -5.617982032203428,
        4.031128398698224,
        -2.0638496779609903,
        0.6557775014983609,
        -0.09592590655220412,
    ),
    (
        1.0,
        -1.999999999999985,
        2.9999999999970357,
        -3.999999999768729,
        4.999999990393486,
        -5.999999754005669,
        6.9999957582344265,
        -7.999947774630377,
        8.999521482097904,
        -9.996636128781761,
        10.981431060225427,
        -11.918033465924582,
        12.706395841258646,
        -13.13596325798532,
        12.887612933968104,
        -11.662206167904927,
        9.42545598378857,
        -6.580071449696118,
        3.833658882391848,
        -1.7945704304032224,
        0.6438008712019403,
        -0.16529840030314574,
        0.0269432056490648,
        -0.002089179802614319,
    ),
)


class _Run(NamedTuple):
    """A run of items."""

    length: Array  # [..., L]: from the item before the run to its last one
    powers: Array  # [K, ..., L]: sums of w u^k, k = 1 ... K, u = exp(-distance to the run's last item)
    falls: Array  # [K - 1, ..., L]: sums of w u^k (1 - u)


class Side(NamedTuple):
    """What lies on one side of each item, itself not counted in."""

    powers: Array  # [K, ..., L], as in a run, at the next item there, which counts
    falls: Array
    decay: Array  # [..., L]: u of that item, 0 where there is none
    rest: Array  # 1 - u

    def sigmoids(self) -> Array:
        """The sum of w u / (1 + u): of sigmoid(-distance)."""
        return self._sum(RECIPROCAL)

    def slopes(self) -> Array:
        """The sum of w u / (1 + u)^2: of the sigmoid's slope."""
        return self._sum(RECIPROCAL_SQUARED)

    def _sum(self, table: Table) -> Array:
        # By parts: with C_k = c_1 + ... + c_k the sum of c_k y_k is that of C_k (y_k - y_(k+1)), and C_K y_K.
        *partial, whole = itertools.accumulate(table[self.decay.dtype == jnp.float64])
        power, total = self.decay, 0 * self.decay
        for k, coefficient in enumerate(partial):
            total = total + coefficient * power * (self.falls[k] + self.rest * self.powers[k + 1])
            power = power * self.decay
        return total + whole * power * self.powers[len(partial)]


def sides(x: Array, weights: Array) -> tuple[Side, Side]:
    """The items before each item of a rising list, and those behind it: x and weights [..., L]."""
    terms = len(RECIPROCAL_SQUARED[x.dtype == jnp.float64])
    x = jnp.stack([x, -jnp.flip(x, -1)])
    weights = jnp.stack([weights, jnp.flip(weights, -1)])
    gap = jnp.concatenate([0 * x[..., :1], x[..., 1:] - x[..., :-1]], axis=-1)
    item = jnp.broadcast_to(weights, (terms, *weights.shape))
    done = running(_Run(gap, item, 0 * item[1:]), _joined)
    none = 0 * x[..., :1]
    decay = jnp.concatenate([none, jnp.exp(-gap[..., 1:])], axis=-1)
    rest = jnp.concatenate([none, -expm1(-gap[..., 1:])], axis=-1)
    both = Side(jnp.roll(done.powers, 1, axis=-1), jnp.roll(done.falls, 1, axis=-1), decay, rest)
    before = Side(both.powers[:, 0], both.falls[:, 0], both.decay[0], both.rest[0])
    return before, Side(*(jnp.flip(a, -1) for a in (both.powers[:, 1], both.falls[:, 1], both.decay[1], both.rest[1])))


def _joined(left: _Run, right: _Run) -> _Run:
    far = right.length[None]
    rates = jnp.arange(1, left.powers.shape[0] + 1, dtype=far.dtype).reshape((-1,) + (1,) * (far.ndim - 1))
    decay = jnp.exp(-rates * far)
    moved = decay[:-1] * (left.falls - expm1(-far) * left.powers[1:])
    return _Run(left.length + right.length, decay * left.powers + right.powers, moved + right.falls)
