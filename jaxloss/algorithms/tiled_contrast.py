"""Rows against columns, a few rows at a time: what is kept of a similarity matrix is one number a row and a column.

No matrix [N, M] is ever held, neither for the value nor for the gradient, which makes each tile again: four products
where a held matrix takes three. The memory is that of the inputs, of their gradients, and of one tile.
(Cheng et al. 2024, Breaking the memory barrier, arXiv:2410.17243.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import mesh_size, nothing
from jaxloss.core.numerics import unit, widen
from jaxloss.core.types import Array

__all__ = [
    "Keep",
    "Marks",
    "Plan",
    "Sums",
    "alike",
    "log_sum",
    "log_sums",
    "of_rows",
    "others",
    "own",
    "plan_for",
    "ready",
    "unlike",
]

_TILE = 2**21  # similarities of a tile; no more than that are not worth a loop
_SHORTEST = 128  # rows of a tile: each adds to the whole gradient of the columns


class Marks(NamedTuple):
    """Who a row or column is."""

    place: Array  # [n] int: where it stands in the batch; -1: it is nobody's own
    present: Array  # [n] bool
    label: Array | None = None  # [n] int


Keep = Callable[[Marks, Marks], Array]


def others(row: Marks, column: Marks) -> Array:
    """Every pair but a row with its own column."""
    return _present(row, column) & ~own(row, column)


def own(row: Marks, column: Marks) -> Array:
    """Each row with its own column."""
    return row.place[:, None] == column.place[None, :]


def unlike(row: Marks, column: Marks) -> Array:
    """The pairs of different labels."""
    return _present(row, column) & ~_same_label(row, column)


def alike(row: Marks, column: Marks) -> Array:
    """The pairs of one label, but a row with itself."""
    return others(row, column) & _same_label(row, column)


def _present(row: Marks, column: Marks) -> Array:
    return row.present[:, None] & column.present[None, :]


def _same_label(row: Marks, column: Marks) -> Array:
    assert row.label is not None
    assert column.label is not None
    return row.label[:, None] == column.label[None, :]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How it is computed: what of it is known when compiling."""

    chunks: int
    cosine: bool
    columns: bool = False  # whether the columns' sums are wanted too
    strided: bool = False  # a chunk takes every chunks-th row, and so as many of each device; else neighbours: no copy


def plan_for(rows: Array, columns: Array, *, cosine: bool, both: bool = False) -> Plan:
    """The plan of rows [n, D] against columns [M, D]."""
    n, m = rows.shape[0], columns.shape[0]
    devices = mesh_size([rows])
    longest = max(_TILE * devices // max(m, 1), _SHORTEST)
    least = max(-(-n // longest), 1)
    # Equal chunks, if not many more are needed for it: what is filled up is multiplied in vain.
    even = (c for c in range(least, 2 * least + 1) if n % (c * devices) == 0)
    return Plan(next(even, least), cosine, both, devices > 1)


def ready(cosine: bool, x: Array) -> Array:
    """Vectors of which the dot product is the similarity."""
    return unit(widen(x), -1) if cosine else widen(x)


def _scores(plan: Plan, rows: Array, columns: Array, factor: Array) -> Array:
    # The rows are made ready tile by tile: whole they would be a copy, and so would their gradient.
    x = ready(plan.cosine, rows) * factor
    return lax.dot_general(x, columns, (((1,), (1,)), ((), ())), precision="highest")


# --- Sums of exponentials -----------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """The logsumexp of what each row sees, and of what each column sees: very low where that is nothing."""

    rows: Array  # [n]
    own: Array  # [n], the score of the row's own column; 0 if that is not among these
    columns: Array | None  # [M]


def _lowest(dtype: jnp.dtype) -> float:
    # Finite, so that two of them have a difference.
    return float(jnp.finfo(dtype).min)


def _log(top: Array, total: Array) -> Array:
    empty = total == 0
    return jnp.where(empty, _lowest(top.dtype), top + jnp.log(jnp.where(empty, 1, total)))


def log_sum(s: Array) -> Array:
    """The logsumexp of each row of a tile, very low where nothing is kept: what is not is -inf."""
    top = jnp.maximum(jnp.max(lax.stop_gradient(s), axis=1, initial=-jnp.inf), _lowest(s.dtype))
    return _log(top, jnp.sum(jnp.exp(s - top[:, None]), axis=1))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def log_sums(
    plan: Plan, keep: Keep, rows: Array, columns: Array, factor: Array, row_marks: Marks, column_marks: Marks
) -> Sums:
    """The logsumexp of the scaled similarities that `keep` keeps, of each row and perhaps of each column; the own one.

    Rows [n, D] come as they are, columns [M, D] `ready`.
    """
    rows, start = widen(rows), nothing((rows, columns, factor, row_marks, column_marks)).astype(columns.dtype)
    none = jnp.zeros((columns.shape[0],), columns.dtype) + start
    empty = (none + _lowest(none.dtype), none) if plan.columns else None

    def step(seen: Any, chunk: tuple[Array, Marks]) -> tuple[Any, tuple[Array, Array]]:
        x, marks = chunk
        s = _scores(plan, x, columns, factor)
        mine = jnp.sum(jnp.where(own(marks, column_marks), s, 0), axis=1)
        # Behind the barrier the compiler sums a finished array, which it does fast.
        s = lax.optimization_barrier(jnp.where(keep(marks, column_marks), s, -jnp.inf))
        found = log_sum(s), mine
        if seen is None:
            return None, found
        before, total = seen
        top = jnp.maximum(before, jnp.max(s, axis=0, initial=-jnp.inf))
        return (top, total * jnp.exp(before - top) + jnp.sum(jnp.exp(s - top[None]), axis=0)), found

    seen, (found, mine) = _in_chunks(plan, step, empty, (rows, row_marks))
    return Sums(found, mine, None if seen is None else _log(*seen))


@log_sums.defjvp
def _log_sums_rule(plan: Plan, keep: Keep, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Sums, Sums]:
    rows, columns, factor, row_marks, column_marks = primals
    d_rows, d_columns, d_factor = tangents[:3]
    sums = log_sums(plan, keep, *primals)
    start = nothing((rows, columns, factor, row_marks, column_marks)).astype(columns.dtype)
    none = jnp.zeros((columns.shape[0],), columns.dtype) + start if plan.columns else None

    def tile(
        chunk: tuple[Array, Array, Marks, Array], shared: tuple[Array, Array, Array, Array], column_sums: Array | None
    ) -> tuple[Array, Array, Array | None]:
        x, dx, marks, row_sums = chunk
        columns, d_columns, factor, d_factor = shared
        s, ds = jax.jvp(partial(_scores, plan), (x, columns, factor), (dx, d_columns, d_factor))
        mine = jnp.sum(jnp.where(own(marks, column_marks), ds, 0), axis=1)
        s = jnp.where(keep(marks, column_marks), s, -jnp.inf)
        by_row = jnp.sum(jnp.exp(s - row_sums[:, None]) * ds, axis=1)
        by_column = None if column_sums is None else jnp.sum(jnp.exp(s - column_sums[None]) * ds, axis=0)
        return by_row, mine, by_column

    def step(total: Array | None, chunk: Any) -> tuple[Array | None, tuple[Array, Array]]:
        each = tile if plan.chunks == 1 else jax.checkpoint(tile, prevent_cse=False)
        by_row, mine, by_column = each(chunk, (columns, d_columns, factor, d_factor), sums.columns)
        return (None if total is None or by_column is None else total + by_column), (by_row, mine)

    by_column, (by_row, mine) = _in_chunks(plan, step, none, (widen(rows), widen(d_rows), row_marks, sums.rows))
    return sums, Sums(by_row, mine, by_column)


# --- Whole rows ---------------------------------------------------------------------------------------------------


def of_rows(
    plan: Plan,
    formula: Callable[..., Array],
    rows: Array,
    columns: Array,
    factor: Array,
    row_marks: Any,
    column_marks: Marks,
    *more: Array,
) -> Array:
    """`formula(scores [t, M], row_marks, column_marks, *more)` -> [t] or [t, K], whose tiles are made again.

    `row_marks` is any tree of arrays [n, ...]: the formula gets those of its rows.
    """

    def tile(x: Array, marks: Any, shared: tuple[Array, ...]) -> Array:
        columns, factor, *more = shared
        return formula(_scores(plan, x, columns, factor), marks, column_marks, *more)

    def step(_: None, chunk: tuple[Array, Any]) -> tuple[None, Array]:
        each = tile if plan.chunks == 1 else jax.checkpoint(tile, prevent_cse=False)
        return None, each(*chunk, (columns, factor, *more))

    return _in_chunks(plan, step, None, (widen(rows), row_marks))[1]


def _in_chunks(plan: Plan, step: Callable[[Any, Any], tuple[Any, Any]], start: Any, rows: Any) -> tuple[Any, Any]:
    """`lax.scan` over chunks of rows, whose results are joined again."""
    if plan.chunks == 1:
        return step(start, rows)
    count = jax.tree.leaves(rows)[0].shape[0]
    length = -(-count // plan.chunks)

    def cut(x: Array) -> Array:
        if length * plan.chunks != count:
            x = jnp.pad(x, [(0, length * plan.chunks - count)] + [(0, 0)] * (x.ndim - 1))
        if plan.strided:
            return x.reshape(length, plan.chunks, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(plan.chunks, length, *x.shape[1:])

    def whole(x: Array) -> Array:
        x = x.swapaxes(0, 1) if plan.strided else x
        return x.reshape(-1, *x.shape[2:])[:count]

    last, found = lax.scan(step, start, jax.tree.map(cut, rows))
    return last, jax.tree.map(whole, found)
