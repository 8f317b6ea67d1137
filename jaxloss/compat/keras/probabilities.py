"""Losses of predicted probabilities, exact for all that a floating number can say.

Keras clips probabilities to [1e-7, 1 - 1e-7]. Here nothing is clipped within (0, 1), and the poles alone are bounded:
a probability of exactly 0 counts as the smallest normal number (-log of it is 87.3 in float32), and a complement
of exactly 0 as half of the last place of 1, which is the largest that rounds to 0 (17.3). There, and outside [0, 1],
the slope is 0, as in keras from 1e-7 on. So a sigmoid or softmax that saturates in float32 gives finite numbers, and
before it does, the right slope: p - t towards the logit, where keras has 0.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from jaxloss.core.formulas import focal
from jaxloss.core.numerics import differentiable, expm1, log1p
from jaxloss.core.sharding import is_label, take_label
from jaxloss.core.types import Array, ArrayLike
from jaxloss.losses.binary import binary_cross_entropy

__all__ = [
    "binary_nll",
    "class_nll",
    "focal_binary_nll",
    "focal_nll",
    "label_nll",
    "label_power",
    "logit_nll",
    "poisson_nll",
    "relative_entropy",
]


def _tiny(x: Array) -> float:
    return float(jnp.finfo(x.dtype).tiny)


# --- Two classes --------------------------------------------------------------------------------------------------


def binary_nll(p: Array, t: Array) -> Array:
    """-t log p - (1 - t) log(1 - p)."""
    return _binary(p, t, None)


def focal_binary_nll(p: Array, t: Array, gamma: ArrayLike) -> Array:
    """The same times q^gamma, q = t (1 - p) + (1 - t) p the probability given to the wrong side."""
    return _binary(p, t, jnp.asarray(gamma, p.dtype))


def _binary(p: Array, t: Array, gamma: Array | None) -> Array:
    # By what p is not: a nan belongs to the open interval, whose formula keeps it.
    low, high = p < _tiny(p), p >= 1
    within = jnp.where(low | high, 0.5, p)
    value = binary_cross_entropy(within, t, reduction="none")
    missed = jnp.where(low, t, 1 - t)
    if gamma is not None:
        value = jnp.power(t * (1 - within) + (1 - t) * within, gamma) * value
        missed = jnp.power(missed, gamma + 1)
    most = -math.log(_tiny(p)), -math.log(float(jnp.finfo(p.dtype).epsneg) / 2)
    return jnp.where(low | high, missed * jnp.where(low, *most), value)


# --- Several classes ----------------------------------------------------------------------------------------------


# log((p + r) / p), r what the other classes hold: no digit is lost where that is little, nor its square overflows.
_nll_beside = differentiable(
    lambda r, p: log1p(r / p),
    lambda r, p: 1 / (p + r),
    lambda r, p: -(r / p) / (p + r),
)


def _of_parts(rest: Array, p: Array, total: Array) -> Array:
    least = _tiny(p) * jnp.maximum(lax.stop_gradient(total), 1)
    value = _nll_beside(rest, jnp.where(p < least, jnp.broadcast_to(least, p.shape), p))
    return value * jnp.where(total > 0, 1, jnp.nan).astype(p.dtype)  # all zeros are no distribution


def class_nll(p: Array, axis: int) -> Array:
    """-log(p_j / sum p) of every class: [..., C] -> [..., C]."""
    top = is_label(p, jnp.argmax(lax.stop_gradient(p), axis=axis), axis)
    total = jnp.sum(p, axis=axis, keepdims=True)
    beside_top = jnp.sum(jnp.where(top, 0, p), axis=axis, keepdims=True)
    # Any other class has at most half of the total: the difference keeps its digits.
    return _of_parts(jnp.where(top, beside_top, total - p), p, total)


def label_nll(p: Array, labels: Array, axis: int) -> Array:
    """-log(p_label / sum p); `axis` is consumed, and the labels are in range."""
    own = jnp.squeeze(take_label(p, labels, axis), axis)
    rest = jnp.sum(jnp.where(is_label(p, labels, axis), 0, p), axis=axis)
    return _of_parts(rest, own, rest + own)


def logit_nll(z: Array, axis: int) -> Array:
    """-log softmax(z) of every class: [..., C] -> [..., C]."""
    top = is_label(z, jnp.argmax(lax.stop_gradient(z), axis=axis), axis)
    peak = jnp.sum(jnp.where(top, z, 0), axis=axis, keepdims=True)
    rest = jnp.sum(jnp.where(top, 0, jnp.exp(z - peak)), axis=axis, keepdims=True)
    return jnp.where(top, 0, peak - z) + log1p(rest)


def focal_nll(nll: Array, t: Array, gamma: ArrayLike) -> Array:
    """t (1 - exp(-nll))^gamma nll, and 0 where a class that is ruled out has no target."""
    nll = jnp.where((t == 0) & jnp.isinf(nll), 0, nll)
    return t * focal(nll, jnp.asarray(gamma, nll.dtype))


# (1 - p^q) / q
_power_gap = differentiable(
    lambda p, q: -expm1(q * jnp.log(p)) / q,
    lambda p, q: -jnp.power(p, q - 1),
    None,
)


def label_power(p: Array, labels: Array, q: float) -> Array:
    """(1 - p_label^q) / q over the last axis; 1 / q without a slope at p = 0."""
    own = jnp.squeeze(take_label(p, labels, p.ndim - 1), -1)
    none = own < _tiny(p)
    return jnp.where(none, 1 / q, _power_gap(jnp.where(none, 1, own), jnp.full(own.shape, q, p.dtype)))


# --- Divergences --------------------------------------------------------------------------------------------------


def _log_ratio_value(t: Array, p: Array) -> Array:
    near = jnp.abs(t - p) <= 0.5 * p
    return jnp.where(near, log1p(jnp.where(near, (t - p) / p, 0)), jnp.log(t / p))


_log_ratio = differentiable(_log_ratio_value, lambda t, p: 1 / t, lambda t, p: -1 / p)


def relative_entropy(t: Array, p: Array) -> Array:
    """t log(t / p) of each entry, both taken to lie in [0, 1]; 0 at t = 0."""
    tiny = _tiny(p)
    p = jnp.where(p < tiny, tiny, jnp.where(p > 1, 1, p))
    t = jnp.where(t > 1, 1, t)
    return jnp.where(t < tiny, 0, t * _log_ratio(jnp.where(t < tiny, 1, t), p))


# Keras adds this to a rate; at a rate of exactly 0 its slope stands here too, because a slope of 0 would leave a model
# there whose rates happen to start at 0, and the true one is infinite.
_LEAST_RATE = 1e-7


def _poisson_value(p: Array, t: Array) -> Array:
    none = jnp.abs(p) < _tiny(p)
    return p - jnp.where(t == 0, 0, t * jnp.log(jnp.where(none, _tiny(p), p)))


def _poisson_slope(p: Array, t: Array) -> Array:
    none = jnp.abs(p) < _tiny(p)
    slope = jnp.where(none, 1 - t / _LEAST_RATE, (p - t) / jnp.where(none, 1, p))
    return jnp.where(t == 0, 1, jnp.where(p <= -_tiny(p), jnp.nan, slope))


poisson_nll = differentiable(
    _poisson_value, _poisson_slope, lambda p, t: -jnp.log(jnp.where(jnp.abs(p) < _tiny(p), _tiny(p), p))
)
poisson_nll.__doc__ = "p - t log p for a rate p; nan for p < 0 < t."
