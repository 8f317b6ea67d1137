"""Every framework in a few lines of its user's own glue: the same training as by the framework's own means.

Each program below is written as a user writes it, with the lines between framework and step marked. The tests hold all
of them against loops that know nothing of jaxloss, and, where the framework has an optimizer of its own, against that.
"""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from flax import nnx
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import jaxloss as jl

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.exhaustive]

IMAGES, LABELS = load_digits(return_X_y=True)
BATCH = {
    "x": np.float32(IMAGES[:24] / 16),
    "y": np.int32(LABELS[:24]),
    "mask": np.arange(24) % 5 != 2,
}
COUNTED = BATCH["mask"].sum()
KEY = jax.random.key(7)
STEPS = 3


class Program(NamedTuple):
    """What a user has: the arguments of make_train_step and init, and how to predict with the state that comes out.

    `total` is the loss without jaxloss: the sum over the rows that count, and the next model state.
    """

    loss_fn: Callable[..., Any]
    params: Any
    model_state: Any
    key: Any
    predict: Callable[[Any], Any]
    total: Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def masked_sum(logits, batch):
    """Cross-entropy in the plain terms of jax, over the rows that count."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["y"][:, None], 1)[:, 0]
    return -jnp.where(batch["mask"], chosen, 0).sum()


# flax nnx: the running statistics and the dropout's random stream are the model state.


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        # No bias: the normalisation takes it out again, and adam would follow the rounding noise of its gradient.
        self.first = nnx.Linear(64, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.last = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def nnx_program():
    model = NnxNet(nnx.Rngs(0))

    # --- glue
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, batch, *, model_state, training):
        net = nnx.merge(graphdef, params, model_state, copy=True)
        net.set_attributes(deterministic=not training, use_running_average=not training)
        logits = net(batch["x"])
        loss = jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")
        return loss, jl.Aux(model_state=nnx.state(net, nnx.Not(nnx.Param)))

    def predict(state):
        nnx.update(model, state.params, state.model_state)
        # --- end of glue
        model.eval()
        return model(BATCH["x"])

    def total(params, rest, key, batch):
        net = nnx.merge(graphdef, params, rest, copy=True)
        value = masked_sum(net(batch["x"]), batch)
        return value, nnx.split(net, nnx.Param, ...)[2]

    return Program(loss_fn, params, rest, None, predict, total)


# flax linen: the running statistics are the model state, the dropout's key comes from the step.


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(8, use_bias=False)(x))
        return nn.Dense(10)(nn.Dropout(0.25, deterministic=not training)(nn.relu(x)))


def linen_program():
    model = LinenNet()

    # --- glue
    rest = model.init(jax.random.key(0), BATCH["x"], False)
    params = rest.pop("params")

    def loss_fn(params, batch, *, model_state, key, training):
        variables, rngs = {"params": params, **model_state}, {"dropout": key}
        logits, new = model.apply(variables, batch["x"], training, rngs=rngs, mutable=["batch_stats"])
        loss = jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")
        return loss, jl.Aux(model_state=new)

    def predict(state):
        return model.apply({"params": state.params, **state.model_state}, BATCH["x"], False)
        # --- end of glue

    def total(params, rest, key, batch):
        variables = {"params": params, **rest}
        logits, new = model.apply(variables, batch["x"], True, rngs={"dropout": key}, mutable=["batch_stats"])
        return masked_sum(logits, batch), new

    return Program(loss_fn, params, rest, KEY, predict, total)


# equinox: the model is its own pytree, and what is no floating array is set aside.


def equinox_program():
    model = eqx.nn.MLP(64, 10, width_size=8, depth=1, key=jax.random.key(0))

    # --- glue
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        logits = jax.vmap(eqx.combine(params, static))(batch["x"])
        return jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")

    def predict(state):
        trained = eqx.combine(state.params, static)
        # --- end of glue
        return jax.vmap(trained)(BATCH["x"])

    def total(params, rest, key, batch):
        return masked_sum(jax.vmap(eqx.combine(params, static))(batch["x"]), batch), rest

    return Program(loss_fn, params, None, None, predict, total)


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first = eqx.nn.Linear(64, 8, use_bias=False, key=a)
        self.norm = eqx.nn.BatchNorm(8, axis_name="rows", mode="batch")
        self.drop = eqx.nn.Dropout(0.25)
        self.last = eqx.nn.Linear(8, 10, key=b)

    def __call__(self, x, state, key):
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(jax.nn.relu(x), key=key)), state

    def rows(self, x, state, key):
        keys = jax.random.split(key, len(x))
        return jax.vmap(self, axis_name="rows", in_axes=(0, None, 0), out_axes=(0, None))(x, state, keys)


def equinox_state_program():
    model, rest = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))

    # --- glue
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch, *, model_state, key, training):
        net = eqx.nn.inference_mode(eqx.combine(params, static), not training)
        logits, new = net.rows(batch["x"], model_state, key)
        loss = jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")
        return loss, jl.Aux(model_state=new)

    def predict(state):
        trained = eqx.nn.inference_mode(eqx.combine(state.params, static))
        # --- end of glue
        return trained.rows(BATCH["x"], state.model_state, KEY)[0]

    def total(params, rest, key, batch):
        logits, new = eqx.combine(params, static).rows(batch["x"], rest, key)
        return masked_sum(logits, batch), new

    return Program(loss_fn, params, rest, KEY, predict, total)


# keras on jax: lists of arrays; running statistics and the dropout's seed are the model state.


@functools.cache
def import_keras():
    """keras on jax, whatever is set on this machine, and without leaving a settings file behind."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", home)
        import keras
    assert keras.backend.backend() == "jax"
    return keras


def keras_model():
    keras = import_keras()
    # Seeds of their own: keras.utils.set_random_seed would also set those of NumPy and Python, for every other test.
    layers, seeded = keras.layers, keras.initializers.GlorotUniform
    return keras.Sequential(
        [
            layers.Input((64,)),
            layers.Dense(8, use_bias=False, kernel_initializer=seeded(1)),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.25, seed=2),
            layers.Dense(10, kernel_initializer=seeded(3)),
        ]
    )


def keras_program():
    model = keras_model()

    # --- glue
    learned, carried = model.trainable_variables, model.non_trainable_variables
    params, rest = [v.value for v in learned], [v.value for v in carried]

    def loss_fn(params, batch, *, model_state, training):
        logits, new = model.stateless_call(params, model_state, batch["x"], training=training)
        loss = jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")
        return loss, jl.Aux(model_state=new)

    def predict(state):
        for variable, value in zip(learned + carried, state.params + state.model_state, strict=True):
            variable.assign(value)
        # --- end of glue
        return model(BATCH["x"], training=False)

    def total(params, rest, key, batch):
        logits, new = model.stateless_call(params, rest, batch["x"], training=True)
        return masked_sum(logits, batch), new

    return Program(loss_fn, params, rest, None, predict, total)


# Plain pytrees: nothing to glue. A dict, a NamedTuple and a registered dataclass hold the same numbers.


class Pair(NamedTuple):
    w: Any
    b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Affine:
    w: Any
    b: Any


def affine(w, b, x):
    return x @ w + b[None]


W = np.float32(np.random.default_rng(0).normal(size=(64, 10)) / 8)
PYTREES = {
    "dict": ({"w": W, "b": np.zeros(10, np.float32)}, lambda params, x: affine(params["w"], params["b"], x)),
    "NamedTuple": (Pair(W, np.zeros(10, np.float32)), lambda params, x: affine(params.w, params.b, x)),
    "dataclass": (Affine(W, np.zeros(10, np.float32)), lambda params, x: affine(params.w, params.b, x)),
}


def pytree_program(kind):
    params, model = PYTREES[kind]

    def loss_fn(params, batch):
        logits = model(params, batch["x"])
        return jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")

    def total(params, rest, key, batch):
        return masked_sum(model(params, batch["x"]), batch), rest

    return Program(loss_fn, params, None, None, lambda state: model(state.params, BATCH["x"]), total)


# haiku: a pair of pure functions, (init, apply), over nested dicts; here one of the shape of hk.transform_with_state.


def haiku_like():
    def init(key, x):
        a, b = jax.random.split(key)
        params = {
            "linear": {"w": jax.random.normal(a, (x.shape[1], 8)) / 8},
            "linear_1": {"w": jax.random.normal(b, (8, 10)) / 3, "b": jnp.zeros(10)},
        }
        return params, {"centre": {"mean": jnp.zeros(8)}}

    def apply(params, state, key, x, training):
        x = x @ params["linear"]["w"]
        old = state["centre"]["mean"]
        mean, new = (x.mean(0), 0.9 * old + 0.1 * x.mean(0)) if training else (old, old)
        x = jax.nn.relu(x - mean[None])
        if training:
            x = jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x / 0.75, 0)
        return affine(params["linear_1"]["w"], params["linear_1"]["b"], x), {"centre": {"mean": new}}

    return init, apply


def haiku_program():
    init, apply = haiku_like()

    # --- glue
    params, rest = init(jax.random.key(0), BATCH["x"])

    def loss_fn(params, batch, *, model_state, key, training):
        logits, new = apply(params, model_state, key, batch["x"], training)
        loss = jl.softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")
        return loss, jl.Aux(model_state=new)

    # --- end of glue

    def predict(state):
        return apply(state.params, state.model_state, None, BATCH["x"], False)[0]

    def total(params, rest, key, batch):
        logits, new = apply(params, rest, key, batch["x"], True)
        return masked_sum(logits, batch), new

    return Program(loss_fn, params, rest, KEY, predict, total)


PROGRAMS = {
    "nnx": nnx_program,
    "linen": linen_program,
    "equinox": equinox_program,
    "equinox with state": equinox_state_program,
    "keras": keras_program,
    "dict": functools.partial(pytree_program, "dict"),
    "haiku-like": haiku_program,
}
WITH_STATE = ["nnx", "linen", "equinox with state", "keras", "haiku-like"]


@contextlib.contextmanager
def program(name):
    # keras broadcasts ranks inside its layers, which the suite forbids to ours.
    with jax.numpy_rank_promotion("allow") if name == "keras" else contextlib.nullcontext():
        yield PROGRAMS[name]()


def train(made, tx, parts=1, steps=STEPS):
    """As a user does; one compile must do."""
    step = jl.make_train_step(made.loss_fn, tx, accumulate=parts)
    state, losses = step.init(made.params, model_state=made.model_state, key=made.key), []
    before = len(COMPILES)
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        losses.append(metrics.loss)
    assert len(COMPILES) - before == 1
    assert int(state.skipped) == 0
    return step, state, np.array(losses)


def by_hand(made, tx, parts=1):
    """value_and_grad, update and apply_updates over the framework's function: nothing of jaxloss."""

    def whole(params, rest, key):
        value = 0.0
        for i in range(parts):
            part = {name: column[i::parts] for name, column in BATCH.items()}
            folded = None if key is None else jax.random.fold_in(key, i)
            total, rest = made.total(params, jax.lax.stop_gradient(rest), folded, part)
            value += total / COUNTED
        return value, rest

    @jax.jit
    def one(params, rest, opt_state, key):
        (value, new), grad = jax.value_and_grad(whole, has_aux=True)(params, rest, key)
        given = {"value": value, "grad": grad, "value_fn": lambda params: whole(params, rest, key)[0]}
        updates, opt_state = optax.with_extra_args_support(tx).update(grad, opt_state, params, **given)
        return optax.apply_updates(params, updates), new, opt_state, value

    params, rest, losses = jax.tree.map(jnp.asarray, made.params), made.model_state, []
    opt_state = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), tx.init(params))  # no weak type: one compile here too
    for at in range(STEPS):
        key = None if made.key is None else jax.random.fold_in(made.key, at)
        params, rest, opt_state, value = one(params, rest, opt_state, key)
        losses.append(value)
    return params, rest, opt_state, np.array(losses)


def leaves(tree):
    """As NumPy, random keys included."""
    raw = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)]
    return [np.asarray(x) for x in raw]


def assert_same(found, expected, tolerance=1e-6):
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@functools.cache
def two_microbatches(name):
    """What several tests look at: adam, accumulate=2."""
    with program(name) as made:
        return made, *train(made, optax.adam(0.03), parts=2)


@pytest.mark.parametrize("name", PROGRAMS)
def test_trains_as_by_hand_in_two_microbatches(name):
    _, _, state, losses = two_microbatches(name)
    with program(name) as fresh:  # an nnx model shares its variables with what it was split into
        params, rest, _, expected = by_hand(fresh, optax.adam(0.03), parts=2)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert_same(state.params, params)
    assert_same(state.model_state, rest)


@pytest.mark.parametrize("name", ["linen", "equinox with state", "keras"])
def test_trains_with_lbfgs(name):
    with program(name) as made:
        _, _, losses = train(made, optax.lbfgs())
    assert losses[0] > losses[1] > losses[2]


def test_a_line_search_sees_the_dropout_and_the_statistics_of_its_step():
    with program("nnx") as made:
        _, state, losses = train(made, optax.lbfgs())
        params, rest, opt_state, expected = by_hand(made, optax.lbfgs())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)  # a line search follows the last digits
    assert_same(state.params, params, 1e-4)
    assert_same(state.model_state, rest, 1e-4)
    # The loss where it ended, on the batch, the dropout and the statistics of the last step.
    assert_same(optax.tree.get(state.opt_state, "value"), optax.tree.get(opt_state, "value"), 1e-4)


@pytest.mark.parametrize("name", WITH_STATE)
def test_model_state_moves_and_dropout_differs_between_steps(name):
    with program(name) as made:
        # Nothing is learned, and the statistics in use are the batch's: only dropout can tell two steps apart.
        _, state, losses = train(made, optax.sgd(0.0), steps=2)
    before, after = leaves(made.model_state), leaves(state.model_state)
    assert any((a != b).any() for a, b in zip(before, after, strict=True) if a.dtype == np.float32)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_evaluates_and_predicts_without_training(name):
    made, step, state, losses = two_microbatches(name)
    held = leaves((state.params, state.model_state))
    with program(name):
        found = step.evaluate(state, BATCH)["loss"]
        logits = np.asarray(made.predict(state), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_p[np.arange(24), BATCH["y"]][BATCH["mask"]].mean()
    assert float(found.weight) == COUNTED
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    assert abs(expected - losses[0]) > 0.05  # the trained model, not the first
    for a, b in zip(held, leaves((state.params, state.model_state)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["nnx", "keras"])
def test_a_model_is_written_back_again_after_training_on(name):
    """It shares its memory with the state, which the next step reuses."""
    with program(name) as made:
        step, state, _ = train(made, optax.adam(0.03), steps=1)
        first = np.asarray(made.predict(state))
        state, _ = step(state, BATCH)
        second = made.predict(state)
        assert np.abs(first - second).max() > 1e-2
        expected = masked_sum(second, BATCH) / COUNTED
        np.testing.assert_allclose(step.evaluate(state, BATCH)["loss"].value, expected, rtol=1e-5)


def test_nnx_as_its_optimizer():
    with program("nnx") as made:
        _, state, losses = train(made, optax.adam(0.03))
    model = NnxNet(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.03), wrt=nnx.Param)

    @nnx.jit
    def native(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda net: masked_sum(net(BATCH["x"]), BATCH) / COUNTED)(model)
        optimizer.update(model, grads)
        return loss

    expected = [native(model, optimizer) for _ in range(STEPS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert_same(state.params, nnx.state(model, nnx.Param))
    assert_same(state.model_state, nnx.state(model, nnx.Not(nnx.Param)))


def test_linen_as_its_train_state():
    with program("linen") as made:
        _, state, losses = train(made, optax.adam(0.03))
    native = TrainState.create(apply_fn=LinenNet().apply, params=made.params, tx=optax.adam(0.03))
    stats, expected = made.model_state, []

    @jax.jit
    def one(native, stats, key):
        (total, stats), grads = jax.value_and_grad(made.total, has_aux=True)(native.params, stats, key, BATCH)
        loss, grads = total / COUNTED, jax.tree.map(lambda g: g / COUNTED, grads)
        return native.apply_gradients(grads=grads), stats, loss

    for at in range(STEPS):
        key = jax.random.fold_in(jax.random.fold_in(KEY, at), 0)
        native, stats, loss = one(native, stats, key)
        expected.append(loss)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert_same(state.params, native.params)
    assert_same(state.model_state, stats)


def test_equinox_as_its_apply_updates():
    with program("equinox") as made:
        _, state, losses = train(made, optax.adam(0.03))
    model = eqx.nn.MLP(64, 10, width_size=8, depth=1, key=jax.random.key(0))
    tx = optax.adam(0.03)
    opt_state, expected = tx.init(eqx.filter(model, eqx.is_inexact_array)), []

    @eqx.filter_jit
    def native(model, opt_state):
        loss, grads = eqx.filter_value_and_grad(lambda net: masked_sum(jax.vmap(net)(BATCH["x"]), BATCH) / COUNTED)(
            model
        )
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    for _ in range(STEPS):
        model, opt_state, loss = native(model, opt_state)
        expected.append(loss)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert_same(state.params, eqx.filter(model, eqx.is_inexact_array))


def test_keras_as_its_train_on_batch():
    """With keras' own loss and optimizer; sgd, because keras' adam puts its epsilon elsewhere."""
    with program("keras") as made:
        _, state, _ = train(made, optax.sgd(0.1, momentum=0.9))
        model, keras = keras_model(), import_keras()
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
        for _ in range(STEPS):
            # keras divides by the rows, not by their weight.
            model.train_on_batch(BATCH["x"], BATCH["y"], sample_weight=np.float32(BATCH["mask"] * 24 / COUNTED))
    assert_same(state.params, [variable.value for variable in model.trainable_variables])
    assert_same(state.model_state, [variable.value for variable in model.non_trainable_variables])


@pytest.mark.parametrize("kind", ["NamedTuple", "dataclass"])
def test_every_pytree_is_the_same_to_the_step(kind):
    _, state, losses = train(pytree_program(kind), optax.adam(0.03))
    _, expected, same = train(pytree_program("dict"), optax.adam(0.03))
    assert isinstance(state.params, type(PYTREES[kind][0]))
    np.testing.assert_array_equal(losses, same)
    np.testing.assert_array_equal(state.params.w, expected.params["w"])
    np.testing.assert_array_equal(state.params.b, expected.params["b"])


class Counting(eqx.Module):
    """Looks at the whole batch, so that its state is used up outside of vmap."""

    weight: jax.Array
    calls: eqx.nn.StateIndex

    def __init__(self):
        self.weight, self.calls = jnp.ones(64), eqx.nn.StateIndex(jnp.zeros(()))

    def __call__(self, x, state):
        return x @ self.weight, state.set(self.calls, state.get(self.calls) + 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_state_that_is_used_up_by_setting_it(parts):
    model, rest = eqx.nn.make_with_state(Counting)()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch, *, model_state):
        out, new = eqx.combine(params, static)(batch["x"], model_state)
        return jl.reduce(out**2, reduction="partial"), jl.Aux(model_state=new)

    step = jl.make_train_step(loss_fn, optax.sgd(1e-4), accumulate=parts)
    state = step.init(params, model_state=rest)
    for _ in range(3):
        state, _ = step(state, BATCH)
    assert state.model_state.get(model.calls) == 3 * parts
