"""What the step costs beside one written by hand, and what half precision changes. The model has 1.6 M params.

python -m benchmarks.train_step             batches of 64, 256 and 1024 rows
python -m benchmarks.train_step 256 --rounds 20

Interleaved in one process: by hand, ours, by hand, ours, ...; the minimum over the rounds, because what else the
machine does only adds. By hand means: jitted, state donated, value and gradient, optax's update, nothing else. "and as
safe" is the same with what a step of ours does besides: the norms of gradient and update, and no update if one is not
finite.
"""

import argparse
import datetime
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl

SIZES = (256, 1024, 1024, 256)


def params() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {"w": (rng.normal(size=(a, b)) * np.sqrt(2 / a)).astype(np.float32), "b": np.zeros(b, np.float32)}
        for a, b in itertools.pairwise(SIZES)
    ]


def data(rows: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(rows, SIZES[0])).astype(np.float32), rng.integers(0, SIZES[-1], rows)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y)}


def loss_fn(params: Any, batch: Any) -> Any:
    h = batch["x"]
    for layer in params[:-1]:
        h = jax.nn.relu(h @ layer["w"] + layer["b"])
    logits = h @ params[-1]["w"] + params[-1]["b"]
    return jl.softmax_cross_entropy(logits, batch["y"], reduction="partial")


def norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def by_hand(optimizer: optax.GradientTransformation, batch: Any) -> Callable[[], Any]:
    state = [jax.tree.map(jnp.asarray, params())]
    state.append(optimizer.init(state[0]))

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).value)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run() -> Any:
        state[0], state[1], value = compiled(state[0], state[1], batch)
        jax.block_until_ready((state, value))
        return state[0]

    return run


def by_hand_and_safe(optimizer: optax.GradientTransformation, batch: Any) -> Callable[[], Any]:
    state = [jax.tree.map(jnp.asarray, params())]
    state.append(optimizer.init(state[0]))

    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda p: loss_fn(p, batch).value)(params)
        ok = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)]).all()

        def update(old: Any) -> Any:
            updates, opt_state = optimizer.update(gradient, old[1], old[0])
            return optax.apply_updates(old[0], updates), opt_state, norm(updates)

        new = jax.lax.cond(ok, update, lambda old: old, (params, opt_state, jnp.zeros(())))
        return new[0], new[1], value, (ok, norm(gradient), new[2])

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run() -> Any:
        state[0], state[1], *seen = compiled(state[0], state[1], batch)
        jax.block_until_ready((state, seen))
        return state[0]

    return run


def ours(optimizer: optax.GradientTransformation, batch: Any, **options: Any) -> Callable[[], Any]:
    step = jl.make_train_step(loss_fn, optimizer, **options)
    state = [step.init(params())]

    def run() -> Any:
        state[0], metrics = step(state[0], batch)
        jax.block_until_ready((state, metrics))
        return state[0].params

    return run


VARIANTS: dict[str, Callable[..., Callable[[], Any]]] = {
    "by hand": by_hand,
    "by hand, and as safe": by_hand_and_safe,
    "ours": ours,
    "ours, accumulate=4": lambda *a: ours(*a, accumulate=4),
    "ours, bfloat16": lambda *a: ours(*a, compute_dtype=jnp.bfloat16),
}


def agree(runs: dict[str, Callable[[], Any]]) -> None:
    """After three steps all params are the same, but for half precision; a fast wrong step is no step."""
    for _ in range(3):
        found = {name: run() for name, run in runs.items()}
    for name, tree in found.items():
        close = 1e-2 if "bfloat16" in name else 1e-5
        worst = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(found["by hand"]), strict=True)
        )
        assert worst < close, f"{name} is off by {worst}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[64, 256, 1024], help="rows of a batch")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    count = sum(leaf.size for leaf in jax.tree.leaves(params()))
    print(f"adam, {count / 1e6:.2f} M params, {jax.devices()[0].device_kind}, jax {jax.__version__},")
    print(f"optax {optax.__version__}, {datetime.date.today()}; minimum of {arguments.rounds} interleaved rounds\n")
    print("| rows | step | wall, ms | CPU, ms | wall / by hand | CPU / by hand |\n|--:|:--|--:|--:|--:|--:|")
    for rows in arguments.rows:
        batch = data(rows)
        runs = {name: make(optax.adam(1e-4), batch) for name, make in VARIANTS.items()}
        agree(runs)
        wall: dict[str, float] = dict.fromkeys(runs, np.inf)
        cpu: dict[str, float] = dict.fromkeys(runs, np.inf)
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start, busy = time.perf_counter(), time.process_time()
                run()
                wall[name] = min(wall[name], time.perf_counter() - start)
                cpu[name] = min(cpu[name], time.process_time() - busy)
        for name in runs:
            print(
                f"| {rows} | {name} | {1e3 * wall[name]:.2f} | {1e3 * cpu[name]:.2f} "
                f"| {wall[name] / wall['by hand']:.3f} | {cpu[name] / cpu['by hand']:.3f} |"
            )


if __name__ == "__main__":
    main()
