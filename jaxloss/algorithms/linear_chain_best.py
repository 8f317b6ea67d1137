"""The best path of a linear chain. (Viterbi 1967.)"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_chain_parts import Chain, finite, matrix_beside, nothing, rows_of
from jaxloss.core.types import Array

__all__ = ["best_labels"]


def best_labels(chain: Chain) -> Array:
    """The labels of highest score, [T, ...]; the first of equals."""
    emissions, transitions = finite(chain)

    def step(before: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        emission, linked = x
        score = emission + jnp.max(before[:, None] + matrix_beside(transitions, before), axis=0)
        # Behind the length the last step's scores are kept. Less the largest: numbers do not grow with the length.
        score = jnp.where(linked[None], score - jnp.max(score, axis=0, keepdims=True), before)
        return score, before

    def back(label: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        before, linked = x
        into = jnp.squeeze(rows_of(transitions.T, label[None]), 0)
        return jnp.where(linked, _first_largest(before + into), label), label

    last, scores = lax.scan(step, emissions[0] + nothing(chain), (emissions[1:], chain.before[1:]))
    first, labels = lax.scan(back, _first_largest(last), (scores, chain.before[1:]), reverse=True)
    return jnp.concatenate([first[None], labels])


def _first_largest(scores: Array) -> Array:
    return jnp.argmax(scores, axis=0).astype(jnp.int32)
