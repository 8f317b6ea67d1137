"""The triplets of a batch by its labels, one anchor's row of distances at a time: never a cube [N, N, N].

All triplets of an anchor are the pairs of its negatives and its positives. Their hinges reach up to a boundary in the
other kind's sorted distances, found by bisection, and sums of gaps give the rest; the soft form goes through the
positives where these are few, and else by the sweep of `sorted_pairs.py`. Semi-hard triplets take one negative for each
positive, found in the sorted distances; hard ones two columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.distances import distances
from jaxloss.algorithms.linear_blocks import in_auto_mode, mesh_size, row_chunks, rows_in_order
from jaxloss.algorithms.ordered import in_order
from jaxloss.algorithms.sorted_order import iota, taken
from jaxloss.algorithms.sorted_pairs import pair_total
from jaxloss.algorithms.tiled_contrast import Marks, alike, unlike
from jaxloss.core.formulas import sigmoid, softplus
from jaxloss.core.numerics import norm, scale_exponent, subtract
from jaxloss.core.types import Array

__all__ = ["Average", "Mining", "of_anchors"]

Mining: TypeAlias = Literal["all", "hard", "semi_hard"]
Average: TypeAlias = Literal["active", "all"]

_FEW_POSITIVES = 384  # of a row: beyond, sorting is faster
_ENTRIES = 2**17  # of the distances that are sorted at a time: a sweep holds dozens of such arrays


def of_anchors(
    mining: Mining,
    average: Average,
    rows: Array,
    columns: Array,
    row_marks: Marks,
    column_marks: Marks,
    margin: Array | None,
) -> tuple[Array, Array]:
    """The mean over each anchor's triplets, and whether it has one: [n, D] among [M, D] -> [n], [n].

    max(0, d_ap - d_an + margin), or log(1 + exp(d_ap - d_an)) without a margin. float32 or wider.
    """

    def formula(rows: Array, columns: Array, row_marks: Marks, column_marks: Marks, margin: Array | None) -> Array:
        rows, columns = (
            jnp.where(marks.present[:, None], x, 0) for x, marks in ((rows, row_marks), (columns, column_marks))
        )
        scale = scale_exponent(columns, (0, 1))
        seen = columns / scale
        # A CPU has a cache to stay in; elsewhere each chunk costs the launch of its kernels.
        entries = _ENTRIES * mesh_size([rows]) * (1 if jax.default_backend() == "cpu" else 4)
        chunks = max(1, rows.shape[0] * columns.shape[0] // entries)

        def of_chunk(chunk: tuple[Array, Marks]) -> Array:
            anchors, marks = chunk
            near, far = alike(marks, column_marks), unlike(marks, column_marks)
            if mining == "hard":
                value = _hardest(anchors, seen, scale[0], near, far, margin)
            else:
                length = scale * distances(anchors, seen)
                value = (_every if mining == "all" else _semi_hard)(average, length, near, far, margin)
            present = jnp.any(near, axis=1) & jnp.any(far, axis=1)
            return jnp.stack([jnp.where(present, value, 0), present.astype(value.dtype)], axis=1)

        whole = (rows / scale, row_marks)
        if chunks == 1:
            return of_chunk(whole)
        found = lax.map(of_chunk, jax.tree.map(lambda x: row_chunks(x, chunks), whole))
        return rows_in_order(found, rows.shape[0])

    if columns.shape[0] == 0:
        return jnp.sum(rows, axis=1), jnp.zeros_like(row_marks.present)
    leaves = jax.tree.leaves((rows, columns, row_marks, column_marks))
    found = in_auto_mode(formula, leaves, rows)(rows, columns, row_marks, column_marks, margin)
    return found[:, 0], lax.stop_gradient(found[:, 1]) > 0


def _over(total: Array, count: Array) -> Array:
    return total / jnp.maximum(count, 1)


def _unknown(length: Array, kept: Array) -> Array:
    """0, or nan where a distance is: an order hides it."""
    return 0 * jnp.sum(jnp.where(kept, length, 0), axis=1)


def _violation(margin: Array | None, near: Array, far: Array) -> Array:
    if margin is None:
        return softplus(near - far)
    violation = near - far + margin
    return jnp.where(violation <= 0, 0, violation)  # nan is not <= 0, and stays


# --- Every triplet ------------------------------------------------------------------------------------------------


def _every(average: Average, length: Array, near: Array, far: Array, margin: Array | None) -> Array:
    count = jnp.sum(near, axis=1, dtype=length.dtype) * jnp.sum(far, axis=1, dtype=length.dtype)
    if margin is None:  # none of them is 0
        return _over(_logistics(length, near, far)[0], count)
    total, active, _ = _hinges(length, margin, near, far)
    return _over(total, active if average == "active" else count)


@jax.custom_jvp
def _hinges(length: Array, margin: Array, near: Array, far: Array) -> tuple[Array, Array, Array]:
    """Each row's sum over its triplets, how many of them are active, and the sum's slopes, which are counts."""
    negatives, positives = _ascending(length, far), _ascending(length, near)
    # Of a positive the negatives up to an edge are active, of a negative the positives from an edge on.
    pulls = _leading(negatives, lambda negative: _active(negative, length, margin), near)
    passed = _leading(positives, lambda positive: ~_active(length, positive, margin), far)
    count = jnp.sum(near, axis=1, keepdims=True)
    pushes = jnp.where(far, count - passed, 0)
    # Sums of gaps are sums of terms >= 0; sums of distances would cancel.
    place = iota(near)
    gap = jnp.where((place > 0) & (place < count), positives - jnp.roll(positives, 1, axis=1), 0)
    beyond = lax.cumsum(gap * (count - place).astype(gap.dtype), axis=1, reverse=True)
    beyond = jnp.concatenate([beyond[:, 1:], 0 * beyond[:, :1]], axis=1)
    up = pushes > 0
    edge = jnp.where(up, taken(positives, passed), length)
    each = jnp.where(up, taken(beyond, passed) + pushes * (margin - (length - edge)), 0)
    slopes = (jnp.where(near, pulls, 0) - pushes).astype(length.dtype)
    return jnp.sum(each, axis=1) + _unknown(length, near | far), jnp.sum(pushes.astype(length.dtype), axis=1), slopes


@_hinges.defjvp
def _hinges_rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    d_length, d_margin = tangents[:2]
    total, active, slopes = _hinges(*primals)
    moved = jnp.sum(slopes * d_length, axis=1) + active * d_margin
    return (total, active, slopes), (moved, 0 * active, 0 * slopes)


def _active(negative: Array, positive: Array, margin: Array) -> Array:
    # Exactly, with what rounding dropped of the difference: a pair at the margin itself is not active.
    ahead, dropped = subtract(negative, positive)
    return (ahead < margin) | ((ahead == margin) & (dropped < 0))


@jax.custom_jvp
def _logistics(length: Array, near: Array, far: Array) -> tuple[Array, Array]:
    """Each row's sum over its triplets in the soft form, and its slopes."""
    few = jnp.max(jnp.sum(near, axis=1), initial=0) <= _FEW_POSITIVES
    return lax.cond(few, _by_positives, _sorted_logistics, length, near, far)


@_logistics.defjvp
def _logistics_rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    length, near, far = primals
    total, slopes = _logistics(*primals)
    # A loop of unknown length has no derivative in reverse: the other form of the slopes has.
    _, moved = jax.jvp(lambda length: _sorted_logistics(length, near, far)[1], (length,), (tangents[0],))
    return (total, slopes), (jnp.sum(slopes * tangents[0], axis=1), moved)


def _sorted_logistics(length: Array, near: Array, far: Array) -> tuple[Array, Array]:
    total, pull = jax.vjp(lambda x: pair_total("logistic", x, far.astype(x.dtype), near | far)[0], length)
    return total, pull(jnp.ones_like(total))[0]


def _by_positives(length: Array, near: Array, far: Array) -> tuple[Array, Array]:
    """One positive of each row after the other: where there are few, no sweep is as fast."""
    positives, count = _ascending(length, near), jnp.sum(near, axis=1, keepdims=True)

    def add(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        value, pulls, pushes = carry
        real = far & (k < count)
        z = jnp.where(real, lax.dynamic_slice_in_dim(positives, k, 1, axis=1) - length, 0)
        slope = jnp.where(real, sigmoid(z), 0)
        pull = jnp.sum(slope, axis=1, keepdims=True)
        pulls = lax.dynamic_update_slice_in_dim(pulls, pull, k, axis=1)
        return value + jnp.where(real, softplus(z), 0), pulls, pushes - slope

    start = 0 * length
    value, pulls, pushes = lax.fori_loop(0, jnp.max(count, initial=0), add, (start, start, start))
    place = _leading(positives, lambda positive: positive < length, near)
    # What is equal pulls alike, so the place of the first of equals will do.
    return jnp.sum(value, axis=1), jnp.where(near, taken(pulls, place), pushes)


# --- Order --------------------------------------------------------------------------------------------------------


def _ascending(length: Array, kept: Array) -> Array:
    """The distances that are kept, in order, then infinities."""
    return in_order(jnp.where(kept, length, jnp.inf))


def _leading(ordered: Array, passes: Callable[[Array], Array], like: Array) -> Array:
    """How many items of its row's list each entry passes, which are the first ones: by bisection."""
    size = ordered.shape[1]
    steps = size.bit_length()

    def longer(step: Array, reach: Array) -> Array:
        farther = reach + (1 << (steps - 1 - step))
        there = taken(ordered, jnp.minimum(farther, size) - 1)
        return jnp.where((farther <= size) & passes(there), farther, reach)

    return lax.fori_loop(0, steps, longer, 0 * iota(like))


# --- Mined ones ---------------------------------------------------------------------------------------------------


def _semi_hard(average: Average, length: Array, near: Array, far: Array, margin: Array | None) -> Array:
    negative = _next_beyond(lax.stop_gradient(length), far)
    each = jnp.where(near, _violation(margin, length, taken(length, negative)), 0)
    counted = near & (each > 0) if average == "active" and margin is not None else near
    return _over(jnp.sum(each, axis=1) + _unknown(length, near | far), jnp.sum(counted, axis=1, dtype=length.dtype))


def _next_beyond(length: Array, far: Array) -> Array:
    """For each column the nearest negative that is further, the first of equals; the farthest where there is none."""
    size = length.shape[1]
    ordered = _ascending(length, far)
    place = _leading(ordered, lambda negative: negative <= length, far)
    # Where negatives stand in order: of equal ones only the first has a place, and it is the place of the first.
    own = _leading(ordered, lambda negative: negative < length, far)
    column = jax.vmap(
        lambda place, kept, index: jnp.full_like(index, size).at[jnp.where(kept, place, size)].min(index, mode="drop")
    )
    who = column(own, far, iota(far))
    farthest = jnp.argmax(jnp.where(far, length, -jnp.inf), axis=1, keepdims=True).astype(who.dtype)
    return jnp.where(place < jnp.sum(far, axis=1, keepdims=True), taken(who, place), farthest)


def _hardest(anchors: Array, columns: Array, scale: Array, near: Array, far: Array, margin: Array | None) -> Array:
    """The violation of each anchor's farthest positive and nearest negative, the first of equals."""
    length = lax.stop_gradient(distances(anchors, columns))
    positive = jnp.argmax(jnp.where(near, length, -jnp.inf), axis=1)
    negative = jnp.argmin(jnp.where(far, length, jnp.inf), axis=1)
    lengths = (norm(anchors - columns.at[index].get(mode="clip"), 1)[:, 0] * scale for index in (positive, negative))
    return _violation(margin, *lengths)
