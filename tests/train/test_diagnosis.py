"""What `diagnose` measures, against NumPy by hand, and what it concludes, on nets whose illness is known."""

import dataclasses
import importlib.util
import itertools
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxloss
from jaxloss import reduce, softmax_cross_entropy
from jaxloss.train import Aux, make_train_step
from jaxloss.train.diagnosis import diagnose

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(32, 8)).astype(np.float32), "y": RNG.integers(0, 3, 32)}
NAN, INF = float("nan"), float("inf")


def dense(n_in, n_out, gain=1.0, bias=0.0, seed=0):
    kernel = gain / np.sqrt(n_in) * np.random.default_rng(seed).normal(size=(n_in, n_out))
    return {"kernel": kernel.astype(np.float32), "bias": np.full(n_out, bias, np.float32)}


def net(depth, width=16, gain=1.0):
    sizes = [8, *[width] * depth, 3]
    return {f"dense_{i}": dense(a, b, gain, seed=i) for i, (a, b) in enumerate(itertools.pairwise(sizes))}


def apply(params, x, nonlinearity):
    for i in range(len(params)):
        layer = params[f"dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"][None]
        x = nonlinearity(x) if i < len(params) - 1 else x
    return x


def classify(nonlinearity):
    def loss_fn(params, batch):
        return softmax_cross_entropy(apply(params, batch["x"], nonlinearity), batch["y"], reduction="partial")

    return loss_fn


def look(loss_fn, params, batch=BATCH, optimizer=None, state=None, unit_axis=-1, **options):
    step = make_train_step(loss_fn, optimizer or optax.sgd(0.01), **options)
    return diagnose(step, step.init(params, **(state or {})), batch, unit_axis=unit_axis)


def root(x):
    return np.sqrt(np.mean(np.square(x)))


def found(diagnosis, words):
    return [finding for finding in diagnosis.findings if words in finding]


# --- Figures ------------------------------------------------------------------------------------------------------


def by_hand(params, rate=0.5):
    """A net of one tanh layer with a mean of squares, in float64: values, gradients, updates of SGD."""
    x, y = BATCH["x"].astype(np.float64), BATCH["y"].astype(np.float64)
    w, b, v, c = (params[i][j].astype(np.float64) for i in ("first", "second") for j in ("kernel", "bias"))
    h = np.tanh(x @ w + b)
    r = (h @ v + c)[:, 0] - y
    at_out = 2 * r[:, None] / len(r)
    at_h = at_out @ v.T
    at_pre = at_h * (1 - h**2)
    gradients = [x.T @ at_pre, at_pre.sum(0), h.T @ at_out, at_out.sum(0)]
    return (r**2).mean(), h, at_h, [w, b, v, c], gradients, [rate * g for g in gradients]


def regress(params, batch):
    h = jnp.tanh(batch["x"] @ params["first"]["kernel"] + params["first"]["bias"][None])
    out = h @ params["second"]["kernel"] + params["second"]["bias"][None]
    return reduce((out[:, 0] - batch["y"]) ** 2, reduction="partial")


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (lambda f: f, {}),
        (jax.jit, {"accumulate": 4}),
        (jax.checkpoint, {"loss_scale": 1024.0}),
        (lambda f: f, {"loss_scale": "dynamic"}),
    ],
)
def test_figures(wrap, options):
    params = {"first": dense(8, 5, 3.0, 0.3), "second": dense(5, 1, 1.0, -0.2)}
    loss, h, at_h, own, gradients, updates = by_hand(params)
    seen = look(wrap(regress), params, optimizer=optax.sgd(0.5), **options)
    np.testing.assert_allclose(seen.loss, loss, rtol=1e-5)
    assert [layer.name for layer in seen.layers] == ["first/kernel", "first/bias", "second/kernel", "second/bias"]
    for layer, param, gradient, update in zip(seen.layers, own, gradients, updates, strict=True):
        assert layer.shape == param.shape
        assert (layer.dtype, layer.used, layer.zeros, layer.nonfinite) == ("float32", True, 0, 0)
        np.testing.assert_allclose(layer.param, root(param), rtol=1e-5)
        np.testing.assert_allclose(layer.gradient, root(gradient), rtol=1e-4)
        np.testing.assert_allclose(layer.update, root(update), rtol=1e-4)
        np.testing.assert_allclose(layer.ratio, root(update) / root(param), rtol=1e-4)
    (activation,) = seen.activations
    assert (activation.name, activation.kind, activation.shape) == ("first/tanh", "tanh", (32, 5))
    assert (activation.dead, activation.units, activation.rows, activation.nonfinite) == (None, 5, 32, 0)
    np.testing.assert_allclose(activation.rms, root(h), rtol=1e-5)
    np.testing.assert_allclose(activation.mean, h.mean(), rtol=1e-4)
    np.testing.assert_allclose(activation.gradient, root(at_h), rtol=1e-4)
    np.testing.assert_allclose(activation.strength, np.linalg.norm(at_h), rtol=1e-4)
    assert 0.1 < np.mean(np.abs(h) > 0.99) < 0.9
    np.testing.assert_allclose(activation.saturated, np.mean(np.abs(h) > 0.99), rtol=1e-6)


def test_order_is_that_of_the_program():
    """Not that of the tree, in which dense_10 stands before dense_2."""
    seen = look(classify(jnp.tanh), net(11))
    assert [x.name for x in seen.activations] == [f"dense_{i}/tanh" for i in range(11)]
    expected = [f"dense_{i}/{leaf}" for i in range(12) for leaf in ("kernel", "bias")]
    assert [layer.name for layer in seen.layers] == expected
    both = sorted([*seen.layers, *seen.activations], key=lambda row: row.order)
    names = [row.name for row in both]
    assert names[:5] == ["dense_0/kernel", "dense_0/bias", "dense_0/tanh", "dense_1/kernel", "dense_1/bias"]
    assert [row.order for row in both] == list(range(len(both)))


def test_figures_of_tiny_and_huge_values():
    """Squares of 1e-30 and of 1e30 are no float32."""

    def loss_fn(params, batch):
        return jnp.sum(jnp.tanh(1e-28 * params["a"]) * 1e-8 + 1e30 * params["b"] * 1e-6)

    seen = look(loss_fn, {"a": np.ones(4, np.float32), "b": np.full(4, 1e20, np.float32)}, optimizer=optax.sgd(1e-6))
    assert [layer.name for layer in seen.layers] == ["a", "b"]
    np.testing.assert_allclose([layer.gradient for layer in seen.layers], [1e-36, 1e24], rtol=1e-5)
    np.testing.assert_allclose([layer.param for layer in seen.layers], [1, 1e20], rtol=1e-5)
    np.testing.assert_allclose(seen.activations[0].rms, 1e-28, rtol=1e-5)
    np.testing.assert_allclose(seen.activations[0].gradient, 1e-8, rtol=1e-5)


def test_counts_of_zeros_and_dead_units():
    def loss_fn(params, batch):
        return reduce(jax.nn.relu(batch["x"] + params["shift"][None]).sum(1), reduction="partial")

    shift = np.array([0, -100, 0, 100, -100, 0, 0, -1], np.float32)
    seen = look(loss_fn, {"shift": shift})
    h = np.maximum(BATCH["x"] + shift, 0)
    (relu,) = seen.activations
    assert (relu.name, relu.dead, relu.units) == ("shift/relu", 2, 8)
    np.testing.assert_allclose(relu.zeros, np.mean(h == 0), rtol=1e-6)
    assert seen.layers[0].zeros == 2 / 8
    first = look(loss_fn, {"shift": shift}, unit_axis=0).activations[0]
    assert (first.dead, first.units, first.rows) == (0, 32, 8)


def test_an_iteration_of_a_scan_is_a_row():
    """Layers stacked for a scan, in either direction, are those of a loop."""

    def stacked(params, batch, *, reverse):
        def layer(h, own):
            return jnp.tanh(h @ own["kernel"] + own["bias"][None]), None

        h, _ = jax.lax.scan(jax.checkpoint(layer), batch["x"], params["blocks"], reverse=reverse)
        return softmax_cross_entropy(h @ params["out"], batch["y"], reduction="partial")

    blocks = [dense(8, 8, 1.5, 0.1 * i) for i in range(3)]
    out = RNG.normal(size=(8, 3)).astype(np.float32)
    for reverse in (False, True):
        params = {"blocks": jax.tree.map(lambda *x: np.stack(x), *blocks), "out": out}
        seen = look(lambda p, b, reverse=reverse: stacked(p, b, reverse=reverse), params)

        def unrolled(params, batch, reverse=reverse):
            h = batch["x"]
            for i in reversed(range(3)) if reverse else range(3):
                h = jnp.tanh(h @ params[f"b{i}"]["kernel"] + params[f"b{i}"]["bias"][None])
            return softmax_cross_entropy(h @ params["out"], batch["y"], reduction="partial")

        plain = look(unrolled, {**{f"b{i}": block for i, block in enumerate(blocks)}, "out": out})
        in_time = [2, 1, 0] if reverse else [0, 1, 2]
        assert [x.name for x in seen.activations] == [f"blocks[{i}]/tanh" for i in in_time]
        assert [x.name for x in plain.activations] == [f"b{i}/tanh" for i in in_time]
        assert [x.name for x in seen.layers][:2] == [f"blocks/kernel[{in_time[0]}]", f"blocks/bias[{in_time[0]}]"]
        for row, other in zip((*seen.layers, *seen.activations), (*plain.layers, *plain.activations), strict=True):
            assert (row.shape, row.order) == (other.shape, other.order)
            for field in ("rms", "mean", "param", "gradient", "update", "saturated"):
                if hasattr(row, field):
                    np.testing.assert_allclose(getattr(row, field), getattr(other, field), rtol=1e-4, atol=1e-7)


def test_a_cell_is_a_row_at_every_time():
    def loss_fn(params, batch):
        def cell(h, x):
            return jax.nn.sigmoid(x[:, None] @ params["in"] + h @ params["state"]), None

        h, _ = jax.lax.scan(cell, jnp.zeros((32, 6)), batch["x"].T)
        return softmax_cross_entropy(h @ params["out"], batch["y"], reduction="partial")

    shapes = {"in": (1, 6), "state": (6, 6), "out": (6, 3)}
    params = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    seen = look(loss_fn, params)
    assert [x.name for x in seen.activations] == [f"state[{time}]/sigmoid" for time in range(8)]
    assert [x.name for x in seen.layers] == ["in", "state", "out"]
    h = np.zeros((32, 6))
    for activation, x in zip(seen.activations, BATCH["x"].T.astype(np.float64), strict=True):
        h = 1 / (1 + np.exp(-(x[:, None] @ params["in"] + h @ params["state"])))
        np.testing.assert_allclose(activation.rms, root(h), rtol=1e-5)
        np.testing.assert_allclose(activation.mean, h.mean(), rtol=1e-5)


def test_scans_within_scans():
    def loss_fn(params, batch):
        def inner(h, w):
            return jnp.tanh(h @ w), None

        def outer(h, ws):
            return jax.lax.scan(inner, h, ws)

        h, _ = jax.lax.scan(outer, batch["x"], params)
        return softmax_cross_entropy(h[:, :3], batch["y"], reduction="partial")

    w = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    seen = look(loss_fn, w)
    assert [x.name for x in seen.activations] == [f"params[{i},{j}]/tanh" for i in range(2) for j in range(3)]
    h = BATCH["x"].astype(np.float64)
    for activation, kernel in zip(seen.activations, w.reshape(6, 8, 8), strict=True):
        h = np.tanh(h @ kernel)
        np.testing.assert_allclose(activation.rms, root(h), rtol=1e-5)


# --- What is seen -------------------------------------------------------------------------------------------------

KINDS = {
    "relu": [jax.nn.relu, lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(0.0, x)],
    "relu6": [jax.nn.relu6],
    "tanh": [jnp.tanh, jax.nn.tanh],
    "sigmoid": [jax.nn.sigmoid, jax.lax.logistic],
    "silu": [jax.nn.silu, jax.nn.swish, lambda x: x * jax.nn.sigmoid(1.7 * x)],
    "gelu": [jax.nn.gelu, lambda x: jax.nn.gelu(x, approximate=False), lambda x: 0.5 * x * (1 + jax.lax.erf(x / 1.4))],
    "softmax": [jax.nn.softmax, lambda x: jax.nn.softmax(x, axis=0)],
    "softplus": [jax.nn.softplus],
    "elu": [jax.nn.elu],
    "selu": [jax.nn.selu],
    "leaky_relu": [jax.nn.leaky_relu],
    "mish": [jax.nn.mish],
    "hard_tanh": [jax.nn.hard_tanh],
    "hard_silu": [jax.nn.hard_swish],
    "glu": [jax.nn.glu],
    None: [jnp.square, lambda x: x / jnp.sqrt(jnp.maximum(jnp.mean(x**2, 1, keepdims=True), 0) + 1e-6), jnp.abs],
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_kinds(dtype):
    functions = [(kind, function) for kind, each in KINDS.items() for function in each]

    def loss_fn(params, batch):
        own = zip(functions, params, strict=True)
        return sum(function((batch["x"] @ p).astype(dtype)).astype(jnp.float32).mean() for (_, function), p in own)

    params = [dense(8, 6, seed=seed)["kernel"] for seed in range(len(functions))]
    seen = look(loss_fn, params).activations
    expected = [(f"{i}/{kind}", kind) for i, (kind, _) in enumerate(functions) if kind is not None]
    assert [(x.name, x.kind) for x in seen] == expected
    for x, (kind, function), param in zip(seen, functions, params, strict=False):
        out = np.asarray(function(jnp.asarray(BATCH["x"] @ param, dtype)), np.float64)
        assert (x.shape, x.dtype) == (out.shape, dtype)
        np.testing.assert_allclose(x.rms, root(out), rtol=2e-2 if dtype == "bfloat16" else 1e-5)
        np.testing.assert_allclose(x.gradient, 1 / out.size, rtol=1e-2 if dtype == "bfloat16" else 1e-5)
        assert (x.dead is None) == (kind not in ("relu", "relu6"))


def test_saturation():
    def loss_fn(params, batch):
        x = 4.0 * params["scale"] * batch["x"]
        return jnp.mean(jax.nn.sigmoid(x)) + jnp.mean(jax.nn.softmax(x)) + jnp.mean(jax.nn.hard_tanh(x))

    x = 4.0 * BATCH["x"].astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    expected = {
        "sigmoid": np.mean((1 / (1 + np.exp(-x)) < 0.01) | (1 / (1 + np.exp(-x)) > 0.99)),
        "softmax": np.mean((e / e.sum(1, keepdims=True)).max(1) > 0.99),
        "hard_tanh": np.mean(np.abs(x) > 0.99),
    }
    seen = look(loss_fn, {"scale": np.ones((), np.float32)})
    assert {x.kind: pytest.approx(x.saturated, rel=1e-5) for x in seen.activations} == expected
    assert all(0 < share < 1 for share in expected.values())


def test_a_loss_is_no_part_of_the_model():
    def loss_fn(params, batch):
        out = jax.nn.relu(batch["x"] @ params["w"])
        return {
            "a": jaxloss.sigmoid_cross_entropy(out, jnp.ones((32, 4)), reduction="partial"),
            "b": jaxloss.log_cosh(out, jnp.ones((32, 4)), reduction="partial"),
            "c": jaxloss.softmax_focal(out, batch["y"], reduction="partial"),
            "d": optax.sigmoid_binary_cross_entropy(out, jnp.ones((32, 4))).mean(),
            "e": optax.losses.hinge_loss(out, jnp.ones((32, 4))).mean(),
            "f": jaxloss.hinge(out, jnp.ones((32, 4)), reduction="partial"),
        }

    params = {"w": RNG.normal(size=(8, 4)).astype(np.float32)}
    for _ in range(2):  # the second time from the caches of jit
        assert [x.name for x in look(loss_fn, params).activations] == ["w/relu"]


def test_repeated_kinds_are_numbered():
    def loss_fn(params, batch):
        h = jnp.tanh(jnp.tanh(batch["x"]) @ params["w"])
        return jnp.mean(jnp.tanh(jax.nn.relu(h)))

    seen = look(loss_fn, {"w": RNG.normal(size=(8, 4)).astype(np.float32)})
    assert [x.name for x in seen.activations] == ["batch/tanh", "w/tanh", "w/relu", "w/tanh#2"]


def test_names_of_flat_params():
    """A nonlinearity has the name of the matrix before it, not of the bias or the scale between."""

    def loss_fn(params, batch):
        h = jnp.tanh(batch["x"] @ params["a"] + params["b"][None])
        h = jax.nn.relu((h @ params["c"]) * params["d"][None] + params["e"][None])
        h = jax.nn.silu(h * params["f"][None])
        return jnp.mean(jax.nn.elu(h + h @ params["g"]))  # what came in last

    shapes = {"a": (8, 4), "b": 4, "c": (4, 4), "d": 4, "e": 4, "f": 4, "g": (4, 4)}
    seen = look(loss_fn, {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    assert [x.name for x in seen.activations] == ["a/tanh", "c/relu", "c/silu", "g/elu"]
    assert [x.name for x in seen.layers] == ["a", "b", "c", "d", "e", "f", "g"]


def test_closed_over_data_is_data():
    def loss_fn(params, batch):
        return softmax_cross_entropy(apply(params, BATCH["x"], jnp.tanh), BATCH["y"], reduction="partial")

    assert [x.name for x in look(loss_fn, net(2), batch=None).layers][::2] == [f"dense_{i}/kernel" for i in range(3)]


def test_what_is_not_seen_does_no_harm():
    """cond, while and functions with derivatives of their own are evaluated as a whole."""

    @jax.custom_vjp
    def own(x):
        return jnp.tanh(x)

    own.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (7 * g,))

    def loss_fn(params, batch):
        h = own(batch["x"] @ params["a"])
        h = jax.lax.cond(batch["y"][0] < 5, jnp.tanh, jnp.cos, h)
        h = h + jax.lax.stop_gradient(jax.lax.while_loop(lambda x: x.max() > 2, lambda x: jnp.tanh(x) * 0.5, h))
        return jnp.mean(h)

    params = {"a": RNG.normal(size=(8, 4)).astype(np.float32)}
    seen = look(loss_fn, params)
    assert seen.activations == ()
    expected = jax.grad(loss_fn)(params, BATCH)["a"]
    np.testing.assert_allclose(seen.layers[0].gradient, root(np.asarray(expected, np.float64)), rtol=1e-5)


# --- Frameworks ---------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_flax_linen():
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.gelu(nn.Dense(8)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8, name="first")(x)))
            x = nn.Dropout(0.5, deterministic=not train)(nn.LayerNorm()(x))
            x, _ = nn.remat(Block)(name="again")(x, None)
            x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x, None)
            return nn.Dense(3, name="last")(x)

    model = Net()
    state = jax.jit(model.init, static_argnums=2)(jax.random.key(0), BATCH["x"], False)
    params = state.pop("params")

    def loss_fn(params, batch, *, key, model_state):
        variables = {"params": params, **model_state}
        out, new = model.apply(variables, batch["x"], True, mutable=["batch_stats"], rngs={"dropout": key})
        return softmax_cross_entropy(out, batch["y"], reduction="partial"), Aux(model_state=new)

    more = {"key": jax.random.key(1), "model_state": state}
    for options in ({}, {"accumulate": 2, "compute_dtype": jnp.bfloat16}):
        seen = look(loss_fn, params, state=more, **options)
        names = ["first/relu", "again/Dense_0/gelu", "ScanBlock_0/Dense_0[0]/gelu", "ScanBlock_0/Dense_0[1]/gelu"]
        assert [x.name for x in seen.activations] == names
        kernels = [x.name for x in seen.layers if "kernel" in x.name]
        stacked = [f"ScanBlock_0/Dense_0/kernel[{i}]" for i in range(2)]
        assert kernels == ["first/kernel", "again/Dense_0/kernel", *stacked, "last/kernel"]
        assert seen.findings == ()


def test_flax_nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = nnx.Linear(8, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.first(x)))
            for block in self.blocks:
                x = nnx.tanh(block(x))
            return self.last(x)

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, batch, *, model_state):
        model = nnx.merge(graph, params, model_state, copy=True)
        loss = softmax_cross_entropy(model(batch["x"]), batch["y"], reduction="partial")
        return loss, Aux(model_state=nnx.split(model, nnx.Param, ...)[2])

    seen = look(loss_fn, params, state={"model_state": rest})
    assert [x.name for x in seen.activations] == ["first/relu", "blocks/0/tanh", "blocks/1/tanh"]
    modules = ["first", "norm", "blocks/0", "blocks/1", "last"]
    assert list(dict.fromkeys(x.name.rpartition("/")[0] for x in seen.layers)) == modules


@pytest.mark.skipif(importlib.util.find_spec("equinox") is None, reason="equinox is not installed")
@pytest.mark.exhaustive
def test_equinox():
    import equinox as eqx

    params, rest = eqx.partition(eqx.nn.MLP(8, 3, 16, 2, key=jax.random.key(0)), eqx.is_inexact_array)

    def loss_fn(params, batch):
        out = eqx.filter_jit(lambda params, x: jax.vmap(eqx.combine(params, rest))(x))(params, batch["x"])
        return softmax_cross_entropy(out, batch["y"], reduction="partial")

    seen = look(loss_fn, params)
    assert [x.name for x in seen.activations] == ["layers/0/relu", "layers/1/relu"]
    assert {x.name for x in seen.layers} == {f"layers/{i}/{leaf}" for i in range(3) for leaf in ("weight", "bias")}


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_on_a_mesh(devices, kind):
    def loss_fn(params, batch):
        def layer(h, w):
            return jax.nn.relu(h @ w), None

        h, _ = jax.lax.scan(layer, batch["x"], params["layers"])
        return softmax_cross_entropy(jnp.tanh(h @ params["out"]), batch["y"], reduction="partial")

    params = {
        "layers": RNG.normal(size=(3, 8, 8)).astype(np.float32),
        "out": RNG.normal(size=(8, 3)).astype(np.float32),
    }
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    spread = jax.device_put(BATCH, jax.NamedSharding(mesh, jax.P("rows")))
    seen = look(loss_fn, jax.device_put(params, jax.NamedSharding(mesh, jax.P())), spread)
    alone = look(loss_fn, params)
    assert len(seen.activations) == 4
    for row, other in zip((*seen.layers, *seen.activations), (*alone.layers, *alone.activations), strict=True):
        assert row.name == other.name
        np.testing.assert_allclose(row.gradient, other.gradient, rtol=1e-4)


# --- Findings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nonlinearity", "gain"), [(jax.nn.relu, 1.4), (jnp.tanh, 1.0), (jax.nn.gelu, 1.5)])
def test_a_healthy_net_gives_no_finding(nonlinearity, gain):
    seen = look(classify(nonlinearity), net(6, 32, gain))
    assert seen.findings == ()
    assert str(seen).endswith("\n- nothing conspicuous")


@pytest.mark.parametrize(("nonlinearity", "gain"), [(jax.nn.sigmoid, 1.0), (jnp.tanh, 0.1)])
def test_vanishing_gradients(nonlinearity, gain):
    params = net(8, gain=gain)
    seen = look(classify(nonlinearity), params)
    (finding,) = found(seen, "the gradient vanishes")

    # The plain program, with something added to each activation, and differentiated by that.
    def nudged(nudges):
        names = iter(nudges)
        return classify(lambda x: nonlinearity(x) + next(names))(params, BATCH).value

    slopes = jax.jit(jax.grad(nudged))([jnp.zeros((32, 16))] * 8)
    norms = [np.linalg.norm(np.asarray(slope, np.float64)) for slope in slopes]
    assert norms[-1] > 1e3 * norms[0]
    np.testing.assert_allclose([x.strength for x in seen.activations], norms, rtol=1e-4)
    first, last = seen.activations[0], seen.activations[-1]
    for part in (
        first.name,
        last.name,
        f"{first.strength:.1e}",
        f"{last.strength:.1e}",
        "try relu or gelu",
        "residual",
    ):
        assert part in finding
    factor = float(re.search(r"([\d.]+) times a layer", finding)[1])
    np.testing.assert_allclose(factor, (norms[-1] / norms[0]) ** (1 / 7), atol=0.06)
    assert not found(seen, "updates are small")
    assert bool(found(seen, "the signal dies away")) == (nonlinearity is jnp.tanh)


def test_exploding_gradients():
    seen = look(classify(jax.nn.relu), net(8, gain=10.0))
    (finding,) = found(seen, "the gradient explodes")
    assert seen.activations[0].name in finding
    assert "clip" in finding
    (finding,) = found(seen, "the signal explodes")
    assert f"{seen.activations[-1].rms:.1e} at dense_7/relu" in finding


def test_vanishing_gradients_where_no_nonlinearity_is_seen():
    @jax.custom_jvp
    def own(x):
        return jax.nn.sigmoid(x)

    own.defjvp(lambda x, dx: (own(*x), dx[0] * own(*x) * (1 - own(*x))))
    seen = look(classify(own), net(8))
    assert seen.activations == ()
    (finding,) = found(seen, "the gradient vanishes")
    first, last = seen.layers[0], seen.layers[-2]
    assert f"from {last.gradient:.1e} at dense_8/kernel to {first.gradient:.1e} at dense_0/kernel" in finding
    assert "relu" not in finding


def test_wide_and_narrow_layers_hand_gradients_on_alike():
    """The rms of the gradient differs by the width, its norm does not."""

    def loss_fn(params, batch):
        h = jax.nn.relu(batch["x"] @ params["a"])
        return softmax_cross_entropy(jax.nn.relu(h @ params["b"]) @ params["c"], batch["y"], reduction="partial")

    sizes = {"a": (8, 4000), "b": (4000, 4), "c": (4, 3)}
    params = {k: (RNG.normal(size=s) * np.sqrt(2 / s[0])).astype(np.float32) for k, s in sizes.items()}
    wide, narrow = look(loss_fn, params).activations
    assert narrow.gradient > 10 * wide.gradient
    assert 0.2 < narrow.strength / wide.strength < 5


def test_dead_units():
    params = net(2)
    params["dense_1"]["bias"] = np.where(np.arange(16) < 10, -100, 1).astype(np.float32)
    seen = look(classify(jax.nn.relu), params)
    assert [x.dead for x in seen.activations] == [0, 10]
    (finding,) = found(seen, "dead units")
    assert "dense_1/relu (10 of 16)" in finding
    assert "dense_0" not in finding
    few = {name: array[:8] for name, array in BATCH.items()}
    assert not found(look(classify(jax.nn.relu), params, few), "dead units")  # too few rows to tell


def test_saturated_units():
    params = net(2, gain=1.0)
    params["dense_0"]["kernel"] = 100 * params["dense_0"]["kernel"]
    (finding,) = found(look(classify(jnp.tanh), params), "saturated units")
    assert "dense_0/tanh (9" in finding
    assert "dense_1" not in finding

    def attend(params, batch):
        return jnp.mean(jax.nn.softmax(1e3 * batch["x"] @ params["keys"]) @ params["values"])

    seen = look(attend, {"keys": dense(8, 8)["kernel"], "values": dense(8, 2)["kernel"]})
    assert "keys/softmax" in found(seen, "one entry takes all")[0]
    assert not found(seen, "saturated units")


def test_params_without_gradient():
    def loss_fn(params, batch):
        detached = jax.lax.stop_gradient(params["detached"])
        h = jax.nn.relu(batch["x"] @ (params["w"] + detached))
        return softmax_cross_entropy(h @ params["zero"], batch["y"], reduction="partial")

    seen = look(
        loss_fn,
        {
            "w": dense(8, 6)["kernel"],
            "detached": dense(8, 6)["kernel"],
            "zero": np.zeros((6, 3), np.float32),
            "a_spare": np.ones(3, np.float32),
        },
    )
    assert [(x.name, x.used) for x in seen.layers][-1] == ("a_spare", False)
    assert all(x.used for x in seen.layers[:-1])
    (unused,) = found(seen, "does not depend on")
    assert "a_spare" in unused
    assert "zero" not in unused
    (silent,) = found(seen, "no gradient at all")
    assert "w, detached" in silent or "detached, w" in silent
    assert "zero" not in silent.split(":")[0]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (optax.sgd(30.0), "updates are large"),
        (optax.sgd(3e-6), "updates are small"),
        (optax.sgd(1e-12), "lost in rounding"),
        (optax.MultiSteps(optax.sgd(0.1), 2), "changes nothing"),
        (optax.partition({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, {"dense_0": "b", "dense_1": "a"}), "frozen"),
        (optax.sgd(0.1), None),
    ],
)
def test_updates(optimizer, words):
    seen = look(classify(jnp.tanh), net(1), optimizer=optimizer)
    assert [words in finding for finding in seen.findings] == ([] if words is None else [True])
    assert not words or words == "changes nothing" or "dense_0/kernel" in seen.findings[0]


def test_updates_that_half_precision_loses():
    """bfloat16 has 8 bits: a change of 1e-3 rounds to none."""
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), net(1))
    seen = look(classify(jnp.tanh), params, optimizer=optax.sgd(1e-4))
    assert "lost in rounding" in found(seen, "dense_0/kernel")[0]
    assert {x.dtype for x in seen.layers} == {"bfloat16"}


def test_gradients_that_float16_loses():
    params = net(2, gain=0.05)
    seen = look(classify(jnp.tanh), params, compute_dtype=jnp.float16)
    assert {x.dtype for x in seen.activations} == {"float16"}
    assert "loss_scale" in found(seen, "float16")[0]
    scaled = look(classify(jnp.tanh), params, compute_dtype=jnp.float16, loss_scale="dynamic")
    assert not found(scaled, "float16")
    exact = look(classify(jnp.tanh), params)
    for row, other in zip(scaled.activations, exact.activations, strict=True):
        np.testing.assert_allclose(row.gradient, other.gradient, rtol=1e-2)


def test_bad_batches():
    x = BATCH["x"].copy()
    x[3, :2] = NAN, INF
    seen = look(classify(jax.nn.relu), net(2), {**BATCH, "x": x})
    assert seen.findings[0].startswith("batch/x has 2 entries that are nan or inf")
    assert "dense_0/relu is the first activation with nan or inf, in 16 entries" in seen.findings[1]
    (skipped,) = found(seen, "this step is skipped")
    assert "the term 'loss' is nan" in skipped
    assert "dense_0/kernel" in skipped
    assert [layer.update for layer in seen.layers] == [0] * 6
    assert seen.layers[0].nonfinite == 2 * 16
    broken = net(2)
    broken["dense_1"]["kernel"][0, 0] = NAN
    seen = look(classify(jnp.tanh), broken)
    assert seen.findings[0].startswith("params/dense_1/kernel has 1 entries")
    assert seen.findings[1].startswith("dense_1/tanh is the first")


def line_of(text):
    lines = enumerate(pathlib.Path(__file__).read_text().splitlines(), 1)
    return next(number for number, line in lines if line.strip().endswith(f"# {text}"))


def test_where_the_first_nan_is_made():
    def logarithm(params, batch):
        h = jnp.tanh(batch["x"] @ params["w"])
        h = jax.jit(lambda h: jnp.log(h))(h)  # the logarithm
        return jnp.mean(jnp.sin(h))

    w = {"w": dense(8, 4)["kernel"]}
    seen = look(logarithm, w)
    assert f"the first nan is made by `log` at test_diagnosis.py:{line_of('the logarithm')} in" in seen.findings[0]

    def overflow(params, batch):
        h, _ = jax.lax.scan(lambda h, _: (h * 1e30, None), batch["x"] @ params["w"], length=3)  # too large
        return jnp.mean(h - h)  # inf - inf

    (finding,) = found(look(overflow, w), "the first nan")
    assert f"`sub` at test_diagnosis.py:{line_of('inf - inf')} in overflow" in finding
    assert f"out of the inf that `mul` at test_diagnosis.py:{line_of('too large')}" in finding

    def inside(params, batch):
        h = batch["x"] @ params["w"] * 1e36
        return reduce(jnp.abs(h) + 1e37, reduction="partial")  # the call

    # The line of the caller, not that of the loss.
    (finding,) = found(look(inside, w, nonfinite="propagate"), "the first inf")
    assert f"test_diagnosis.py:{line_of('the call')} in inside" in finding

    def root_at_zero(params, batch):
        length = jnp.sqrt(jnp.sum((0.0 * params["w"]) ** 2))  # the root
        return jnp.mean(batch["x"] @ params["w"]) + length

    (finding,) = found(look(root_at_zero, w), "the loss is finite and its gradient is not")
    assert f"test_diagnosis.py:{line_of('the root')} in root_at_zero" in finding
    assert "`where`" in finding

    def masked(params, batch):
        scores = jnp.where(batch["x"] > 0, batch["x"] @ jnp.eye(8), -jnp.inf)
        return jnp.mean(jax.nn.softmax(scores) @ params["w"])

    assert look(masked, w).findings == ()


def test_propagated_steps_are_not_skipped():
    seen = look(lambda p, b: jnp.sum(jnp.log(p - 2)), np.ones(3, np.float32), nonfinite="propagate")
    assert not found(seen, "skipped")
    assert found(seen, "`log`")


# --- Manners ------------------------------------------------------------------------------------------------------


def test_nothing_is_changed():
    def loss_fn(params, batch, *, key, model_state):
        noise = jax.random.normal(key, batch["x"].shape)
        out = apply(params, batch["x"] + noise, jnp.tanh)
        return softmax_cross_entropy(out, batch["y"], reduction="partial"), Aux(model_state=model_state + 1)

    step = make_train_step(loss_fn, optax.adam(1e-3), nonfinite="raise")
    state = step.init(net(2), key=jax.random.key(0), model_state=jnp.zeros(()))
    state, _ = step(state, BATCH)
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    before = [np.array(leaf) for leaf in jax.tree.leaves(plain)]
    seen = diagnose(step, state, BATCH)
    again = diagnose(step, state, BATCH)
    assert seen == again
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for old, new in zip(before, jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    after, metrics = step(state, BATCH)
    assert seen.step == 1
    # The same batch, key and model state as the step that follows.
    np.testing.assert_allclose(seen.loss, metrics.loss, rtol=1e-6)
    squares = sum(x.gradient**2 * np.prod(x.shape) for x in seen.layers)
    np.testing.assert_allclose(np.sqrt(squares), metrics.grad_norm, rtol=1e-5)
    squares = sum(x.update**2 * np.prod(x.shape) for x in seen.layers)
    np.testing.assert_allclose(np.sqrt(squares), metrics.update_norm, rtol=1e-3)
    assert int(after.model_state) == 2


def test_optimizers_with_two_sets_of_params():
    params = optax.LookaheadParams.init_synced(net(1))
    seen = look(classify(jnp.tanh), params, optimizer=optax.lookahead(optax.sgd(0.1), 5, 0.5))
    assert seen.layers[0].name == "dense_0/kernel"
    assert seen.findings == ()


def test_the_tables():
    params = {
        f"a_module_with_a_rather_long_name_{i}": {"and_a_submodule": {"kernel": dense(8, 8)["kernel"]}}
        for i in range(44)
    }

    def loss_fn(params, batch):
        h = batch["x"]
        for i in range(44):
            h = jax.nn.relu(h @ params[f"a_module_with_a_rather_long_name_{i}"]["and_a_submodule"]["kernel"])
        return jnp.mean(h)

    text = str(look(loss_fn, params))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("... 4 more ...") == 2
    head, layers, activations, *_ = text.split("\n\n")
    assert head.startswith("step 0, loss ")
    for table, title in ((layers, "params"), (activations, "activations")):
        lines = table.splitlines()
        assert lines[0].startswith(title)
        assert len(lines) == 1 + 40 + 1
        # Every column ends where its head ends.
        ends = [match.end() for match in re.finditer(r"\S+( \S+)*", lines[0])][1:4]
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines[1:3] for end in ends)
    assert "…" in layers
    assert "long_name_43/and_a_submodule/kernel" in layers


def test_the_picture(tmp_path, monkeypatch):
    seen = look(classify(jax.nn.sigmoid), net(8))
    figure = seen.plot(tmp_path / "depth.png")
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert set(lines) == {"activation", "gradient of activation", "param", "gradient of param", "update"}
    kernels = [x for x in seen.layers if len(x.shape) == 2]
    np.testing.assert_array_equal(lines["gradient of param"][:, 1], [x.gradient for x in kernels])
    np.testing.assert_array_equal(lines["gradient of activation"][:, 1], [x.gradient for x in seen.activations])
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names[:4] == ["dense_0/kernel", "dense_0/sigmoid", "dense_1/kernel", "dense_1/sigmoid"]
    np.testing.assert_array_equal(lines["param"][:, 0], np.arange(0, 17, 2))
    assert seen.plot(ax=figure.subplots()) is figure
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxloss\[train\]"):
        seen.plot()


def test_what_is_refused():
    step = make_train_step(classify(jnp.tanh), optax.adam(1e-3))
    state = step.init(net(1))
    with pytest.raises(TypeError, match=r"`train_step` must be made by make_train_step.*function"):
        diagnose(classify(jnp.tanh), state, BATCH)
    with pytest.raises(TypeError, match=r"`state` must be the `State`.*dict"):
        diagnose(step, net(1), BATCH)
    with pytest.raises(TypeError, match="`unit_axis`"):
        diagnose(step, state, BATCH, unit_axis=1.0)
    with pytest.raises(TypeError, match="inside of jit"):
        jax.jit(lambda s: diagnose(step, s, BATCH))(state)
    step(state, BATCH)
    with pytest.raises(RuntimeError, match="donated"):
        diagnose(step, state, BATCH)
