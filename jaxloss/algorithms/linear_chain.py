"""Linear-chain models: likelihood, marginals and the best path, with each step a matrix product.

The recursions run in the linear domain (`linear_chain_scaled.py`), which says whether anything underflowed that
matters; where it did, the recursion in log space (`linear_chain_log.py`) replaces the result. (Lafferty, McCallum and
Pereira 2001.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.algorithms.linear_chain_best import best_labels
from jaxloss.algorithms.linear_chain_log import LogExpected, log_expectations
from jaxloss.algorithms.linear_chain_parts import (
    Chain,
    chain_of,
    matrix_beside,
    possible,
    reachable,
    states_first,
    step_entries,
)
from jaxloss.algorithms.linear_chain_scaled import Messages, scaled_label_nll, scaled_messages, scaled_nll
from jaxloss.core import inputs
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.sharding import is_label, take_label
from jaxloss.core.types import Array, ArrayLike, Lengths, Logit

__all__ = ["assert_states", "chain_expectations", "chain_marginals", "chain_nll", "path_score", "viterbi", "with_ends"]


def path_score(emissions: Array, transitions: Array, labels: Array, exists: Array) -> Array:
    """The sum of all potentials on a path, [...]; arguments as of `chain_nll`."""
    own = jnp.squeeze(take_label(emissions, labels, labels.ndim), -1)
    step = step_entries(transitions, labels[..., :-1], labels[..., 1:])
    alive = exists[..., 1:]
    return jnp.sum(jnp.where(exists, own, 0), axis=-1) + jnp.sum(jnp.where(alive, step, 0), axis=-1)


def _unless(trusted: Array, found: Any, otherwise: Callable[..., Any], *read: Any) -> Any:
    """`found`, or what `otherwise(*read)` gives: a loop of at most one turn, since vmap computes both of a cond."""

    def again(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        trusted, _ = carry
        # What does not depend on the turn XLA would compute before the loop, wanted or not.
        return trusted | ~trusted, otherwise(*jax.tree.map(lambda x: jnp.where(trusted, jnp.zeros_like(x), x), read))

    return lax.while_loop(lambda carry: ~carry[0], again, (trusted, found))[1]


class _Expected(NamedTuple):
    """What a chain with labels is asked for. A transition is expected as often as

        sum_t left[t - 1, i] matrix[i, j] right[t, j] + pairs[i, j]

    in two parts because a product over time for each chain costs more than all else, and the gradient of the
    transitions needs only one over time and chains. Their derivatives all stand in `pairs`.
    """

    nll: Array  # [...], 0 without labels
    slopes: Array  # [T, K, ...] the probability of each state less 1 at the label, if there is one; 0 behind the length
    left: Array  # [T, K, ...]
    matrix: Array  # [K, K]
    right: Array  # [T, K, ...]
    pairs: Array  # [K, K, ...]


@jax.custom_jvp
def _expected(chain: Chain, labels: Array | None) -> _Expected:
    messages, trusted = scaled_messages(chain)
    nll = jnp.zeros_like(chain.emissions[..., 0, 0])
    if labels is not None:
        nll, good = scaled_label_nll(chain, labels, possible(chain, labels), messages)
        trusted = trusted & good
    none = jnp.zeros_like(matrix_beside(messages.matrix, nll[None]) + nll[None, None])

    def in_log_space(chain: Chain, labels: Array | None) -> tuple[Array, Messages, Array]:
        nll, states, pairs = log_expectations(chain, labels)
        # Messages that meet in these states, and no product of them.
        one = jnp.ones_like(states)
        return nll, Messages(one, states, one[:, 0], one, jnp.zeros_like(messages.matrix)), pairs

    nll, messages, pairs = _unless(trusted, (nll, messages, none), in_log_space, chain, labels)
    potentials, forward, scale, backward, matrix = messages
    joint = forward * backward
    total = jnp.sum(joint, axis=1)
    # p - 1 at the label, from what the others hold: no digit of it cancels.
    here = jnp.zeros_like(joint, bool) if labels is None else is_label(joint, labels, 1)
    others = jnp.sum(jnp.where(here, 0, joint), axis=1)
    slopes = jnp.where(here, -others[:, None], joint) * (1 / total)[:, None]
    # What the next step scales a message by.
    later = jnp.concatenate([scale[1:], scale[:1]])
    return _Expected(
        nll,
        jnp.where(chain.exists[:, None], slopes, 0),
        forward * potentials * later[:, None],
        matrix,
        jnp.where(chain.before[:, None], backward * (1 / total)[:, None], 0),
        pairs,
    )


@_expected.defjvp
def _expected_rule(primals: tuple[Chain, Array | None], tangents: tuple[Any, Any]) -> tuple[_Expected, _Expected]:
    (chain, labels), (d_chain, _) = primals, tangents

    def plain(emissions: Array, transitions: Array) -> LogExpected:
        return log_expectations(chain._replace(emissions=emissions, transitions=transitions), labels)

    # The derivative of log space's gradient, not of the loop's: exact wherever the potentials lie.
    given = chain.emissions, chain.transitions
    _, tangent = jax.jvp(plain, given, (d_chain.emissions, d_chain.transitions))
    found = _expected(chain, labels)
    still = jax.tree.map(jnp.zeros_like, found)
    return found, still._replace(nll=tangent.nll, slopes=tangent.states, pairs=tangent.pairs)


def chain_expectations(emissions: Array, transitions: Array, exists: Array) -> tuple[Array, Array]:
    """The probability of each state at each step, [..., T, K], and each transition's expected count, [..., K, K].

    Args:
      emissions: [..., T, K] float32 or wider; -inf forbids.
      transitions: [K, K], from row to column; -inf forbids.
      exists: [..., T] bool, True up to each chain's length.
    """
    if exists.shape[-1] == 0:
        return emissions, jnp.sum(emissions, axis=-2)[..., None] * transitions
    _, states, left, matrix, right, pairs = _expected(chain_of(emissions, transitions, exists), None)
    product = jnp.einsum("ti...,tj...->ij...", left[:-1], right[1:], precision="highest")
    pairs = pairs + product * matrix_beside(matrix, pairs[0])
    return jnp.moveaxis(states, (0, 1), (-2, -1)), jnp.moveaxis(pairs, (0, 1), (-2, -1))


def chain_nll(emissions: Array, transitions: Array, labels: Array, exists: Array) -> Array:
    """-log p(labels) of each chain, [...]; +inf with zero gradient where a label or a step between two is forbidden.

    Args:
      emissions, transitions, exists: see `chain_expectations`.
      labels: [..., T] integer in [0, K).
    """
    if exists.shape[-1] == 0:
        return jnp.sum(emissions, axis=(-2, -1))
    return _chain_nll(chain_of(emissions, transitions, exists), jnp.moveaxis(labels, -1, 0))


@jax.custom_jvp
def _chain_nll(chain: Chain, labels: Array) -> Array:
    there = possible(chain, labels)
    found, trusted = scaled_nll(chain, labels, there)
    nll = _unless(trusted, found, lambda *read: log_expectations(*read).nll, chain, labels)
    return jnp.where(there, nll, jnp.inf)


def _nll_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (chain, labels), (d_chain, _) = primals, tangents
    nll, slopes, left, matrix, right, pairs = _expected(chain, labels)
    there = possible(chain, labels)
    tangent = jnp.zeros_like(nll)
    # The gradient itself is 0 where there is no path, and not only what it is multiplied by: 0 * nan is nan.
    if not isinstance(d_chain.emissions, SymbolicZero):
        tangent = tangent + jnp.sum(
            jnp.where(there[None, None], slopes, 0) * states_first(d_chain.emissions), axis=(0, 1)
        )
    if not isinstance(d_chain.transitions, SymbolicZero):
        steps = d_chain.transitions
        left, right = jnp.where(there[None, None], left, 0), jnp.where(there[None, None], right, 0)
        moved = jnp.tensordot((matrix * steps).T, jnp.moveaxis(left[:-1], 1, 0), 1, precision="highest")
        tangent = tangent + jnp.sum(jnp.moveaxis(moved, 0, 1) * right[1:], axis=(0, 1))
        pairs = jnp.where(there[None, None], pairs, 0)
        tangent = tangent + jnp.einsum("ij...,ij->...", pairs, steps, precision="highest")
        observed = step_entries(steps, labels[:-1], labels[1:])
        tangent = tangent - jnp.sum(jnp.where(chain.before[1:] & there[None], observed, 0), axis=0)
    return jnp.where(there, nll, jnp.inf), tangent


_chain_nll.defjvp(_nll_rule, symbolic_zeros=True)


def with_ends(emissions: Array, start: Array | None, end: Array | None, exists: Array) -> Array:
    """The emissions with the scores of beginning and ending added to each chain's first and last step."""
    if start is not None:
        first = jnp.arange(exists.shape[-1]) == 0
        emissions = emissions + jnp.where(first[:, None], start[None, :], 0).reshape(
            (1,) * (emissions.ndim - 2) + emissions.shape[-2:]
        )
    if end is not None:
        last = exists & ~jnp.concatenate([exists[..., 1:], jnp.zeros_like(exists[..., :1])], axis=-1)
        emissions = emissions + jnp.where(last[..., None], end.reshape((1,) * (emissions.ndim - 1) + end.shape), 0)
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
    chain = chain_of(lax.stop_gradient(e), lax.stop_gradient(a), exists)
    labels = jnp.moveaxis(best_labels(chain), 0, -1)
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
    if exists.shape[-1] > 0:
        factor = jnp.where(reachable(chain_of(e, a, exists)), factor, jnp.nan)
    return jnp.where(exists[..., None], states * factor[..., None, None], 0)
