"""A step that is not finite: what stays, what is counted, what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import Mean, reduce
from jaxloss.train import Aux, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

GOOD = {"x": jnp.ones((4, 3)), "y": jnp.arange(4.0)}
BAD = {"x": GOOD["x"].at[0, 1].set(jnp.nan), "y": GOOD["y"]}


def loss_fn(params, batch, *, model_state):
    r = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return reduce(r**2, reduction="partial"), Aux(model_state=model_state + r.mean())


def start(step):
    return step.init({"w": jnp.ones(3), "b": jnp.zeros(())}, model_state=jnp.zeros(()))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [(optax.adam(0.1), 1), (optax.adam(0.1), 2), (optax.contrib.momo(), 1), (optax.lbfgs(0.1, linesearch=None), 1)],
)
def test_skip_leaves_everything_bit_for_bit(optimizer, parts):
    step = make_train_step(loss_fn, optimizer, accumulate=parts)
    state, metrics = step(start(step), GOOD)
    assert bool(metrics.ok)
    assert metrics.update_norm > 0
    before = bits((state.params, state.opt_state, state.model_state))
    state, metrics = step(state, BAD)
    assert bits((state.params, state.opt_state, state.model_state)) == before
    assert not bool(metrics.ok)
    assert metrics.update_norm == 0
    assert (int(state.step), int(state.skipped)) == (2, 1)
    state, metrics = step(state, GOOD)
    assert bool(metrics.ok)
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert bits(state.params) != before[:2]


def test_propagate_does_nothing():
    step = make_train_step(loss_fn, optax.sgd(0.1), nonfinite="propagate")
    state, metrics = step(start(step), BAD)
    assert not bool(metrics.ok)
    assert int(state.skipped) == 0
    assert np.isnan(state.params["w"]).all()
    assert np.isnan(state.model_state)


def test_a_finite_loss_with_a_nan_gradient_is_skipped():
    step = make_train_step(lambda params, batch: jnp.sqrt(params) * 0.0, optax.sgd(0.1))
    state, metrics = step(step.init(0.0), GOOD)
    assert metrics.loss == 0
    assert not bool(metrics.ok)
    assert int(state.skipped) == 1


def test_large_gradients_are_finite_though_their_norm_is_not():
    step = make_train_step(lambda params, batch: (params * 1e30).sum(), optax.sgd(1e-30))
    state, metrics = step(step.init(jnp.ones(2)), GOOD)
    assert bool(metrics.ok)
    assert int(state.skipped) == 0
    np.testing.assert_allclose(state.params, 0, atol=1e-6)


def test_nan_in_a_term_without_gradient_is_seen():
    def constant(params, batch):
        return {"a": Mean(params, jnp.ones(())), "b": Mean(jnp.full((), jnp.nan), batch["weight"])}

    for weight in (1.0, 0.0):  # over nothing the value is 0, and the total still nan
        step = make_train_step(constant, optax.sgd(0.1))
        state, metrics = step(step.init(1.0), {"weight": weight})
        assert not bool(metrics.ok)
        assert int(state.skipped) == 1
        assert state.params == 1


@pytest.mark.parametrize("parts", [1, 2])
def test_an_infinite_term_with_a_finite_gradient_is_counted_and_not_skipped(parts):
    def infeasible(params, batch):
        cost = jnp.where(batch["y"] > 2, jnp.inf, params * batch["y"])
        fit = reduce(params * batch["y"], reduction="partial")
        return {"alignment": reduce(cost, reduction="partial"), "fit": fit}

    step = make_train_step(infeasible, optax.sgd(0.5), accumulate=parts)
    state, metrics = step(step.init(1.0), GOOD)
    assert bool(metrics.ok)
    assert int(metrics.infinite) == 1
    assert int(state.skipped) == 0
    assert np.isposinf(metrics.loss)
    np.testing.assert_allclose(state.params, 1 - 0.5 * ((1 + 2) / 4 + 6 / 4), rtol=1e-6)


def test_raise_names_the_cause_in_the_next_call():
    step = make_train_step(loss_fn, optax.adam(0.1), nonfinite="raise")
    state, _ = step(start(step), GOOD)
    before = bits((state.params, state.opt_state, state.model_state))
    state, _ = step(state, BAD)
    with pytest.raises(FloatingPointError) as caught:
        step(state, GOOD)
    words = str(caught.value)
    assert "step 1 is not finite: the term 'loss' is nan" in words
    assert "the gradient of params['b'] has nan" in words
    assert "params['w'] has nan" in words
    # The state at hand is good and can be gone on with.
    assert bits((state.params, state.opt_state, state.model_state)) == before
    state, metrics = step(state, GOOD)
    assert bool(metrics.ok)
    assert step(state, GOOD)


def test_raise_names_only_the_leaf_that_is_infinite_and_evaluate_raises_too():
    def split(params, batch):
        return params["a"].sum() + params["list"][1] * 1e38 * 10

    step = make_train_step(split, optax.sgd(0.1), nonfinite="raise")
    state, _ = step(step.init({"a": jnp.ones(2), "list": [0.0, jnp.ones(())]}), GOOD)
    with pytest.raises(FloatingPointError, match=r"finite: the gradient of params\['list'\]\[1\] has inf\. The state"):
        step.evaluate(state, GOOD)


def test_raise_in_pure_asks_no_host():
    step = make_train_step(loss_fn, optax.sgd(0.1), nonfinite="raise")
    pure = jax.jit(step.pure)
    state, metrics = pure(start(step), BAD)
    assert not bool(metrics.ok)
    assert int(state.skipped) == 1
    pure(state, GOOD)
