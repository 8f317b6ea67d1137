"""The one place that knows what `where`, `weights` and `reduction` mean.

The annotation of a loss says `-> Array`. That is its one untruth: `reduction="partial"` returns a `Mean`. A union
would make every caller of every loss narrow a type that the literal in front of them already fixes, and overloads
would triple each signature; so the lie is told once, here (`_as_array`), where every loss returns through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import chex
import jax
import jax.numpy as jnp

from jaxloss.core.demand import demand
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, ArrayLike, Mask, Reduction, Weights

__all__ = ["Mean", "reduce"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean as its two halves, so that shards, microbatches and hosts can be added before dividing.

    A mean of means is wrong as soon as two shards hold different numbers of valid entries; the halves are not.

        whole = first.merge(second)     two shards of one loss
        whole.value                     total / weight; exactly 0 where nothing was valid
        0.1 * term                      scales the total, keeps the weight

    To add two different losses return a dict of terms from `loss_fn`, or add their `.value`.
    """

    total: Array
    weight: Array
    # True when rows saw each other (contrastive losses): then microbatches do not add up to the batch.
    coupled: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def value(self) -> Array:
        """total / weight, and 0 with zero gradient where the weight is 0."""
        return _divide(self.total, self.weight)

    def merge(self, other: Mean) -> Mean:
        """The same loss over the union of two disjoint sets of entries."""
        return Mean(self.total + other.total, self.weight + other.weight, self.coupled or other.coupled)

    @staticmethod
    def zeros_like(like: Mean) -> Mean:
        """The neutral element of `merge`, with the shapes, dtypes and coupling of `like`: a loop carry's start."""
        return Mean(jnp.zeros_like(like.total), jnp.zeros_like(like.weight), like.coupled)

    def __mul__(self, factor: ArrayLike) -> Mean:
        if isinstance(factor, Mean):
            raise TypeError("a `Mean` cannot be multiplied by a `Mean`; multiply their `.value`")
        return Mean(self.total * factor, self.weight, self.coupled)

    __rmul__ = __mul__

    def __add__(self, other: object) -> Mean:
        raise TypeError(
            "`+` of a `Mean` is ambiguous: merge joins shards of one loss (`a.merge(b)`); to add two losses return a "
            "dict of terms from `loss_fn`, or add their `.value`"
        )

    __radd__ = __add__


def reduce(
    values: ArrayLike,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    present: ArrayLike | None = None,
    coupled: bool = False,
) -> Array:
    """Turn unreduced loss values into what the caller asked for.

        "mean"     sum(w v) / sum(w), over the entries that `where` keeps; exactly 0 when there are none
        "sum"      sum(w v)
        "none"     w v, its shape kept, 0 where masked; it sums to "sum" up to rounding
        "partial"  Mean(sum(w v), sum(w)): the two halves, to be merged and divided later

    Use for your own unreduced values; every loss of jaxloss ends here.

    Args:
      values: [...] real, the unreduced loss.
      where: bool, a scalar or of the rank of `values` (size-1 axes broadcast). An excluded entry does not exist: its
        value may be nan or inf.
      weights: real >= 0, shaped like `where`. 2 counts an entry twice. A weight of 0 is not a mask: what stands there
        must be finite.
      reduction: one of the four words above.
      present: what an entry itself says about its existence. bool: an absent entry (a list without a pair) is
        excluded like a masked one. real: how much the entry adds to the denominator where that is not 1 (a sequence
        counts its tokens, a class its weight); the value already contains it.
      coupled: whether rows saw each other; recorded in the `Mean`.
    Returns: float32, or float64 for float64 values; "partial" returns a `Mean`.
    """
    values = widen(jnp.asarray(values))
    share: Array | None = None
    mask = admit_mask("where", where, values.shape)
    if present is not None:
        share = jnp.broadcast_to(jnp.asarray(present), values.shape)
        if share.dtype == jnp.bool_:
            mask, share = (share if mask is None else mask & share), None
    weight = admit_weights("weights", weights, values.shape, values.dtype)
    if mask is not None:
        # Selected, not multiplied: 0 * nan is nan. The weight too: nothing behind a mask is looked at.
        values = jnp.where(mask, values, 0)
        weight = None if weight is None else jnp.where(mask, weight, 0)
    if weight is not None:
        values = values * weight
    if reduction == "none":
        return values
    total = jnp.sum(values)
    if reduction == "sum":
        return total
    count = _count(values, mask, weight, share)
    if reduction == "partial":
        return _as_array(Mean(total, count, coupled))
    if reduction == "mean":
        return _divide(total, count)
    raise ValueError(f"`reduction` must be 'mean', 'sum', 'none' or 'partial', got {reduction!r}")


def reduce_total(
    value: Callable[[Array | None], Array],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """`reduce` for values that are cheaper added up than one by one.

    `value(c)` is the sum of c_i v_i over all entries, c of `shape`; `value(None)` is v itself. A mean asks for c_i =
    w_i / sum(w): its gradient needs no further factor, and is rounded once.
    """
    if reduction == "none":
        return reduce(value(None), where=where, weights=weights, reduction="none")
    mask, weight = admit_mask("where", where, shape), admit_weights("weights", weights, shape, dtype)
    each = jnp.ones(shape, dtype) if weight is None else weight
    if mask is not None:
        each = jnp.where(mask, each, 0)
    if reduction == "sum":
        return value(each)
    count = jnp.sum(each)
    if reduction == "partial":
        return _as_array(Mean(value(each), count))
    if reduction == "mean":
        return value(_divide(each, count))
    raise ValueError(f"`reduction` must be 'mean', 'sum', 'none' or 'partial', got {reduction!r}")


def admit_mask(name: str, mask: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    """`mask` as booleans of exactly `shape`, or None; refused in words where it does not fit."""
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"`{name}` must be bool, got {mask.dtype}; what counts in part goes to `weights`")
    return _fit(name, mask, shape)


def admit_weights(name: str, weights: ArrayLike | None, shape: tuple[int, ...], dtype: jnp.dtype) -> Array | None:
    """`weights` as numbers of exactly `shape` and `dtype`, or None; refused in words where they do not fit."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.dtype == jnp.bool_:
        raise TypeError(f"`{name}` must be numbers, got bool; what is in or out goes to `where`")
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {weights.dtype}")
    return _fit(name, weights.astype(dtype), shape)


def _fit(name: str, small: Array, shape: tuple[int, ...]) -> Array:
    fits = small.ndim == 0 or (
        small.ndim == len(shape) and all(a in (1, b) for a, b in zip(small.shape, shape, strict=True))
    )
    if not fits:
        cure = "give it that rank and sizes 1 or equal"
        missing = ["None"] * (len(shape) - small.ndim)
        axes = [":"] * small.ndim
        if missing and small.shape == shape[: small.ndim]:
            cure = f"did you mean {name}[{', '.join(axes + missing)}]?"
        elif missing and small.shape == shape[-small.ndim :]:
            cure = f"did you mean {name}[{', '.join(missing + axes)}]?"
        message = f"`{name}` {list(small.shape)} must be a scalar or fit the unreduced value {list(shape)}; {cure}"
        demand(chex.assert_shape, small, shape, error=ValueError, message=message)
    return jnp.broadcast_to(small, shape)


def _count(values: Array, mask: Array | None, weight: Array | None, share: Array | None) -> Array:
    """The mean's denominator: the entries that exist, each by its weight and its share."""
    if weight is None and share is None:
        if mask is None:
            return jnp.asarray(values.size, values.dtype)
        return jnp.sum(mask, dtype=values.dtype)
    each = jnp.ones((), values.dtype) if weight is None else weight
    if share is not None:
        each = each * share.astype(values.dtype)
    if mask is not None:
        each = jnp.where(mask, each, 0)
    return jnp.sum(each)


def _divide(total: Array, weight: Array) -> Array:
    # The inner select keeps 0 / 0 out of the gradient, the outer one gives the documented 0. A nan weight is kept.
    empty = weight == 0
    return jnp.where(empty, 0, total / jnp.where(empty, 1, weight))


def _as_array(mean: Mean) -> Array:
    return cast(Array, mean)
