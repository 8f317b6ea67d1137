"""The step as a whole: one compile, donation, evaluation, and `pure` inside every transformation."""

import contextlib
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES

from jaxloss import Mean, reduce
from jaxloss.train import Aux, Metrics, State, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(8, 3)).astype(np.float32), "y": RNG.normal(size=8).astype(np.float32)}
PARAMS = {"w": np.array([0.3, -0.2, 0.5], np.float32)}


def loss_fn(params, batch):
    return reduce((batch["x"] @ params["w"] - batch["y"]) ** 2, reduction="partial")


@contextlib.contextmanager
def compiles(count):
    before = len(COMPILES)
    yield
    assert len(COMPILES) - before == count


@pytest.mark.parametrize("nonfinite", ["skip", "propagate", "raise"])
def test_compiles_once(nonfinite):
    step = make_train_step(loss_fn, optax.adam(0.1), nonfinite=nonfinite)
    state, other = step.init(PARAMS), step.init(PARAMS)
    with compiles(1):
        for _ in range(3):
            state, _ = step(state, BATCH)
            other, _ = step(other, BATCH)
    assert int(state.step) == int(other.step) == 3


def test_a_saved_state_does_not_compile_again():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state, _ = step(step.init(PARAMS), BATCH)
    leaves, treedef = jax.tree.flatten(state)
    restored = jax.tree.unflatten(treedef, [jax.device_put(np.asarray(x), x.sharding) for x in leaves])
    with compiles(0):
        again, _ = step(restored, BATCH)
    unbroken, _ = step(state, BATCH)
    chex.assert_trees_all_equal(again, unbroken)


def test_donation():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state = step.init(PARAMS)
    step(state, BATCH)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    with pytest.raises(RuntimeError, match=r"donated to an earlier call.*donate=False"):
        step(state, BATCH)


def test_without_donation_the_state_can_be_used_again():
    step = make_train_step(loss_fn, optax.adam(0.1), donate=False)
    state = step.init(PARAMS)
    first, second = step(state, BATCH), step(state, BATCH)
    chex.assert_trees_all_equal(first, second)
    assert int(state.step) == 0


def test_the_step_does_not_hold_the_state():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state, _ = step(step.init(PARAMS), BATCH)
    alive = weakref.ref(state)
    del state
    gc.collect(1)  # the state is young, and the suite's heap large
    assert alive() is None


def test_state_and_metrics_are_arrays_only():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state, metrics = step(step.init(PARAMS), BATCH)
    assert isinstance(state, State)
    assert isinstance(metrics, Metrics)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((state, metrics)))
    with pytest.raises(AttributeError):
        state.step = 3


def test_evaluate():
    def both(params, batch, *, training, key, model_state):
        r = batch["x"] @ params["w"] - batch["y"]
        terms = {
            "fit": reduce(r**2 + 100.0 * training, reduction="partial"),
            "size": reduce(jnp.abs(r), reduction="partial"),
        }
        return terms, Aux(model_state=model_state + 1, metrics={"worst": Mean(r.max(), jnp.ones(()))})

    step = make_train_step(both, optax.adam(0.1), coefficients={"fit": 3.0}, accumulate=2)
    state = step.init(PARAMS, key=jax.random.key(0), model_state=jnp.zeros(()))
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state))]
    with compiles(1):
        found = step.evaluate(state, BATCH)
        more = step.evaluate(state, BATCH)
    r = BATCH["x"] @ PARAMS["w"] - BATCH["y"]
    np.testing.assert_allclose(found["fit"].value, (r**2).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["fit"].merge(more["fit"]).total, 2 * (r**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(found["size"].value, np.abs(r).mean(), rtol=1e-6)
    np.testing.assert_allclose(found["worst"].value, r.max(), rtol=1e-6)
    assert before == [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.params, state.opt_state))]
    assert state.model_state == 0
    assert int(state.step) == 0
    odd = jax.tree.map(lambda x: x[:5], BATCH)  # no microbatches here
    np.testing.assert_allclose(step.evaluate(state, odd)["fit"].value, (r[:5] ** 2).mean(), rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
def test_pure_in_jit_scan_vmap_and_eval_shape(parts):
    step = make_train_step(loss_fn, optax.adam(0.1), accumulate=parts, donate=False)
    state = step.init(PARAMS)
    one, metrics = step(state, BATCH)
    two, _ = step(one, BATCH)

    chex.assert_trees_all_close(jax.jit(step.pure)(state, BATCH), (one, metrics), atol=1e-6)

    scanned, seen = jax.lax.scan(step.pure, state, jax.tree.map(lambda x: jnp.stack([x, x]), BATCH))
    chex.assert_trees_all_close(scanned, two, atol=1e-6)
    assert seen.loss.shape == (2,)

    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    after, _ = jax.vmap(step.pure, in_axes=(0, None))(stacked, BATCH)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], after), one, atol=1e-6)

    shapes, _ = jax.eval_shape(step.pure, state, BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, one)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_step_inside_jit_is_pure():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state = step.init(PARAMS)
    inside, _ = jax.jit(lambda s: step(s, BATCH))(state)
    chex.assert_trees_all_close(step(state, BATCH)[0], inside, atol=1e-6)


def test_seeds_and_learning_rates_in_one_program():
    """How `compare` trains: the step and its optimizer are built from a traced learning rate."""

    def train(key, learning_rate):
        step = make_train_step(loss_fn, optax.adam(learning_rate), accumulate=2)
        state = step.init({"w": jax.random.normal(key, (3,))})
        state, metrics = jax.lax.scan(lambda s, _: step.pure(s, BATCH), state, None, length=5)
        return state.params, metrics.loss

    one = jax.jit(train)
    keys, rates = jax.random.split(jax.random.key(0), 2), jnp.array([0.01, 0.1, 0.3])
    over_rates = jax.vmap(train, in_axes=(None, 0))
    params, losses = jax.jit(jax.vmap(over_rates, in_axes=(0, None)))(keys, rates)
    assert losses.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            alone, loss = one(keys[i], rates[j])
            np.testing.assert_allclose(params["w"][i, j], alone["w"], atol=1e-5)
            np.testing.assert_allclose(losses[i, j], loss, rtol=1e-4)


def test_vmapped_skips_are_separate():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state = step.init(PARAMS)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    bad = jax.tree.map(lambda x: jnp.stack([x, jnp.full_like(x, jnp.nan)]), BATCH)
    after, metrics = jax.jit(jax.vmap(step.pure))(stacked, bad)
    assert metrics.ok.tolist() == [True, False]
    assert after.skipped.tolist() == [0, 1]
    np.testing.assert_array_equal(after.params["w"][1], PARAMS["w"])


def test_hyperparameters_in_the_optimizer_state():
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    step = make_train_step(loss_fn, tx)
    state = step.init(PARAMS)
    state.opt_state.hyperparams["learning_rate"] = jnp.zeros(())
    state, _ = step(state, BATCH)
    np.testing.assert_array_equal(state.params["w"], PARAMS["w"])


def test_gradients_go_through_a_step():
    """Learning to learn: the derivative of the loss after a step with respect to the params before it."""
    step = make_train_step(loss_fn, optax.sgd(0.1))
    x, y, w = (np.asarray(a, np.float64) for a in (BATCH["x"], BATCH["y"], PARAMS["w"]))
    hessian = 2 * x.T @ x / len(y)

    def after(params):
        return loss_fn(step.pure(step.init(params), BATCH)[0].params, BATCH).value

    new = w - 0.1 * (2 * x.T @ (x @ w - y) / len(y))
    expected = (np.eye(3) - 0.1 * hessian) @ (2 * x.T @ (x @ new - y) / len(y))
    np.testing.assert_allclose(jax.jit(jax.grad(after))({"w": jnp.asarray(PARAMS["w"])})["w"], expected, rtol=1e-4)
