"""What a step of `make_train_step` costs beside one written by hand, and what half precision changes.

By hand means: jitted, state donated, value and gradient, optax's update, nothing else. "by hand, and as safe" does what
a step of ours does besides: the norms of gradient and update, and no update if one is not finite.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import RUN, Case, Inputs, Outputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "The train step: adam, a perceptron of 256, 1024, 1024, 256 (1.58 M params); size: rows of the batch"

WIDTHS = (256, 1024, 1024, 256)
LEARNING_RATE = 1e-4  # low: the same batch comes thousands of times
OPTIMIZER = optax.adam(LEARNING_RATE)
CHECKED_STEPS = 3


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    (rows,) = size
    found = {"x": rng.standard_normal((rows, WIDTHS[0]), np.float32), "y": rng.integers(0, WIDTHS[-1], rows, np.int32)}
    for k, (a, b) in enumerate(itertools.pairwise(WIDTHS)):
        found[f"w{k}"] = rng.standard_normal((a, b), np.float32) * np.float32(np.sqrt(2 / a))
        found[f"b{k}"] = np.zeros(b, np.float32)
    return found


def params_of(inputs: Inputs) -> dict[str, Any]:
    return {name: array for name, array in inputs.items() if name not in ("x", "y")}


def truth(inputs: Inputs) -> Outputs:
    """What the steps add to the params, by hand in float64: backpropagation and adam as in the paper."""
    start = {name: array.astype(np.float64) for name, array in params_of(inputs).items()}
    p = dict(start)
    first, second = ({name: np.zeros_like(array) for name, array in p.items()} for _ in range(2))
    x, y = inputs["x"].astype(np.float64), inputs["y"]
    last = len(WIDTHS) - 2
    for step in range(1, CHECKED_STEPS + 1):
        hidden = [x]
        for k in range(last):
            hidden.append(np.maximum(hidden[-1] @ p[f"w{k}"] + p[f"b{k}"], 0))
        z = hidden[-1] @ p[f"w{last}"] + p[f"b{last}"]
        d = np.exp(z - z.max(axis=1, keepdims=True))
        d /= d.sum(axis=1, keepdims=True)
        d[np.arange(len(y)), y] -= 1
        d /= len(y)
        gradient = {}
        for k in reversed(range(last + 1)):
            gradient[f"w{k}"], gradient[f"b{k}"] = hidden[k].T @ d, d.sum(axis=0)
            d = (d @ p[f"w{k}"].T) * (hidden[k] > 0)
        for name, g in gradient.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            p[name] = p[name] - LEARNING_RATE * m / (np.sqrt(v) + 1e-8)
    return [np.concatenate([(p[name] - start[name]).ravel() for name in sorted(p)])]


def change(params: Any, inputs: Inputs) -> jax.Array:
    """What the steps added, as one vector; the params of all variants have the names of the inputs."""
    start = params_of(inputs)
    return jnp.concatenate([(params[name].astype(jnp.float32) - start[name]).ravel() for name in sorted(start)])


def norm_of_error(found: np.ndarray, truth: np.ndarray) -> float:
    # Entry by entry adam turns the rounding of a vanishing gradient into a step of full length.
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def loss_fn(params: Any, batch: Any) -> Any:
    h, last = batch["x"], len(WIDTHS) - 2
    for k in range(last):
        h = jax.nn.relu(h @ params[f"w{k}"] + params[f"b{k}"])
    return jl.softmax_cross_entropy(h @ params[f"w{last}"] + params[f"b{last}"], batch["y"], reduction="partial")


def products(x: jax.Array, y: jax.Array, *params: jax.Array) -> Any:
    """Forward, and from the same arrays the two products a layer of the backward pass; the first has only one."""
    weights = [array for array in params if array.ndim == 2]
    hidden = [x]
    for w in weights:
        hidden.append(hidden[-1] @ w)
    d, gradients = hidden[-1], []
    for k in reversed(range(len(weights))):
        gradients.append(hidden[k].T @ d)
        if k:
            d = d @ weights[k].T
    return gradients


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def plain(params: Any, opt_state: Any, batch: Any) -> Any:
    value, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).value)(params)
    updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def as_safe(params: Any, opt_state: Any, batch: Any) -> Any:
    value, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).value)(params)
    ok = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]).all()

    def update(old: Any) -> Any:
        updates, opt_state = OPTIMIZER.update(gradient, old[1], old[0])
        return optax.apply_updates(old[0], updates), opt_state, norm(updates)

    new = jax.lax.cond(ok, update, lambda old: old, (params, opt_state, jnp.zeros(())))
    return new[0], new[1], (value, ok, norm(gradient), new[2])


def by_hand(step: Callable[..., Any]) -> Callable[[Inputs], Any]:
    def build(inputs: Inputs) -> tuple[Callable[[], Any], Callable[[], Any]]:
        batch = {name: inputs[name] for name in ("x", "y")}
        compiled = jax.jit(step, donate_argnums=(0, 1))
        state = [{name: jnp.array(array, copy=True) for name, array in params_of(inputs).items()}]
        state.append(OPTIMIZER.init(state[0]))

        def advance() -> Any:
            state[0], state[1], seen = compiled(state[0], state[1], batch)
            return state, seen

        return advance, lambda: _after_checked_steps(advance, lambda: change(state[0], inputs))

    return build


def ours(**options: Any) -> Callable[[Inputs], Any]:
    def build(inputs: Inputs) -> tuple[Callable[[], Any], Callable[[], Any]]:
        batch = {name: inputs[name] for name in ("x", "y")}
        step = jl.make_train_step(loss_fn, OPTIMIZER, **options)
        state = [step.init(params_of(inputs))]

        def advance() -> Any:
            state[0], metrics = step(state[0], batch)
            return state, metrics

        return advance, lambda: _after_checked_steps(advance, lambda: change(state[0].params, inputs))

    return build


def _after_checked_steps(advance: Callable[[], Any], show: Callable[[], Any]) -> Any:
    for _ in range(CHECKED_STEPS - 1):  # the first was taken when compiling
        advance()
    return show()


CASES = [
    Case(
        name="train_step",
        sizes=((64,), (256,), (1024,)),
        tiny=(8,),
        inputs=inputs,
        truth=truth,
        error=norm_of_error,
        tolerance={"float32": 1e-3},
        variants={
            "jaxloss": with_jax.session(ours(), role="ours"),
            "by hand": with_jax.session(by_hand(plain)),
            "by hand, and as safe": with_jax.session(by_hand(as_safe)),
            "jaxloss, accumulate=4": with_jax.session(ours(accumulate=4), role="extra"),
            # Adam's first steps are signs of gradients, and half precision turns some of the small ones round.
            "jaxloss, bfloat16": with_jax.session(
                ours(compute_dtype=jnp.bfloat16), role="extra", tolerance={"float32": 0.3}
            ),
            "limit": with_jax.limit(run=products),
        },
        limit="the eight matrix products of forward and backward pass alone",
        modes=(RUN,),
        baseline="by hand",
        bound=2.0,
    )
]
