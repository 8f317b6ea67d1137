"""CTC: the sum over all monotone alignments of labels to frames, and the best one of them (Graves et al. 2006).

S labels make 2 S + 1 states: a blank before, between and behind the labels, `blanks`, and `labels`. Both are [..., S +
1]: label i stands at i + 1, behind blank i, and what is at 0 goes nowhere. So a step moves one array by one place, and
XLA's CPU vectorises the rest. A frame stays in its state or goes on by one; from label to label it may pass the blank
between, unless the two are equal.

The recursion from the end is the one from the start with time and labels turned round, so both run as one, stacked
along a first axis of 2. They meet in the middle of the frames: there the value is known after half of the steps. To
have the gradient both go on to the other's end, and each frame's occupancy is what one brings to it times what the
other left there. So only half of each is ever stored, and what is stored is overwritten by the result: pages of memory
that no call has touched before cost as much as the arithmetic.

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
    as_float,
    from_float,
    from_log,
    inverse,
    multiply,
    normalised,
    packed,
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
    """A number for each state, packed, in two directions: both [2, ..., S + 1]."""

    blanks: Array
    labels: Array


class _Frames(NamedTuple):
    """What the recursion reads, folded in the middle of the frames: at [t, 0] stands frame t, at [t, 1] the t-th from
    the end with the labels turned round. So both directions read [t] in step t, and again in step T - 1 - t.
    """

    scores: Array  # [T / 2, 2, ..., S + 2]: the logits of the blank, the labels and the blank, in their own dtype
    top: Array  # [T / 2, 2, ..., 1]: the largest logit of the frame
    exists: Array  # [T / 2, 2, ..., 1] bool


class _Lattice(NamedTuple):
    """The frames, and what is the same in all of them."""

    frames: _Frames
    may_skip: Array  # [2, ..., S + 1] bool: label i may follow label i - 1 at once
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


def _folded(x: Array) -> Array:
    """[..., T, K] as [T / 2, 2, ..., K] (see `_Frames`), the K turned round at [:, 1]; T / 2 is at least 1."""
    x = jnp.moveaxis(x, -2, 0)
    half = max(1, (x.shape[0] + 1) // 2)
    x = jnp.pad(x, [(0, 2 * half - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return jnp.stack([x[:half], x[half:][::-1, ..., ::-1]], axis=1)


def _unfolded(x: Array, frames: int) -> Array:
    """The inverse of `_folded`."""
    return jnp.moveaxis(jnp.concatenate([x[:, 0], x[::-1, 1, ..., ::-1]])[:frames], 0, -2)


def _lattice(logits: Array, top: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> _Lattice:
    count = labels.shape[-1]
    at_blank = _column(labels) + blank
    scores = _columns(logits, jnp.concatenate([at_blank, labels, at_blank], axis=-1))
    always = jnp.ones_like(at_blank, bool)
    differs = labels[..., 1:] != labels[..., :-1]
    ends = jnp.stack([jnp.zeros_like(label_lengths), count - label_lengths])[..., None]
    is_start = lax.broadcasted_iota(ends.dtype, (2, *scores.shape[:-2], count + 1), labels.ndim) == ends
    zero = jnp.expand_dims(_column(top[..., 0]), 0)
    start = from_float(jnp.where(is_start, zero + 1, zero))
    ways = [jnp.concatenate([always[..., :count], x, always], axis=-1) for x in (differs, differs[..., ::-1])]
    return _Lattice(
        frames=_Frames(_folded(scores), _folded(top), _folded(frames[..., None])),
        may_skip=jnp.stack(ways),
        start=_States(packed(start), packed(zeros_like(start.mantissa))),
    )


def _weights(frames: _Frames) -> Array:
    """The weights that frames give to the blank, the labels and the blank, packed."""
    # The barriers, here and below, keep XLA's CPU from making the same again for each of its readers.
    scores = lax.optimization_barrier(frames.scores)
    return lax.optimization_barrier(packed(from_log(*subtract(widen(scores), frames.top))))


def _entered(states: _States, may_skip: Array, *, onwards: bool) -> _States:
    """The states of the next frame before it gives its weights, not normalised; from the left `onwards`, or back."""
    blanks, labels = states
    nothing = jnp.zeros_like(labels[..., :1])
    beside = labels if onwards else lax.optimization_barrier(jnp.concatenate([labels[..., 1:], nothing], axis=-1))
    into_blank = lax.optimization_barrier(packed(add(unpacked(blanks), unpacked(beside))))
    leaving = jnp.where(may_skip, into_blank, blanks)
    if onwards:
        leaving = lax.optimization_barrier(jnp.concatenate([nothing, leaving[..., :-1]], axis=-1))
    return _States(into_blank, packed(add(unpacked(labels), unpacked(leaving))))


def _left(exists: Array, weights: Array, states: _States, entered: _States) -> _States:
    """The states after a frame gave its weights; one that does not exist leaves them as they are."""

    def after(old: Array, into: Array, weight: Array) -> Array:
        return jnp.where(exists, packed(normalised(multiply(unpacked(into), unpacked(weight)))), old)

    of_blank, of_labels = weights[..., -1:], weights[..., :-1]
    return _States(after(states.blanks, entered.blanks, of_blank), after(states.labels, entered.labels, of_labels))


def _turned(states: _States) -> _States:
    """What each direction left, as the other goes on with it."""
    blanks, labels = states.blanks[::-1], states.labels[::-1]
    return _States(blanks[..., ::-1], jnp.concatenate([labels[..., :1], labels[..., :0:-1]], axis=-1))


def _joined(lattice: _Lattice, states: _States) -> Extended:
    """The weight of all paths [...], where both directions have reached the middle."""
    parts: list[Extended] = []
    for into, left in zip(_entered(states, lattice.may_skip, onwards=True), _turned(states), strict=True):
        parts.append(sum_over(normalised(multiply(unpacked(into[0]), unpacked(left[0]))), -1))
    return normalised(add(*parts))


# Scores up to which all frames' weights are made at once: less to do in a step, at 8 bytes each.
_KEPT = 2**20


def _kept(frames: _Frames) -> Array | None:
    return _weights(frames) if frames.scores.size <= _KEPT else None


def _total(lattice: _Lattice) -> Extended:
    """The weight of all paths [...], in half as many steps as there are frames."""
    frames, may_skip, start = lattice

    def step(states: _States, read: tuple[_Frames, Array | None]) -> tuple[_States, None]:
        frame, kept = read
        entered = _entered(states, may_skip, onwards=True)
        return _left(frame.exists, _weights(frame) if kept is None else kept, states, entered), None

    return _joined(lattice, lax.scan(step, start, (frames, _kept(frames)))[0])


def _shares(lattice: _Lattice) -> tuple[Extended, Array]:
    """The weight of all paths [...], and what share of it goes through each label: [T / 2, 2, ..., S], folded.

    Only the labels' history is kept: the blanks have the rest of each frame. Memory is what costs here.
    """
    frames, may_skip, start = lattice
    weights = _kept(frames)

    def meet(states: _States, read: tuple[_Frames, Array | None]) -> tuple[_States, Array]:
        frame, kept = read
        entered = _entered(states, may_skip, onwards=True)
        states = _left(frame.exists, _weights(frame) if kept is None else kept, states, entered)
        return states, states.labels

    states, history = lax.scan(meet, start, (frames, weights))
    total = _joined(lattice, states)

    def part(
        carry: tuple[_States, Array], read: tuple[_Frames, Array | None, Array]
    ) -> tuple[tuple[_States, Array], None]:
        (states, history), (frame, kept, t) = carry, read
        entered = _entered(states, may_skip, onwards=False)
        left = unpacked(lax.dynamic_index_in_dim(history, t, keepdims=False))
        share = as_float(multiply(unpacked(entered.labels), left)).astype(history.dtype)
        states = _left(frame.exists, _weights(frame) if kept is None else kept, states, entered)
        return (states, lax.dynamic_update_index_in_dim(history, share, t, 0)), None

    # Each direction goes on where the other has been: the states are turned round once, instead of all frames.
    whole = jax.tree.map(lambda z: z[None, ..., None], inverse(total))
    states = _States(*(packed(normalised(multiply(unpacked(x), whole))) for x in _turned(states)))
    steps = jnp.arange(history.shape[0])
    (_, shares), _ = lax.scan(part, (states, history), (frames, weights, steps), reverse=True)
    return total, lax.real(shares)[..., 1:]


def _loss(normalizer: Array, total: Extended) -> tuple[Array, Array]:
    """The loss, >= 0, and whether it is one: inf where no path exists; nan scores are not taken for that."""
    log_total = to_log(total)
    exists = (log_total > -jnp.inf) | jnp.isnan(normalizer)
    # A confident sequence's weight rounds to 1, and the rounding of others' to a little more than they are.
    return jnp.where(exists, jnp.maximum(normalizer - log_total, 0), jnp.inf), exists


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def ctc_nll(logits: Array, labels: Array, frames: Array, label_lengths: Array, blank: int) -> Array:
    """-log of the probability of all alignments: [..., T, V], [..., S], bool [..., T], [...] -> [...].

    The frames that exist need not come first; labels are in range. No alignment: inf, and a gradient of exactly 0.
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
    in_labels = _unfolded(shares, count)
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
