"""Forward-backward of linear chains in the linear domain, where a step of all sequences is one matrix product.

A transition is exp(A) with the best of each row and column 1, and a message is scaled by its sum at every step. What
underflows matters only where a message's entries, before their step's own potential, lie more than about 58 nats apart;
every result comes with whether nothing was lost. (Rabiner 1989.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_chain_parts import Chain, at_label, finite, nothing, previous, rows_of, step_entries
from jaxloss.core.numerics import log1p
from jaxloss.core.sharding import is_label
from jaxloss.core.types import Array

__all__ = ["Messages", "scaled_label_nll", "scaled_messages", "scaled_nll"]


class _Range(NamedTuple):
    """Where numbers are kept in the format, and how far below the largest one they may lie."""

    message: float  # the sum of a message's entries
    potential: float  # the largest potential of a step
    least_entry: float  # of a message behind the transitions, over `message`
    least_sum: float  # of a message with its step's potentials, over `message * potential`
    least_own: float  # of a label's part of a message
    most_unlikely: float  # others' part over the label's


def _range(dtype: jnp.dtype) -> _Range:
    # An underflowed potential takes at most 2^-126 message from a sum that is at least 2^-84 message * potential, and
    # so 2^-132 of it: 2^-44 of what any entry of the next message may be. Products with the matrix, and the matrix
    # itself, lose less than 2^-38. Sums of a million states do not overflow.
    wide = int(jnp.finfo(dtype).maxexp) // 128
    scale = [8, 90, -88, -84, -120, 120]
    return _Range(*(2.0 ** (wide * exponent) for exponent in scale))


class _Factors(NamedTuple):
    """What the chain's weights are the products of, up to a constant for each chain."""

    potentials: Array  # [T, K, ...]
    matrix: Array  # [K, K]
    dense: Array  # [] bool: whatever the emissions are, nothing is lost that matters


def _factors(chain: Chain) -> _Factors:
    e, a = finite(chain)
    limits = _range(e.dtype)
    out = jnp.max(a, axis=1)
    into = jnp.max(a - out[:, None], axis=0)
    matrix = jnp.exp(a - out[:, None] - into[None])
    out = out - jnp.max(out)
    # Of the emissions alone, as they lie in memory: a sum with the rest would have to be made twice.
    top = jnp.max(jnp.moveaxis(e, 1, -1), axis=-1)[:, None]
    shape = (1, -1) + (1,) * (chain.before.ndim - 1)
    e = e + jnp.where(chain.before[:, None], into.reshape(shape), 0)
    e = e + jnp.where(chain.behind[:, None], out.reshape(shape), 0)
    dense = jnp.min(matrix) * jnp.exp(jnp.min(into) + jnp.min(out)) >= max(limits.least_entry, limits.least_sum)
    return _Factors(jnp.exp(e - top) * limits.potential, matrix, dense)


def _summing(matrix: Array) -> Array:
    """The product with a message then holds the message's sum as well."""
    return jnp.concatenate([matrix, jnp.ones_like(matrix[:1])])


def _arrived(matrix: Array, message: Array, linked: Array) -> tuple[Array, Array]:
    """A message behind the transitions, [K, ...], all alike where no step is to come from; and its scale [...]."""
    limits = _range(message.dtype)
    product = jnp.tensordot(matrix, message, 1, precision="highest")
    scale = limits.message / product[-1]
    return jnp.where(linked[None], product[:-1] * scale[None], limits.message), scale


def _all_kept(dense: Array, potentials: Array, messages: Sequence[Array]) -> Array:
    """Whether no message, behind the transitions, lost anything that matters."""
    limits = _range(potentials.dtype)

    def kept(arrived: Array) -> Array:
        # An entry without potential carries nothing on, whatever arrived there.
        entry = jnp.min(jnp.where(potentials > 0, arrived, limits.message), axis=1)
        total = jnp.sum(arrived * potentials, axis=1)
        enough = total >= limits.message * limits.potential * limits.least_sum
        return jnp.all(enough & (entry >= limits.message * limits.least_entry))

    def all_kept() -> Array:
        return jnp.all(jnp.stack([kept(arrived) for arrived in messages]))

    # Looking costs half as much as the loop itself. Both answers are made of what varies over a mesh.
    return lax.cond(dense, lambda: dense | jnp.any(messages[0][0] < 0), all_kept)


def _conditional_nll(chain: Chain, labels: Array, matrix: Array, message: Array, there: Array) -> tuple[Array, Array]:
    """-log p(labels), summed from those of each label given the one before and all emissions, so exact where labels are
    certain; and whether nothing was lost in it.

    `message` is the backward one with its step's potentials; `there` says which labels are possible.
    """
    limits = _range(matrix.dtype)
    last = previous(labels)
    row = jnp.where(chain.before[:, None], rows_of(matrix, last), 1)
    others = jnp.sum(jnp.where(is_label(message, labels, 1), 0, row * message), axis=1)
    own = at_label(message, labels) * jnp.where(chain.before, step_entries(matrix, last, labels), 1)
    ratio = others / own
    good = (own >= limits.least_own) & (ratio <= limits.most_unlikely)
    return jnp.sum(jnp.where(chain.exists, log1p(ratio), 0), axis=0), jnp.all(good | ~chain.exists | ~there[None])


def scaled_nll(chain: Chain, labels: Array, there: Array) -> tuple[Array, Array]:
    """-log p(labels), and whether it can be trusted; by the backward recursion alone. `there`: labels are possible."""
    potentials, matrix, dense = _factors(chain)
    summing = _summing(matrix)

    def step(message: Array, x: Sequence[Array]) -> tuple[Array, Array]:
        potential, linked = x
        arrived, _ = _arrived(summing, message, linked)
        return arrived * potential, arrived

    start = nothing(chain) + 1
    _, arrived = lax.scan(step, start, (potentials, chain.behind), reverse=True)
    nll, good = _conditional_nll(chain, labels, matrix, arrived * potentials, there)
    return nll, good & _all_kept(dense, potentials, [arrived])


class Messages(NamedTuple):
    """What both directions bring to each step, up to a factor for each step of each chain."""

    potentials: Array  # [T, K, ...]
    forward: Array  # [T, K, ...] before the step's own potentials
    scale: Array  # [T, ...] what makes it of the step before: forward * potentials, through the transitions
    backward: Array  # [T, K, ...] with the potentials
    matrix: Array  # [K, K]


def scaled_messages(chain: Chain) -> tuple[Messages, Array]:
    """Both recursions in one loop, whose cost is then paid once; and whether they can be trusted."""
    potentials, matrix, dense = _factors(chain)
    into, out = _summing(matrix.T), _summing(matrix)
    last = len(potentials) - 1

    def step(
        carry: tuple[Array, Array, Array], x: Sequence[Array]
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        from_start, from_end, history = carry
        number, early, linked, linked_late = x
        late = lax.dynamic_index_in_dim(potentials, last - number, keepdims=False)
        forward, scale = _arrived(into, from_start, linked)
        backward, _ = _arrived(out, from_end, linked_late)
        history = lax.dynamic_update_index_in_dim(history, backward, last - number, 0)
        return (forward * early, backward * late, history), (forward, scale)

    start = nothing(chain) + 1
    read = jnp.arange(last + 1), potentials, chain.before, jnp.flip(chain.behind, 0)
    (_, _, backward), (forward, scale) = lax.scan(step, (start, start, jnp.zeros_like(potentials + start[None])), read)
    kept = _all_kept(dense, potentials, [forward, backward])
    return Messages(potentials, forward, scale, backward * potentials, matrix), kept


def scaled_label_nll(chain: Chain, labels: Array, there: Array, messages: Messages) -> tuple[Array, Array]:
    """The same from the messages."""
    return _conditional_nll(chain, labels, messages.matrix, messages.backward, there)
