"""Divergences of two models' next tokens, from hidden states and kernels: the logits of some rows at a time.

A weighted total's gradient is made with its value, from the logits of a chunk of rows: student's and teacher's are made
once. Any further derivative, and any of the rows, makes them again.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import (
    Blocks,
    class_pieces,
    dot,
    in_auto_mode,
    kernel_slope,
    mesh_size,
    nothing,
    numbers,
    repeat,
    row_chunks,
    row_pieces,
    rows_in_order,
)
from jaxloss.algorithms.linear_divergences import Formula, forward, jensen_shannon, reverse, top_k
from jaxloss.algorithms.linear_totals import Losses, largest, total
from jaxloss.core.numerics import widen
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
    coefficients: Array | None,
    *,
    divergence: Literal["forward", "reverse", "jensen_shannon"],
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    """The divergence of each row, [...], at the temperature and times its square; no gradient to the teacher.

    With `coefficients` [...] the sum of these, each times its coefficient: [].
    """
    formula = {"forward": forward, "reverse": reverse, "jensen_shannon": jensen_shannon}[divergence]
    given = jax.tree.map(lax.stop_gradient, teacher)
    return _by_rows(formula, student, _Given(given, ()), temperature, coefficients, transposed, chunk_rows)


def distilled_from_top_k(
    student: Layer,
    log_probabilities: Array,
    labels: Array,
    temperature: Array | None,
    coefficients: Array | None,
    *,
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    """The same against the teacher's K best classes [..., K], labels in range, and one bucket for all others."""
    given = _Given(None, (lax.stop_gradient(widen(log_probabilities)), labels.astype(jnp.int32)))
    return _by_rows(top_k, student, given, temperature, coefficients, transposed, chunk_rows)


class _Given(NamedTuple):
    """What has no gradient: a teacher, or what is left of one, an array a row."""

    teacher: Layer | None
    kept: tuple[Array, ...]


class _Student(NamedTuple):
    """What the divergence is a function of."""

    hidden: Array
    kernel: Array
    bias: Array | None
    temperature: Array | None


def _by_rows(
    formula: Formula,
    student: Layer,
    given: _Given,
    temperature: Array | None,
    coefficients: Array | None,
    transposed: bool,
    chunk_rows: int | None,
) -> Array:
    arrays = jax.tree.leaves((student, given.teacher, coefficients))
    devices = mesh_size(arrays)

    def rows(student: _Student, given: _Given, coefficients: Array | None) -> Array:
        shape = student.hidden.shape[:-1]
        flat = student._replace(hidden=_flat(student.hidden))
        teacher = None if given.teacher is None else given.teacher._replace(hidden=_flat(given.teacher.hidden))
        fixed = _Given(teacher, tuple(_flat(x) for x in given.kept))
        classes = student.kernel.shape[0 if transposed else 1]
        count, features = flat.hidden.shape
        chunks = row_pieces(count, features, classes, devices=devices, chunk_rows=chunk_rows)
        engine = _Divergence(formula, transposed, chunks, class_pieces(count, classes, devices=devices))
        if coefficients is None:
            return engine.plain(flat, fixed).reshape(shape)
        return total(engine, flat, coefficients.reshape(-1), fixed).whole

    call = in_auto_mode(rows, arrays, student.hidden if coefficients is None else None)
    return call(_Student(*student, temperature), given, coefficients)


class _Divergence(NamedTuple):
    """A divergence as an `Engine`."""

    formula: Formula  # of the student's logits, the teacher's, and what is kept of him
    transposed: bool
    chunks: int
    blocks: Blocks  # of classes, in the product that gives the kernel's slope

    @property
    def axis_name(self) -> None:
        return None

    def value(self, z: Array, t: Array | None, kept: list[Array], temperature: Array | None) -> Array:
        """Of logits before the temperature divides them."""
        logits = [z] if t is None else [z, t]
        if temperature is None:
            return self.formula(*logits, *kept)
        return self.formula(*(x / temperature for x in logits), *kept) * jnp.square(temperature)

    def logits(self, layer: Layer | _Student, x: Array, dtype: Any) -> Array:
        z = dot(x.astype(dtype), layer.kernel.astype(dtype), (1, 1 if self.transposed else 0))
        return z if layer.bias is None else z + layer.bias.astype(z.dtype)[None]

    def cut(self, given: _Given) -> list[Array]:
        rows = ([] if given.teacher is None else [given.teacher.hidden]) + [*given.kept]
        return [row_chunks(x, self.chunks) for x in rows]

    def others(self, given: _Given, pieces: list[Array]) -> tuple[Array | None, list[Array]]:
        """The teacher's logits for a chunk, and what is kept of him."""
        if given.teacher is None:
            return None, pieces
        y = numbers(pieces[0], given.teacher.hidden.dtype)
        return self.logits(given.teacher, y, _common(given.teacher)), pieces[1:]

    def rows(self, student: _Student, given: _Given) -> Losses:
        return Losses(self.plain(student, given), None)

    def plain(self, student: _Student, given: _Given) -> Array:
        # Wide, so that what the chunks add to the kernel's gradient is added in float32; and bits have no gradient.
        dtype, learning = _common(student), student._replace(kernel=widen(student.kernel))

        @jax.checkpoint
        def chunk(learning: _Student, given: _Given, x: Array, pieces: list[Array]) -> Array:
            z = self.logits(learning, x, dtype)
            return self.value(z, *self.others(given, pieces), learning.temperature)

        pieces = row_chunks(widen(student.hidden), self.chunks), self.cut(given)
        if self.chunks == 1:
            found = chunk(learning, given, *jax.tree.map(lambda x: x[0], pieces))[None]
        else:
            found = lax.scan(lambda _, x: (None, chunk(learning, given, *x)), None, pieces)[1]
        return rows_in_order(found, student.hidden.shape[0])

    def gradient(
        self, needed: tuple[bool, ...], student: _Student, coefficients: Array, given: _Given
    ) -> tuple[Losses, tuple[Array | None, ...]]:
        need, dtype, blocks = _Need(*needed), _common(student), self.blocks
        axis = 0 if self.transposed else 1
        wide = coefficients.dtype  # float32, or wider if anything is
        zero = nothing((student, coefficients, given)).astype(wide)
        # A half-precision slope of 1e-3 / N would underflow: slopes are taken for coefficients up to 1.
        size = largest(coefficients) if dtype.itemsize == 2 else jnp.ones((), wide)
        kernel, weights = student.kernel.astype(dtype), row_chunks(coefficients / size, self.chunks)
        hidden, others = row_chunks(student.hidden.astype(dtype), self.chunks), self.cut(given)
        turned = jnp.swapaxes(hidden, 1, 2)

        def chunk(k: Any, carry: tuple[Array, _Slopes]) -> tuple[Array, _Slopes]:
            losses, slopes = carry
            x, weight = numbers(hidden[k], dtype), weights[k]
            z = self.logits(student, x, dtype)
            against = self.others(given, [x[k] for x in others])

            def value(z: Array, temperature: Array | None) -> Array:
                return self.value(z, *against, temperature).astype(wide)

            found, pull = jax.vjp(value, z, student.temperature)
            g, bend = pull(weight)
            # A row that does not count may be one whose slope is not finite.
            g = jnp.where((weight == 0)[:, None], 0, g)
            if slopes.temperature is not None:
                slopes = slopes._replace(temperature=slopes.temperature + bend)
            if slopes.bias is not None:
                slopes = slopes._replace(bias=slopes.bias + jnp.sum(g, axis=0))
            g = lax.optimization_barrier(g.astype(dtype))
            if slopes.hidden is not None:
                slopes = slopes._replace(hidden=slopes.hidden.at[k].set(dot(g, kernel, (1, axis))))
            if slopes.kernel is not None:
                split = blocks.split(g, 1)

                def grow(j: Any, whole: Array) -> Array:
                    part, fresh = blocks.take(split, j, 1), blocks.fresh(j)
                    part = part if fresh is None else jnp.where(fresh, part, jnp.zeros((), dtype))
                    new = kernel_slope(self.transposed, x, numbers(turned[k], dtype), part)
                    return blocks.put(whole, blocks.take(whole, j, axis) + new, j, axis)

                slopes = slopes._replace(kernel=repeat(blocks.count, grow, slopes.kernel))
            return losses.at[k].set(found), slopes

        def zeros(wanted: bool, *shape: int) -> Array | None:
            return jnp.zeros(shape, wide) + zero if wanted else None

        start = _Slopes(
            zeros(need.hidden, *hidden.shape), zeros(need.kernel, *blocks.split(kernel, axis).shape),
            zeros(need.bias, blocks.classes), zeros(need.temperature),
        )  # fmt: skip
        losses, slopes = repeat(self.chunks, chunk, (jnp.zeros(weights.shape, wide) + zero, start))
        count = student.hidden.shape[0]
        slopes = slopes._replace(
            hidden=None if slopes.hidden is None else rows_in_order(slopes.hidden, count),
            kernel=None if slopes.kernel is None else blocks.merged(slopes.kernel, axis),
        )
        slopes = jax.tree.map(lambda x: x * size, slopes)
        return Losses(rows_in_order(losses, count), None), tuple(slopes)


class _Need(NamedTuple):
    """Of what in a `_Student` the slope is needed."""

    hidden: bool
    kernel: bool
    bias: bool
    temperature: bool


class _Slopes(NamedTuple):
    """The gradient's parts while they grow; None where they are not needed."""

    hidden: Array | None
    kernel: Array | None
    bias: Array | None
    temperature: Array | None


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _common(layer: Layer | _Student) -> jnp.dtype:
    return jnp.promote_types(layer.hidden.dtype, layer.kernel.dtype)
