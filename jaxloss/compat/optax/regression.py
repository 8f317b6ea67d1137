"""Predictions against real targets, and angles between vectors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxloss import losses as jl
from jaxloss.compat.optax.arrays import Axes, assert_one_shape, entrywise, flat, floating, number, pair_along
from jaxloss.core.inputs import as_array
from jaxloss.core.numerics import norm, unit, widen
from jaxloss.core.types import Array, ArrayLike

__all__ = ["cosine_distance", "cosine_similarity", "huber_loss", "l2_loss", "log_cosh", "squared_error"]


def squared_error(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    """Squared difference, of one shape: `jl.squared_error(predictions, targets, reduction="none")`."""
    return jl.squared_error(*_of_one_shape(predictions, targets), reduction="none")


def l2_loss(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    """Half of the squared difference: `jl.half_squared_error(predictions, targets, reduction="none")`."""
    return jl.half_squared_error(*_of_one_shape(predictions, targets), reduction="none")


def huber_loss(predictions: ArrayLike, targets: ArrayLike | None = None, *, delta: ArrayLike = 1.0) -> Array:
    """Squared, then absolute error: `jl.huber(predictions, targets, delta=delta, reduction="none")`."""

    def loss(p: Array, t: Array, delta: Array) -> Array:
        return jl.huber(p, t, delta=delta, reduction="none")

    return entrywise(loss, _or_zero(predictions, targets), [delta])


def log_cosh(predictions: ArrayLike, targets: ArrayLike | None = None) -> Array:
    """Smooth absolute error: `jl.log_cosh(predictions, targets, reduction="none")`."""
    return entrywise(functools.partial(jl.log_cosh, reduction="none"), _or_zero(predictions, targets))


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Cosine of the angle between two vectors: 1 - `jl.cosine_distance(predictions, targets, reduction="none")`."""
    (x, y), floor = _vectors(predictions, targets, epsilon, axis, where)
    return _similarity(x, y, floor)


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: Axes = -1,
    where: ArrayLike | None = None,
) -> Array:
    """One minus the cosine of the angle: `jl.cosine_distance(predictions, targets, reduction="none")`."""
    (x, y), floor = _vectors(predictions, targets, epsilon, axis, where)
    if isinstance(epsilon, (int, float)) and epsilon == 0:
        return jl.cosine_distance(x, y, reduction="none")
    return _distance(x, y, floor)


def _of_one_shape(predictions: ArrayLike, targets: ArrayLike | None) -> tuple[Array, Array]:
    p, t = _or_zero(predictions, targets)
    assert_one_shape("predictions", p, "targets", t)
    return p, t


def _or_zero(predictions: ArrayLike, targets: ArrayLike | None) -> tuple[Array, Array]:
    p = floating("predictions", predictions)
    return p, jnp.zeros_like(p) if targets is None else as_array("targets", targets)


def _vectors(
    predictions: ArrayLike, targets: ArrayLike, epsilon: ArrayLike, axis: Axes, where: ArrayLike | None
) -> tuple[tuple[Array, Array], Array]:
    """The vectors along the last axis, 0 where `where` excludes; and the least length that they are divided by."""
    x, y = floating("predictions", predictions), floating("targets", targets)
    pair, axes = pair_along(axis, where, {"predictions": x, "targets": y})
    for a in axes:
        # A number against a vector: its repetition has another length than itself, and neither is what was meant.
        if min(x.ndim, y.ndim) < -a or x.shape[a] != y.shape[a]:
            raise ValueError(
                f"`predictions` {list(x.shape)} and `targets` {list(y.shape)} must agree along `axis` {axis}, whose "
                "lengths are measured; broadcast explicitly"
            )
    wide = widen(pair[0]), widen(pair[1])
    floor = jnp.sqrt(number("epsilon", epsilon).astype(jnp.result_type(*wide)))
    if floor.ndim:  # one for each vector, with 1 in the vectors' axes
        shape = list(jnp.broadcast_shapes(x.shape, y.shape))
        for a in axes:
            shape[a] = 1
        floor = flat(jnp.broadcast_to(floor, jnp.broadcast_shapes(floor.shape, tuple(shape))), axes)
    return wide, floor


@functools.partial(jax.jit, inline=True)
def _similarity(x: Array, y: Array, floor: Array) -> Array:
    return jnp.sum(_shortened(x, floor)[0] * _shortened(y, floor)[0], axis=-1)


@functools.partial(jax.jit, inline=True)
def _distance(x: Array, y: Array, floor: Array) -> Array:
    # 1 - <u, v> by |u - v|^2, which keeps the digits of nearly parallel vectors; a u shorter than 1 adds what it lacks.
    (u, u_lacks), (v, v_lacks) = _shortened(x, floor), _shortened(y, floor)
    return 0.5 * jnp.sum(jnp.square(u - v), axis=-1) + 0.5 * (u_lacks + v_lacks)


def _shortened(x: Array, floor: Array) -> tuple[Array, Array]:
    """u = x / max(|x|, floor) over the last axis, and 1 - |u|^2; the zero vector stays zero, if there is no floor."""
    length = norm(x, -1)
    reached = length >= floor
    u = jnp.where(reached, unit(x, -1), x / jnp.where(floor > 0, floor, 1))
    lacks = jnp.where(reached & (length > 0), 0, 1 - jnp.sum(jnp.square(u), axis=-1, keepdims=True))
    return u, jnp.squeeze(lacks, -1)
