"""Rows of logits in pieces: what a head makes of a block of classes, and what of each row is kept.

Of each row only the label's logit z_y and the others' logsumexp o are kept. The loss is softplus(o - z_y), the
label's own slope -sigmoid(o - z_y): a confident row keeps its digits in both.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import (
    Blocks,
    dot,
    mesh_size,
    nothing,
    numbers,
    planned,
    repeat,
    row_chunks,
    rows_in_order,
    vocabulary_offset,
)
from jaxloss.algorithms.linear_totals import Losses, shared
from jaxloss.core.formulas import softplus
from jaxloss.core.types import Array, AxisName

__all__ = [
    "Ends",
    "Fixed",
    "Head",
    "Options",
    "Pieces",
    "Plan",
    "Row",
    "block_logits",
    "class_count",
    "counted_classes",
    "empty_row",
    "existing",
    "joined",
    "loss_of",
    "losses_of",
    "plan_for",
    "row_ends",
    "row_losses",
    "seen",
]


class Head(NamedTuple):
    """What the loss is a function of. Logits: cap tanh((hidden kernel + bias) / cap) / temperature."""

    hidden: Array  # [N, D]
    kernel: Array  # [D, V], or [V, D]
    bias: Array | None  # [V]
    label_smoothing: Array | None
    z_loss: Array | None
    soft_cap: Array | None
    temperature: Array | None


@dataclasses.dataclass(frozen=True)
class Options:
    """How it is computed: what of it is known when compiling."""

    transposed: bool = False  # kernel is [V, D]
    low: bool = False
    chunk_rows: int | None = None
    chunk_classes: int | None = None
    axis_name: AxisName = None


class Plan(NamedTuple):
    """How rows and classes are cut, and how often a block of logits is made."""

    options: Options
    chunks: int
    blocks: Blocks
    again: bool  # each block's logits are made twice; else a chunk's are held

    @property
    def class_axis(self) -> int:
        """The axis of classes of the kernel."""
        return 0 if self.options.transposed else 1


class Fixed(NamedTuple):
    """What has no gradient."""

    labels: Array  # [N], of all classes on all devices
    valid: Array | None  # [V] bool


def plan_for(head: Head, options: Options) -> Plan:
    """The plan of a head with hidden [N, D]."""
    rows, features = head.hidden.shape
    chunks, blocks, again = planned(
        rows,
        features,
        head.kernel.shape[0 if options.transposed else 1],
        head.hidden.dtype.itemsize == 2,
        low=options.low,
        devices=mesh_size([head.hidden, head.kernel]),
        chunk_rows=options.chunk_rows,
        chunk_classes=options.chunk_classes,
    )
    return Plan(options, chunks, blocks, again)


# --- One block of logits ------------------------------------------------------------------------------------------


def existing(kernel: Array, valid: Array | None, class_axis: int) -> Array:
    """`kernel`, 0 where classes do not exist: there may be nan, and a slope of 0 times nan is nan."""
    return kernel if valid is None else jnp.where(valid if class_axis else valid.T, kernel, jnp.zeros((), kernel.dtype))


def block_logits(plan: Plan, head: Head, x: Array, kernel: Array, bias: Array | None, valid: Array | None) -> Array:
    """Logits of rows against a block of classes, float32 or wider."""
    z = dot(x, kernel, (1, 1 - plan.class_axis))
    if bias is not None:
        z = z + (bias if valid is None else jnp.where(valid, bias, 0)).astype(z.dtype)
    if head.soft_cap is not None:
        z = head.soft_cap * jnp.tanh(z / head.soft_cap)
    if head.temperature is not None:
        z = z / head.temperature
    return z if valid is None else jnp.where(valid, z, -jnp.inf)


class Row(NamedTuple):
    """What is kept of each row of logits."""

    top: Array  # the others' maximum
    others: Array  # the sum of exp(z - top) over the others
    own: Array  # the label's logit
    total: Array | None  # the sum over the valid classes, for smoothing


def empty_row(like: Array, smooth: bool) -> Row:
    """Rows of which nothing was seen; `like` is 0 for each."""
    # Finite, so that two of them have a difference.
    return Row(like + jnp.finfo(like.dtype).min, like, like, like if smooth else None)


def seen(row: Row, z: Array, here: Array, fresh: Array | None, valid: Array | None) -> tuple[Row, Array]:
    """`row` with a block of logits added, and the others' logits alone: the label's and what was seen are -inf."""
    own = row.own + jnp.sum(jnp.where(here, z, 0), axis=1)
    total = row.total
    if total is not None:
        counts = counted_classes(fresh, valid)
        total = total + jnp.sum(z if counts is None else jnp.where(counts, z, 0), axis=1)
    others = jnp.where(here if fresh is None else here | ~fresh, -jnp.inf, z)
    # Behind the barrier the compiler sums a finished array, which it does fast.
    others = lax.optimization_barrier(others)
    top = jnp.maximum(row.top, jnp.max(others, axis=1))
    weight = row.others * jnp.exp(row.top - top) + jnp.sum(jnp.exp(others - top[:, None]), axis=1)
    return Row(top, weight, own, total), others


def counted_classes(fresh: Array | None, valid: Array | None) -> Array | None:
    """Which classes of a block exist and were not seen before; None: all."""
    if fresh is None or valid is None:
        return valid if fresh is None else fresh
    return fresh & valid


def joined(row: Row, axis_name: AxisName) -> Row:
    """The same of all devices' classes."""
    if not axis_name:
        return row
    top = lax.pmax(lax.stop_gradient(row.top), axis_name)
    others, own = lax.psum((row.others * jnp.exp(row.top - top), row.own), axis_name)
    return Row(top, others, own, None if row.total is None else lax.psum(row.total, axis_name))


class Ends(NamedTuple):
    """What follows from a row: the terms of its loss."""

    behind: Array  # the others' logsumexp minus the label's logit
    nll: Array
    normalizer: Array  # the logsumexp of all
    mean: Array | None  # the valid classes' mean logit


def row_ends(row: Row, count: Array) -> Ends:
    """The terms of the loss of a row of `count` classes."""
    others = row.top + jnp.log(row.others)
    behind = others - row.own
    mean = None if row.total is None else row.total / count
    return Ends(behind, softplus(behind), jnp.logaddexp(others, row.own), mean)


def loss_of(head: Head, ends: Ends) -> Array:
    """The rows' losses."""
    loss = ends.nll
    if head.label_smoothing is not None and ends.mean is not None:
        loss = (1 - head.label_smoothing) * loss + head.label_smoothing * (ends.normalizer - ends.mean)
    if head.z_loss is not None:
        loss = loss + head.z_loss * jnp.square(ends.normalizer)
    return loss


def losses_of(head: Head, ends: Ends) -> Losses:
    """The rows' losses, and the z-loss in them."""
    return Losses(loss_of(head, ends), None if head.z_loss is None else head.z_loss * jnp.square(ends.normalizer))


def class_count(plan: Plan, valid: Array | None, dtype: jnp.dtype) -> Array:
    """How many classes exist on all devices."""
    local = jnp.asarray(plan.blocks.classes, dtype) if valid is None else jnp.sum(valid, dtype=dtype)
    return lax.psum(local, plan.options.axis_name) if plan.options.axis_name else local


# --- The arrays in pieces -----------------------------------------------------------------------------------------


class Pieces:
    """The arrays of one call, cut; every piece is taken where it is used."""

    def __init__(self, plan: Plan, head: Head, fixed: Fixed) -> None:
        self.plan, self.head, self.fixed = plan, head, fixed
        self.wide = jnp.promote_types(head.hidden.dtype, jnp.float32)
        self.hidden = row_chunks(head.hidden, plan.chunks)
        local = fixed.labels - vocabulary_offset(plan.blocks.classes, plan.options.axis_name)
        self.labels = row_chunks(local.astype(jnp.int32), plan.chunks)
        self.zero = nothing((head, fixed)).astype(self.wide)
        self.split_kernel = plan.blocks.split(head.kernel, plan.class_axis)
        self.split_bias = None if head.bias is None else plan.blocks.split(head.bias, 0)
        self.split_valid = None if fixed.valid is None else plan.blocks.split(fixed.valid, 0)

    def rows(self, k: Any) -> Array:
        """The hidden states of a chunk."""
        return numbers(self.hidden[k], self.head.hidden.dtype)

    def zeros(self, *shape: int) -> Array:
        """A carry's start."""
        return jnp.zeros(shape, self.wide) + self.zero

    def kernel(self, j: Any) -> Array:
        """A block of the kernel, 0 where a class does not exist."""
        block = self.plan.blocks.take(self.split_kernel, j, self.plan.class_axis)
        return existing(block, self.valid(j), self.plan.class_axis)

    def bias(self, j: Any) -> Array | None:
        """A block of the bias, [1, size]."""
        return None if self.split_bias is None else self.plan.blocks.take(self.split_bias, j, 0)[None]

    def valid(self, j: Any) -> Array | None:
        """Which classes of a block exist, [1, size]."""
        return None if self.split_valid is None else self.plan.blocks.take(self.split_valid, j, 0)[None]

    def here(self, k: Any, j: Any) -> Array:
        """Which entries of the block are their rows' labels, seen for the first time."""
        fresh = self.plan.blocks.fresh(j)
        here = self.plan.blocks.index(j) == self.labels[k][:, None]
        return here if fresh is None else here & fresh

    def others(self, k: Any, j: Any, row: Row) -> tuple[Row, Array]:
        """`row` with a block of logits added, and the others' logits alone."""
        valid = self.valid(j)
        z = block_logits(self.plan, self.head, self.rows(k), self.kernel(j), self.bias(j), valid)
        return seen(row, z, self.here(k, j), self.plan.blocks.fresh(j), valid)

    def no_row(self) -> Row:
        """Rows of a chunk of which nothing was seen."""
        return empty_row(self.zeros(self.labels.shape[1]), self.head.label_smoothing is not None)

    def ends(self, row: Row) -> tuple[Row, Ends]:
        """`row` of all devices' classes, and the terms of its loss."""
        row = joined(row, self.plan.options.axis_name)
        return row, row_ends(row, class_count(self.plan, self.fixed.valid, self.wide))

    def chunk(self, k: Any) -> tuple[Row, Ends]:
        """A chunk's rows, no logits kept."""
        row = repeat(self.plan.blocks.count, lambda j, row: self.others(k, j, row)[0], self.no_row())
        return self.ends(row)


def row_losses(plan: Plan, head: Head, fixed: Fixed) -> Losses:
    """Every row's loss from one product, no logits kept."""
    pieces = Pieces(plan, head, fixed)

    def body(k: Any, losses: Losses) -> Losses:
        return jax.tree.map(lambda whole, part: whole.at[k].set(part), losses, losses_of(head, pieces.chunk(k)[1]))

    empty = shared(plan.options.axis_name, pieces.zeros(*pieces.labels.shape))
    losses = repeat(plan.chunks, body, Losses(empty, None if head.z_loss is None else empty))
    return jax.tree.map(lambda x: rows_in_order(x, head.hidden.shape[0]), losses)
