"""The overlap of soft regions: what is missed, beside what is met, each as a sum of terms >= 0.

Dice, Tversky and Jaccard coefficients are h / (h + m): h is what prediction and target share, m what only one of them
has. A loss 1 - h / (h + m) has no digit left on a good image; m / (h + m) has all of them, if m itself is never a
difference: p (1 - t) + (1 - p) t, with 1 - p from the other side's logit or from the other classes' exponentials.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.numerics import apart, differentiable, scale_exponent, widen
from jaxloss.core.types import Array

__all__ = ["binary_overlap", "class_overlaps", "inverse_square_weights", "missed_part"]


def _ratio(part: Array, whole: Array) -> Array:
    """part / whole, and 0 where there is nothing."""
    empty = whole == 0
    return jnp.where(empty, 0, part / jnp.where(empty, 1, whole))


# Both slopes written down: that of m / (h + m) in m would be 1 / (h + m) - m / (h + m)^2, whose terms cancel where
# next to nothing is met.
_part_of_sum = differentiable(
    lambda missed, met: _ratio(missed, met + missed),
    lambda missed, met: _ratio(_ratio(met, met + missed), met + missed),
    lambda missed, met: -_ratio(_ratio(missed, met + missed), met + missed),
)


def missed_part(missed: Array, met: Array) -> Array:
    """missed / (met + missed) for two numbers >= 0; 0, with zero slopes, where both are 0."""
    # A power of two, which cancels: the second slopes of sums of 1e-20 leave float32, where those in logits do not.
    scale = scale_exponent(missed + met, ())
    return _part_of_sum(missed / scale, met / scale)


def _inside_slope(x: Array) -> Array:
    # Taken apart, so that neither probability is kept for it: both are cheaper made again.
    (x,) = apart(x)
    return _inside(x) * _inside(-x)


# Not the sigmoid of core/formulas.py, whose selects XLA's CPU would write out: here no side of 0 needs one. Where
# exp(-x) overflows, the probability is below the smallest normal number.
_inside = differentiable(lambda x: 1 / (1 + jnp.exp(-x)), _inside_slope)


def binary_overlap(
    z: Array, t: Array, alpha: Array, beta: Array, axis: int | tuple[int, ...], valid: Array | None
) -> tuple[Array, Array]:
    """Over `axis`, of pixels inside with probability sigmoid(z): alpha FP + beta FN, and the intersection."""
    z, t = widen(z), widen(t)
    p, q = _inside(z), _inside(-z)
    return _sums(p, q, t, alpha, beta, axis, valid)


def class_overlaps(
    z: Array, t: Array, alpha: Array, beta: Array, axis: int, pixels: tuple[int, ...], valid: Array | None
) -> tuple[Array, Array]:
    """The same over `pixels` for each class of `axis`, from softmax(z); `valid` has size 1 along `axis`."""
    p, q, _ = _softmax_and_rest(z, axis)
    return _sums(p, q, widen(t), alpha, beta, pixels, valid)


def _sums(
    p: Array, q: Array, t: Array, alpha: Array, beta: Array, axis: int | tuple[int, ...], valid: Array | None
) -> tuple[Array, Array]:
    missed, met = _in_one_kernel(alpha * (p * (1 - t)) + beta * (q * t)), p * t
    if valid is not None:
        missed, met = jnp.where(valid, missed, 0), jnp.where(valid, met, 0)
    return jnp.sum(missed, axis=axis), jnp.sum(met, axis=axis)


def inverse_square_weights(sizes: Array) -> Array:
    """1 / size^2 over the last axis, scaled to a mean of 1 over sizes above 0; the others get 0, unless all are 0."""
    there = sizes > 0
    some = jnp.any(there, axis=-1, keepdims=True)
    # In units of the smallest, which cancel: neither the square of a million pixels nor that of 1e-20 leaves float32.
    least = jnp.min(jnp.where(there, lax.stop_gradient(sizes), jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
    least = jnp.where(some, least, 1)
    each = jnp.where(there, 1 / jnp.square(jnp.where(there, sizes, least) / least), 0)
    count = jnp.sum(there, axis=-1, keepdims=True, dtype=sizes.dtype)
    total = jnp.sum(each, axis=-1, keepdims=True)
    return jnp.where(some, each * (count / jnp.where(some, total, 1)), 1)


@jax.custom_jvp
def _in_one_kernel(x: Array) -> Array:
    """x as it is.

    A sum over a longer expression is slow on XLA's CPU, one pass an operation; what ends in a select is computed in
    one pass of its own, three times as fast, and then summed.
    """
    return jnp.where(x == jnp.inf, jnp.inf, x)


@_in_one_kernel.defjvp
def _in_one_kernel_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _in_one_kernel(*primals), tangents[0]


def _two_sums(x: Array, y: Array, axis: int) -> tuple[Array, Array]:
    """Both over `axis`, which stays with size 1, in one pass: as real and imaginary part."""
    total = jnp.sum(lax.complex(x, y), axis=axis, keepdims=True)
    return jnp.real(total), jnp.imag(total)


def _is_sure(p: Array) -> Array:
    """Which class has more than two thirds; up to there 1 - p loses nothing."""
    return p > 0.6875


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_and_rest(z: Array, axis: int) -> tuple[Array, Array, Array]:
    """softmax(z), 1 - softmax(z), and what a sure class leaves to all others, of size 1 along `axis`."""
    z = widen(z)
    e = jnp.exp(z - jnp.max(z, axis=axis, keepdims=True, initial=-jnp.inf))
    # Beside a sure class no e is above 1/2, and its own is 1: so the second sum is that of the others.
    total, others = _two_sums(e, jnp.minimum(e, 1 - e), axis)
    p, rest = e / total, others / total
    return p, jnp.where(_is_sure(p), rest, 1 - p), rest


@_softmax_and_rest.defjvp
def _softmax_and_rest_rule(
    axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    (z,), (dz,) = primals, tangents
    p, q, rest = _softmax_and_rest(z, axis)
    # p_j (dz_j - sum_c p_c dz_c), but that what a sure class gets is what the others lose: both ways of reading these
    # lines, by columns (forward) and by rows (reverse), subtract nothing that is nearly equal.
    sure, dz = _is_sure(p), widen(dz)
    pulls, unsure, own = p * dz, jnp.where(sure, 0, p), sure.astype(p.dtype)
    mean, of_unsure = _two_sums(pulls, jnp.where(sure, 0, pulls), axis)
    # In one array, so that its transpose is one sum too.
    both = jnp.broadcast_to(lax.complex(mean, rest * mean - of_unsure), p.shape)
    dp = unsure * dz - unsure * jnp.real(both) + own * jnp.imag(both)
    return (p, q, rest), (dp, -dp, of_unsure - rest * mean)
