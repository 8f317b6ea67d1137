"""Real targets whose mean is not what is wanted of the model: quantiles and expectiles."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.frames import pointwise, sequencewise
from jaxloss.core.inputs import as_array, wide_dtype
from jaxloss.core.numerics import apart, differentiable
from jaxloss.core.types import Array, Mask, Probability, Real, Reduction, Weights

__all__ = ["expectile", "quantile"]


def _side(p: Array, t: Array, level: Array) -> Array:
    """What an error weighs: `level` where the target is above, the rest where it is below."""
    return jnp.where(t > p, level, 1 - level)


def _quantile_value(p: Array, t: Array, level: Array) -> Array:
    half = 0.5 * t - 0.5 * p  # 0.1 of a difference may be in range where the difference is not
    # One maximum: XLA's CPU takes half as long again for the sum of two.
    return jnp.maximum((2 * level) * half, (2 * (level - 1)) * half)


def _quantile_slope(p: Array, t: Array, level: Array) -> Array:
    p, t, level = apart(p, t, level)
    return jnp.where(p == t, 0, jnp.where(t > p, -level, 1 - level))


_quantile = differentiable(
    _quantile_value,
    _quantile_slope,
    lambda p, t, level: -_quantile_slope(p, t, level),
    lambda p, t, level: t - p,
)


@compiled
def quantile(
    predictions: Real,
    targets: Real,
    *,
    level: Probability = 0.5,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Absolute error that weighs targets above and below a prediction differently (pinball loss).

        max(level r, (level - 1) r),   r = targets - predictions
        of Q levels:  1/Q sum_k max(level_k r_k, (level_k - 1) r_k),   r_k = targets - predictions_k

    Use to predict quantiles: the minimiser has a share `level` of the targets below it. Several at once, from a model
    with Q outputs, make an interval or a whole distribution (which they may cross: nothing here forbids it).

    Args:
      predictions: [...] real; [..., Q] for Q levels.
      targets: [...] real.
      level: in (0, 1), a number or an array [Q]; 1/2 is half the absolute error. Traced: another level does not
        recompile. At 0 and at 1 one side costs nothing.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the targets.
    Returns: target units, in [0, inf); 0 only at equality.
    Gradient: -level where the target is above, 1 - level where it is below, and 0 at equality; of Q levels, by Q.
    Peers: rlax.quantile_regression_loss, sklearn.metrics.mean_pinball_loss, pytorch_forecasting.metrics.QuantileLoss.
    Reference: Koenker and Bassett (1978), Regression quantiles, Econometrica 46(1).
    """
    levels = as_array("level", level)
    if levels.ndim == 0:
        return pointwise(
            _quantile,
            predictions=predictions,
            targets=targets,
            scalars={"level": level},
            where=where,
            weights=weights,
            reduction=reduction,
        )
    _assert_one_level_an_output(levels, predictions, targets)

    def value(p: Array, t: Array, level: Array, *, alive: tuple[()]) -> Array:
        dtype = wide_dtype([p, t])
        p, t, level = (x.astype(dtype) for x in (p, t, level))
        # Added to zeros, not broadcast: so they lie on a mesh as the predictions do.
        level = level.reshape((1,) * (p.ndim - 1) + level.shape) + jnp.zeros_like(p)
        t = jnp.expand_dims(t, -1) + jnp.zeros_like(p)
        return jnp.mean(_quantile(p, t, level), axis=-1)

    return sequencewise(
        value,
        predictions=predictions,
        targets=targets,
        steps={"predictions": 1, "targets": 0},
        lengths={},
        shared={"level": levels},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _assert_one_level_an_output(level: Array, predictions: Real, targets: Real) -> None:
    p, t = as_array("predictions", predictions), as_array("targets", targets)
    if level.ndim != 1 or level.size == 0:
        raise ValueError(f"`level` {list(level.shape)} must be a scalar or an array [Q] of at least one level")
    if p.ndim == 0 or p.shape[-1] != level.size:
        raise ValueError(
            f"`level` {list(level.shape)} and `predictions` {list(p.shape)} must have one output a level: for Q levels "
            f"predictions are [..., {level.size}] and targets [...], here {list(t.shape)}"
        )


def _expectile_value(p: Array, t: Array, level: Array) -> Array:
    r = t - p
    return (_side(p, t, level) * r) * r  # weighed first: the square alone overflows earlier


def _expectile_slope(p: Array, t: Array, level: Array) -> Array:
    p, t, level = apart(p, t, level)
    return (4 * _side(p, t, level)) * (0.5 * p - 0.5 * t)


_expectile = differentiable(
    _expectile_value,
    _expectile_slope,
    lambda p, t, level: -_expectile_slope(p, t, level),
    lambda p, t, level: jnp.where(t > p, 1, -1) * jnp.square(t - p),
)


@compiled
def expectile(
    predictions: Real,
    targets: Real,
    *,
    level: Probability = 0.5,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared error that weighs targets above and below a prediction differently.

        |level - [r < 0]| r^2,   r = targets - predictions

    Use like `quantile` where a mean should lean to one side: smooth, sensitive to how far targets lie; at high levels
    the upper expectile of values in offline reinforcement learning.

    Args:
      predictions, targets: [...] real, one shape.
      level: in (0, 1); 1/2 is half the squared error. Traced: another level does not recompile.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: squared target units, in [0, inf); 0 only at equality.
    Gradient: -2 level r where the target is above, -2 (1 - level) r where it is below; continuous, its slope jumps at
      equality.
    Peers: rlax.expectile_loss.
    Reference: Newey and Powell (1987), Asymmetric least squares estimation and testing, Econometrica 55(4).
    """
    return pointwise(
        _expectile,
        predictions=predictions,
        targets=targets,
        scalars={"level": level},
        where=where,
        weights=weights,
        reduction=reduction,
    )
