"""Pairs and triplets: of distances, scores and vectors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import jax.numpy as jnp

from jaxloss import losses
from jaxloss.compat.torch.arguments import (
    Reduction,
    admit_reduction,
    at_least_zero,
    demand_positive,
    floating,
    of_one_shape,
    predictions_and_targets,
    real,
    reduced,
)
from jaxloss.core.demand import demand
from jaxloss.core.frames import pointwise
from jaxloss.core.numerics import absolute, norm, scale_exponent, widen
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "cosine_embedding_loss",
    "hinge_embedding_loss",
    "margin_ranking_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

Distance = Callable[[Array, Array], Array]


def hinge_embedding_loss(
    input: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 1.0,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Of distances and signs: `jl.hinge_embedding(input, target, margin=margin)`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    return losses.hinge_embedding(x, t, margin=margin, reduction=reduction)


def cosine_embedding_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 0,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Of pairs of vectors and signs: `jl.cosine_embedding(input1, input2, target, margin=margin)`."""
    admit_reduction(reduction, size_average, reduce)
    x, y, signs = floating("input1", input1), floating("input2", input2), real("target", target)
    of_one_shape(input1=x, input2=y)
    if x.ndim not in (1, 2):
        raise ValueError(f"`input1` {list(x.shape)} must be [D] or [N, D]")
    message = f"`target` {list(signs.shape)} must be `input1` {list(x.shape)} without its last axis"
    demand(chex.assert_shape, signs, x.shape[:-1], error=ValueError, message=message)
    return losses.cosine_embedding(x, y, signs, margin=margin, reduction=reduction)


def margin_ranking_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    margin: ArrayLike = 0,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Of pairs of scores and signs: `jl.margin_ranking(input1, input2, target, margin=margin)`, but that a pair exactly
    at the margin pulls.
    """
    admit_reduction(reduction, size_average, reduce)
    x, y, signs = floating("input1", input1), floating("input2", input2), real("target", target)
    of_one_shape(input1=x, input2=y, target=signs)

    def value(x: Array, y: Array, signs: Array, margin: Array) -> Array:
        return at_least_zero(margin - signs * (x - y))

    return pointwise(value, input1=x, input2=y, target=signs, scalars={"margin": margin}, reduction=reduction)


def triplet_margin_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    margin: ArrayLike = 1.0,
    p: float = 2,
    eps: ArrayLike = 1e-6,
    swap: bool = False,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """`jl.triplet_margin(anchor, positive, negative, margin=margin, p=p, swap=swap)`, with `eps` added to each entry
    of the differences, as torch does; eps=0 is exact.
    """
    admit_reduction(reduction, size_average, reduce)
    if not p > 0:
        raise ValueError(f"`p` must be greater than 0, got {p}")
    distance = functools.partial(_pairwise_distance, p=p, eps=eps)
    return _triplets(anchor, positive, negative, distance, margin, swap, reduction)


def triplet_margin_with_distance_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    distance_function: Distance | None = None,
    margin: ArrayLike = 1.0,
    swap: bool = False,
    reduction: Reduction = "mean",
) -> Array:
    """`jl.triplet_margin_with_distance(..., distance=distance_function)`; None is torch's pairwise_distance, with its
    eps of 1e-6.
    """
    admit_reduction(reduction)
    distance = distance_function if distance_function is not None else functools.partial(_pairwise_distance, p=2)
    return _triplets(anchor, positive, negative, distance, margin, swap, reduction)


def _triplets(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    distance: Distance,
    margin: ArrayLike,
    swap: bool,
    reduction: Reduction,
) -> Array:
    demand_positive("margin", margin)
    a, p, n = floating("anchor", anchor), floating("positive", positive), floating("negative", negative)
    of_one_shape(anchor=a, positive=p, negative=n)
    # Widened once: each is used twice, and its two gradients are added before they are rounded.
    a, p, n = (widen(x) for x in (a, p, n))
    near, far = distance(a, p), distance(a, n)
    if swap:
        far = jnp.minimum(far, distance(p, n))
    return reduced(at_least_zero(margin + near - far), reduction)


def _pairwise_distance(x: Array, y: Array, *, p: float, eps: ArrayLike = 1e-6) -> Array:
    """|x - y + eps| in the p-norm over the last axis; the gradient of a zero difference is 0."""
    if x.ndim == 0:
        raise ValueError("`anchor` [] must have a last axis of components")
    difference = x - y + eps
    if p == 2:
        return jnp.squeeze(norm(difference, -1), -1)
    size = absolute(difference)
    if p == 1:
        return jnp.sum(size, axis=-1)
    if p == math.inf:
        return jnp.max(size, axis=-1, initial=0)
    # Scaled by a power of two: a p-th power leaves the range long before its root does.
    scale = scale_exponent(difference, -1)
    size = size / scale
    total = jnp.sum(jnp.where(size > 0, jnp.power(jnp.where(size > 0, size, 1), p), 0), axis=-1)
    root = jnp.where(total > 0, jnp.power(jnp.where(total > 0, total, 1), 1 / p), 0)
    return jnp.squeeze(scale, -1) * root
