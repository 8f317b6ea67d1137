"""Overlap of regions: optax's dice losses, which are Tversky's with its two weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxloss.algorithms.overlap import binary_overlap, class_overlaps, inverse_square_weights, missed_part
from jaxloss.compat.optax.arrays import aligned, assert_one_shape, number, ordered_axes
from jaxloss.core.demand import demand
from jaxloss.core.inputs import wide_dtype
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, ArrayLike

__all__ = ["binary_dice_loss", "dice_loss", "multiclass_generalized_dice_loss"]


def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: str = "mean",
    ignore_background: bool = False,
    axis: int | Sequence[int] | None = None,
) -> Array:
    """What predicted regions miss, one a class: `jl.multiclass_tversky(predictions, targets, reduction="none")`.

    `axis` (all but the first and last by default) is jaxloss's `image_axes`. `reduction` is over classes alone; it and
    `class_weights` are jaxloss's `reduction` and `weights`. One channel goes through the sigmoid: `jl.tversky`.
    """
    p, t = number("predictions", predictions), number("targets", targets)
    if p.ndim == t.ndim - 1:
        p = p[..., None]
    elif t.ndim == p.ndim - 1:
        t = t[..., None]
    assert_one_shape("predictions", p, "targets", t)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"`reduction` must be 'mean', 'sum' or 'none', got {reduction!r}")
    if class_weights is not None:
        class_weights = number("class_weights", class_weights)
        message = f"`class_weights` {list(class_weights.shape)} must have one axis"
        demand(chex.assert_rank, class_weights, 1, error=ValueError, message=message)
    pixels = tuple(range(1, p.ndim - 1)) if axis is None else _places(axis, p.ndim)
    if not apply_softmax:
        p = _probabilities(p)
    loss = _missed_parts(p, t, *(jnp.asarray(x) for x in (alpha, beta, smooth)), pixels=pixels, logits=apply_softmax)
    if class_weights is not None:
        loss = jnp.multiply(*aligned(loss, class_weights))
    if ignore_background and p.shape[-1] > 1:
        loss = loss[..., 1:]
    return {"mean": jnp.mean, "sum": jnp.sum}[reduction](loss, axis=-1) if reduction != "none" else loss


@functools.partial(jax.jit, static_argnames=("pixels", "logits"), inline=True)
def _missed_parts(
    p: Array, t: Array, alpha: Array, beta: Array, smooth: Array, *, pixels: tuple[int, ...], logits: bool
) -> Array:
    """One number for each class and group of `pixels`."""
    groups = tuple(size for i, size in enumerate(p.shape) if i not in pixels)
    dtype = wide_dtype([p, t])

    def of_groups(x: Array) -> Array:
        """An option that broadcasts with the groups, in a shape that broadcasts with their pixels."""
        x = x.astype(dtype)
        return x if x.ndim == 0 else jnp.expand_dims(jnp.broadcast_to(x, groups), pixels)

    a, b = of_groups(alpha), of_groups(beta)
    if not logits:
        p = widen(p)
        missed = jnp.sum(a * (p * (1 - t)) + b * ((1 - p) * t), axis=pixels)
        met = jnp.sum(p * t, axis=pixels)
    elif p.shape[-1] == 1:
        missed, met = binary_overlap(p, t, a, b, pixels, None)
    else:
        missed, met = class_overlaps(p, t, a, b, p.ndim - 1, pixels, None)
    missed, met, more = aligned(missed, met, smooth.astype(dtype))
    return missed_part(missed, met + more)


def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
) -> Array:
    """The mean over images and classes of dice losses, weighted by 1 / (pixels of the class in all images)^2.

    `jl.generalized_dice(predictions, targets, reduction="none")` weights an image by its own pixels, and sums before
    it divides, as the paper does.
    """
    p, t = number("predictions", predictions), number("targets", targets)
    assert_one_shape("predictions", p, "targets", t)
    # Scaled to a mean of 1, so that the loss is their weighted mean.
    weights = inverse_square_weights(jnp.sum(widen(t), axis=tuple(range(t.ndim - 1))))
    weights = weights * (t.shape[-1] / jnp.sum(weights))
    return jnp.mean(
        dice_loss(
            p,
            t,
            class_weights=weights,
            smooth=smooth,
            apply_softmax=apply_softmax,
            reduction="none",
            ignore_background=ignore_background,
        )
    )


def binary_dice_loss(
    predictions: ArrayLike, targets: ArrayLike, *, smooth: ArrayLike = 1.0, apply_sigmoid: bool = True
) -> Array:
    """What one predicted region misses: `jl.dice(predictions, targets, reduction="none")`.

    All axes but the first are jaxloss's `axis`, and so is a last one of size 1.
    """
    p, t = number("predictions", predictions), number("targets", targets)
    if p.ndim == t.ndim and p.shape[-1:] != (1,):
        p, t = p[..., None], t[..., None]
    return dice_loss(p, t, smooth=smooth, apply_softmax=apply_sigmoid)


def _places(axis: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    axes = axis if isinstance(axis, int) else tuple(axis)
    return tuple(a + ndim for a in ordered_axes(axes, ndim, "predictions"))


def _probabilities(p: Array) -> Array:
    """`p`, refused where it is no distribution over the last axis, or no probability where that has size 1.

    Inside jit, where there is no number to look at, such a pixel becomes nan.
    """
    if p.shape[-1] == 1:
        legal = (p >= 0) & (p <= 1)
    else:
        tolerance = max(1e-5, float(jnp.finfo(p.dtype).eps))  # half precision cannot keep what float32 can
        legal = jnp.abs(jnp.sum(widen(p), axis=-1, keepdims=True) - 1) <= tolerance
    if isinstance(legal, Tracer):
        return p * jnp.where(legal, 1, jnp.nan).astype(p.dtype)
    if not bool(jnp.all(legal)):
        raise ValueError(
            "with apply_softmax=False `predictions` must be valid probability distributions, of sum 1 over the last "
            f"axis (or in [0, 1] where it has size 1); {int(jnp.sum(~legal))} of {legal.size} are not"
        )
    return p
