"""What is not finite in a step, and what is done about it."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array

__all__ = ["Report", "all_defined", "all_finite", "count_infinite", "nan_terms", "report", "update_if"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """Where a step was not finite: flags for every term and every leaf of the gradient. Read later, by the host."""

    ok: Array
    step: Array
    nan_terms: dict[str, Array]
    nan: Any
    infinite: Any

    def message(self) -> str:
        """What is nan or inf, by name; reads the device."""
        found = jax.device_get(self)
        culprits = [f"the term {name!r} is nan" for name, flag in found.nan_terms.items() if flag]
        flags = zip(jax.tree_util.tree_leaves_with_path(found.nan), jax.tree.leaves(found.infinite), strict=True)
        for (path, nan), infinite in flags:
            if nan or infinite:
                kinds = " and ".join(kind for kind, flag in (("nan", nan), ("inf", infinite)) if flag)
                culprits.append(f"the gradient of params{jax.tree_util.keystr(path)} has {kinds}")
        return (
            f"step {int(found.step)} is not finite: {'; '.join(culprits)}. The state that it returned holds the "
            "params, optimizer state and model state from before it"
        )


def all_finite(gradient: Any, norm: Array) -> Array:
    """Whether every entry of the gradient is finite, whose length is `norm`.

    A finite length says so, and costs no pass of its own. An infinite one need not mean anything: the length of two
    entries 1e30 overflows, and there is nothing wrong with them. So then every entry is looked at.
    """

    def look(norm: Array, gradient: Any) -> Array:
        flags = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]
        return functools.reduce(operator.and_, flags) | jnp.isfinite(norm)

    def branch(norm: Array, gradient: Any) -> Array:
        return jax.lax.cond(jnp.isfinite(norm), lambda norm, gradient: jnp.isfinite(norm), look, norm, gradient)

    # As in `update_if`: on a GPU a branch waits for the host.
    return jax.lax.platform_dependent(norm, gradient, cuda=look, rocm=look, default=branch)


def all_defined(terms: Mapping[str, Mean]) -> Array:
    """Whether no term is nan. One of +inf with a finite gradient (a row that no model explains) is no fault."""
    return functools.reduce(operator.and_, [~flag for flag in nan_terms(terms).values()])


def nan_terms(terms: Mapping[str, Mean]) -> dict[str, Array]:
    """Which terms are nan, by name."""
    # The total as well: over a weight of 0 the value is 0 whatever the total is.
    return {name: jnp.isnan(term.total) | jnp.isnan(term.value) for name, term in terms.items()}


def count_infinite(terms: Mapping[str, Mean]) -> Array:
    """How many terms are +inf."""
    return functools.reduce(operator.add, [jnp.isposinf(term.total).astype(jnp.int32) for term in terms.values()])


def update_if(ok: Array, update: Callable[[Any], Any], old: Any) -> Any:
    """`update(old)` where `ok`, else `old`, bit for bit.

    A branch leaves the donated buffers to the update, which a select cannot: it needs the old values afterwards, and
    on a CPU those copies cost as much as the update. But a GPU asks the host which branch to take, and the host could
    no longer run ahead; there the select melts into the update's own kernel and costs nothing.
    """

    def select(ok: Array, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), update(old), old)

    def branch(ok: Array, old: Any) -> Any:
        return jax.lax.cond(ok, update, lambda same: same, old)

    return jax.lax.platform_dependent(ok, old, cuda=select, rocm=select, default=branch)


def report(ok: Array, step: Array, gradient: Any, terms: Mapping[str, Mean]) -> Report:
    """Which terms and which leaves were the cause."""
    return Report(
        ok=ok,
        step=step,
        nan_terms=nan_terms(terms),
        nan=jax.tree.map(lambda leaf: jnp.isnan(leaf).any(), gradient),
        infinite=jax.tree.map(lambda leaf: jnp.isinf(leaf).any(), gradient),
    )
