"""Where a model's nonlinearities stand in its jaxpr, which params lead to each, and what flows through them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxloss.core.numerics import widen
from jaxloss.core.types import Array
from jaxloss.train.interpreter import Body, Path, author, body_of

__all__ = ["CUTS_TO_ZERO", "SATURATES", "Flow", "Position", "Site", "Survey", "measure", "rms", "tap"]

# Where a thing happens in the program: the clock at the scans around it, each followed by the iteration (-1 before the
# first), then its own.
Position = tuple[int, ...]

# Nonlinearities that are 0, with no slope, on half of their domain: a unit may die there.
CUTS_TO_ZERO = frozenset({"relu", "relu6"})

# Nonlinearities with flat ends, and where those begin: there the slope is a 25th of the steepest, or less.
SATURATES = {
    "tanh": (-0.99, 0.99),
    "hard_tanh": (-0.99, 0.99),
    "sigmoid": (0.01, 0.99),
    "hard_sigmoid": (0.01, 0.99),
    # A softmax saturates as a whole: where one entry has taken nearly everything.
    "softmax": (-math.inf, 0.99),
}

# Functions of jax.nn that appear in a jaxpr under their names.
_NAMED = frozenset(
    {"relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "squareplus", "glu"}
    | {"hard_tanh", "hard_sigmoid", "hard_silu", "soft_sign", "sparse_plus", "sparse_sigmoid"}
)

# Equations that change no value.
_COPIES = ("convert_element_type", "copy")

# Whoever writes an equation in one of these writes a loss, not a model.
_LOSSES = tuple(
    str(folder) + os.sep
    for folder in (
        *(pathlib.Path(__file__).parents[1] / name for name in ("core", "losses", "algorithms")),
        pathlib.Path(optax.__file__).parent,
    )
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A nonlinearity: the equation that ends it.

    `param` is the array that came in last on the way to it, None if none did; `softmax_axes` what a softmax sums over.
    """

    kind: str
    param: int | None
    clocks: tuple[int, ...]
    loops: tuple[Body, ...]
    shape: tuple[int, ...]
    dtype: Any
    softmax_axes: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the scans around it, from the outside in."""
        return tuple(loop.length for loop in self.loops)

    def iterations(self) -> Iterator[tuple[tuple[int, ...], Position]]:
        """Index into what scans have stacked, and position, for every time that the program comes by."""
        for times in itertools.product(*(range(length) for length in self.lengths)):
            index = tuple(
                loop.length - 1 - time if loop.reverse else time for loop, time in zip(self.loops, times, strict=True)
            )
            yield index, _interleaved(self.clocks, times)


class Flow(NamedTuple):
    """What one nonlinearity put out: shares of all entries, numbers of entries, and of units where all rows are 0."""

    rms: Array
    mean: Array
    zeros: Array
    nonfinite: Array
    dead: Array
    saturated: Array


class _Source(NamedTuple):
    """Where a value comes from: from params alone (those), or, if `data`, from whatever else, with a param on its way.

    `clock` and `param` tell the last time that one came in.
    """

    params: frozenset[int]
    data: bool
    clock: int
    param: int | None


class Survey:
    """One pass over a jaxpr, without evaluating it.

    `sites` are the nonlinearities by path; `first_use` tells by param the position at which it first meets data, and
    `stacked` the scan that a param is cut up by, one slice an iteration.
    """

    def __init__(self, jaxpr: Any, params: int) -> None:
        """The first `params` inputs of `jaxpr` are the arrays that are trained."""
        self.sites: dict[Path, Site] = {}
        self.first_use: dict[int, tuple[int, ...]] = {}
        self.stacked: dict[int, Body] = {}
        self._shapes = [variable.aval.shape for variable in jaxpr.invars[:params]]
        self._clock = 0
        data = _Source(frozenset(), True, -1, None)
        own = [_Source(frozenset({i}), False, -1, i) for i in range(params)]
        # What is closed over may be data as well as a constant.
        known = dict.fromkeys([*jaxpr.constvars, *jaxpr.invars[params:]], data)
        self._look(jaxpr, known | dict(zip(jaxpr.invars, own, strict=False)), (), (), ())
        self._around = {path[:depth] for path in self.sites for depth in range(1, len(path))}

    def enters(self, path: Path) -> bool:
        """Whether a nonlinearity stands inside of the equation at `path`."""
        return path in self._around

    def uses(self, param: int) -> Iterator[tuple[tuple[int, ...], Position]]:
        """Index of each slice that a scan makes of `param`, or () for the whole, and the position of its first use."""
        clocks = self.first_use.get(param, (self._clock + 1,))
        # Inside of scans it stands before their first iteration, being there for all of them.
        times = [-1] * (len(clocks) - 1)
        if param not in self.stacked:
            yield (), _interleaved(clocks, times)
            return
        scan = self.stacked[param]
        for index in range(scan.length):
            times[:1] = [scan.length - 1 - index if scan.reverse else index][: len(times)]
            yield (index,), _interleaved(clocks, times)

    def _look(
        self, jaxpr: Any, sources: dict[Any, _Source], path: Path, clocks: tuple[int, ...], loops: tuple[Body, ...]
    ) -> list[_Source | None]:
        from jax.extend import core

        def source(atom: Any) -> _Source | None:
            return None if isinstance(atom, core.Literal) else sources.get(atom)

        kinds = _kinds(jaxpr)
        for index, equation in enumerate(jaxpr.eqns):
            self._clock += 1
            here, inputs = (*path, index), [source(atom) for atom in equation.invars]
            is_model = not _is_of_a_loss(equation)
            body = body_of(equation) if is_model and index not in kinds else None
            if body is None:
                outputs = [self._joined(inputs, clocks)] * len(equation.outvars)
            else:
                outputs = self._inside(equation, body, inputs, here, clocks, loops)
            sources.update((v, s) for v, s in zip(equation.outvars, outputs, strict=True) if s is not None)
            if is_model and index in kinds:
                kind, softmax_axes = kinds[index]
                aval, last = equation.outvars[0].aval, outputs[0]
                self.sites[here] = Site(
                    kind=kind,
                    param=None if last is None else last.param,
                    clocks=(*clocks, self._clock),
                    loops=loops,
                    shape=aval.shape,
                    dtype=aval.dtype,
                    softmax_axes=softmax_axes,
                )
        return [source(atom) for atom in jaxpr.outvars]

    def _inside(
        self,
        equation: Any,
        body: Body,
        inputs: list[_Source | None],
        here: Path,
        clocks: tuple[int, ...],
        loops: tuple[Body, ...],
    ) -> list[_Source | None]:
        if body.is_scan:
            clocks, loops = (*clocks, self._clock), (*loops, body)
            over = body.constants + body.carried
            for atom, source in zip(equation.invars[over:], inputs[over:], strict=True):
                param = None if source is None or source.data or len(loops) > 1 else source.param
                if param is not None and atom.aval.shape == self._shapes[param]:
                    self.stacked[param] = body
        known = {v: s for v, s in zip(body.jaxpr.invars, inputs, strict=True) if s is not None}
        return self._look(body.jaxpr, known, here, clocks, loops)

    def _joined(self, inputs: list[_Source | None], clocks: tuple[int, ...]) -> _Source | None:
        known = [source for source in inputs if source is not None]
        data, weights = [s for s in known if s.data], [s for s in known if not s.data]
        if not data:
            if not weights:
                return None
            return _Source(frozenset().union(*(s.params for s in weights)), False, -1, weights[-1].param)
        last = max(data, key=lambda source: source.clock)
        if not weights:
            return last
        for param in sorted(frozenset().union(*(s.params for s in weights))):
            self.first_use.setdefault(param, (*clocks, self._clock))
        entering = weights[-1].param
        # A bias or a scale does not rename what a matrix has made.
        if last.param is not None and self._is_vector(entering) and not self._is_vector(last.param):
            entering = last.param
        return _Source(frozenset(), True, self._clock, entering)

    def _is_vector(self, param: int | None) -> bool:
        return param is None or len(self._shapes[param]) - (param in self.stacked) < 2


@jax.custom_vjp
def tap(value: Array, sink: Array) -> Array:
    """`value`; and the rms of its gradient arrives as the gradient of `sink`, a zero."""
    del sink
    return value


def _tap_forward(value: Array, sink: Array) -> tuple[Array, None]:
    del sink
    return value, None


def _tap_backward(_: None, cotangent: Array) -> tuple[Array, Array]:
    return cotangent, rms(cotangent)


tap.defvjp(_tap_forward, _tap_backward)


def measure(value: Array, site: Site, unit_axis: int) -> Flow:
    """What flows out of `site`."""
    value = widen(jax.lax.stop_gradient(value))
    low, high = SATURATES.get(site.kind, (-math.inf, math.inf))
    peaks = value.max(axis=site.softmax_axes) if site.softmax_axes else value
    rows = tuple(axis for axis in range(value.ndim) if axis != unit_axis % max(1, value.ndim))
    return Flow(
        rms=rms(value),
        mean=value.mean(),
        zeros=(value == 0).mean(),
        nonfinite=jnp.count_nonzero(~jnp.isfinite(value)),
        dead=jnp.count_nonzero((value == 0).all(axis=rows)),
        saturated=((peaks <= low) | (peaks >= high)).mean(),
    )


def rms(value: Array) -> Array:
    """The root of the mean square, in float32 or wider; entries of 1e-30 are squared as exactly as those of 1."""
    size = widen(jnp.abs(value))
    # In two passes, because this is compiled once for every row: `numerics.norm` would take five times as long.
    largest = size.max(initial=0)
    scaled = size / jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.square(scaled).sum() / max(1, value.size))


def _interleaved(clocks: Sequence[int], times: Sequence[int]) -> Position:
    *around, own = clocks
    return (*itertools.chain.from_iterable(zip(around, times, strict=True)), own)


def _is_of_a_loss(equation: Any) -> bool:
    place = next(author(equation), None)
    return place is not None and place.file.startswith(_LOSSES)


# --- What a nonlinearity looks like -------------------------------------------------------------------------------


def _kinds(jaxpr: Any) -> dict[int, tuple[str, tuple[int, ...]]]:
    """Kind, and what a softmax sums over, of every equation of `jaxpr` itself that ends a nonlinearity."""
    makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    parts: set[int] = set()
    for index, equation in enumerate(jaxpr.eqns):
        if len(equation.outvars) != 1 or not _is_floating(equation.outvars[0].aval):
            continue
        kind, axes = _named(equation), ()
        name = equation.primitive.name
        if name == "mul" and (gate := _own_gate(equation, makers)):
            kind = "silu" if gate.primitive.name == "logistic" else "gelu"
            parts.add(id(gate))
        elif name == "div" and (total := _softmax_total(equation, makers)):
            kind, axes = "softmax", total.params["axes"]
        elif name in ("tanh", "logistic"):
            kind = {"tanh": "tanh", "logistic": "sigmoid"}[name]
        elif name == "max" and any(_is_zero(atom) for atom in equation.invars) and not _is_guard(equation, jaxpr):
            kind = "relu"
        if kind is not None:
            found[index] = kind, axes
    return {index: kind for index, kind in found.items() if id(jaxpr.eqns[index]) not in parts}


def _named(equation: Any) -> str | None:
    """The function of jax.nn that `equation` calls, perhaps inside of its own derivative rule."""
    if equation.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
        inner: Any = next((equation.params[k] for k in ("call_jaxpr", "fun_jaxpr") if k in equation.params), None)
        if inner is None or len(inner.jaxpr.eqns) != 1:
            return None
        equation = inner.jaxpr.eqns[0]
    name = equation.params.get("name") if equation.primitive.name in ("jit", "pjit") else None
    return name if name in _NAMED else None


def _own_gate(equation: Any, makers: dict[Any, Any]) -> Any:
    """The sigmoid, tanh or erf by which `equation` multiplies something that it is itself a function of: silu, gelu."""
    for gate_side, own_side in (equation.invars, reversed(equation.invars)):
        gate, passed = _maker(gate_side, makers, through=("add", "mul", *_COPIES))
        if gate is None or gate.primitive.name not in ("logistic", "tanh", "erf", "erfc"):
            continue
        if gate.primitive.name == "tanh" and "add" not in passed:  # gelu has 1 + tanh; x tanh(x) is another thing
            continue
        if _root(own_side, makers) in _ancestors(gate.invars[0], makers, depth=6):
            return gate
    return None


def _maker(atom: Any, makers: dict[Any, Any], through: tuple[str, ...]) -> tuple[Any, set[str]]:
    """The equation behind `atom` when those of one variable named in `through` are passed over, and which were."""
    passed: set[str] = set()
    while (equation := makers.get(_variable(atom))) is not None:
        own = [each for each in equation.invars if _variable(each) is not None]
        if equation.primitive.name not in through or len(own) != 1:
            break
        passed.add(equation.primitive.name)
        atom = own[0]
    return equation, passed


def _root(atom: Any, makers: dict[Any, Any]) -> Any:
    """The variable that `atom` is a multiple of."""
    while (equation := makers.get(_variable(atom))) is not None:
        own = [each for each in equation.invars if _variable(each) is not None]
        if equation.primitive.name not in ("mul", "neg", *_COPIES) or len(own) != 1:
            break
        atom = own[0]
    return _variable(atom)


def _ancestors(atom: Any, makers: dict[Any, Any], depth: int) -> set[Any]:
    variable = _variable(atom)
    if variable is None:
        return set()
    found = {variable}
    if depth and variable in makers:
        found = found.union(*(_ancestors(each, makers, depth - 1) for each in makers[variable].invars))
    return found


def _softmax_total(equation: Any, makers: dict[Any, Any]) -> Any:
    """The sum that `equation` divides its own summands by, where those are exponentials."""
    total, _ = _maker(equation.invars[1], makers, through=("broadcast_in_dim", "reshape", *_COPIES))
    if total is None or total.primitive.name != "reduce_sum":
        return None
    exponentials = [_maker(atom, makers, through=_COPIES)[0] for atom in (equation.invars[0], total.invars[0])]
    same = exponentials[0] is exponentials[1] is not None
    return total if same and exponentials[0].primitive.name == "exp" else None


def _is_guard(equation: Any, jaxpr: Any) -> bool:
    """Whether `equation` keeps the argument of a root or a logarithm from being negative, as variances are kept."""
    harmless = {"add", "reshape", "broadcast_in_dim", *_COPIES}
    reached = set(equation.outvars)
    for later in jaxpr.eqns:
        own = [_variable(atom) for atom in later.invars if _variable(atom) is not None]
        if not any(variable in reached for variable in own):
            continue
        if later.primitive.name in ("sqrt", "rsqrt", "log"):
            return True
        if later.primitive.name in harmless and len(own) == 1:
            reached.update(later.outvars)
    return False


def _variable(atom: Any) -> Any:
    """`atom`, unless it is a number that stands in the jaxpr."""
    return None if hasattr(atom, "val") else atom


def _is_zero(atom: Any) -> bool:
    return hasattr(atom, "val") and not getattr(atom.val, "shape", ()) and float(atom.val) == 0


def _is_floating(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.floating) and math.prod(aval.shape) > 0
