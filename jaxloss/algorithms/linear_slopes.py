"""The passes over blocks of logits that give every row's cross-entropy with the gradient of their weighted total."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_blocks import (
    bits,
    dot,
    kernel_slope,
    nothing,
    numbers,
    repeat,
    row_chunks,
    rows_in_order,
)
from jaxloss.algorithms.linear_rows import (
    Ends,
    Fixed,
    Head,
    Pieces,
    Plan,
    Row,
    class_count,
    counted_classes,
    losses_of,
)
from jaxloss.algorithms.linear_totals import Losses, largest, shared, weighted_total
from jaxloss.core.formulas import sigmoid
from jaxloss.core.types import Array

__all__ = ["fused"]


class _Pull(NamedTuple):
    """How a row's logits pull: the slope at class v is scale exp(z_v - shift) - even, but at the label it is `own`."""

    scale: Array
    shift: Array
    even: Array | None
    own: Array  # towards the capped logit
    capped: Array  # and towards the raw one
    logit: Array  # the label's


def _pull(plan: Plan, head: Head, row: Row, ends: Ends, weight: Array, count: Array) -> _Pull:
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


def fused(
    plan: Plan, needed: tuple[bool, ...], head: Head, coefficients: Array, fixed: Fixed
) -> tuple[Losses, tuple[Array | None, ...]]:
    """Every row's loss, and the slope of their weighted total in what is needed of the head."""
    need = _Need(*needed)
    pieces = Pieces(plan, head, fixed)
    pieces.zero = pieces.zero + nothing(coefficients).astype(pieces.wide)
    blocks, wide, half = plan.blocks, pieces.wide, head.hidden.dtype.itemsize == 2
    rows, features = pieces.labels.shape[1], head.hidden.shape[1]
    count = class_count(plan, fixed.valid, wide)
    # A half-precision slope of 1e-3 / N would underflow: slopes are taken for coefficients up to 1.
    size = largest(coefficients) if half else None
    weights = row_chunks(coefficients.astype(wide) if size is None else coefficients / size, plan.chunks)
    turned = jnp.swapaxes(pieces.hidden, 1, 2) if need.kernel else None
    products = need.hidden or need.kernel or need.bias or need.soft_cap or need.temperature

    def pull(k: Any, row: Row, ends: Ends) -> _Pull:
        return _pull(plan, head, row, ends, weights[k], count)

    def grown(k: Any, j: Any, others: Array, pull: _Pull, slopes: _Slopes) -> _Slopes:
        """`slopes` with those of one block of logits added; the kernel's and the bias' are the block's alone."""
        here, fresh, valid = pieces.here(k, j), blocks.fresh(j), pieces.valid(j)
        g = jnp.exp(others - pull.shift[:, None]) * pull.scale[:, None]
        if pull.even is not None:
            counts = counted_classes(fresh, valid)
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
            kernel = kernel + kernel_slope(
                plan.options.transposed, pieces.rows(k), numbers(turned[k], head.hidden.dtype), g
            )
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
    ends_start = Ends(*(4 * [pieces.zeros(plan.chunks, rows)]))
    if head.label_smoothing is None:
        ends_start = ends_start._replace(mean=None)
    ends_start = jax.tree.map(functools.partial(shared, plan.options.axis_name), ends_start)

    if not products:

        def look(k: Any, all_ends: Ends) -> Ends:
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
    return losses_of(head, ends), tuple(found.values())


def _fast(plan: Plan, pieces: Pieces, pull: Any, grown: Any, start: _Slopes, ends_start: Ends) -> tuple[Ends, _Slopes]:
    """A chunk's logits are held from their sums to their slopes: three products."""
    blocks = plan.blocks
    rows = pieces.labels.shape[1]

    def put(whole: Array | None, part: Array | None, j: Any, axis: int) -> Array | None:
        return None if whole is None or part is None else blocks.put(whole, part, j, axis)

    def chunk(k: Any, carry: tuple[Ends, _Slopes]) -> tuple[Ends, _Slopes]:
        all_ends, slopes = carry

        def look(j: Any, carry: tuple[Row, Array]) -> tuple[Row, Array]:
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
    plan: Plan,
    pieces: Pieces,
    pull: Any,
    grown: Any,
    start: _Slopes,
    ends_start: Ends,
    block_zeros: Any,
    size: Array | None,
) -> tuple[Ends, _Slopes]:
    """Only a block of logits is ever held, and made twice: four products. A block's kernel slope is written once."""
    blocks, shape = plan.blocks, pieces.labels.shape
    kernel_dtype = pieces.head.kernel.dtype

    def look(k: Any, carry: tuple[Ends, _Pull]) -> tuple[Ends, _Pull]:
        row, ends = pieces.chunk(k)
        return jax.tree.map(lambda whole, part: whole.at[k].set(part), carry, (ends, pull(k, row, ends)))

    first = jax.eval_shape(lambda: pull(0, *pieces.chunk(0)))
    pulls = jax.tree.map(lambda _: shared(plan.options.axis_name, pieces.zeros(*shape)), first)
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
