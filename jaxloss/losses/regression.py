"""Predictions against real targets."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.core.compiled import compiled
from jaxloss.core.frames import eventwise, pointwise, statistic
from jaxloss.core.numerics import (
    absolute,
    apart,
    differentiable,
    of_residual,
    scale_exponent,
    spread_apart,
    tanh,
    widen,
)
from jaxloss.core.numerics import log_cosh as log_cosh_of
from jaxloss.core.types import Array, Mask, NonNegative, Positive, Real, Reduction, Weights

__all__ = [
    "absolute_error",
    "absolute_percentage_error",
    "cosine_distance",
    "half_squared_error",
    "huber",
    "log_cosh",
    "root_mean_squared_error",
    "smooth_l1",
    "squared_error",
    "squared_log_error",
]


@compiled
def squared_error(
    predictions: Real,
    targets: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared difference; its mean is the mean squared error (MSE).

        (predictions - targets)^2

    Use for real targets with errors of one size: the mean of the targets minimises it, and outliers rule it.

    Args:
      predictions, targets: [...] real, one shape.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared target units, in [0, inf); 0 only at equality.
    Gradient: 2 (predictions - targets); smooth, unbounded.
    Peers: optax.squared_error, torch.nn.MSELoss, torch.nn.functional.mse_loss, keras.losses.MeanSquaredError,
      rax.pointwise_mse_loss.
    Reference: Gauss (1809), Theoria motus corporum coelestium, book 2, section 3.
    """

    def value(predictions: Array, targets: Array) -> Array:
        return jnp.square(predictions - targets)

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


@compiled
def half_squared_error(
    predictions: Real,
    targets: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Half the squared difference, whose gradient is the difference itself.

        1/2 (predictions - targets)^2

    Use where the factor 2 of the squared error's gradient is in the way (L2 loss in statistics and control).

    Args:
      predictions, targets: [...] real, one shape.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared target units, in [0, inf); 0 only at equality.
    Gradient: predictions - targets; smooth, unbounded.
    Peers: optax.l2_loss, rlax.l2_loss.
    Reference: Gauss (1809), Theoria motus corporum coelestium, book 2, section 3.
    """

    def value(predictions: Array, targets: Array) -> Array:
        r = predictions - targets
        return (0.5 * r) * r  # halved first: the square alone overflows sqrt(2) earlier

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


@compiled
def absolute_error(
    predictions: Real,
    targets: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Absolute difference; its mean is the mean absolute error (MAE).

        |predictions - targets|

    Use for real targets with outliers: the median of the targets minimises it.

    Args:
      predictions, targets: [...] real, one shape.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: target units, in [0, inf); 0 only at equality.
    Gradient: sign(predictions - targets), and 0 at equality; it does not shrink near the minimum.
    Peers: torch.nn.L1Loss, torch.nn.functional.l1_loss, keras.losses.MeanAbsoluteError.
    Reference: Laplace (1774), Memoire sur la probabilite des causes par les evenements, problem 3.
    """

    def value(predictions: Array, targets: Array) -> Array:
        return absolute(predictions - targets)

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


def _log_apart(p: Array, t: Array) -> Array:
    """|log((1 + p) / (1 + t))| for p, t >= 0."""
    # A difference of logarithms has no digit left where p is near t. The ratio of the larger to the smaller: the other
    # way round it is 0 to the last digit for 1e-3 against 1e20.
    x = jnp.abs(p - t) / (1 + jnp.minimum(p, t))
    # log1p without a select, so that on a CPU a sum over it is one pass: what 1 + x was rounded by is added to first
    # order. The maximum does nothing, but (1 + x) - 1 is x for the compiler.
    one_more = jnp.maximum(1 + x, 1)
    return jnp.log(one_more) + (x - (one_more - 1)) / one_more


def _log_ratio_value(p: Array, t: Array) -> Array:
    p, t = apart(p, t)
    return jnp.where(p < t, -1, 1) * _log_apart(p, t)


_log_ratio = differentiable(_log_ratio_value, lambda p, t: 1 / (1 + p), lambda p, t: -1 / (1 + t))

_squared_log_error = differentiable(
    lambda p, t: jnp.square(_log_apart(p, t)),
    lambda p, t: 2 * _log_ratio(p, t) / (1 + p),
    lambda p, t: -2 * _log_ratio(p, t) / (1 + t),
)


@compiled
def squared_log_error(
    predictions: NonNegative,
    targets: NonNegative,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared difference of log(1 + x); its mean is the mean squared logarithmic error (MSLE).

        (log(1 + predictions) - log(1 + targets))^2

    Use for amounts and counts that span orders of magnitude, 0 among them: far above 1 it is the ratio that counts.

    Args:
      predictions, targets: [...] real >= 0, one shape. Where both are > 0 and their unit is arbitrary, squared_error
        of the logarithms needs no 1.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared nats, in [0, inf); 0 only at equality. Within 5 ulp, also of two numbers that are nearly equal.
    Gradient: 2 log((1 + predictions) / (1 + targets)) / (1 + predictions); smooth, 0 at equality.
    Peers: keras.losses.MeanSquaredLogarithmicError (which takes log(1 + 1e-7) for log(1 + 0)),
      sklearn.metrics.mean_squared_log_error.
    Reference: Tofallis (2015), A better measure of relative prediction accuracy for model selection and model
      estimation, J. Oper. Res. Soc. 66(8), of 1 + the two numbers.
    """

    def value(predictions: Array, targets: Array) -> Array:
        return _squared_log_error(predictions, targets)

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


def _percentage_value(p: Array, t: Array) -> Array:
    d, scale = spread_apart(p, t)
    return jnp.where(p == t, 0, scale * (jnp.abs(d) / jnp.abs(t)))


def _percentage_slope(p: Array, t: Array) -> Array:
    p, t = apart(p, t)
    # Compared, because a difference of tiny numbers is flushed to 0, and its sign with it.
    return jnp.where(p == t, 0, jnp.where(p > t, 1, -1) / jnp.abs(t))


_percentage = differentiable(
    _percentage_value,
    _percentage_slope,
    lambda p, t: -_percentage_slope(p, t) * jnp.where(p == t, 1, p / t),
)


@compiled
def absolute_percentage_error(
    predictions: Real,
    targets: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Absolute difference over the target; its mean is the mean absolute percentage error (MAPE).

        |predictions - targets| / |targets|

    Use to report or train on relative errors where targets are well away from 0; it favours predictions that are too
    low, whose error is at most 1.

    Args:
      predictions, targets: [...] real, one shape. A target of 0 has no percentage: leave it out with
        `where=targets != 0`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: a fraction (0.1 is 10 %), in [0, inf]; 0 only at equality. At targets = 0: inf, and 0 for predictions = 0.
    Gradient: sign(predictions - targets) / |targets|, and 0 at equality; infinite at targets = 0.
    Peers: keras.losses.MeanAbsolutePercentageError (100 times as large, and divides by 1e-7 at least),
      sklearn.metrics.mean_absolute_percentage_error.
    Reference: de Myttenaere, Golden, Le Grand and Rossi (2016), Mean absolute percentage error for regression models,
      Neurocomputing 192.
    """

    def value(predictions: Array, targets: Array) -> Array:
        return _percentage(predictions, targets)

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


def _huber_value(r: Array, delta: Array) -> Array:
    q = jnp.minimum(jnp.abs(r), delta)  # the part of |r| still on the parabola
    return q * (jnp.abs(r) - 0.5 * q)  # both branches in one expression: nothing to select


# Written down, because the derivative of the form above is q - delta + delta: 0 for every small r.
_huber = of_residual(
    _huber_value,
    lambda r, delta: jnp.clip(r, -delta, delta),
    lambda r, delta: jnp.maximum(jnp.abs(r) - delta, 0),
)


@compiled
def huber(
    predictions: Real,
    targets: Real,
    *,
    delta: Positive = 1.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared error near zero, absolute error beyond `delta`.

        1/2 r^2                  where |r| <= delta,   r = predictions - targets
        delta (|r| - 1/2 delta)  elsewhere

    Use when a few targets may be wrong: no entry pulls harder than `delta`.

    Args:
      predictions, targets: [...] real, one shape.
      delta: > 0, in target units; where the parabola becomes a line.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared target units, in [0, inf); 0 only at equality.
    Gradient: clip(r, -delta, delta); continuous, its slope jumps at |r| = delta.
    Peers: optax.huber_loss, torch.nn.HuberLoss, torch.nn.functional.huber_loss, keras.losses.Huber,
      jaxopt.loss.huber_loss, rlax.huber_loss.
    Reference: Huber (1964), Robust estimation of a location parameter, Ann. Math. Stat. 35(1).
    """

    def value(predictions: Array, targets: Array, delta: Array) -> Array:
        return _huber(predictions, targets, delta)

    return pointwise(
        value,
        predictions=predictions,
        targets=targets,
        scalars={"delta": delta},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _smooth_l1_value(r: Array, beta: Array) -> Array:
    q = jnp.minimum(jnp.abs(r), beta)
    return (q / beta) * (jnp.abs(r) - 0.5 * q)  # q / beta <= 1: a huge r over a small beta does not overflow


_smooth_l1 = of_residual(
    _smooth_l1_value,
    lambda r, beta: jnp.clip(r / beta, -1, 1),
    lambda r, beta: -0.5 * jnp.square(jnp.minimum(jnp.abs(r) / beta, 1)),
)


@compiled
def smooth_l1(
    predictions: Real,
    targets: Real,
    *,
    beta: Positive = 1.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Absolute error with its tip rounded off within `beta`.

        r^2 / (2 beta)    where |r| <= beta,   r = predictions - targets
        |r| - 1/2 beta    elsewhere

    Use for box coordinates and other targets where the far slope must stay 1 whatever `beta` is; it is huber / beta.

    Args:
      predictions, targets: [...] real, one shape.
      beta: > 0, in target units; where the parabola becomes a line.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: target units, in [0, inf); 0 only at equality.
    Gradient: clip(r / beta, -1, 1); continuous, its slope jumps at |r| = beta.
    Peers: torch.nn.SmoothL1Loss, torch.nn.functional.smooth_l1_loss.
    Reference: Girshick (2015), Fast R-CNN, ICCV, eq. 3.
    """

    def value(predictions: Array, targets: Array, beta: Array) -> Array:
        return _smooth_l1(predictions, targets, beta)

    return pointwise(
        value,
        predictions=predictions,
        targets=targets,
        scalars={"beta": beta},
        where=where,
        weights=weights,
        reduction=reduction,
    )


_log_cosh = of_residual(log_cosh_of, tanh)


@compiled
def log_cosh(
    predictions: Real,
    targets: Real,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Logarithm of the hyperbolic cosine of the difference.

        log(cosh(predictions - targets))

    Use like huber with delta = 1 where a second derivative must exist everywhere: 1/2 r^2 near 0, |r| - log 2 far out.

    Args:
      predictions, targets: [...] real, one shape, scaled so that an error of 1 is neither small nor large.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf); 0 only at equality.
    Gradient: tanh(predictions - targets), in (-1, 1); smooth.
    Peers: optax.log_cosh, keras.losses.LogCosh.
    Reference: Green (1990), Bayesian reconstructions from emission tomography data using a modified EM algorithm,
      IEEE Trans. Med. Imaging 9(1).
    """

    def value(predictions: Array, targets: Array) -> Array:
        return _log_cosh(predictions, targets)

    return pointwise(value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction)


# Between these the sum of squares itself neither overflows nor loses what the scaled one has.
_NEEDS_NO_SCALE = (2.0**-80, 2.0**100)

# Two factors of each vector, without its axis, whose product is 1 / length; the second is a power of two. The first is
# 0 for a zero vector, and nan for an infinite one.
_Inverse = tuple[Array, Array]


def _inverse_length(x: Array, axis: int) -> _Inverse:
    def scaled(x: Array, _: Array) -> tuple[Array, Array, Array]:
        scale = scale_exponent(x, axis)
        half = scale_exponent(jnp.sqrt(scale), axis)
        square = jnp.sum(jnp.square(x * (1 / scale)), axis=axis)
        return square, jnp.squeeze(scale / half, axis), jnp.squeeze(1 / half, axis)

    def plain(_: Array, square: Array) -> tuple[Array, Array, Array]:
        one = jnp.where(square > 0, 1, square)
        return square, one, one

    def either(x: Array, square: Array) -> tuple[Array, Array, Array]:
        low, high = _NEEDS_NO_SCALE
        return lax.cond(jnp.all((square >= low) & (square <= high)), plain, scaled, x, square)

    # On a CPU looking for the largest entries costs as much as the distance. Elsewhere a branch would wait for the
    # host.
    square = jnp.sum(jnp.square(x), axis=axis)
    square, near, second = lax.platform_dependent(x, square, cpu=either, default=scaled)
    dead = square == 0
    length = jnp.where(jnp.isinf(square), jnp.nan, jnp.sqrt(jnp.where(dead, 1, square)))
    return jnp.where(dead, 0, 1 / (length * near)), second


def _over_length(x: Array, inverse: _Inverse, axis: int) -> Array:
    # The power of two comes last and rounds nothing: however the compiler fuses this with a difference, u - u is 0.
    first, second = (jnp.expand_dims(part, axis) for part in inverse)
    return x * first * second


def _cosine_distance(p: Array, t: Array, axis: int) -> Array:
    of_p, of_t = (_inverse_length(lax.stop_gradient(x), axis) for x in (p, t))
    return _half_square_apart(p, t, of_p, of_t, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _half_square_apart(p: Array, t: Array, of_p: _Inverse, of_t: _Inverse, axis: int) -> Array:
    # 1 - <u, v> has no digit left where the unit vectors u and v are nearly parallel.
    distance = 0.5 * jnp.sum(jnp.square(_over_length(p, of_p, axis) - _over_length(t, of_t, axis)), axis=axis)
    return jnp.where((of_p[0] == 0) | (of_t[0] == 0), 1, distance)


def _half_square_apart_rule(axis: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (p, t, *_), (dp, dt, *_) = primals, tangents
    # Made again, because those that were given are constants, and a second derivative needs theirs; what was given
    # is then used by nobody, and not computed.
    of_p, of_t = _inverse_length(p, axis), _inverse_length(t, axis)
    value = _half_square_apart(p, t, *lax.stop_gradient((of_p, of_t)), axis)
    tangent = jnp.zeros_like(value)
    for dx, x, y, of_x, of_y in ((dp, p, t, of_p, of_t), (dt, t, p, of_t, of_p)):
        if not isinstance(dx, SymbolicZero):
            tangent = tangent + jnp.sum(_pull(x, y, of_x, of_y, axis) * dx, axis=axis)
    return value, tangent


_half_square_apart.defjvp(_half_square_apart_rule, symbolic_zeros=True)


def _pull(x: Array, y: Array, of_x: _Inverse, of_y: _Inverse, axis: int) -> Array:
    """What of u - v is orthogonal to u = x / |x|, divided by |x|: the gradient towards x."""
    x, y, *parts = apart(x, y, *of_x, *of_y)
    of_x, of_y = (parts[0], parts[1]), (parts[2], parts[3])
    u = _over_length(x, of_x, axis)
    gap = u - _over_length(y, of_y, axis)
    along = jnp.sum(u * gap, axis=axis, keepdims=True)
    return _over_length(gap - u * along, (jnp.where(of_y[0] == 0, 0, of_x[0]), of_x[1]), axis)


@compiled
def cosine_distance(
    predictions: Real,
    targets: Real,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the cosine of the angle between two vectors.

        1 - <predictions, targets> / (|predictions| |targets|)

    Use when only direction carries meaning.

    Args:
      predictions, targets: [..., D] real, one shape.
      axis: the axis of the vectors' components.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, 2]; exactly 1 where either vector is 0.
    Gradient: orthogonal to `predictions`, at most 1 / |predictions| long; 0 where either vector is 0.
    Peers: optax.cosine_distance, optax.cosine_similarity, torch.nn.CosineSimilarity, keras.losses.CosineSimilarity.
    Reference: Salton, Wong and Yang (1975), A vector space model for automatic indexing, Comm. ACM 18(11).
    """

    def value(predictions: Array, targets: Array, *, axis: int) -> Array:
        return _cosine_distance(widen(predictions), widen(targets), axis)

    return eventwise(
        value,
        predictions=predictions,
        targets=targets,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def root_mean_squared_error(
    predictions: Real,
    targets: Real,
    *,
    axis: int | tuple[int, ...] | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Square root of the mean squared difference (RMSE), one number for all entries or a group.

        sqrt(sum w (predictions - targets)^2 / sum w)

    Use to report or train in the targets' own units; `squared_error` has the same minimum and adds up over batches.

    Args:
      predictions, targets: [...] real, one shape.
      axis: the axes that are pooled into one number; None pools all.
      where, weights: as in `jaxloss.reduce`, but of the shape of the entries: they act inside the root.
      reduction: over the groups, which count alike; "partial" does not exist.
    Returns: target units, in [0, inf); 0 at equality and for a group without entries, which the mean leaves out.
    Gradient: w (predictions - targets) / (RMSE sum w), and 0 at a perfect prediction, where the slope has no value.
    Peers: sklearn.metrics.root_mean_squared_error, keras.metrics.RootMeanSquaredError.
    Reference: Gauss (1809), Theoria motus corporum coelestium, book 2, section 3.
    """

    def value(predictions: Array, targets: Array, *, weight: Array, axis: tuple[int, ...]) -> Array:
        r = predictions - targets
        # Scaled by a power of two: squares of 1e20 or 1e-25 would leave the range that their root stays in.
        scale = scale_exponent(jnp.where(weight > 0, r, 0), axis)
        total = jnp.sum(weight * jnp.square(r / scale), axis=axis)
        pooled = jnp.sum(weight, axis=axis)
        mean = total / jnp.where(pooled > 0, pooled, 1)
        # The slope of the root is infinite at 0; a perfect prediction has nothing to learn, so there it is 0.
        alive = mean > 0
        return jnp.squeeze(scale, axis) * jnp.where(alive, jnp.sqrt(jnp.where(alive, mean, 1)), 0)

    return statistic(
        value,
        predictions=predictions,
        targets=targets,
        axis=axis,
        instead="merge squared_error(..., reduction='partial') and take the square root of its `.value`",
        where=where,
        weights=weights,
        reduction=reduction,
    )
