"""Optimizers that keep two sets of params: which one is trained, and which one is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxloss import reduce
from jaxloss.train import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(8, 3)).astype(np.float32), "y": RNG.normal(size=8).astype(np.float32)}
PARAMS = {"w": np.array([0.3, -0.2, 0.5], np.float32), "b": np.float32(0.0)}


def loss_fn(params, batch):
    return reduce((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2, reduction="partial")


def value(params):
    w, b = np.asarray(params["w"], np.float64), float(params["b"])
    return ((BATCH["x"] @ w + b - BATCH["y"]) ** 2).mean()


def gradient(w, b):
    r = BATCH["x"] @ w + b - BATCH["y"]
    return BATCH["x"].T @ r / 4, 2 * r.mean()


SCHEDULE_FREE = {
    "itself": lambda: contrib.schedule_free_sgd(0.1, b1=0.9),
    "in a chain": lambda: optax.chain(optax.clip(1e6), contrib.schedule_free_sgd(0.1, b1=0.9)),
    "in MultiSteps": lambda: optax.MultiSteps(contrib.schedule_free_sgd(0.1, b1=0.9), 1),
    "in apply_if_finite": lambda: optax.apply_if_finite(contrib.schedule_free_sgd(0.1, b1=0.9), 3),
}


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_is_evaluated_at_its_average(name):
    """x_{t+1} = (1 - 1/t) x_t + 1/t z_{t+1}, with gradients at y = 0.1 z + 0.9 x; in float64 from the paper."""
    step = make_train_step(loss_fn, SCHEDULE_FREE[name]())
    state = step.init(PARAMS)
    w, b = PARAMS["w"].astype(np.float64), 0.0
    x, z, y = (w, b), (w, b), (w, b)
    for t in range(1, 6):
        state, _ = step(state, BATCH)
        g = gradient(*y)
        z = tuple(a - 0.1 * s for a, s in zip(z, g, strict=True))
        x = tuple((1 - 1 / t) * a + c / t for a, c in zip(x, z, strict=True))
        y = tuple(0.1 * c + 0.9 * a for a, c in zip(x, z, strict=True))
    np.testing.assert_allclose(state.params["w"], y[0], rtol=1e-4)
    found = step.evaluation_params(state)
    np.testing.assert_allclose(found["w"], x[0], rtol=1e-4)
    np.testing.assert_allclose(found["b"], x[1], rtol=1e-3, atol=1e-5)
    assert abs(value(found) - value(state.params)) > 1e-4  # or the next line would show nothing
    np.testing.assert_allclose(step.evaluate(state, BATCH)["loss"].value, value(found), rtol=1e-5)


def test_only_some_params_may_be_averaged():
    tx = optax.partition(
        {"average": contrib.schedule_free_sgd(0.1, b1=0.9), "plain": optax.sgd(0.1)}, {"w": "average", "b": "plain"}
    )
    step = make_train_step(loss_fn, tx)
    state = step.init(PARAMS)
    for _ in range(4):
        state, _ = step(state, BATCH)
    found = step.evaluation_params(state)
    np.testing.assert_array_equal(found["b"], state.params["b"])
    assert np.abs(np.asarray(found["w"] - state.params["w"])).max() > 1e-3


def test_two_averages_are_refused():
    tx = optax.partition(
        {"a": contrib.schedule_free_sgd(0.1), "b": contrib.schedule_free_sgd(0.2)}, {"w": "a", "b": "b"}
    )
    step = make_train_step(loss_fn, tx)
    with pytest.raises(ValueError, match="2 schedule-free states"):
        step.evaluate(step.init(PARAMS), BATCH)


def test_lookahead_trains_the_fast_and_evaluates_the_slow():
    """Every second step both meet half-way; Zhang et al. (2019) by hand in float64."""
    step = make_train_step(loss_fn, optax.lookahead(optax.sgd(0.1), 2, 0.5), accumulate=2)
    state = step.init(optax.LookaheadParams.init_synced(PARAMS))
    fast = slow = (PARAMS["w"].astype(np.float64), 0.0)
    for t in range(1, 6):
        state, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics.loss, ((BATCH["x"] @ fast[0] + fast[1] - BATCH["y"]) ** 2).mean(), rtol=1e-4)
        fast = tuple(a - 0.1 * s for a, s in zip(fast, gradient(*fast), strict=True))
        if t % 2 == 0:
            slow = tuple(s + 0.5 * (f - s) for f, s in zip(fast, slow, strict=True))
            fast = slow
    np.testing.assert_allclose(state.params.fast["w"], fast[0], rtol=1e-4)
    assert step.evaluation_params(state) is state.params.slow
    np.testing.assert_allclose(state.params.slow["w"], slow[0], rtol=1e-4)
    found = step.evaluate(state, BATCH)["loss"].value
    np.testing.assert_allclose(found, value({"w": slow[0], "b": slow[1]}), rtol=1e-4)
    assert abs(value({"w": slow[0], "b": slow[1]}) - value({"w": fast[0], "b": fast[1]})) > 1e-3


def test_lookahead_without_its_pair_says_what_to_do():
    step = make_train_step(loss_fn, optax.lookahead(optax.sgd(0.1), 2, 0.5))
    with pytest.raises(TypeError, match=r"init\(optax.LookaheadParams.init_synced\(params\)\)"):
        step(step.init(PARAMS), BATCH)


def test_every_other_optimizer_is_evaluated_where_it_is():
    step = make_train_step(loss_fn, optax.adam(0.1))
    state, _ = step(step.init(PARAMS), BATCH)
    assert step.evaluation_params(state) is state.params


def test_under_eval_shape_and_jit():
    step = make_train_step(loss_fn, contrib.schedule_free_sgd(0.1))
    shapes = jax.eval_shape(lambda: step.evaluation_params(step.init(PARAMS)))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {"w": (3,), "b": ()}
    state = step.init(PARAMS)
    inside = jax.jit(step.evaluation_params)(state)
    np.testing.assert_allclose(inside["w"], jnp.asarray(PARAMS["w"]), rtol=1e-5)
