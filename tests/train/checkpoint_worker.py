"""What the checkpoint tests run in processes of their own: one that resumes, and one that saves until it is killed.

python checkpoint_worker.py resume FOLDER RESULT     compile, restore, three more steps, write what came out
python checkpoint_worker.py save FOLDER              save steps 1, 2, 3, ..., printing each that is complete
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxloss import reduce
from jaxloss.train import Aux, State, make_train_step
from jaxloss.train.checkpoints import restore, save

RNG = np.random.default_rng(0)
BATCHES = [RNG.normal(size=(8, 5)).astype(np.float32) for _ in range(6)]


def loss_fn(params, batch, *, key, model_state):
    """Dropout and a running mean: what comes out depends on the key, the step and the model state."""
    kept = jax.random.bernoulli(key, 0.7, batch.shape)
    out = jnp.where(kept, batch, 0) @ params["w"].astype(jnp.float32) - model_state["mean"]
    state = {"mean": 0.9 * model_state["mean"] + 0.1 * out.mean(), "nothing": None}
    return reduce((out - 1) ** 2, reduction="partial"), Aux(model_state=state)


def init_state(typed=True):
    key = jax.random.key(7) if typed else jax.random.PRNGKey(7)
    step = make_train_step(loss_fn, optax.adamw(0.1))
    params = {"w": jnp.linspace(-1, 1, 5), "unused": None}
    return step, lambda: step.init(params, key=key, model_state={"mean": 0.5, "nothing": None})


def contents(state):
    """The bytes of every leaf, by path."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): to_bytes(leaf) for path, leaf in paths}


def to_bytes(leaf):
    data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.frombuffer(np.asarray(data).tobytes(), np.uint8)


def resume(folder, result):
    step, init = init_state()
    step(init(), BATCHES[0])
    state = restore(folder, jax.eval_shape(init))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    for batch in BATCHES[3:]:
        state, _ = step(state, batch)
    # Neither the restored arrays nor what orbax imports and registers may make the step new to jax.
    assert not [event for event in compiled if event.endswith("backend_compile_duration")]
    np.savez(result, **contents(state))


def filled(step):
    """A state of some megabytes in which every entry is the number of the step."""
    value = jnp.asarray(step, jnp.int32)
    params = {str(i): jnp.full((256, 1024), value) for i in range(8)}
    return State(params=params, opt_state=(), model_state=None, step=value, key=None, skipped=value)


def save_for_ever(folder):
    step = 0
    while True:
        step += 1
        save(folder, filled(step), keep=2)
        print(step, flush=True)


if __name__ == "__main__":
    assert not [name for name in sys.modules if name.startswith("orbax")], "importing jaxloss.train imports orbax"
    {"resume": resume, "save": save_for_ever}[sys.argv[1]](*sys.argv[2:])
