"""Numbers against numbers."""

from __future__ import annotations

import numpy as np

from jaxloss import losses
from jaxloss.compat.torch.arguments import (
    Reduction,
    admit_reduction,
    demand_positive,
    is_traced,
    of_one_shape,
    predictions_and_targets,
    real,
    reduced,
)
from jaxloss.core.types import Array, ArrayLike

__all__ = ["huber_loss", "l1_loss", "mse_loss", "smooth_l1_loss"]


def l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
    weight: ArrayLike | None = None,
) -> Array:
    """Absolute error: `jl.absolute_error(input, target, weights=weight)`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    return losses.absolute_error(x, t, weights=_weights(weight, x), reduction=reduction)


def mse_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
    weight: ArrayLike | None = None,
) -> Array:
    """Squared error: `jl.squared_error(input, target, weights=weight)`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    return losses.squared_error(x, t, weights=_weights(weight, x), reduction=reduction)


def smooth_l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
    beta: ArrayLike = 1.0,
) -> Array:
    """Absolute error with a round tip: `jl.smooth_l1(input, target, beta=beta)`; beta = 0 is `jl.absolute_error`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    if not is_traced(beta) and np.all(np.asarray(beta) == 0):
        return losses.absolute_error(x, t, reduction=reduction)
    demand_positive("beta", beta)
    return losses.smooth_l1(x, t, beta=beta, reduction=reduction)


def huber_loss(
    input: ArrayLike,
    target: ArrayLike,
    reduction: Reduction = "mean",
    delta: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
) -> Array:
    """Squared, then absolute error: `jl.huber(input, target, delta=delta)`; the mean divides by the count, not by
    the weights.
    """
    admit_reduction(reduction)
    demand_positive("delta", delta)
    x, t = predictions_and_targets(input, target)
    each = losses.huber(x, t, delta=delta, weights=_weights(weight, x), reduction="none")
    return reduced(each, reduction)


def _weights(weight: ArrayLike | None, x: Array) -> Array | None:
    """One weight an entry: torch does not broadcast these."""
    if weight is None:
        return None
    found = real("weight", weight)
    of_one_shape(input=x, weight=found)
    return found
