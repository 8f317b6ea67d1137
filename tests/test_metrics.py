"""`jl.metrics` is scikit-learn's, on rows of any layout, and merges: over batches, scans, devices, training steps."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.calibration
import sklearn.metrics as sk
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from metric_truths import EXACT, FEW, METRICS, M, compare, draw, measured, on_device, tail, truths

import jaxloss as jl
from jaxloss.core.compiled import domains, static_options
from jaxloss.metrics.tallies import Total, summed

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 48
FUNCTIONS = [f for _, f in inspect.getmembers(M, inspect.isfunction) if f is not M.merge_over]


@functools.cache
def all_of_them():
    return jax.jit(measured)


def few(data):
    return measured(data, names=FEW)


def joined(first, second):
    return {name: first[name].merge(second[name]) for name in first}


def batches(data, count):
    return [{name: x[i::count] for name, x in data.items()} for i in range(count)]


@pytest.mark.parametrize("seed", range(2))
def test_the_truth(seed):
    data = draw(ROWS, seed)
    where, weights = tail(ROWS, seed)
    compare(all_of_them()(data, where, weights), truths(data, where, weights))
    compare(all_of_them()(data, where, np.ones_like(weights)), truths(data, where))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "where"])
def test_what_counts_once_is_an_integer(masked):
    data = draw(ROWS)
    where = tail(ROWS)[0] if masked else None
    counted = ("confusion", "binary_confusion", "calibration", "binned_roc_auc", "r2", *EXACT)
    compare(jax.jit(functools.partial(measured, names=counted))(data, where), truths(data, where))


def test_what_is_masked_does_not_exist():
    data = draw(ROWS)
    where, weights = tail(ROWS)
    want = truths(data, where, weights)
    for name, x in data.items():
        if x.dtype == np.float32:
            x[~where] = np.nan
        elif name in ("labels", "targets"):
            x[~where] = -100
    weights[~where] = np.nan
    compare(all_of_them()(data, where, weights), want)


def test_batches_merge_and_zeros_are_neutral():
    data = draw(ROWS)
    where, weights = tail(ROWS)
    of_batch = jax.jit(functools.partial(measured, names=FEW))
    parts = [
        of_batch(part, part.pop("where"), part.pop("weights"))
        for part in batches({**data, "where": where, "weights": weights}, 4)
    ]
    start = jax.tree.map(jnp.zeros_like, parts[0])
    want = truths(data, where, weights)
    compare(functools.reduce(jax.jit(joined), parts, start), want)
    # On the host, where intervals of `fit` and `evaluate` are merged.
    compare(functools.reduce(joined, jax.device_get(parts[::-1])), want)


@pytest.mark.exhaustive
def test_under_vmap():
    data = draw(ROWS)
    stacked = {name: x.reshape(2, -1, *x.shape[1:]) for name, x in data.items()}
    of_each = jax.vmap(lambda part: {name: m.value for name, m in measured(part, names=(*FEW, "roc_auc")).items()})
    found = jax.jit(of_each)(stacked)
    for i in range(2):
        want = truths({name: x[i] for name, x in stacked.items()})
        for name in found:
            np.testing.assert_allclose(found[name][i], want[name], rtol=2e-6, atol=2e-7, err_msg=name)


every = pytest.mark.parametrize(
    "names", [(*FEW, "roc_auc"), pytest.param(tuple(METRICS), marks=pytest.mark.exhaustive)], ids=["few", "all"]
)


@pytest.mark.exhaustive
@every
@pytest.mark.parametrize(
    "kind", [pytest.param(AxisType.Auto, marks=pytest.mark.exhaustive), AxisType.Explicit], ids=["auto", "explicit"]
)
def test_sharded_rows(kind, names, devices):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    data = draw(ROWS)
    where, weights = tail(ROWS)
    with jax.set_mesh(mesh):
        placed = jax.device_put((on_device(data), where, weights), NamedSharding(mesh, P("data")))
        found = jax.jit(functools.partial(measured, names=names))(*placed)
        compare(jax.device_get(found), truths(data, where, weights))


@pytest.mark.exhaustive
@every
def test_inside_shard_map(names, devices):
    axes = ("hosts", "data")
    mesh = jax.make_mesh((2, 2), axes, axis_types=(AxisType.Auto,) * 2)
    data = draw(ROWS)
    where, weights = tail(ROWS)

    def local(data, where, weights):
        found = measured(data, where, weights, names=names, axis_name=axes)
        exact = {name: found.pop(name) for name in EXACT if name in found}
        return M.merge_over(found, axes), exact

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P(axes), out_specs=P(), check_vma=True)
    merged, exact = jax.jit(mapped)(on_device(data), where, weights)
    compare({**merged, **exact}, truths(data, where, weights))


def test_exact_areas_refuse_hidden_rows(devices):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    data = draw(ROWS)
    args = (data["scores"], data["targets"])

    def local(axis_name):
        def f(s, t):
            return M.roc_auc(s, t, axis_name=axis_name).value[None]

        return jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(*args)

    with pytest.raises(ValueError, match=r"axis_name='data'.*axis_name=\(\)"):
        local(None)
    quarters = [sk.roc_auc_score(t, s) for s, t in zip(*(np.split(x, 4) for x in args), strict=True)]
    np.testing.assert_allclose(local(()), quarters, rtol=1e-6)


def test_in_a_training_step_and_its_evaluation():
    data = draw(ROWS)

    def loss_fn(params, batch):
        # Metrics of what is being differentiated.
        moved = {**batch, **{k: params * batch[k] for k in ("logits", "scores", "predictions", "lists")}}
        loss = jl.squared_error(moved["predictions"], batch["observed"], reduction="partial")
        return loss, jl.Aux(metrics=few(moved))

    step = jl.make_train_step(loss_fn, optax.sgd(0.1), accumulate=4)
    state = step.init(jnp.float32(1.0))
    evaluated = jl.train.evaluate(step, state, [on_device(part) for part in batches(data, 2)])
    evaluated.pop("loss")
    compare(evaluated, truths(data))
    state, metrics = step(state, on_device(data))
    compare(metrics.aux, truths(data))


def test_exact_areas_have_no_gradient_and_no_halves():
    data = draw(ROWS)

    @jax.value_and_grad
    def f(scale):
        s = scale * data["scores"]
        return M.roc_auc(s, data["targets"]).value + M.average_precision(s, data["targets"]).value + scale

    value, slope = f(1.0)
    want = truths(data)
    np.testing.assert_allclose(value, want["roc_auc"] + want["average_precision"] + 1, rtol=1e-6)
    assert slope == 1
    whole = M.roc_auc(data["scores"], data["targets"])
    with pytest.raises(TypeError, match="binned_roc_auc, which merges"):
        whole.merge(whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_counted_in_float32(dtype):
    data = draw(ROWS)
    half = {name: x.astype(dtype) if x.dtype == np.float32 else x for name, x in data.items()}
    found = all_of_them()(half)
    # What stands in half precision is what is judged.
    compare(found, truths({name: np.asarray(x, np.float32) if x.dtype == dtype else x for name, x in half.items()}))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


@pytest.mark.exhaustive
def test_float64_stays_float64():
    data = draw(ROWS)
    with jax.enable_x64(True):
        wide = {name: x.astype(np.float64) if x.dtype == np.float32 else x for name, x in data.items()}
        wide["predictions"] = wide["predictions"] * (1 + 1e-12)
        compare(jax.jit(measured)(wide), truths(wide), rtol=1e-13)


# --- Averages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
@pytest.mark.parametrize("average", [None, "micro", "macro", "weighted"])
@pytest.mark.parametrize("seed", range(2))
def test_precision_recall_and_f_beta(average, zero_division, seed):
    # Few rows of many classes: some never predicted, some never right, some neither.
    rng = np.random.default_rng(seed)
    z, y, w = rng.normal(size=(9, 8)).astype(np.float32), rng.integers(0, 6, 9), rng.random(9).astype(np.float32)
    guess = z.argmax(axis=1)
    found = M.confusion(z, y, weights=w)
    labels = np.arange(8) if average is None else None  # a mean is over the classes that occur
    options = {"average": average, "zero_division": zero_division, "sample_weight": w, "labels": labels}
    ours = {"average": average, "zero_division": zero_division}
    np.testing.assert_allclose(found.precision(**ours), sk.precision_score(y, guess, **options), rtol=1e-5)
    np.testing.assert_allclose(found.recall(**ours), sk.recall_score(y, guess, **options), rtol=1e-5)
    for beta in (0.5, 1.0, 2.0):
        want = sk.fbeta_score(y, guess, beta=beta, **options)
        np.testing.assert_allclose(found.f_beta(beta, **ours), want, rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, sk.accuracy_score(y, guess, sample_weight=w), rtol=1e-6)


def test_binary_scores_are_those_of_yes():
    data = draw(ROWS)
    s, t = data["scores"], data["targets"]
    found, guess = M.binary_confusion(s, t), s > 0
    np.testing.assert_allclose(found.precision("binary"), sk.precision_score(t, guess), rtol=1e-6)
    np.testing.assert_allclose(found.recall("binary"), sk.recall_score(t, guess), rtol=1e-6)
    np.testing.assert_allclose(found.f_beta(2.0, "binary"), sk.fbeta_score(t, guess, beta=2), rtol=1e-6)
    with pytest.raises(ValueError, match="two classes"):
        M.confusion(data["logits"], data["labels"]).precision("binary")
    with pytest.raises(ValueError, match="`average` must be"):
        found.precision("mean")
    with pytest.raises(ValueError, match="`beta` must be > 0"):
        found.f_beta(0.0)


def test_top_k_ranks_the_lower_index_first():
    z, y = np.zeros((3, 4), np.float32), np.array([0, 1, 3])
    hits = [M.top_k_accuracy(z, y, k=k).value * 3 for k in (1, 2, 3, 4, 9)]
    np.testing.assert_allclose(hits, [1, 2, 2, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(M.accuracy(z, y).value, 1 / 3, rtol=1e-6)


def test_classes_along_another_axis_of_which_some_do_not_exist():
    data = draw(ROWS)
    z, y = data["logits"], data["labels"]
    valid = np.ones(z.shape, bool)
    valid[:, 4] = False
    options = {"axis": 0, "valid": valid.T}
    guess = z[:, :4].argmax(axis=1)
    np.testing.assert_allclose(M.accuracy(z.T, y, **options).value, sk.accuracy_score(y, guess), rtol=1e-6)
    want = sk.confusion_matrix(y, guess, labels=np.arange(5))
    np.testing.assert_array_equal(M.confusion(z.T, y, **options).value, want)
    exps = np.exp(z[:, :4].astype(np.float64))
    probabilities = exps / exps.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(M.log_loss(z.T, y, **options).value, sk.log_loss(y, probabilities), rtol=1e-6)


# --- Curves and calibration ---------------------------------------------------------------------------------------


def test_the_reliability_diagram():
    data = draw(400)
    s, t = data["scores"], data["targets"]
    yes = 1 / (1 + np.exp(-s.astype(np.float64)))
    found = M.binary_calibration(s, t, bins=10)
    outcomes, predictions = sklearn.calibration.calibration_curve(t, yes, n_bins=10)
    filled = ~np.isnan(found.outcomes)
    np.testing.assert_allclose(found.outcomes[filled], outcomes, rtol=1e-5)
    np.testing.assert_allclose(found.predictions[filled], predictions, rtol=1e-5)
    np.testing.assert_allclose(found.worst, np.abs(outcomes - predictions).max(), rtol=1e-5)


def test_edges_belong_to_the_bin_below():
    # Probabilities exactly at the edges of the bins, the first of which holds 0.
    p = np.array([0.0, 0.5, 0.5, 1.0])
    with np.errstate(divide="ignore"):
        logits = np.log(np.stack([p, 1 - p], axis=1)).astype(np.float32)
    found = M.calibration(logits, np.array([1, 1, 0, 0]), bins=4)
    np.testing.assert_array_equal(found.count.value, [0, 2, 0, 2])
    twice = M.binary_calibration(np.float32([-np.inf, 0.0, np.inf]), np.array([0, 1, 1]), bins=2)
    np.testing.assert_array_equal(twice.count.value, [2, 1])


@pytest.mark.parametrize("bits", [10, 16])
def test_the_exact_area_lies_within_the_margin(bits):
    rng = np.random.default_rng(bits)
    t = (rng.random(2000) < 0.2).astype(int)
    s = (rng.normal(0, 3, 2000) + t).astype(np.float32)
    s[:4] = [-0.0, 0.0, np.inf, -np.inf]
    parts = [M.binned_roc_auc(s[i::4], t[i::4], bits=bits) for i in range(4)]
    found = functools.reduce(lambda a, b: a.merge(b), parts)
    assert abs(found.value - sk.roc_auc_score(t, np.nan_to_num(s))) <= found.margin + 1e-6
    assert found.margin < {10: 0.2, 16: 0.005}[bits]
    assert found.margin > 0
    # What the card says: the area of the scores, rounded down to so many bits.
    raw = np.where(s == 0, 0, s).astype(np.float32).view(np.int32)
    kept = np.where(raw < 0, raw ^ 0x7FFFFFFF, raw) >> (32 - bits)
    np.testing.assert_allclose(found.value, sk.roc_auc_score(t, kept), rtol=1e-6)
    binned = M.binned_average_precision(s, t, bits=bits)
    np.testing.assert_allclose(binned.value, sk.average_precision_score(t, kept), rtol=1e-6)


def test_minus_zero_is_zero():
    found = M.binned_roc_auc(np.float32([-0.0, 0.0]), np.array([0, 1]))
    assert found.value == 0.5
    assert M.roc_auc(np.float32([-0.0, 0.0]), np.array([0, 1])).value == 0.5


def test_areas_that_are_not_defined():
    s = np.arange(3, dtype=np.float32)
    for none in (np.zeros(3, int), np.ones(3, int)):
        assert np.isnan(M.roc_auc(s, none).value)
        assert np.isnan(M.binned_roc_auc(s, none, bits=10).value)
    assert np.isnan(M.average_precision(s, np.zeros(3, int)).value)
    assert np.isnan(M.binned_average_precision(s, np.zeros(3, int), bits=10).value)
    assert M.average_precision(s, np.ones(3, int)).value == 1
    assert np.isnan(M.roc_auc(s[:0], np.zeros(0, int)).value)


def test_areas_of_many_scores(devices):
    # Compiled for use, at a size where float32 sums of counts would be off in the fourth digit.
    jax.config.update("jax_disable_most_optimizations", False)
    rng = np.random.default_rng(0)
    size = 300_000
    t = (rng.random(size) < 0.5).astype(np.int32)
    s, w = (rng.normal(size=size) + 0.1 * t).astype(np.float32).round(3), rng.random(size).astype(np.float32)
    np.testing.assert_allclose(M.roc_auc(s, t).value, sk.roc_auc_score(t, s), rtol=2e-7)
    np.testing.assert_allclose(M.roc_auc(s, t, weights=w).value, sk.roc_auc_score(t, s, sample_weight=w), rtol=2e-6)
    found = M.ndcg(s, 3.0 * t).value
    np.testing.assert_allclose(found, sk.ndcg_score(7.0 * t[None], s[None].astype(float)), rtol=2e-6)
    jax.config.update("jax_disable_most_optimizations", True)


# --- Regression ---------------------------------------------------------------------------------------------------


def test_r2_does_not_cancel():
    # Targets of one spread around 1e6, and batches that are 100 spreads apart: float32 has 16 steps in a spread.
    rng = np.random.default_rng(0)
    t = (1e6 + 100 * np.repeat([0, 1, 5], 50) + rng.normal(size=150)).astype(np.float32)
    p = (t + rng.normal(size=150)).astype(np.float32)
    near = slice(0, 50)
    want = sk.r2_score(t[near].astype(float), p[near].astype(float))
    np.testing.assert_allclose(M.r2(p[near], t[near]).value, want, rtol=1e-5)
    parts = [M.r2(p[near][i::5], t[near][i::5]) for i in range(5)]
    np.testing.assert_allclose(functools.reduce(lambda a, b: a.merge(b), parts).value, want, rtol=1e-5)
    parts = [M.r2(p[i : i + 50], t[i : i + 50]) for i in (0, 50, 100)]
    found = functools.reduce(lambda a, b: a.merge(b), parts)
    wide = t.astype(np.float64)
    np.testing.assert_allclose(found.spread.value, ((wide - wide.mean()) ** 2).sum(), rtol=1e-6)
    np.testing.assert_allclose(np.float64(found.mean.high) + np.float64(found.mean.low), wide.mean(), rtol=1e-11)


def test_r2_of_equal_targets_is_as_in_scikit_learn():
    equal = np.full(7, 0.1, np.float32)  # seven of which do not add up to 0.7
    for p, want in ((equal, 1.0), (equal + 1, 0.0)):
        assert sk.r2_score(np.full(7, 0.5), 0.5 + p - equal) == want
        assert M.r2(p, equal).value == want
        assert M.r2(p, equal).merge(M.r2(p, equal)).value == want
    assert np.isnan(M.r2(np.full(7, np.nan, np.float32), equal).value)
    assert np.isnan(M.r2(equal, equal, where=False).value)


# --- Counting on --------------------------------------------------------------------------------------------------


def test_totals_count_beyond_float32():
    many = Total.of(jnp.int32(2**25 + 1)).merge(Total.of(jnp.int32(2**25 + 1)))
    assert int(many.high) + int(many.low) == 2**26 + 2
    one = Total.of(jnp.float32(1))

    def count(carry, _):
        return carry.merge(one), None

    after = jax.lax.scan(count, Total.of(jnp.int32(2**24)), None, length=1001)[0]
    assert int(after.high) + int(after.low) == 2**24 + 1001
    assert Total.of(jnp.float32(np.inf)).merge(one).value == np.inf
    assert np.isnan(one.merge(Total.of(jnp.float32(np.nan))).value)


def test_sums_are_not_rounded():
    x = np.random.default_rng(0).normal(1000, 1, (2, 100_001)).astype(np.float32)
    np.testing.assert_allclose(summed(jnp.asarray(x)), x.sum(axis=1, dtype=np.float64), rtol=2e-7)
    assert summed(jnp.zeros((0,))) == 0


def test_confusions_go_on_counting():
    z, y = np.eye(2, dtype=np.float32), np.arange(2)
    many = M.confusion(z, y, weights=np.float32([2**24, 2**24]))
    for _ in range(4):
        many = many.merge(M.confusion(z, y))
    np.testing.assert_array_equal(many.value, (2**24 + 4) * np.eye(2))


# --- What is refused, and what is loud ----------------------------------------------------------------------------

TAKES_CLASSES = [M.accuracy, M.top_k_accuracy, M.confusion, M.log_loss, M.brier, M.calibration]
TAKES_ANSWERS = [
    M.binary_accuracy, M.binary_confusion, M.roc_auc, M.average_precision, M.binned_roc_auc, M.binned_average_precision,
]  # fmt: skip


@pytest.mark.parametrize("metric", TAKES_CLASSES, ids=lambda f: f.__name__)
def test_a_bad_label_and_a_nan_are_loud(metric):
    z, every, two = np.eye(3, dtype=np.float32), np.ones(3, bool), np.array([True, False, True])
    for label in (-1, 3):
        assert np.isnan(metric(z, np.array([0, label, 2]), where=every).value).any()
    assert np.isnan(metric(np.where(z == 1, np.nan, z), np.arange(3), where=every).value).any()
    assert np.isfinite(metric(z, np.array([0, -100, 2]), where=two).value).all()


@pytest.mark.parametrize("metric", TAKES_ANSWERS, ids=lambda f: f.__name__)
def test_a_bad_answer_and_a_nan_are_loud(metric):
    s, every, two = np.float32([0.1, 0.2, 0.3]), np.ones(3, bool), np.array([True, True, False])
    for bad in (-1, 0.5, 2, np.nan):
        assert np.isnan(metric(s, np.float32([0, bad, 1]), where=every).value).all()
    assert np.isnan(metric(np.float32([0.1, np.nan, 0.3]), np.float32([0, 1, 1]), where=every).value).all()
    assert np.isfinite(metric(s, np.float32([0, 1, -1]), where=two).value).all()


def test_nan_passes_through_averages():
    poisoned = M.confusion(np.eye(3, dtype=np.float32), np.array([0, 1, 3]))
    for average in (None, "micro", "macro", "weighted"):
        assert np.isnan(poisoned.f_beta(1.0, average)).all()
        assert np.isnan(poisoned.precision(average, zero_division=np.nan)).all()


def test_nothing_at_all():
    found = all_of_them()(draw(ROWS), np.zeros(ROWS, bool), tail(ROWS)[1])
    for name, metric in found.items():
        defined = not any(word in name for word in ("roc_auc", "average_precision", "r2")) or name.startswith("mean")
        assert np.all(metric.value == 0) if defined else np.isnan(metric.value), name


def test_what_is_refused():
    data = draw(8)
    z, y, s, t = (data[name] for name in ("logits", "labels", "scores", "targets"))
    with pytest.raises(ValueError, match=r"`scores` \[8\] and `targets` \[4\] must have one shape"):
        M.roc_auc(s, t[:4])
    with pytest.raises(TypeError, match="`scores` must be floating"):
        M.average_precision(t, t)
    with pytest.raises(ValueError, match=r"`labels` \[4\] must be `logits` \[8, 5\] without"):
        M.confusion(z, y[:4])
    with pytest.raises(ValueError, match=r"`where` \[4\] must be a scalar or fit"):
        M.r2(s, s, where=t[:4] > 0)
    with pytest.raises(ValueError, match="`k` of top_k_accuracy must be at least 1"):
        M.top_k_accuracy(z, y, k=0)
    with pytest.raises(ValueError, match="`bits` must be from 10 to 24"):
        M.binned_roc_auc(s, t, bits=8)
    with pytest.raises(ValueError, match="`bins` must be at least 1"):
        M.calibration(z, y, bins=0)
    with pytest.raises(ValueError, match=r"\[4\] and \[5\] cannot be merged"):
        M.calibration(z, y, bins=4).merge(M.calibration(z, y, bins=5))
    with pytest.raises(ValueError, match=r"`labels`\[2\] of accuracy is 5, outside"):
        jl.check(M.accuracy, z, np.where(np.arange(8) == 2, 5, y))
    with pytest.raises(TypeError, match="not RootMean and Determination"):
        M.root_mean_squared(s, s).merge(M.r2(s, s))


# --- The cards ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_card(function):
    doc = inspect.getdoc(function)
    summary = doc.split("\n\n")[0]
    assert summary.endswith((".", ")")), summary
    for part in ("\n\n    ", "\nUse ", "\nArgs:\n", "\nReturns: ", "\nPeers: ", "\nReference: "):
        assert part in doc, part
    assert re.search(r"\(\d{4}\)", doc.split("\nReference: ")[1])
    assert max(len(line) for line in doc.splitlines()) <= 116
    described = doc.split("Args:\n")[1].split("\nReturns:")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^  ([\w, ]+):", described, flags=re.M))))
    parameters = inspect.signature(function).parameters
    assert named == set(parameters)
    assert list(parameters)[-2:] == ["where", "weights"]
    assert set(parameters) == {*domains(function), *static_options(inspect.unwrap(function))}
