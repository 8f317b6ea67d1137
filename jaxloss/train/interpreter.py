"""Evaluate a jaxpr equation by equation, with a visitor who sees what each made, and may change it.

An equation is named by its path: its place in the jaxpr, behind the path of the equation whose body it stands in.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

__all__ = ["Body", "Path", "Place", "author", "body_of", "walk"]

Path = tuple[int, ...]

# (path, equation, inputs, outputs, what is fed at this path) to the outputs to go on with, and what to keep, or None.
Visit = Callable[[Path, Any, list[Any], list[Any], Any], tuple[list[Any], Any]]

# Equations that do no more than evaluate the jaxpr in this parameter of theirs.
_BODIES = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "scan": "jaxpr",
}


class Body:
    """The jaxpr that an equation evaluates: once, or in a scan `length` times, from the last to the first if `reverse`.

    A scan's inputs are `constants` of them, then as many that it carries, then what it is scanned over.
    """

    def __init__(self, equation: Any) -> None:
        inner = equation.params[_BODIES[equation.primitive.name]]
        self.jaxpr, self.consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
        self.is_scan = equation.primitive.name == "scan"
        self.is_checkpoint = equation.primitive.name in ("checkpoint", "remat2")
        self.length: int = equation.params["length"] if self.is_scan else 1
        self.reverse: bool = equation.params["reverse"] if self.is_scan else False
        # Told by their ranks: versions of jax differ in the parameters that say it.
        self.carried = sum(map(_same_rank, equation.outvars, self.jaxpr.outvars))
        self.constants = sum(map(_same_rank, equation.invars, self.jaxpr.invars)) - self.carried


class Place(NamedTuple):
    """Where an equation was written."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{pathlib.PurePath(self.file).name}:{self.line} in {self.function}"


def body_of(equation: Any) -> Body | None:
    """What `equation` evaluates, where one can walk through it.

    Not through cond and while, which may leave out what they hold; custom derivatives, which would be lost; shard_map;
    Pallas kernels; nor through what works on mutable arrays.
    """
    mutates = any(hasattr(effect, "input_index") for effect in equation.effects)
    return None if mutates or equation.primitive.name not in _BODIES else Body(equation)


def walk(
    jaxpr: Any,
    consts: list[Any],
    arguments: list[Any],
    visit: Visit,
    *,
    enters: Callable[[Path], bool],
    fed: Mapping[Path, Any],
    path: Path = (),
) -> tuple[list[Any], dict[Path, Any]]:
    """Evaluate `jaxpr` on `arguments`, which may be traced.

    Args:
      jaxpr, consts: those of a ClosedJaxpr.
      visit: called behind every equation.
      enters: whether to walk through the body of the equation at a path, or to evaluate it as one.
      fed: arrays for `visit`, by path; inside of a scan cut along their first axis, like what it is scanned over.
    Returns: the outputs, and by path what `visit` kept; inside of a scan stacked along a first axis.
    """
    from jax.extend import core  # here, because it imports Pallas, which `import jaxloss` should not wait for

    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    kept: dict[Path, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for index, equation in enumerate(jaxpr.eqns):
        here = (*path, index)
        inputs = [read(atom) for atom in equation.invars]
        body = body_of(equation) if enters(here) else None
        if body is None:
            outputs = _evaluated(equation, jaxpr, values)
        else:
            outputs, inner = _entered(equation, body, inputs, visit, enters, fed, here)
            kept.update(inner)
        outputs, record = visit(here, equation, inputs, outputs, fed.get(here))
        if record is not None:
            kept[here] = record
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], kept


def author(equation: Any) -> Iterator[Place]:
    """Where `equation` was written, and called from, from the inside out, without the places in jax itself."""
    traceback = equation.source_info.traceback
    for frame in () if traceback is None else traceback.frames:
        if not _is_of_jax(frame.file_name):
            yield Place(frame.file_name, frame.function_name.rpartition(".")[2], frame.line_num)


def _entered(
    equation: Any,
    body: Body,
    inputs: list[Any],
    visit: Visit,
    enters: Callable[[Path], bool],
    fed: Mapping[Path, Any],
    here: Path,
) -> tuple[list[Any], dict[Path, Any]]:
    def inside(inputs: list[Any], fed: Mapping[Path, Any]) -> tuple[list[Any], dict[Path, Any]]:
        return walk(body.jaxpr, body.consts, inputs, visit, enters=enters, fed=fed, path=here)

    fed = {path: array for path, array in fed.items() if path[: len(here)] == here}
    if body.is_checkpoint:
        return jax.checkpoint(inside, policy=equation.params["policy"])(inputs, fed)
    if not body.is_scan:
        return inside(inputs, fed)
    over = body.constants + body.carried

    def step(carry: list[Any], part: Any) -> tuple[list[Any], Any]:
        outputs, kept = inside([*inputs[: body.constants], *carry, *part[0]], part[1])
        return outputs[: body.carried], (outputs[body.carried :], kept)

    carry, (stacked, kept) = jax.lax.scan(
        step, inputs[body.constants : over], (inputs[over:], fed), length=body.length, reverse=body.reverse
    )
    return [*carry, *stacked], kept


def _evaluated(equation: Any, jaxpr: Any, values: dict[Any, Any]) -> list[Any]:
    # As a jaxpr of one equation: `bind` alone would have to know how each primitive wants its parameters back, and in
    # which context it was traced.
    from jax.extend import core

    variables = list(dict.fromkeys(atom for atom in equation.invars if isinstance(atom, core.Var)))
    alone = jaxpr.replace(constvars=[], invars=variables, outvars=equation.outvars, eqns=[equation])
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*[values[variable] for variable in variables])


def _same_rank(outer: Any, inner: Any) -> bool:
    return len(outer.aval.shape) == len(inner.aval.shape)


@functools.cache
def _is_of_jax(file: str) -> bool:
    own = (str(pathlib.Path(jax.__file__).parent), "<")
    # The standard library's wrappers stand between a decorated function and its caller.
    return file.startswith(own) or pathlib.PurePath(file).name in ("contextlib.py", "functools.py")
