"""What metrics are made of: sums that go on counting, and what joins them over batches and devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core import inputs, sharding
from jaxloss.core.frames import labelled, pointwise
from jaxloss.core.reduction import Mean, admit_mask, admit_weights
from jaxloss.core.types import Array, ArrayLike, AxisName, Mask, ValidMask, Weights

__all__ = [
    "Entries",
    "Tallied",
    "Total",
    "as_mean",
    "counts",
    "entries",
    "existing",
    "mean_of_entries",
    "mean_of_rows",
    "merge_over",
    "on_every_device",
    "ratio",
    "safe",
    "summed",
]

M = TypeVar("M")

# So many numbers at a time are added to as many totals.
_LANES = 1024


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Total:
    """A sum in two floats, the second what rounding dropped of the first.

    float32 alone stops counting at 2^24 where batches of one are merged; the two go on to 2^48.
    """

    high: Array
    low: Array

    @property
    def value(self) -> Array:
        """The sum, rounded once."""
        return self.high + self.low

    def merge(self, other: Total) -> Total:
        """The sum of both."""
        high = self.high + other.high
        back = high - self.high  # Knuth's TwoSum
        low = (self.high - (high - back)) + (other.high - back) + (self.low + other.low)
        low = jnp.where(jnp.isfinite(high), low, 0)  # an infinite sum stays infinite
        whole = high + low
        return Total(whole, jnp.where(jnp.isfinite(whole), low - (whole - high), 0))

    @staticmethod
    def of(x: ArrayLike) -> Total:
        """What has been summed already: numbers as they are, counts without losing one."""
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.integer):
            wide = jnp.result_type(float)  # float32, float64 where that is enabled
            high = x.astype(wide)
            return Total(high, (x - high.astype(x.dtype)).astype(wide))
        # Not zeros_like: within shard_map a constant could not be carried through a loop beside the varying half.
        return Total(x, jnp.where(x == 0, x, 0))


class Tallied:
    """A metric as a pytree of totals. Of two disjoint sets of entries the totals add up."""

    @property
    def value(self) -> Array:
        """The metric."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """The same metric over the union of two disjoint sets of entries."""
        if type(other) is not type(self):
            raise TypeError(f"merge joins shards of one metric, not {type(self).__name__} and {type(other).__name__}")
        for mine, theirs in zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=True):
            if jnp.shape(mine) != jnp.shape(theirs):
                raise ValueError(
                    f"two {type(self).__name__} of {list(jnp.shape(mine))} and {list(jnp.shape(theirs))} cannot be "
                    "merged: they count other classes or bins"
                )
        return self._joined(other)

    def _joined(self, other: Any) -> Self:
        return jax.tree.map(Total.merge, self, other, is_leaf=lambda node: isinstance(node, Total))


def merge_over(metric: M, axis_name: str | tuple[str, ...]) -> M:
    """Inside `shard_map`: the metric of all devices along `axis_name`, the same on each.

        jl.metrics.merge_over({"accuracy": accuracy, "r2": r2}, "data")

    `metric` is anything with a `merge`, or a pytree of such. Outside of `shard_map` there is nothing to do: under jit
    an array that is sharded over a mesh is one array.
    """
    size, place = lax.axis_size(axis_name), lax.axis_index(axis_name)

    def from_all(x: Array) -> Array:
        # A sum over the devices, each in its own row: unlike a gathered array it is known to be the same everywhere.
        x = jnp.asarray(x)
        rows = jnp.arange(size).reshape((size,) + (1,) * x.ndim)
        return lax.psum(jnp.where(rows == place, x[None], jnp.zeros((), x.dtype)), axis_name)

    def over_devices(one: Any) -> Any:
        stacked = jax.tree.map(from_all, one)
        parts = [jax.tree.map(lambda x: x[i], stacked) for i in range(size)]  # noqa: B023
        return functools.reduce(lambda a, b: a.merge(b), parts)

    return jax.tree.map(over_devices, metric, is_leaf=lambda node: hasattr(node, "merge"))


class Entries(NamedTuple):
    """Arrays of one shape, harmless where masked, and how often each entry counts."""

    arrays: tuple[Array, ...]
    times: Array
    dtype: Any


def entries(where: Mask, weights: Weights, **arrays: ArrayLike) -> Entries:
    """The checks that frames make, for metrics of pooled entries: dtypes, one shape, a mask and weights that fit it."""
    named = inputs.admitted(arrays)
    shape, dtype = inputs.assert_one_shape(named), inputs.wide_dtype(named.values())
    mask = admit_mask("where", where, shape)
    # Not 1/2, as in a frame: 0 is an answer too, and no gradient has to stay finite.
    ready = (x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype)) for x in named.values())
    return Entries(tuple(x.astype(dtype) for x in ready), counts(mask, weights, shape, dtype), dtype)


def counts(where: Mask, weights: Weights, shape: tuple[int, ...], dtype: Any) -> Array:
    """How often each entry counts: an integer 0 or 1 without weights, else its weight; 0 where masked."""
    mask, weight = admit_mask("where", where, shape), admit_weights("weights", weights, shape, dtype)
    weight = lax.stop_gradient(weight)
    each = jnp.ones(shape, jnp.int32) if weight is None else weight
    return each if mask is None else jnp.where(mask, each, 0)


def mean_of_rows(
    value: Callable[..., Array],
    *,
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int,
    valid: ValidMask,
    where: Mask,
    weights: Weights,
) -> Mean:
    """The mean of `value(logits, labels, axis=, valid=)`, one a row."""
    return as_mean(
        labelled(
            value,
            logits=lax.stop_gradient(logits),
            labels=labels,
            axis=axis,
            valid=valid,
            where=where,
            weights=weights,
            reduction="partial",
        )
    )


def mean_of_entries(
    value: Callable[..., Array],
    *,
    scalars: Mapping[str, ArrayLike] | None = None,
    where: Mask,
    weights: Weights,
    **arrays: ArrayLike,
) -> Mean:
    """The mean of `value` of the arrays, entry by entry, and of the scalars."""
    fixed = lax.stop_gradient(arrays)
    return as_mean(pointwise(value, scalars=scalars, where=where, weights=weights, reduction="partial", **fixed))


def existing(z: Array, valid: Array | None) -> Array:
    """Scores, -inf of classes that do not exist."""
    return z if valid is None else jnp.where(valid, z, -jnp.inf)


def safe(x: Array) -> Array:
    """What may be divided by: 1 for 0."""
    return jnp.where(x == 0, 1, x)


def ratio(above: Array, below: Array, otherwise: float = 0.0) -> Array:
    """above / below, and `otherwise` where there is nothing to divide by."""
    return jnp.where(below == 0, otherwise, above / safe(below))


def as_mean(partial: Array) -> Mean:
    """What a frame returns for reduction="partial", by its true name."""
    return cast(Mean, partial)


def on_every_device(x: Array, axis_name: AxisName = ()) -> Array:
    """`x` flat and whole, where a sort or scatter may have it: of an explicit mesh's shards, of `axis_name`'s rows."""
    if any(sharding.is_sharded(x, axis) for axis in range(x.ndim)):
        x = jax.sharding.reshard(x, jax.sharding.PartitionSpec())
    return sharding.all_rows(x.reshape(-1), axis_name)


def summed(x: Array) -> Array:
    """The sum along the last axis; of long ones without what float32 loses: the sixth digit of 1e6 numbers."""
    size = x.shape[-1]
    if size <= _LANES:
        return jnp.sum(x, axis=-1)
    rows = -(-size // _LANES)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, rows * _LANES - size)])
    parts = jnp.moveaxis(padded.reshape(*x.shape[:-1], rows, _LANES), -2, 0)
    lanes, _ = lax.scan(lambda total, part: (total.merge(Total.of(part)), None), Total.of(parts[0]), parts[1:])
    return jnp.sum(lanes.value, axis=-1)
