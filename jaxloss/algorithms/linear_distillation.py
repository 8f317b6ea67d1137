"""Divergences of two models' next tokens, from hidden states and kernels: the logits of some rows at a time.

Rows are scanned under `jax.checkpoint`: any derivative makes a chunk's logits again, and none holds more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import (
    dot,
    in_auto_mode,
    mesh_size,
    numbers,
    row_chunks,
    row_pieces,
    rows_in_order,
)
from jaxloss.core.numerics import differentiable, expm1, expm1_minus, log1p, widen
from jaxloss.core.types import Array

__all__ = ["Layer", "distilled", "distilled_from_top_k"]


class Layer(NamedTuple):
    """A model's last layer: hidden [..., D], kernel [D, V] or [V, D], bias [V]."""

    hidden: Array
    kernel: Array
    bias: Array | None


def distilled(
    student: Layer,
    teacher: Layer,
    temperature: Array | None,
    *,
    divergence: Literal["forward", "reverse", "jensen_shannon"],
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    """The divergence of each row, [...], at the temperature and times its square; no gradient to the teacher."""
    formula = {"forward": _forward, "reverse": _reverse, "jensen_shannon": _jensen_shannon}[divergence]
    given = jax.tree.map(lax.stop_gradient, teacher)
    return _by_rows(formula, student, given, (), temperature, transposed=transposed, chunk_rows=chunk_rows)


def distilled_from_top_k(
    student: Layer,
    log_probabilities: Array,
    labels: Array,
    temperature: Array | None,
    *,
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    """The same against the teacher's K best classes [..., K], labels in range, and one bucket for all others."""
    given = lax.stop_gradient(widen(log_probabilities)), labels.astype(jnp.int32)
    return _by_rows(_top_k, student, None, given, temperature, transposed=transposed, chunk_rows=chunk_rows)


def _by_rows(
    formula: Callable[..., Array],
    student: Layer,
    teacher: Layer | None,
    given: tuple[Array, ...],
    temperature: Array | None,
    *,
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    """`formula(student's logits, teacher's logits, *given)` of each row, times the temperature squared."""
    layers = [layer for layer in (student, teacher) if layer is not None]
    arrays = jax.tree.leaves(layers)

    def rows(student: Layer, teacher: Layer | None, given: tuple[Array, ...], temperature: Array | None) -> Array:
        shape = student.hidden.shape[:-1]
        flat = _flat(student.hidden)
        count, features = flat.shape
        classes = student.kernel.shape[0 if transposed else 1]
        chunks = row_pieces(count, features, classes, devices=mesh_size(arrays), chunk_rows=chunk_rows)
        # Wide, so that what the chunks add to the kernel's gradient is added in float32; and bits have no gradient.
        dtype, learning = _common(student), student._replace(hidden=flat, kernel=widen(student.kernel))
        pieces = [row_chunks(widen(flat), chunks)]
        if teacher is not None:
            pieces.append(row_chunks(_flat(teacher.hidden), chunks))
        pieces += [row_chunks(x.reshape(-1, x.shape[-1]), chunks) for x in given]

        @jax.checkpoint
        def chunk(learning: Layer, teacher: Layer | None, temperature: Array | None, pieces: list[Array]) -> Array:
            x, *others = pieces
            logits = [_logits(learning._replace(hidden=x), dtype, temperature, transposed=transposed)]
            if teacher is not None:
                y = numbers(others.pop(0), teacher.hidden.dtype)
                logits.append(_logits(teacher._replace(hidden=y), _common(teacher), temperature, transposed=transposed))
            found = formula(*logits, *others)
            return found if temperature is None else found * jnp.square(temperature)

        if chunks == 1:
            found = chunk(learning, teacher, temperature, [x[0] for x in pieces])[None]
        else:
            found = lax.scan(lambda _, x: (None, chunk(learning, teacher, temperature, x)), None, pieces)[1]
        return rows_in_order(found, count).reshape(shape)

    return in_auto_mode(rows, arrays, student.hidden)(student, teacher, given, temperature)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _common(layer: Layer) -> jnp.dtype:
    return jnp.promote_types(layer.hidden.dtype, layer.kernel.dtype)


def _logits(layer: Layer, dtype: Any, temperature: Array | None, *, transposed: bool) -> Array:
    z = dot(layer.hidden.astype(dtype), layer.kernel.astype(dtype), (1, 1 if transposed else 0))
    if layer.bias is not None:
        z = z + layer.bias.astype(z.dtype)[None]
    return z if temperature is None else z / temperature.astype(z.dtype)


# --- Divergences of rows of logits --------------------------------------------------------------------------------


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


def _forward(student: Array, teacher: Array) -> Array:
    a, b = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    return jnp.sum(_gap(jnp.exp(b), _difference(a, b), jnp.exp(a)), axis=1)


def _reverse(student: Array, teacher: Array) -> Array:
    return _forward(teacher, student)


def _jensen_shannon(student: Array, teacher: Array) -> Array:
    a, b = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    x, p, q = _difference(a, b), jnp.exp(b), jnp.exp(a)
    middle = 0.5 * (p + q)
    each = _gap(p, _towards_middle(x), middle) + _gap(q, _towards_middle(-x), middle)
    return 0.5 * jnp.sum(each, axis=1)


# log((1 + exp(x)) / 2), exactly 0 at 0.
_towards_middle = differentiable(
    lambda x: jnp.maximum(x, 0) + log1p(0.5 * expm1(-jnp.abs(x))),
    jax.nn.sigmoid,
)


def _top_k(student: Array, log_probabilities: Array, labels: Array) -> Array:
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
