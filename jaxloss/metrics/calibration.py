"""Are the predicted probabilities true? Proper scores, and how far confidence and frequency lie apart."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import binary_nll, label_nll, sigmoid, softmax
from jaxloss.core.frames import labelled
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import Mean
from jaxloss.core.sharding import is_label
from jaxloss.core.types import Array, BinaryLogit, Label, Logit, Mask, Probability, ValidMask, Weights
from jaxloss.metrics.tallies import (
    Tallied,
    Total,
    counts,
    entries,
    existing,
    mean_of_entries,
    mean_of_rows,
    ratio,
)

__all__ = [
    "Calibration",
    "binary_brier",
    "binary_calibration",
    "binary_log_loss",
    "brier",
    "calibration",
    "log_loss",
]


@compiled
def log_loss(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """Mean negative log-probability of the right class.

        mean of logsumexp(z) - z[label],   z = logits

    Use to compare probabilities as such; it is infinite where a right class was given probability 0. The logits of
    probabilities p are log(p).

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C); another label makes the metric nan.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in nats, in [0, inf].
    Peers: sklearn.metrics.log_loss, keras.metrics.SparseCategoricalCrossentropy.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1).
    """

    def value(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        return label_nll(existing(z, valid), labels, axis)

    return mean_of_rows(value, logits=logits, labels=labels, axis=axis, valid=valid, where=where, weights=weights)


@compiled
def binary_log_loss(
    logits: BinaryLogit,
    targets: Probability,
    *,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """Mean negative log-likelihood of yes-or-no answers.

        mean of -t log(sigmoid(x)) - (1 - t) log(sigmoid(-x)),   x = logits, t = targets

    Use to compare probabilities as such; it is infinite where certainty was wrong.

    Args:
      logits: [...] real, log-odds of yes; those of probabilities p are log(p) - log1p(-p).
      targets: [...] in [0, 1], the shape of `logits`.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in nats, in [0, inf].
    Peers: sklearn.metrics.log_loss, keras.metrics.BinaryCrossentropy.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1).
    """
    return mean_of_entries(binary_nll, logits=logits, targets=targets, where=where, weights=weights)


@compiled
def brier(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """Mean squared distance of the predicted probabilities to the one-hot label.

        mean of sum_j (softmax(z)_j - [j = label])^2,   z = logits

    Use like `log_loss`, with a price for each error that is bounded.

    Args:
      logits: [..., C] real; -inf rules a class out. The logits of probabilities p are log(p).
      labels: [...] integer in [0, C); another label makes the metric nan.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in [0, 2], as in the paper: for two classes twice `binary_brier`.
    Peers: sklearn.metrics.brier_score_loss (scale_by_half=False).
    Reference: Brier (1950), Verification of forecasts expressed in terms of probability, Mon. Weather Rev. 78(1).
    """

    def value(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        z = widen(existing(z, valid))
        return jnp.sum(jnp.square(softmax(z, axis) - is_label(z, labels, axis)), axis=axis)

    return mean_of_rows(value, logits=logits, labels=labels, axis=axis, valid=valid, where=where, weights=weights)


@compiled
def binary_brier(
    logits: BinaryLogit,
    targets: Probability,
    *,
    where: Mask = None,
    weights: Weights = None,
) -> Mean:
    """Mean squared error of the predicted probabilities of yes.

        mean of (sigmoid(x) - t)^2,   x = logits, t = targets

    Use like `binary_log_loss`, with a price for each error that is bounded.

    Args:
      logits: [...] real, log-odds of yes; those of probabilities p are log(p) - log1p(-p).
      targets: [...] in [0, 1], the shape of `logits`.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in [0, 1].
    Peers: sklearn.metrics.brier_score_loss.
    Reference: Brier (1950), Verification of forecasts expressed in terms of probability, Mon. Weather Rev. 78(1).
    """

    def value(x: Array, t: Array) -> Array:
        return jnp.square(sigmoid(x) - t)

    return mean_of_entries(value, logits=logits, targets=targets, where=where, weights=weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration(Tallied):
    """Sums by bin of the predicted probability, (b / bins, (b + 1) / bins] for b = 0, 1, ...; 0 lies in the first."""

    count: Total  # [bins]
    probability: Total  # [bins], the sum of predicted probabilities
    gap: Total  # [bins], the sum of outcome minus prediction

    @property
    def value(self) -> Array:
        """The expected calibration error: sum over bins of count / n |outcome - prediction|, in [0, 1]; 0 for none."""
        return ratio(jnp.sum(jnp.abs(self.gap.value)), jnp.sum(self.count.value))

    @property
    def worst(self) -> Array:
        """The maximum calibration error: the greatest gap of a bin that is not empty."""
        return jnp.max(jnp.abs(ratio(self.gap.value, self.count.value)))

    @property
    def predictions(self) -> Array:
        """The mean predicted probability of each bin, [bins]; nan for an empty one. The diagram's x."""
        return self._of_bins(self.probability.value)

    @property
    def outcomes(self) -> Array:
        """How often it came true in each bin, [bins]; nan for an empty one. The diagram's y."""
        return self._of_bins(self.probability.value + self.gap.value)

    def _of_bins(self, totals: Array) -> Array:
        count = self.count.value
        return jnp.where(count == 0, jnp.nan, ratio(totals, count))


@compiled
def calibration(
    logits: Logit,
    labels: Label,
    *,
    bins: int = 15,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
) -> Calibration:
    """How far confidence and accuracy lie apart (expected calibration error), and the reliability diagram.

        sum over bins b of n_b / n |accuracy_b - confidence_b|,   confidence = max softmax(logits)

    Use to see whether a probability of 0.8 is right in 8 of 10 cases. The error depends on `bins`, and chance alone
    gives up to about 0.4 sqrt(bins / n).

    Args:
      logits: [..., C] real; -inf rules a class out. The logits of probabilities p are log(p).
      labels: [...] integer in [0, C); another label makes the metric nan, as a nan among the logits does.
      bins: >= 1, of equal width.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Calibration`: `.value` in [0, 1], `.worst`, and by bin `.predictions` and `.outcomes`.
    Peers: torchmetrics.CalibrationError, sklearn.calibration.calibration_curve.
    Reference: Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, ICML, eq. 3.
    """

    def confidence(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        return jnp.max(softmax(widen(existing(z, valid)), axis), axis=axis)

    def right(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        z = widen(existing(z, valid))
        return (jnp.argmax(z, axis=axis) == labels).astype(z.dtype)

    logits = lax.stop_gradient(logits)
    probability, outcome = (
        labelled(formula, logits=logits, labels=labels, axis=axis, valid=valid, where=where, reduction="none")
        for formula in (confidence, right)
    )
    return _in_bins(probability, outcome, counts(where, weights, probability.shape, probability.dtype), bins)


@compiled
def binary_calibration(
    logits: BinaryLogit,
    targets: Probability,
    *,
    bins: int = 15,
    where: Mask = None,
    weights: Weights = None,
) -> Calibration:
    """How far predicted probabilities of yes and its frequency lie apart, and the reliability diagram.

        sum over bins b of n_b / n |mean of targets in b - mean of sigmoid(logits) in b|

    Use to see whether what is predicted with probability 0.2 happens in 2 of 10 cases.

    Args:
      logits: [...] real, log-odds of yes.
      targets: [...] in [0, 1], the shape of `logits`.
      bins: >= 1, of equal width.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Calibration`: `.value` in [0, 1], `.worst`, and by bin `.predictions` and `.outcomes`.
    Peers: sklearn.calibration.calibration_curve, torchmetrics.CalibrationError.
    Reference: Naeini, Cooper and Hauskrecht (2015), Obtaining well calibrated probabilities using Bayesian binning,
      AAAI.
    """
    seen = entries(where, weights, logits=lax.stop_gradient(logits), targets=lax.stop_gradient(targets))
    x, t = seen.arrays
    return _in_bins(sigmoid(x), t, seen.times, bins)


def _in_bins(probability: Array, outcome: Array, count: Array, bins: int) -> Calibration:
    if bins < 1:
        raise ValueError(f"`bins` must be at least 1, got {bins}")
    p = probability[None]
    steps = jnp.arange(bins, dtype=p.dtype).reshape((-1,) + (1,) * probability.ndim)
    # Compared with the edges: a product p * bins would be rounded across one. nan is in every bin.
    inside = ~((p <= steps / bins) & (steps > 0)) & ~((p > (steps + 1) / bins) & (steps < bins - 1))
    every = tuple(range(1, p.ndim))

    def total(x: Array) -> Total:
        return Total.of(jnp.sum(jnp.where(inside, x[None], 0), axis=every, dtype=x.dtype))

    # outcome - prediction is summed as such: it is small where the sums of both are large.
    return Calibration(total(count), total(count * probability), total(count * (outcome - probability)))
