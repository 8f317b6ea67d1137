"""The continuous ranked probability score of an ensemble: members by their order, no pair of them is formed.

With d = member - target in rising order, mean |d| - sum over pairs |d_i - d_j| / (2 M^2) is a difference of numbers of
one size. Its slope in d_(i) is (2 M [d_(i) > 0] - 2 i + 1) / M^2, of the sign of d_(i): so the score is a sum of terms
>= 0, and the fair score likewise. (Gneiting and Raftery 2007; Zamo and Naveau 2018.)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.ordered import in_order, with_order
from jaxloss.algorithms.sorted_order import iota, put_back
from jaxloss.core.types import Array

__all__ = ["ensemble_score"]

_SHORT = 128  # up to so many members, to count those that are lower is faster than to sort


def ensemble_score(x: Array, y: Array, *, fair: bool) -> Array:
    """The score of the members [..., M] for the targets [..., 1]; more than one member if `fair`."""
    if x.shape[-1] > _SHORT:
        return _of_many(x, y, fair)
    slopes = _slopes(lax.stop_gradient(x - y), _places(lax.stop_gradient(x)), fair)
    return jnp.sum(slopes * (x - y), axis=-1)


def _slopes(d: Array, place: Array, fair: bool) -> Array:
    # The place is that among the members, not among the differences: rounding makes equal ones of these.
    members = d.shape[-1]
    others = members - fair
    ahead = (2 * place - (members - 1)).astype(d.dtype)  # how many more are lower than higher
    return (others * jnp.sign(d) - ahead) / (members * others)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_many(x: Array, y: Array, fair: bool) -> Array:
    d = in_order(x) - y
    return jnp.sum(_slopes(d, iota(d > 0), fair) * d, axis=-1)


@_of_many.defjvp
def _of_many_rule(fair: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    ordered, order = with_order(x)
    # Constants: the score is linear until two numbers meet.
    slopes = put_back(_slopes(ordered - lax.stop_gradient(y), iota(order), fair), order)
    return jnp.sum(slopes * (x - y), axis=-1), jnp.sum(slopes * (dx - dy), axis=-1)


def _places(x: Array) -> Array:
    """How many entries of its row come before each; of equal ones the one that stands first."""
    column = lax.broadcasted_iota(jnp.int32, (*x.shape, x.shape[-1]), x.ndim)
    row = lax.broadcasted_iota(jnp.int32, (*x.shape, x.shape[-1]), x.ndim - 1)
    mine, other = x[..., :, None], x[..., None, :]
    return jnp.sum((other < mine) | ((other == mine) & (column < row)), axis=-1, dtype=jnp.int32)
