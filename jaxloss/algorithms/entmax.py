"""Sparse softmax: the threshold by Newton's method without sorting, and the loss without cancellation.

entmax of order alpha gives p_j = [a_j - tau]_+^(1 / (alpha - 1)), a = (alpha - 1)(z - max z), with tau in [-1, 0) such
that p sums to 1. The sum is convex and falling in tau, so Newton from tau = -1 climbs to the root and never passes it.
(Peters, Niculae and Martins 2019; Blondel, Martins and Niculae 2020.)
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.sharding import is_label, take_label
from jaxloss.core.types import Array

__all__ = ["entmax_nll", "entmax_probabilities"]

_STEPS = 200  # a bound only: 4 to 8 are usual, alpha near 1 needs more


def _shifted(z: Array, alpha: float, axis: int) -> Array:
    return (alpha - 1) * (z - jnp.max(lax.stop_gradient(z), axis=axis, keepdims=True, initial=-jnp.inf))


def _powers(a: Array, tau: Array, alpha: float) -> tuple[Array, Array]:
    """p and its derivative's size |dp / d tau|, for every entry of the support; 0 elsewhere."""
    above = a - tau
    inside = above > 0
    base = jnp.where(inside, above, 1)
    r = 1 / (alpha - 1)
    slope = jnp.where(inside, r * jnp.power(base, r - 1), 0)
    return jnp.where(inside, jnp.power(base, r), 0), slope


def _threshold(a: Array, alpha: float, axis: int) -> Array:
    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tau, _, count = carry
        p, slope = _powers(a, tau, alpha)
        excess = jnp.sum(p, axis=axis, keepdims=True) - 1
        higher = tau + excess / jnp.sum(slope, axis=axis, keepdims=True)
        moved = higher > tau  # False at the root, where rounding ends the climb, and for nan
        return jnp.where(moved, higher, tau), moved, count + 1

    def climbing(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, count = carry
        return jnp.any(moved) & (count < _STEPS)

    # Made from the input, so that the loop also runs where the input varies over a mesh axis.
    start = jnp.sum(jnp.zeros_like(a), axis=axis, keepdims=True) - 1
    tau, _, _ = lax.while_loop(climbing, step, (start, start < 0, jnp.zeros((), jnp.int32)))
    return tau


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def entmax_probabilities(z: Array, alpha: float, axis: int) -> Array:
    """The distribution that entmax gives to scores, exactly 0 far below the maximum; alpha = 2 is sparsemax."""
    a = _shifted(z, alpha, axis)
    return _powers(a, _threshold(a, alpha, axis), alpha)[0]


@entmax_probabilities.defjvp
def _probabilities_rule(alpha: float, axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p = entmax_probabilities(z, alpha, axis)
    inside = p > 0
    s = jnp.where(inside, jnp.power(jnp.where(inside, p, 1), 2 - alpha), 0)
    mean = jnp.sum(s * dz, axis=axis, keepdims=True) / jnp.sum(s, axis=axis, keepdims=True)
    return p, s * (dz - mean)


def _own_part(o: Array, w: Array, alpha: float) -> Array:
    """1 - w (1 + (alpha - 1) o), about alpha (alpha - 1) o^2 / 2, where w = p_label^(alpha - 1), o = 1 - p_label.

    w comes from the threshold, not from o: near p_label = 0 the power would turn an error of 1e-7 into one of 3e-4.
    """
    if alpha == 2.0:
        return o * o
    if alpha == 1.5:
        return 0.5 * jnp.square(o / (1 + w)) * (w + 2)
    # The binomial series in o up to 1/2; beyond, the plain form has no leading digits to lose.
    terms = 52 if o.dtype == jnp.float64 else 26
    beta = alpha - 1
    powers = [1.0]
    for k in range(1, terms):
        powers.append(-powers[-1] * (beta - k + 1) / k)
    near = jnp.minimum(o, 0.5)
    series = jnp.zeros_like(o)
    for k in reversed(range(2, terms)):
        series = series * near - (powers[k] + beta * powers[k - 1])
    return jnp.where(o <= 0.5, series * near * near, 1 - w * (1 + beta * o))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def entmax_nll(z: Array, labels: Array, alpha: float, axis: int) -> Array:
    """The entmax loss of scores (float32 or wider) and labels in range, with `axis` consumed.

    <p, z> - z_label + (1 - sum p^alpha) / (alpha (alpha - 1)) is a difference of large numbers. With o = 1 - p_label,
    taken as the sum of the others, it is a sum of three terms >= 0:
    ((alpha - 1) sum over others of p^alpha  +  own part of o  +  alpha [tau - a_label]_+) / (alpha (alpha - 1)).
    """
    a = _shifted(z, alpha, axis)
    tau = _threshold(a, alpha, axis)
    p, _ = _powers(a, tau, alpha)
    others = jnp.where(is_label(z, labels, axis), 0, p)
    o = jnp.minimum(jnp.sum(others, axis=axis, keepdims=True), 1)
    inside = others > 0
    powered = jnp.where(inside, jnp.power(jnp.where(inside, others, 1), alpha), 0)
    above = take_label(a, labels, axis) - tau
    own = _own_part(o, jnp.maximum(above, 0), alpha)
    parts = (alpha - 1) * jnp.sum(powered, axis=axis, keepdims=True) + own + alpha * jnp.maximum(-above, 0)
    return jnp.squeeze(parts / (alpha * (alpha - 1)), axis)


@entmax_nll.defjvp
def _nll_rule(
    alpha: float, axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (z, labels), (dz, _) = primals, tangents
    p = entmax_probabilities(z, alpha, axis)
    here = is_label(z, labels, axis)
    o = jnp.sum(jnp.where(here, 0, p), axis=axis, keepdims=True)
    return entmax_nll(z, labels, alpha, axis), jnp.sum(jnp.where(here, -o, p) * dz, axis=axis)
