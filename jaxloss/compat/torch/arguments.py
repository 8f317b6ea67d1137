"""What the functions ask of their arguments, in torch's names, before a loss of jaxloss sees them."""

from __future__ import annotations

from typing import Literal

import chex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxloss.core import inputs
from jaxloss.core.demand import demand
from jaxloss.core.numerics import differentiable
from jaxloss.core.reduction import reduce
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "Reduction",
    "admit_reduction",
    "at_least_zero",
    "broadcast",
    "class_axis",
    "class_weights",
    "demand_positive",
    "floating",
    "integers",
    "is_traced",
    "of_one_shape",
    "predictions_and_targets",
    "real",
    "reduced",
]

Reduction = Literal["none", "mean", "sum"]

# torch passes the gradient of a violation of exactly 0 on: scores that all start equal come apart by it.
at_least_zero = differentiable(lambda x: jnp.maximum(x, 0), lambda x: jnp.where(x < 0, 0, jnp.ones_like(x)))


def admit_reduction(
    reduction: str,
    size_average: object = None,
    reduce: object = None,
    words: tuple[str, ...] = ("none", "mean", "sum"),
) -> None:
    """Refuse the arguments that torch deprecated, and words that it does not know."""
    for name, value in (("size_average", size_average), ("reduce", reduce)):
        if value is not None:
            raise ValueError(
                f"`{name}` must be None, got {value!r}: torch deprecated it; say reduction='mean', 'sum' or 'none'"
            )
    if reduction not in words:
        raise ValueError(f"`reduction` must be one of {', '.join(map(repr, words))}, got {reduction!r}")


def reduced(values: Array, reduction: Reduction) -> Array:
    """`values` as they are, or added up, or that divided by how many they are: weights do not divide."""
    return reduce(values, reduction=reduction)


def floating(name: str, x: ArrayLike) -> Array:
    """What a model produces."""
    return inputs.admitted({name: x})[name]


def real(name: str, x: ArrayLike, *beside: Array) -> Array:
    """Numbers; integers and booleans become floating, as wide as what stands beside them."""
    found = inputs.as_array(name, x)
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {found.dtype}")
    return found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(inputs.wide_dtype(beside))


def integers(name: str, x: ArrayLike) -> Array:
    """Class indices or lengths."""
    found = inputs.as_array(name, x)
    message = f"`{name}` must be integer, got {found.dtype}"
    demand(chex.assert_type, found, jnp.integer, error=TypeError, message=message)
    # Wide and signed: -100 is no uint8, and 200 no int8.
    is_small = found.dtype.itemsize < 4 or jnp.issubdtype(found.dtype, jnp.unsignedinteger)
    return found.astype(jnp.int32) if is_small else found


def of_one_shape(**arrays: Array) -> None:
    """Refuse what torch would broadcast, some of it with a warning."""
    inputs.assert_one_shape(arrays)


def predictions_and_targets(input: ArrayLike, target: ArrayLike) -> tuple[Array, Array]:
    """A model's numbers and a data set's, of one shape."""
    x = floating("input", input)
    t = real("target", target, x)
    of_one_shape(input=x, target=t)
    return x, t


def broadcast(name: str, x: ArrayLike, shape: tuple[int, ...]) -> Array:
    """`x` repeated to `shape`, whose last axes it has (of size 1 where it is repeated), as torch does with weights."""
    found = real(name, x)
    missing = len(shape) - found.ndim
    if missing < 0 or any(a not in (1, b) for a, b in zip(found.shape, shape[missing:], strict=True)):
        raise ValueError(
            f"`{name}` {list(found.shape)} must broadcast to `input` {list(shape)}: its axes are the last ones of "
            "`input`, each of size 1 or equal"
        )
    return jnp.broadcast_to(found, shape)


def class_axis(x: Array) -> int:
    """Where torch has the classes: [C], [N, C] or [N, C, d1, ...]."""
    if x.ndim == 0:
        raise ValueError("`input` [] must have a class axis: [C], [N, C] or [N, C, d1, ...]")
    return min(x.ndim - 1, 1)


def class_weights(weight: ArrayLike | None, classes: int) -> Array | None:
    """A number for each class, or None."""
    if weight is None:
        return None
    found = real("weight", weight)
    message = f"`weight` {list(found.shape)} must have one entry for each of the {classes} classes"
    demand(chex.assert_shape, found, (classes,), error=ValueError, message=message)
    return found


def demand_positive(name: str, value: ArrayLike) -> None:
    """Refuse a number that torch refuses too; one that is being traced cannot be looked at."""
    if not is_traced(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"`{name}` must be greater than 0, got {value}")


def is_traced(value: object) -> bool:
    """Whether `value` is known when running only."""
    return isinstance(value, Tracer)
