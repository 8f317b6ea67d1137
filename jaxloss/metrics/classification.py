"""Which class was predicted, against which it was: accuracy, and the confusion matrix with what follows from it."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.compiled import compiled
from jaxloss.core.frames import labelled
from jaxloss.core.inputs import as_array, as_scalars
from jaxloss.core.reduction import Mean
from jaxloss.core.sharding import take_label
from jaxloss.core.types import Array, BinaryLogit, Label, Logit, Mask, Probability, Real, ValidMask, Weights
from jaxloss.metrics.tallies import (
    Tallied,
    Total,
    counts,
    entries,
    existing,
    mean_of_entries,
    mean_of_rows,
    on_every_device,
    ratio,
)

__all__ = ["Confusion", "accuracy", "binary_accuracy", "binary_confusion", "confusion", "top_k_accuracy"]

Average = Literal["binary", "micro", "macro", "weighted"]


@compiled
def accuracy(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """How often the class with the greatest score is the right one.

        mean of [argmax(logits) = label]

    Use where classes are about equally frequent and errors equally dear; else `confusion` says more.

    Args:
      logits: [..., C] real, or any scores; of equal ones the first class counts as predicted.
      labels: [...] integer in [0, C); another label makes the metric nan, as a nan among the logits does.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in [0, 1].
    Peers: sklearn.metrics.accuracy_score, keras.metrics.SparseCategoricalAccuracy, torchmetrics.Accuracy.
    Reference: Sokolova and Lapalme (2009), A systematic analysis of performance measures for classification tasks,
      Inf. Process. Manag. 45(4).
    """
    return _hits(logits, labels, 1, axis, valid, where, weights)


@compiled
def top_k_accuracy(
    logits: Logit,
    labels: Label,
    *,
    k: int = 5,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """How often the right class is among the k with the greatest scores.

        mean of [rank(label) <= k]

    Use with many classes of which several may fit.

    Args:
      logits: [..., C] real, or any scores; of equal ones the class with the lower index ranks first, so that k = 1 is
        `accuracy`. (scikit-learn ranks the higher index first.)
      labels: [...] integer in [0, C); another label makes the metric nan, as a nan among the logits does.
      k: >= 1; from k = C on every row is a hit.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in [0, 1].
    Peers: sklearn.metrics.top_k_accuracy_score, keras.metrics.SparseTopKCategoricalAccuracy.
    Reference: Russakovsky et al. (2015), ImageNet large scale visual recognition challenge, IJCV 115, section 4.
    """
    if k < 1:
        raise ValueError(f"`k` of top_k_accuracy must be at least 1, got {k}")
    return _hits(logits, labels, k, axis, valid, where, weights)


@compiled
def binary_accuracy(
    logits: BinaryLogit,
    targets: Probability,
    *,
    threshold: Real = 0.0,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """How often yes-or-no questions are answered rightly.

        mean of [(logits > threshold) = targets]

    Use where yes and no are about equally frequent; else `binary_confusion`, `roc_auc` or `average_precision` say more.

    Args:
      logits: [...] real, or any scores; the answer is yes above `threshold`.
      targets: [...] 0 or 1, the shape of `logits`; anything else makes the metric nan, as a nan logit does.
      threshold: in the units of `logits`; 0 is the probability 1/2.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in [0, 1].
    Peers: sklearn.metrics.accuracy_score, keras.metrics.BinaryAccuracy.
    Reference: Sokolova and Lapalme (2009), A systematic analysis of performance measures for classification tasks,
      Inf. Process. Manag. 45(4).
    """

    def value(x: Array, t: Array, threshold: Array) -> Array:
        hit = ((x > threshold) == (t == 1)).astype(x.dtype)
        return jnp.where(jnp.isnan(x) | _is_no_answer(t), jnp.nan, hit)

    return mean_of_entries(
        value, logits=logits, targets=targets, scalars={"threshold": threshold}, where=where, weights=weights
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Confusion(Tallied):
    """How often each class was taken for each: entry [i, j] counts the rows of class i of which j was predicted.

    `precision`, `recall` and `f_beta` are scikit-learn's. `average` says of what:

        None         of each class, [C]
        "binary"     of class 1 of two
        "micro"      of all rows together
        "macro"      the mean over the classes that occur, as labels or as predictions
        "weighted"   the same, each class by its number of labels

    `zero_division` stands where a class has nothing to divide by (it was never predicted, or never right to predict);
    nan leaves it out of the mean.
    """

    counts: Total  # [C, C]

    @property
    def value(self) -> Array:
        """The matrix, [C, C]; labels along the first axis."""
        return self.counts.value

    @property
    def accuracy(self) -> Array:
        """The share of the rows on the diagonal."""
        matrix = self.value
        return ratio(jnp.trace(matrix), jnp.sum(matrix), 0.0)

    def precision(self, average: Average | None = "macro", *, zero_division: float = 0.0) -> Array:
        """Of the rows for which a class was predicted, the share that is of it."""
        return self._score(average, 0.0, 1.0, zero_division)

    def recall(self, average: Average | None = "macro", *, zero_division: float = 0.0) -> Array:
        """Of the rows of a class, the share for which it was predicted."""
        return self._score(average, 1.0, 0.0, zero_division)

    def f_beta(self, beta: float = 1.0, average: Average | None = "macro", *, zero_division: float = 0.0) -> Array:
        """The weighted harmonic mean of precision and recall; recall counts beta times as much.

        (1 + beta^2) hits / (beta^2 labels + predictions)
        """
        if not beta > 0 or math.isinf(beta):
            raise ValueError(f"`beta` must be > 0 and finite, got {beta}; the limits are precision and recall")
        return self._score(average, beta * beta, 1.0, zero_division)

    def _score(self, average: Average | None, of_labels: float, of_predictions: float, zero_division: float) -> Array:
        """(a + b) hits / (a labels + b predictions), a = `of_labels`, b = `of_predictions`."""
        matrix = self.value
        hits, labels, predictions = jnp.diagonal(matrix), jnp.sum(matrix, axis=1), jnp.sum(matrix, axis=0)
        occurs = labels + predictions != 0  # so that nan occurs
        if average == "micro":
            hits, labels, predictions = jnp.sum(hits), jnp.sum(labels), jnp.sum(predictions)
        below = of_labels * labels + of_predictions * predictions
        each = ratio((of_labels + of_predictions) * hits, below, zero_division)
        if average is None or average == "micro":
            return each
        if average == "binary":
            if matrix.shape != (2, 2):
                raise ValueError(f"average 'binary' is of two classes, and here are {matrix.shape[0]}")
            return each[1]
        if average not in ("macro", "weighted"):
            raise ValueError(f"`average` must be None, 'binary', 'micro', 'macro' or 'weighted', got {average!r}")
        share = labels if average == "weighted" else occurs.astype(each.dtype)
        if math.isnan(zero_division):
            # Only what could not be divided: a nan of a poisoned matrix stays.
            share = jnp.where(below == 0, 0, share)
        return ratio(jnp.sum(jnp.where(share == 0, 0, each * share)), jnp.sum(share), zero_division)


@compiled
def confusion(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Confusion:
    """How often each class was taken for each other, and precision, recall and F-beta.

        counts[i, j] = sum of weights where label = i and argmax(logits) = j

    Use where classes differ in frequency, or one kind of error is dearer than another.

    Args:
      logits: [..., C] real, or any scores; of equal ones the first class counts as predicted.
      labels: [...] integer in [0, C); another label makes the counts nan, as a nan among the logits does.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Confusion` of C^2 counts: `.value`, `.precision(average)`, `.recall(average)`, `.f_beta(beta, average)`.
      Counts are exact up to 2^48.
    Peers: sklearn.metrics.confusion_matrix, sklearn.metrics.precision_score, sklearn.metrics.recall_score,
      sklearn.metrics.f1_score, sklearn.metrics.fbeta_score.
    Reference: van Rijsbergen (1979), Information retrieval, Butterworths, chapter 7; averages: Sokolova and Lapalme
      (2009), Inf. Process. Manag. 45(4).
    """

    def predicted(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        z = existing(z, valid)
        unknown = jnp.any(jnp.isnan(z), axis=axis)
        return jnp.where(unknown, jnp.nan, jnp.argmax(z, axis=axis).astype(jnp.promote_types(jnp.float32, z.dtype)))

    logits = lax.stop_gradient(logits)
    # nan, too, where a label is out of range.
    chosen = labelled(predicted, logits=logits, labels=labels, axis=axis, valid=valid, where=where, reduction="none")
    scores, labels = as_array("logits", logits), jnp.asarray(labels)
    count = counts(where, weights, chosen.shape, chosen.dtype)
    return _counted(labels, chosen, count, scores.shape[axis])


@compiled
def binary_confusion(
    logits: BinaryLogit,
    targets: Probability,
    *,
    threshold: Real = 0.0,
    where: Mask = None,
    weights: Weights = None,
) -> Confusion:
    """How often yes and no were taken for each other, and precision, recall and F-beta of yes.

        counts[i, j] = sum of weights where targets = i and (logits > threshold) = j

    Use where yes is rare, or one kind of error is dearer than the other; `average="binary"` is of yes.

    Args:
      logits: [...] real, or any scores; the answer is yes above `threshold`.
      targets: [...] 0 or 1, the shape of `logits`; anything else makes the counts nan, as a nan logit does.
      threshold: in the units of `logits`; 0 is the probability 1/2.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Confusion` of 2 x 2 counts: `.value`, `.precision("binary")`, `.recall("binary")`,
      `.f_beta(1, "binary")`.
    Peers: sklearn.metrics.confusion_matrix, sklearn.metrics.precision_score, sklearn.metrics.recall_score,
      sklearn.metrics.fbeta_score, keras.metrics.Precision, keras.metrics.Recall.
    Reference: van Rijsbergen (1979), Information retrieval, Butterworths, chapter 7.
    """
    seen = entries(where, weights, logits=lax.stop_gradient(logits), targets=lax.stop_gradient(targets))
    x, t = seen.arrays
    (limit,) = as_scalars({"threshold": threshold}, seen.dtype)
    assert limit is not None
    chosen = jnp.where(jnp.isnan(x) | _is_no_answer(t), jnp.nan, (x > limit).astype(jnp.float32))
    return _counted((t == 1).astype(jnp.int32), chosen, seen.times, 2)


def _counted(labels: Array, chosen: Array, count: Array, classes: int) -> Confusion:
    """The matrix, all of it nan where a row that exists could not be told (`chosen` is nan)."""
    labels, chosen, count = (on_every_device(x) for x in (labels, chosen, count))
    unknown = jnp.isnan(chosen)
    # int32 as an index: classes^2 stays below 2^31 for as many counts as fit into memory.
    cell = jnp.clip(labels, 0, classes - 1).astype(jnp.int32) * classes + jnp.where(unknown, 0, chosen).astype(
        jnp.int32
    )
    flat = jnp.zeros((classes * classes,), count.dtype).at[cell].add(count)
    total = Total.of(flat.reshape(classes, classes))
    poison = jnp.where(jnp.any(unknown & (count != 0)), jnp.nan, 0).astype(total.high.dtype)
    return Confusion(Total(total.high + poison, total.low))


def _hits(logits: Logit, labels: Label, k: int, axis: int, valid: ValidMask, where: Mask, weights: Weights) -> Mean:
    def value(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        z = existing(z, valid)
        own = take_label(z, labels, axis)
        earlier = lax.broadcasted_iota(labels.dtype, z.shape, axis) < jnp.expand_dims(labels, axis)
        before = jnp.sum((z > own) | ((z == own) & earlier), axis=axis, dtype=jnp.int32)
        unknown = jnp.any(jnp.isnan(z), axis=axis)
        return jnp.where(unknown, jnp.nan, (before < k).astype(jnp.promote_types(jnp.float32, z.dtype)))

    return mean_of_rows(value, logits=logits, labels=labels, axis=axis, valid=valid, where=where, weights=weights)


def _is_no_answer(t: Array) -> Array:
    return (t != 0) & (t != 1)
