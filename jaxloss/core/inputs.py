"""What every frame asks of its inputs before a formula sees them: dtypes, shapes, axes, and nothing behind a mask.

All checks are chex assertions at trace time, so they cost nothing when the compiled function runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxloss.core.demand import demand
from jaxloss.core.types import INDICES, OBSERVED

# Stands where a mask excludes an entry. One number that lies inside every domain we have: a real, a positive, a
# probability; and a vector filled with it has a length. So no formula meets a pole behind a mask, and no gradient
# of an excluded entry is 0 * nan. An excluded label becomes class 0.
NEUTRAL = 0.5


def admitted(arrays: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """The inputs as arrays of the dtypes that losses compute with; refused in words where they are of another kind.

    What a model produces must be floating. What a data set holds (`targets`, `relevance`, ...) may be integer or
    bool, and becomes float32 or whatever wider format the model's arrays have. Labels must be integer.
    """
    found = {name: as_array(name, x) for name, x in arrays.items()}
    for name, x in found.items():
        if name in INDICES:
            _assert_dtype(x, jnp.integer, f"`{name}` must be integer class indices, got {x.dtype}")
        elif name in OBSERVED:
            if jnp.issubdtype(x.dtype, jnp.complexfloating):
                _assert_dtype(x, jnp.floating, f"`{name}` must be real, got {x.dtype}")
        else:
            cure = "; cast it with .astype(jnp.float32)" if not jnp.issubdtype(x.dtype, jnp.complexfloating) else ""
            _assert_dtype(x, jnp.floating, f"`{name}` must be floating, got {x.dtype}{cure}")
    wide = wide_dtype(found.values())
    return {
        name: x.astype(wide) if name in OBSERVED and not jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in found.items()
    }


def wide_dtype(arrays: Any) -> jnp.dtype:
    """float32, or float64 where one of the floating arrays is."""
    floating = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.promote_types(jnp.float32, jnp.result_type(*floating) if floating else jnp.float32)


def as_scalars(scalars: Mapping[str, ArrayLike | None] | None, dtype: jnp.dtype) -> tuple[Array | None, ...]:
    """Hyper-parameters as arrays of shape (); an absent one stays None."""

    def scalar(name: str, x: Array) -> Array:
        message = f"`{name}` must be a scalar, got {list(x.shape)}; what varies by entry must be an input of the loss"
        demand(chex.assert_shape, x, (), error=ValueError, message=message)
        return x.astype(dtype)

    return _given(scalars, scalar)


def as_class_vectors(
    vectors: Mapping[str, ArrayLike | None] | None, classes: int, dtype: jnp.dtype
) -> tuple[Array | None, ...]:
    """Numbers of each class, or one for all, as arrays [classes]; an absent one stays None."""

    def vector(name: str, x: Array) -> Array:
        if x.ndim != 0:
            message = f"`{name}` {list(x.shape)} must be a scalar or have one entry for each of the {classes} classes"
            demand(chex.assert_shape, x, (classes,), error=ValueError, message=message)
        return jnp.broadcast_to(x.astype(dtype), (classes,))

    return _given(vectors, vector)


def _given(
    options: Mapping[str, ArrayLike | None] | None, admit: Callable[[str, Array], Array]
) -> tuple[Array | None, ...]:
    return tuple(
        None if value is None else admit(name, as_array(name, value)) for name, value in (options or {}).items()
    )


def assert_one_shape(arrays: Mapping[str, Array]) -> tuple[int, ...]:
    """The shape that all inputs share. Nothing is broadcast: (B,) against (B, 1) is a mistake, not a (B, B) loss."""
    (first, reference), *rest = arrays.items()
    for name, x in rest:
        message = (
            f"`{first}` {list(reference.shape)} and `{name}` {list(x.shape)} must have one shape; broadcast explicitly"
        )
        demand(chex.assert_equal_shape, [reference, x], error=ValueError, message=message)
    return reference.shape


def canonical_axes(axis: int | tuple[int, ...], shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """`axis` as non-negative numbers in order; refused in words where `name` has no such axis."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    ndim = len(shape)
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"`axis` {axis} is out of range for `{name}` {list(shape)}, which has {ndim} axes")
    positive = tuple(sorted(a % ndim for a in axes))
    if len(set(positive)) != len(positive):
        raise ValueError(f"`axis` {axis} names an axis of `{name}` {list(shape)} twice")
    return positive


def without_axes(shape: tuple[int, ...], axes: Sequence[int]) -> tuple[int, ...]:
    """`shape` after a formula has consumed `axes`."""
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def neutralised(x: Array, mask: Array | None, axes: Sequence[int] = ()) -> Array:
    """`x` with something harmless where `mask` (which lacks the consumed `axes`) excludes it.

    Masking the value alone would leave the gradient exposed: the derivative of a dead nan is 0 * nan = nan.
    """
    if mask is None:
        return x
    kept = jnp.expand_dims(mask, tuple(axes)) if axes else mask
    neutral = NEUTRAL if jnp.issubdtype(x.dtype, jnp.floating) else 0
    return jnp.where(kept, x, jnp.asarray(neutral, x.dtype))


def as_array(name: str, x: object) -> Array:
    """`x` as an array; a list, None or a string is refused in words."""
    if not isinstance(x, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise TypeError(f"`{name}` must be an array, got {type(x).__name__}; convert it with jnp.asarray")
    return jnp.asarray(x)


def _assert_dtype(x: Array, kind: Any, message: str) -> None:
    demand(chex.assert_type, x, kind, error=TypeError, message=message)
