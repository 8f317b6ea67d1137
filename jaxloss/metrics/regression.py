"""Numbers against numbers."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.compiled import compiled
from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array, Mask, Real, Weights
from jaxloss.metrics.tallies import Tallied, Total, entries, mean_of_entries

__all__ = ["Determination", "RootMean", "mean_absolute", "r2", "root_mean_squared"]


@compiled
def mean_absolute(predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None) -> Mean:
    """Mean absolute error (MAE).

        mean of |predictions - targets|

    Use for the typical size of an error; a few large ones count no more than their size.

    Args:
      predictions, targets: [...] real, one shape.
      where, weights: see `jaxloss.reduce`.
    Returns: a `Mean`, its value in target units, in [0, inf).
    Peers: sklearn.metrics.mean_absolute_error, keras.metrics.MeanAbsoluteError, torchmetrics.MeanAbsoluteError.
    Reference: Willmott and Matsuura (2005), Advantages of the mean absolute error over the root mean square error in
      assessing average model performance, Clim. Res. 30(1).
    """

    def value(p: Array, t: Array) -> Array:
        return jnp.abs(p - t)

    return mean_of_entries(value, predictions=predictions, targets=targets, where=where, weights=weights)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RootMean(Tallied):
    """The root of a mean of squares, as the sums that it is made of."""

    total: Total
    weight: Total

    @property
    def value(self) -> Array:
        """sqrt(total / weight); 0 where there was nothing."""
        return jnp.sqrt(Mean(self.total.value, self.weight.value).value)


@compiled
def root_mean_squared(predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None) -> RootMean:
    """Root mean squared error (RMSE), over all batches that are merged: not a mean of roots.

        sqrt(mean of (predictions - targets)^2)

    Use for the size of errors when large ones are dear.

    Args:
      predictions, targets: [...] real, one shape. Errors beyond 1e19 overflow in float32.
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with `.merge`; its `.value` in target units, in [0, inf), 0 where there was nothing.
    Peers: sklearn.metrics.root_mean_squared_error, keras.metrics.RootMeanSquaredError.
    Reference: Hyndman and Koehler (2006), Another look at measures of forecast accuracy, Int. J. Forecast. 22(4).
    """

    def value(p: Array, t: Array) -> Array:
        return jnp.square(p - t)

    squares = mean_of_entries(value, predictions=predictions, targets=targets, where=where, weights=weights)
    return RootMean(Total.of(squares.total), Total.of(squares.weight))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Determination(Tallied):
    """What is left of the targets' spread, by Chan's update: squares of large numbers never cancel."""

    weight: Total
    mean: Total  # of the targets, in two floats: 1e6 + 0.01 is no multiple of float32's step there
    spread: Total  # sum of w (target - mean)^2
    residual: Total  # sum of w (target - prediction)^2

    @property
    def value(self) -> Array:
        """1 - residual / spread; for equal targets 1 if all are met and else 0; nan where there was nothing."""
        spread, residual = self.spread.value, self.residual.value
        explained = 1 - residual / jnp.where(spread == 0, 1, spread)
        equal = jnp.where(residual == 0, 1.0, jnp.where(jnp.isnan(residual), residual, 0))
        return jnp.where(self.weight.value == 0, jnp.nan, jnp.where(spread == 0, equal, explained))

    def _joined(self, other: Any) -> Self:
        weight = self.weight.merge(other.weight)
        before, whole = self.weight.value, weight.value
        share = other.weight.value / jnp.where(whole == 0, 1, whole)
        apart = (other.mean.high - self.mean.high) + (other.mean.low - self.mean.low)
        moved = self.mean.merge(Total.of(apart * share))
        # Nothing has no mean to move from.
        mean = jax.tree.map(lambda new, old: jnp.where(before == 0, new, old), other.mean, moved)
        between = Total.of(jnp.where(before == 0, 0, jnp.square(apart) * before * share))
        return type(self)(
            weight, mean, self.spread.merge(other.spread).merge(between), self.residual.merge(other.residual)
        )


@compiled
def r2(predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None) -> Determination:
    """The share of the targets' variance that the predictions explain (coefficient of determination).

        1 - sum (predictions - targets)^2 / sum (targets - mean of targets)^2

    Use to judge predictions against the mean of all targets: 1 is perfect, 0 as good as the mean, below 0 worse.

    Args:
      predictions, targets: [...] real, one shape, of one quantity; several have one metric each (`jax.vmap`).
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with `.merge`, exact across batches with different means; its `.value` in (-inf, 1]. For equal
      targets 1 if all are met and else 0, as scikit-learn; nan where there was nothing.
    Peers: sklearn.metrics.r2_score, keras.metrics.R2Score, torchmetrics.R2Score.
    Reference: Wright (1921), Correlation and causation, J. Agric. Res. 20; merged: Chan, Golub and LeVeque (1983),
      Algorithms for computing the sample variance, Am. Stat. 37(3).
    """
    seen = entries(where, weights, predictions=lax.stop_gradient(predictions), targets=lax.stop_gradient(targets))
    p, t = seen.arrays
    each = seen.times
    w = each.astype(seen.dtype)
    weight = jnp.sum(each)
    divisor = jnp.where(weight == 0, 1, weight).astype(seen.dtype)
    # One of the targets as origin: equal ones have no spread then, not even a rounding error.
    origin = jnp.max(jnp.where(each != 0, t, -jnp.inf), initial=-jnp.inf)
    origin = jnp.where(weight == 0, 0, origin)
    from_origin = t - origin
    offset = jnp.sum(w * from_origin) / divisor
    return Determination(
        Total.of(weight),
        Total.of(origin).merge(Total.of(offset)),
        Total.of(jnp.sum(w * jnp.square(from_origin - offset))),
        Total.of(jnp.sum(w * jnp.square(t - p))),
    )
