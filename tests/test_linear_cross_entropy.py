"""Losses from hidden states and a kernel are those of the logits, cut however, and never hold or gather them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms.linear_log_probability import linear_log_probability

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, FEATURES, CLASSES = 13, 4, 11
EXTRAS = {"label_smoothing": 0.1, "z_loss": 0.2, "soft_cap": 3.0, "temperature": 1.7}
FEW_ROWS, FEW_CLASSES = {"chunk_rows": 4, "chunk_classes": 3}, {"chunk_rows": 5, "chunk_classes": 4}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def drawn(rows=ROWS, features=FEATURES, classes=CLASSES, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return {
        "hidden": jnp.asarray(rng.normal(size=(rows, features)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(features, classes)), dtype),
        "bias": jnp.asarray(rng.normal(size=classes), dtype),
        "labels": jnp.asarray(rng.integers(min(2, classes - 1), classes, rows), jnp.int32),
        "weights": jnp.asarray(rng.uniform(0.5, 2, rows), dtype),
    }


def textbook(
    hidden, kernel, bias, labels, weights, label_smoothing=0.0, z_loss=0.0, soft_cap=None, temperature=1.0, valid=None
):
    """The sum, by way of all logits: jax in float64, for its derivatives."""
    z = hidden @ kernel + bias[None]
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    z = z / temperature
    exists = jnp.ones(z.shape[1], bool) if valid is None else valid
    top = jnp.max(jnp.where(exists[None], z, -jnp.inf), axis=1, keepdims=True)
    lse = top + jnp.log(jnp.sum(jnp.where(exists[None], jnp.exp(z - top), 0), axis=1, keepdims=True))
    nll = lse - z
    own = nll[jnp.arange(len(labels)), labels]
    even = jnp.sum(jnp.where(exists[None], nll, 0), axis=1) / jnp.sum(exists)
    rows = (1 - label_smoothing) * own + label_smoothing * even + z_loss * jnp.square(lse[:, 0])
    return jnp.sum(weights * rows)


def derivatives(loss, inputs, options):
    """Value, gradient in everything, directional derivative, and both Hessian-vector products."""
    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), (inputs, options))
    point = inputs, options
    gradient = jax.grad(loss, argnums=(0, 1))

    def along(*point):
        both = zip(jax.tree.leaves(gradient(*point)), jax.tree.leaves(direction), strict=True)
        return sum(jnp.sum(a * b) for a, b in both)

    return {
        "value": loss(*point),
        "gradient": gradient(*point),
        "forward": jax.jvp(loss, point, direction)[1],
        "curve": jax.jvp(gradient, point, direction)[1],
        "curve in reverse": jax.grad(along, argnums=(0, 1))(*point),
    }


def close(got, want, rtol=1e-9, atol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


@pytest.mark.parametrize(
    ("memory", "transposed", "chunks", "extras", "masked"),
    [
        pytest.param("fast", False, {}, True, False, marks=pytest.mark.exhaustive),
        pytest.param("fast", False, FEW_CLASSES, False, False, marks=pytest.mark.exhaustive),
        ("fast", True, FEW_CLASSES, True, True),
        pytest.param("low", False, FEW_ROWS, True, True, marks=pytest.mark.exhaustive),
        pytest.param("low", True, FEW_CLASSES, False, False, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.usefixtures("float64")
def test_every_derivative_is_the_textbook_one(memory, transposed, chunks, extras, masked):
    inputs = drawn()
    labels = inputs.pop("labels")
    valid = jnp.arange(CLASSES) != 1 if masked else None
    options = {k: jnp.asarray(v) for k, v in EXTRAS.items()} if extras else {}

    def ours(inputs, options):
        kernel = inputs["kernel"].T if transposed else inputs["kernel"]
        return jl.linear_softmax_cross_entropy(
            **{**inputs, "kernel": kernel}, labels=labels, transposed_kernel=transposed, memory=memory, valid=valid,
            reduction="sum", **chunks, **options,
        )  # fmt: skip

    def theirs(inputs, options):
        return textbook(**inputs, labels=labels, valid=valid, **options)

    got, want = (jax.jit(lambda f=f: derivatives(f, inputs, options))() for f in (ours, theirs))
    close(got, want)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("reduction", ["none", "mean", "partial"])
def test_reductions(reduction):
    inputs = drawn()
    where = jnp.arange(ROWS) % 3 != 1
    dirty = {**inputs, "hidden": jnp.where(where[:, None], inputs["hidden"], jnp.nan)}
    rows = [{k: x if k in ("kernel", "bias") else x[i : i + 1] for k, x in inputs.items()} for i in range(ROWS)]
    each = np.array([textbook(**row) for row in rows])
    each, weight = np.where(where, each, 0), float(jnp.sum(jnp.where(where, inputs["weights"], 0)))
    got = jl.linear_softmax_cross_entropy(**dirty, where=where, reduction=reduction, **FEW_ROWS)
    if reduction == "partial":
        close((got.total, got.weight), (each.sum(), weight))
    else:
        close(got, each if reduction == "none" else each.sum() / weight)

    def total(hidden, reduction):
        out = jl.linear_softmax_cross_entropy(
            **{**dirty, "hidden": hidden}, where=where, reduction=reduction, **FEW_ROWS
        )
        return out.total if reduction == "partial" else jnp.sum(out)

    slope = jax.grad(total)(dirty["hidden"], reduction)
    clean = {**inputs, "weights": jnp.where(where, inputs["weights"], 0)}
    want = jax.grad(lambda hidden: textbook(**{**clean, "hidden": hidden}))(inputs["hidden"])
    close(slope, want / (weight if reduction == "mean" else 1.0))


@pytest.mark.parametrize("memory", [pytest.param("fast", marks=pytest.mark.exhaustive), "low"])
@pytest.mark.parametrize(("rows", "classes"), [(0, 5), (1, 1), (1, 7)])
def test_sizes_at_the_edge(memory, rows, classes):
    inputs = drawn(rows, 2, classes, "float32")
    inputs["labels"] = jnp.zeros(rows, jnp.int32)
    chunks = {"chunk_rows": 2, "chunk_classes": 3}

    def loss(hidden, kernel):
        return jl.linear_softmax_cross_entropy(
            **{**inputs, "hidden": hidden, "kernel": kernel}, memory=memory, reduction="sum", **chunks
        )

    value, slopes = jax.value_and_grad(loss, argnums=(0, 1))(inputs["hidden"], inputs["kernel"])
    want = jax.value_and_grad(
        lambda h, k: textbook(**{**inputs, "hidden": h, "kernel": k}) if rows else jnp.sum(h), (0, 1)
    )
    close((value, slopes), want(inputs["hidden"], inputs["kernel"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_a_confident_row_keeps_its_digits(memory):
    hidden, kernel = jnp.ones((1, 1)), jnp.asarray([[46.0, 0.0, 1.0, -3.0]])

    def loss(bias):
        return jl.linear_softmax_cross_entropy(
            hidden, kernel, jnp.zeros(1, jnp.int32), bias=bias, memory=memory, chunk_classes=2
        )

    value, slope = jax.value_and_grad(loss)(jnp.zeros(4))
    others = np.exp(np.array([0.0, 1.0, -3.0]) - 46)
    np.testing.assert_allclose(value, others.sum(), rtol=1e-5)
    np.testing.assert_allclose(slope, [-others.sum(), *others], rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_half_precision(memory):
    inputs = drawn(24, 8, 40, "float32")
    labels, where = inputs["labels"], jnp.arange(24) % 4 != 0
    for dtype, unit in (("bfloat16", 2.0**-8), ("float16", 2.0**-11)):
        half = {k: inputs[k].astype(dtype) for k in ("hidden", "kernel")}

        def loss(half, memory=memory):
            return jl.linear_softmax_cross_entropy(
                **half, labels=labels, where=where, memory=memory, chunk_rows=8, chunk_classes=16
            )

        value, slopes = jax.jit(jax.value_and_grad(loss))(half)
        exact = {k: x.astype("float32") for k, x in half.items()}
        want = jax.value_and_grad(
            lambda x: textbook(**x, bias=jnp.zeros(40), labels=labels, weights=where / jnp.sum(where))
        )(exact)
        assert value.dtype == jnp.float32
        assert all(slope.dtype == dtype for slope in slopes.values())
        np.testing.assert_allclose(value, want[0], rtol=1e-5)
        for name, slope in slopes.items():
            np.testing.assert_allclose(
                slope.astype("float32"),
                want[1][name],
                rtol=2 * unit,
                atol=2 * unit * float(jnp.abs(want[1][name]).max()),
            )


def test_small_slopes_in_float16_do_not_underflow():
    # A mean over 512 rows of slopes 1 / 2000 is 1e-6 each, of which float16 holds two digits and its products none.
    hidden, kernel = jnp.ones((512, 1), jnp.float16), jnp.zeros((1, 2000), jnp.float16)
    labels = jnp.zeros(512, jnp.int32)
    slope = jax.grad(lambda k: 2.0**10 * jl.linear_softmax_cross_entropy(hidden, k, labels, chunk_rows=256))(kernel)
    np.testing.assert_allclose(slope[0, 1:].astype("float32"), 2.0**10 / 2000, rtol=2e-3)


def test_ruled_out_classes_and_infinite_rows():
    inputs = drawn(dtype="float32")
    valid = jnp.arange(CLASSES) > 2
    inputs["kernel"] = jnp.where(valid[None], inputs["kernel"], jnp.nan)
    inputs["bias"] = jnp.where(valid, inputs["bias"], jnp.inf)
    inputs["labels"] = jnp.where(jnp.arange(ROWS) == 4, 0, jnp.maximum(inputs["labels"], 3))
    where = jnp.arange(ROWS) != 4  # its label is a class that does not exist

    def loss(inputs, where):
        return jl.linear_softmax_cross_entropy(**inputs, valid=valid, where=where, label_smoothing=0.1, **FEW_ROWS)

    value, slopes = jax.value_and_grad(lambda x: loss({**inputs, **x}, where))(
        {k: inputs[k] for k in ("hidden", "kernel", "bias", "weights")}
    )
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(slope)) for slope in slopes.values())
    assert not np.any(slopes["kernel"][:, :3])
    assert np.isposinf(loss(inputs, None))


def products(function, *args) -> int:
    return str(jax.make_jaxpr(function)(*args)).count("dot_general")


def test_only_what_is_asked_for_is_computed():
    inputs = drawn(dtype="float32")

    def loss(hidden, kernel, weights):
        return jl.linear_softmax_cross_entropy(hidden, kernel, inputs["labels"], weights=weights)

    at = inputs["hidden"], inputs["kernel"], inputs["weights"]
    for argnums, count in (((0, 1), 3), (0, 2), (1, 2), (2, 1)):
        assert products(jax.grad(loss, argnums), *at) == count, argnums
    assert products(loss, *at) == 1


@pytest.mark.parametrize(("memory", "share"), [("fast", 3), ("low", 6)])
def test_memory(memory, share):
    rows, features, classes = 512, 64, 8192
    shapes = [((rows, features), "float32"), ((features, classes), "float32"), ((rows,), "int32")]
    at = [jax.ShapeDtypeStruct(*x) for x in shapes]

    def materialised(hidden, kernel, labels):
        return jnp.mean(jl.softmax_cross_entropy(hidden @ kernel, labels))

    def ours(hidden, kernel, labels):
        return jl.linear_softmax_cross_entropy(hidden, kernel, labels, memory=memory)

    logits_and_softmax = 2 * rows * classes * 4
    found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1))).lower(*at).compile().memory_analysis()
    assert found.temp_size_in_bytes <= logits_and_softmax / share


# --- Spread over devices ------------------------------------------------------------------------------------------


SHARDED = {"rows": 32, "features": 8, "classes": 64}


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))


def kernel_spec(transposed):
    return P("model", None) if transposed else P(None, "model")


@pytest.mark.parametrize(
    ("kind", "memory", "transposed", "rows"),
    [
        (AxisType.Auto, "fast", True, None),
        (AxisType.Auto, "low", False, "data"),
        (AxisType.Explicit, "fast", False, "data"),
    ],
)
def test_a_sharded_vocabulary_is_not_gathered(kind, memory, transposed, rows):
    inputs = drawn(**SHARDED, dtype="float32")
    if transposed:
        inputs["kernel"] = inputs["kernel"].T
    specs = {
        "hidden": P(rows), "kernel": kernel_spec(transposed), "bias": P("model"), "labels": P(rows), "weights": P(rows),
    }  # fmt: skip

    def loss(floats, labels):
        return jl.linear_softmax_cross_entropy(
            **floats,
            labels=labels,
            transposed_kernel=transposed,
            memory=memory,
            chunk_rows=16,
            chunk_classes=16,
            **EXTRAS,
        )

    labels = inputs.pop("labels")
    want = jax.jit(jax.value_and_grad(loss))(inputs, labels)
    spread = {k: jax.device_put(x, NamedSharding(mesh(kind), specs[k])) for k, x in inputs.items()}
    placed = jax.device_put(labels, NamedSharding(mesh(kind), specs["labels"]))
    program = jax.jit(jax.value_and_grad(loss)).lower(spread, placed).compile()
    close(program(spread, placed), want, rtol=2e-5, atol=2e-6)
    moved = re.findall(
        r"= \(?(\w+\[[\d,]*\])\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", program.as_text()
    )
    assert not moved, moved


@pytest.mark.exhaustive
@pytest.mark.parametrize(("memory", "transposed"), [("fast", False), ("low", True)])
def test_a_vocabulary_spread_inside_shard_map(memory, transposed):
    inputs = drawn(**SHARDED, dtype="float32")
    labels = inputs.pop("labels")
    valid = jnp.arange(SHARDED["classes"]) != 40
    if transposed:
        inputs["kernel"] = inputs["kernel"].T
    options = {"transposed_kernel": transposed, "memory": memory, "chunk_rows": 4, "chunk_classes": 12, **EXTRAS}
    specs = {"hidden": P("data"), "kernel": kernel_spec(transposed), "bias": P("model"), "weights": P("data")}

    def local(inputs, labels, valid):
        part = jl.linear_softmax_cross_entropy(
            **inputs, labels=labels, valid=valid, vocab_axis_name="model", reduction="partial", **options
        )
        return jax.lax.psum(part.total, "data") / jax.lax.psum(part.weight, "data")

    spread = jax.shard_map(local, mesh=mesh(), in_specs=(specs, P("data"), P("model")), out_specs=P(), check_vma=True)

    def derived(loss):
        def program(inputs):
            slopes = jax.grad(loss)
            return loss(inputs), slopes(inputs), jax.jvp(slopes, (inputs,), (inputs,))[1]

        return jax.jit(program)(inputs)

    got = derived(lambda inputs: spread(inputs, labels, valid))
    want = derived(lambda inputs: jl.linear_softmax_cross_entropy(**inputs, labels=labels, valid=valid, **options))
    close(got, want, rtol=5e-5, atol=5e-6)


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kernel": (FEATURES + 1, CLASSES)}, ValueError, "`hidden` [13, 4] and `kernel` [5, 11], as [D, V]"),
        ({"kernel": (CLASSES, FEATURES)}, ValueError, "transposed_kernel=True"),
        ({"kernel": (FEATURES,)}, ValueError, "`kernel` [4] must have two axes"),
        ({"kernel": (FEATURES, 0)}, ValueError, "has no class"),
        ({"bias": (3,)}, ValueError, "`bias` [3] must have one entry for each of the 11 classes"),
        ({"hidden": ()}, ValueError, "`hidden` [] must have a last axis"),
    ],
)
def test_errors_in_words(change, error, words):
    inputs = {**drawn(dtype="float32"), **{k: jnp.zeros(shape) for k, shape in change.items()}}
    with pytest.raises(error, match=re.escape(words)):
        jl.linear_softmax_cross_entropy(**inputs)


# --- Log-probabilities --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("float64")
def test_log_probability_and_entropy():
    inputs = drawn()
    valid = jnp.arange(CLASSES) != 1
    options = {k: jnp.asarray(EXTRAS[k]) for k in ("soft_cap", "temperature")}
    del inputs["weights"]

    def ours(floats, chunk_rows=5):
        return linear_log_probability(
            **floats, labels=inputs["labels"], valid=valid, entropy=True, chunk_rows=chunk_rows, **options
        )

    def theirs(floats):
        u = floats["hidden"] @ floats["kernel"] + floats["bias"][None]
        z = EXTRAS["soft_cap"] * jnp.tanh(u / EXTRAS["soft_cap"]) / EXTRAS["temperature"]
        z = jnp.delete(z, 1, axis=1)  # the class that does not exist
        p = jnp.exp(z) / jnp.sum(jnp.exp(z), axis=1, keepdims=True)
        return jnp.log(p[jnp.arange(ROWS), inputs["labels"] - 1]), -jnp.sum(p * jnp.log(p), axis=1)

    floats = {k: inputs[k] for k in ("hidden", "kernel", "bias")}
    close(ours(floats), theirs(floats))
    for part in (0, 1):
        slopes = [jax.jit(jax.grad(lambda x, f=f, part=part: jnp.sum(f(x)[part] ** 2)))(floats) for f in (ours, theirs)]
        close(*slopes)
    alone = linear_log_probability(**{**inputs, "labels": inputs["labels"].at[3].set(CLASSES)})
    assert np.array_equal(np.isnan(alone), np.arange(ROWS) == 3)
    with pytest.raises(ValueError, match=r"`labels` \[12\] must be `hidden` \[13, 4\]"):
        linear_log_probability(**{**inputs, "labels": inputs["labels"][1:]})
