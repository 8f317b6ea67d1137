"""What is said about predictions on rows that no training has seen: the same numbers for every loss.

Classification metrics take class probabilities [rows, classes] and labels [rows]; regression metrics take numbers.
Accuracy, precision, recall, F1 and the regression metrics are scikit-learn's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.metrics
from numpy.typing import NDArray

from jaxloss.lab.data import DataSet, Task

__all__ = ["METRICS", "Metric", "brier_score", "expected_calibration_error", "measure"]

Values = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One column of the leaderboard."""

    name: str
    title: str
    of: Callable[[Values, Values], float]  # predictions, y
    higher_is_better: bool = True
    in_table: bool = True
    in_percent: bool = False
    short: str = ""

    @property
    def short_title(self) -> str:
        """For a narrow terminal."""
        return self.short or self.title


def expected_calibration_error(probabilities: Values, labels: Values, bins: int = 15) -> float:
    """How far confidence and accuracy lie apart: sum over bins of n_b / n |accuracy_b - confidence_b|.

    Rows are binned by their confidence, the greatest probability, into (k / bins, (k + 1) / bins]. (Guo, Pleiss, Sun
    and Weinberger 2017, On calibration of modern neural networks, ICML.)
    """
    probabilities = np.asarray(probabilities, np.float64)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    inner = np.arange(1, bins) / bins
    which = np.digitize(confidence, inner, right=True)
    # n_b |accuracy_b - confidence_b| is the absolute sum of the differences: no bin is empty, none is divided by.
    gaps = np.bincount(which, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_score(probabilities: Values, labels: Values) -> float:
    """Mean squared distance of the probabilities to the one-hot label, in [0, 2].

    Proper like log loss, and finite where a sparse loss gives the true class probability 0.
    """
    return float(np.mean(np.sum((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2, axis=1)))


def _of_classes(score: Callable[..., Any], **options: Any) -> Callable[[Values, Values], float]:
    return lambda probabilities, labels: float(score(labels, probabilities.argmax(axis=1), **options))


def _of_numbers(score: Callable[..., Any]) -> Callable[[Values, Values], float]:
    return lambda predictions, y: float(score(y, predictions))


# A class that is never predicted has precision 0, without a warning for every seed.
_MACRO: Mapping[str, Any] = {"average": "macro", "zero_division": 0}

# The first chooses the learning rate and ranks; the second decides between equals.
METRICS: dict[Task, tuple[Metric, ...]] = {
    "classification": (
        Metric("accuracy", "accuracy", _of_classes(sklearn.metrics.accuracy_score), in_percent=True, short="acc."),
        Metric("brier_score", "Brier score", brier_score, higher_is_better=False, in_table=False),
        Metric("macro_f1", "macro F1", _of_classes(sklearn.metrics.f1_score, **_MACRO), in_percent=True, short="F1"),
        Metric(
            "macro_precision",
            "precision",
            _of_classes(sklearn.metrics.precision_score, **_MACRO),
            in_percent=True,
            short="prec.",
        ),
        Metric(
            "macro_recall",
            "recall",
            _of_classes(sklearn.metrics.recall_score, **_MACRO),
            in_percent=True,
            short="recall",
        ),
        Metric(
            "calibration_error",
            "calibration error",
            expected_calibration_error,
            higher_is_better=False,
            in_percent=True,
            short="calibr.",
        ),
    ),
    "regression": (
        Metric("rmse", "RMSE", _of_numbers(sklearn.metrics.root_mean_squared_error), higher_is_better=False),
        Metric("mae", "MAE", _of_numbers(sklearn.metrics.mean_absolute_error), higher_is_better=False),
        Metric("r2", "R2", _of_numbers(sklearn.metrics.r2_score)),
    ),
}


def measure(data: DataSet, predictions: Values, y: Values, metrics: Sequence[Metric] | None = None) -> dict[str, float]:
    """The metrics (None: every one of the task) by name; numbers are brought back to the units of the target."""
    if data.task == "regression":
        predictions, y = (np.asarray(v, np.float64) * data.target_scale + data.target_mean for v in (predictions, y))
    return {metric.name: metric.of(predictions, y) for metric in metrics or METRICS[data.task]}
