"""Which params are trained and which are evaluated, where an optimizer keeps more than one set of them."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import ScheduleFreeState

__all__ = ["averaging", "evaluated", "trained", "wants_examples"]


def trained(params: Any) -> Any:
    """The set whose loss is differentiated: of lookahead's pair the fast one."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def averaging(opt_state: Any) -> tuple[Any, Any] | None:
    """(b1, z) of a schedule-free optimizer, wherever in `opt_state` it stands; None where there is none.

    Raises: ValueError where there are several, whose averages would be of one set of params.
    """
    found = _all_of(ScheduleFreeState, opt_state)
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"the optimizer holds {len(found)} schedule-free states, so there is no one set of params to evaluate: "
            "choose it yourself, train_step.evaluate(dataclasses.replace(state, params=..., opt_state=()), batch)"
        )
    return found[0].b1, found[0].z


def evaluated(params: Any, average: tuple[Any, Any] | None) -> Any:
    """The set that is evaluated, saved and shipped: lookahead's slow one, the average x of a schedule-free optimizer.

    Schedule-free training (Defazio et al. 2024) differentiates at y = (1 - b1) z + b1 x, and only x is good.
    """
    if isinstance(params, optax.LookaheadParams):
        params = params.slow
    if average is None:
        return params
    b1, z = average

    def x(z: Any, y: Any) -> Any:
        return y if isinstance(z, optax.MaskedNode) else ((y - (1 - b1) * z) / b1).astype(y.dtype)

    return jax.tree.map(x, z, params, is_leaf=lambda node: isinstance(node, optax.MaskedNode))


def wants_examples(opt_state: Any) -> bool:
    """Whether the optimizer is a differentially private one, and so wants the gradient of every example.

    It cannot always tell by itself: a single weight matrix [rows, columns] looks like a gradient for every row.
    """
    return bool(_all_of(optax.contrib.DifferentiallyPrivateAggregateState, opt_state))


def _all_of(kind: type, opt_state: Any) -> list[Any]:
    found: list[Any] = []

    def look(node: Any) -> bool:
        if isinstance(node, kind):
            found.append(node)
        return isinstance(node, kind)

    jax.tree.leaves(opt_state, is_leaf=look)
    return found
