"""The exact pieces: functions whose textbook form, or XLA's own, loses digits where a loss needs them.

Each says on which input the plain form fails. Each is a `custom_jvp` whose rule is made of differentiable pieces, so
reverse mode, forward mode and Hessians all work. Measured on XLA's CPU (largest error in ulp, float32): exp 1,
log 1, log1p 2.4, tanh 4.1, expm1 5.3; `log1p`, `tanh` and `expm1` below stay within 1.5.

Two traps of the compiler shape the code. XLA folds constants through additions, so `(1 + x) - 1` is x for it: no
error-free sum here has two constants. And a derivative that multiplies an infinite slope by a zero tangent is nan,
so `differentiable` never touches a tangent that is symbolically zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.core.coefficients import (
    EXPM1,
    EXPM1_WIDE,
    LOG1P,
    LOG1P_WIDE,
    LOG_COSH,
    LOG_FACTORIAL,
    STIRLING,
    TANH,
    Coefficients,
)
from jaxloss.core.types import Array

__all__ = [
    "absolute",
    "apart",
    "differentiable",
    "exp_gap",
    "exp_minus",
    "expm1",
    "expm1_minus",
    "log1p",
    "log1p_near",
    "log_cosh",
    "norm",
    "of_residual",
    "scale_exponent",
    "spread_apart",
    "square_gap",
    "stirling_gap",
    "subtract",
    "tanh",
    "unit",
    "widen",
    "xlogx_gap",
    "xlogy",
]


LN2 = 0.6931471805599453
# ln 2 in two parts for float32: the first ends in zero bits, so that k * part is exact for every exponent k.
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606820309417e-06
LOG_2_PI = 1.8378770664093453


def _polynomial(s: Array, coefficients: Coefficients) -> Array:
    row = coefficients.double if s.dtype == jnp.float64 else coefficients.single
    result = jnp.full_like(s, row[-1])
    for c in reversed(row[:-1]):
        result = result * s + c
    return result


def widen(x: Array) -> Array:
    """Half precision to float32; wider formats as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def differentiable(value: Callable[..., Array], *slopes: Callable[..., Array] | None) -> Callable[..., Array]:
    """The elementwise `value(*args)` whose derivative in argument k is `slopes[k](*args)`, in every mode.

    Automatic differentiation of an exact form need not be exact: the derivative of huber's min(r, d) * (r - min(r, d)
    / 2) is q - d + d, which is 0 for small r. Here both are written down. None stands for an argument without a
    derivative; an argument that is not being differentiated costs nothing.
    """
    function = jax.custom_jvp(value)

    def rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
        out = function(*primals)
        parts = [
            slope(*primals) * tangent
            for slope, tangent in zip(slopes, tangents, strict=True)
            if slope is not None and not isinstance(tangent, SymbolicZero)
        ]
        return out, cast(Array, sum(parts[1:], parts[0])) if parts else jnp.zeros_like(out)

    function.defjvp(rule, symbolic_zeros=True)
    return cast("Callable[..., Array]", function)


def apart(*arrays: Array) -> tuple[Array, ...]:
    """The same arrays, in a form in which XLA's CPU does not see that they are the same.

    What a reduction shares with another kernel, be it exp(x) or a 1 that is broadcast, is written out as an array and
    read twice. A slope whose inputs and constants are taken apart shares nothing with its value, and each is one pass.
    Elsewhere than on a CPU one kernel computes both, and sharing is what is wanted.
    """
    # One barrier each: within shard_map a common one would take a constant for something that varies over the mesh.
    return tuple(lax.platform_dependent(x, cpu=lax.optimization_barrier, default=_as_it_is) for x in arrays)


def _as_it_is(x: Array) -> Array:
    return x


def of_residual(
    value: Callable[..., Array], slope: Callable[..., Array], *scalar_slopes: Callable[..., Array] | None
) -> Callable[..., Array]:
    """`value(predictions - targets, *scalars)` with the derivatives `slope` in the residual and `scalar_slopes`."""

    def pull(p: Array, t: Array, *scalars: Array) -> Array:
        p, t, *others = apart(p, t, *scalars)
        return slope(p - t, *others)

    def in_scalar(scalar_slope: Callable[..., Array] | None) -> Callable[..., Array] | None:
        return None if scalar_slope is None else lambda p, t, *scalars: scalar_slope(p - t, *scalars)

    return differentiable(
        lambda p, t, *scalars: value(p - t, *scalars),
        pull,
        lambda p, t, *scalars: -pull(p, t, *scalars),
        *(in_scalar(s) for s in scalar_slopes),
    )


# --- Elementary functions -----------------------------------------------------------------------------------------


def _log1p_near_value(x: Array) -> Array:
    if x.dtype == jnp.float64:
        return jnp.log1p(x)
    # x - s (x - 2 s^2 (1/3 + ...)) with s = x / (2 + x), a small correction to an exact x.
    s = x / (2 + x)
    square = s * s
    return x - s * (x - 2 * square * _polynomial(square, LOG1P))


log1p_near = differentiable(_log1p_near_value, lambda x: 1 / (1 + x))
log1p_near.__doc__ = "log(1 + x) for x in [-1/2, 1], without a select: on a CPU a sum over it is one pass."


def _log1p_value(x: Array) -> Array:
    if x.dtype == jnp.float64:
        return jnp.log1p(x)
    # Beyond, 1 + x loses nothing that the logarithm would show; below -1/2 it is exact.
    return jnp.where((x >= -0.5) & (x <= 1), log1p_near(jnp.clip(x, -0.5, 1.0)), jnp.log(1 + x))


log1p = differentiable(_log1p_value, lambda x: 1 / (1 + x))
log1p.__doc__ = "log(1 + x); XLA's own is off by 2.4 ulp near 0.4."


def _expm1_value(x: Array) -> Array:
    if x.dtype == jnp.float64:
        return jnp.expm1(x)
    # exp(x) - 1 = 2^k (exp(r) - 1) + (2^k - 1) with x = k ln 2 + r.
    k = jnp.clip(jnp.round(x / LN2), -30, 30)
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    scale = lax.bitcast_convert_type((k.astype(jnp.int32) + 127) << 23, jnp.float32)  # 2^k
    middle = scale * (r + r * r * _polynomial(r, EXPM1)) + (scale - 1)
    # Beyond |x| = 20 the 1 is below half an ulp of exp(x), or exp(x) of the 1.
    return jnp.where(jnp.abs(x) < 20, middle, jnp.where(x > 0, jnp.exp(x), -1.0))


expm1 = differentiable(_expm1_value, jnp.exp)
expm1.__doc__ = "exp(x) - 1; XLA's own is off by 5.3 ulp near 0.06."


def _expm1_minus_value(x: Array) -> Array:
    near = jnp.clip(x, -2.0, 2.0)
    tail = near * near * _polynomial(near, EXPM1_WIDE)
    return jnp.where(jnp.abs(x) <= 2, tail, expm1(x) - x)


expm1_minus = differentiable(_expm1_minus_value, expm1)
expm1_minus.__doc__ = "exp(x) - 1 - x >= 0; the plain form has no digit left below |x| = 1e-3 in float32."


def _tanh_value(x: Array) -> Array:
    if x.dtype == jnp.float64:
        return jnp.tanh(x)
    size = jnp.abs(x)
    near = jnp.minimum(size, 0.6)
    square = near * near
    inner = near + near * square * _polynomial(square, TANH)
    # Beyond 0.6 the subtracted part is below one half, and its error with it.
    # Its constants are its own: it is the slope of log_cosh, and would share them with the sum over that.
    one, two = apart(jnp.ones((), x.dtype), jnp.full((), 2, x.dtype))
    outer = one - two / (jnp.exp(two * jnp.maximum(size, 0.6)) + one)
    return jnp.sign(x) * jnp.where(size <= 0.6, inner, outer)


def _tanh_slope(x: Array) -> Array:
    e = jnp.exp(-2 * jnp.abs(x))
    return 4 * e / jnp.square(1 + e)


tanh = differentiable(_tanh_value, _tanh_slope)
tanh.__doc__ = "The hyperbolic tangent; XLA's own is off by 4.1 ulp near 0.13."


# 1 / (1 + e^2)
_BEYOND_ONE = 0.11920292202211755


def _log_cosh_value(x: Array) -> Array:
    size = jnp.abs(x)
    near = jnp.minimum(size, 1.0)
    square = near * near
    inner = square * (0.5 + square * _polynomial(square, LOG_COSH))
    # log cosh(1 + d) = log cosh(1) + d + log(1 - c (1 - exp(-2 d))), c = 1 / (1 + e^2): exactly 0 more where d = 0, so
    # that nothing is selected, and on a CPU a sum over it is one pass.
    beyond = jnp.maximum(size - 1, 0)
    return inner + (beyond + log1p_near(_BEYOND_ONE * jnp.exp(-2 * beyond) - _BEYOND_ONE))


log_cosh = differentiable(_log_cosh_value, tanh)
log_cosh.__doc__ = "log(cosh(x)) >= 0; the plain form is 0 or noise below |x| = 1e-3, and overflows above 89."


def _xlogy_value(x: Array, y: Array) -> Array:
    absent = x == 0
    return jnp.where(absent, 0, x * jnp.log(jnp.where(absent, 1, y)))


xlogy = differentiable(
    _xlogy_value,
    lambda x, y: jnp.log(y),
    lambda x, y: jnp.where(x == 0, 0, x / jnp.where(x == 0, 1, y)),
)
xlogy.__doc__ = "x log(y), and 0 at x = 0 whatever y is: the plain form is 0 * -inf = nan at (0, 0)."


def _xlogx_gap_value(u: Array) -> Array:
    # With s = u / (2 + u): log1p(u) = 2 s (1 + s^2 R), and u log1p(u) + log1p(u) - u = u s + 2 s^3 R (1 + u).
    near = jnp.clip(u, -0.75, 3.0)
    s = near / (2 + near)
    square = s * s
    inner = near * s + 2 * s * square * _polynomial(square, LOG1P_WIDE) * (1 + near)
    outer = xlogy(1 + u, 1 + u) - u
    return jnp.where((u >= -0.75) & (u <= 3), inner, outer)


xlogx_gap = differentiable(_xlogx_gap_value, lambda u: log1p(u))
xlogx_gap.__doc__ = "(1 + u) log(1 + u) - u >= 0 for u >= -1: u^2 / 2 near 0, where the plain form cancels; 1 at -1."


def _exp_minus_value(x: Array, t: Array) -> Array:
    # Near 0 from exp(x) - 1, which keeps the digits of x itself; t - 1 is exact wherever t is near exp(x) there.
    near = jnp.clip(x, -1.0, 1.0)
    inner = (near + near * near * _polynomial(near, EXPM1_WIDE)) - (t - 1)
    return jnp.where(jnp.abs(x) < 1, inner, jnp.exp(x) - t)


exp_minus = differentiable(_exp_minus_value, lambda x, t: jnp.exp(x), lambda x, t: -jnp.ones_like(t))
exp_minus.__doc__ = "exp(x) - t for t >= 0; the plain form is 0 for x = 1e-8, t = 1."


def _exp_gap_value(x: Array, t: Array) -> Array:
    alive = t > 0
    d = jnp.where(alive, x - jnp.log(jnp.where(alive, t, 1)), 0)
    far = jnp.exp(x) - t * (1 + d)
    return jnp.where(alive & (jnp.abs(d) <= 2), t * expm1_minus(d), far)


exp_gap = differentiable(
    _exp_gap_value,
    lambda x, t: exp_minus(x, t),
    lambda x, t: jnp.where((t == 0) & (x == -jnp.inf), 0, jnp.log(t) - x),
)
exp_gap.__doc__ = """exp(x) - t - t (x - log t) >= 0 for t >= 0: how far exp at x lies above its tangent at log t.

With q = exp(x) it is t log(t / q) - t + q: exp(x) at t = 0, and 0 only where q = t, where the plain form is noise.
"""


def _stirling_gap_value(t: Array) -> Array:
    below = jnp.minimum(t, 1)
    # log Gamma(1 + t) = -t (1 - t) P(t): exact at both of its zeros.
    small = below * (1 - (1 - below) * _polynomial(below, LOG_FACTORIAL)) - xlogy(below, below)
    above = jnp.maximum(t, 1)
    inverse = 1 / above
    large = 0.5 * jnp.log(above) + (0.5 * LOG_2_PI + inverse * _polynomial(inverse * inverse, STIRLING))
    return jnp.where(t < 1, small, large)


stirling_gap = differentiable(_stirling_gap_value, lambda t: lax.digamma(1 + t) - jnp.log(t))
stirling_gap.__doc__ = """log Gamma(1 + t) - (t log t - t) >= 0 for t >= 0: what t log t - t lacks of log(t!).

It grows like log(t) / 2, while of the difference of the two no digit is left at t = 1e7.
"""


def spread_apart(x: Array, y: Array) -> tuple[Array, Array]:
    """(d, s) with x - y = s d, s a constant power of two: for what divides or weighs a difference.

    s is 2 where the difference of huge numbers might overflow, small where that of tiny ones might be flushed to 0,
    and 1 between.
    """
    facts = jnp.finfo(x.dtype)
    largest = jnp.maximum(jnp.abs(x), jnp.abs(y))
    up, low = 2.0 ** (facts.nmant + 2), 2.0 ** -(facts.maxexp // 2)
    factor = lax.stop_gradient(jnp.where(largest > 1, 0.5, jnp.where(largest < low, up, 1)).astype(x.dtype))
    return factor * x - factor * y, 1 / factor


class _Layout(NamedTuple):
    """How a floating format lies in an integer of its size."""

    kind: Any
    digits: int  # behind the exponent
    bias: int


def _layout(x: Array) -> _Layout:
    return _Layout(jnp.int64, 52, 1023) if x.dtype == jnp.float64 else _Layout(jnp.int32, 23, 127)


def _root_scale(v: Array) -> Array:
    """A power of two near 1 / sqrt(v), for normal v > 0."""
    kind, digits, bias = _layout(v)
    half = ((lax.bitcast_convert_type(v, kind) >> digits) - bias) >> 1
    return lax.bitcast_convert_type((bias - half) << digits, v.dtype)


def _high_half(x: Array) -> Array:
    """The first half of the digits of x: the square of this, and its product with the rest, are exact."""
    kind, digits, _ = _layout(x)
    rest = digits // 2 + 1
    return lax.bitcast_convert_type((lax.bitcast_convert_type(x, kind) >> rest) << rest, x.dtype)


def _square_gap_value(r: Array, v: Array) -> Array:
    ratio = r * (r / v)
    # Both near 1, by powers of two: then every product below is exact, whether or not the compiler fuses it with the
    # difference behind it (which would make an error-free product with its own residual wrong).
    scale = _root_scale(v)
    r1, v1 = r * scale, (v * scale) * scale
    high = _high_half(r1)
    low = r1 - high
    gap = ((v1 - high * high) - 2 * high * low) - low * low
    return jnp.where((ratio > 0.5) & (ratio < 2), gap / v1, 1 - ratio)


square_gap = differentiable(_square_gap_value, lambda r, v: -2 * (r / v), lambda r, v: jnp.square(r / v))
square_gap.__doc__ = "1 - r^2 / v for v > 0; where r^2 is near v the plain form has what two roundings left."


def _absolute_value(x: Array) -> Array:
    return jnp.abs(x)


absolute = differentiable(_absolute_value, lambda x: jnp.sign(lax.stop_gradient(x)))
absolute.__doc__ = "|x| with slope sign(x), 0 at 0: the slope of `jnp.abs` at 0 is 1 in jax 0.10."


def subtract(x: Array, y: Array) -> tuple[Array, Array]:
    """x - y and what rounding dropped of it, for finite differences. Not differentiable: constants.

    exp(x - y) is off by |x - y| / 2 ulp without the second part.
    """
    x, y = lax.stop_gradient(x), lax.stop_gradient(y)
    difference = x - y
    back = difference - x  # Knuth's TwoSum of x and -y
    return difference, (x - (difference - back)) - (y + back)


# --- Vectors ------------------------------------------------------------------------------------------------------


def scale_exponent(x: Array, axis: int | tuple[int, ...] | None) -> Array:
    """A power of two near the largest magnitude along `axis`, kept as size-1 axes; 1 for zero and infinite vectors.

    Dividing by it is exact, and squares of the quotient neither overflow (entries of 1e20) nor vanish (of 1e-25).
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    exponent = jnp.frexp(largest)[1]
    usable = (largest > 0) & jnp.isfinite(largest)
    # Half of the range at most: the reciprocal must be a normal number too.
    limit = int(np.log2(float(jnp.finfo(x.dtype).max))) - 2
    return jnp.ldexp(jnp.ones_like(largest), jnp.where(usable, jnp.clip(exponent, -limit, limit), 0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def norm(x: Array, axis: int | tuple[int, ...]) -> Array:
    """The Euclidean norm over `axis`, kept as size-1 axes; its gradient at the zero vector is 0, not nan."""
    scale = scale_exponent(x, axis)
    return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale), axis=axis, keepdims=True))


@norm.defjvp
def _norm_rule(axis: int | tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return norm(x, axis), jnp.sum(unit(x, axis) * dx, axis=axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit(x: Array, axis: int | tuple[int, ...]) -> Array:
    """x / |x| over `axis`; the zero vector stays zero, with zero gradient.

    A floor on the norm would not mend the plain form: d sqrt(s) / ds is infinite at s = 0.
    """
    scaled = x / scale_exponent(x, axis)
    square = jnp.sum(jnp.square(scaled), axis=axis, keepdims=True)
    alive = square > 0
    return jnp.where(alive, scaled / jnp.sqrt(jnp.where(alive, square, 1)), 0)


@unit.defjvp
def _unit_rule(axis: int | tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    u, length = unit(x, axis), norm(x, axis)
    alive = length > 0
    sideways = dx - u * jnp.sum(u * dx, axis=axis, keepdims=True)
    return u, jnp.where(alive, sideways / jnp.where(alive, length, 1), 0)
