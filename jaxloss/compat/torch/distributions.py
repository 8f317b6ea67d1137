"""Predicted distributions: Poisson, Gaussian, and one against another."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp

from jaxloss import losses
from jaxloss.compat.torch.arguments import Reduction, admit_reduction, predictions_and_targets, real, reduced
from jaxloss.core.frames import pointwise
from jaxloss.core.numerics import differentiable, exp_gap, xlogy
from jaxloss.core.types import Array, ArrayLike

__all__ = ["gaussian_nll_loss", "kl_div", "poisson_nll_loss"]


def _many(t: Array) -> Array:
    """The counts that Stirling's approximation is taken of: torch takes 0 for log(t!) up to 1."""
    return jnp.where(t > 1, t, 1)


def _half_log(t: Array) -> Array:
    return 0.5 * jnp.log(2 * math.pi * t)


def _stirling(t: Array) -> Array:
    """An approximation of log(t!)."""
    many = _many(t)
    return jnp.where(t > 1, many * jnp.log(many) - many + _half_log(many), 0)


def _full_poisson(x: Array, t: Array) -> Array:
    # exp(x), t x and log(t!) are each 1e7 where t is 1e6, and what is left of them is 10: here are two terms >= 0.
    return exp_gap(x, _many(t)) + _half_log(_many(t))


def poisson_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    log_input: bool = True,
    full: bool = False,
    size_average: None = None,
    eps: ArrayLike = 1e-8,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Poisson: `jl.poisson_nll(input, target)` of log-rates; its `full=True` has log(target!) without Stirling."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)

    def of_rate(x: Array, t: Array, eps: Array) -> Array:
        return x - xlogy(t, x + eps)

    if log_input:
        each = losses.poisson_nll(x, t, reduction="none")
        if full:
            each = jnp.where(t > 1, pointwise(_full_poisson, input=x, target=t, reduction="none"), each)
    else:
        each = pointwise(of_rate, input=x, target=t, scalars={"eps": eps}, reduction="none")
        if full:
            each = each + pointwise(_stirling, target=t, reduction="none")
    return reduced(each, reduction)


# The clamp does not count in the gradient. Nothing below 0 is a variance, and a clamp would hide it.
_at_least = differentiable(
    lambda v, least: jnp.where(v < 0, jnp.nan, jnp.maximum(v, least)),
    lambda v, least: jnp.ones_like(v),
    None,
)


def gaussian_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    var: ArrayLike,
    full: bool = False,
    eps: ArrayLike = 1e-6,
    reduction: Reduction = "mean",
) -> Array:
    """Gaussian: `jl.gaussian_nll(input, target, variance, full=full)` with the variance `max(var, eps)`."""
    admit_reduction(reduction)
    x, t = predictions_and_targets(input, target)
    v = _one_for_each(real("var", var), x.shape)
    variance = pointwise(_at_least, var=v, scalars={"eps": eps}, reduction="none")
    return losses.gaussian_nll(x, t, variance, full=full, reduction=reduction)


def _one_for_each(v: Array, shape: tuple[int, ...]) -> Array:
    """A variance for each entry, from one for all, one for each vector, or one along a single axis."""
    if v.ndim and v.shape == shape[:-1]:
        v = v[..., None]
    elif v.ndim and v.shape != shape:
        repeated = [a for a, b in zip(v.shape, shape, strict=False) if a != b]
        if v.ndim != len(shape) or repeated != [1]:
            raise ValueError(
                f"`var` {list(v.shape)} must be a number or have the shape of `input` {list(shape)}, where the last "
                "axis may lack and one axis may have size 1"
            )
    return jnp.broadcast_to(v, shape)


def kl_div(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Literal["none", "batchmean", "mean", "sum"] = "mean",
    log_target: bool = False,
) -> Array:
    """Kullback-Leibler: `jl.kl_divergence(input, target)` is its "batchmean" for [N, C]; "mean" divides by N C."""
    admit_reduction(reduction, size_average, reduce, ("none", "batchmean", "mean", "sum"))
    x, t = predictions_and_targets(input, target)
    divergence = losses.kl_divergence_with_log_targets if log_target else losses.kl_divergence
    # Sums over an axis of size 1: torch keeps the entries.
    each = divergence(x[None], t[None], axis=0, reduction="none")
    if reduction == "batchmean":
        return reduced(each, "sum") / max(x.shape[0] if x.ndim else 1, 1)
    return reduced(each, reduction)
