"""The gradient of every example: against one gradient at a time, and for optax's differentially private ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxloss import Mean, reduce
from jaxloss.train import Aux, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(8, 3)).astype(np.float32),
    "y": RNG.normal(size=(8, 2)).astype(np.float32),
    "weight": RNG.uniform(0, 2, 8).astype(np.float32),
    "mask": np.arange(8) != 5,
    "shift": np.float32(0.25),  # a scalar belongs to every example
}
PARAMS = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "b": np.zeros(2, np.float32)}


def residual(params, batch):
    return batch["x"] @ params["w"] + params["b"][None] - batch["y"] - batch["shift"]


def loss_fn(params, batch):
    each = (residual(params, batch) ** 2).sum(-1)
    return {
        "fit": reduce(each, where=batch["mask"], weights=batch["weight"], reduction="partial"),
        "size": reduce(jnp.abs(batch["x"] @ params["w"]).sum(-1), reduction="partial"),
    }


def gradients_by_hand():
    """[8, ...] in float64: of weight * |r|^2, 0 behind the mask, plus half of |x w|."""
    x, y, w = (np.asarray(a, np.float64) for a in (BATCH["x"], BATCH["y"], PARAMS["w"]))
    r = 2 * (x @ w - y - 0.25) * (BATCH["weight"] * BATCH["mask"])[:, None]
    size = 0.5 * np.sign(x @ w)
    return {"w": np.einsum("nk,nj->nkj", x, r + size), "b": r}


def remember():
    """An optimizer that keeps the gradients that it is given."""

    def init(params):
        return jax.tree.map(lambda p: jnp.zeros((8, *p.shape)), params)

    def update(gradients, state, params=None):
        return jax.tree.map(lambda g: -g.mean(0), gradients), gradients

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_row_has_its_own_gradient(parts):
    step = make_train_step(
        loss_fn, remember(), per_example_gradients=True, accumulate=parts, coefficients={"size": 0.5}
    )
    state, metrics = step(step.init(PARAMS), BATCH)
    expected = gradients_by_hand()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state.opt_state, expected)
    np.testing.assert_array_equal(state.opt_state["b"][5], 0)  # a masked example has none of "fit"
    norm = np.sqrt(sum((g.mean(0) ** 2).sum() for g in expected.values()))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    np.testing.assert_allclose(metrics.update_norm, norm, rtol=1e-5)
    # The loss that is reported is the batch's, with its denominators.
    r = np.asarray(residual(PARAMS, BATCH), np.float64)
    u = BATCH["weight"] * BATCH["mask"]
    fit, size = (u * (r**2).sum(-1)).sum() / u.sum(), np.abs(BATCH["x"] @ PARAMS["w"]).sum(-1).mean()
    np.testing.assert_allclose(metrics.loss, fit + 0.5 * size, rtol=1e-5)
    np.testing.assert_allclose(metrics.terms["fit"].weight, u.sum(), rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_keys_and_metrics_are_per_example(parts):
    def noisy(params, batch, *, key):
        noise = jax.random.normal(key, ())
        total = (params["b"] * noise).sum()
        return Mean(total, jnp.ones(())), Aux(metrics={"noise": Mean(noise, jnp.ones(()))})

    key = jax.random.key(7)
    step = make_train_step(noisy, remember(), per_example_gradients=True, accumulate=parts)
    state = step.init(PARAMS, key=key)
    state, metrics = step(state, BATCH)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(8)]
    noise = np.array([jax.random.normal(k, ()) for k in keys])
    np.testing.assert_allclose(state.opt_state["b"], np.stack([noise, noise], 1), rtol=1e-6)
    np.testing.assert_allclose(metrics.aux["noise"].value, noise.mean(), rtol=1e-5)
    assert len(set(noise.tolist())) == 8


def test_clipping_bounds_what_one_example_can_do():
    """Without noise, dpsgd is the mean of gradients, each no longer than the clip."""
    private = contrib.differentially_private_aggregate(0.5, 0.0, key=jax.random.key(0))
    step = make_train_step(loss_fn, optax.chain(private, optax.sgd(1.0)), per_example_gradients=True)
    state, _ = step(step.init(PARAMS), BATCH)
    gradients = jax.tree.map(lambda g: g, gradients_by_hand())
    # "size" has no coefficient here: twice the half.
    gradients["w"] += np.einsum(
        "nk,nj->nkj", BATCH["x"].astype(np.float64), 0.5 * np.sign(BATCH["x"] @ PARAMS["w"]).astype(np.float64)
    )
    norms = np.sqrt((gradients["w"] ** 2).sum((1, 2)) + (gradients["b"] ** 2).sum(1))
    assert (norms > 0.5).any()
    clip = np.minimum(1, 0.5 / norms)
    for name, g in gradients.items():
        mean = (g * clip.reshape(8, *[1] * (g.ndim - 1))).mean(0)
        np.testing.assert_allclose(PARAMS[name] - state.params[name], mean, atol=1e-5)


def test_it_works_in_scan_and_skips_what_is_not_finite():
    step = make_train_step(loss_fn, remember(), per_example_gradients=True, loss_scale=8.0)
    state = step.init(PARAMS)
    bad = {**BATCH, "y": np.where(np.arange(8)[:, None] == 2, np.nan, BATCH["y"]).astype(np.float32)}
    batches = jax.tree.map(lambda a, b: jnp.stack([a, b]), BATCH, bad)
    after, metrics = jax.lax.scan(step.pure, state, batches)
    assert metrics.ok.tolist() == [True, False]
    assert int(after.skipped) == 1
    expected = make_train_step(loss_fn, remember(), per_example_gradients=True)
    once, _ = expected(expected.init(PARAMS), BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, once.params)


def test_an_optimizer_that_needs_examples_is_not_given_a_batch():
    """One weight matrix [rows, columns] would pass for the gradients of `rows` examples, without a word."""
    private = contrib.differentially_private_aggregate(0.5, 0.0, key=jax.random.key(0))

    def only_w(params, batch):
        return reduce((batch["x"] @ params["w"]) ** 2, reduction="partial")

    for optimizer in (private, optax.chain(private, optax.adam(0.1)), optax.apply_if_finite(private, 2)):
        step = make_train_step(only_w, optimizer)
        with pytest.raises(TypeError, match="per_example_gradients=True"):
            step(step.init({"w": PARAMS["w"]}), BATCH)


def test_an_optimizer_that_does_not_aggregate_is_refused():
    step = make_train_step(loss_fn, optax.sgd(0.1), per_example_gradients=True)
    with pytest.raises(ValueError, match="the optimizer returned updates of another shape than params"):
        step(step.init(PARAMS), BATCH)


def scalar(params, batch):
    return (residual(params, batch) ** 2).mean()


def coupled(params, batch):
    return reduce((residual(params, batch) ** 2).sum(-1), reduction="partial", coupled=True)


def stateful(params, batch, *, model_state):
    return reduce((residual(params, batch) ** 2).sum(-1), reduction="partial"), Aux(model_state=model_state + 1)


@pytest.mark.parametrize(
    ("loss_fn", "batch", "words"),
    [
        (scalar, BATCH, "bare scalar"),
        (coupled, BATCH, "batch-coupled"),
        (stateful, BATCH, "no order in which a model state could be handed on"),
        (loss_fn, {**BATCH, "y": BATCH["y"][:4]}, r"`batch\['x'\]` has 8 of them.*|`batch\['mask'\]` has 8"),
        (lambda params, batch: Mean((params["w"] * batch).sum(), jnp.ones(())), 1.0, "this one has none"),
    ],
)
def test_what_has_no_examples_is_refused(loss_fn, batch, words):
    step = make_train_step(loss_fn, remember(), per_example_gradients=True)
    with pytest.raises((ValueError, TypeError), match=words):
        step(step.init(PARAMS, model_state=jnp.zeros(())), batch)


def test_a_model_state_is_read():
    def reading(params, batch, *, model_state):
        return reduce((params["b"] * model_state).sum()[None], reduction="partial")

    step = make_train_step(reading, remember(), per_example_gradients=True)
    state, _ = step(step.init(PARAMS, model_state=jnp.full((), 3.0)), BATCH)
    np.testing.assert_array_equal(state.opt_state["b"], np.full((8, 2), 3.0))
    assert state.model_state == 3
