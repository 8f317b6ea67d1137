"""Where arrays lie: the step puts every one on the mesh of the params, keeps it there, and moves no rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import reduce
from jaxloss.train import make_train_step

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices"),
    pytest.mark.usefixtures("quick_compilation"),
]

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(16, 4)).astype(np.float32),
    "y": RNG.normal(size=(16, 6)).astype(np.float32),
    "mask": np.arange(16)[:, None] < 9,  # the last devices hold nothing valid
}
PARAMS = {"w": RNG.normal(size=(4, 6)).astype(np.float32), "b": np.zeros(6, np.float32)}

ADAM = optax.adam(0.1)


def loss_fn(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return reduce(r**2, where=batch["mask"], reduction="partial")


def assert_one_device(state, optimizer, steps):
    """After so many steps the params are those of one device."""
    step = make_train_step(loss_fn, optimizer)
    wanted = step.init(PARAMS)
    for _ in range(steps):
        wanted, _ = step(wanted, BATCH)
    found, wanted = jax.device_get((state.params, wanted.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, wanted)


def layout(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): (leaf.sharding, leaf.ndim) for path, leaf in leaves}


def same_places(before, after):
    return all(a.is_equivalent_to(after[name][0], ndim) for name, (a, ndim) in before.items())


# Left alone, XLA would change the layout of adafactor's state.
@pytest.mark.parametrize("optimizer", [ADAM, optax.adafactor(0.1, min_dim_size_to_factor=4)], ids=["adam", "adafactor"])
def test_sharded_params_on_an_auto_mesh(optimizer):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    shardings = {"w": NamedSharding(mesh, P(None, "model")), "b": NamedSharding(mesh, P("model"))}
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    step = make_train_step(loss_fn, optimizer, accumulate=4)
    state = step.init(jax.device_put(PARAMS, shardings), key=jax.random.key(0), model_state=jnp.ones(2))
    before = layout(state)
    assert all(sharding.mesh == mesh for sharding, _ in before.values())
    assert state.key.sharding.spec == state.step.sharding.spec == state.model_state.sharding.spec == P()
    count = len(COMPILES)
    for _ in range(3):
        state, metrics = step(state, batch)
    assert len(COMPILES) - count == 1
    assert same_places(before, layout(state))
    assert state.params["w"].sharding.spec == P(None, "model")
    if optimizer is ADAM:
        assert state.opt_state[0].mu["w"].sharding.spec == P(None, "model")
    assert_one_device(state, optimizer, 3)
    assert metrics.terms["loss"].weight == 9 * 6


def test_microbatches_move_no_rows():
    """Strided microbatches leave every device its rows: no all-to-all, no gather of the batch."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    step = make_train_step(loss_fn, optax.sgd(0.1), accumulate=4)
    state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())))
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    text = jax.jit(step.pure).lower(state, batch).compile().as_text()
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    assert "all-gather" not in text


def test_a_batch_elsewhere_is_refused_in_words():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    step = make_train_step(loss_fn, optax.sgd(0.1))
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    with pytest.raises(
        ValueError, match=r"`batch\['mask'\]` lies on 4 devices and the state on one device: put the params"
    ):
        step(step.init(PARAMS), batch)
    state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())))
    with pytest.raises(
        ValueError, match=r"`batch\['mask'\]` lies on one device and the state on 4 devices: put the batch"
    ):
        step(state, jax.device_put(BATCH, jax.devices()[1]))


def test_a_state_that_is_moved_stays_where_it_is_put():
    step = make_train_step(loss_fn, ADAM)
    state, _ = step(step.init(PARAMS), BATCH)
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    for steps, columns in ((1, "model"), (2, None), (1, "model")):
        specs = {2: P(None, columns), 1: P(columns), 0: P()}
        place = {ndim: NamedSharding(mesh, spec) for ndim, spec in specs.items()}
        state = jax.tree.map(lambda leaf: jax.device_put(leaf, place[leaf.ndim]), state)  # noqa: B023
        for _ in range(steps):
            state, _ = step(state, BATCH)
        assert state.params["w"].sharding.is_equivalent_to(place[2], 2)
        assert state.opt_state[0].nu["b"].sharding.is_equivalent_to(place[1], 1)
    assert_one_device(state, ADAM, 5)


def test_two_spellings_of_one_layout_are_compiled_once():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    short = NamedSharding(mesh, P("data"))
    step = make_train_step(
        lambda params, batch: reduce((params * batch[:, None]) ** 2, reduction="partial"), optax.sgd(0.1)
    )
    state = step.init(jax.device_put(np.ones((4, 2), np.float32), short))
    assert state.params.sharding.spec == P("data", None)
    state, _ = step(state, jax.device_put(np.ones(4, np.float32), short))
    state = dataclasses.replace(state, params=jax.device_put(np.asarray(state.params), short))
    assert state.params.sharding.spec == P("data")
    count = len(COMPILES)
    step(state, jax.device_put(np.ones(4, np.float32), short))
    assert len(COMPILES) == count
