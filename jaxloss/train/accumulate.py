"""One step's batch as a sum over microbatches: its denominators first, then its value and gradient.

    loss = sum over microbatches of sum_k c_k total_k / W_k,    W_k = the weight of term k in the whole batch

W_k must be known before the first gradient, because a mean of means is not the mean. So one pass adds up the weights
alone, with the model cut out of it, and a second one differentiates with W_k constant.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxloss.core.numerics import widen
from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array
from jaxloss.train.objective import Objective, Outcome

__all__ = [
    "Evaluated",
    "Window",
    "merge_stacked",
    "separate",
    "split",
    "strided",
    "unscaled",
    "warn_of_a_second_forward",
]


class Evaluated(NamedTuple):
    """The objective at one point, with its gradient and everything that came along."""

    loss: Array
    gradient: Any
    terms: dict[str, Mean]
    model_state: Any
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Window:
    """One step's batch, keys and denominators: every evaluation of the objective in that step goes through it.

    `rows` holds the batch's arrays with its `parts` microbatches along their first axis, `shared` what every
    microbatch gets whole, and `join` makes a batch of both. With one part everything is shared, and nothing is scanned.
    """

    objective: Objective
    rows: list[Any]
    shared: list[Any]
    join: Callable[[list[Any], list[Any]], Any]
    parts: int
    step: Array
    key: Array | None
    model_state: Any
    weights: dict[str, Array] | None = None
    # What the loss is multiplied by before it is differentiated, and the gradient divided by again.
    scale: Array | float | None = None

    def denominators(self, params: Any) -> tuple[dict[str, Array], bool]:
        """The weight of every term in the whole batch, and whether params had to be looked at for it."""

        def count(params: Any, window: tuple[Any, ...]) -> dict[str, Array]:
            rows, shared, step, key, model_state = window
            here = dataclasses.replace(self, rows=rows, shared=shared, step=step, key=key, model_state=model_state)

            def body(model_state: Any, part: tuple[list[Any], Array]) -> tuple[Any, dict[str, Array]]:
                out = here._outcome(params, model_state, *part)
                return out.model_state, {name: term.weight for name, term in out.terms.items()}

            _, weights = jax.lax.scan(body, model_state, (rows, jnp.arange(self.parts)))
            return {name: weight.sum() for name, weight in weights.items()}

        window = (self.rows, self.shared, self.step, self.key, self.model_state)
        return _without_the_rest(count, params, window)

    def evaluate(self, params: Any) -> Evaluated:
        """Value and gradient of the whole batch at `params`."""
        differentiate = jax.grad(self._scaled_part, has_aux=True)
        if self.parts == 1:
            gradient, (loss, out) = differentiate(params, self.model_state, self.rows, 0)
            return Evaluated(loss, unscaled(gradient, self.scale), *out)

        def body(carry: tuple[Any, Any], part: tuple[list[Any], Array]) -> tuple[tuple[Any, Any], Any]:
            model_state, gradient = carry
            more, (_, out) = differentiate(params, model_state, *part)
            gradient = jax.tree.map(lambda a, b: a + b.astype(a.dtype), gradient, more)
            return (out.model_state, gradient), (out.terms, out.metrics)

        start = (self.model_state, jax.tree.map(_accumulator, params))
        (model_state, gradient), (terms, metrics) = jax.lax.scan(body, start, (self.rows, jnp.arange(self.parts)))
        gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), unscaled(gradient, self.scale), params)
        merged: dict[str, Mean] = merge_stacked(terms)
        loss = self.objective.combine(merged, self._weights(merged), self.step)
        return Evaluated(loss, gradient, merged, model_state, merge_stacked(metrics))

    def value(self, params: Any) -> Array:
        """The loss of the whole batch at any `params`, for optimizers that try several; differentiable."""
        if self.parts == 1:
            return self._part(params, self.model_state, self.rows, 0)[0]

        # Recomputed in the backward pass: else a gradient of this sum would keep every microbatch's activations.
        @jax.checkpoint
        def body(model_state: Any, part: tuple[list[Any], Array]) -> tuple[Any, Array]:
            # As in `evaluate`, no microbatch's gradient reaches back into the one before through the model state.
            loss, out = self._part(params, jax.lax.stop_gradient(model_state), *part)
            return out.model_state, loss

        return jax.lax.scan(body, self.model_state, (self.rows, jnp.arange(self.parts)))[1].sum()

    def _scaled_part(
        self, params: Any, model_state: Any, rows: list[Any], index: Any
    ) -> tuple[Array, tuple[Array, Outcome]]:
        loss, out = self._part(params, model_state, rows, index)
        return (loss if self.scale is None else loss * self.scale), (loss, out)

    def _part(self, params: Any, model_state: Any, rows: list[Any], index: Any) -> tuple[Array, Outcome]:
        out = self._outcome(params, model_state, rows, index)
        return self.objective.combine(out.terms, self._weights(out.terms), self.step), out

    def _outcome(self, params: Any, model_state: Any, rows: list[Any], index: Any) -> Outcome:
        return self.objective(
            params,
            self.join(rows, self.shared),
            model_state=model_state,
            # Step, then microbatch: folding step * parts + index would repeat keys when `parts` changes.
            key=None if self.key is None else jax.random.fold_in(jax.random.fold_in(self.key, self.step), index),
            step=self.step,
            training=True,
            parts=self.parts,
        )

    def _weights(self, terms: dict[str, Mean]) -> dict[str, Array]:
        return {name: term.weight for name, term in terms.items()} if self.weights is None else self.weights


def split(batch: Any, parts: int) -> tuple[list[Any], list[Any], Callable[[list[Any], list[Any]], Any]]:
    """The batch's arrays cut into `parts` along a new first axis, its scalars, and what joins both again.

    Microbatch i holds the rows i, i + parts, i + 2 parts, ...: of a batch axis that is sharded in blocks, each device
    then keeps its share of every microbatch, and nothing moves. One part is the batch itself, uncut.

    Raises: ValueError where arrays have different numbers of rows, or rows that `parts` does not divide.
    """
    if parts == 1:
        return [], [batch], lambda rows, shared: shared[0]
    rows, shared, join = separate(batch, parts)
    return [strided(leaf, parts) for leaf in rows], shared, join


def separate(batch: Any, parts: int) -> tuple[list[Any], list[Any], Callable[[list[Any], list[Any]], Any]]:
    """The batch's arrays, all of one number of rows that `parts` divides; its scalars; and what joins both again."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(batch)
    has_rows = [jnp.ndim(leaf) > 0 for _, leaf in paths]
    with_rows = [(path, jnp.asarray(leaf)) for (path, leaf), rows in zip(paths, has_rows, strict=True) if rows]
    for path, leaf in with_rows:
        count, (first, other) = leaf.shape[0], with_rows[0]
        if count != other.shape[0]:
            raise ValueError(
                f"the batch is cut into rows, but `batch{jax.tree_util.keystr(first)}` has {other.shape[0]} of them "
                f"and `batch{jax.tree_util.keystr(path)}` has {count}"
            )
        if count % parts:
            raise ValueError(
                f"accumulate={parts} does not divide the {count} rows of the batch; pad it to "
                f"{-(-count // parts) * parts} rows that `where` masks (jaxloss.train.pad_batch), or choose another "
                "`accumulate`"
            )

    def join(rows: list[Any], shared: list[Any]) -> Any:
        cut, whole = iter(rows), iter(shared)
        return jax.tree.unflatten(treedef, [next(cut) if rowed else next(whole) for rowed in has_rows])

    shared = [leaf for (_, leaf), rowed in zip(paths, has_rows, strict=True) if not rowed]
    return [leaf for _, leaf in with_rows], shared, join


def strided(leaf: Array, parts: int) -> Array:
    """Rows [n, ...] as parts [parts, n / parts, ...], the rows i, i + parts, ... in part i."""
    return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)


def unscaled(gradient: Any, scale: Array | float | None) -> Any:
    """The gradient of the loss from that of `scale` times the loss; divided in float32, where nothing underflows."""
    if scale is None:
        return gradient
    return jax.tree.map(lambda leaf: (widen(leaf) / scale).astype(leaf.dtype), gradient)


def warn_of_a_second_forward() -> None:
    """Say that exact denominators cost a forward pass here."""
    warnings.warn(
        "the weights of the loss depend on the params, so with accumulate > 1 every step computes the model twice: "
        "once for the denominators, once for the gradient; weights from the batch alone would cost nothing",
        UserWarning,
        stacklevel=2,
    )


def _accumulator(leaf: Array) -> Array:
    # Made from the param, so that it is sharded like it. Half precision would stop counting after 256 ones.
    return jnp.zeros_like(leaf, dtype=jnp.promote_types(leaf.dtype, jnp.float32))


def merge_stacked(stacked: dict[str, Any]) -> Any:
    """Merge along the first axis, in order, whatever merging means for each."""

    def merge(one: Any) -> Any:
        first, rest = jax.tree.map(lambda x: x[0], one), jax.tree.map(lambda x: x[1:], one)
        return jax.lax.scan(lambda a, b: (a.merge(b), None), first, rest)[0]

    return {
        name: Mean(one.total.sum(0), one.weight.sum(0), one.coupled) if isinstance(one, Mean) else merge(one)
        for name, one in stacked.items()
    }


def _without_the_rest(
    function: Callable[[Any, Any], dict[str, Array]], params: Any, others: Any
) -> tuple[dict[str, Array], bool]:
    """`function(params, others)`, computing nothing that its result does not need, and whether it needs `params`.

    XLA would drop the unused model by itself, but not its effects: a `jax.debug.print` in it would print twice.
    """
    from jax.extend import core

    flat_params, params_tree = jax.tree.flatten(params)
    flat_others, others_tree = jax.tree.flatten(others)

    def flat(*leaves: Any) -> dict[str, Array]:
        return function(
            jax.tree.unflatten(params_tree, leaves[: len(flat_params)]),
            jax.tree.unflatten(others_tree, leaves[len(flat_params) :]),
        )

    closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*flat_params, *flat_others)
    names = jax.tree.structure(shapes)
    jaxpr, used_consts, used = partial_eval.dce_jaxpr_consts(_silent(closed.jaxpr), [True] * names.num_leaves)
    consts = [const for const, is_used in zip(closed.consts, used_consts, strict=True) if is_used]
    arguments = [leaf for leaf, is_used in zip([*flat_params, *flat_others], used, strict=True) if is_used]
    out = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*arguments)
    return jax.tree.unflatten(names, out), any(used[: len(flat_params)])


# Where a jaxpr in an equation's parameters is the equation's own computation, and may be rewritten.
_CALLS = frozenset(
    {"call", "checkpoint", "closed_call", "cond", "core_call", "custom_jvp_call", "custom_vjp_call", "eval_jaxpr"}
    | {"jit", "pjit", "remat2", "scan", "shard_map", "while"}
)


def _silent(jaxpr: Any) -> Any:
    """`jaxpr` with its callbacks (prints, host calls) no longer counted as a reason to keep an equation."""

    from jax.extend import core

    def silence(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return value.replace(jaxpr=_silent(value.jaxpr))
        if isinstance(value, core.Jaxpr):
            return _silent(value)
        if isinstance(value, tuple | list):
            return type(value)(silence(part) for part in value)
        return value

    def quiet(equation: Any) -> Any:
        params = equation.params
        if equation.primitive.name in _CALLS:
            params = {name: silence(value) if _holds_jaxpr(value) else value for name, value in equation.params.items()}
        return equation.replace(params=params, effects=_lasting(equation.effects))

    return jaxpr.replace(eqns=[quiet(equation) for equation in jaxpr.eqns], effects=_lasting(jaxpr.effects))


def _holds_jaxpr(value: Any) -> bool:
    from jax.extend import core

    if isinstance(value, tuple | list):
        return any(_holds_jaxpr(part) for part in value)
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _lasting(effects: Any) -> frozenset[Any]:
    # Reads and writes of mutable arrays order the equations, and belong to the mathematics; they name their input.
    return frozenset(effect for effect in effects if hasattr(effect, "input_index"))
