"""Weighted totals of rows whose gradient comes with the value, and their derivatives of every order.

The gradient of a weighted total needs no cotangent but one number, so it is computed with the value: three products
in all (logits, and the gradients of hidden and kernel), where recomputing in the backward pass takes four.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss.algorithms.linear_blocks import nothing
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, AxisName

__all__ = ["Engine", "Losses", "counted", "largest", "shared", "total", "weighted_total"]


class Losses(NamedTuple):
    """The rows' losses and the z-loss in them, or the totals of both."""

    whole: Array
    z: Array | None


class Engine(Protocol):
    """How rows come from a head, a named tuple of `hidden`, `kernel`, `bias` and numbers, and from what is fixed."""

    @property
    def axis_name(self) -> AxisName:
        """Over which devices the classes are spread."""
        ...

    def rows(self, head: Any, fixed: Any) -> Losses:
        """Every row's loss, and nothing for a derivative."""
        ...

    def plain(self, head: Any, fixed: Any) -> Array:
        """Every row's loss in a form of which any derivative can be taken."""
        ...

    def gradient(
        self, needed: tuple[bool, ...], head: Any, coefficients: Array, fixed: Any
    ) -> tuple[Losses, tuple[Array | None, ...]]:
        """Every row's loss, and the total's slope in what is needed of the head, wide or in the input's dtype."""
        ...


def counted(coefficients: Array, rows: Array) -> Array:
    """The rows' losses, 0 where infinite and of no weight."""
    # A row that does not count may have an infinite loss, and 0 * inf is nan.
    return jnp.where((coefficients == 0) & ~jnp.isfinite(rows), 0, rows)


def weighted_total(coefficients: Array, rows: Array) -> Array:
    """The sum of the rows' losses, each times its coefficient."""
    return jnp.sum(coefficients * counted(coefficients, rows))


def largest(coefficients: Array) -> Array:
    """The largest of them, and 1 if all are 0."""
    size = jnp.max(jnp.where(jnp.isnan(coefficients), 0, jnp.abs(coefficients)), initial=0)
    return jnp.where(size == 0, 1, size)


def shared(axis_name: AxisName, x: Array) -> Array:
    """`x`, the same on all devices that share the classes: what has been summed over them does not vary."""
    return lax.pmax(x, axis_name) if axis_name else x


def _totals(coefficients: Array, rows: Losses) -> Losses:
    z = None if rows.z is None else weighted_total(*lax.stop_gradient((coefficients, rows.z)))
    return Losses(weighted_total(coefficients, rows.whole), z)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(engine: Engine, head: Any, coefficients: Array, fixed: Any) -> Losses:
    """The sum of the rows' losses, each times its coefficient."""
    return _totals(coefficients, engine.rows(head, fixed))


def _total_rule(engine: Engine, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Losses, Losses]:
    (head, coefficients, fixed), (d_head, d_coefficients, _) = primals, tangents
    needed = tuple(x is not None and not isinstance(x, SymbolicZero) for x in d_head)
    rows, gradient = _gradient(engine, needed, head, coefficients, fixed)
    found = _totals(coefficients, rows)
    value = found.whole
    tangent = jnp.zeros_like(value)
    for name, g, d in zip(type(head)._fields, gradient, d_head, strict=True):
        if g is not None:
            part = jnp.sum(widen(g) * d.astype(widen(g).dtype))  # not vdot: it flattens, and a sharded axis is gathered
            # Each device holds the slope of its own classes only; the others' directions add to the same number.
            spread = engine.axis_name and name in ("kernel", "bias")
            tangent = tangent + (lax.psum(part, engine.axis_name) if spread else part).astype(value.dtype)
    if not isinstance(d_coefficients, SymbolicZero):
        tangent = tangent + jnp.sum(counted(coefficients, rows.whole) * d_coefficients)
    return found, Losses(tangent, None if found.z is None else jnp.zeros_like(found.z))


total.defjvp(_total_rule, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(
    engine: Engine, needed: tuple[bool, ...], head: Any, coefficients: Array, fixed: Any
) -> tuple[Losses, tuple[Array | None, ...]]:
    """Every row's loss, and the total's slope in what is needed of the head, wide (a kernel's in its dtype if low)."""
    return engine.gradient(needed, head, coefficients, fixed)


@_gradient.defjvp
def _gradient_rule(
    engine: Engine, needed: tuple[bool, ...], primals: tuple[Any, Array, Any], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    (head, coefficients, fixed), (d_head, d_coefficients, _) = primals, tangents

    def plain(head: Any, coefficients: Array) -> tuple[Array, tuple[Array | None, ...]]:
        head = head._replace(hidden=widen(head.hidden), kernel=widen(head.kernel))
        parts = zip(type(head)._fields, head, needed, strict=True)
        chosen = {name: widen(x) for name, x, wanted in parts if wanted and x is not None}

        def both(chosen: dict[str, Array]) -> tuple[Array, Array]:
            rows = engine.plain(head._replace(**chosen), fixed)
            return weighted_total(coefficients, rows), rows

        # Copies that vary over every mesh axis that the slopes do: the slope of what does not is summed over it.
        zero = lax.stop_gradient(nothing((head, coefficients, fixed)))
        same = shared(engine.axis_name, zero)
        varying = {k: x + (zero if k in ("kernel", "bias") else same).astype(x.dtype) for k, x in chosen.items()}
        slopes, rows = jax.grad(both, has_aux=True)(varying)
        return rows, tuple(slopes.get(name) for name in type(head)._fields)

    found = _gradient(engine, needed, head, coefficients, fixed)
    _, (rows, slopes) = jax.jvp(plain, (head, coefficients), (d_head, d_coefficients))
    change = Losses(rows, None if found[0].z is None else jnp.zeros_like(found[0].z)), slopes
    return found, jax.tree.map(lambda like, x: x.astype(like.dtype), found, change)
