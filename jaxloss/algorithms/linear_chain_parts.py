"""What every recursion on a linear chain reads: potentials with time and states first, and where a step has neighbours.

With the batch last, a step's sums over states run along the batch, all chains at once, and its product with the
transitions is one small matrix times a wide one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxloss.core.sharding import is_sharded, take_label
from jaxloss.core.types import Array

__all__ = [
    "FORBIDDEN",
    "Chain",
    "at_label",
    "chain_of",
    "finite",
    "matrix_beside",
    "nothing",
    "possible",
    "previous",
    "reachable",
    "rows_of",
    "states_first",
    "step_entries",
]

# Stands for -inf, so that no difference of two is nan; a thousand of them still do not overflow, and no sum of
# potentials brings one back.
FORBIDDEN = -1e30


class Chain(NamedTuple):
    """A batch of chains."""

    emissions: Array  # [..., T, K] as it came, so that no copy of it has to outlive the first reading
    transitions: Array  # [K, K]
    exists: Array  # [T, ...] bool, True up to the length
    before: Array  # [T, ...] bool, whether a step exists and has one before it
    behind: Array  # [T, ...] bool, whether a step exists and has one behind it


def chain_of(emissions: Array, transitions: Array, exists: Array) -> Chain:
    """From emissions [..., T, K], T >= 1, and exists [..., T]."""
    # Laid out over a mesh like the emissions, also where a caller made it from nothing.
    alive = jnp.moveaxis(exists | jnp.zeros_like(emissions[..., 0], bool), -1, 0)
    nowhere = alive[:1] & ~alive[:1]
    before, behind = jnp.concatenate([nowhere, alive[1:]]), jnp.concatenate([alive[1:], nowhere])
    return Chain(emissions, transitions, alive, before, behind)


def finite(chain: Chain) -> tuple[Array, Array]:
    """Emissions [T, K, ...] and transitions [K, K] with `FORBIDDEN` for what is forbidden."""
    return states_first(_floored(chain.emissions)), _floored(chain.transitions)


def states_first(x: Array) -> Array:
    """[..., T, K] as [T, K, ...]."""
    return jnp.moveaxis(x, (-2, -1), (0, 1))


def _floored(x: Array) -> Array:
    return jnp.where(x <= FORBIDDEN, FORBIDDEN, x)  # nan stays


def matrix_beside(transitions: Array, like: Array) -> Array:
    """[K, K] beside [K, ...]."""
    return transitions.reshape(transitions.shape + (1,) * (like.ndim - 1))


def nothing(chain: Chain) -> Array:
    """Zeros [K, ...] that vary over a mesh like everything that a recursion reads."""
    alive = (chain.exists[0] | chain.before[0] | chain.behind[0])[None].astype(chain.emissions.dtype)
    return jnp.zeros_like(states_first(chain.emissions)[0] + chain.transitions[0, 0] + alive)


def _placed(index: Array, before: int) -> PartitionSpec | None:
    """On an explicit mesh jax wants to be told that what is taken lies where the index does."""
    if not any(is_sharded(index, axis) for axis in range(index.ndim)):
        return None
    return PartitionSpec(*[None] * before, *jax.typeof(index).sharding.spec)


def rows_of(matrix: Array, index: Array) -> Array:
    """matrix[index] as [T, K, ...], for an index [T, ...]; clipped into range."""
    taken = matrix.T.at[:, index].get(mode="clip", out_sharding=_placed(index, 1))
    return jnp.moveaxis(taken, 0, 1)


def at_label(x: Array, labels: Array) -> Array:
    """x [T, K, ...] at labels [T, ...]."""
    return jnp.squeeze(take_label(x, labels, 1), 1)


def step_entries(transitions: Array, before: Array, labels: Array) -> Array:
    """transitions[before, labels]."""
    index = before * transitions.shape[0] + labels
    return transitions.reshape(-1).at[index].get(mode="clip", out_sharding=_placed(index, 0))


def previous(labels: Array) -> Array:
    """The label before each; at the first step itself."""
    return jnp.concatenate([labels[:1], labels[:-1]])


def possible(chain: Chain, labels: Array) -> Array:
    """Whether nothing on the labelled path is forbidden; True for nan, which is for the value to show."""
    at = jnp.squeeze(take_label(chain.emissions, jnp.moveaxis(labels, 0, -1), labels.ndim), -1)
    allowed = ~chain.exists | ~(jnp.moveaxis(at, -1, 0) <= FORBIDDEN)
    step = ~chain.before[1:] | ~(step_entries(chain.transitions, labels[:-1], labels[1:]) <= FORBIDDEN)
    return jnp.all(allowed, axis=0) & jnp.all(step, axis=0)


def reachable(chain: Chain) -> Array:
    """Whether nothing forbidden lies on at least one path, [...]; True for nan, as of `possible`."""
    emissions, transitions = finite(chain)
    steps = (~(transitions.T <= FORBIDDEN)).astype(emissions.dtype)

    def step(states: Array, x: tuple[Array, Array, Array]) -> tuple[Array, None]:
        allowed, exists, before = x
        arrived = jnp.where(before[None], jnp.tensordot(steps, states, 1), 1)
        return jnp.where(exists[None], jnp.where(allowed & (arrived > 0), 1, 0).astype(states.dtype), states), None

    read = ~(emissions <= FORBIDDEN), chain.exists, chain.before
    return jnp.any(lax.scan(step, nothing(chain) + 1, read)[0] > 0, axis=0)
