"""The first state: whose buffers it holds, and of which types they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import reduce
from jaxloss.train import State, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")


def loss_fn(params, batch):
    return reduce((batch @ params["w"]) ** 2, reduction="partial")


def keyed(params, batch, *, key):
    return reduce((batch @ params["w"] + jax.random.normal(key, ())) ** 2, reduction="partial")


BATCH = np.ones((4, 3), np.float32)


def params():
    return {"w": jnp.arange(3.0)}


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size]


@pytest.mark.parametrize("optimizer", [optax.lbfgs(0.1, linesearch=None), optax.contrib.prodigy(), optax.adam(0.1)])
def test_the_callers_arrays_survive_and_no_buffer_is_shared(optimizer):
    mine, extra = params(), jnp.ones(3)
    shared = {**mine, "tied": mine["w"]}
    step = make_train_step(loss_fn, optimizer)
    state = step.init(shared, model_state=extra)
    held = pointers(state) + pointers((mine, extra))
    assert len(set(held)) == len(held)
    for _ in range(2):
        state, _ = step(state, BATCH)
    np.testing.assert_array_equal(mine["w"], np.arange(3.0))
    np.testing.assert_array_equal(extra, np.ones(3))


def test_numpy_params_stay_as_they_are():
    mine = {"w": np.arange(3, dtype=np.float32)}
    for copy in (True, False):
        step = make_train_step(loss_fn, optax.sgd(0.1))
        step(step.init(mine, copy=copy), BATCH)
        np.testing.assert_array_equal(mine["w"], np.arange(3))


def test_ownership_can_be_handed_over():
    mine = params()
    shared = {**mine, "tied": mine["w"]}
    step = make_train_step(loss_fn, optax.contrib.prodigy())
    state = step.init(shared, copy=False)
    assert pointers(mine)[0] in pointers(state.params)
    held = pointers(state)
    assert len(set(held)) == len(held)
    step(state, BATCH)
    assert mine["w"].is_deleted() or state.params["w"].is_deleted()


def test_types_are_strong():
    step = make_train_step(loss_fn, optax.lbfgs())
    state = step.init({"w": jnp.full(3, 2.0), "unused": 1.0}, model_state=2.0)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert state.step.dtype == state.skipped.dtype == jnp.int32


def test_everything_is_committed():
    step = make_train_step(keyed, optax.adam(0.1))
    state = step.init(params(), key=jax.random.key(0))
    assert all(leaf.committed for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_typed_and_raw_keys(make):
    key = make(0)
    step = make_train_step(keyed, optax.sgd(0.1))
    state = step.init(params(), key=key)
    state, first = step(state, BATCH)
    state, second = step(state, BATCH)
    assert state.key.dtype == key.dtype
    expected = [jax.random.normal(jax.random.fold_in(jax.random.fold_in(make(0), at), 0), ()) for at in range(2)]
    np.testing.assert_allclose(first.loss, (3 + expected[0]) ** 2, rtol=1e-5)
    assert jax.random.normal(key, ()) is not None  # not donated
    assert first.loss != second.loss


def test_a_key_is_needed_only_where_it_is_named():
    assert make_train_step(loss_fn, optax.sgd(0.1)).init(params()).key is None
    with pytest.raises(ValueError, match=r"asks for `key`; give init\(params, key=jax.random.key\(0\)\)"):
        make_train_step(keyed, optax.sgd(0.1)).init(params())
    for wrong in (0, jnp.zeros(2), "key"):
        with pytest.raises(TypeError, match="`key` must be a random key"):
            make_train_step(keyed, optax.sgd(0.1)).init(params(), key=wrong)
    with pytest.raises(ValueError, match=r"one key; got an array of them, \[2\]"):
        make_train_step(keyed, optax.sgd(0.1)).init(params(), key=jax.random.split(jax.random.key(0)))


def test_what_is_no_array_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`params\['f'\]` is function"):
        make_train_step(loss_fn, optax.sgd(0.1)).init({**params(), "f": lambda x: x})
    with pytest.raises(TypeError, match=r"`model_state\[0\]` is str"):
        make_train_step(loss_fn, optax.sgd(0.1)).init(params(), model_state=["a"])


def test_init_on_shapes():
    step = make_train_step(keyed, optax.adam(0.1))
    state = step.init(params(), key=jax.random.key(0), model_state=jnp.ones(2))
    shapes = jax.eval_shape(lambda p, k, m: step.init(p, key=k, model_state=m), params(), state.key, jnp.ones(2))
    assert isinstance(shapes, State)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)
    assert jax.eval_shape(make_train_step(loss_fn, optax.lbfgs()).init, params()).params["w"].shape == (3,)


@pytest.mark.parametrize("leaf", [np.arange(3), jax.random.key(0), np.array([True])])
def test_what_has_no_gradient_is_refused_by_name(leaf):
    with pytest.raises(TypeError, match=r"`params\['steps'\]` is .*, which has no gradient: give it to init\(model_st"):
        make_train_step(loss_fn, optax.sgd(0.1)).init({**params(), "steps": leaf})


def test_a_model_state_is_needed_where_it_has_no_default():
    def stateful(params, batch, *, model_state):
        return reduce((batch @ params["w"] + model_state) ** 2, reduction="partial")

    def optional(params, batch, *, model_state=None):
        return reduce((batch @ params["w"]) ** 2, reduction="partial")

    with pytest.raises(ValueError, match=r"asks for `model_state`; give init\(params, model_state=...\)"):
        make_train_step(stateful, optax.sgd(0.1)).init(params())
    assert make_train_step(optional, optax.sgd(0.1)).init(params()).model_state is None
