"""Softmax cross-entropy of hidden times kernel without the logits: value and gradient in one pass over pieces of them.

The gradient of a weighted total needs no cotangent but one number, so it is computed with the value: three products
in all (logits, and the gradients of hidden and kernel), where recomputing in the backward pass takes four.

Of each row only the label's logit z_y and the others' logsumexp o are kept. The loss is softplus(o - z_y), the
label's own slope -sigmoid(o - z_y): a confident row keeps its digits in both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.algorithms.linear_blocks import (
    Blocks,
    bits,
    dot,
    in_auto_mode,
    mesh_size,
    nothing,
    numbers,
    planned,
    repeat,
    row_chunks,
    rows_in_order,
    vocabulary_offset,
)
from jaxloss.core.formulas import sigmoid, softplus
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, AxisName

__all__ = [
    "Head",
    "Options",
    "linear_nll",
    "linear_nll_total",
    "linear_nll_totals",
    "linear_statistics",
    "weighted_total",
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


class _Plan(NamedTuple):
    options: Options
    chunks: int
    blocks: Blocks
    again: bool  # each block's logits are made twice; else a chunk's are held

    @property
    def class_axis(self) -> int:
        return 0 if self.options.transposed else 1


class _Fixed(NamedTuple):
    labels: Array  # [N], of all classes on all devices
    valid: Array | None  # [V] bool


def linear_nll_total(head: Head, labels: Array, valid: Array | None, coefficients: Array, options: Options) -> Array:
    """The sum of the rows' losses, each times its coefficient: hidden [..., D], labels and coefficients [...] -> []."""
    return linear_nll_totals(head, labels, valid, coefficients, options)[0]


def linear_nll_totals(head: Head, labels: Array, valid: Array | None, coefficients: Array, options: Options) -> Array:
    """The same, and the z-loss in it, which has no gradient: [2]."""

    def totals(head: Head, fixed: _Fixed, coefficients: Array) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        fixed = fixed._replace(labels=fixed.labels.reshape(-1))
        whole, z = _total(_plan(flat, options), flat, coefficients.reshape(-1), fixed)
        return jnp.stack([whole, jnp.zeros_like(whole) if z is None else z])

    arrays = [*jax.tree.leaves(head), coefficients]
    return in_auto_mode(totals, arrays, None)(_matched(head), _Fixed(labels, valid), coefficients)


def linear_nll(head: Head, labels: Array, valid: Array | None, options: Options) -> Array:
    """The rows' losses: hidden [..., D], labels [...] -> [...]; differentiated by recomputing the logits in pieces."""

    def rows(head: Head, fixed: _Fixed) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        plan = _plan(flat, options)
        return _plain_rows(plan, flat, fixed._replace(labels=fixed.labels.reshape(-1))).reshape(fixed.labels.shape)

    return in_auto_mode(rows, jax.tree.leaves(head), head.hidden)(_matched(head), _Fixed(labels, valid))


def _matched(head: Head) -> Head:
    """Operands of the products in one dtype, as `hidden @ kernel` would have them."""
    dtype = jnp.promote_types(head.hidden.dtype, head.kernel.dtype)
    return head._replace(hidden=head.hidden.astype(dtype), kernel=head.kernel.astype(dtype))


def _plan(head: Head, options: Options) -> _Plan:
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
    return _Plan(options, chunks, blocks, again)


# --- The total, and what it takes to differentiate it -------------------------------------------------------------


class _Losses(NamedTuple):
    """The rows' losses and the z-loss in them, or the totals of both."""

    whole: Array
    z: Array | None


def _totals(coefficients: Array, rows: _Losses) -> _Losses:
    z = None if rows.z is None else weighted_total(*lax.stop_gradient((coefficients, rows.z)))
    return _Losses(weighted_total(coefficients, rows.whole), z)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(plan: _Plan, head: Head, coefficients: Array, fixed: _Fixed) -> _Losses:
    return _totals(coefficients, _rows(plan, head, fixed))


def _total_rule(plan: _Plan, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[_Losses, _Losses]:
    (head, coefficients, fixed), (d_head, d_coefficients, _) = primals, tangents
    needed = tuple(x is not None and not isinstance(x, SymbolicZero) for x in d_head)
    rows, gradient = _gradient(plan, needed, head, coefficients, fixed)
    found = _totals(coefficients, rows)
    value = found.whole
    tangent = jnp.zeros_like(value)
    for name, g, d in zip(Head._fields, gradient, d_head, strict=True):
        if g is not None:
            part = jnp.sum(widen(g) * d.astype(widen(g).dtype))  # not vdot: it flattens, and a sharded axis is gathered
            # Each device holds the slope of its own classes only; the others' directions add to the same number.
            spread = plan.options.axis_name and name in ("kernel", "bias")
            tangent = tangent + (lax.psum(part, plan.options.axis_name) if spread else part).astype(value.dtype)
    if not isinstance(d_coefficients, SymbolicZero):
        tangent = tangent + jnp.sum(_counted(coefficients, rows.whole) * d_coefficients)
    return found, _Losses(tangent, None if found.z is None else jnp.zeros_like(found.z))


_total.defjvp(_total_rule, symbolic_zeros=True)


def _counted(coefficients: Array, rows: Array) -> Array:
    # A row that does not count may have an infinite loss, and 0 * inf is nan.
    return jnp.where((coefficients == 0) & ~jnp.isfinite(rows), 0, rows)


def weighted_total(coefficients: Array, rows: Array) -> Array:
    """The sum of the rows' losses, each times its coefficient."""
    return jnp.sum(coefficients * _counted(coefficients, rows))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(
    plan: _Plan, needed: tuple[bool, ...], head: Head, coefficients: Array, fixed: _Fixed
) -> tuple[_Losses, tuple[Array | None, ...]]:
    """Every row's loss, and the total's slope in what is needed of the head, wide (a kernel's in its dtype if low)."""
    return _fused(plan, needed, head, coefficients, fixed)


@_gradient.defjvp
def _gradient_rule(
    plan: _Plan, needed: tuple[bool, ...], primals: tuple[Head, Array, _Fixed], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    (head, coefficients, fixed), (d_head, d_coefficients, _) = primals, tangents

    def plain(head: Head, coefficients: Array) -> tuple[Array, tuple[Array | None, ...]]:
        head = head._replace(hidden=widen(head.hidden), kernel=widen(head.kernel))
        parts = zip(Head._fields, head, needed, strict=True)
        chosen = {name: widen(x) for name, x, wanted in parts if wanted and x is not None}

        def total(chosen: dict[str, Array]) -> tuple[Array, Array]:
            rows = _plain_rows(plan, head._replace(**chosen), fixed)
            return weighted_total(coefficients, rows), rows

        # Copies that vary over every mesh axis that the slopes do: the slope of what does not is summed over it.
        zero = lax.stop_gradient(nothing((head, coefficients, fixed)))
        same = _shared(plan, zero)
        varying = {k: x + (zero if k in ("kernel", "bias") else same).astype(x.dtype) for k, x in chosen.items()}
        slopes, rows = jax.grad(total, has_aux=True)(varying)
        return rows, tuple(slopes.get(name) for name in Head._fields)

    found = _gradient(plan, needed, head, coefficients, fixed)
    _, (rows, slopes) = jax.jvp(plain, (head, coefficients), (d_head, d_coefficients))
    change = _Losses(rows, None if found[0].z is None else jnp.zeros_like(found[0].z)), slopes
    return found, jax.tree.map(lambda like, x: x.astype(like.dtype), found, change)


# --- One block of logits ------------------------------------------------------------------------------------------


def _existing(kernel: Array, valid: Array | None, class_axis: int) -> Array:
    """`kernel`, 0 where classes do not exist: there may be nan, and a slope of 0 times nan is nan."""
    return kernel if valid is None else jnp.where(valid if class_axis else valid.T, kernel, jnp.zeros((), kernel.dtype))


def _logits(plan: _Plan, head: Head, x: Array, kernel: Array, bias: Array | None, valid: Array | None) -> Array:
    """Logits of rows against a block of classes, float32 or wider."""
    z = dot(x, kernel, (1, 1 - plan.class_axis))
    if bias is not None:
        z = z + (bias if valid is None else jnp.where(valid, bias, 0)).astype(z.dtype)
    if head.soft_cap is not None:
        z = head.soft_cap * jnp.tanh(z / head.soft_cap)
    if head.temperature is not None:
        z = z / head.temperature
    return z if valid is None else jnp.where(valid, z, -jnp.inf)


class _Row(NamedTuple):
    """What is kept of each row of logits."""

    top: Array  # the others' maximum
    others: Array  # the sum of exp(z - top) over the others
    own: Array  # the label's logit
    total: Array | None  # the sum over the valid classes, for smoothing


def _no_row(like: Array, smooth: bool) -> _Row:
    # Finite, so that two of them have a difference.
    return _Row(like + jnp.finfo(like.dtype).min, like, like, like if smooth else None)


def _seen(row: _Row, z: Array, here: Array, fresh: Array | None, valid: Array | None) -> tuple[_Row, Array]:
    """`row` with a block of logits added, and the others' logits alone: the label's and what was seen are -inf."""
    own = row.own + jnp.sum(jnp.where(here, z, 0), axis=1)
    total = row.total
    if total is not None:
        counts = _counts(fresh, valid)
        total = total + jnp.sum(z if counts is None else jnp.where(counts, z, 0), axis=1)
    others = jnp.where(here if fresh is None else here | ~fresh, -jnp.inf, z)
    # Behind the barrier the compiler sums a finished array, which it does fast.
    others = lax.optimization_barrier(others)
    top = jnp.maximum(row.top, jnp.max(others, axis=1))
    weight = row.others * jnp.exp(row.top - top) + jnp.sum(jnp.exp(others - top[:, None]), axis=1)
    return _Row(top, weight, own, total), others


def _counts(fresh: Array | None, valid: Array | None) -> Array | None:
    if fresh is None or valid is None:
        return valid if fresh is None else fresh
    return fresh & valid


def _joined(row: _Row, axis_name: AxisName) -> _Row:
    """The same of all devices' classes."""
    if not axis_name:
        return row
    top = lax.pmax(lax.stop_gradient(row.top), axis_name)
    others, own = lax.psum((row.others * jnp.exp(row.top - top), row.own), axis_name)
    return _Row(top, others, own, None if row.total is None else lax.psum(row.total, axis_name))


class _Ends(NamedTuple):
    """What follows from a row: the terms of its loss."""

    behind: Array  # the others' logsumexp minus the label's logit
    nll: Array
    normalizer: Array  # the logsumexp of all
    mean: Array | None  # the valid classes' mean logit


def _ends(row: _Row, count: Array) -> _Ends:
    others = row.top + jnp.log(row.others)
    behind = others - row.own
    mean = None if row.total is None else row.total / count
    return _Ends(behind, softplus(behind), jnp.logaddexp(others, row.own), mean)


def _loss(head: Head, ends: _Ends) -> Array:
    loss = ends.nll
    if head.label_smoothing is not None and ends.mean is not None:
        loss = (1 - head.label_smoothing) * loss + head.label_smoothing * (ends.normalizer - ends.mean)
    if head.z_loss is not None:
        loss = loss + head.z_loss * jnp.square(ends.normalizer)
    return loss


def _losses(head: Head, ends: _Ends) -> _Losses:
    return _Losses(_loss(head, ends), None if head.z_loss is None else head.z_loss * jnp.square(ends.normalizer))


def _class_count(plan: _Plan, valid: Array | None, dtype: jnp.dtype) -> Array:
    local = jnp.asarray(plan.blocks.classes, dtype) if valid is None else jnp.sum(valid, dtype=dtype)
    return lax.psum(local, plan.options.axis_name) if plan.options.axis_name else local


# --- The passes ---------------------------------------------------------------------------------------------------


class _Pieces:
    """The arrays of one call, cut; every piece is taken where it is used."""

    def __init__(self, plan: _Plan, head: Head, fixed: _Fixed) -> None:
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
        return numbers(self.hidden[k], self.head.hidden.dtype)

    def zeros(self, *shape: int) -> Array:
        return jnp.zeros(shape, self.wide) + self.zero

    def kernel(self, j: Any) -> Array:
        block = self.plan.blocks.take(self.split_kernel, j, self.plan.class_axis)
        return _existing(block, self.valid(j), self.plan.class_axis)

    def bias(self, j: Any) -> Array | None:
        return None if self.split_bias is None else self.plan.blocks.take(self.split_bias, j, 0)[None]

    def valid(self, j: Any) -> Array | None:
        return None if self.split_valid is None else self.plan.blocks.take(self.split_valid, j, 0)[None]

    def here(self, k: Any, j: Any) -> Array:
        """Which entries of the block are their rows' labels, seen for the first time."""
        fresh = self.plan.blocks.fresh(j)
        here = self.plan.blocks.index(j) == self.labels[k][:, None]
        return here if fresh is None else here & fresh

    def others(self, k: Any, j: Any, row: _Row) -> tuple[_Row, Array]:
        valid = self.valid(j)
        z = _logits(self.plan, self.head, self.rows(k), self.kernel(j), self.bias(j), valid)
        return _seen(row, z, self.here(k, j), self.plan.blocks.fresh(j), valid)

    def no_row(self) -> _Row:
        return _no_row(self.zeros(self.labels.shape[1]), self.head.label_smoothing is not None)

    def ends(self, row: _Row) -> tuple[_Row, _Ends]:
        row = _joined(row, self.plan.options.axis_name)
        return row, _ends(row, _class_count(self.plan, self.fixed.valid, self.wide))

    def chunk(self, k: Any) -> tuple[_Row, _Ends]:
        """A chunk's rows, no logits kept."""
        row = repeat(self.plan.blocks.count, lambda j, row: self.others(k, j, row)[0], self.no_row())
        return self.ends(row)


def _rows(plan: _Plan, head: Head, fixed: _Fixed) -> _Losses:
    pieces = _Pieces(plan, head, fixed)

    def body(k: Any, losses: _Losses) -> _Losses:
        return jax.tree.map(lambda whole, part: whole.at[k].set(part), losses, _losses(head, pieces.chunk(k)[1]))

    empty = _shared(plan, pieces.zeros(*pieces.labels.shape))
    losses = repeat(plan.chunks, body, _Losses(empty, None if head.z_loss is None else empty))
    return jax.tree.map(lambda x: rows_in_order(x, head.hidden.shape[0]), losses)


def _shared(plan: _Plan, x: Array) -> Array:
    """`x`, the same on all devices that share the classes: what has been summed over them does not vary."""
    return lax.pmax(x, plan.options.axis_name) if plan.options.axis_name else x


class _Pull(NamedTuple):
    """How a row's logits pull: the slope at class v is scale exp(z_v - shift) - even, but at the label it is `own`."""

    scale: Array
    shift: Array
    even: Array | None
    own: Array  # towards the capped logit
    capped: Array  # and towards the raw one
    logit: Array  # the label's


def _pull(plan: _Plan, head: Head, row: _Row, ends: _Ends, weight: Array, count: Array) -> _Pull:
    if head.temperature is not None:
        weight = weight / head.temperature
    one, stretch = jnp.ones_like(ends.nll), 0.0
    own = -sigmoid(ends.behind)
    even = None
    if head.label_smoothing is not None:
        even = weight * head.label_smoothing / count
        own = (1 - head.label_smoothing) * own + head.label_smoothing * (sigmoid(-ends.behind) - 1 / count)
    if head.z_loss is not None:
        stretch = 2 * head.z_loss * ends.normalizer
        own = own + stretch * sigmoid(-ends.behind)
    # A row that does not count may be one whose slope is not finite.
    out = weight == 0
    own = jnp.where(out, 0, weight * own)
    capped = own if head.soft_cap is None else own * (1 - jnp.square(_cap_level(head, row.own)))
    return _Pull(
        jnp.where(out, 0, weight * (one + stretch)),
        jnp.where(out, jnp.inf, ends.normalizer),
        even,
        own,
        capped,
        row.own,
    )


def _cap_level(head: Head, z: Array) -> Array:
    """tanh(raw / cap), from the logits."""
    assert head.soft_cap is not None
    scaled = z if head.temperature is None else z * head.temperature
    return jnp.maximum(scaled / head.soft_cap, -1)  # a class that is ruled out is -inf


def _kernel_slope(plan: _Plan, x: Array, turned: Array, g: Array) -> Array:
    if not plan.options.transposed:
        # XLA's CPU has a fast half-precision product for rows times columns only, and takes `turned` for such because
        # it comes from outside the loop.
        return dot(turned, g, (1, 0))
    if x.dtype.itemsize > 2:
        return dot(g, x, (0, 0))
    return lax.optimization_barrier(dot(turned, g, (1, 0))).T


class _Slopes(NamedTuple):
    """The gradient's parts while they grow; None where they are not needed."""

    hidden: Array | None
    kernel: Array | None
    bias: Array | None
    soft_cap: Array | None
    temperature: Array | None


class _Need(NamedTuple):
    """Of what in a `Head` the slope is needed."""

    hidden: bool
    kernel: bool
    bias: bool
    label_smoothing: bool
    z_loss: bool
    soft_cap: bool
    temperature: bool


def _fused(
    plan: _Plan, needed: tuple[bool, ...], head: Head, coefficients: Array, fixed: _Fixed
) -> tuple[_Losses, tuple[Array | None, ...]]:
    need = _Need(*needed)
    pieces = _Pieces(plan, head, fixed)
    pieces.zero = pieces.zero + nothing(coefficients).astype(pieces.wide)
    blocks, wide, half = plan.blocks, pieces.wide, head.hidden.dtype.itemsize == 2
    rows, features = pieces.labels.shape[1], head.hidden.shape[1]
    count = _class_count(plan, fixed.valid, wide)
    # A half-precision slope of 1e-3 / N would underflow: slopes are taken for coefficients up to 1.
    size = jnp.max(jnp.where(jnp.isnan(coefficients), 0, jnp.abs(coefficients)), initial=0) if half else None
    size = None if size is None else jnp.where(size == 0, 1, size)
    weights = row_chunks(coefficients.astype(wide) if size is None else coefficients / size, plan.chunks)
    turned = jnp.swapaxes(pieces.hidden, 1, 2) if need.kernel else None
    products = need.hidden or need.kernel or need.bias or need.soft_cap or need.temperature

    def pull(k: Any, row: _Row, ends: _Ends) -> _Pull:
        return _pull(plan, head, row, ends, weights[k], count)

    def grown(k: Any, j: Any, others: Array, pull: _Pull, slopes: _Slopes) -> _Slopes:
        """`slopes` with those of one block of logits added; the kernel's and the bias' are the block's alone."""
        here, fresh, valid = pieces.here(k, j), blocks.fresh(j), pieces.valid(j)
        g = jnp.exp(others - pull.shift[:, None]) * pull.scale[:, None]
        if pull.even is not None:
            counts = _counts(fresh, valid)
            g = g - (pull.even[:, None] if counts is None else jnp.where(counts, pull.even[:, None], 0))
        soft_cap, temperature = slopes.soft_cap, slopes.temperature
        if soft_cap is not None or temperature is not None:
            whole = jnp.where(here, pull.own[:, None], g)
            z = jnp.where(here, pull.logit[:, None], others)
            if temperature is not None and head.temperature is not None:
                temperature = temperature - jnp.sum(jnp.where(z == -jnp.inf, 0, whole * z))
            if soft_cap is not None:
                level = _cap_level(head, z)
                inside = jnp.abs(level) < 1
                bend = (1 - jnp.square(level)) * jnp.arctanh(jnp.where(inside, level, 0))
                soft_cap = soft_cap + jnp.sum(whole * jnp.where(z == -jnp.inf, 0, level - bend))
        if head.soft_cap is not None:
            g = g * (1 - jnp.square(_cap_level(head, others)))
        g = jnp.where(here, pull.capped[:, None], g)
        bias = None if slopes.bias is None else slopes.bias + jnp.sum(g, axis=0)
        g = lax.optimization_barrier(g.astype(head.hidden.dtype))
        hidden, kernel = slopes.hidden, slopes.kernel
        if hidden is not None:
            hidden = hidden + dot(g, pieces.kernel(j), (1, plan.class_axis))
        if kernel is not None:
            assert turned is not None
            kernel = kernel + _kernel_slope(plan, pieces.rows(k), numbers(turned[k], head.hidden.dtype), g)
        return _Slopes(hidden, kernel, bias, soft_cap, temperature)

    def wanted(name: bool, *shape: int) -> Array | None:
        return pieces.zeros(*shape) if name else None

    def block_zeros() -> dict[str, Array | None]:
        width = (blocks.size, features) if plan.options.transposed else (features, blocks.size)
        return {"kernel": wanted(need.kernel, *width), "bias": wanted(need.bias, blocks.size)}

    scalars = {"soft_cap": wanted(need.soft_cap), "temperature": wanted(need.temperature)}
    start = _Slopes(
        wanted(need.hidden, plan.chunks, rows, features), wanted(need.kernel, *pieces.split_kernel.shape),
        wanted(need.bias, *blocks.split(jnp.zeros(blocks.classes, bool), 0).shape), **scalars,
    )  # fmt: skip
    ends_start = _Ends(*(4 * [pieces.zeros(plan.chunks, rows)]))
    if head.label_smoothing is None:
        ends_start = ends_start._replace(mean=None)
    ends_start = jax.tree.map(functools.partial(_shared, plan), ends_start)

    if not products:

        def look(k: Any, all_ends: _Ends) -> _Ends:
            return jax.tree.map(lambda whole, part: whole.at[k].set(part), all_ends, pieces.chunk(k)[1])

        ends, slopes = repeat(plan.chunks, look, ends_start), start
    elif plan.again:
        ends, slopes = _by_block(plan, pieces, pull, grown, start, ends_start, block_zeros, size)
    else:
        ends, slopes = _fast(plan, pieces, pull, grown, start, ends_start)

    if slopes.kernel is not None:
        slopes = slopes._replace(kernel=blocks.merged(slopes.kernel, plan.class_axis))
    if slopes.bias is not None:
        slopes = slopes._replace(bias=blocks.merged(slopes.bias, 0))

    def all_rows(x: Array) -> Array:
        return rows_in_order(x, head.hidden.shape[0])

    def summed(x: Array) -> Array:
        whole = lax.psum(x, plan.options.axis_name) if plan.options.axis_name else x
        return whole if size is None else whole * size

    ends = jax.tree.map(all_rows, ends)
    found: dict[str, Array | None] = dict.fromkeys(Head._fields)
    if slopes.hidden is not None:
        found["hidden"] = summed(all_rows(slopes.hidden))
    if slopes.kernel is not None:
        scaled = size is None or slopes.kernel.dtype != wide  # by each block, before it was rounded
        found["kernel"] = slopes.kernel if scaled or size is None else slopes.kernel * size
    if slopes.bias is not None:
        found["bias"] = slopes.bias if size is None else slopes.bias * size
    if slopes.soft_cap is not None:
        found["soft_cap"] = summed(slopes.soft_cap)
    if slopes.temperature is not None:
        found["temperature"] = summed(slopes.temperature)
    if need.z_loss:
        found["z_loss"] = weighted_total(coefficients, jnp.square(ends.normalizer))
    if need.label_smoothing and ends.mean is not None:
        found["label_smoothing"] = weighted_total(coefficients, ends.normalizer - ends.mean - ends.nll)
    return _losses(head, ends), tuple(found.values())


def _fast(
    plan: _Plan, pieces: _Pieces, pull: Any, grown: Any, start: _Slopes, ends_start: _Ends
) -> tuple[_Ends, _Slopes]:
    """A chunk's logits are held from their sums to their slopes: three products."""
    blocks = plan.blocks
    rows = pieces.labels.shape[1]

    def put(whole: Array | None, part: Array | None, j: Any, axis: int) -> Array | None:
        return None if whole is None or part is None else blocks.put(whole, part, j, axis)

    def chunk(k: Any, carry: tuple[_Ends, _Slopes]) -> tuple[_Ends, _Slopes]:
        all_ends, slopes = carry

        def look(j: Any, carry: tuple[_Row, Array]) -> tuple[_Row, Array]:
            row, others = pieces.others(k, j, carry[0])
            return row, others[None] if blocks.count == 1 else carry[1].at[j].set(others)

        row, held = repeat(blocks.count, look, (pieces.no_row(), pieces.zeros(blocks.count, rows, blocks.size)))
        row, ends = pieces.ends(row)
        pulled = pull(k, row, ends)

        def step(j: Any, slopes: _Slopes) -> _Slopes:
            kernel = None if slopes.kernel is None else blocks.take(slopes.kernel, j, plan.class_axis)
            bias = None if slopes.bias is None else blocks.take(slopes.bias, j, 0)
            new = grown(k, j, held[j], pulled, slopes._replace(kernel=kernel, bias=bias))
            return new._replace(
                kernel=put(slopes.kernel, new.kernel, j, plan.class_axis), bias=put(slopes.bias, new.bias, j, 0)
            )

        own = None if slopes.hidden is None else pieces.zeros(*slopes.hidden.shape[1:])
        new = repeat(blocks.count, step, slopes._replace(hidden=own))
        hidden = None if slopes.hidden is None else slopes.hidden.at[k].set(new.hidden)
        all_ends = jax.tree.map(lambda whole, part: whole.at[k].set(part), all_ends, ends)
        return all_ends, new._replace(hidden=hidden)

    return repeat(plan.chunks, chunk, (ends_start, start))


def _by_block(
    plan: _Plan,
    pieces: _Pieces,
    pull: Any,
    grown: Any,
    start: _Slopes,
    ends_start: _Ends,
    block_zeros: Any,
    size: Array | None,
) -> tuple[_Ends, _Slopes]:
    """Only a block of logits is ever held, and made twice: four products. A block's kernel slope is written once."""
    blocks, shape = plan.blocks, pieces.labels.shape
    kernel_dtype = pieces.head.kernel.dtype

    def look(k: Any, carry: tuple[_Ends, _Pull]) -> tuple[_Ends, _Pull]:
        row, ends = pieces.chunk(k)
        return jax.tree.map(lambda whole, part: whole.at[k].set(part), carry, (ends, pull(k, row, ends)))

    first = jax.eval_shape(lambda: pull(0, *pieces.chunk(0)))
    pulls = jax.tree.map(lambda _: _shared(plan, pieces.zeros(*shape)), first)
    all_ends, pulls = repeat(plan.chunks, look, (ends_start, pulls))
    if start.kernel is not None:
        start = start._replace(kernel=bits(start.kernel.astype(kernel_dtype)))

    def put(whole: Array | None, part: Array | None, j: Any, axis: int) -> Array | None:
        if whole is None or part is None:
            return None
        if whole.dtype == jnp.uint16:
            part = bits((part if size is None else part * size).astype(kernel_dtype))
        fresh = blocks.fresh(j)
        if fresh is not None:  # what the block before wrote is kept
            fresh = fresh[0] if part.ndim == 1 else fresh if axis else fresh.T
            part = jnp.where(fresh, part, blocks.take(whole, j, axis))
        return blocks.put(whole, part, j, axis)

    def block(j: Any, slopes: _Slopes) -> _Slopes:
        def step(k: Any, slopes: _Slopes) -> _Slopes:
            others = pieces.others(k, j, pieces.no_row())[1]
            own = None if slopes.hidden is None else slopes.hidden[k]
            new = grown(k, j, others, jax.tree.map(lambda x: x[k], pulls), slopes._replace(hidden=own))
            hidden = None if slopes.hidden is None else slopes.hidden.at[k].set(new.hidden)
            return new._replace(hidden=hidden)

        new = repeat(plan.chunks, step, slopes._replace(**block_zeros()))
        kernel, bias = put(slopes.kernel, new.kernel, j, plan.class_axis), put(slopes.bias, new.bias, j, 0)
        return new._replace(kernel=kernel, bias=bias)

    slopes = repeat(blocks.count, block, start)
    if slopes.kernel is not None:
        slopes = slopes._replace(kernel=numbers(slopes.kernel, kernel_dtype))
    return all_ends, slopes


# --- The plain form -----------------------------------------------------------------------------------------------


_Finish = Callable[[Array, "_Row", "_Ends"], Array]


def _plain_rows(plan: _Plan, head: Head, fixed: _Fixed, finish: _Finish | None = None) -> Array:
    """Every row's loss, or what `finish` makes of its logits, as a scan that any derivative can be taken of.

    A chunk's logits are made again for it, never kept.
    """
    pieces = _Pieces(plan, head, fixed)
    whole = plan._replace(blocks=Blocks(plan.blocks.classes, 1, plan.blocks.classes))
    valid = None if fixed.valid is None else fixed.valid[None]
    bias = None if head.bias is None else head.bias[None]
    # Wide, so that what the chunks add to its gradient is added in float32.
    kernel = widen(_existing(head.kernel, valid, plan.class_axis))

    def chunk(kernel: Array, x: Array, labels: Array) -> Array:
        x = x.astype(head.hidden.dtype)
        z = _logits(whole, head, x, kernel.astype(head.kernel.dtype), bias, valid)
        here = whole.blocks.index(0) == labels[:, None]
        empty = _no_row(jnp.sum(jnp.zeros_like(z), axis=1), head.label_smoothing is not None)
        row, _ = _seen(empty, z, here, None, valid)
        row = _joined(row, plan.options.axis_name)
        ends = _ends(row, _class_count(whole, fixed.valid, pieces.wide))
        return _loss(head, ends) if finish is None else finish(z, row, ends)

    inputs = (row_chunks(widen(head.hidden), plan.chunks), pieces.labels)  # wide: bits have no gradient
    if plan.chunks == 1:
        found = jax.checkpoint(chunk)(kernel, *(x[0] for x in inputs))[None]
    else:
        found = lax.scan(lambda _, inputs: (None, jax.checkpoint(chunk)(kernel, *inputs)), None, inputs)[1]
    return rows_in_order(found, head.hidden.shape[0])


def linear_statistics(head: Head, labels: Array, valid: Array | None, options: Options, *, entropy: bool) -> Array:
    """log p[label], and the entropy of p where it is asked for: [..., 1 or 2]."""

    def finish(z: Array, row: _Row, ends: _Ends) -> Array:
        found = [-ends.nll]
        if entropy:
            # log p <= 0, not z: nothing cancels where p is near 1.
            log_p = z - ends.normalizer[:, None]
            here = jnp.isfinite(log_p)
            each = jnp.where(here, jnp.exp(log_p) * jnp.where(here, log_p, 0), 0)
            total = jnp.sum(each, axis=1)
            found.append(-(lax.psum(total, options.axis_name) if options.axis_name else total))
        return jnp.stack(found, axis=-1)

    def rows(head: Head, fixed: _Fixed) -> Array:
        flat = head._replace(hidden=head.hidden.reshape(-1, head.hidden.shape[-1]))
        shape = fixed.labels.shape
        found = _plain_rows(_plan(flat, options), flat, fixed._replace(labels=fixed.labels.reshape(-1)), finish)
        return found.reshape(*shape, found.shape[-1])

    return in_auto_mode(rows, jax.tree.leaves(head), head.hidden)(_matched(head), _Fixed(labels, valid))
