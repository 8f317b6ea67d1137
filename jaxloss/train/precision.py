"""Half-precision computing over float32 masters: what is cast, and the scale that keeps small gradients from 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxloss.core.numerics import widen
from jaxloss.core.types import Array

__all__ = ["ComputeDtype", "DynamicLossScale", "LossScale", "ScaleOption", "caster", "masters", "scale_option"]

# A dtype for everything, or one for each array by its path ("params/dense/kernel", "batch/x"); None leaves it.
ComputeDtype = DTypeLike | Callable[[str, Array], DTypeLike | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LossScale:
    """The dynamic loss scale as a state carries it: its value, and the steps since it last changed."""

    value: Array
    streak: Array


@dataclasses.dataclass(frozen=True)
class DynamicLossScale:
    """A loss scale that looks for the largest power that float16 gradients bear.

    The loss is multiplied by it before it is differentiated and the gradient divided by it afterwards, in float32. A
    gradient that overflows is skipped and the scale divided by `factor`; after `growth_interval` steps without one it
    is multiplied by `factor`. A term that is nan by itself does not change the scale, which is not at fault.

    Args:
      initial: the first scale.
      growth_interval: steps, at least 1.
      factor: > 1; a power of two changes no digit.
      minimum, maximum: where it stops.
    """

    initial: float = 2.0**15  # the largest power of two that float16 itself can hold
    growth_interval: int = 2000
    factor: float = 2.0
    minimum: float = 1.0
    maximum: float = 2.0**24

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 < self.minimum <= self.initial <= self.maximum < float("inf"):
            raise ValueError(
                "a loss scale needs 0 < minimum <= initial <= maximum < inf; got "
                f"{self.minimum}, {self.initial}, {self.maximum}"
            )
        if self.growth_interval < 1 or self.factor <= 1:
            raise ValueError(
                f"a loss scale needs growth_interval >= 1 and factor > 1; got {self.growth_interval}, {self.factor}"
            )

    def first(self) -> LossScale:
        """What a state starts with."""
        return LossScale(jnp.asarray(self.initial, jnp.float32), jnp.zeros((), jnp.int32))

    def advance(self, scale: LossScale, overflowed: Array) -> LossScale:
        """The scale after a step whose gradient overflowed, or did not."""
        grows = ~overflowed & (scale.streak + 1 >= self.growth_interval)
        up = jnp.minimum(scale.value * self.factor, self.maximum)
        down = jnp.maximum(scale.value / self.factor, self.minimum)
        value = jnp.where(overflowed, down, jnp.where(grows, up, scale.value))
        return LossScale(value, jnp.where(overflowed | grows, 0, scale.streak + 1))


# What `loss_scale` may be once it has been read: none, a constant, or dynamic.
ScaleOption = None | float | DynamicLossScale


def scale_option(loss_scale: Any) -> ScaleOption:
    """`loss_scale` as it was given, checked; "dynamic" is the `DynamicLossScale` with its defaults."""
    if isinstance(loss_scale, str):
        if loss_scale != "dynamic":
            raise ValueError(f"`loss_scale` must be a number, 'dynamic' or a `DynamicLossScale`; got {loss_scale!r}")
        return DynamicLossScale()
    if loss_scale is None or isinstance(loss_scale, DynamicLossScale):
        return loss_scale
    if isinstance(loss_scale, bool) or not isinstance(loss_scale, int | float):
        raise TypeError(
            f"`loss_scale` must be a number, 'dynamic' or a `DynamicLossScale`; got {type(loss_scale).__name__}"
        )
    if not 0 < loss_scale < float("inf"):
        raise ValueError(f"`loss_scale` must be positive and finite; got {loss_scale}")
    return float(loss_scale)


def caster(compute_dtype: ComputeDtype | None) -> Callable[[str, Any], Any]:
    """A function (root, tree) that casts a tree's floating leaves; integers, masks and keys stay what they are.

    Raises: TypeError where `compute_dtype` is no floating dtype.
    """
    if compute_dtype is None:
        return lambda root, tree: tree
    if callable(compute_dtype) and not isinstance(compute_dtype, type):
        choose: Callable[[str, Array], Any] = compute_dtype
    else:
        whole = _floating(compute_dtype, "`compute_dtype`")
        choose = lambda path, leaf: whole  # noqa: E731

    def cast(root: str, tree: Any) -> Any:
        def one(path: Any, leaf: Any) -> Any:
            if not _is_floating(leaf):
                return leaf
            name = root + "".join("/" + jax.tree_util.keystr((key,), simple=True) for key in path)
            dtype = choose(name, leaf)
            return leaf if dtype is None else jnp.asarray(leaf).astype(_floating(dtype, f"`compute_dtype` at {name}"))

        return jax.tree_util.tree_map_with_path(one, tree)

    return cast


def masters(params: Any) -> Any:
    """`params` with half precision widened to float32: an update of 1e-3 times a weight is lost in bfloat16."""
    return jax.tree.map(lambda leaf: widen(jnp.asarray(leaf)) if _is_floating(leaf) else leaf, params)


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _floating(dtype: Any, what: str) -> Any:
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(
            f"{what} must be a floating dtype such as jnp.bfloat16, or a function of path and array; got {dtype!r}"
        )
    return found
