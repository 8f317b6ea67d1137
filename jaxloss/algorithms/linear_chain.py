"""Linear-chain models: likelihood, marginals and the best path, with each step a matrix product.

The recursions run in the linear domain: a message is rescaled at every step, and a transition is exp(A) between shifts,
so that one step of all sequences is one matrix product. What underflows matters only where a message's entries lie more
than about 28 nats apart; a bound on what was lost is checked, and where it does not hold the recursion in log space
replaces the result. (Lafferty, McCallum and Pereira 2001; forward-backward: Rabiner 1989.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from jaxloss.core import inputs
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.formulas import label_nll
from jaxloss.core.numerics import log1p
from jaxloss.core.sharding import is_label, is_sharded, take_label
from jaxloss.core.types import Array, ArrayLike, Lengths, Logit

__all__ = ["assert_states", "chain_expectations", "chain_marginals", "chain_nll", "path_score", "viterbi", "with_ends"]

# Stands for -inf, so that no difference of two is nan; a thousand of them still do not overflow, and no sum of
# potentials brings one back.
_FORBIDDEN = -1e30


class _Range(NamedTuple):
    """Where numbers are kept in the format, and how far below the largest one a message's entries may lie."""

    message: float  # the sum of a message's entries
    potential: float  # the largest exp(potential) of a step
    least_entry: float  # of a product with the transitions, over `message`
    least_sum: float  # of a step's message before it is rescaled, over `message * potential`


def _range(dtype: jnp.dtype) -> _Range:
    # An exponential underflows below 2^-126 of the largest, so below 2^-126 / least_sum of a message, and so below
    # 2^-30 of any entry of a product that is at least `least_entry`. The scales keep products from underflowing.
    wide = int(jnp.finfo(dtype).maxexp) // 128
    return _Range(2.0 ** (50 * wide), 2.0 ** (60 * wide), 2.0 ** (-56 * wide), 2.0 ** (-40 * wide))


class _Chain(NamedTuple):
    """A batch of chains, time first; what is forbidden is `_FORBIDDEN`."""

    emissions: Array  # [T, ..., K]
    transitions: Array  # [K, K]
    exists: Array  # [T, ...] bool, True up to the length
    before: Array  # [T, ...] bool, whether a step exists and has one before it
    behind: Array  # [T, ...] bool, whether a step exists and has one behind it


def _chain(emissions: Array, transitions: Array, exists: Array) -> _Chain:
    steps = exists.shape[-1]
    # Laid out over a mesh like the emissions, also where a caller made it from nothing.
    alive = jnp.moveaxis(exists | jnp.zeros_like(emissions[..., 0], bool), -1, 0)
    nowhere = alive[:0] if steps == 0 else alive[:1] & ~alive[:1]
    return _Chain(
        _floored(jnp.moveaxis(emissions, -2, 0)),
        _floored(transitions),
        alive,
        jnp.concatenate([nowhere, alive[1:]]),
        jnp.concatenate([alive[1:], nowhere]),
    )


def _floored(x: Array) -> Array:
    return jnp.where(x <= _FORBIDDEN, _FORBIDDEN, x)  # nan stays


def _entrywise(vector: Array, like: Array) -> Array:
    """A vector [K] with the rank of `like` [..., K]."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _matrix(transitions: Array, like: Array) -> Array:
    """[K, K] beside [..., K]."""
    return transitions.reshape((1,) * (like.ndim - 1) + transitions.shape)


def path_score(emissions: Array, transitions: Array, labels: Array, exists: Array) -> Array:
    """The sum of all potentials on a path, [...]; arguments as of `chain_nll`."""
    own = jnp.squeeze(take_label(emissions, labels, labels.ndim), -1)
    step = _step_entries(transitions, labels[..., :-1], labels[..., 1:])
    alive = exists[..., 1:]
    return jnp.sum(jnp.where(exists, own, 0), axis=-1) + jnp.sum(jnp.where(alive, step, 0), axis=-1)


# --- The recursions in the linear domain --------------------------------------------------------------------------


class _Direction(NamedTuple):
    """What one direction of the recursion reads."""

    matrix: Array  # [K, K] exp(A - shift)
    shift: Array  # [K] the largest log-transition into (forward) or out of (backward) each state, less the largest
    linked: Array  # [T, ...] bool, whether there is a step to come from


def _direction(chain: _Chain, *, forward: bool) -> _Direction:
    a = chain.transitions
    shift = jnp.max(a, axis=0 if forward else 1)
    matrix = jnp.exp(a - (shift[None, :] if forward else shift[:, None]))
    return _Direction(matrix, shift - jnp.max(shift), chain.before if forward else chain.behind)


def _potentials(chain: _Chain) -> tuple[Array, Array]:
    """Of each step exp(emissions), its largest scaled to one size, and the logarithm of the largest, [T, ..., 1]."""
    largest = jnp.max(chain.emissions, axis=-1, keepdims=True)
    return jnp.exp(chain.emissions - largest) * _range(chain.emissions.dtype).potential, largest


class _Message(NamedTuple):
    """One step of a recursion."""

    arrived: Array  # [..., K] through the transitions, before the step's own potential; `message` where nothing did
    entries: Array  # [..., K] with it, of sum `message`
    total: Array  # [..., 1] the sum before rescaling
    matters: Array  # [..., K] bool: an entry without potential carries nothing on, whatever arrived there


def _message(product: Array, linked: Array, potential: Array, factor: Array) -> _Message:
    limits = _range(potential.dtype)
    arrived = jnp.where(linked[..., None], product, limits.message)
    shifted = _with_shift(linked, potential, factor)
    entries = arrived * shifted
    total = jnp.sum(entries, axis=-1, keepdims=True)
    return _Message(arrived, entries * (limits.message / total), total, shifted > 0)


def _with_shift(linked: Array, potential: Array, factor: Array) -> Array:
    return jnp.where(linked[..., None], potential * _entrywise(factor, potential), potential)


def _least(message: _Message) -> Array:
    """The smallest number that must not have lost anything, over its bound, [...]: below 1 something may be lost."""
    limits = _range(message.total.dtype)
    entry = jnp.min(jnp.where(message.matters, message.arrived, limits.message), axis=-1)
    total = message.total[..., 0] / limits.message / limits.potential
    return jnp.minimum(entry / (limits.message * limits.least_entry), total / limits.least_sum)


def _taken(table: Array, index: Array) -> Array:
    """table[index], [..., *rest of table], with the index clipped into range."""
    spread = any(is_sharded(index, axis) for axis in range(index.ndim))
    # On an explicit mesh jax wants to be told that what is taken lies where the index does.
    here = PartitionSpec(*jax.typeof(index).sharding.spec, *[None] * (table.ndim - 1)) if spread else None
    return table.at[index].get(mode="clip", out_sharding=here)


def _step_entries(transitions: Array, before: Array, labels: Array) -> Array:
    """transitions[before, labels]."""
    return _taken(transitions.reshape(-1), before * transitions.shape[0] + labels)


def _previous(labels: Array) -> Array:
    return jnp.concatenate([labels[:1], labels[:-1]])


def _log_own(chain: _Chain, back: _Direction, largest: Array, labels: Array) -> Array:
    """The logarithm of each label's own part of its step, less what the messages are scaled by."""
    # Each row of the matrix is scaled by its own largest entry, which the step before has as its factor.
    rows = jnp.max(chain.transitions, axis=1)
    step = _step_entries(chain.transitions, _previous(labels), labels) - _taken(rows, _previous(labels))
    own = jnp.squeeze(take_label(chain.emissions, labels, labels.ndim) - largest, -1)
    own = own + jnp.where(chain.behind, _taken(back.shift, labels), 0)
    return own + jnp.where(chain.before, step, 0)


def _conditional_nll(
    matrix: Array, before: Array, previous: Array, labels: Array, log_own: Array, message: _Message
) -> tuple[Array, Array]:
    """-log p(label | the label before, all emissions), never negative, and exact where the label is certain; and over
    its bound the number that must not have been lost: both [...]."""
    limits = _range(matrix.dtype)
    row = _taken(matrix, previous)
    joint = jnp.where(before[..., None], row, 1) * message.entries
    here = is_label(joint, labels, labels.ndim)
    others = jnp.sum(jnp.where(here, 0, joint), axis=-1)
    own = jnp.sum(jnp.where(here, joint, 0), axis=-1)
    arrived = jnp.sum(jnp.where(here, message.arrived, 0), axis=-1) / limits.message
    # The own part may have underflowed, but not its logarithm.
    rescaled = jnp.log(arrived) - jnp.log(message.total[..., 0] / limits.potential / limits.message)
    far = jnp.log((others + own) / limits.message) - log_own - rescaled
    likely = own > others
    return jnp.where(likely, log1p(others / jnp.where(likely, own, 1)), far), arrived / limits.least_entry


def _nothing(chain: _Chain, labels: Array) -> Array:
    """Zeros [..., K] that vary over a mesh like everything that a recursion reads."""
    varies = jnp.where(chain.exists[0] & chain.before[0] & chain.behind[0], labels[0], 0)
    like = chain.emissions[0] + chain.transitions[0, 0] + varies[..., None].astype(chain.emissions.dtype)
    return jnp.zeros_like(like)


def _linear_nll(chain: _Chain, labels: Array) -> tuple[Array, Array]:
    """-log p(labels), and whether it can be trusted; by the backward recursion, of which nothing is kept."""
    back = _direction(chain, forward=False)
    potential, largest = _potentials(chain)
    factor = jnp.exp(back.shift)

    def step(carry: tuple[Array, Array, Array], x: Sequence[Array]) -> tuple[tuple[Array, Array, Array], None]:
        entries, nll, least = carry
        linked, potential, before, exists, previous, label, own = x
        product = jnp.matmul(entries, back.matrix.T, precision="highest")
        message = _message(product, linked, potential, factor)
        each, kept = _conditional_nll(back.matrix, before, previous, label, own, message)
        least = jnp.minimum(least, jnp.minimum(_least(message), jnp.where(exists, kept, 1)))
        return (message.entries, nll + jnp.where(exists, each, 0), least), None

    start = _nothing(chain, labels)
    none = jnp.sum(start, axis=-1)
    own = _log_own(chain, back, largest, labels)
    steps = (back.linked, potential, chain.before, chain.exists, _previous(labels), labels, own)
    (_, nll, least), _ = lax.scan(step, (start, none, none + jnp.inf), steps, reverse=True)
    return nll, jnp.all(least >= 1)


class _Expected(NamedTuple):
    """What a chain with labels is asked for."""

    nll: Array  # [...]
    states: Array  # [T, ..., K] the probability of each state, 0 behind the length
    pairs: Array  # [..., K, K] how often each transition is expected


def _linear_expected(chain: _Chain, labels: Array) -> tuple[_Expected, Array]:
    """The expectations, and whether they can be trusted; both recursions in one loop, whose cost is then paid once."""
    to, back = (_direction(chain, forward=forward) for forward in (True, False))
    potential, largest = _potentials(chain)
    limits = _range(potential.dtype)
    matrices = jnp.stack([to.matrix, back.matrix.T])
    into, out = jnp.exp(to.shift), jnp.exp(back.shift)
    factors = jnp.stack([into, out]).reshape((2,) + (1,) * (potential.ndim - 2) + into.shape)

    def both(forward: Array, backward: Array) -> Array:
        return jnp.stack([forward, jnp.flip(backward, 0)], axis=1)

    def step(entries: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        linked, potential = x
        product = jnp.einsum("d...i,dij->d...j", entries, matrices, precision="highest")
        potential = jnp.where(linked[..., None], potential * factors, potential)
        message = _message(product, linked, potential, jnp.ones_like(into))
        return message.entries, message.arrived

    start = _nothing(chain, labels)
    _, arrived = lax.scan(step, jnp.stack([start, start]), (both(to.linked, back.linked), both(potential, potential)))
    # What is not kept is cheaper made again: one pass over everything.
    forward = _message(arrived[:, 0], to.linked, potential, into)
    backward = _message(jnp.flip(arrived[:, 1], 0), back.linked, potential, out)

    own = _log_own(chain, back, largest, labels)
    each, kept = _conditional_nll(back.matrix, chain.before, _previous(labels), labels, own, backward)
    nll = jnp.sum(jnp.where(chain.exists, each, 0), axis=0)

    # exp(shift) into a state stands in no message: the backward one knows what leads out, and not what led in.
    rest = _with_shift(chain.before, backward.entries, into)
    joint = forward.arrived * rest
    total = jnp.sum(joint, axis=-1, keepdims=True)
    states = jnp.where(chain.exists[..., None], joint / total, 0)
    rest = jnp.where(chain.before[..., None], rest / total, 0)
    pairs = jnp.einsum("t...i,t...j->...ij", forward.entries[:-1], rest[1:], precision="highest")
    pairs = pairs * _matrix(to.matrix, pairs[..., 0])
    enough = total[..., 0] / limits.message / (limits.message * limits.least_entry)
    least = jnp.minimum(_least(forward), _least(backward))
    least = jnp.minimum(least, jnp.where(chain.exists, jnp.minimum(enough, kept), 1))
    return _Expected(nll, states, pairs), jnp.all(least >= 1)


# --- The recursion in log space -----------------------------------------------------------------------------------


def _log_messages(emissions: Array, transitions: Array, behind: Array) -> Array:
    """The backward messages with their step's potential, [T, ..., K], up to a constant; transitions [..., K, K]."""

    def shifted(x: Array) -> Array:
        # Without it numbers would grow with the length, and lose digits.
        return x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))

    @jax.checkpoint  # else the gradient would keep [T, ..., K, K]
    def step(later: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        emission, linked = x
        arrived = jax.nn.logsumexp(transitions + later[..., None, :], axis=-1)
        message = shifted(emission + jnp.where(linked[..., None], arrived, 0))
        return message, message

    start = jnp.zeros_like(emissions[0] + transitions[..., 0] + behind[0][..., None].astype(emissions.dtype))
    return lax.scan(step, start, (emissions, behind), reverse=True)[1]


def _log_expected(
    emissions: Array, transitions: Array, exists: Array, before: Array, behind: Array, labels: Array
) -> _Expected:
    # Made with the emissions, so that inside `shard_map` a slope in it stays on its device.
    each_its_own = _matrix(transitions, emissions[0]) + jnp.zeros_like(emissions[0])[..., None]

    def log_partition(emissions: Array, transitions: Array) -> Array:
        return jax.nn.logsumexp(_log_messages(emissions, transitions, behind)[0], axis=-1)

    log_z, slopes = jax.vjp(log_partition, emissions, each_its_own)
    states, pairs = slopes(jnp.ones_like(log_z))
    rows = jnp.where(before[..., None], _taken(transitions, _previous(labels)), 0)
    each = label_nll(rows + _log_messages(emissions, each_its_own, behind), labels, labels.ndim)
    states = jnp.where(exists[..., None], states, 0)
    return _Expected(jnp.sum(jnp.where(exists, each, 0), axis=0), states, pairs)


# --- Either -------------------------------------------------------------------------------------------------------


def _unless(trusted: Array, found: Any, otherwise: Callable[[_Chain], Any], chain: _Chain) -> Any:
    """`found`, or what `otherwise(chain)` gives: a loop of at most one turn, since vmap computes both of a cond."""

    def again(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        trusted, _ = carry
        # What does not depend on the turn XLA would compute before the loop, wanted or not.
        emissions = jnp.where(trusted, 0, chain.emissions)
        return trusted | ~trusted, otherwise(chain._replace(emissions=emissions))

    return lax.while_loop(lambda carry: ~carry[0], again, (trusted, found))[1]


@jax.custom_jvp
def _expected(chain: _Chain, labels: Array) -> _Expected:
    found, trusted = _linear_expected(chain, labels)
    return _unless(trusted, found, lambda chain: _log_expected(*chain, labels), chain)


@_expected.defjvp
def _expected_rule(primals: tuple[_Chain, Array], tangents: tuple[Any, Any]) -> tuple[_Expected, _Expected]:
    (chain, labels), (d_chain, _) = primals, tangents

    def plain(emissions: Array, transitions: Array) -> _Expected:
        return _log_expected(emissions, transitions, *chain[2:], labels)

    # The derivative of log space's gradient, not of the loop's: exact wherever the potentials lie.
    given = chain.emissions, chain.transitions
    _, tangent = jax.jvp(plain, given, (d_chain.emissions, d_chain.transitions))
    return _expected(chain, labels), tangent


def chain_expectations(emissions: Array, transitions: Array, exists: Array) -> tuple[Array, Array]:
    """The probability of each state at each step, [..., T, K], and each transition's expected count, [..., K, K].

    Args:
      emissions: [..., T, K] float32 or wider; -inf forbids.
      transitions: [K, K], from row to column; -inf forbids.
      exists: [..., T] bool, True up to each chain's length.
    """
    if exists.shape[-1] == 0:
        return emissions, jnp.sum(emissions, axis=-2)[..., None] * transitions
    chain = _chain(emissions, transitions, exists)
    found = _expected(chain, jnp.zeros_like(chain.exists, jnp.int32))
    return jnp.moveaxis(found.states, 0, -2), found.pairs


def chain_nll(emissions: Array, transitions: Array, labels: Array, exists: Array) -> Array:
    """-log p(labels) of each chain, [...]; +inf with zero gradient where a label or a step between two is forbidden.

    Args:
      emissions, transitions, exists: see `chain_expectations`.
      labels: [..., T] integer in [0, K).
    """
    if exists.shape[-1] == 0:
        return jnp.sum(emissions, axis=(-2, -1))
    return _chain_nll(_chain(emissions, transitions, exists), jnp.moveaxis(labels, -1, 0))


@jax.custom_jvp
def _chain_nll(chain: _Chain, labels: Array) -> Array:
    found, trusted = _linear_nll(chain, labels)
    nll = _unless(trusted, found, lambda chain: _log_expected(*chain, labels).nll, chain)
    return jnp.where(_possible(chain, labels), nll, jnp.inf)


def _nll_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (chain, labels), (d_chain, _) = primals, tangents
    nll, states, pairs = _expected(chain, labels)
    possible = _possible(chain, labels)
    # The gradient itself is 0 where there is no path, and not only what it is multiplied by: 0 * nan is nan.
    states, pairs = jnp.where(possible[..., None], states, 0), jnp.where(possible[..., None, None], pairs, 0)
    # p - 1 at the label, from what the others hold: no digit of it cancels.
    here = is_label(states, labels, labels.ndim)
    others = jnp.sum(jnp.where(here, 0, states), axis=-1, keepdims=True)
    tangent = jnp.zeros_like(nll)
    if not isinstance(d_chain.emissions, SymbolicZero):
        tangent = tangent + jnp.sum(jnp.where(here, -others, states) * d_chain.emissions, axis=(0, -1))
    if not isinstance(d_chain.transitions, SymbolicZero):
        steps = d_chain.transitions
        observed = jnp.where(chain.before[1:] & possible[None], _step_entries(steps, labels[:-1], labels[1:]), 0)
        tangent = tangent + jnp.einsum("...ij,ij->...", pairs, steps, precision="highest") - jnp.sum(observed, axis=0)
    return jnp.where(possible, nll, jnp.inf), tangent


_chain_nll.defjvp(_nll_rule, symbolic_zeros=True)


def _possible(chain: _Chain, labels: Array) -> Array:
    """Whether nothing on the labelled path is forbidden; True for nan, which is for the value to show."""
    at = jnp.squeeze(take_label(chain.emissions, labels, labels.ndim), -1)
    allowed = ~chain.exists | ~(at <= _FORBIDDEN)
    step = ~chain.before[1:] | ~(_step_entries(chain.transitions, labels[:-1], labels[1:]) <= _FORBIDDEN)
    return jnp.all(allowed, axis=0) & jnp.all(step, axis=0)


# --- The best path ------------------------------------------------------------------------------------------------


def _best_labels(chain: _Chain) -> Array:
    """The labels of highest score, [T, ...]; the first of equals."""

    def step(before: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        emission, linked = x
        score = emission + jnp.max(before[..., :, None] + _matrix(chain.transitions, before), axis=-2)
        # Behind the length the last step's scores are kept. Less the largest: numbers do not grow with the length.
        score = jnp.where(linked[..., None], score - jnp.max(score, axis=-1, keepdims=True), before)
        return score, before

    def back(label: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        before, linked = x
        into = _taken(chain.transitions.T, label)
        return jnp.where(linked, _first_largest(before + into), label), label

    nothing = jnp.sum(_nothing(chain, chain.exists.astype(jnp.int32)), axis=-1, keepdims=True)
    last, scores = lax.scan(step, chain.emissions[0] + nothing, (chain.emissions[1:], chain.before[1:]))
    first, labels = lax.scan(back, _first_largest(last), (scores, chain.before[1:]), reverse=True)
    return jnp.concatenate([first[None], labels])


def _first_largest(scores: Array) -> Array:
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


# --- What users call ----------------------------------------------------------------------------------------------


def with_ends(emissions: Array, start: Array | None, end: Array | None, exists: Array) -> Array:
    """The emissions with the scores of beginning and ending added to each chain's first and last step."""
    if start is not None:
        first = jnp.arange(exists.shape[-1]) == 0
        emissions = emissions + jnp.where(first[:, None], start[None, :], 0).reshape(
            (1,) * (emissions.ndim - 2) + emissions.shape[-2:]
        )
    if end is not None:
        last = exists & ~jnp.concatenate([exists[..., 1:], jnp.zeros_like(exists[..., :1])], axis=-1)
        emissions = emissions + jnp.where(last[..., None], _entrywise(end, emissions), 0)
    return emissions


def assert_states(emissions: Array, transitions: Array, start: Array | None, end: Array | None) -> None:
    """All speak of the same states; else an error in words."""
    states = emissions.shape[-1]
    if states == 0:
        raise ValueError(f"`emissions` {list(emissions.shape)} must have at least one state along the last axis")
    for name, x, shape in (
        ("transitions", transitions, (states, states)),
        ("start", start, (states,)),
        ("end", end, (states,)),
    ):
        if x is not None:
            message = f"`{name}` {list(x.shape)} must be {list(shape)} beside `emissions` {list(emissions.shape)}"
            demand(chex.assert_shape, x, shape, error=ValueError, message=message)


def _ready(
    emissions: ArrayLike,
    transitions: ArrayLike,
    start: ArrayLike | None,
    end: ArrayLike | None,
    lengths: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Emissions with their ends, transitions, what exists, and a factor [...] that is nan where a length is none."""
    given = {"emissions": emissions, "transitions": transitions, "start": start, "end": end}
    named = inputs.admitted({name: x for name, x in given.items() if x is not None})
    dtype = inputs.wide_dtype(named.values())
    e, a, first, last = (named[name].astype(dtype) if name in named else None for name in given)
    assert e is not None
    assert a is not None
    if e.ndim < 2:
        raise ValueError(f"`emissions` {list(e.shape)} must have at least 2 axes, steps and states")
    assert_states(e, a, first, last)
    *batch, steps, _ = e.shape
    if lengths is None:
        exists, factor = jnp.ones((*batch, steps), bool), jnp.ones(batch, dtype)
    else:
        count = inputs.as_array("lengths", lengths)
        message = f"`lengths` must be integer, got {count.dtype}"
        demand(chex.assert_type, count, jnp.integer, error=TypeError, message=message)
        message = f"`lengths` {list(count.shape)} must have one length for each chain of the batch {batch}"
        demand(chex.assert_shape, count, tuple(batch), error=ValueError, message=message)
        exists = jnp.arange(steps).reshape((1,) * len(batch) + (steps,)) < count[..., None]
        factor = jnp.where((count < 0) | (count > steps), jnp.nan, 1).astype(dtype)
    e = jnp.where(exists[..., None], e, 0)
    return with_ends(e, first, last, exists), a, exists, factor


@compiled
def viterbi(
    emissions: Logit,
    transitions: Logit,
    *,
    start: Logit | None = None,
    end: Logit | None = None,
    lengths: Lengths = None,
) -> tuple[Array, Array]:
    """The most probable labels of a linear-chain model, and their score.

        argmax over y of start[y_1] + sum_t emissions_t[y_t] + sum_t transitions[y_(t-1), y_t] + end[y_length]

    Args:
      emissions: [..., T, K] real; -inf forbids a state at a step; what lies behind a length may be nan.
      transitions: [K, K], the score of going from row to column; -inf forbids.
      start, end: [K], the scores of the first and the last state; None is 0.
      lengths: [...] integer in [0, T]; None is all.
    Returns: labels int32 [..., T], -1 behind the length, the first of equals; and the score [...], in the units of the
      potentials, -inf where every path is forbidden, nan for an impossible length. The score is differentiable: its
      gradient counts what the best path passes.
    Reference: Viterbi (1967), Error bounds for convolutional codes, IEEE Trans. Inf. Theory 13(2).
    """
    e, a, exists, factor = _ready(emissions, transitions, start, end, lengths)
    if exists.shape[-1] == 0:
        return exists.astype(jnp.int32), jnp.sum(e, axis=(-2, -1)) * factor
    chain = _chain(lax.stop_gradient(e), lax.stop_gradient(a), exists)
    labels = jnp.moveaxis(_best_labels(chain), 0, -1)
    return jnp.where(exists, labels, -1), path_score(e, a, labels, exists) * factor


@compiled
def chain_marginals(
    emissions: Logit,
    transitions: Logit,
    *,
    start: Logit | None = None,
    end: Logit | None = None,
    lengths: Lengths = None,
) -> Array:
    """The probability of each state at each step of a linear-chain model, given all emissions.

    Args:
      emissions, transitions, start, end, lengths: see `viterbi`.
    Returns: [..., T, K] in [0, 1], of sum 1 at each step; 0 behind the length; nan where every path is forbidden or the
      length is impossible. Differentiable.
    Reference: Rabiner (1989), A tutorial on hidden Markov models, Proc. IEEE 77(2), section III.
    """
    e, a, exists, factor = _ready(emissions, transitions, start, end, lengths)
    states, _ = chain_expectations(e, a, exists)
    return states * factor[..., None, None]
