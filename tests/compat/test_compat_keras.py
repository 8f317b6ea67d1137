"""`jaxloss.compat.keras` beside keras, where keras is right, and beside the formula where it is not."""

import functools
import inspect
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss.compat import keras as ours

pytestmark = pytest.mark.usefixtures("quick_compilation")

REDUCTIONS = ["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none", None]


@pytest.fixture(scope="module")
def theirs():
    """keras.losses on jax, whatever is set on this machine, and without leaving a settings file behind."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", home)
        keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("keras was imported with another backend")
    # It broadcasts ranks, which the suite forbids to ours.
    with jax.numpy_rank_promotion("allow"):
        yield keras.losses


# --- What goes in -------------------------------------------------------------------------------------------------


def reals(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def within(rng, *shape):
    return rng.uniform(0.05, 0.95, shape).astype("float32")


def shares(rng, *shape, axis=-1):
    x = rng.uniform(0.05, 1, shape)
    return (x / x.sum(axis, keepdims=True)).astype("float32")


def regression(rng, options):
    return reals(rng, 3, 4), reals(rng, 3, 4)


def positive(rng, options):
    return rng.uniform(0.1, 3, (3, 4)).astype("float32"), rng.uniform(0.1, 3, (3, 4)).astype("float32")


def counts(rng, options):
    return rng.poisson(2, (3, 4)).astype("float32"), rng.uniform(0.1, 3, (3, 4)).astype("float32")


def yes_or_no(rng, options):
    made = reals if options.get("from_logits") else within
    return rng.integers(0, 2, (3, 4)), made(rng, 3, 4)


def one_of_four(rng, options):
    """Square, because keras takes the number of classes from the last axis."""
    axis = options.get("axis", -1)
    made = reals(rng, 4, 4) if options.get("from_logits") else within(rng, 4, 4)
    return shares(rng, 4, 4, axis=axis), made


def labelled(rng, options):
    made = reals if options.get("from_logits") else within
    labels = rng.integers(0, 5, (3, 2))
    if options.get("ignore_class") is not None:
        labels[1, 0] = options["ignore_class"]
    return labels, np.moveaxis(made(rng, 3, 2, 5), -1, options.get("axis", -1))


def labels_of_rows(rng, options):
    return rng.integers(0, 4, 3), within(rng, 3, 4)


def signs(rng, options):
    return rng.integers(0, 2, (3, 4)), reals(rng, 3, 4)


def one_hot(rng, options):
    return np.eye(4, dtype="float32")[rng.integers(0, 4, 3)], reals(rng, 3, 4)


def distributions(rng, options):
    return shares(rng, 3, 4), shares(rng, 3, 4)


def regions(rng, options):
    return rng.integers(0, 2, (2, 3, 4)), within(rng, 2, 3, 4)


def embedded(rng, options):
    x = reals(rng, 6, 3)
    return np.array([0, 1, 0, 2, 2, 1]), x / np.linalg.norm(x, axis=-1, keepdims=True)


def aligned(rng, options):
    labels = rng.integers(1, 5, (3, 4))
    labels[1, 2:] = 0
    labels[2, :] = 0
    return labels, reals(rng, 3, 9, 5)


class Case(NamedTuple):
    """A function and its class, inputs where keras is right, and the values that each option takes."""

    function: str
    of: str
    inputs: Callable[..., Any]
    options: dict[str, list[Any]] = {}  # noqa: RUF012


LOGITS = {"from_logits": [False, True], "label_smoothing": [0.0, 0.2]}
CASES = [
    Case("mean_squared_error", "MeanSquaredError", regression),
    Case("mean_absolute_error", "MeanAbsoluteError", regression),
    Case("mean_absolute_percentage_error", "MeanAbsolutePercentageError", regression),
    Case("mean_squared_logarithmic_error", "MeanSquaredLogarithmicError", positive),
    Case("cosine_similarity", "CosineSimilarity", regression, {"axis": [-1, 0]}),
    Case("log_cosh", "LogCosh", regression),
    Case("huber", "Huber", regression, {"delta": [1.0, 0.4]}),
    Case("poisson", "Poisson", counts),
    Case("kl_divergence", "KLDivergence", distributions),
    Case("binary_crossentropy", "BinaryCrossentropy", yes_or_no, {**LOGITS, "axis": [-1, 0]}),
    Case(
        "binary_focal_crossentropy",
        "BinaryFocalCrossentropy",
        yes_or_no,
        {**LOGITS, "axis": [0, -1], "apply_class_balancing": [True, False], "alpha": [0.25, 0.7], "gamma": [2.0, 1.5]},
    ),
    Case("categorical_crossentropy", "CategoricalCrossentropy", one_of_four, {**LOGITS, "axis": [0, -1]}),
    Case(
        "categorical_focal_crossentropy",
        "CategoricalFocalCrossentropy",
        one_of_four,
        {**LOGITS, "axis": [-1, 0], "alpha": [0.25, [0.1, 0.2, 0.3, 0.4]], "gamma": [2.0, 1.5]},
    ),
    Case(
        "sparse_categorical_crossentropy",
        "SparseCategoricalCrossentropy",
        labelled,
        {"from_logits": [False, True], "ignore_class": [-1, None, 255], "axis": [-1, 1]},
    ),
    Case(
        "categorical_generalized_cross_entropy",
        "CategoricalGeneralizedCrossEntropy",
        labels_of_rows,
        {"q": [0.5, 0.7]},
    ),
    Case("hinge", "Hinge", signs),
    Case("squared_hinge", "SquaredHinge", signs),
    Case("categorical_hinge", "CategoricalHinge", one_hot),
    Case("dice", "Dice", regions, {"axis": [None, (1, 2)]}),
    Case("tversky", "Tversky", regions, {"alpha": [0.5, 0.3], "beta": [0.5, 0.9], "axis": [(1, 2), None]}),
    Case("circle", "Circle", embedded, {"gamma": [80.0, 8.0], "margin": [0.4, 0.25], "remove_diagonal": [True, False]}),
    Case("ctc", "CTC", aligned),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.function)


def settings(case, seed):
    """Sets of options in which each option takes each of its values, in an order of its own."""
    rng = np.random.default_rng(seed)
    many = max((len(values) for values in case.options.values()), default=1)
    orders = {name: [values[i % len(values)] for i in rng.permutation(many)] for name, values in case.options.items()}
    return [{name: order[i] for name, order in orders.items()} for i in range(many)]


def swapped(theirs):
    """Whether this keras weighs false negatives by alpha (3.15.1 does, against its documentation)."""
    return float(theirs.tversky(jnp.ones(1), jnp.full(1, 0.5), alpha=0.0, beta=1.0)) < 0.25


def for_keras(theirs, case, options):
    """The same options in keras's words, and a function that arranges the predictions for it."""
    options = dict(options)
    arrange = lambda y_pred: y_pred  # noqa: E731
    if case.function == "sparse_categorical_crossentropy":
        axis = options.pop("axis")
        arrange = lambda y_pred: jnp.moveaxis(y_pred, axis, -1)  # noqa: E731
    if case.function == "tversky" and swapped(theirs):
        options["alpha"], options["beta"] = options["beta"], options["alpha"]
    if isinstance(options.get("alpha"), list) and options["axis"] == 0:
        options["alpha"] = np.float32(options["alpha"])[:, None]
    return options, arrange


def close(got, due, rtol=2e-5):
    got, due = np.asarray(got), np.asarray(due)
    assert got.shape == due.shape
    assert np.all(np.isfinite(due))
    np.testing.assert_allclose(got, due, rtol=rtol, atol=rtol * float(np.max(np.abs(due), initial=1e-3)))


# --- Beside keras -------------------------------------------------------------------------------------------------


def test_every_name_is_here(theirs):
    names = {name for name in dir(theirs) if not name.startswith("_") and callable(getattr(theirs, name))}
    if sys.modules["keras"].__version__.startswith("3.15"):  # a later one may have more
        assert names - {"serialize", "deserialize"} <= set(ours.__all__)
    assert {case.function for case in CASES} | {case.of for case in CASES} | {"Loss", "get"} == set(ours.__all__)
    told = {name: getattr(ours, name).__doc__ for name in ours.__all__}
    native = {word for text in told.values() for word in re.findall(r"`jaxloss\.(\w+)`", text)}
    assert len(native) > 20
    assert not [word for word in native if not hasattr(jl, word)]
    assert not [name for name in (case.of for case in CASES) if "jaxloss." not in told[name]]


def test_signatures(theirs):
    if not sys.modules["keras"].__version__.startswith("3.15"):
        pytest.skip("the arguments are those of keras 3.15")
    for name in set(ours.__all__) & set(dir(theirs)):
        mine, due = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
        assert list(mine) == list(due), name
        for argument in due:
            assert (mine[argument].kind, mine[argument].default) == (due[argument].kind, due[argument].default), name


def total(function, p):
    """A sum in which each value has a weight of its own, and the values."""
    value = function(p)
    return jnp.sum(jnp.cos(jnp.arange(value.size)) * value.ravel()), value


def assert_same_as_keras(theirs, case, seed):
    """Value and gradient of the function in every setting; compiled, because keras has many operations."""
    rng = np.random.default_rng(seed)
    for options in settings(case, seed):
        y_true, y_pred = case.inputs(rng, options)
        their_options, arrange = for_keras(theirs, case, options)

        mine = functools.partial(getattr(ours, case.function), y_true, **options)
        due = functools.partial(getattr(theirs, case.function), y_true, **their_options)
        found = [
            jax.jit(jax.value_and_grad(functools.partial(total, function), has_aux=True))(jnp.asarray(y_pred))
            for function in (mine, lambda p, due=due, arrange=arrange: due(arrange(p)))
        ]
        close(found[0][0][1], found[1][0][1])
        close(found[0][1], found[1][1])


@pytest.mark.exhaustive
@every_case
def test_functions_are_those_of_keras(theirs, case):
    assert_same_as_keras(theirs, case, 0)


@pytest.mark.exhaustive
@every_case
def test_functions_are_those_of_keras_over_seeds(theirs, case):
    for seed in range(1, 4):
        assert_same_as_keras(theirs, case, seed)


def weights_of(rng, shape):
    """Sample weights of each rank that keras takes against losses of a shape."""
    yield None
    yield np.float32(1.5)
    if shape:
        yield rng.uniform(0, 2, shape)
        yield (
            rng.uniform(0, 2, (shape[0], *[1] * (len(shape) - 1))) if len(shape) > 1 else rng.uniform(0, 2, (*shape, 1))
        )
        yield rng.uniform(0, 2, (*shape, 1))


def assert_class_same_as_keras(theirs, case, seed, every):
    rng = np.random.default_rng(seed)
    reductions = itertools.cycle(np.roll(np.array(REDUCTIONS, object), seed + CASES.index(case)))
    for options in settings(case, seed) if every else settings(case, seed)[:1]:
        y_true, y_pred = case.inputs(rng, options)
        their_options, arrange = for_keras(theirs, case, options)
        shape = jax.eval_shape(lambda o=options, y=y_true, p=y_pred: getattr(ours, case.function)(y, p, **o)).shape
        weights = list(weights_of(rng, shape))
        for weight in weights if every else weights[-1:]:
            reduction = next(reductions)
            mine = getattr(ours, case.of)(**options, reduction=reduction)
            due = getattr(theirs, case.of)(**their_options, reduction=reduction)
            got = jax.jit(mine)(y_true, y_pred, sample_weight=weight)
            close(got, jax.jit(due)(y_true, arrange(y_pred), sample_weight=weight))
            assert got.dtype == jnp.float32
        assert mine.name == due.name
        config, theirs_has = mine.get_config(), due.get_config()
        assert set(theirs_has) <= set(config) == set(inspect.signature(type(mine)).parameters)
        assert all(theirs_has[key] == config[key] for key in theirs_has if options.get(key) == their_options.get(key))
        again = type(mine).from_config(config)
        assert type(again) is type(mine)
        assert again.get_config() == config


@pytest.mark.exhaustive
@every_case
def test_classes_are_those_of_keras(theirs, case):
    assert_class_same_as_keras(theirs, case, 0, every=False)


@pytest.mark.exhaustive
@every_case
def test_classes_are_those_of_keras_in_every_setting(theirs, case):
    assert_class_same_as_keras(theirs, case, 1, every=True)


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [((3,), (3, 1)), ((3, 1), (3,)), ((2, 3), (2, 3, 1)), ((2, 3, 1), (2, 3)), ((3, 1), (3, 4)), ((4,), (3, 4))],
)
def test_shapes_meet_as_in_keras(theirs, truth, prediction):
    rng = np.random.default_rng(0)
    y_true, y_pred, weight = reals(rng, *truth), reals(rng, *prediction), np.float32([1, 2, 4])[: truth[0]]
    close(ours.mean_squared_error(y_true, y_pred), theirs.mean_squared_error(y_true, y_pred))
    if truth[0] == 3:
        each = ours.MeanSquaredError(reduction=None), theirs.MeanSquaredError(reduction=None)
        close(*(loss(y_true, y_pred, sample_weight=weight) for loss in each))


# --- Reductions ---------------------------------------------------------------------------------------------------


def reduced(values, weight, reduction, exists=None):
    """What keras's documentation says, for a weight of the values' rank: a mask is taken into the weight."""
    count = values.size if exists is None else exists.sum()
    if exists is not None:
        weight = exists if weight is None else weight * exists
    total = values if weight is None else values * weight
    if reduction in (None, "none"):
        return total
    if reduction == "sum":
        return total.sum()
    if reduction == "mean_with_sample_weight" and weight is not None:
        count = weight.sum()
    return total.sum() / count if count else 0.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(reduction):
    rng = np.random.default_rng(0)
    y_true, y_pred = reals(rng, 2, 3, 4), reals(rng, 2, 3, 4)
    loss = ours.MeanSquaredError(reduction=reduction)
    values = np.mean(np.square(np.float64(y_pred) - y_true), axis=-1)
    for weight in (None, rng.uniform(0, 2, (2, 3)), rng.uniform(0, 2, (2, 1)), np.zeros((2, 3)), np.float64(3)):
        with np.errstate(all="ignore"):
            close(loss(y_true, y_pred, sample_weight=weight), reduced(values, weight, reduction))
    with pytest.raises(ValueError, match=r"`sample_weight` \[2\] must broadcast against the losses \[2, 3\]"):
        loss(y_true, y_pred, sample_weight=np.ones(2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_over_what_exists(reduction):
    rng = np.random.default_rng(0)
    labels = np.array([[0, 9, 2], [9, 1, 1]])
    logits = np.where((labels == 9)[..., None], np.nan, reals(rng, 2, 3, 4))
    loss = ours.SparseCategoricalCrossentropy(from_logits=True, ignore_class=9, reduction=reduction)
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.minimum(labels, 3)[..., None], -1)[..., 0]
    values, exists = np.where(labels == 9, 0, each), labels != 9
    for weight in (None, rng.uniform(0, 2, (2, 3)), rng.uniform(0, 2, (2, 1))):
        close(loss(labels, logits, sample_weight=weight), reduced(values, weight, reduction, exists))
        gradient = jax.grad(lambda z, w=weight: jnp.sum(loss(labels, z, sample_weight=w)))(jnp.asarray(logits))
        assert np.all(np.isfinite(gradient))
        assert np.all(np.any(gradient != 0, axis=-1) == exists)
    assert np.all(np.asarray(loss(np.full((2, 3), 9), logits)) == 0)


def test_circle_counts_rows_that_have_a_loss(theirs):
    labels, rows, weight = np.array([0, 1, 2, 0]), np.eye(4, dtype="float32"), np.float32([[1], [2], [3], [4]])
    each = value(functools.partial(ours.circle, labels), rows)
    assert list(each > 0) == [True, False, False, True]
    found = (jax.jit(module.Circle())(labels, rows, weight) for module in (ours, theirs))
    close(*found)
    close(value(functools.partial(ours.Circle(), labels), rows), (each[0] + each[3]) / 2)
    others = np.roll(np.eye(4, dtype="float32"), 1, axis=0)
    of = {"ref_labels": labels[::-1].copy(), "ref_embeddings": others, "remove_diagonal": False, "gamma": 8}
    close(*(value(functools.partial(module.circle, labels, **of), rows) for module in (ours, theirs)))


# --- Names, dtypes, losses of one's own ---------------------------------------------------------------------------


def test_losses_by_name(theirs):
    for name in ("mse", "MSE", "mae", "bce", "kld", "KLD", "mape", "msle", "huber", "sparse_categorical_crossentropy"):
        assert ours.get(name) is getattr(ours, theirs.get(name).__name__)
    assert isinstance(ours.get("Huber"), ours.Huber)
    assert isinstance(ours.get(ours.Dice), ours.Dice)
    assert ours.get(None) is None
    assert ours.get(ours.hinge) is ours.hinge
    with pytest.raises(ValueError, match="no loss is called 'mze'"):
        ours.get("mze")


def test_a_loss_of_ones_own(theirs):
    def call(self, y_true, y_pred):
        return jnp.max(jnp.abs(y_true - y_pred), axis=-1)

    mine, due = (type("LargestError", (base,), {"call": call}) for base in (ours.Loss, theirs.Loss))
    y_true, y_pred, weight = np.arange(6).reshape(2, 3), reals(np.random.default_rng(0), 2, 3), np.array([1, 3])
    for reduction in REDUCTIONS:
        of = {"reduction": reduction}
        close(mine(**of)(y_true, y_pred, sample_weight=weight), due(**of)(y_true, y_pred, sample_weight=weight))
    assert mine().name == "largest_error"
    assert ours.Huber(delta=2.0).delta == 2.0
    assert ours.Huber(reduction=None).call(y_true, y_pred).shape == (2,)
    assert ours.SparseCategoricalCrossentropy(ignore_class=0).call(np.array([0, 1]), np.full((2, 2), 0.5)).shape == (2,)
    with pytest.raises(NotImplementedError, match="Loss must define"):
        ours.Loss()(y_true, y_pred)
    with pytest.raises(ValueError, match="`reduction` must be one of"):
        ours.Huber(reduction="average")
    with pytest.raises(ValueError, match="`dtype` must be floating"):
        ours.Huber(dtype="int32")
    with pytest.raises(ValueError, match="`q` must lie in"):
        ours.CategoricalGeneralizedCrossEntropy(q=1)
    with pytest.raises(ValueError, match="must have one shape"):
        ours.binary_crossentropy(np.zeros((3,)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="`axis` must be one of"):
        ours.categorical_crossentropy(np.zeros((3, 2)), np.zeros((3, 2)), axis=True)
    with pytest.warns(SyntaxWarning, match="of one class"):
        ours.categorical_crossentropy(np.ones((3, 1)), np.ones((3, 1)))


class Policy(NamedTuple):
    compute_dtype: str


def test_the_dtype_is_that_of_the_result():
    y_true, y_pred = np.zeros(1000), np.full(1000, 1.0018, "float32")
    for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"), Policy("bfloat16")):
        loss = ours.MeanSquaredError(dtype=dtype, reduction="sum")
        assert loss.dtype == "bfloat16"
        got = loss(y_true[:, None], y_pred[:, None])
        assert got.dtype == jnp.bfloat16
        assert float(got) == float(jnp.bfloat16(1003.6))  # each of them is 1 in bfloat16
    half = y_pred.astype(jnp.bfloat16)
    assert ours.MeanSquaredError()(y_true, half).dtype == jnp.float32
    assert ours.mean_squared_error(y_true, half).dtype == jnp.float32
    with jax.enable_x64(True):
        assert ours.MeanSquaredError()(y_true, np.ones(1000)).dtype == jnp.float32
        x = np.float32(0.1)
        assert float(ours.MeanSquaredError(dtype="float64")(np.zeros(1), x[None])) == np.float64(x) ** 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_case
def test_half_precision_predictions(case, dtype):
    options = settings(case, 0)[-1]
    y_true, y_pred = case.inputs(np.random.default_rng(0), options)
    half, function = jnp.asarray(y_pred, dtype), functools.partial(getattr(ours, case.function), y_true, **options)
    got = jax.jit(function)(half)
    assert got.dtype == jnp.float32
    close(got, jax.jit(function)(half.astype(jnp.float32)), 1e-4)
    assert jax.grad(lambda p: jnp.sum(function(p)))(half).dtype == half.dtype


def test_importing_does_not_import_keras():
    probe = "import sys, jaxloss.compat.keras; print({'keras', 'tensorflow', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "KERAS_BACKEND": "none of this kind"}
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "set()"


# --- Differences --------------------------------------------------------------------------------------------------


def slope(function, x):
    return np.asarray(jax.jit(jax.grad(lambda p: jnp.sum(function(p))))(jnp.asarray(x, jnp.float32)))


def value(function, x):
    return np.asarray(jax.jit(function)(jnp.asarray(x, jnp.float32)))


def near(got, due, rtol=1e-6):
    np.testing.assert_allclose(np.asarray(got, np.float64), due, rtol=rtol, atol=0)


LEAST, ROUNDED_TO_ONE = 126 * np.log(2), 25 * np.log(2)


def test_binary_probabilities_beyond_the_clip_of_keras():
    def loss(p, t=1.0, **options):
        return ours.binary_crossentropy(jnp.full(jnp.shape(p), t), p, axis=(), **options)

    p = np.float32([1e-37, 1e-20, 1e-8])
    near(loss(p), -np.log(np.float64(p)))
    near(slope(loss, p), -1 / np.float64(p))
    ends = np.float32([0, 1, -0.5, 1.5])
    near(loss(ends), [LEAST, 0, LEAST, 0])
    near(loss(ends, 0.0), [0, ROUNDED_TO_ONE, 0, ROUNDED_TO_ONE])
    near(loss(ends, 0.25), [LEAST / 4, ROUNDED_TO_ONE * 0.75, LEAST / 4, ROUNDED_TO_ONE * 0.75])
    for t in (0.0, 0.25, 1.0):
        assert np.all(slope(functools.partial(loss, t=t), ends) == 0)
    assert np.isnan(loss(np.float32([np.nan]))).all()
    assert np.isnan(slope(loss, np.float32([np.nan]))).all()
    # A sigmoid that is sure and wrong: finite, and p - t until it underflows.
    near(slope(lambda x: loss(jax.nn.sigmoid(x)), [-85, -40, -20]), [-1, -1, -1])
    assert np.all(np.isfinite(slope(lambda x: loss(jax.nn.sigmoid(x)) + loss(jax.nn.sigmoid(x), 0.0), [-300, 300, 17])))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_probabilities_beyond_the_clip_of_keras(gamma):
    def loss(p, t=1.0):
        return ours.binary_focal_crossentropy(jnp.full(jnp.shape(p), t), p, gamma=gamma, axis=())

    p = np.float32([1e-30, 1e-8])
    near(loss(p), -np.log(np.float64(p)))
    near(slope(loss, p), -1 / np.float64(p))
    ends = np.float32([0, 1])
    near(loss(ends), [LEAST, 0])
    near(loss(ends, 0.0), [0, ROUNDED_TO_ONE])
    near(loss(ends, 0.25), [0.25 ** (gamma + 1) * LEAST, 0.75 ** (gamma + 1) * ROUNDED_TO_ONE])
    assert np.all(slope(loss, ends) == 0)
    assert np.all(np.isfinite(slope(lambda x: loss(jax.nn.sigmoid(x)), [-300, -88, 17, 300])))


def test_focal_losses_of_logits_come_from_logits():
    x = np.float32([-500.0, -60.0, 5.6, 88.0, 500.0])
    for gamma in (0.5, 2.0):

        def loss(x, gamma=gamma):
            return ours.binary_focal_crossentropy(jnp.ones(x.shape), x, gamma=gamma, from_logits=True, axis=())

        def several(x, gamma=gamma):
            z = jnp.stack([x, jnp.zeros_like(x), jnp.full_like(x, -jnp.inf)], axis=-1)
            target = jnp.broadcast_to(jnp.eye(3)[0], z.shape)
            return ours.categorical_focal_crossentropy(target, z, alpha=1.0, gamma=gamma, from_logits=True)

        truth = [mp.log(1 + mp.exp(-mp.mpf(float(a)))) for a in x]
        due = np.float64([float((1 - mp.exp(-v)) ** gamma * v) for v in truth])
        for function in (loss, several):
            np.testing.assert_allclose(value(function, x), due, rtol=2e-6, atol=1e-37)
            got = slope(function, x)
            assert np.all(np.isfinite(got))
            near(got[:2], [-1, -1])
        assert np.isfinite(jax.jit(loss)(jnp.asarray(x, jnp.bfloat16))).all()


def test_class_probabilities_beyond_the_clip_of_keras():
    p = np.float32([[1e-30, 1, 0], [1, 1e-30, 0], [0, 1, 0], [1e-30, 1e-30, 0]])
    first = jnp.eye(3)[jnp.zeros(4, int)]
    due = [30 * np.log(10), 1e-30, LEAST, np.log(2)]

    def soft(p):
        return ours.categorical_crossentropy(first, p)

    def hard(p):
        return ours.sparse_categorical_crossentropy(np.zeros(4, int), p)

    for function in (soft, hard):
        near(value(function, p), due)
        near(slope(function, p)[[0, 1, 3]], [[-1e30, 1, 1], [-1e-30, 1, 1], [-5e29, 5e29, 5e29]])
        assert np.isnan(value(function, np.zeros((4, 3)))).all()  # no distribution
        # towards the logits p - t, where keras has 0; finite where the softmax underflows
        of_logits = slope(
            lambda z, f=function: f(jax.nn.softmax(z)), [[-40, 0, -9], [-80, 0, -9], [-300, 0, 0], [300, 0, 0]]
        )
        near(of_logits[:2, 0], [-1, -1])
        assert np.all(np.isfinite(of_logits))
    focal = functools.partial(ours.categorical_focal_crossentropy, first, alpha=1.0, gamma=0.5)
    near(value(focal, p), [due[0], 0, LEAST, np.log(2) * np.sqrt(0.5)])
    assert np.all(np.isfinite(slope(focal, p)))
    power = functools.partial(ours.categorical_generalized_cross_entropy, np.zeros((4, 1), int), q=0.5)
    near(value(power, p), [2, 0, 2, 2])
    near(slope(power, p), [[-1e15, 0, 0], [-1, 0, 0], [0, 0, 0], [-1e15, 0, 0]])


def test_divergence_has_no_term_without_a_target():
    t, p = np.float32([[0, 1, 0]]), np.float32([[0.01, 0.98, 0.01]])
    near(ours.kl_divergence(t, p), [-np.log(np.float64(p[0, 1]))])
    near(slope(lambda p: ours.kl_divergence(t, p), p), [[0, -1 / np.float64(p[0, 1]), 0]])
    near(ours.kl_divergence(np.float32([[1, 0]]), np.float32([[0, 1]])), [LEAST])
    assert np.all(slope(lambda p: ours.kl_divergence(np.float32([[1, 0]]), p), np.float32([[0, 1]])) == 0)
    near(ours.kl_divergence(np.float32([[2, -1]]), np.float32([[0.5, 0.5]])), [np.log(2)])


def test_rates_near_zero():
    t, p = np.float32([[0, 2, 3, 2]]), np.float32([[1e-6, 1e-6, 0, 1e-30]])
    rate = functools.partial(ours.poisson, t)
    near(rate(p), [(0 + 2 * 6 * np.log(10) + 3 * LEAST + 2 * 30 * np.log(10)) / 4])
    near(4 * slope(rate, p), [[1, 1 - 2e6, 1 - 3e7, -2e30]])
    assert np.isnan(ours.poisson(np.float32([1]), np.float32([-1])))
    assert np.isnan(slope(functools.partial(ours.poisson, np.float32([1])), [-1])).all()
    assert ours.poisson(np.float32([0]), np.float32([0])) == 0


def test_regions_without_an_epsilon():
    t, p = np.float32([1, 0]), np.float32([1 - 2**-24, 0])
    near(ours.dice(t, p), 2**-24 / (2 - 2**-24))
    near(ours.dice(t * 1e-9, p * 1e-9), 1 - 2e-9, 1e-6)
    assert ours.dice(np.zeros(2), np.zeros(2)) == 1
    assert np.all(slope(lambda p: ours.dice(np.zeros(2), p), [0, 0]) == 0)
    # documented: alpha for false positives
    near(ours.tversky(np.float32([1, 0]), np.float32([1, 0.5]), alpha=1.0, beta=0.0), 1 / 3)
    near(ours.tversky(np.float32([1, 0]), np.float32([0.5, 0]), alpha=0.0, beta=1.0), 1 / 2)


def test_slopes_at_ties():
    x = np.float32([1, -2])
    for function in (ours.mean_absolute_error, ours.mean_absolute_percentage_error):
        assert np.all(slope(functools.partial(function, x), x) == 0)
    for function in (ours.hinge, ours.squared_hinge):
        assert np.all(slope(functools.partial(function, np.float32([1, -1])), [1, -1]) == 0)
    assert np.all(slope(functools.partial(ours.categorical_hinge, np.float32([1, 0])), [2, 1]) == 0)
    # documented: what is 0 or negative counts as 1e-7
    logarithmic = functools.partial(ours.mean_squared_logarithmic_error, np.float32([1, 1]))
    near(logarithmic(np.float32([0, -3])), np.log(2 / (1 + 1e-7)) ** 2)
    assert np.all(slope(logarithmic, [0, -3]) == 0)


def test_extreme_errors():
    zero = np.float32([0])
    near(ours.log_cosh(zero, np.float32([1.5e-8])), 0.5 * np.float64(np.float32(1.5e-8)) ** 2)
    near(slope(functools.partial(ours.log_cosh, zero), [1.5e-8]), [1.5e-8])
    near(ours.log_cosh(zero, np.float32([3e38])), 3e38)
    near(slope(functools.partial(ours.huber, zero), [3e38]), [1])
    for size in (1e-30, 1e-10, 1, 1e30):
        near(ours.cosine_similarity(np.float32([1, 0]), np.float32([3 * size, 4 * size])), -0.6)
    assert ours.cosine_similarity(np.float32([1, 0]), np.zeros(2, "float32")) == 0
    assert np.all(slope(functools.partial(ours.cosine_similarity, np.float32([1, 0])), [0, 0]) == 0)
    assert ours.mean_absolute_percentage_error(np.float32([0]), np.float32([1e-3])) == 1e6  # documented: max(|t|, 1e-7)


def test_bad_labels_are_not_silent():
    p, labels = np.full((3, 4), 0.25, "float32"), np.array([0, -1, 4])
    for loss in (
        ours.sparse_categorical_crossentropy,
        functools.partial(ours.sparse_categorical_crossentropy, from_logits=True),
        functools.partial(ours.categorical_generalized_cross_entropy, q=0.5),
    ):
        assert list(np.isnan(loss(labels, p))) == [False, True, True]
        assert list(np.isnan(slope(functools.partial(loss, labels), p)).any(-1)) == [False, True, True]
    wide = np.eye(300, dtype="float32")[[257]] * 9
    loss = ours.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")
    assert loss(np.array([257]), wide) < 0.1
    near(loss(np.array([257.0]), wide), float(loss(np.array([257]), wide)))


def test_smoothing_and_balance_run_along_the_axis():
    rng = np.random.default_rng(0)
    y_true, z = shares(rng, 3, 5), reals(rng, 3, 5)
    for function, options in (
        (ours.categorical_crossentropy, {}),
        (ours.categorical_focal_crossentropy, {"alpha": [0.1, 0.2, 0.3, 0.4, 0.5]}),
    ):
        options = {**options, "from_logits": True, "label_smoothing": 0.3}
        close(function(y_true.T, z.T, axis=0, **options), function(y_true, z, **options))


def test_alignments_that_do_not_exist():
    z = jnp.asarray(reals(np.random.default_rng(0), 2, 3, 4))
    labels = np.array([[1, 1, 1], [1, 2, 0]])
    each = ours.ctc(labels, z)
    assert list(np.isposinf(each)) == [True, False]
    gradient = slope(functools.partial(ours.ctc, labels), z)
    assert np.all(gradient[0] == 0)
    assert np.all(np.isfinite(gradient))
    assert np.isnan(ours.ctc(np.array([[0, 1, 2]]), z[:1])).all()
    with pytest.raises(ValueError, match=r"`y_true` must be labels \[N, S\]"):
        ours.ctc(labels[0], z)
    with pytest.raises(ValueError, match=r"`y_pred` must be logits \[N, T, V\]"):
        ours.ctc(labels, z[0])


def test_an_empty_batch_has_mean_zero():
    for reduction in REDUCTIONS[:4]:
        assert ours.MeanSquaredError(reduction=reduction)(np.zeros((0, 3)), np.zeros((0, 3))) == 0


@pytest.mark.exhaustive
def test_what_the_docstring_says_of_keras(theirs):
    """The figures of keras, as long as it is the keras of which they are told."""
    if not sys.modules["keras"].__version__.startswith("3.15"):
        pytest.skip("told of keras 3.15")
    one, zero = jnp.ones(1), jnp.zeros(1)
    near(theirs.binary_crossentropy(one, one), 1.2e-7, 0.02)
    sure_and_wrong = functools.partial(theirs.binary_crossentropy, one)
    near(sure_and_wrong(jnp.full(1, 1e-20)), 16.118, 1e-4)
    assert slope(sure_and_wrong, [1e-20]) == 0
    near(theirs.kl_divergence(jnp.array([0.0, 0.99]), jnp.array([0.01, 0.99])), -1.15e-6, 0.02)
    near(slope(functools.partial(theirs.poisson, one), [1e-6]), 1 - 1e6 / 1.1, 1e-3)
    power = functools.partial(theirs.categorical_generalized_cross_entropy, np.zeros(1, int), q=0.5)
    assert np.isneginf(slope(power, [[0, 1]])[0, 0])
    assert theirs.categorical_generalized_cross_entropy(np.zeros((3, 1), int), jnp.ones((3, 2)), 0.5).shape == (3, 3)
    focal = functools.partial(theirs.binary_focal_crossentropy, one, from_logits=True)
    near(focal(jnp.full(1, -20.0)), 16.118, 1e-4)
    assert abs(slope(focal, [-20])) < 1e-7
    assert np.isnan(slope(functools.partial(focal, gamma=0.5), [20]))
    assert np.isnan(focal(jnp.full(1, 6, jnp.bfloat16)))
    assert theirs.dice(zero, zero) == 1
    assert slope(functools.partial(theirs.mean_absolute_error, one), [1]) == -1
    assert slope(functools.partial(theirs.hinge, one), [1]) == -0.5
    near(theirs.log_cosh(zero, jnp.full(1, -1.5e-8)), 5.96e-8, 0.01)
    assert np.isposinf(theirs.log_cosh(zero, jnp.full(1, -3e38)))
    assert np.isnan(jax.grad(lambda p: theirs.huber(zero, p))(jnp.full(1, 3e38)))
    axis = jnp.array([1.0, 0.0])
    assert abs(float(theirs.cosine_similarity(axis, jnp.array([3e-9, 4e-9])))) < 0.1
    assert theirs.cosine_similarity(axis, jnp.array([3e20, 4e20])) == 0
    assert np.isnan(slope(functools.partial(theirs.cosine_similarity, axis), [0, 0])).all()
    assert theirs.sparse_categorical_crossentropy(np.array([-1]), jnp.full((1, 4), 0.25)) == 0
    wide = jnp.eye(300)[jnp.array([257])] * 9
    assert theirs.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")(np.array([257]), wide) > 5
    with pytest.raises(ValueError, match="same shape"):
        theirs.sparse_categorical_crossentropy(np.zeros((2, 3), int), jnp.ones((2, 4, 3)), axis=1)
    infeasible = functools.partial(theirs.ctc, np.array([[1, 1, 1]]))
    near(infeasible(jnp.zeros((1, 3, 4))), 1e5, 1e-3)
    assert np.any(slope(infeasible, np.zeros((1, 3, 4))) != 0)
    assert theirs.MeanSquaredError()(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    assert theirs.mean_squared_error(jnp.ones(2), jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16
    assert swapped(theirs)


# --- Derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@every_case
def test_both_modes_and_second_derivatives(case):
    options = settings(case, 0)[0]
    y_true, y_pred = case.inputs(np.random.default_rng(0), options)

    def total(p):
        return jnp.sum(getattr(ours, case.function)(y_true, p, **options))

    forward, reverse, second = jax.jit(
        lambda p: (jax.jacfwd(total)(p), jax.grad(total)(p), jax.jacfwd(jax.grad(total))(p))
    )(jnp.asarray(y_pred))
    close(forward, reverse)
    assert np.all(np.isfinite(second))
    size = y_pred.size
    close(second.reshape(size, size), second.reshape(size, size).T, 1e-4)
