"""What optax asks of its inputs: arrays that broadcast, one or several class axes, masks over classes or rows."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from jaxloss.core.demand import demand
from jaxloss.core.inputs import as_array, canonical_axes
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "Axes",
    "LabelledRows",
    "SoftRows",
    "aligned",
    "assert_one_shape",
    "entrywise",
    "flat",
    "floating",
    "labelled_rows",
    "number",
    "ordered_axes",
    "pair_along",
    "soft_rows",
]

Axes: TypeAlias = int | tuple[int, ...] | None


def floating(name: str, x: ArrayLike) -> Array:
    """`x` as an array; a TypeError where it is not floating."""
    array = as_array(name, x)
    message = f"`{name}` must be floating, got {array.dtype}"
    demand(chex.assert_type, array, jnp.floating, error=TypeError, message=message)
    return array


def number(name: str, x: ArrayLike) -> Array:
    """`x` as a floating array; integers and booleans become float32."""
    array = as_array(name, x)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def aligned(*arrays: Array) -> list[Array]:
    """The arrays in the one shape that they broadcast to, whatever jax is configured to say of different ranks."""
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


def assert_one_shape(first: str, x: Array, second: str, y: Array) -> None:
    """A ValueError where the shapes differ: some of optax's losses do not broadcast."""
    message = f"`{first}` {list(x.shape)} and `{second}` {list(y.shape)} must have one shape"
    demand(chex.assert_equal_shape, [x, y], error=ValueError, message=message)


def entrywise(loss: Callable[..., Array], arrays: Sequence[Array], options: Sequence[ArrayLike] = ()) -> Array:
    """`loss(*arrays, *options)` of broadcast arrays, for a loss that takes each option as one number.

    optax's hyper-parameters broadcast like its arrays; so options that are arrays are mapped over.
    """
    numbers = [jnp.asarray(x) for x in options]
    if all(x.ndim == 0 for x in numbers):
        return loss(*aligned(*arrays), *numbers)
    every = aligned(*arrays, *numbers)
    for _ in range(every[0].ndim):
        loss = jax.vmap(loss)
    return loss(*every)


def ordered_axes(axis: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """`axis` as negative numbers in the order given: so they hold in an array that has more axes in front, too."""
    if axis is None:
        return tuple(range(-ndim, 0))
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (operator.index(axis),)
    canonical_axes(axes, (1,) * ndim, name)  # refuses what is out of range, or named twice
    return tuple(a % ndim - ndim for a in axes)


def flat(x: Array, axes: tuple[int, ...]) -> Array:
    """`axes` (negative) in their order as one axis behind all others."""
    if axes == (-1,):
        return x
    moved = jnp.moveaxis(x, axes, tuple(range(-len(axes), 0)))
    return moved.reshape(*moved.shape[: moved.ndim - len(axes)], -1)


def pair_along(
    axis: Axes, where: ArrayLike | None, named: dict[str, ArrayLike], dead: tuple[float, float] = (0.0, 0.0)
) -> tuple[tuple[Array, Array], tuple[int, ...]]:
    """Two floating arrays in the shape that they and `where` broadcast to, `axis` moved to the end as one axis.

    `dead` stands in them where `where` excludes. Also the axes, as negative numbers.
    """
    (first, x), (second, y) = ((name, floating(name, each)) for name, each in named.items())
    axes = ordered_axes(axis, max(x.ndim, y.ndim), first if x.ndim >= y.ndim else second)
    if where is None:
        x, y = aligned(x, y)
    else:
        x, y, kept = aligned(x, y, jnp.asarray(where).astype(bool))
        x, y = (jnp.where(kept, each, fill) for each, fill in zip((x, y), dead, strict=True))
    return (flat(x, axes), flat(y, axes)), axes


class SoftRows(NamedTuple):
    """Class scores and the weights of their classes, the classes along the last axis; and what exists of them."""

    scores: Array  # [..., C]
    targets: Array  # [..., C]
    valid: Array | None  # [..., C] bool: which classes exist
    exists: Array | None  # [...] bool: which rows exist


def soft_rows(name: str, scores: Array, labels: Array, axis: Axes, where: ArrayLike | None) -> SoftRows:
    """Scores, and labels that broadcast with them, along the class axes of the scores."""
    axes = ordered_axes(axis, scores.ndim, name)
    classes = [1] * scores.ndim
    for a in axes:
        classes[a] = scores.shape[a]
        if labels.ndim >= -a and labels.shape[a] not in (1, scores.shape[a]):
            raise ValueError(
                f"`{name}` {list(scores.shape)} has {scores.shape[a]} classes along axis {a}, and `labels` "
                f"{list(labels.shape)} has {labels.shape[a]}"
            )
    labels = flat(jnp.broadcast_to(labels, jnp.broadcast_shapes(labels.shape, tuple(classes))), axes)
    scores, valid, exists = _with_mask(scores, axes, where)
    scores, labels = aligned(scores, labels)
    rows = scores.shape[:-1]
    return SoftRows(
        scores,
        labels,
        None if valid is None else jnp.broadcast_to(valid, scores.shape),
        None if exists is None else jnp.broadcast_to(exists, rows),
    )


class LabelledRows(NamedTuple):
    """Class scores, the classes along the last axis, and one label a row; and what exists of them."""

    scores: Array  # [..., C]
    labels: Array  # [...] integer
    valid: Array | None  # [..., C] bool: which classes exist
    exists: Array | None  # [...] bool: which rows exist


def labelled_rows(
    name: str, scores: Array, labels: ArrayLike, axis: int | tuple[int, ...] = -1, where: ArrayLike | None = None
) -> LabelledRows:
    """Scores, and labels that broadcast with their rows; of several class axes a label is the flat index."""
    scores, valid, exists = _with_mask(scores, ordered_axes(axis, scores.ndim, name), where)
    index = as_array("labels", labels)
    rows = jnp.broadcast_shapes(scores.shape[:-1], index.shape)
    full = (*rows, scores.shape[-1])
    return LabelledRows(
        jnp.broadcast_to(scores, full),
        jnp.broadcast_to(index, rows),
        None if valid is None else jnp.broadcast_to(valid, full),
        None if exists is None else jnp.broadcast_to(exists, rows),
    )


def _with_mask(
    scores: Array, axes: tuple[int, ...], where: ArrayLike | None
) -> tuple[Array, Array | None, Array | None]:
    """The scores, classes last, and which classes and rows exist.

    A `where` of the scores' rank speaks of classes, and a row without one does not exist; any other lacks `axis`, and
    speaks of rows.
    """
    if where is None:
        return flat(scores, axes), None, None
    mask = jnp.asarray(where).astype(bool)
    if mask.ndim != scores.ndim:
        return flat(scores, axes), None, mask
    scores, mask = aligned(scores, mask)
    valid = flat(mask, axes)
    return flat(scores, axes), valid, jnp.any(valid, axis=-1)
