"""What every class shares: shapes brought together as keras does it, sample weights, and the six reductions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp

from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array, ArrayLike

__all__ = ["BoundLoss", "Loss", "Reduction", "floating", "matched", "same_rank"]

_Word = Literal["sum_over_batch_size", "sum", "mean", "mean_with_sample_weight", "none"]
Reduction = _Word | None

# The values of a loss, and which of them exist where not all do.
Values = Array | tuple[Array, Array]


def floating(x: ArrayLike) -> Array:
    """What a model produces, as an array of floating numbers."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def matched(y_true: ArrayLike, y_pred: ArrayLike, *, wide: bool = True) -> tuple[Array, Array]:
    """Both as floating arrays of float32 or wider; predictions, if not `wide`, as they are. No truth is rounded."""
    p = floating(y_pred)
    dtype = jnp.promote_types(p.dtype, jnp.float32)
    return jnp.asarray(y_true).astype(dtype), p.astype(dtype) if wide else p


def same_rank(x: Array, y: Array) -> tuple[Array, Array]:
    """[N] beside [N, 1] both as [N, 1]; of higher ranks the array that ends in 1 loses that axis."""
    if x.ndim == y.ndim + 1 and x.shape[-1] == 1:
        return (x, y[:, None]) if y.ndim == 1 else (jnp.squeeze(x, -1), y)
    if y.ndim == x.ndim + 1 and y.shape[-1] == 1:
        return (x[:, None], y) if x.ndim == 1 else (x, jnp.squeeze(y, -1))
    return x, y


def _broadcast(x: Array, y: Array, what: str) -> tuple[Array, Array]:
    try:
        shape = jnp.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise ValueError(f"{what} {list(y.shape)} must broadcast against the losses {list(x.shape)}") from None
    return jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)


class Loss:
    """The base class, for losses of your own: override `call(y_true, y_pred)`.

    Calling one converts both to `dtype`, and weighs and reduces what `call` returns. In new code: `jaxloss.reduce`.
    """

    def __init__(
        self, name: str | None = None, reduction: Reduction = "sum_over_batch_size", dtype: Any = None
    ) -> None:
        words = (*get_args(_Word), None)
        if reduction not in words:
            raise ValueError(f"`reduction` must be one of {words}, got {reduction!r}")
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        self.reduction: Reduction = reduction
        # A keras policy says what it computes in; anything else is a dtype, and None is keras's floatx.
        self._dtype = jnp.dtype("float32" if dtype is None else getattr(dtype, "compute_dtype", dtype))
        if not jnp.issubdtype(self._dtype, jnp.floating):
            raise ValueError(f"`dtype` must be floating, got {self._dtype}")

    @property
    def dtype(self) -> str:
        """The name of the result's dtype."""
        return self._dtype.name

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None) -> Array:
        """The losses, weighed and reduced."""
        with jax.named_scope(self.name):
            found = self._values(y_true, y_pred)
            values, exists = found if isinstance(found, tuple) else (found, None)
            return _reduced(values, exists, sample_weight, self.reduction).astype(self._dtype)

    def call(self, y_true: Any, y_pred: Any) -> Array:
        """The losses before they are weighed and reduced."""
        raise NotImplementedError(f"{type(self).__name__} must define `call(y_true, y_pred)`")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; `from_config` takes them."""
        return {"name": self.name, "reduction": self.reduction, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The loss that `get_config` describes."""
        return cls(**config)

    def _values(self, y_true: Any, y_pred: Any) -> Values:
        def convert(x: Any) -> Array:
            return jnp.asarray(x, self._dtype)

        return self.call(jax.tree.map(convert, y_true), jax.tree.map(convert, y_pred))


class BoundLoss(Loss):
    """A function and its options."""

    def __init__(
        self, function: Callable[..., Values], *, name: str, reduction: Reduction, dtype: Any, **options: Any
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._function, self._options = function, options
        vars(self).update(options)

    def call(self, y_true: ArrayLike, y_pred: ArrayLike) -> Array:
        """The losses before they are weighed and reduced."""
        found = self._values(y_true, y_pred)
        return found[0] if isinstance(found, tuple) else found

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; `from_config` takes them."""
        return {**super().get_config(), **self._options}

    def _values(self, y_true: ArrayLike, y_pred: ArrayLike) -> Values:
        p = floating(y_pred)
        own = jnp.promote_types(p.dtype, jnp.float32)
        # Half precision is not widened here: what a loss needs of it in float32 it widens itself, within its sums.
        p = p if jnp.promote_types(own, self._dtype) == own else p.astype(self._dtype)
        return self._function(*same_rank(jnp.asarray(y_true), p), **self._options)


def _reduced(values: Array, exists: Array | None, sample_weight: ArrayLike | None, reduction: Reduction) -> Array:
    weight = None if sample_weight is None else jnp.asarray(sample_weight).astype(values.dtype)
    if exists is not None:
        share = exists.astype(values.dtype)
        if weight is None:
            weight = share
        else:
            share, weight = _broadcast(*same_rank(share, weight), "`sample_weight`")
            weight = share * weight
    total = values
    if weight is not None:
        total, weight = same_rank(values, weight)
        total, each = _broadcast(total, weight, "`sample_weight`")
        total = total * each
    if reduction in (None, "none") or total.ndim == 0:
        return total
    size = total.size
    total = jnp.sum(total)
    if reduction == "sum":
        return total
    count = jnp.asarray(size, total.dtype)
    if reduction == "mean_with_sample_weight" and weight is not None:
        count = jnp.sum(weight)
    elif exists is not None:
        count = jnp.sum(exists, dtype=total.dtype) * (size / exists.size)
    return Mean(total, count).value
