"""Divergences of two models' rows of logits [N, V] -> [N], exact where the two are nearly equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloss.core.numerics import differentiable, expm1, expm1_minus, log1p
from jaxloss.core.types import Array

__all__ = ["Formula", "forward", "jensen_shannon", "reverse", "top_k"]

Formula = Callable[..., Array]


def _gap(p: Array, x: Array, q: Array) -> Array:
    """p log(p / q) - p + q, x = log(q / p): never negative, and of two nearly equal distributions it keeps the digits.

    Summed over distributions it is their divergence, and there an error of a whole row's x counts only squared.
    """
    alive = p != 0  # nan stays
    x = jnp.where(alive, x, 0)
    # Far out p exp(x) may overflow where q does not.
    value = jnp.where(x <= 1, p * expm1_minus(jnp.minimum(x, 1)), q - p * (1 + jnp.maximum(x, 1)))
    return jnp.where(alive, value, q)


def _difference(a: Array, b: Array) -> Array:
    """a - b, and 0 for two -inf."""
    absent = (a == -jnp.inf) & (b == -jnp.inf)
    return jnp.where(absent, 0, a) - jnp.where(absent, 0, b)


_Parts = tuple[Array, Array, Array]


def _from_slopes(parts: Callable[[Array, Array], _Parts]) -> Formula:
    """A divergence of logits from what `parts` makes of their logarithms: its value, and its slopes in both logits.

    Written out, a slope is one array; taken from the formula step by step, it would hold several.
    """

    def all_parts(student: Array, teacher: Array) -> _Parts:
        return parts(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))

    @jax.custom_jvp
    def value(student: Array, teacher: Array) -> Array:
        return all_parts(student, teacher)[0]

    def rule(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
        found, *slopes = all_parts(*primals)
        tangent = jnp.zeros_like(found)
        for slope, d in zip(slopes, tangents, strict=True):
            if not isinstance(d, SymbolicZero):
                tangent = tangent + jnp.sum(slope * d, axis=1)
        return found, tangent

    value.defjvp(rule, symbolic_zeros=True)
    return value


def _times(p: Array, x: Array) -> Array:
    """p x, and 0 where p is, whatever x."""
    alive = p != 0
    return jnp.where(alive, p * jnp.where(alive, x, 0), 0)


def _divergence(b: Array, a: Array) -> _Parts:
    """Of exp(b) from exp(a), with its slopes in the logits of both."""
    x, p, q = _difference(a, b), jnp.exp(b), jnp.exp(a)
    value = jnp.sum(_gap(p, x, q), axis=1)
    return value, -(_times(p, x) + p * value[:, None]), q - p


def _forward_parts(a: Array, b: Array) -> _Parts:
    value, of_teacher, of_student = _divergence(b, a)
    return value, of_student, of_teacher


def _jensen_shannon_parts(a: Array, b: Array) -> _Parts:
    x, p, q = _difference(a, b), jnp.exp(b), jnp.exp(a)
    middle = 0.5 * (p + q)
    to_p, to_q = _towards_middle(x), _towards_middle(-x)
    of_p, of_q = (jnp.sum(_gap(r, to, middle), axis=1) for r, to in ((p, to_p), (q, to_q)))
    of_student = -0.5 * (_times(q, to_q) + q * of_q[:, None])
    of_teacher = -0.5 * (_times(p, to_p) + p * of_p[:, None])
    return 0.5 * (of_p + of_q), of_student, of_teacher


# log((1 + exp(x)) / 2), exactly 0 at 0.
_towards_middle = differentiable(
    lambda x: jnp.maximum(x, 0) + log1p(0.5 * expm1(-jnp.abs(x))),
    jax.nn.sigmoid,
)


forward = _from_slopes(_forward_parts)
reverse = _from_slopes(_divergence)
jensen_shannon = _from_slopes(_jensen_shannon_parts)


def top_k(student: Array, log_probabilities: Array, labels: Array) -> Array:
    """Of a student's logits [N, V] from the K best classes of a teacher [N, K], and one bucket for all others."""
    rows = jnp.arange(student.shape[0])[:, None]
    b = log_probabilities.astype(student.dtype)
    best = jnp.take_along_axis(student, labels, axis=1)
    if labels.shape[1] == student.shape[1]:
        # No class is left for the bucket; what the rounding of the teacher's numbers leaves over is not mass.
        a = jax.nn.log_softmax(best)
        return jnp.sum(_gap(jnp.exp(b), _difference(a, b), jnp.exp(a)), axis=1)
    others = student.at[rows, labels].set(-jnp.inf)
    # The bucket's logit: 1 - sum q would have no digit left where the K have nearly all.
    a = jax.nn.log_softmax(jnp.concatenate([best, jax.nn.logsumexp(others, axis=1, keepdims=True)], axis=1))
    left = 1 - jnp.sum(jnp.exp(b), axis=1, keepdims=True)  # by rounding it may be below 0
    b = jnp.concatenate([b, jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)], axis=1)
    return jnp.sum(_gap(jnp.exp(b), _difference(a, b), jnp.exp(a)), axis=1)
