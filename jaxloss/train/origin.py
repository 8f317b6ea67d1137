"""Which equation made the first nan or inf, and where it was written."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloss.core.types import Array
from jaxloss.train.interpreter import Path, author, body_of, walk

__all__ = ["Origin", "first_nonfinite"]

# The worst that stands in an array, where not all of it is finite.
_INF, _NAN = 1, 2

_HOUSE = str(pathlib.Path(__file__).parents[1]) + os.sep


class Origin(NamedTuple):
    """An equation that made nan out of no nan, or inf out of finite numbers.

    `kind` is "nan" or "inf", `what` the primitive, `place` the line that called it, as far as that is known.
    """

    kind: str
    what: str
    place: str | None

    def __str__(self) -> str:
        return f"`{self.what}`" + ("" if self.place is None else f" at {self.place}")


def first_nonfinite(function: Callable[..., Any], *arguments: Any) -> tuple[Origin, ...]:
    """What made the first nan in `function(*arguments)`; before it the first inf, if the nan was made out of inf.

    Without any nan, what made the first inf. Numbers that were never finite (a mask of -inf, the inputs) blame nobody.
    Returns: none, one or two origins, the first one first.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    equations: dict[Path, Any] = {}

    def visit(path: Path, equation: Any, inputs: list[Any], outputs: list[Any], fed: Any) -> tuple[list[Any], Any]:
        del fed
        equations[path] = equation
        return outputs, (_worst(outputs), _worst(inputs))

    def worst(consts: list[Any], leaves: list[Any]) -> Any:
        return walk(closed.jaxpr, consts, leaves, visit, enters=lambda path: True, fed={})[1]

    found = jax.device_get(jax.jit(worst)(list(closed.consts), jax.tree.leaves(arguments)))
    nans: list[tuple[Path, bool]] = []
    infs: list[Path] = []
    for path in sorted(found):
        if body_of(equations[path]) is None:  # else it is judged by its parts
            made, given = found[path]  # of a scan one for every iteration
            if ((made == _NAN) & (given < _NAN)).any():
                nans.append((path, bool(((made == _NAN) & (given == _INF)).any())))
            elif ((made == _INF) & (given < _INF)).any():
                infs.append(path)
    if not nans:
        return tuple(_origin("inf", equations[path]) for path in infs[:1])
    first, out_of_inf = nans[0]
    sources = [_origin("inf", equations[path]) for path in infs[:1] if out_of_inf]
    return (*sources, _origin("nan", equations[first]))


def _origin(kind: str, equation: Any) -> Origin:
    places = list(author(equation))
    # The user's own line, rather than that of a library which it called.
    own = [place for place in places if "site-packages" not in place.file and not place.file.startswith(_HOUSE)]
    chosen = next(iter([*own, *places]), None)
    return Origin(kind, equation.primitive.name, None if chosen is None else str(chosen))


def _worst(values: list[Any]) -> Array:
    """Whether all values are finite, one is infinite, or one is nan."""
    floating = [
        value
        for value in values
        if isinstance(value, float) or (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.inexact))
    ]
    # One pass over each value: many of these make a program slow to compile.
    levels = [jnp.where(jnp.isnan(value), _NAN, jnp.where(jnp.isinf(value), _INF, 0)) for value in floating]
    return jnp.max(jnp.array([level.max(initial=0) for level in levels]), initial=0)
