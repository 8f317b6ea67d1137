"""The step on four devices: the result is one device's, and every leaf keeps its place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import reduce
from jaxloss.train import make_train_step

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices")

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(16, 4)).astype(np.float32),
    "y": RNG.normal(size=(16, 6)).astype(np.float32),
    "mask": np.arange(16)[:, None] < 9,  # the last devices hold nothing valid
}
PARAMS = {"w": RNG.normal(size=(4, 6)).astype(np.float32), "b": np.zeros(6, np.float32)}

_COMPILES: list[str] = []


def _heard(event, duration, **_):
    if event.endswith("backend_compile_duration"):
        _COMPILES.append(event)


jax.monitoring.register_event_duration_secs_listener(_heard)


def loss_fn(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return reduce(r**2, where=batch["mask"], reduction="partial")


def one_device(tx, steps, **init):
    step = make_train_step(loss_fn, tx)
    state = step.init(PARAMS, **init)
    for _ in range(steps):
        state, _ = step(state, BATCH)
    return jax.device_get(state.params)


def layout(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): (leaf.sharding, leaf.ndim) for path, leaf in leaves}


def same_places(before, after):
    return all(a.is_equivalent_to(after[name][0], ndim) for name, (a, ndim) in before.items())


@pytest.mark.parametrize(
    ("optimizer", "parts"), [(optax.adam(0.1), 1), (optax.adam(0.1), 4), (optax.lbfgs(0.1, linesearch=None), 4)]
)
def test_sharded_params_on_an_auto_mesh(optimizer, parts):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    shardings = {"w": NamedSharding(mesh, P(None, "model")), "b": NamedSharding(mesh, P("model"))}
    batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
    step = make_train_step(loss_fn, optimizer, accumulate=parts)
    state = step.init(jax.device_put(PARAMS, shardings), key=jax.random.key(0), model_state=jnp.ones(2))
    before = layout(state)
    assert all(sharding.mesh == mesh for sharding, _ in before.values())
    assert state.key.sharding.spec == state.step.sharding.spec == state.model_state.sharding.spec == P()
    count = len(_COMPILES)
    for _ in range(3):
        state, metrics = step(state, batch)
    assert len(_COMPILES) - count == 1
    assert same_places(before, layout(state))
    assert state.params["w"].sharding.spec == P(None, "model")
    if isinstance(state.opt_state[0], optax.ScaleByAdamState):
        assert state.opt_state[0].mu["w"].sharding.spec == P(None, "model")
    expected = one_device(optimizer, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(state.params), expected)
    assert metrics.terms["loss"].weight == 9 * 6


@pytest.mark.parametrize("parts", [1, 4])
def test_data_parallel_on_an_explicit_mesh(parts):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        batch = jax.device_put(BATCH, NamedSharding(mesh, P("data")))
        step = make_train_step(loss_fn, optax.adam(0.1), accumulate=parts)
        state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())), key=jax.random.key(0))
        before, count = layout(state), len(_COMPILES)
        for _ in range(3):
            state, _ = step(state, batch)
        assert len(_COMPILES) - count == 1
        assert same_places(before, layout(state))
        found = step.evaluate(state, batch)
    assert found["loss"].weight == 9 * 6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(state.params),
        one_device(optax.adam(0.1), 3),
    )


def test_a_sharded_nan_is_skipped_everywhere():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    bad = {**BATCH, "x": BATCH["x"].copy()}
    bad["x"][3, 0] = np.nan
    step = make_train_step(loss_fn, optax.adam(0.1), accumulate=4)
    state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())))
    state, metrics = step(state, jax.device_put(bad, NamedSharding(mesh, P("data"))))
    assert not bool(metrics.ok)
    assert int(state.skipped) == 1
    for shard in state.params["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, PARAMS["w"])


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
    with pytest.raises(ValueError, match=r"`batch\['mask'\]` lies on 4 devices and the state on one device"):
        step(step.init(PARAMS), batch)


def test_a_state_moved_to_another_mesh_stays_there():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state, _ = step(step.init(PARAMS), BATCH)
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    place = {2: P(None, "model"), 1: P("model"), 0: P()}
    state = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, place[x.ndim])), state)
    for _ in range(2):
        state, _ = step(state, BATCH)
    assert state.params["w"].sharding.spec == P(None, "model")
    expected = one_device(optax.adam(0.1), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(state.params), expected)
