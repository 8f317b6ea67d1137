"""Real targets and counts: means over the last axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxloss.compat.keras.loss import BoundLoss, Reduction, matched, same_rank
from jaxloss.compat.keras.probabilities import poisson_nll
from jaxloss.core.numerics import absolute
from jaxloss.core.types import Array, ArrayLike
from jaxloss.losses import regression as native

__all__ = [
    "CosineSimilarity",
    "Huber",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "cosine_similarity",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
]

# keras.backend.epsilon(): documented where it stands here.
_EPSILON = 1e-7


def _together(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Array, Array]:
    """Both of one shape, by the rules of numpy: keras broadcasts where jaxloss refuses."""
    t, p = same_rank(*matched(y_true, y_pred))
    shape = jnp.broadcast_shapes(t.shape, p.shape)
    return jnp.broadcast_to(t, shape), jnp.broadcast_to(p, shape)


def _mean(loss: Callable[..., Array], y_true: ArrayLike, y_pred: ArrayLike, **options: Any) -> Array:
    t, p = _together(y_true, y_pred)
    return jnp.mean(loss(p, t, **options), axis=-1)


def mean_squared_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.squared_error`, its mean over the last axis."""
    return _mean(native.squared_error, y_true, y_pred, reduction="none")


def mean_absolute_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.absolute_error`, its mean over the last axis; the slope at equality is 0."""
    return _mean(native.absolute_error, y_true, y_pred, reduction="none")


def mean_absolute_percentage_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """100 |t - p| / max(|t|, 1e-7), its mean over the last axis: 100 times `jaxloss.absolute_percentage_error`."""
    return 100 * _mean(lambda p, t: absolute(p - t) / jnp.maximum(jnp.abs(t), _EPSILON), y_true, y_pred)


def mean_squared_logarithmic_error(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.squared_log_error` of max(x, 1e-7), its mean over the last axis."""
    t, p = (jnp.where(x < _EPSILON, _EPSILON, x) for x in _together(y_true, y_pred))
    return jnp.mean(native.squared_log_error(p, t, reduction="none"), axis=-1)


def huber(y_true: ArrayLike, y_pred: ArrayLike, delta: ArrayLike = 1.0) -> Array:
    """`jaxloss.huber`, its mean over the last axis."""
    return _mean(native.huber, y_true, y_pred, delta=delta, reduction="none")


def log_cosh(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.log_cosh`, its mean over the last axis."""
    return _mean(native.log_cosh, y_true, y_pred, reduction="none")


def cosine_similarity(y_true: ArrayLike, y_pred: ArrayLike, axis: int = -1) -> Array:
    """Minus the cosine over `axis`, 0 for a zero vector: `jaxloss.cosine_distance` - 1."""
    t, p = _together(y_true, y_pred)
    return native.cosine_distance(p, t, axis=axis, reduction="none") - 1


def poisson(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """Rate - count log(rate), its mean over the last axis: `jaxloss.poisson_nll` of a log-rate."""
    return _mean(poisson_nll, y_true, y_pred)


class MeanSquaredError(BoundLoss):
    """Squared error: `jaxloss.squared_error`."""

    def __init__(
        self, reduction: Reduction = "sum_over_batch_size", name: str = "mean_squared_error", dtype: Any = None
    ) -> None:
        super().__init__(mean_squared_error, name=name, reduction=reduction, dtype=dtype)


class MeanAbsoluteError(BoundLoss):
    """Absolute error: `jaxloss.absolute_error`."""

    def __init__(
        self, reduction: Reduction = "sum_over_batch_size", name: str = "mean_absolute_error", dtype: Any = None
    ) -> None:
        super().__init__(mean_absolute_error, name=name, reduction=reduction, dtype=dtype)


class MeanAbsolutePercentageError(BoundLoss):
    """Absolute error in percent of the truth: 100 times `jaxloss.absolute_percentage_error`."""

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "mean_absolute_percentage_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(mean_absolute_percentage_error, name=name, reduction=reduction, dtype=dtype)


class MeanSquaredLogarithmicError(BoundLoss):
    """Squared error of log(1 + x): `jaxloss.squared_log_error`."""

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "mean_squared_logarithmic_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(mean_squared_logarithmic_error, name=name, reduction=reduction, dtype=dtype)


class Huber(BoundLoss):
    """Squared error near zero, absolute error beyond `delta`: `jaxloss.huber`."""

    def __init__(
        self,
        delta: float = 1.0,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "huber_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(huber, name=name, reduction=reduction, dtype=dtype, delta=delta)


class LogCosh(BoundLoss):
    """Logarithm of the hyperbolic cosine of the error: `jaxloss.log_cosh`."""

    def __init__(self, reduction: Reduction = "sum_over_batch_size", name: str = "log_cosh", dtype: Any = None) -> None:
        super().__init__(log_cosh, name=name, reduction=reduction, dtype=dtype)


class CosineSimilarity(BoundLoss):
    """Minus the cosine of the angle: `jaxloss.cosine_distance` - 1."""

    def __init__(
        self,
        axis: int = -1,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "cosine_similarity",
        dtype: Any = None,
    ) -> None:
        super().__init__(cosine_similarity, name=name, reduction=reduction, dtype=dtype, axis=axis)


class Poisson(BoundLoss):
    """Negative log-likelihood of counts, from a rate: `jaxloss.poisson_nll`, from a log-rate."""

    def __init__(self, reduction: Reduction = "sum_over_batch_size", name: str = "poisson", dtype: Any = None) -> None:
        super().__init__(poisson, name=name, reduction=reduction, dtype=dtype)
