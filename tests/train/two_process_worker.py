"""One of several processes that train together; what they saw goes to a file for the test to compare.

python two_process_worker.py ADDRESS COUNT INDEX FOLDER      result: FOLDER/INDEX.npz, checkpoints in FOLDER/run
"""

import functools
import os
import pathlib
import sys
import warnings

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import reduce
from jaxloss.train import Aux, make_train_step
from jaxloss.train.checkpoints import restore, save

ROWS, FEATURES, OUTPUTS, STEPS = 16, 4, 6, 10
POISONED = 6  # the step whose batch has a nan, in the last process's rows
SAVED = 5  # steps before the checkpoint

_RNG = np.random.default_rng(0)
PARAMS = {
    "w": _RNG.normal(size=(FEATURES, OUTPUTS)).astype(np.float32),
    "b": _RNG.normal(size=OUTPUTS).astype(np.float32),
}


def _batch(step):
    x, y = (_RNG.normal(size=(ROWS, size)).astype(np.float32) for size in (FEATURES, OUTPUTS))
    mask = _RNG.random(ROWS) < 0.6
    if step % 4 == 1:
        mask = np.arange(ROWS) < 5  # the last process holds nothing valid
    if step % 4 == 3:
        mask = np.arange(ROWS) >= 11  # the first one
    if step == POISONED:
        x[-2, 0], mask[-2] = np.nan, True
    return {"x": x, "y": y, "mask": mask, "weights": _RNG.uniform(0.5, 2, ROWS).astype(np.float32)}


BATCHES = [_batch(step) for step in range(STEPS)]
MODEL_STATE = {"count": np.float32(0), "raw": np.array([0, 1], np.uint32)}
OPTIMIZER = optax.adam(0.05)
LAYOUTS = {"replicated": (P(), 1), "sharded": (P("data"), 2)}


def loss_fn(params, batch, *, model_state):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    where, weights = batch["mask"][:, None], batch["weights"][:, None]
    loss = reduce(r**2, where=where, weights=weights, reduction="partial")
    return loss, Aux(model_state={**model_state, "count": model_state["count"] + 1})


def main(folder):
    count, folder = int(os.environ["HOSTS"]), pathlib.Path(folder)
    jax.distributed.initialize(os.environ["COORDINATOR"], count, int(os.environ["HOST"]), initialization_timeout=60)
    index = jax.process_index()
    assert jax.local_device_count() == 1
    assert jax.device_count() == count
    warnings.simplefilter("error")
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))

    def mine(batch):
        own = np.array_split(np.arange(ROWS), count)[index]
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(rows, leaf[own]), batch)

    result = {}
    for name, (spec, parts) in LAYOUTS.items():
        step = make_train_step(loss_fn, OPTIMIZER, accumulate=parts)
        params = jax.device_put(PARAMS, NamedSharding(mesh, spec))
        new = functools.partial(step.init, params, model_state=MODEL_STATE, key=jax.random.key(0))
        state = new()
        before, seen = jax.tree.map(lambda leaf: leaf.sharding, state), []
        assert all(sharding.mesh == mesh for sharding in jax.tree.leaves(before))
        for number, batch in enumerate(BATCHES):
            batch, compiled = mine(batch), len(compiles)
            state, metrics = step(state, batch)
            assert len(compiles) - compiled == (number == 0)
            seen.append([float(x) for x in (metrics.loss, metrics.grad_norm, metrics.ok)])
            if name == "sharded" and number == SAVED - 1:
                save(folder / "run", state)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
        merged = step.evaluate(state, mine(BATCHES[1]))["loss"].merge(step.evaluate(state, mine(BATCHES[3]))["loss"])
        result |= own(name, state) | {f"{name}/seen": seen, f"{name}/evaluated": [merged.total, merged.weight]}
    resumed = restore(folder / "run", new())
    assert jax.tree.map(lambda leaf: leaf.sharding, resumed) == before
    for batch in BATCHES[SAVED:]:
        resumed, _ = step(resumed, mine(batch))
    result |= own("resumed", resumed) | {"committed": committed(step, params)}
    np.savez(folder / f"{index}.npz", **{name: np.asarray(value) for name, value in result.items()})
    jax.distributed.shutdown()


def own(name, state):
    """What this process's device holds of a state."""
    arrays = {
        **state.params,
        "count": state.model_state["count"],
        "key": jax.random.key_data(state.key),
        "step": state.step,
        "skipped": state.skipped,
    }
    return {f"{name}/{field}": array.addressable_shards[0].data for field, array in arrays.items()}


def committed(step, params):
    """A model state that every process has put onto a device of its own; or what was said to that."""
    count = jax.device_put(np.float32(7), jax.local_devices()[0])
    try:
        return step.init(params, model_state={**MODEL_STATE, "count": count}).model_state["count"]
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
