"""Linear chains in log space, differentiated by jax: right wherever potentials lie, in value and every derivative."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.linear_chain_parts import Chain, finite, matrix_beside, previous, rows_of
from jaxloss.core.formulas import label_nll
from jaxloss.core.types import Array

__all__ = ["LogExpected", "log_expectations"]


def _messages(emissions: Array, transitions: Array, behind: Array) -> Array:
    """The backward messages with their step's potential, [T, K, ...], up to a constant; transitions [K, K, ...]."""

    def shifted(x: Array) -> Array:
        # Without it numbers would grow with the length, and lose digits.
        return x - lax.stop_gradient(jnp.max(x, axis=0, keepdims=True))

    @jax.checkpoint  # else the gradient would keep [T, K, K, ...]
    def step(later: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        emission, linked = x
        arrived = jax.nn.logsumexp(transitions + later[None], axis=1)
        message = shifted(emission + jnp.where(linked[None], arrived, 0))
        return message, message

    start = jnp.zeros_like(emissions[0] + transitions[:, 0] + behind[:1].astype(emissions.dtype))
    return lax.scan(step, start, (emissions, behind), reverse=True)[1]


class LogExpected(NamedTuple):
    """What a chain is asked for."""

    nll: Array  # [...], 0 without labels
    states: Array  # [T, K, ...] the probability of each state, 0 behind the length
    pairs: Array  # [K, K, ...] how often each transition is expected


def log_expectations(chain: Chain, labels: Array | None) -> LogExpected:
    """By jax's derivative of the log-partition, and the conditional probabilities of the labels if there are any."""
    emissions, transitions = finite(chain)
    # Made with the emissions, so that inside `shard_map` a slope in it stays on its device.
    each_its_own = matrix_beside(transitions, emissions[0]) + jnp.zeros_like(emissions[0])[None]

    def log_partition(emissions: Array, transitions: Array) -> Array:
        return jax.nn.logsumexp(_messages(emissions, transitions, chain.behind)[0], axis=0)

    log_z, slopes = jax.vjp(log_partition, emissions, each_its_own)
    states, pairs = slopes(jnp.ones_like(log_z))
    nll = jnp.zeros_like(log_z)
    if labels is not None:
        rows = jnp.where(chain.before[:, None], rows_of(transitions, previous(labels)), 0)
        each = label_nll(rows + _messages(emissions, each_its_own, chain.behind), labels, 1)
        nll = jnp.sum(jnp.where(chain.exists, each, 0), axis=0)
    return LogExpected(nll, jnp.where(chain.exists[:, None], states, 0), pairs)
