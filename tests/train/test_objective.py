"""What `loss_fn` may ask for and hand back, and the words for everything else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import Mean, reduce
from jaxloss.train import Aux, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = np.arange(1.0, 9.0, dtype=np.float32)


def term(params, batch):
    return reduce(params * batch, reduction="partial")


def run(loss_fn, init=None, **options):
    step = make_train_step(loss_fn, optax.sgd(1.0), **options)
    return step(step.init(1.0, **(init or {})), BATCH)


def test_gets_what_it_names_and_nothing_else():
    seen = {}

    def loss_fn(params, batch, *, key, model_state, step, training):
        seen.update(key=key, model_state=model_state, step=step, training=training)
        return term(params, batch), Aux(model_state=model_state)

    step = make_train_step(loss_fn, optax.sgd(1.0))
    state = step.init(1.0, key=jax.random.key(0), model_state={"n": jnp.zeros(3)})
    jax.eval_shape(step.pure, state, BATCH)
    assert seen["training"] is True
    assert seen["step"].dtype == jnp.int32
    assert seen["model_state"]["n"].shape == (3,)
    assert jnp.issubdtype(seen["key"].dtype, jax.dtypes.prng_key)
    jax.eval_shape(step.evaluate, state, BATCH)
    assert seen["training"] is False


def test_what_a_partial_has_bound_stays_bound():
    seen = []

    def loss_fn(params, batch, *, training, model_state=None):
        seen.append((training, model_state))
        return term(params, batch)

    run(functools.partial(loss_fn, training=False))
    assert seen[-1] == (False, None)


def test_a_third_positional_argument_by_name():
    def loss_fn(params, batch, step):
        return Mean(params * step, jnp.ones(()))

    _state, metrics = run(loss_fn)
    assert metrics.loss == 0


@pytest.mark.parametrize("names", [("step", "batch"), ("params", "key")])
def test_the_first_two_arguments_are_params_and_batch_whatever_their_names(names):
    space: dict = {"term": term}
    exec(f"def loss_fn({names[0]}, {names[1]}): return term({names[0]}, {names[1]})", space)
    assert run(space["loss_fn"])[1].loss == 4.5


def test_a_bare_scalar_and_its_refusal():
    def mean(params, batch):
        return (params * batch).mean()

    state, metrics = run(mean)
    assert metrics.loss == 4.5
    assert metrics.terms["loss"].weight == 1
    assert state.params == 1 - 4.5
    with pytest.raises(TypeError, match=r"bare scalar.*accumulate=2"):
        run(mean, accumulate=2)
    with pytest.raises(TypeError, match="metric 'size' is a bare scalar"):
        run(lambda p, b: (term(p, b), Aux(metrics={"size": b.sum()})), accumulate=2)


def test_coupled_losses_are_refused_in_parts():
    def coupled(params, batch):
        return reduce(params * batch, reduction="partial", coupled=True)

    assert run(coupled)[1].loss == 4.5
    with pytest.raises(ValueError, match=r"'loss' is batch-coupled.*allow_coupled=True"):
        run(coupled, accumulate=2)
    assert run(coupled, accumulate=2, allow_coupled=True)[1].loss == 4.5


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (None, TypeError, "NoneType"),
        ("0.5", TypeError, "str"),
        ({}, TypeError, "empty dict"),
        ([1.0], TypeError, "list"),
        (jnp.ones(3), TypeError, r"array \[3\]: reduce it"),
        ((Mean(jnp.ones(()), jnp.ones(())), {}), TypeError, r"tuple \(Mean, dict\)"),
        ({1: Mean(jnp.ones(()), jnp.ones(()))}, TypeError, "the name 1"),
        (Mean(jnp.ones(3), jnp.ones(())), ValueError, r"'loss': its total has shape \[3\]"),
        (Mean(jnp.ones(()), jnp.ones(3)), ValueError, r"'loss': its weight has shape \[3\]"),
        (Mean(jnp.ones((), int), jnp.ones(())), TypeError, "its total is int32"),
        ((1.0, Aux(metrics={"loss": 1.0})), ValueError, "both have 'loss'"),
        ((1.0, Aux(model_state=jnp.ones(3))), ValueError, r"give it to init\(model_state"),
    ],
)
def test_anything_else_is_refused_in_words(out, error, words):
    with pytest.raises(error, match=words):
        run(lambda params, batch: out)


def test_model_state_keeps_its_structure_shape_and_dtype():
    def returning(new):
        return lambda params, batch: (term(params, batch), Aux(model_state=new))

    init = {"model_state": {"a": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="another structure"):
        run(returning({"b": jnp.zeros(3)}), init)
    with pytest.raises(ValueError, match=r"another shape than the state's at \['a'\]"):
        run(returning({"a": jnp.zeros(4)}), init)
    state, _ = run(returning({"a": jnp.ones(3, jnp.bfloat16)}), init)
    assert state.model_state["a"].dtype == jnp.float32
    assert run(returning({}))[0].model_state is None  # a model without state
    assert run(returning(None), init)[0].model_state["a"].shape == (3,)


def test_coefficients():
    def two(params, batch):
        return {"a": term(params, batch), "b": Mean(params * 10.0, jnp.full((), 2.0))}

    assert run(two)[1].loss == 4.5 + 5
    state, metrics = run(two, coefficients={"b": 0.1})
    np.testing.assert_allclose(metrics.loss, 4.5 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.params, 1 - 5.0, rtol=1e-6)
    assert metrics.terms["b"].value == 5  # without its coefficient
    with pytest.raises(ValueError, match="names 'c', but `loss_fn` returns the terms 'a', 'b'"):
        run(two, coefficients={"c": 1.0})


@pytest.mark.parametrize("parts", [1, 2])
def test_coefficients_follow_the_step(parts):
    def two(params, batch):
        return {"a": term(params, batch), "b": reduce(params * 10.0 + 0 * batch, reduction="partial")}

    step = make_train_step(two, optax.sgd(0.0), coefficients={"b": lambda at: 1.0 + at}, accumulate=parts)
    state, losses = step.init(1.0), []
    for _ in range(3):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics.loss))
    np.testing.assert_allclose(losses, [14.5, 24.5, 34.5], rtol=1e-6)


def test_a_weight_of_zero_adds_nothing():
    def divided(params, batch):
        return {"a": term(params, batch), "none": Mean(params * 7.0, jnp.zeros(()))}

    state, metrics = run(divided)
    assert metrics.loss == 4.5
    assert state.params == 1 - 4.5
    assert bool(metrics.ok)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"loss_fn": 3}, TypeError, "`loss_fn` must be a function"),
        ({"loss_fn": lambda params: params}, TypeError, r"callable as loss_fn\(params, batch\)"),
        ({"loss_fn": lambda params, batch, *, rng: params}, TypeError, "keyword-only arguments key, model_state"),
        ({"optimizer": optax.adam}, TypeError, "`optimizer` must be an optax optimizer.*function"),
        ({"accumulate": 0}, ValueError, "at least 1; got 0"),
        ({"accumulate": 2.0}, ValueError, "got 2.0"),
        ({"accumulate": True}, ValueError, "got True"),
        ({"coefficients": [1.0]}, TypeError, "got list"),
        ({"nonfinite": "ignore"}, ValueError, "'skip', 'propagate' or 'raise'; got 'ignore'"),
        ({"update_args": "none"}, ValueError, "'auto' or a function"),
    ],
)
def test_options_are_checked_at_once(change, error, words):
    options = {"loss_fn": term, "optimizer": optax.adam(0.1), **change}
    with pytest.raises(error, match=words):
        make_train_step(options.pop("loss_fn"), options.pop("optimizer"), **options)
