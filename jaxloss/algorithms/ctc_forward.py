"""The forward recursion of CTC as tables: how probable each state is after each frame (Graves et al. 2006, eq. 6).

The loss has its own engine (`algorithms/ctc.py`), which stores half of this and no logarithms. This one is for those
who want the numbers themselves. In plain log-space pieces, so differentiable in every mode; a table entry near -1e4 has
the digits that such a float32 has, which is what the engine of the loss avoids.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.formulas import log_sum_exp
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array

__all__ = ["ctc_forward"]

# In place of -inf within the recursion, whose differences are nan; far below every sum of logits that has digits.
_NEVER = -1e30

_States = tuple[Array, Array]


def ctc_forward(logits: Array, labels: Array, frames: Array, blank: int) -> _States:
    """Log-probabilities [T, B, N + 1] that frame t says the blank after n labels; [T, B, N] that it says label n + 1.

    Of logits [B, T, K], labels [B, N] in [0, K) and frames bool [B, T]; a frame that does not exist repeats the states
    before it. In the last frame the first table also holds what ends in the n-th label. -inf where no path leads.
    """
    of_blank, of_labels = _log_probabilities(logits, labels, blank)
    zero = jnp.sum(jnp.zeros_like(of_blank), axis=1)  # [B, 1], on the mesh axes of the scores
    never = jnp.zeros_like(labels, of_blank.dtype) + zero + _NEVER
    repeats = jnp.concatenate([labels[:, :-1] == labels[:, 1:], jnp.zeros_like(labels[:, :1], bool)], axis=1)
    repeats = repeats[:, : labels.shape[1]]

    def step(states: _States, read: tuple[Array, Array, Array]) -> tuple[_States, _States]:
        (blanks, said), (blank_score, scores, exists) = states, read
        # What may be followed by the next label: from an equal one only the blank between leads there.
        free = _joined(blanks, jnp.where(repeats, _NEVER, said))
        after_label = jnp.maximum(jnp.logaddexp(free[:, :-1], said) + scores, _NEVER)
        after_blank = jnp.maximum(_joined(blanks, said) + blank_score, _NEVER)
        states = jnp.where(exists, after_blank, blanks), jnp.where(exists, after_label, said)
        return states, states

    start = (jnp.concatenate([zero, never], axis=1), never)
    in_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (of_blank, of_labels, frames[..., None]))
    _, (blanks, said) = lax.scan(step, start, in_time)
    if blanks.shape[0]:
        blanks = jnp.concatenate([blanks[:-1], _joined(blanks[-1], said[-1])[None]])
    return _or_minus_infinity(blanks), _or_minus_infinity(said)


def _joined(blanks: Array, said: Array) -> Array:
    """After n labels: at the blank, or at the n-th label itself."""
    return jnp.concatenate([blanks[:, :1], jnp.logaddexp(blanks[:, 1:], said)], axis=1)


def _or_minus_infinity(table: Array) -> Array:
    return jnp.where(table > 0.5 * _NEVER, table, -jnp.inf)


def _log_probabilities(logits: Array, labels: Array, blank: int) -> _States:
    """Of the blank [B, T, 1] and of each label [B, T, N] in each frame; `_NEVER` for what is ruled out."""
    z = widen(logits)
    top = jnp.max(lax.stop_gradient(z), axis=-1, keepdims=True)
    possible = top > -jnp.inf  # a frame that rules out everything lets no path through
    # Less the maximum first: of logits around 3e4 the normalizer alone has lost what tells them apart.
    z = jnp.where(possible, z - jnp.where(possible, top, 0), 0)
    normalizer = jnp.expand_dims(log_sum_exp(z, z.ndim - 1), -1)

    def score(chosen: Array) -> Array:
        there = possible & (chosen > -jnp.inf)
        return jnp.where(there, jnp.where(there, chosen, 0) - normalizer, _NEVER)

    index = jnp.broadcast_to(labels[:, None, :], (*z.shape[:2], labels.shape[1]))
    return score(z[..., blank : blank + 1]), score(jnp.take_along_axis(z, index, axis=-1, mode="clip"))
