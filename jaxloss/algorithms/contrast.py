"""Rows' losses from their similarities to columns that may be gathered, or visit: never a matrix [N, M].

A row's own column is kept apart from the others, whose logsumexp is o: softplus(o - s_own) keeps the digits of a
confident row, in value and slope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import in_auto_mode
from jaxloss.algorithms.tiled_contrast import (
    Keep,
    Marks,
    alike,
    log_sum,
    log_sums,
    of_rows,
    others,
    own,
    plan_for,
    ready,
    unlike,
)
from jaxloss.algorithms.visits import brought_home, visits
from jaxloss.core.formulas import softplus
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, AxisName

__all__ = ["Options", "Side", "of_labels", "of_pairs", "own_among_all", "own_both_ways"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How rows meet columns."""

    cosine: bool
    axis_name: AxisName
    ring: bool

    @property
    def route(self) -> AxisName:
        """The mesh axes along which columns travel."""
        return self.axis_name if self.ring else None


class Side(NamedTuple):
    """Vectors and who they are."""

    vectors: Array  # [n, D]
    marks: Marks

    def ready(self, cosine: bool) -> Side:
        """The same, for the columns of a tile."""
        return Side(ready(cosine, self.vectors), self.marks)


def _in_auto_mode(formula: Callable[..., Array], rows: Side, *args: Any) -> Array:
    return in_auto_mode(formula, jax.tree.leaves((rows.vectors, args)), rows.vectors)(rows, *args)


def _row_sums(options: Options, keep: Keep, rows: Side, columns: Side, factor: Array) -> tuple[Array, Array]:
    """The logsumexp of what each row sees of all columns, which come as they are, and the score of its own."""

    def look(columns: Side) -> tuple[tuple[Array, Array], None]:
        side = columns.ready(options.cosine)
        plan = plan_for(rows.vectors, side.vectors, cosine=options.cosine)
        sums = log_sums(plan, keep, rows.vectors, side.vectors, factor, rows.marks, side.marks)
        return (sums.rows, sums.own), None

    found, mine = zip(*visits(options.route, columns, look)[0], strict=True)
    return reduce(jnp.logaddexp, found), _sum(mine)


def _sum(parts: Sequence[Array]) -> Array:
    return sum(parts[1:], parts[0])


def own_among_all(
    options: Options, rows: Side, columns: Side, more: Sequence[Side], extra: Array | None, factor: Array
) -> Array:
    """-log softmax of each row's own column among all.

    Args:
      options: how rows meet columns.
      rows: [n, D].
      columns: [M, D]; with a ring, those of this device.
      more: further columns, here on every device.
      extra: [n, K, D], columns that one row alone sees; None: there are none.
      factor: what similarities are multiplied by.
    """

    def formula(rows: Side, columns: Side, more: Sequence[Side], extra: Array | None, factor: Array) -> Array:
        # Once for all uses: their slopes are added before they are rounded.
        rows = rows._replace(vectors=widen(rows.vectors))
        found, mine = _row_sums(options, others, rows, columns, factor)
        here = dataclasses.replace(options, ring=False)
        for side in more:
            found = jnp.logaddexp(found, _row_sums(here, others, rows, side, factor)[0])
        if extra is not None:
            x = ready(options.cosine, rows.vectors)
            seen = jnp.einsum("nd,nkd->nk", x, ready(options.cosine, extra), precision="highest")
            found = jnp.logaddexp(found, log_sum(seen * factor))
        return softplus(found - mine)

    return _in_auto_mode(formula, rows, columns, tuple(more), extra, factor)


def own_both_ways(options: Options, rows: Side, columns: Side, factor: Array) -> Array:
    """The mean of -log softmax of each row's own column among all, and of that column's own row among all.

    With a ring, the columns are those of this device.
    """

    def formula(rows: Side, columns: Side, factor: Array) -> Array:
        def look(columns: Side) -> tuple[tuple[Array, Array], Array]:
            side = columns.ready(options.cosine)
            plan = plan_for(rows.vectors, side.vectors, cosine=options.cosine, both=True)
            sums = log_sums(plan, others, rows.vectors, side.vectors, factor, rows.marks, side.marks)
            assert sums.columns is not None
            return (sums.rows, sums.own), sums.columns

        found, by_column = visits(options.route, columns, look)
        by_row, mine = zip(*found, strict=True)
        if not options.ring:
            # Each device has seen its own rows only.
            by_column = list(brought_home(options.axis_name, by_column[0]))
        across, down, score = reduce(jnp.logaddexp, by_row), reduce(jnp.logaddexp, by_column), _sum(mine)
        return 0.5 * (softplus(across - score) + softplus(down - score))

    return _in_auto_mode(formula, rows, columns, factor)


# --- Labels -------------------------------------------------------------------------------------------------------


def _each_positive(s: Array, row: tuple[Marks, Array | None], column: Marks) -> Array:
    """The sum over a row's positives p of -log(exp(s_p) / (exp(s_p) + sum over negatives)), and their number."""
    marks, far = row
    if far is None:
        far = log_sum(jnp.where(unlike(marks, column), s, -jnp.inf))
    near = alike(marks, column)
    terms = softplus(far[:, None] - jnp.where(near, s, 0))
    return jnp.stack([jnp.sum(jnp.where(near, terms, 0), axis=1), jnp.sum(near, axis=1, dtype=s.dtype)], axis=1)


def _all_positives(s: Array, row: tuple[Marks, Array | None], column: Marks) -> Array:
    """The mean over a row's positives p of -log(exp(s_p) / sum over all others), and their number."""
    marks, _ = row
    near = alike(marks, column)
    far = log_sum(jnp.where(unlike(marks, column), s, -jnp.inf))
    value = softplus(far - log_sum(jnp.where(near, s, -jnp.inf))) + _spread(s, near)
    count = jnp.sum(near, axis=1, dtype=s.dtype)
    return jnp.stack([jnp.where(count > 0, value, 0), count], axis=1)


@jax.custom_jvp
def _spread(s: Array, near: Array) -> Array:
    """logsumexp - mean of the scores that are near."""
    return log_sum(jnp.where(near, s, -jnp.inf)) - jnp.sum(jnp.where(near, s, 0), axis=1) / _counted(s, near)


@_spread.defjvp
def _spread_rule(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (s, near), (ds, _) = primals, tangents
    kept = jnp.where(near, s, -jnp.inf)
    # Taken as one number: beside the small slope of a confident row, 1 - 1 would leave rounding where it should be 0.
    slope = jnp.exp(kept - log_sum(kept)[:, None]) - near / _counted(s, near)[:, None]
    return _spread(s, near), jnp.sum(slope * ds, axis=1)


def _counted(s: Array, near: Array) -> Array:
    return jnp.maximum(jnp.sum(near, axis=1, dtype=s.dtype), 1)


def _parts(s: Array, row: tuple[Marks, Array | None], column: Marks) -> Array:
    """The logsumexp of a row's negatives and that of its positives, their sum and their number."""
    marks, _ = row
    near = alike(marks, column)
    parts = [
        log_sum(jnp.where(unlike(marks, column), s, -jnp.inf)),
        log_sum(jnp.where(near, s, -jnp.inf)),
        jnp.sum(jnp.where(near, s, 0), axis=1),
        jnp.sum(near, axis=1, dtype=s.dtype),
    ]
    return jnp.stack(parts, axis=1)


def of_labels(
    options: Options, denominator: Literal["negatives", "all"], rows: Side, columns: Side, factor: Array
) -> tuple[Array, Array]:
    """The mean over a row's positives of -log softmax, and whether it has one.

    The softmax is over that positive and the negatives, or over all but the row itself.
    """

    def formula(rows: Side, columns: Side, factor: Array) -> Array:
        def of_each(terms: Callable[..., Array], far: Array | None = None) -> list[Array]:
            def look(columns: Side) -> tuple[Array, None]:
                side = columns.ready(options.cosine)
                plan = plan_for(rows.vectors, side.vectors, cosine=options.cosine)
                return of_rows(plan, terms, rows.vectors, side.vectors, factor, (rows.marks, far), side.marks), None

            return visits(options.route, columns, look)[0]

        if denominator == "negatives":
            far = _row_sums(options, unlike, rows, columns, factor)[0] if options.route else None
            total, count = jnp.unstack(_sum(of_each(_each_positive, far)), axis=1)
            return jnp.stack([total / jnp.maximum(count, 1), count], axis=1)
        if not options.route:
            return of_each(_all_positives)[0]
        found = [jnp.unstack(part, axis=1) for part in of_each(_parts)]
        far, near = (reduce(jnp.logaddexp, [part[k] for part in found]) for k in (0, 1))
        total, count = (_sum([part[k] for part in found]) for k in (2, 3))
        value = softplus(far - near) + (near - total / jnp.maximum(count, 1))
        return jnp.stack([jnp.where(count > 0, value, 0), count], axis=1)

    found = _in_auto_mode(formula, rows, columns, factor)
    return found[:, 0], lax.stop_gradient(found[:, 1]) > 0


# --- Pairs --------------------------------------------------------------------------------------------------------


def _each_pair(s: Array, row: Marks, column: Marks, bias: Array) -> Array:
    z = s + bias
    signed = jnp.where(own(row, column), -z, z)
    return jnp.sum(jnp.where(column.present[None, :], softplus(signed), 0), axis=1)


def of_pairs(options: Options, rows: Side, columns: Side, factor: Array, bias: Array) -> Array:
    """The sum over a row's pairs of softplus(-z) for the row's own and softplus(z) for the others, z = s + bias."""

    def formula(rows: Side, columns: Side, factor: Array, bias: Array) -> Array:
        def look(columns: Side) -> tuple[Array, None]:
            side = columns.ready(options.cosine)
            plan = plan_for(rows.vectors, side.vectors, cosine=options.cosine)
            return of_rows(plan, _each_pair, rows.vectors, side.vectors, factor, rows.marks, side.marks, bias), None

        return _sum(visits(options.route, columns, look)[0])

    return _in_auto_mode(formula, rows, columns, factor, bias)
