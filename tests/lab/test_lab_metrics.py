"""The metrics against their definitions, written out naively."""

import numpy as np
import pytest

from jaxloss.lab.data import load
from jaxloss.lab.metrics import METRICS, brier_score, expected_calibration_error, measure


def naive_calibration_error(probabilities, labels, bins=15):
    total = 0.0
    for k in range(bins):
        inside = [
            i
            for i, row in enumerate(probabilities)
            if (k / bins < max(row) <= (k + 1) / bins) or (k == 0 and max(row) == 0)
        ]
        if inside:
            accuracy = sum(int(np.argmax(probabilities[i])) == labels[i] for i in inside) / len(inside)
            confidence = sum(float(max(probabilities[i])) for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


def predictions(rows, classes, seed=0, sharpness=2.0):
    rng = np.random.default_rng(seed)
    scores = np.exp(rng.normal(0, sharpness, (rows, classes)))
    return scores / scores.sum(axis=1, keepdims=True), rng.integers(0, classes, rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_calibration_error_is_the_naive_loop(seed, sharpness):
    probabilities, labels = predictions(200, 4, seed, sharpness)
    ours = expected_calibration_error(probabilities, labels)
    assert ours == pytest.approx(naive_calibration_error(probabilities, labels), abs=1e-12)


def test_calibration_error_at_the_edges_of_bins():
    # Exactly 1/2 lies in (1/4, 1/2], exactly 1 in the last bin.
    probabilities = np.array([[0.5, 0.5], [0.6, 0.4], [1.0, 0.0], [0.8, 0.2]])
    labels = np.array([0, 1, 0, 0])
    ours = expected_calibration_error(probabilities, labels, bins=4)
    assert ours == pytest.approx((0.5 + 0.6 + 0.2) / 4)
    assert ours == pytest.approx(naive_calibration_error(probabilities, labels, bins=4))


def test_calibration_error_of_honest_and_of_overconfident_predictions():
    honest = np.tile([0.75, 0.25], (4, 1))
    assert expected_calibration_error(honest, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)
    certain = np.tile([1.0, 0.0], (4, 1))
    assert expected_calibration_error(certain, np.array([0, 0, 0, 1])) == pytest.approx(0.25)


def test_brier_score_by_hand():
    assert brier_score(np.array([[0.7, 0.3], [0.0, 1.0]]), np.array([0, 0])) == pytest.approx((2 * 0.09 + 2) / 2)


def test_classification_metrics_by_counting():
    data = load("wine")
    probabilities, labels = predictions(60, 3)
    measured = measure(data, probabilities, labels)
    guess = probabilities.argmax(axis=1)
    precision, recall, f1 = [], [], []
    for c in range(3):
        hits = ((guess == c) & (labels == c)).sum()
        precision.append(hits / (guess == c).sum())
        recall.append(hits / (labels == c).sum())
        f1.append(2 * hits / ((guess == c).sum() + (labels == c).sum()))
    assert measured["accuracy"] == pytest.approx((guess == labels).mean())
    assert measured["macro_precision"] == pytest.approx(np.mean(precision))
    assert measured["macro_recall"] == pytest.approx(np.mean(recall))
    assert measured["macro_f1"] == pytest.approx(np.mean(f1))
    assert set(measured) == {metric.name for metric in METRICS["classification"]}


def test_a_class_that_is_never_predicted_counts_as_zero():
    measured = measure(load("wine"), np.tile([1.0, 0.0, 0.0], (3, 1)), np.array([0, 1, 2]))
    assert measured["macro_precision"] == pytest.approx(1 / 9)


def test_regression_metrics_are_in_target_units():
    data = load("diabetes")
    y = np.array([0.0, 1.0, 2.0], np.float32)
    guess = np.array([0.5, 1.0, 1.0], np.float32)
    measured = measure(data, guess, y)
    assert measured["rmse"] == pytest.approx(data.target_scale * np.sqrt(1.25 / 3))
    assert measured["mae"] == pytest.approx(data.target_scale * 0.5)
    assert measured["r2"] == pytest.approx(1 - 1.25 / 2)
