"""Every metric of `jl.metrics` on one set of rows, and what it must be: scikit-learn's, or counted out naively."""

import itertools

import jax.numpy as jnp
import numpy as np
import sklearn.metrics as sk

import jaxloss as jl
from jaxloss.lab.metrics import expected_calibration_error

M = jl.metrics
CLASSES, ITEMS = 5, 7


def draw(rows, seed=0):
    """Rows with ties everywhere: in class scores, in scores, in lists."""
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 2, (rows, CLASSES)).round(0).astype(np.float32),
        "labels": rng.integers(0, CLASSES - 1, rows),  # the last class has no label
        "scores": (rng.normal(0, 2, rows) * 8).round(0).astype(np.float32) / 8,  # 16 bits hold them
        "targets": (rng.random(rows) < 0.4).astype(np.int32),
        "predictions": rng.normal(3, 2, rows).astype(np.float32),
        "observed": rng.normal(3, 2, rows).astype(np.float32),
        "lists": rng.normal(0, 1, (rows, ITEMS)).round(0).astype(np.float32),
        "relevance": np.maximum(rng.integers(-3, 4, (rows, ITEMS)), 0).astype(np.float32),
        "valid": rng.random((rows, ITEMS)) < 0.8,
    }


def tail(rows, seed=0):
    rng = np.random.default_rng(seed + 100)
    return rng.random(rows) < 0.7, rng.integers(1, 8, rows).astype(np.float32) / 4


CLASSED, ANSWERED, NUMBERS, LISTS = (
    ("logits", "labels"),
    ("scores", "targets"),
    ("predictions", "observed"),
    ("lists", "relevance"),
)
METRICS = {
    "accuracy": (M.accuracy, CLASSED, {}),
    "top_k_accuracy": (M.top_k_accuracy, CLASSED, {"k": 2}),
    "binary_accuracy": (M.binary_accuracy, ANSWERED, {"threshold": 0.125}),
    "confusion": (M.confusion, CLASSED, {}),
    "binary_confusion": (M.binary_confusion, ANSWERED, {"threshold": 0.125}),
    "log_loss": (M.log_loss, CLASSED, {}),
    "binary_log_loss": (M.binary_log_loss, ANSWERED, {}),
    "brier": (M.brier, CLASSED, {}),
    "binary_brier": (M.binary_brier, ANSWERED, {}),
    "calibration": (M.calibration, CLASSED, {"bins": 6}),
    "binary_calibration": (M.binary_calibration, ANSWERED, {"bins": 6}),
    "binned_roc_auc": (M.binned_roc_auc, ANSWERED, {}),
    "binned_average_precision": (M.binned_average_precision, ANSWERED, {}),
    "mean_absolute": (M.mean_absolute, NUMBERS, {}),
    "root_mean_squared": (M.root_mean_squared, NUMBERS, {}),
    "r2": (M.r2, NUMBERS, {}),
    "ndcg": (M.ndcg, LISTS, {}),
    "ndcg_3": (M.ndcg, LISTS, {"k": 3, "gain": "linear"}),
    "mean_reciprocal_rank": (M.mean_reciprocal_rank, LISTS, {"k": 4}),
    "mean_average_precision": (M.mean_average_precision, LISTS, {}),
    "recall_at": (M.recall_at, LISTS, {"k": 3}),
    "precision_at": (M.precision_at, LISTS, {"k": 3}),
    "roc_auc": (M.roc_auc, ANSWERED, {}),
    "average_precision": (M.average_precision, ANSWERED, {}),
}
# These cannot be merged.
EXACT = ("roc_auc", "average_precision")
# One of each kind of computation: what goes through many compilers' hands is these.
FEW = ("accuracy", "confusion", "calibration", "binned_roc_auc", "root_mean_squared", "r2", "ndcg", "recall_at")


def measured(data, where=None, weights=None, *, names=tuple(METRICS), axis_name=None):
    """The metrics of these names."""

    def one(name):
        function, inputs, options = METRICS[name]
        options = {**options, "where": where, "weights": weights}
        if inputs is LISTS:
            options["valid"] = data["valid"]
        if name in EXACT:
            options["axis_name"] = axis_name
        return function(*(data[i] for i in inputs), **options)

    return {name: one(name) for name in names}


def truths(data, where=None, weights=None):
    """The same numbers in NumPy float64, of the rows that exist."""
    rows = len(data["labels"])
    kept = np.ones(rows, bool) if where is None else where
    w = (np.ones(rows) if weights is None else weights.astype(np.float64))[kept]
    d = {name: (x[kept].astype(np.float64) if x.dtype == np.float32 else x[kept]) for name, x in data.items()}
    z, y, s, t, p, o = (d[name] for name in ("logits", "labels", "scores", "targets", "predictions", "observed"))
    exps = np.exp(z - z.max(axis=1, keepdims=True))
    probabilities = exps / exps.sum(axis=1, keepdims=True)
    yes = 1 / (1 + np.exp(-s))
    every, times = np.arange(CLASSES), (4 * w).astype(int)  # weights are quarters
    lists = [(a[v], r[v]) for a, r, v in zip(d["lists"], d["relevance"], d["valid"], strict=True)]

    def over_lists(of_one):
        values = np.array([of_one(a, r) if (r > 0).any() else np.nan for a, r in lists])
        present = ~np.isnan(values)
        return np.average(values[present], weights=w[present])

    return {
        "accuracy": sk.accuracy_score(y, z.argmax(axis=1), sample_weight=w),
        # scikit-learn prefers the higher index of two equal scores: classes counted from behind.
        "top_k_accuracy": sk.top_k_accuracy_score(CLASSES - 1 - y, z[:, ::-1], k=2, labels=every, sample_weight=w),
        "binary_accuracy": sk.accuracy_score(t, s > 0.125, sample_weight=w),
        "confusion": sk.confusion_matrix(y, z.argmax(axis=1), labels=every, sample_weight=w),
        "binary_confusion": sk.confusion_matrix(t, s > 0.125, sample_weight=w),
        "log_loss": sk.log_loss(y, probabilities, labels=every, sample_weight=w),
        "binary_log_loss": sk.log_loss(t, yes, sample_weight=w),
        "brier": np.average(((probabilities - np.eye(CLASSES)[y]) ** 2).sum(axis=1), weights=w),
        "binary_brier": sk.brier_score_loss(t, yes, sample_weight=w),
        "calibration": expected_calibration_error(np.repeat(probabilities, times, axis=0), np.repeat(y, times), 6),
        "binary_calibration": gaps(yes, t, w, 6),
        "binned_roc_auc": sk.roc_auc_score(t, s, sample_weight=w),
        "binned_average_precision": sk.average_precision_score(t, s, sample_weight=w),
        "roc_auc": sk.roc_auc_score(t, s, sample_weight=w),
        "average_precision": sk.average_precision_score(t, s, sample_weight=w),
        "mean_absolute": sk.mean_absolute_error(o, p, sample_weight=w),
        "root_mean_squared": sk.root_mean_squared_error(o, p, sample_weight=w),
        "r2": sk.r2_score(o, p, sample_weight=w),
        "ndcg": over_lists(lambda a, r: expected(a, 2**r - 1, lambda gains: cumulated(gains, 2**r - 1))),
        "ndcg_3": over_lists(lambda a, r: expected(a, r, lambda gains: cumulated(gains, r, 3))),
        "mean_reciprocal_rank": over_lists(lambda a, r: reciprocal_rank(a, r, 4)),
        "mean_average_precision": over_lists(lambda a, r: sk.average_precision_score(r > 0, a)),
        "recall_at": over_lists(lambda a, r: expected(a, r > 0, lambda hits: sum(hits[:3]) / (r > 0).sum())),
        "precision_at": over_lists(lambda a, r: expected(a, r > 0, lambda hits: sum(hits[:3]) / 3)),
    }  # fmt: skip


def gaps(probability, outcome, w, bins):
    total = 0.0
    for b in range(bins):
        inside = [i for i, p in enumerate(probability) if b / bins < p <= (b + 1) / bins]
        total += abs(sum(w[i] * (outcome[i] - probability[i]) for i in inside))
    return total / sum(w)


def expected(scores, gains, of_order):
    """The mean of `of_order(gains)` over all orders by falling scores: of equal scores every order."""
    groups = [[g for a, g in zip(scores, gains, strict=True) if a == level] for level in sorted(set(scores))[::-1]]
    orders = [list(itertools.chain(*parts)) for parts in itertools.product(*map(itertools.permutations, groups))]
    return float(np.mean([of_order(order) for order in orders]))


def cumulated(gains, all_gains, k=None):
    def dcg(ordered):
        return sum(g / np.log2(i + 2) for i, g in enumerate(list(ordered)[:k]))

    return dcg(gains) / dcg(sorted(all_gains)[::-1])


def reciprocal_rank(scores, relevance, k):
    rank = (scores >= scores[relevance > 0].max()).sum()
    return 1 / rank if rank <= k else 0.0


def compare(found, want, rtol=2e-6):
    assert found.keys() <= want.keys()
    for name, metric in found.items():
        np.testing.assert_allclose(metric.value, want[name], rtol=rtol, atol=2e-7, err_msg=name)


def on_device(data):
    return {name: jnp.asarray(x) for name, x in data.items()}
