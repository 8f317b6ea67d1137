"""Unreduced, unmasked mathematics that two families share, exact to the last digits and differentiable in every mode.

Softmax over an axis. With m = max z, the entries beside the maximum weigh

    rest = sum over z_j < m of exp(z_j - m)  +  (number of maxima - 1),       sum of exp(z_j - m) = 1 + rest

and logsumexp(z) - z_j = log1p(rest) + (m - z_j): two terms >= 0. Nothing cancels, so a confident row (rest = 1e-30)
keeps all its digits, where log(1 + 1e-30) and p_j - 1 have none; and offsets of 3e4 cost nothing.

Binary. With e = exp(-|x|) <= 1, -log sigmoid(x) and -log sigmoid(-x) are log1p(e) and |x| + log1p(e).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.core.numerics import apart, differentiable, expm1, log1p, log1p_near, subtract, widen, xlogy
from jaxloss.core.sharding import is_label, is_sharded, take_label
from jaxloss.core.types import Array

__all__ = [
    "binary_focal",
    "binary_nll",
    "focal",
    "label_nll",
    "log_sum_exp",
    "shortfall",
    "sigmoid",
    "soft_label_nll",
    "softmax",
    "softplus",
    "weighted_binary_nll",
]


# --- Softmax ------------------------------------------------------------------------------------------------------


def _exp_below_value(z: Array, m: Array) -> Array:
    # exp(z - m) sees a rounded difference, off by |z - m| / 2 ulp; what rounding left is given back to first order.
    # Only + - * max exp: XLA's CPU fuses these into a reduction, where one select or clamp would write [..., C] out.
    # -inf becomes a large number, so that what rounding left is 0 and not nan; +inf is no logit.
    x = jnp.maximum(z, -float(jnp.finfo(z.dtype).max) / 2)
    difference, residual = subtract(x, m)
    e = jnp.exp(difference)
    return e + e * residual


# m is a constant of every use: the ratios below do not depend on it.
_exp_below = differentiable(_exp_below_value, lambda z, m: _exp_below(z, m), None)


def _maximum(z: Array, axis: int) -> Array:
    # Taken before widening, so that no float32 copy of half-precision logits is needed for it.
    m = jnp.max(lax.stop_gradient(z), axis=axis, keepdims=True, initial=-jnp.inf)
    return jnp.where(m == -jnp.inf, jnp.nan, widen(m))  # nothing but -inf is no distribution


def _exponentials(z: Array, axis: int) -> tuple[Array, Array, Array]:
    """exp(z - max z), its sum over what lies below the maximum, and its sum over the maxima (their number)."""
    m = _maximum(z, axis)
    e = _exp_below(widen(z), m)
    is_top = widen(z) == m
    below = jnp.sum(jnp.where(is_top, 0, e), axis=axis, keepdims=True)
    tops = jnp.sum(jnp.where(is_top, e, 0), axis=axis, keepdims=True)
    return e, below, tops


def _log_normalizer(z: Array, axis: int) -> Array:
    """logsumexp(z) - max z >= 0."""
    _, below, tops = _exponentials(z, axis)
    return log1p(below + (tops - 1))


def _from_max(z: Array, m: Array) -> Array:
    """m - z >= 0, and 0 where both are infinite."""
    return jnp.where(z == m, 0, m - z)


def softmax(z: Array, axis: int) -> Array:
    """exp(z_j) / sum exp(z), float32 or wider; entries far below the maximum keep all their digits."""
    e, below, tops = _exponentials(z, axis)
    return e / (below + tops)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_sum_exp(z: Array, axis: int) -> Array:
    """log(sum exp(z)) over `axis`, which is consumed."""
    return jnp.squeeze(_maximum(z, axis) + _log_normalizer(z, axis), axis)


@log_sum_exp.defjvp
def _log_sum_exp_rule(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return log_sum_exp(z, axis), jnp.sum(softmax(z, axis) * widen(dz), axis=axis)


# Between these maxima of a row exp(z) itself neither overflows in a sum of 10^9 classes nor loses what exp(z - max)
# still has, down to 1e-36 of the maximum.
_NEEDS_NO_SHIFT = (-5.0, 60.0)


# Which numbers of classes are summed without a shift as they are; more of them in groups, if they make such.
_FEW = range(8, 32)


def _others(z: Array, labels: Array, m: Array, axis: int) -> Array:
    """The sum of exp(z - m) over all classes but the label, never as a difference; `axis` is consumed."""
    classes = z.shape[axis]
    width = next((k for k in range(128, 7, -1) if classes % k == 0), classes)
    in_groups = classes >= 4 * width
    sum_over: Callable[..., Array] = _in_groups if in_groups else _beside_the_label
    class_axes = (axis, axis + 1) if in_groups else (axis,)

    def shifted(x: Array, m: Array) -> Array:
        shift = jnp.expand_dims(m, class_axes)
        return sum_over(lambda part: _exp_below(part, shift), x, labels, axis)

    def unshifted(x: Array, m: Array) -> Array:
        return sum_over(jnp.exp, x, labels, axis) * jnp.exp(-m)

    def either(x: Array, m: Array) -> Array:
        low, high = _NEEDS_NO_SHIFT
        return lax.cond(jnp.all((m >= low) & (m <= high)), unshifted, shifted, x, m)

    if is_sharded(z, axis) or not (in_groups or classes in _FEW):
        return _beside_the_label(lambda part: _exp_below(part, jnp.expand_dims(m, axis)), z, labels, axis)
    x = z.reshape(*z.shape[:axis], classes // width, width, *z.shape[axis + 1 :]) if in_groups else z
    # On a CPU what is exact about a shift costs as much as the exponential. Elsewhere memory is what costs, and a
    # branch would wait for the host.
    return lax.platform_dependent(x, m, cpu=either, default=shifted)


def _beside_the_label(term: Callable[[Array], Array], z: Array, labels: Array, axis: int) -> Array:
    """The sum of `term` over all classes but the label."""
    # Behind the barrier the widening is part of the sum; before it, XLA shares one widened copy among all its uses.
    e = term(widen(lax.optimization_barrier(z)))
    if not 8 <= z.shape[axis] < 2**24:
        return jnp.sum(jnp.where(is_label(z, labels, axis), 0, e), axis=axis)
    # 0 at the label and 1 elsewhere by | - | and min, which XLA's CPU computes within the sum; a select it would write
    # out, [..., C]. With fewer than 8 classes that is cheaper still, and beyond 2^24 float32 does not count.
    index = lax.broadcasted_iota(e.dtype, z.shape, axis)
    steps_away = jnp.abs(index - jnp.expand_dims(labels, axis).astype(e.dtype))
    return jnp.sum(e * jnp.minimum(steps_away, 1), axis=axis)


def _in_groups(term: Callable[[Array], Array], grouped: Array, labels: Array, axis: int) -> Array:
    """The same over groups [..., groups, width, ...]: only the label's own group is gathered and sums without it."""
    width = grouped.shape[axis + 1]
    sums = jnp.sum(term(widen(lax.optimization_barrier(grouped))), axis=axis + 1)
    group, member = labels // width, labels % width
    index = jnp.expand_dims(group, (axis, axis + 1))
    own = jnp.take_along_axis(grouped, index, axis=axis, mode="clip")
    beside = jnp.squeeze(term(widen(own)), axis)
    rest = jnp.sum(jnp.where(is_label(beside, member, axis), 0, beside), axis=axis)
    return rest + jnp.sum(jnp.where(is_label(sums, group, axis), 0, sums), axis=axis)


# The maximum, exp(z_label - max) or the maximum's place, and the sum of the others' exp(z - max).
_Parts = tuple[Array, Array, Array]


def _label_parts(z: Array, labels: Array, axis: int) -> _Parts:
    # Without the class axis: on a CPU what has a last axis of size 1 is computed one number at a time.
    m = jnp.squeeze(_maximum(z, axis), axis)
    at_label = _exp_below(jnp.squeeze(widen(take_label(z, labels, axis)), axis), m)
    return m, at_label, _others(z, labels, m, axis)


def label_nll(z: Array, labels: Array, axis: int) -> Array:
    """logsumexp(z) - z[label] over `axis`, which is consumed; the labels are in range."""
    return _label_nll(z, labels, _label_parts(lax.stop_gradient(z), labels, axis), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _label_nll(z: Array, labels: Array, parts: _Parts, axis: int) -> Array:
    m, at_label, others = parts
    gap = _from_max(jnp.squeeze(widen(take_label(z, labels, axis)), axis), m)
    # The label is a maximum: all that the loss is comes from the others. It is not: one of the others is 1.
    return gap + log1p(jnp.where(gap == 0, others, (others - 1) + at_label))


def _label_nll_rule(axis: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (z, labels, given), (dz, *_) = primals, tangents
    if isinstance(dz, SymbolicZero):
        value = _label_nll(z, labels, given, axis)
        return value, jnp.zeros_like(value)
    # Made again, because those that were given are constants, and a second derivative needs theirs; what was given
    # is then used by nobody, and not computed.
    parts = _label_parts(z, labels, axis)
    value = _label_nll(z, labels, lax.stop_gradient(parts), axis)
    m, at_label, others = (jnp.expand_dims(part, axis) for part in parts)
    # softmax(z) - onehot(label), with p_label - 1 taken from the others' weight: no digit of it cancels. The barrier
    # keeps XLA from holding the forward pass's exponentials [..., C] until here; they are cheaper made again.
    e = _exp_below(widen(lax.optimization_barrier(z)), m)
    gradient = jnp.where(is_label(z, labels, axis), -others, e) / (others + at_label)
    return value, jnp.sum(gradient * widen(dz), axis=axis)


_label_nll.defjvp(_label_nll_rule, symbolic_zeros=True)


def _a_top(z: Array, m: Array, axis: int) -> Array:
    """The place of a maximum of each row (of the first one); `axis` is consumed."""
    if z.shape[axis] >= 2**24:  # float32 would not count so far
        return jnp.argmax(z, axis=axis).astype(jnp.int32)
    # The smallest place + distance from the maximum, much magnified: XLA's CPU takes ten times as long for an argmax.
    # What it shares between two reductions it writes out, [..., C], be it m - z or a number that both broadcast: so
    # quarters are compared here, z + (-m) is the value's, z - m the exponentials', and no two constants are equal.
    # (A class within 1e-30 of the maximum may be taken for it: its exponential is 1 too.)
    x = widen(z)
    below = jnp.expand_dims(m * 0.25, axis) - x * 0.25
    magnified = below * (1 / float(jnp.finfo(x.dtype).tiny))
    place = lax.broadcasted_iota(x.dtype, z.shape, axis)
    return jnp.min(magnified + place, axis=axis, initial=jnp.inf).astype(jnp.int32)


def _top_parts(z: Array, axis: int) -> _Parts:
    """The maximum, its place, and the sum of the others' exp(z - m); `axis` is consumed."""
    m = jnp.squeeze(_maximum(z, axis), axis)
    top = _a_top(lax.stop_gradient(z), m, axis)
    return m, top, _others(z, top, m, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _at_top(z: Array, top: Array, axis: int) -> Array:
    """exp(z_top - max z), which is 1 and has a slope."""
    return (0 * top + 1).astype(widen(z).dtype)


@_at_top.defjvp
def _at_top_rule(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, top), (dz, _) = primals, tangents
    own = _at_top(z, top, axis)
    return own, own * jnp.squeeze(widen(take_label(dz, top, axis)), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def soft_label_nll(z: Array, t: Array, axis: int) -> Array:
    """sum over `axis` of t_j (logsumexp(z) - z_j), for t >= 0 of any sum; t_j = 0 removes z_j = -inf."""
    m, _, rest = _top_parts(z, axis)
    from_max = widen(z) + jnp.expand_dims(-m, axis)
    # sum(t) log(1 + rest) - sum(t from_max): two terms >= 0. inf * 0 is nan: see _wrong_side_part.
    largest = float(jnp.finfo(from_max.dtype).max)
    most = jnp.maximum(from_max, -largest)
    lacking = jnp.maximum(from_max - most, -largest)
    t = widen(t)
    mass = jnp.sum(t, axis=axis)
    # Without targets 0, also where nothing but -inf stands beside them. Each select stands directly behind its sum,
    # where anything else would be computed in the sum's own kernel, four times as slowly.
    moved = jnp.where(mass == 0, 0, jnp.sum(most * t + (lacking * t) * largest, axis=axis))
    return jnp.where(mass == 0, 0, mass * log1p(rest)) - moved


def _soft_label_nll_rule(axis: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (z, t), (dz, dt) = primals, tangents
    value = soft_label_nll(z, t, axis)
    tangent = jnp.zeros_like(value)
    if not isinstance(dz, SymbolicZero):
        tangent = tangent + jnp.sum(_soft_label_gradient(z, widen(t), axis) * widen(dz), axis=axis)
    if not isinstance(dt, SymbolicZero):
        each = jnp.expand_dims(log_sum_exp(z, axis), axis) - widen(z)
        tangent = tangent + jnp.sum(each * widen(dt), axis=axis)
    return value, tangent


def _soft_label_gradient(z: Array, t: Array, axis: int) -> Array:
    """sum(t) softmax(z) - t."""
    m, top, rest = _top_parts(z, axis)
    held = jnp.where(rest < 1, _held_by_others(t, top, axis), 0)
    mass = jnp.sum(t, axis=axis)
    # Where the top has most of the weight p = 1 - rest / sum: neither that nor sum(t) - t_j needs a difference.
    normalizer = _at_top(z, top, axis) + rest
    scale, at_top = mass / normalizer, 16 * held - mass * (rest / normalizer)
    m, scale, at_top, sure = (jnp.expand_dims(part, axis) for part in (m, scale, at_top, rest < 1))
    e = _exp_below(widen(lax.optimization_barrier(z)), m)
    return jnp.where(is_label(z, top, axis) & sure, at_top, scale * e - t)


def _held_by_others(t: Array, top: Array, axis: int) -> Array:
    """A sixteenth of what all classes but the top hold of t; `axis` is consumed."""
    if t.shape[axis] >= 2**20:  # float32 would not count so far in eighths
        return jnp.sum(jnp.where(is_label(t, top, axis), 0, t), axis=axis) / 16
    # By the distance from the top less 1/8, which shares nothing with the plain one in the exponentials' sum: see
    # _a_top. The factor of 16 is the caller's, behind its select: see soft_label_nll.
    place = lax.broadcasted_iota(t.dtype, t.shape, axis)
    steps = jnp.abs(place - jnp.expand_dims(top.astype(t.dtype) - 0.125, axis))
    return jnp.sum(t * jnp.minimum(steps - 0.125, 0.0625), axis=axis)


soft_label_nll.defjvp(_soft_label_nll_rule, symbolic_zeros=True)


# --- Binary -------------------------------------------------------------------------------------------------------


# Each is written by exp(-|x|), whose own derivative has a kink at 0: so each has its slope written down, in terms of
# the same functions, and a Hessian at a logit of exactly 0 is as good as anywhere.


def _decay(x: Array) -> Array:
    return jnp.exp(-jnp.abs(x))


sigmoid = differentiable(
    lambda x: jnp.where(x > 0, 1, _decay(x)) / (1 + _decay(x)),
    lambda x: sigmoid(x) * sigmoid(-x),
)
sigmoid.__doc__ = "1 / (1 + exp(-x)), to 2 ulp in both tails."

softplus = differentiable(lambda x: jnp.maximum(x, 0) + log1p_near(_decay(x)), sigmoid)
softplus.__doc__ = "log(1 + exp(x)) = -log sigmoid(-x)."


def _wrong_side_part(x: Array, a: Array, b: Array) -> Array:
    """b max(x, 0) + a max(-x, 0), and 0 where an infinite logit is right.

    inf * 0 is nan, and a select would make XLA's CPU write the entries out before it sums them. So the factor is
    finite, and what it lacks of an infinite one is added in a form that stays 0 at 0 and overflows elsewhere.
    """
    largest = float(jnp.finfo(x.dtype).max)
    finite = jnp.minimum(jnp.abs(x), largest)

    def side(part: Array, weight: Array) -> Array:
        most = jnp.minimum(part, finite)
        lacking = jnp.minimum(part - most, largest)
        return most * weight + (lacking * weight) * largest

    return side(jnp.maximum(x, 0), b) + side(jnp.maximum(-x, 0), a)


def _slope_of_sides(x: Array, a: Array, b: Array, one: Array) -> Array:
    """b sigmoid(x) - a sigmoid(-x), by one numerator."""
    e = _decay(x)
    return jnp.where(x > -x, b - a * e, b * e - a) / (one + e)


def _binary_slope_value(x: Array, t: Array) -> Array:
    x, t, one = apart(x, t, jnp.ones((), x.dtype))
    return _slope_of_sides(x, t, one - t, one)


# sigmoid(x) - t
_binary_slope = differentiable(
    _binary_slope_value,
    lambda x, t: sigmoid(x) * sigmoid(-x),
    lambda x, t: -jnp.ones_like(x),
)

binary_nll = differentiable(
    lambda x, t: _wrong_side_part(x, t, 1 - t) + log1p_near(_decay(x)),
    _binary_slope,
    lambda x, t: -x,  # the difference of two softplus, which would cancel near 0
)
binary_nll.__doc__ = "-t log sigmoid(x) - (1 - t) log sigmoid(-x), for t in [0, 1]."


def _weighted_slope_value(x: Array, t: Array, w: Array) -> Array:
    x, t, w, one = apart(x, t, w, jnp.ones((), x.dtype))
    return _slope_of_sides(x, w * t, one - t, one)


_weighted_slope = differentiable(
    _weighted_slope_value,
    lambda x, t, w: (w * t + (1 - t)) * sigmoid(x) * sigmoid(-x),
    lambda x, t, w: -w * sigmoid(-x) - sigmoid(x),
    lambda x, t, w: -t * sigmoid(-x),
)

weighted_binary_nll = differentiable(
    lambda x, t, w: _wrong_side_part(x, w * t, 1 - t) + (w * t + (1 - t)) * log1p_near(_decay(x)),
    _weighted_slope,
    lambda x, t, w: w * softplus(-x) - softplus(x),
    lambda x, t, w: t * softplus(-x),
)
weighted_binary_nll.__doc__ = "-w t log sigmoid(x) - (1 - t) log sigmoid(-x), for t in [0, 1] and a scalar w >= 0."


# --- Margins ------------------------------------------------------------------------------------------------------


def _shortfall_value(high: Array, low: Array, margin: Array) -> Array:
    # What rounding dropped of the difference is given back: where that nearly equals the margin, nothing else is left.
    # By halves, so that no difference overflows, and with the lowest finite number for -inf: else what was dropped
    # would be nan.
    lowest = -0.5 * float(jnp.finfo(high.dtype).max)
    difference, dropped = subtract(jnp.maximum(0.5 * low, lowest), jnp.maximum(0.5 * high, lowest))
    return 2 * jnp.maximum((0.5 * margin + difference) + dropped, 0)


def _pull(high: Array, low: Array, margin: Array) -> Array:
    # Written down, because the derivative of a maximum at a tie is one half of each: at the margin it is to be 0.
    return (_shortfall_value(high, low, margin) > 0).astype(high.dtype)


shortfall = differentiable(
    _shortfall_value,
    lambda high, low, margin: -_pull(high, low, margin),
    _pull,
    _pull,
)
shortfall.__doc__ = "max(0, margin - (high - low)), to the last digit; -inf counts as the lowest finite number."


# --- Focal --------------------------------------------------------------------------------------------------------


def _power_slope(q: Array, gamma: Array) -> Array:
    # A q of 0 is one that underflowed: the slope towards the logits, which is what is asked for, vanishes with it,
    # while gamma q^(gamma - 1) alone would be infinite for gamma < 1, and inf * 0 is nan.
    gone = (q == 0) & (gamma < 1)
    return jnp.where(gone, 0, gamma * jnp.power(jnp.where(gone, 1, q), gamma - 1))


_power = differentiable(
    lambda q, gamma: jnp.power(q, gamma),
    _power_slope,
    lambda q, gamma: jnp.where(q == 0, 0, jnp.power(q, gamma) * jnp.log(jnp.where(q == 0, 1, q))),
)


def _miss(nll: Array) -> Array:
    """1 - exp(-nll): the probability that the label did not get, exact where it is small."""
    return -expm1(-nll)


def _focal_slope(nll: Array, gamma: Array) -> Array:
    # d/dnll of q^gamma nll = q^gamma (1 + gamma exp(-nll) nll / q): nll / q tends to 1 where both vanish, so no power
    # below 1 of a zero q appears; exp(-nll) nll is 0 at infinity.
    q, p = _miss(nll), jnp.exp(-nll)
    ratio = jnp.where(q == 0, 1, nll / jnp.where(q == 0, 1, q))
    return _power(q, gamma) * (1 + gamma * jnp.where(p == 0, 0, p * ratio))


focal = differentiable(
    lambda nll, gamma: _power(_miss(nll), gamma) * nll,
    _focal_slope,
    lambda nll, gamma: xlogy(_power(_miss(nll), gamma) * nll, _miss(nll)),
)
focal.__doc__ = "(1 - exp(-nll))^gamma nll: the focal factor as a function of the negative log-likelihood alone."


def _wrong_side(x: Array, t: Array) -> tuple[Array, Array]:
    """The numerator of the probability given to the wrong side, and exp(-|x|)."""
    e = _decay(x)
    return jnp.where(x > 0, (1 - t) + t * e, (1 - t) * e + t), e


def _binary_miss_value(x: Array, t: Array) -> Array:
    wrong, e = _wrong_side(x, t)
    return wrong / (1 + e)


# (1 - t) sigmoid(x) + t sigmoid(-x): the probability given to the wrong side.
_binary_miss = differentiable(
    _binary_miss_value,
    lambda x, t: (1 - 2 * t) * sigmoid(x) * sigmoid(-x),
    lambda x, t: sigmoid(-x) - sigmoid(x),
)


def _swing_value(x: Array, t: Array) -> Array:
    # sigmoid(x) sigmoid(-x) / miss <= 1, not formed as that quotient: for a hard label the miss is itself one of the
    # factors, and may be 0.
    wrong, e = _wrong_side(x, t)
    return jnp.where(wrong == 0, 1, e / jnp.where(wrong == 0, 1, wrong)) / (1 + e)


def _swing_target_slope(x: Array, t: Array) -> Array:
    # -swing (sigmoid(-x) - sigmoid(x)) / miss, and 1 / miss = swing / (sigmoid(x) sigmoid(-x)).
    both = sigmoid(x) * sigmoid(-x)
    return jnp.where(
        both == 0, 0, (sigmoid(x) - sigmoid(-x)) * jnp.square(_swing(x, t)) / jnp.where(both == 0, 1, both)
    )


_swing = differentiable(
    _swing_value,
    lambda x, t: _swing(x, t) * ((sigmoid(-x) - sigmoid(x)) - (1 - 2 * t) * _swing(x, t)),
    _swing_target_slope,
)


def _binary_focal_value(x: Array, t: Array, gamma: Array) -> Array:
    return jnp.power(_binary_miss(x, t), gamma) * binary_nll(x, t)


def _binary_focal_slope(x: Array, t: Array, gamma: Array) -> Array:
    # d/dx of q^gamma l = q^gamma (gamma (1 - 2t) swing l + l').
    swing = _swing(x, t)
    pull = jnp.where(swing == 0, 0, swing * binary_nll(x, t))
    own = _binary_slope(x, t)
    return _power(_binary_miss(x, t), gamma) * (gamma * (1 - 2 * t) * pull + own)


def _binary_focal_target_slope(x: Array, t: Array, gamma: Array) -> Array:
    q = _binary_miss(x, t)
    ratio = jnp.where(q == 0, 1, binary_nll(x, t) / jnp.where(q == 0, 1, q))
    return _power(q, gamma) * (gamma * (sigmoid(-x) - sigmoid(x)) * ratio - x)


binary_focal = differentiable(
    _binary_focal_value,
    _binary_focal_slope,
    _binary_focal_target_slope,
    lambda x, t, gamma: xlogy(_binary_focal_value(x, t, gamma), _binary_miss(x, t)),
)
binary_focal.__doc__ = "q^gamma times `binary_nll`, q the probability given to the wrong side; t in [0, 1]."
