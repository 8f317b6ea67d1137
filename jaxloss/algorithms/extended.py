"""Extended-range arithmetic: numbers mantissa * 2^exponent >= 0, for sums over paths whose weights leave every float.

A recursion over log-probabilities around -1e4 carries 1e-3 of relative error in every state, because that is the ulp of
its logarithm; and pays an exp and a log for each addition. Here an addition aligns two exponents and adds, a product
multiplies and adds exponents, and each costs half an ulp whatever the magnitude. Nothing here is differentiable: a loss
gives its gradient by its own rule.

    a = from_log(scores)                        exp(scores), for any scores <= 7e8
    a = normalised(multiply(add(a, b), c))      once a step; between two `normalised` a mantissa may grow 2^60-fold
    to_log(a), ratio_as_float(a, z)             back to logarithms, or to shares a / z
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = [
    "ZERO_EXPONENT",
    "Extended",
    "add",
    "as_float",
    "from_float",
    "from_log",
    "inverse",
    "multiply",
    "normalised",
    "packed",
    "ratio_as_float",
    "shifted",
    "sum_over",
    "to_log",
    "unpacked",
    "zeros_like",
]

# The exponent of 0. Far below every number, so that 0 never decides how a sum is aligned; and two of them can be added
# without leaving int32. What falls below 2^-2^30, the probability of -7.4e8 nats, is 0.
ZERO_EXPONENT = -(2**30)


class Extended(NamedTuple):
    """mantissa * 2^exponent: a float array >= 0 and an int32 array of its shape; 0 is (0, ZERO_EXPONENT).

    A named tuple is a pytree: it can be a loop's carry, be mapped, and be indexed leaf by leaf with `jax.tree.map`.
    """

    mantissa: Array
    exponent: Array


class _Layout(NamedTuple):
    """How a float format lays out its bits."""

    integer: type
    bits: int  # of the stored mantissa
    bias: int


def _layout(dtype: jnp.dtype) -> _Layout:
    return _Layout(jnp.int64, 52, 1023) if dtype == jnp.float64 else _Layout(jnp.int32, 23, 127)


def _power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    """2^exponent from its bits, for exponents up to the format's bias; 0 where it would be subnormal or less."""
    integer, bits, bias = _layout(dtype)
    biased = jnp.clip(exponent + bias, 0, 2 * bias).astype(integer)
    return lax.bitcast_convert_type(biased << bits, dtype)


def _aligning(exponent: Array, dtype: jnp.dtype) -> Array:
    """2^exponent for exponents <= 0: one comparison less than `_power_of_two`."""
    integer, bits, bias = _layout(dtype)
    return lax.bitcast_convert_type(jnp.maximum(exponent + bias, 0).astype(integer) << bits, dtype)


def zeros_like(x: Array) -> Extended:
    """0 in the shape and dtype of the float array `x`, and on its mesh axes: a loop's carry may start with it."""
    return Extended(jnp.zeros_like(x), jnp.full_like(x, ZERO_EXPONENT, dtype=jnp.int32))


def from_float(x: Array) -> Extended:
    """A float array >= 0 as it is (subnormal numbers become 0)."""
    return normalised(Extended(x, jnp.zeros_like(x, dtype=jnp.int32)))


# ln 2 in pieces whose products with half of a large integer are exact; what they lack is below 1e-18 and 2e-34.
_LN2 = {
    jnp.dtype("float32"): tuple(map(float.fromhex, ("0x1.62e4p-1", "0x1.7f7cp-20", "0x1.1cf79ap-36"))),
    jnp.dtype("float64"): tuple(map(float.fromhex, ("0x1.62e42fep-1", "0x1.f473de6p-30", "0x1.5e4f1d9cc01f9p-59"))),
}
_HALF = {jnp.dtype("float32"): 2.0**9, jnp.dtype("float64"): 2.0**20}


def from_log(x: Array, low: Array | None = None) -> Extended:
    """exp(x), or exp(x + low) with what rounding dropped from x: half an ulp of a mantissa for every finite x.

    The obvious k = x / ln 2, exp(x - k ln 2) has lost 3 digits at x = -1e4. Here k is split in two, ln 2 in three, and
    every product with a large factor is exact, for |x| up to 1e5 (beyond, the error grows like x). -inf gives 0.
    """
    first, second, third = _LN2[x.dtype]
    half = _HALF[x.dtype]
    # Bounds that a float32 holds exactly; below the lower one the exponent says 0 whatever the mantissa.
    k = jnp.clip(jnp.floor(x * (1 / math.log(2))), float(ZERO_EXPONENT), float(-ZERO_EXPONENT))
    large = jnp.trunc(k / half) * half  # towards 0: of the sign of x, and not larger
    small = k - large
    rest = ((x - large * first) - small * first) - large * second
    rest = (rest - small * second) - k * third
    exponent = k.astype(jnp.int32)
    exists = exponent > ZERO_EXPONENT
    # At k's bounds the rest is no remainder any more, and may be infinite.
    mantissa = jnp.exp(jnp.where(exists, rest if low is None else rest + low, 0))
    return Extended(jnp.where(exists, mantissa, 0), exponent)


def to_log(a: Extended) -> Array:
    """log a, within 2 ulp also near a = 1; -inf for 0."""
    m, e = normalised(a)
    high = m > math.sqrt(2)  # log m and e ln 2 never cancel: |log m| <= ln(2) / 2
    m, e = jnp.where(high, 0.5 * m, m), jnp.where(high, e + 1, e)
    found = jnp.log(jnp.where(m > 0, m, 1)) + e.astype(m.dtype) * math.log(2)
    return jnp.where(m > 0, found, -jnp.inf)


def normalised(a: Extended) -> Extended:
    """The same number with its mantissa in [1, 2), or 0 in its one spelling."""
    m, e = a
    integer, bits, bias = _layout(m.dtype)
    raw = lax.bitcast_convert_type(m, integer)
    exponent = e + ((raw >> bits).astype(jnp.int32) - bias)
    mantissa = lax.bitcast_convert_type((raw & ((1 << bits) - 1)) | (bias << bits), m.dtype)
    exists = (raw >= 1 << bits) & (exponent > ZERO_EXPONENT)  # a subnormal mantissa is 0
    return Extended(jnp.where(exists, mantissa, 0), jnp.where(exists, exponent, ZERO_EXPONENT))


def add(a: Extended, b: Extended) -> Extended:
    """a + b. Not normalised: the mantissa is at most the sum of both."""
    exponent = jnp.maximum(a.exponent, b.exponent)
    dtype = a.mantissa.dtype
    left = a.mantissa * _aligning(a.exponent - exponent, dtype)
    return Extended(left + b.mantissa * _aligning(b.exponent - exponent, dtype), exponent)


def multiply(a: Extended, b: Extended) -> Extended:
    """a b. Not normalised: exponents of normalised factors add without leaving int32, those of further products may."""
    return Extended(a.mantissa * b.mantissa, a.exponent + b.exponent)


def sum_over(a: Extended, axis: int) -> Extended:
    """The sum along `axis`, which is consumed; normalised."""
    top = jnp.max(a.exponent, axis=axis, keepdims=True, initial=ZERO_EXPONENT)
    total = jnp.sum(a.mantissa * _aligning(a.exponent - top, a.mantissa.dtype), axis=axis)
    return normalised(Extended(total, jnp.squeeze(top, axis)))


def inverse(a: Extended) -> Extended:
    """1 / a of a normalised number, normalised; 0 where a is 0."""
    exists = a.mantissa > 0
    mantissa = jnp.where(exists, 1 / jnp.where(exists, a.mantissa, 1), 0)
    return normalised(Extended(mantissa, jnp.where(exists, -a.exponent, 0)))


def as_float(a: Extended) -> Array:
    """An ordinary float, of a number in its range: 0 where it underflows."""
    return a.mantissa * _power_of_two(a.exponent, a.mantissa.dtype)


def ratio_as_float(a: Extended, z: Extended) -> Array:
    """a / z as an ordinary float: 0 where it underflows, where a is 0, and where z is 0."""
    quotient = a.mantissa / jnp.where(z.mantissa > 0, z.mantissa, 1)
    found = quotient * _power_of_two(a.exponent - z.exponent, a.mantissa.dtype)
    return jnp.where((z.mantissa > 0) & (a.mantissa > 0), found, 0)


def shifted(a: Extended, by: int, axis: int) -> Extended:
    """Entry i is what entry i - by was; zeros come in. For |by| up to the size of `axis`."""

    def moved(x: Array, filling: float | int) -> Array:
        size = x.shape[axis]
        kept = lax.slice_in_dim(x, max(-by, 0), size - max(by, 0), axis=axis)
        new = lax.slice_in_dim(jnp.full_like(x, filling), 0, abs(by), axis=axis)
        return jnp.concatenate([new, kept] if by > 0 else [kept, new], axis=axis)

    return Extended(moved(a.mantissa, 0), moved(a.exponent, ZERO_EXPONENT))


def packed(a: Extended) -> Array:
    """`a` as one complex array: what a loop should carry. Exponents below 2^30 - 2^23, as all normalised ones are.

    XLA's CPU computes each array that a step gives by itself, all the way from the step's inputs: with mantissa and
    exponent apart every step is made twice. Nothing is done with the complex numbers but moving and selecting them.
    """
    dtype = a.mantissa.dtype
    # In 32 bits not every exponent is a float, but its bits are moved as well; counted from 0's they are never nan's.
    counted = a.exponent - ZERO_EXPONENT
    exponent = lax.bitcast_convert_type(counted, dtype) if dtype == jnp.float32 else counted.astype(dtype)
    return lax.complex(a.mantissa, exponent)


def unpacked(x: Array) -> Extended:
    """What `packed` was given."""
    mantissa, exponent = lax.real(x), lax.imag(x)
    is_single = mantissa.dtype == jnp.float32
    counted = lax.bitcast_convert_type(exponent, jnp.int32) if is_single else exponent.astype(jnp.int32)
    return Extended(mantissa, counted + ZERO_EXPONENT)
