"""Softmax cross-entropy of hidden times kernel without the logits: totals, rows, and what differentiates them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import Blocks, in_auto_mode, row_chunks, rows_in_order
from jaxloss.algorithms.linear_rows import (
    Ends,
    Fixed,
    Head,
    Options,
    Pieces,
    Plan,
    Row,
    block_logits,
    class_count,
    empty_row,
    existing,
    joined,
    loss_of,
    plan_for,
    row_ends,
    row_losses,
    seen,
)
from jaxloss.algorithms.linear_slopes import fused
from jaxloss.algorithms.linear_totals import Losses, total, weighted_total
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, AxisName

__all__ = [
    "Head",
    "Options",
    "linear_nll",
    "linear_nll_reduced",
    "linear_nll_total",
    "linear_nll_totals",
    "linear_statistics",
    "weighted_total",
]


def linear_nll_total(head: Head, labels: Array, valid: Array | None, coefficients: Array, options: Options) -> Array:
    """The sum of the rows' losses, each times its coefficient: hidden [..., D], labels and coefficients [...] -> []."""
    return linear_nll_totals(head, labels, valid, coefficients, options)[0]


def linear_nll_totals(head: Head, labels: Array, valid: Array | None, coefficients: Array, options: Options) -> Array:
    """The same, and the z-loss in it, which has no gradient: [2]."""

    def totals(head: Head, fixed: Fixed, coefficients: Array) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        fixed = fixed._replace(labels=fixed.labels.reshape(-1))
        whole, z = total(_CrossEntropy(plan_for(flat, options)), flat, coefficients.reshape(-1), fixed)
        return jnp.stack([whole, jnp.zeros_like(whole) if z is None else z])

    arrays = [*jax.tree.leaves(head), coefficients]
    return in_auto_mode(totals, arrays, None)(_matched(head), Fixed(labels, valid), coefficients)


def linear_nll(head: Head, labels: Array, valid: Array | None, options: Options) -> Array:
    """The rows' losses: hidden [..., D], labels [...] -> [...]; differentiated by recomputing the logits in pieces."""

    def rows(head: Head, fixed: Fixed) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        plan = plan_for(flat, options)
        return _plain_rows(plan, flat, fixed._replace(labels=fixed.labels.reshape(-1))).reshape(fixed.labels.shape)

    return in_auto_mode(rows, jax.tree.leaves(head), head.hidden)(_matched(head), Fixed(labels, valid))


def _matched(head: Head) -> Head:
    """Operands of the products in one dtype, as `hidden @ kernel` would have them."""
    dtype = jnp.promote_types(head.hidden.dtype, head.kernel.dtype)
    return head._replace(hidden=head.hidden.astype(dtype), kernel=head.kernel.astype(dtype))


def linear_nll_reduced(
    head: Head, labels: Array, valid: Array | None, coefficients: Array | None, options: Options
) -> Array:
    """The total for coefficients [...], the rows for None."""
    if coefficients is None:
        return linear_nll(head, labels, valid, options)
    return linear_nll_total(head, labels, valid, coefficients, options)


class _CrossEntropy(NamedTuple):
    """Cross-entropy as an `Engine`."""

    plan: Plan

    @property
    def axis_name(self) -> AxisName:
        return self.plan.options.axis_name

    def rows(self, head: Head, fixed: Fixed) -> Losses:
        return row_losses(self.plan, head, fixed)

    def plain(self, head: Head, fixed: Fixed) -> Array:
        return _plain_rows(self.plan, head, fixed)

    def gradient(
        self, needed: tuple[bool, ...], head: Head, coefficients: Array, fixed: Fixed
    ) -> tuple[Losses, tuple[Array | None, ...]]:
        return fused(self.plan, needed, head, coefficients, fixed)


# --- The plain form -----------------------------------------------------------------------------------------------


_Finish = Callable[[Array, Row, Ends], Array]


def _plain_rows(plan: Plan, head: Head, fixed: Fixed, finish: _Finish | None = None) -> Array:
    """Every row's loss, or what `finish` makes of its logits, as a scan that any derivative can be taken of.

    A chunk's logits are made again for it, never kept.
    """
    pieces = Pieces(plan, head, fixed)
    whole = plan._replace(blocks=Blocks(plan.blocks.classes, 1, plan.blocks.classes))
    valid = None if fixed.valid is None else fixed.valid[None]
    bias = None if head.bias is None else head.bias[None]
    # Wide, so that what the chunks add to its gradient is added in float32.
    kernel = widen(existing(head.kernel, valid, plan.class_axis))

    def chunk(kernel: Array, x: Array, labels: Array) -> Array:
        x = x.astype(head.hidden.dtype)
        z = block_logits(whole, head, x, kernel.astype(head.kernel.dtype), bias, valid)
        here = whole.blocks.index(0) == labels[:, None]
        empty = empty_row(jnp.sum(jnp.zeros_like(z), axis=1), head.label_smoothing is not None)
        row, _ = seen(empty, z, here, None, valid)
        row = joined(row, plan.options.axis_name)
        ends = row_ends(row, class_count(whole, fixed.valid, pieces.wide))
        return loss_of(head, ends) if finish is None else finish(z, row, ends)

    inputs = (row_chunks(widen(head.hidden), plan.chunks), pieces.labels)  # wide: bits have no gradient
    if plan.chunks == 1:
        found = jax.checkpoint(chunk)(kernel, *(x[0] for x in inputs))[None]
    else:
        found = lax.scan(lambda _, inputs: (None, jax.checkpoint(chunk)(kernel, *inputs)), None, inputs)[1]
    return rows_in_order(found, head.hidden.shape[0])


def linear_statistics(head: Head, labels: Array, valid: Array | None, options: Options, *, entropy: bool) -> Array:
    """log p[label], and the entropy of p where it is asked for: [..., 1 or 2]."""

    def finish(z: Array, row: Row, ends: Ends) -> Array:
        found = [-ends.nll]
        if entropy:
            # log p <= 0, not z: nothing cancels where p is near 1.
            log_p = z - ends.normalizer[:, None]
            here = jnp.isfinite(log_p)
            each = jnp.where(here, jnp.exp(log_p) * jnp.where(here, log_p, 0), 0)
            total = jnp.sum(each, axis=1)
            found.append(-(lax.psum(total, options.axis_name) if options.axis_name else total))
        return jnp.stack(found, axis=-1)

    def rows(head: Head, fixed: Fixed) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        shape = fixed.labels.shape
        found = _plain_rows(plan_for(flat, options), flat, fixed._replace(labels=fixed.labels.reshape(-1)), finish)
        return found.reshape(*shape, found.shape[-1])

    return in_auto_mode(rows, jax.tree.leaves(head), head.hidden)(_matched(head), Fixed(labels, valid))
