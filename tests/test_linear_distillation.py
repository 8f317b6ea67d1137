"""Distillation from a linear teacher and from its top K, and the z-loss apart: what the logits give, without them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_vocabulary import linear_distillation as by_numpy
from cases_vocabulary import linear_top_k_distillation as top_k_by_numpy

import jaxloss as jl
from jaxloss.algorithms.linear_log_probability import linear_log_probability
from jaxloss.algorithms.linear_z_loss import linear_cross_entropy_and_z_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS, CLASSES, K = 5, 7, 3
BIASES = ("bias", "teacher_bias")
DIVERGENCES = ("forward", "reverse", "jensen_shannon")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "hidden": (ROWS, 3), "kernel": (3, CLASSES), "teacher_hidden": (ROWS, 4), "teacher_kernel": (4, CLASSES),
        "bias": (CLASSES,), "teacher_bias": (CLASSES,),
    }  # fmt: skip
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def single(arrays):
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def best(arrays, k=K, temperature=1.0):
    z = (arrays["teacher_hidden"] @ arrays["teacher_kernel"] + arrays["teacher_bias"]) / temperature
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    labels = np.argsort(-log_p, axis=-1)[:, :k]
    return {"log_probabilities": np.take_along_axis(log_p, labels, -1), "labels": labels}


def textbook(student, arrays, divergence):
    """The rows' weighted sum by way of the logits: jax in float64, for its derivatives."""
    temperature = student["temperature"]
    z = (student["hidden"] @ student["kernel"] + student["bias"][None]) / temperature
    t = (arrays["teacher_hidden"] @ arrays["teacher_kernel"] + arrays["teacher_bias"][None]) / temperature
    q, p = (jnp.exp(x) / jnp.sum(jnp.exp(x), axis=1, keepdims=True) for x in (z, t))
    if divergence == "top_k":
        p = jax.lax.stop_gradient(p)
        labels = jnp.argsort(-p, axis=1)[:, :K]
        p, q = (jnp.take_along_axis(x, labels, axis=1) for x in (p, q))
        p, q = (jnp.concatenate([x, 1 - jnp.sum(x, axis=1, keepdims=True)], axis=1) for x in (p, q))
    m = (p + q) / 2
    each = {
        "forward": p * jnp.log(p / q),
        "top_k": p * jnp.log(p / q),
        "reverse": q * jnp.log(q / p),
        "jensen_shannon": (p * jnp.log(p / m) + q * jnp.log(q / m)) / 2,
    }[divergence]
    return temperature**2 * jnp.sum(student["weights"][:, None] * each)


def close(got, want, rtol=1e-9, atol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("divergence", "transposed"), [("forward", True), ("reverse", False), ("jensen_shannon", False), ("top_k", True)]
)
def test_every_derivative_is_the_textbook_one(divergence, transposed):
    arrays = drawn()
    student = {name: jnp.asarray(arrays[name]) for name in ("hidden", "kernel", "bias")}
    given = {name: x for name, x in arrays.items() if name not in student}
    weights = np.linspace(0.5, 2, ROWS)
    options = {"transposed_kernel": transposed, "chunk_rows": 2, "reduction": "sum"}
    point = {**student, "temperature": jnp.asarray(1.5), "weights": jnp.asarray(weights)}

    def ours(student):
        turned = {**student, "kernel": student["kernel"].T if transposed else student["kernel"]}
        if divergence == "top_k":
            return jl.linear_top_k_distillation(**turned, **best(arrays, temperature=1.5), **options)
        teacher = {**given, "teacher_kernel": given["teacher_kernel"].T if transposed else given["teacher_kernel"]}
        return jl.linear_distillation(**turned, **teacher, divergence=divergence, **options)

    def theirs(student):
        return textbook(student, given, divergence)

    def derivatives(loss):
        slopes, direction = jax.grad(loss), jax.tree.map(jnp.cos, point)
        found = loss(point), slopes(point), jax.jvp(slopes, (point,), (direction,))[1]
        if divergence != "reverse":
            return found

        def along(x):
            return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slopes(x), direction)))

        return found, jax.jvp(loss, (point,), (direction,))[1], jax.grad(along)(point)

    close(*(jax.jit(lambda f=f: derivatives(f))() for f in (ours, theirs)))


def test_values_masks_and_no_gradient_to_the_teacher():
    arrays = drawn()
    where = np.arange(ROWS) != 1
    want = by_numpy(**arrays)
    dirty = {name: np.where(where[:, None], arrays[name], np.nan) for name in ("hidden", "teacher_hidden")}

    def loss(arrays, reduction):
        value = jl.linear_distillation(**arrays, where=jnp.asarray(where), chunk_rows=2, reduction=reduction)
        return jnp.sum(value) / np.sum(where) if reduction == "none" else value

    for reduction in ("mean", "none"):
        value, slopes = jax.jit(jax.value_and_grad(lambda x, r=reduction: loss(x, r)))(single({**arrays, **dirty}))
        np.testing.assert_allclose(value, want[where].mean(), rtol=1e-5)
        for name, slope in slopes.items():
            assert np.all(np.isfinite(slope)), name
            assert np.any(slope) != name.startswith("teacher"), name


def test_equal_models_are_at_zero_and_near_ones_keep_their_digits():
    arrays = {name: x.astype(np.float32) for name, x in drawn().items() if name in ("hidden", "kernel")}
    twin = {"teacher_hidden": arrays["hidden"], "teacher_kernel": arrays["kernel"]}
    # The logits' rounding, 1e-7, is far below; plain differences of logarithms would lose all but 3 bits.
    bias = np.where(np.arange(CLASSES) == 2, 2.0**-10, 0)

    @jax.jit
    def losses(bias, arrays):
        def each(bias):
            options = {"bias": bias, "reduction": "none"}
            return [jl.linear_distillation(**arrays, divergence=name, **options) for name in DIVERGENCES]

        return each(bias), jax.jacrev(each)(bias)

    found = losses(jnp.zeros(CLASSES), {**arrays, **twin})
    assert not any(np.any(x) for x in jax.tree.leaves(found)), found
    exact = {name: x.astype(np.float64) for name, x in {**arrays, **twin}.items()}
    for near, name in zip(losses(jnp.asarray(bias, jnp.float32), {**arrays, **twin})[0], DIVERGENCES, strict=True):
        np.testing.assert_allclose(near, by_numpy(**exact, bias=bias, divergence=name), rtol=2e-3)


def test_classes_that_are_ruled_out():
    arrays = drawn()
    both = {**arrays, **{name: np.where(np.arange(CLASSES) == 4, -np.inf, arrays[name]) for name in BIASES}}
    without = {name: np.delete(x, 4, -1) if CLASSES in x.shape else x for name, x in both.items()}
    teacher_only, student_only = {**both, "bias": arrays["bias"]}, {**both, "teacher_bias": arrays["teacher_bias"]}

    @jax.jit
    def slopes(arrays):
        return [
            jax.value_and_grad(lambda x, name=name: jl.linear_distillation(**x, divergence=name))(arrays)
            for name in DIVERGENCES
        ]

    of_both, of_teacher, of_student = (slopes(single(x)) for x in (both, teacher_only, student_only))
    for (value, _), name in zip(of_both, DIVERGENCES, strict=True):
        np.testing.assert_allclose(value, by_numpy(**without, divergence=name).mean(), rtol=1e-5)
    finite = of_both, of_teacher[0], of_teacher[2], of_student[1], of_student[2]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(finite))
    assert np.isposinf(of_student[0][0])
    assert np.isposinf(of_teacher[1][0])
    x = single(both)

    def bent(hidden):
        return jl.linear_distillation(**{**x, "hidden": hidden}, divergence="jensen_shannon")

    curve = jax.jit(jax.grad(lambda h: jnp.vdot(jax.grad(bent)(h), x["hidden"])))(x["hidden"])
    assert np.all(np.isfinite(curve))
    # Rows whose loss and slopes are infinite, and do not count.
    out = jnp.zeros(ROWS, bool)
    nothing = jax.grad(lambda x: jl.linear_distillation(**x, divergence="reverse", where=out))(single(teacher_only))
    assert not any(np.any(x) for x in jax.tree.leaves(nothing))


def products(loss, arrays, names):
    given = {name: x for name, x in arrays.items() if name not in names}
    slopes = jax.value_and_grad(lambda x: loss(**x, **given))
    return str(jax.make_jaxpr(slopes)({name: arrays[name] for name in names})).count("dot_general")


def test_logits_are_made_once():
    arrays = single(drawn())
    for names, count in ((("hidden", "kernel"), 4), (("hidden",), 3), (("kernel",), 3), (("bias",), 2)):
        assert products(jl.linear_distillation, arrays, names) == count, names
    given = ready(best(drawn()))
    student = {name: arrays[name] for name in ("hidden", "kernel")}
    assert products(lambda **x: jl.linear_top_k_distillation(**x, **given), student, ("hidden", "kernel")) == 3


def test_classes_cut_unequally():
    # More classes than one block of the kernel's product, and no number of equal blocks: the last two overlap.
    rng = np.random.default_rng(1)
    shapes = {"hidden": (ROWS, 2), "kernel": (2, 65537), "teacher_hidden": (ROWS, 2), "teacher_kernel": (2, 65537)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    slope = jax.jit(jax.grad(lambda x: jl.linear_distillation(**x)))(single(arrays))["kernel"]
    q, p = (np.exp(arrays[name + "hidden"] @ arrays[name + "kernel"]) for name in ("", "teacher_"))
    want = arrays["hidden"].T @ (q / q.sum(1, keepdims=True) - p / p.sum(1, keepdims=True)) / ROWS
    np.testing.assert_allclose(slope, want, rtol=1e-3, atol=1e-7)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("wide", ["hidden", "teacher_kernel"])
def test_dtypes_that_differ(wide):
    arrays = {**single(drawn()), wide: jnp.asarray(drawn()[wide], jnp.float64)}
    value, slope = jax.value_and_grad(lambda x: jl.linear_distillation(**{**arrays, "kernel": x}, temperature=2.0))(
        arrays["kernel"]
    )
    np.testing.assert_allclose(value, by_numpy(**drawn(), temperature=2.0).mean(), rtol=1e-5)
    assert (value.dtype, slope.dtype) == (jnp.float64, jnp.float32)


# --- From the top K -----------------------------------------------------------------------------------------------


def test_top_k_up_to_the_whole_teacher():
    arrays = drawn()
    student = single({name: arrays[name] for name in ("hidden", "kernel", "bias")})
    whole = by_numpy(**arrays)
    found = [
        jl.linear_top_k_distillation(**student, **ready(best(arrays, k)), reduction="none") for k in (1, K, CLASSES)
    ]
    for value, k in zip(found[:2], (1, K), strict=True):
        want = top_k_by_numpy(*(arrays[name] for name in ("hidden", "kernel")), **best(arrays, k), bias=arrays["bias"])
        np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[2], whole, rtol=1e-5)
    assert np.all(found[0] < found[1])
    assert np.all(found[1] < found[2])


def ready(given):
    return {
        "log_probabilities": jnp.asarray(given["log_probabilities"], jnp.float32),
        "labels": jnp.asarray(given["labels"], jnp.int32),
    }


def test_a_sure_student_keeps_the_digits_of_its_bucket():
    # 1 - q is 0 in float32; the teacher's bucket holds a tenth.
    bias = jnp.asarray([40.0, 0.0, 0.0])
    value = jl.linear_top_k_distillation(
        jnp.zeros((1, 1)), jnp.zeros((1, 3)), jnp.log(jnp.full((1, 1), 0.9)), jnp.zeros((1, 1), jnp.int32), bias=bias
    )
    rest = 2 * np.exp(-40.0)
    np.testing.assert_allclose(value, 0.9 * np.log(0.9) + 0.1 * np.log(0.1 / rest), rtol=1e-5)


def test_bad_labels_and_empty_buckets():
    arrays = drawn()
    student = single({name: arrays[name] for name in ("hidden", "kernel")})
    given = ready(best(arrays))
    labels = given["labels"].at[2, 1].set(CLASSES).at[3, 0].set(-1)
    value = jl.linear_top_k_distillation(**student, **{**given, "labels": labels}, reduction="none")
    assert np.array_equal(np.isnan(value), np.isin(np.arange(ROWS), (2, 3)))
    spoilt = {**given, "log_probabilities": given["log_probabilities"].at[1, 0].set(jnp.nan)}
    value = jl.linear_top_k_distillation(**student, **spoilt, reduction="none")
    assert np.array_equal(np.isnan(value), np.arange(ROWS) == 1)
    # A teacher that is sure, and says so with rounding: nothing is left for the others, and a class has none.
    given["log_probabilities"] = jnp.asarray(np.tile([1e-7, -np.inf, -np.inf], (ROWS, 1)), jnp.float32)
    value, slopes = jax.jit(jax.value_and_grad(lambda x: jl.linear_top_k_distillation(**x, **given)))(student)
    z = arrays["hidden"] @ arrays["kernel"]
    want = np.log(np.exp(z).sum(1)) - z[np.arange(ROWS), given["labels"][:, 0]]
    np.testing.assert_allclose(value, want.mean(), rtol=1e-5)
    assert all(np.all(np.isfinite(x)) for x in slopes.values())


# --- Memory, half precision, words --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["teacher", "top_k"])
def test_memory(source):
    rows, features, classes = 2048, 8, 4096
    shapes = {"hidden": (rows, features), "kernel": (features, classes)}
    if source == "teacher":
        shapes |= {"teacher_hidden": (rows, features), "teacher_kernel": (features, classes)}
    at = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    given = {"log_probabilities": jnp.full((rows, 2), -1.0), "labels": jnp.zeros((rows, 2), jnp.int32)}

    def loss(floats):
        if source == "teacher":
            return jl.linear_distillation(**floats, divergence="jensen_shannon")
        return jl.linear_top_k_distillation(**floats, **given)

    found = jax.jit(jax.value_and_grad(loss)).lower(at).compile().memory_analysis()
    assert found.temp_size_in_bytes < rows * classes * 4


@pytest.mark.exhaustive
def test_half_precision_has_gradients_of_rows():
    arrays = {name: jnp.asarray(x, jnp.bfloat16) for name, x in drawn().items()}
    student = {name: arrays.pop(name) for name in ("hidden", "kernel", "bias")}
    options = {"chunk_rows": 2}
    labels = jnp.zeros(ROWS, jnp.int32)

    def slopes(student):
        return [
            jax.grad(lambda x: jnp.mean(jl.linear_distillation(**x, **arrays, reduction="none", **options)))(student),
            jax.grad(lambda x: jl.linear_distillation(**x, **arrays, **options))(student),
            jax.grad(
                lambda x: jnp.mean(jl.linear_softmax_cross_entropy(**x, labels=labels, reduction="none", **options))
            )(student),
            jax.grad(lambda x: jnp.mean(linear_log_probability(**x, labels=labels, **options)))(student),
        ]

    half = jax.jit(slopes)(student)
    wide = jax.jit(slopes)(jax.tree.map(lambda x: x.astype(jnp.float32), student))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(half))
    close(jax.tree.map(lambda x: x.astype(jnp.float32), half), wide, rtol=0.05, atol=0.02)


def test_small_slopes_in_float16_do_not_underflow():
    # A mean over 512 rows of slopes 1 / 2000 is 1e-6 each, of which float16 holds two digits and its products none.
    student = {"hidden": jnp.ones((512, 1), jnp.float16), "kernel": jnp.zeros((1, 2000), jnp.float16)}
    teacher = {"teacher_hidden": jnp.ones((512, 1)), "teacher_kernel": jnp.zeros((1, 2000)).at[0, 0].set(50.0)}
    slope = jax.grad(lambda x: 2.0**10 * jl.linear_distillation(**x, **teacher, chunk_rows=256))(student)["kernel"]
    np.testing.assert_allclose(slope[0, 1:].astype("float32"), 2.0**10 / 2000, rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"teacher_kernel": (4, CLASSES + 1)},
            "`kernel` [3, 7] and `teacher_kernel` [4, 8] must have the same classes",
        ),
        ({"teacher_hidden": (ROWS + 1, 4)}, "`hidden` [5, 3] and `teacher_hidden` [6, 4] must have the same rows"),
        ({"teacher_bias": (2,)}, "`teacher_bias` [2] must have one entry for each of the 7 classes"),
    ],
)
def test_errors_in_words(change, words):
    arrays = {**drawn(), **{name: np.zeros(shape) for name, shape in change.items()}}
    if "teacher_kernel" in change:
        del arrays["teacher_bias"]
    with pytest.raises(ValueError, match=re.escape(words)):
        jl.linear_distillation(**single(arrays))


def test_errors_in_words_of_the_top_k():
    hidden, kernel = jnp.zeros((2, 3)), jnp.zeros((3, 4))
    for given, words in (
        ((jnp.zeros((2, 2)), jnp.zeros((2, 3), jnp.int32)), "`log_probabilities` [2, 2] and `labels` [2, 3]"),
        ((jnp.zeros((2, 5)), jnp.zeros((2, 5), jnp.int32)), "`labels` [2, 5] has more entries a row"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            jl.linear_top_k_distillation(hidden, kernel, *given)


# --- The z-loss apart ---------------------------------------------------------------------------------------------


def test_the_z_loss_apart():
    inputs = single({name: x for name, x in drawn().items() if "teacher" not in name})
    where = np.arange(ROWS) != 1
    options = {"labels": jnp.arange(ROWS) % CLASSES, "where": jnp.asarray(where), "chunk_rows": 2, "chunk_classes": 3}

    def pair(inputs, reduction="mean"):
        return linear_cross_entropy_and_z_loss(**inputs, z_loss=0.3, reduction=reduction, **options)

    def plain(inputs, z_loss=0.3):
        return jl.linear_softmax_cross_entropy(**inputs, z_loss=z_loss, **options)

    @jax.jit
    def everything(inputs):
        return {
            "pair": jax.value_and_grad(pair, has_aux=True)(inputs),
            "slopes": jax.grad(plain)(inputs),
            "without": plain(inputs, None),
            "slopes of z": jax.grad(lambda x: pair(x)[1])(inputs),
            "partial": [half.value for half in pair(inputs, "partial")],
        }

    found = everything(inputs)
    (loss, z), slopes = found["pair"]
    logits = np.asarray(inputs["hidden"] @ inputs["kernel"] + inputs["bias"][None], np.float64)
    np.testing.assert_allclose(z, 0.3 * np.square(np.log(np.exp(logits).sum(1)))[where].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss - z, found["without"], rtol=1e-5)
    close(slopes, found["slopes"], rtol=1e-6, atol=1e-7)
    assert not any(np.any(x) for x in jax.tree.leaves(found["slopes of z"]))
    close(found["partial"], [loss, z], rtol=1e-6)

    def products(loss, **options):
        return str(jax.make_jaxpr(jax.value_and_grad(loss, **options))(inputs)).count("dot_general")

    assert products(pair, has_aux=True) == products(plain)
    with pytest.raises(ValueError, match="`reduction`"):
        pair(inputs, "none")
