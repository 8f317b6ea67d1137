"""CTC: the sum over all monotone alignments of labels to frames, and the best one of them (Graves et al. 2006).

S labels make 2 S + 1 states: a blank before, between and behind the labels, `blanks` [..., S + 1], and `labels`
[..., S]. A frame stays in its state or goes on by one; from label to label it may pass the blank between, unless the
two are equal.

The recursion from the end is the one from the start with time and labels turned round, so both run as one, stacked
along a first axis of 2. They meet in the middle of the frames: there the value is known after half of the steps. To
have the gradient both go on to the other's end, and each frame's occupancy is what one brings to it times what the
other left there. So only half of each is ever stored, and what is stored is overwritten by the result.

Weights are exp(z - max z) of a frame, in extended range (`algorithms/extended.py`): in log space a state near -1e4 has
an error of 1e-3, and the gradient with it, analytic or not.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.extended import (
    Extended,
    add,
    from_float,
    from_log,
    multiply,
    normalised,
    packed,
    ratio_as_float,
    select,
    sum_over,
    to_log,
    unpacked,
    zeros_like,
)
from jaxloss.core.numerics import log1p, subtract, widen
from jaxloss.core.sharding import is_label
from jaxloss.core.types import Array

__all__ = ["ctc_alignment", "ctc_nll"]


class _States(NamedTuple):
    """A number for each state, packed, in two directions: [2, ..., S + 1] and [2, ..., S]."""

    blanks: Array
    labels: Array


class _Frames(NamedTuple):
    """What the recursion reads, folded in the middle of the frames: at [t, 0] stands frame t, at [t, 1] the t-th from
    the end with the labels turned round. So both directions read [t] in step t, and again in step T - 1 - t.
    """

    scores: Array  # [T / 2, 2, ..., S + 1]: the logits of the labels, then of the blank, in their own dtype
    top: Array  # [T / 2, 2, ..., 1]: the largest logit of the frame
    exists: Array  # [T / 2, 2, ..., 1] bool


class _Lattice(NamedTuple):
    """The frames, and what is the same in all of them."""

    frames: _Frames
    may_skip: Array  # [2, ..., S] bool: label i may follow label i - 1 at once
    start: _States


def _frame_sums(logits: Array) -> tuple[Array, Array]:
    """Each frame's largest logit, and the sum of exp(z - largest) without the largest itself: [..., T, 1]."""
    top = widen(jnp.max(lax.stop_gradient(logits), axis=-1, keepdims=True, initial=-jnp.inf))
    top = jnp.where(top == -jnp.inf, 0, top)  # a frame that rules out everything lets no path through
    # Behind the barrier the widening is part of the sum; before it, XLA shares a float32 copy among all uses. Leaving
    # the largest out of the sum would keep more digits of a confident frame, at twice the time of the whole value.
    total = jnp.sum(jnp.exp(widen(lax.optimization_barrier(logits)) - top), axis=-1, keepdims=True)
    return top, total - 1


def _column(x: Array) -> Array:
    """Zeros [..., 1] for x [..., K], on its mesh axes and sharded like it, also where K is 0."""
    return jnp.sum(jnp.zeros_like(x), axis=-1, keepdims=True, dtype=x.dtype)


def _columns(x: Array, index: Array) -> Array:
    """x[..., t, index[..., s]] as [..., t, s]."""
    take = functools.partial(jnp.take, axis=-1, mode="clip")
    for _ in range(index.ndim - 1):
        take = jax.vmap(take)
    return take(x, index)


def _folded(x: Array, labels: int = 0) -> Array:
    """[..., T, K] as [T / 2, 2, ..., K] (see `_Lattice`), the first `labels` of the K turned round at [:, 1]."""
    x = jnp.moveaxis(x, -2, 0)
    x = jnp.pad(x, [(0, x.shape[0] % 2)] + [(0, 0)] * (x.ndim - 1))
    half = x.shape[0] // 2
    early, late = x[:half], x[half:][::-1]
    late = jnp.concatenate([late[..., :labels][..., ::-1], late[..., labels:]], axis=-1)
    return jnp.stack([early, late], axis=1)


def _unfolded(x: Array, frames: int, labels: int = 0) -> Array:
    """The inverse of `_folded`."""
    early, late = x[:, 0], x[::-1, 1]
    late = jnp.concatenate([late[..., :labels][..., ::-1], late[..., labels:]], axis=-1)
    return jnp.moveaxis(jnp.concatenate([early, late])[:frames], 0, -2)


def _lattice(logits: Array, top: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> _Lattice:
    count = labels.shape[-1]
    index = jnp.concatenate([labels, _column(labels) + blank], axis=-1)
    first = jnp.ones_like(labels[..., :1], bool)
    differs = labels[..., 1:] != labels[..., :-1]
    ends = jnp.stack([jnp.zeros_like(label_lengths), count - label_lengths])[..., None]
    is_start = lax.broadcasted_iota(ends.dtype, (2, *index.shape), index.ndim) == ends
    zero = jnp.expand_dims(_column(top[..., 0]), 0)
    start = from_float(jnp.where(is_start, zero + 1, zero))
    return _Lattice(
        frames=_Frames(_folded(_columns(logits, index), count), _folded(top), _folded(frames[..., None])),
        may_skip=jnp.stack([jnp.concatenate([first, x], axis=-1) for x in (differs, differs[..., ::-1])]),
        start=_States(packed(start), packed(zeros_like(start.mantissa[..., 1:]))),
    )


def _entered(states: _States, may_skip: Array, *, onwards: bool) -> _States:
    """The states of the next frame before it gives its weights, not normalised; from the left `onwards`, or back."""
    blanks, labels = (unpacked(x) for x in states)
    nothing = packed(zeros_like(blanks.mantissa[..., :1]))
    beside = [nothing, states.labels] if onwards else [states.labels, nothing]
    into_blank = add(blanks, unpacked(jnp.concatenate(beside, axis=-1)))
    inner = slice(None, -1) if onwards else slice(1, None)
    skipping, waiting = (jax.tree.map(lambda x: x[..., inner], into) for into in (into_blank, blanks))
    if not onwards:
        may_skip = jnp.concatenate([may_skip[..., 1:], may_skip[..., :1]], axis=-1)
    # The barriers, here and below, keep XLA's CPU from making the same again for each of its readers.
    return lax.optimization_barrier(
        _States(packed(into_blank), packed(add(labels, select(may_skip, skipping, waiting))))
    )


def _left(frame: _Frames, states: _States, entered: _States) -> _States:
    """The states after a frame gave its weights; one that does not exist leaves them as they are."""
    weights = unpacked(lax.optimization_barrier(packed(from_log(*subtract(widen(frame.scores), frame.top)))))
    of_labels, of_blank = jax.tree.map(lambda x: x[..., :-1], weights), jax.tree.map(lambda x: x[..., -1:], weights)

    def after(old: Array, into: Array, weight: Extended) -> Array:
        return jnp.where(frame.exists, packed(normalised(multiply(unpacked(into), weight))), old)

    return _States(after(states.blanks, entered.blanks, of_blank), after(states.labels, entered.labels, of_labels))


def _joined(lattice: _Lattice, states: _States) -> Extended:
    """The weight of all paths [...], where both directions have reached the middle."""
    parts: list[Extended] = []
    for into, left in zip(_entered(states, lattice.may_skip, onwards=True), states, strict=True):
        parts.append(sum_over(normalised(multiply(unpacked(into[0]), unpacked(left[1, ..., ::-1]))), -1))
    return normalised(add(*parts))


def _total(lattice: _Lattice) -> Extended:
    """The weight of all paths [...], in half as many steps as there are frames."""

    def step(states: _States, frame: _Frames) -> tuple[_States, None]:
        return _left(frame, states, _entered(states, lattice.may_skip, onwards=True)), None

    return _joined(lattice, lax.scan(step, lattice.start, lattice.frames)[0])


def _shares(lattice: _Lattice) -> tuple[Extended, Array]:
    """The weight of all paths [...], and what share of it goes through each label: [T / 2, 2, ..., S], folded.

    Only the labels' history is kept: the blanks have the rest of each frame. Memory is what costs here.
    """

    def meet(states: _States, frame: _Frames) -> tuple[_States, Array]:
        entered = _entered(states, lattice.may_skip, onwards=True)
        return _left(frame, states, entered), entered.labels

    states, history = lax.scan(meet, lattice.start, lattice.frames)
    total = _joined(lattice, states)
    whole = jax.tree.map(lambda z: z[None, ..., None], total)

    def part(states: _States, read: tuple[_Frames, Array]) -> tuple[_States, Array]:
        frame, other = read
        states = _left(frame, states, _entered(states, lattice.may_skip, onwards=False))
        return states, ratio_as_float(multiply(unpacked(states.labels), unpacked(other)), whole)

    # Each direction goes on where the other has been, and is turned round once instead of that.
    states = jax.tree.map(lambda x: x[::-1, ..., ::-1], states)
    return total, lax.scan(part, states, (lattice.frames, history), reverse=True)[1]


def _loss(normalizer: Array, total: Extended) -> tuple[Array, Array]:
    """The loss, >= 0, and whether it is one: inf where no path exists; nan scores are not taken for that."""
    log_total = to_log(total)
    exists = (log_total > -jnp.inf) | jnp.isnan(normalizer)
    # A confident sequence's weight rounds to 1, and the rounding of others' to a little more than they are.
    return jnp.where(exists, jnp.maximum(normalizer - log_total, 0), jnp.inf), exists


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def ctc_nll(logits: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> Array:
    """-log of the probability of all alignments: [..., T, V], [..., S], bool [..., T], [...] -> [...].

    The frames that exist come first, and labels are in range. No alignment: inf, and a gradient of exactly 0.
    """
    top, others = _frame_sums(logits)
    lattice = _lattice(logits, top, labels, frames, label_lengths, blank)
    return _loss(_normalizer(others, frames), _total(lattice))[0]


def _normalizer(others: Array, frames: Array) -> Array:
    return jnp.sum(jnp.where(frames, log1p(others[..., 0]), 0), axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _nll_and_gradient(
    logits: Array, labels: Array, frames: Array, label_lengths: Array, blank: int
) -> tuple[Array, Array]:
    top, others = _frame_sums(logits)
    lattice = _lattice(logits, top, labels, frames, label_lengths, blank)
    total, shares = _shares(lattice)
    value, exists = _loss(_normalizer(others, frames), total)
    count = logits.shape[-2]
    # Exponentials kept from the first sum would be a float32 array of the logits' size: made again, once all is known.
    again, _ = lax.optimization_barrier((logits, total))
    p = jnp.exp(widen(again) - top) / (1 + others)
    in_labels = _unfolded(shares, count, labels.shape[-1])
    held = _scattered(in_labels, labels, logits.shape[-1])
    at_blank = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == blank
    held = held + jnp.where(at_blank, 1 - jnp.sum(in_labels, axis=-1, keepdims=True), 0)
    return value, jnp.where(frames[..., None] & exists[..., None, None], p - held, 0)


def _scattered(shares: Array, labels: Array, classes: int) -> Array:
    """Each label's share [..., T, S] in its class's column: [..., T, V]."""
    if labels.shape[-1] * classes <= _DENSE:
        shape = (*labels.shape, classes)
        here = is_label(jnp.zeros_like(shares, shape=shape), labels, len(shape) - 1)
        return _product(shares, here)
    # The shares of equal labels gather in the first of them; then each class reads its first label's, or nothing.
    same = labels[..., :, None] == labels[..., None, :]
    order = lax.broadcasted_iota(jnp.int32, same.shape, same.ndim - 1)
    first = jnp.argmax(same, axis=-1)
    gathered = _product(shares, order == first[..., None])
    shape = (*labels.shape, classes)
    here = is_label(jnp.zeros_like(shares, shape=shape), labels, len(shape) - 1)
    return jnp.where(jnp.any(here, axis=-2)[..., None, :], _columns(gathered, jnp.argmax(here, axis=-2)), 0)


_DENSE = 2**15  # labels times classes up to which one product is the quickest way


def _product(shares: Array, here: Array) -> Array:
    return jnp.matmul(shares, here.astype(shares.dtype), precision=lax.Precision.HIGHEST)


@ctc_nll.defjvp
def _nll_rule(blank: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    value, gradient = _nll_and_gradient(*primals, blank)
    return value, jnp.sum(gradient * widen(tangents[0]), axis=(-2, -1))


@_nll_and_gradient.defjvp
def _gradient_rule(
    blank: int, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    logits, labels, frames, label_lengths = primals
    value, gradient = _nll_and_gradient(logits, labels, frames, label_lengths, blank)
    slope = jax.grad(lambda z: jnp.sum(_log_space(z, labels, frames, label_lengths, blank)))
    dz = widen(tangents[0])
    change = jax.jvp(slope, (widen(logits),), (dz,))[1]
    return (value, gradient), (jnp.sum(gradient * dz, axis=(-2, -1)), change)


# In place of -inf, whose differences are nan; far below every sum of logits that has digits.
_NEVER = -1e30


def _log_space(logits: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> Array:
    """The same loss in plain differentiable pieces, for second derivatives; 0 where no alignment exists."""
    ruled_out = logits == -jnp.inf
    scores = jax.nn.log_softmax(jnp.where(ruled_out, _NEVER, logits), axis=-1)
    scores = jnp.where(frames[..., None] & ~ruled_out, scores, _NEVER)
    index = jnp.concatenate([labels, _column(labels) + blank], axis=-1)
    scores = jnp.moveaxis(_columns(scores, index), -2, 0)
    differs = jnp.concatenate([jnp.zeros_like(labels[..., :1], bool), labels[..., 1:] != labels[..., :-1]], axis=-1)
    zero = _column(logits[..., 0])
    never = zero + _NEVER
    start = jnp.where(lax.broadcasted_iota(jnp.int32, index.shape, index.ndim - 1) == 0, zero, never)

    def step(states: tuple[Array, Array], frame: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        (blanks, labels), (scores, exists) = states, frame
        behind = jnp.concatenate([never, labels], axis=-1)
        into_blank = jnp.logaddexp(blanks, behind)
        into_label = jnp.logaddexp(labels, jnp.where(differs, into_blank[..., :-1], blanks[..., :-1]))
        blanks = jnp.where(exists, jnp.maximum(into_blank + scores[..., -1:], _NEVER), blanks)
        labels = jnp.where(exists, jnp.maximum(into_label + scores[..., :-1], _NEVER), labels)
        return (blanks, labels), None

    exists = jnp.moveaxis(frames[..., None], -2, 0)
    (blanks, states), _ = lax.scan(step, (start, start[..., 1:]), (scores, exists))
    ends = jnp.logaddexp(blanks, jnp.concatenate([never, states], axis=-1))
    end = jnp.take_along_axis(ends, label_lengths[..., None], axis=-1, mode="clip")[..., 0]
    return jnp.where(end > 0.5 * _NEVER, -end, 0)


def ctc_alignment(
    logits: Array,
    labels: Array,
    *,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    blank: int = 0,
) -> tuple[Array, Array]:
    """Forced alignment: the most probable single path of labels through the frames (Viterbi), and its log-probability.

    Args:
      logits: [..., T, V] real; what lies behind a length may be nan.
      labels: [..., S] integer in [0, V) without the blank; behind a length anything.
      logit_lengths, label_lengths: [...] integer, how many frames and labels exist; None is all.
      blank: the class in [0, V) that stands for no label.
    Returns: int32 [..., T], the index in [0, S) of the label that each frame says, -1 for the blank and behind the
      length (its class is `labels[index]`; two equal labels in a row keep their two indices); and [...] in nats,
      <= 0. Of equally probable paths the one that moves on later. No path: all -1, and -inf.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if logits.ndim < 2 or labels.shape[:-1] != logits.shape[:-2] or labels.ndim != logits.ndim - 1:
        raise ValueError(
            f"`logits` {list(logits.shape)} must be [..., T, V] and `labels` {list(labels.shape)} [..., S] of one batch"
        )
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(f"`blank` {blank} must be a class of `logits` {list(logits.shape)}: in [0, V)")
    steps, count = logits.shape[-2], labels.shape[-1]
    nothing = _column(labels)
    full = nothing[..., 0]
    ends = 2 * (full + count if label_lengths is None else jnp.asarray(label_lengths, labels.dtype))[..., None]
    used = (full + steps if logit_lengths is None else jnp.asarray(logit_lengths, labels.dtype))[..., None]
    time = lax.broadcasted_iota(used.dtype, (*full.shape, steps), full.ndim)
    exists = time < used
    scores = widen(jnp.where(exists[..., None], logits, 0))
    scores = scores - (jnp.max(scores, axis=-1, keepdims=True) + log1p(_frame_sums(scores)[1]))

    # The blank before each label, the label, ..., and the last blank.
    states = jnp.stack([jnp.full_like(labels, blank), labels], axis=-1).reshape(*full.shape, 2 * count)
    states = jnp.concatenate([states, nothing + blank], axis=-1)
    may_skip = jnp.concatenate([jnp.zeros_like(states[..., :2], bool), states[..., 2:] != states[..., :-2]], axis=-1)
    may_skip = may_skip[..., : states.shape[-1]]
    frames = jnp.moveaxis(_columns(scores, states), -2, 0)

    def delayed(x: Array, by: int) -> Array:
        none = jnp.full_like(x, -jnp.inf)[..., :by]
        return jnp.concatenate([none, x], axis=-1)[..., : x.shape[-1]]

    def step(best: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, exists = frame
        skipping = jnp.where(may_skip, delayed(best, 2), -jnp.inf)
        ways = jnp.stack([best, delayed(best, 1), skipping])
        back = jnp.where(exists, jnp.argmax(ways, axis=0), 0)
        return jnp.where(exists, jnp.max(ways, axis=0) + scores, best), back.astype(jnp.int8)

    is_first = lax.broadcasted_iota(jnp.int32, states.shape, states.ndim - 1) == 0
    start = jnp.where(is_first, _column(scores[..., 0]), -jnp.inf)
    alive = jnp.moveaxis(exists[..., None], -2, 0)
    best, back = lax.scan(step, start, (frames, alive))
    last = jnp.maximum(ends - 1, 0)
    in_blank, in_label = (jnp.take_along_axis(best, at, axis=-1, mode="clip") for at in (ends, last))
    value = jnp.maximum(in_blank, in_label)

    def trace(state: Array, back: Array) -> tuple[Array, Array]:
        return state - jnp.take_along_axis(back, state, axis=-1, mode="clip").astype(state.dtype), state

    _, path = lax.scan(trace, jnp.where(in_label > in_blank, last, ends), back, reverse=True)
    path = jnp.moveaxis(path[..., 0], 0, -1)
    says = exists & (path % 2 == 1) & (value > -jnp.inf)
    return jnp.where(says, path // 2, -1).astype(jnp.int32), value[..., 0]
