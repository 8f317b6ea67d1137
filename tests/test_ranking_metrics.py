"""The metrics of lists against scikit-learn and against the definitions counted out, over all orders of ties."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as sk
from metric_truths import M, cumulated, expected, reciprocal_rank

pytestmark = pytest.mark.usefixtures("quick_compilation")

EVERY = [M.ndcg, M.mean_reciprocal_rank, M.mean_average_precision, M.recall_at, M.precision_at]
every_metric = pytest.mark.parametrize("metric", EVERY, ids=lambda f: f.__name__)


def draw(lists, items, seed=0, levels=4):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, max(2, items // 2), (lists, items)).astype(np.float32)
    relevance = rng.integers(0, levels, (lists, items)).astype(np.float32)
    relevance[np.arange(lists), rng.integers(0, items, lists)] = 1  # scikit-learn has no absent lists
    return scores, relevance


@pytest.mark.parametrize("k", [None, 5])
def test_ndcg_is_that_of_scikit_learn(k):
    s, r = draw(20, 12)
    np.testing.assert_allclose(M.ndcg(s, r, k=k).value, sk.ndcg_score(2.0**r - 1, s, k=k), rtol=1e-6)
    np.testing.assert_allclose(M.ndcg(s, r, k=k, gain="linear").value, sk.ndcg_score(r, s, k=k), rtol=1e-6)
    w = np.random.default_rng(1).random(20).astype(np.float32)
    found = M.ndcg(s, r, k=k, gain="linear", weights=w).value
    np.testing.assert_allclose(found, sk.ndcg_score(r, s, k=k, sample_weight=w), rtol=1e-6)


def test_average_precision_is_that_of_scikit_learn():
    s, r = draw(20, 12, levels=2)
    w = np.random.default_rng(1).random(20).astype(np.float32)
    want = sk.label_ranking_average_precision_score(r > 0, s, sample_weight=w)
    np.testing.assert_allclose(M.mean_average_precision(s, r, weights=w).value, want, rtol=1e-6)
    # With one relevant item the reciprocal rank is the same thing.
    one = np.eye(12, dtype=np.float32)[np.argmax(r, axis=1)]
    want = sk.label_ranking_average_precision_score(one > 0, s)
    np.testing.assert_allclose(M.mean_reciprocal_rank(s, one).value, want, rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_counted_out_over_every_order_of_ties(k):
    grid = list(itertools.product((0.0, 1.0, 2.0), repeat=4))
    rng = np.random.default_rng(k)
    s = np.array([grid[i] for i in rng.integers(0, len(grid), 30)], np.float32)
    r = np.maximum(rng.integers(-2, 3, (30, 4)), 0).astype(np.float32)
    pairs = [(a, b) for a, b in zip(s, r, strict=True) if b.any()]

    def mean(of_one):
        return np.mean([of_one(a, b) for a, b in pairs])

    def share(of):
        return lambda a, b: expected(a, b > 0, lambda hits: sum(hits[:k]) / (k if of == "places" else sum(b > 0)))

    def gain(a, b):
        return expected(a, 2**b - 1, lambda gains: cumulated(gains, 2**b - 1, k))

    assert len(pairs) < 30  # the others are absent
    for found, want in (
        (M.recall_at(s, r, k=k), mean(share("relevant"))),
        (M.precision_at(s, r, k=k), mean(share("places"))),
        (M.mean_reciprocal_rank(s, r, k=k), mean(lambda a, b: reciprocal_rank(a, b, k))),
        (M.ndcg(s, r, k=k), mean(gain)),
    ):
        assert found.weight == len(pairs)
        np.testing.assert_allclose(found.value, want, rtol=1e-6, atol=1e-7)


@every_metric
def test_what_is_not_valid_is_not_in_the_list(metric):
    s, r = draw(6, 9)
    s[:, :2] = -np.inf  # legal scores, that tie with nothing that does not exist
    wide_s, wide_r = np.full((6, 12), np.nan, np.float32), np.full((6, 12), -1, np.float32)
    valid = np.zeros((6, 12), bool)
    valid[:, [0, 1, 3, 4, 5, 7, 8, 9, 11]] = True
    wide_s[valid], wide_r[valid] = s.ravel(), r.ravel()
    # Also at a place that a list has and none of its items.
    for options in ({"k": 3}, {"k": 11}) if "_at" in metric.__name__ else ({},):
        found = metric(wide_s, wide_r, valid=valid, **options).value
        np.testing.assert_allclose(found, metric(s, r, **options).value, rtol=1e-6)


@every_metric
def test_lists_that_cannot_be_judged(metric):
    s, r = draw(3, 5)
    every, two = np.ones(3, bool), np.array([True, True, False])
    assert np.isnan(metric(np.where(s == s[1, 1], np.nan, s), r, where=every).value)
    for bad in (np.nan, -1.0):
        wrong = r.copy()
        wrong[2, 3] = bad
        assert np.isnan(metric(s, wrong, where=every).value)
        assert np.isfinite(metric(s, wrong, where=two).value)
    assert metric(s, 0 * r, where=every).weight == 0


@pytest.mark.parametrize(
    "metric", [M.ndcg, pytest.param(M.recall_at, marks=pytest.mark.exhaustive)], ids=lambda f: f.__name__
)
def test_lists_along_another_axis_and_lists_of_nothing(metric):
    s, r = draw(6, 12)
    want = metric(s, r).value
    np.testing.assert_allclose(metric(s.T, r.T.astype(np.int32), axis=0).value, want, rtol=1e-6)
    np.testing.assert_allclose(metric(s.reshape(2, 3, 12), r.reshape(2, 3, 12)).value, want, rtol=1e-6)
    assert metric(s, r, valid=np.zeros(s.shape, bool)).weight == 0
    assert metric(s[:, :0], r[:, :0]).weight == 0
    assert metric(s[:0], r[:0]).value == 0
    assert metric(s[:, :1], 0 * r[:, :1] + 1).weight == 6


def test_gains_neither_overflow_nor_cancel():
    s = np.float32([[3, 2, 1]])
    for r in ([[100.0, 2000.0, 1999.0]], [[1e-6, 2e-6, 0.0]]):
        r = np.float32(r)
        gains = np.float64(r[0]) * np.log(2) if r.max() < 1 else 2.0 ** (np.float64(r[0]) - r.max())
        np.testing.assert_allclose(M.ndcg(s, r).value, cumulated(gains, gains), rtol=2e-6)


def test_k_is_a_place():
    s, r = draw(3, 5)
    for metric in (M.ndcg, M.mean_reciprocal_rank, M.recall_at, M.precision_at):
        with pytest.raises(ValueError, match=f"`k` of {metric.__name__} must be at least 1"):
            metric(s, r, k=0)
    with pytest.raises(ValueError, match="`gain` of ndcg must be 'exponential' or 'linear'"):
        M.ndcg(s, r, gain="log")
