"""The gradient of every example, for optimizers that clip or weigh examples before they add them (optax's dpsgd)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.core.types import Array
from jaxloss.train.accumulate import Evaluated, merge_stacked, separate, strided, unscaled
from jaxloss.train.objective import Objective, Outcome

__all__ = ["evaluate_examples", "mean_of_examples"]


def evaluate_examples(
    objective: Objective,
    params: Any,
    batch: Any,
    *,
    parts: int,
    step: Array,
    key: Array | None,
    model_state: Any,
    scale: Array | float | None,
) -> Evaluated:
    """Loss and terms of the batch, and a gradient with the batch's rows along a new first axis.

    Row i holds the gradient of sum_k c_k total_k of example i alone: nothing of another row enters it, not even
    through a denominator, or clipping it would not make it private. `loss_fn` sees batches of one row. The rows are
    taken in `parts`, one after the other, which saves activations; the gradients are kept whole.
    """
    leaves, shared, join = separate(batch, parts)
    if not leaves:
        raise ValueError("per_example_gradients=True needs a batch of arrays with rows; this one has none")
    count = leaves[0].shape[0]

    def loss_of(params: Any, row: list[Any], index: Array) -> tuple[Array, Outcome]:
        out = objective(
            params,
            join([leaf[None] for leaf in row], shared),
            model_state=model_state,
            key=None if key is None else jax.random.fold_in(jax.random.fold_in(key, step), index),
            step=step,
            training=True,
            parts=count,
        )
        if out.model_state is not model_state:
            raise ValueError(
                "`loss_fn` returned Aux(model_state=...), but with per_example_gradients=True every example is "
                "evaluated by itself, so there is no order in which a model state could be handed on"
            )
        loss = objective.combine(out.terms, {name: jnp.ones(()) for name in out.terms}, step)
        return (loss if scale is None else loss * scale), out

    def part(rows: tuple[list[Any], Array]) -> tuple[Any, Any, Any]:
        gradient, out = jax.vmap(jax.grad(loss_of, has_aux=True), in_axes=(None, 0, 0))(params, *rows)
        return gradient, out.terms, out.metrics

    everything = [strided(leaf, parts) for leaf in leaves], strided(jnp.arange(count), parts)
    gradient, terms, metrics = jax.tree.map(_in_order, jax.lax.map(part, everything))
    merged = merge_stacked(terms)
    loss = objective.combine(merged, {name: term.weight for name, term in merged.items()}, step)
    return Evaluated(loss, unscaled(gradient, scale), merged, model_state, merge_stacked(metrics))


def mean_of_examples(gradient: Any) -> Any:
    """The mean over the rows that `evaluate_examples` gave."""
    return jax.tree.map(lambda leaf: leaf.mean(0), gradient)


def _in_order(leaf: Array) -> Array:
    # Part p holds the rows p, p + parts, ...
    return leaf.swapaxes(0, 1).reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])
