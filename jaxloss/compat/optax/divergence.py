"""How far one distribution lies from another."""

from __future__ import annotations

import math
import warnings

from jaxloss import losses as jl
from jaxloss.compat.optax.arrays import Axes, pair_along
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "convex_kl_divergence",
    "generalized_kl_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
]


def kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """Kullback-Leibler divergence: `jl.kl_divergence(log_predictions, targets, reduction="none")`."""
    named = {"log_predictions": log_predictions, "targets": targets}
    pair, _ = pair_along(axis, where, named)
    return jl.kl_divergence(*pair, reduction="none")


def kl_divergence_with_log_targets(
    log_predictions: ArrayLike, log_targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """The same of logarithms: `jl.kl_divergence_with_log_targets(log_predictions, log_targets, reduction="none")`."""
    named = {"log_predictions": log_predictions, "log_targets": log_targets}
    pair, _ = pair_along(axis, where, named)
    return jl.kl_divergence_with_log_targets(*pair, reduction="none")


def generalized_kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """That of masses of any sum: `jl.generalized_kl_divergence(log_predictions, targets, reduction="none")`."""
    named = {"log_predictions": log_predictions, "targets": targets}
    pair, _ = pair_along(axis, where, named, dead=(-math.inf, 0.0))
    return jl.generalized_kl_divergence(*pair, reduction="none")


def convex_kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axes = -1, where: ArrayLike | None = None
) -> Array:
    """The old name of `generalized_kl_divergence`, deprecated here as there: `jl.generalized_kl_divergence`."""
    warnings.warn("convex_kl_divergence is deprecated: use generalized_kl_divergence", DeprecationWarning, stacklevel=2)
    return generalized_kl_divergence(log_predictions, targets, axis=axis, where=where)
