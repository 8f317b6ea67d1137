"""The laws that every loss obeys, as a function that puts your own loss under them.

    from jaxloss.testing import check_loss

    check_loss(my_loss, reference=lambda predictions, targets: (predictions - targets) ** 4)

draws inputs from the domains in the signature and demands, in float64, float32, bfloat16 and float16: the value and
its slope are the reference's; forward mode, reverse mode and Hessian agree; `where` deletes and hides nan; weights
repeat; the four reductions agree; nothing broadcasts silently; and the rest of `LAWS`. jaxloss's own contract suite
runs the same code over every public loss.

Each (loss, options, dtype) is compiled once, with masks and weights as inputs, and called many times: twenty separate
programs would cost twenty compilations.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.core.compiled import domains, static_options
from jaxloss.core.reduction import Mean
from jaxloss.core.types import INDICES, OBSERVED, ClassIndex, Domain, Inclusion, Length

__all__ = ["DTYPES", "LAWS", "ROUNDING_LAWS", "BrokenLawError", "Case", "broken_laws", "check_loss"]

DTYPES = ("float64", "float32", "bfloat16", "float16")
# Sizes of the axes that a shape such as "NC" names. Tiny: a law holds at any size, and compilation is what costs.
SIZES = {"N": 6, "C": 5, "D": 3, "K": 4, "L": 4, "M": 2, "S": 2, "T": 3, "V": 5}
KEPT = np.array([True, False, True, True, False, True])  # four rows of six, like the sum of COUNTS
COUNTS = np.array([0, 1, 2, 0, 0, 1])
TAIL = ("where", "weights", "reduction")
# XLA at its quickest: the laws are about meaning; what optimised code loses is measured by the exactness tests.
QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
# Less time again, by what only some versions of XLA's CPU compiler know: the other way to emit a loop, and a program of
# a few kernels that is not divided among threads.
QUICKER: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": "1"}

Arrays = dict[str, np.ndarray]


class BrokenLawError(AssertionError):
    """A loss breaks one or more laws; the message names each, with the numbers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What the laws need to know of a loss beyond its signature.

    Args:
      loss: the function.
      reference: the textbook formula in NumPy float64, called with the arrays and options by name; returns the
        unreduced value, or (value, share) where an entry counts for other than 1 in the mean.
      shapes: for each array argument its axes, one letter each: {"logits": "NC", "labels": "N"}. N is the batch.
        Default: every array that the loss requires is "N".
      options: the sets of options to run through; array arguments that are optional are named in `shapes`.
      kind: "entry" (the default), "coupled" (rows see each other) or "statistic" (one number a group of "NK").
      neutral: for options that may be None, the number that must mean the same.
      zero_at_equality: whether the value and its gradient vanish where the second array equals the first.
      non_negative: whether no value is below 0.
      draw: a function (rng, arrays) -> arrays that may replace what was drawn from the domains.
      slopes: the arrays whose gradient must be the reference's; default: all floating ones.
      edges: the arrays whose zeros and extreme values must leave everything finite; default: all.
      entries: the axes of the unreduced value behind its rows, "T" for one value a token: the laws then see the sum of
        each row, and so does `reference`.
      classes: the axis that labels count; default: the last of the first array.
      held: whether the gradient holds parts of the formula constant, and so is not the slope of the value: `reference`
        then takes `held=`, the arrays of which these parts are made (None: its own).
      half_products: whether slopes come from products of half-precision numbers, each rounded: then they are good to
        the rounding of the largest of them.
    """

    loss: Callable[..., Any]
    reference: Callable[..., Any] | None = None
    shapes: Mapping[str, str] | None = None
    options: Sequence[Mapping[str, Any]] = ({},)
    kind: Literal["entry", "coupled", "statistic"] = "entry"
    neutral: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    zero_at_equality: bool = False
    non_negative: bool = True
    draw: Callable[[np.random.Generator, Arrays], Arrays] | None = None
    slopes: Sequence[str] | None = None
    edges: Sequence[str] | None = None
    entries: str = ""
    classes: str | None = None
    held: bool = False
    half_products: bool = False

    @property
    def name(self) -> str:
        """The function's name."""
        return self.loss.__name__

    @property
    def axes(self) -> dict[str, str]:
        """Each array argument's axes."""
        if self.shapes is not None:
            return dict(self.shapes)
        required = inspect.signature(self.loss).parameters
        return {
            name: "N"
            for name in domains(self.loss)
            if name not in TAIL and required[name].default is inspect.Parameter.empty
        }


def check_loss(loss: Callable[..., Any] | Case, *, dtypes: Sequence[str] = DTYPES, **facts: Any) -> None:
    """Put a loss under every law; silence means that it obeys all of them.

    Args:
      loss: a function with annotated arguments and the tail `where, weights, reduction`, or a `Case`.
      dtypes: the formats to run in.
      **facts: the fields of `Case`: `reference`, `shapes`, `options`, `kind`, ...
    Raises:
      BrokenLawError: naming each broken law, the options and dtype, and the numbers.
    """
    case = loss if isinstance(loss, Case) else Case(loss, **facts)
    found = [message for dtype in dtypes for message in broken_laws(case, dtype)]
    if found:
        raise BrokenLawError(f"{case.name} breaks {len(found)} laws:\n  " + "\n  ".join(found))


def broken_laws(case: Case, dtype: str, *, only: slice = slice(None)) -> list[str]:
    """The laws that `case` breaks in `dtype`, each as one line; `only`: which of its sets of options are tried."""
    found: list[str] = []
    with jax.enable_x64(dtype == "float64"):
        for number, options in list(enumerate(case.options))[only]:
            run = Run(case, dict(options), dtype, first=number == 0)
            # What half precision adds is rounding: with further options, and in the second of its formats, only what
            # rounds is asked again.
            every = dtype in ("float64", "float32") or (number == 0 and dtype == "bfloat16")
            for law in LAWS if every else ROUNDING_LAWS:
                try:
                    law(run)
                except Exception as problem:  # a law that cannot even be tried is a broken one
                    kind = "" if isinstance(problem, AssertionError) else f"{type(problem).__name__}: "
                    text = kind + " ".join(str(problem).split())[:400]
                    found.append(f"{law.__name__} [{dtype}, {dict(options)}]: {text}")
    return found


# --- One loss, one set of options, one dtype ----------------------------------------------------------------------


class Run:
    """A loss with its options and drawn inputs, compiled once with masks and weights as inputs."""

    def __init__(self, case: Case, options: dict[str, Any], dtype: str, *, first: bool) -> None:
        self.case, self.dtype, self.first = case, dtype, first
        static = static_options(case.loss)
        self.static = {name: value for name, value in options.items() if name in static}
        self.traced = {name: value for name, value in options.items() if name not in static}
        self.options = options
        self.signature = inspect.signature(case.loss).parameters
        self.domains = domains(case.loss)
        self.axes = case.axes
        self.arrays = self.draw(SIZES)
        self.wide = "float64" if dtype == "float64" else "float32"
        self.floats = [name for name, x in self.arrays.items() if x.dtype.kind == "f"]

    def draw(self, sizes: Mapping[str, int], seed: int = 0) -> Arrays:
        """Inputs from the inside of each domain, rounded to the dtype (kept as float64 or integers)."""
        rng = np.random.default_rng(seed)
        arrays = {name: self._drawn(rng, name, [sizes[a] for a in axes], sizes) for name, axes in self.axes.items()}
        if self.case.draw is not None:
            arrays = self.case.draw(rng, arrays)
        return {name: self.rounded(x) for name, x in arrays.items()}

    def _drawn(self, rng: np.random.Generator, name: str, shape: list[int], sizes: Mapping[str, int]) -> np.ndarray:
        domain = self.domains[name]
        if isinstance(domain, ClassIndex):
            return rng.integers(0, sizes[self.class_axis], shape)
        if isinstance(domain, Inclusion):
            return rng.random(shape) < 0.7
        if isinstance(domain, Length):
            steps = sizes[self.steps_axis(name)]
            return np.minimum(np.arange(np.prod(shape, dtype=int)).reshape(shape) % (steps + 1), steps)
        assert isinstance(domain, Domain), f"`{name}` is {domain}; draw it in Case(draw=...)"
        if domain.points:
            return rng.choice(np.array(domain.points), shape)
        if domain.name == "log-probability":
            z = rng.normal(size=shape)
            return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
        if domain.high < np.inf:
            return rng.uniform(domain.low + 0.1 * (domain.high - domain.low), 0.9 * domain.high, shape)
        return np.exp(0.5 * rng.normal(size=shape)) if domain.low >= 0 else 2 * rng.normal(size=shape)

    @property
    def class_axis(self) -> str:
        """The letter of the axis that labels count and that `valid` is about."""
        return self.case.classes or next(iter(self.axes.values()))[-1]

    def steps_axis(self, name: str) -> str:
        """The letter of the axis that the lengths `name` measure: `label_lengths` that of `labels`, others first's."""
        stem = name.removesuffix("lengths").rstrip("_")
        axes = next((a for k, a in self.axes.items() if stem and k in (stem, f"{stem}s")), None)
        return (axes or next(iter(self.axes.values())))[1]

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """`x` as the dtype holds it, in float64; integers as they are."""
        if x.dtype.kind in "iub":
            return x
        return np.asarray(np.asarray(x, jnp.dtype(self.dtype)), np.float64)

    def cast(self, arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Inputs as the loss gets them."""
        return {
            name: jnp.asarray(x, {"i": jnp.int32, "b": bool}.get(x.dtype.kind, self.dtype))
            for name, x in arrays.items()
        }

    def call(self, arrays: Mapping[str, Any], traced: Mapping[str, Any] | None = None, **tail: Any) -> Any:
        """The loss itself on `arrays`, with this run's options."""
        behind = len(self.case.entries)
        for name in ("where", "weights"):
            if behind and getattr(tail.get(name), "ndim", 0):
                tail[name] = jnp.expand_dims(tail[name], tuple(range(1, 1 + behind)))
        value = self.case.loss(**arrays, **self.static, **(self.traced if traced is None else traced), **tail)
        each = behind and tail.get("reduction") == "none"
        return jnp.sum(value, axis=tuple(range(1, 1 + behind))) if each else value

    def tail_shape(self, arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """The shape that `where` and `weights` have."""
        first = next(iter(arrays.values()))
        return first.shape[:2] if self.case.kind == "statistic" else first.shape[:1]

    @functools.cached_property
    def _whole(self) -> Callable[..., Any]:
        def program(floats: Any, others: Any, traced: Any, where: Any, weights: Any, direction: Any) -> Any:
            def f(floats: Any, weights: Any = weights, traced: Any = traced, **tail: Any) -> Any:
                return self.call({**floats, **others}, traced, where=where, weights=weights, **tail)

            differentiated = jax.value_and_grad(f, argnums=(0, 1, 2))
            mean, (slopes, weight_slopes, option_slopes) = differentiated(floats, weights, traced)
            found = {
                "none": f(floats, reduction="none"),
                "sum": f(floats, reduction="sum"),
                "mean": mean,
                "slopes": slopes,
                "weight_slopes": weight_slopes,
                "option_slopes": option_slopes,
                "forward": jax.jvp(f, (floats,), (direction,))[1],
            }
            if self.case.kind != "statistic":
                found["partial"] = f(floats, reduction="partial")
            if self.dtype in ("float64", "float32"):
                found["curve"] = jax.jvp(jax.grad(f), (floats,), (direction,))[1]
            if self.dtype == "float64":  # what a second derivative means depends on no format, and it is dear
                found["curve_in_reverse"] = jax.grad(lambda x: _dot(jax.grad(f)(x), direction))(floats)
            return found

        return _compiling(program)

    def whole(self, arrays: Arrays, where: Any = True, weights: Any = 1.0) -> dict[str, Any]:
        """Everything at once for `arrays` under a mask and weights: values in each reduction, slopes, curvature."""
        shape = self.tail_shape(arrays)
        where = jnp.broadcast_to(jnp.asarray(where), shape)
        weights = jnp.broadcast_to(jnp.asarray(weights, self.wide), shape)
        floats, others = self.split(arrays)
        return _numpy(self._whole(floats, others, self._traced(), where, weights, self.direction(floats)))

    @functools.cached_property
    def _plain(self) -> Callable[..., Any]:
        def program(floats: Any, others: Any, traced: Any) -> Any:
            def f(floats: Any, traced: Any, **tail: Any) -> Any:
                return self.call({**floats, **others}, traced, **tail)

            mean, (slopes, option_slopes) = jax.value_and_grad(f, argnums=(0, 1))(floats, traced)
            none = f(floats, traced, reduction="none")
            return {"mean": mean, "slopes": slopes, "option_slopes": option_slopes, "none": none}

        return _compiling(program)

    def plain(self, arrays: Arrays, traced: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Mean, slopes and unreduced value without any mask or weight."""
        floats, others = self.split(arrays)
        return _numpy(self._plain(floats, others, self._traced(traced)))

    def _traced(self, traced: Mapping[str, Any] | None = None) -> dict[str, Any]:
        found = self.traced if traced is None else traced
        return {name: x if x is None else jnp.asarray(x, self.wide) for name, x in found.items()}

    def split(self, arrays: Arrays) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Floating inputs, which have slopes, and the rest."""
        ready = self.cast(arrays)
        return {k: v for k, v in ready.items() if k in self.floats}, {
            k: v for k, v in ready.items() if k not in self.floats
        }

    def direction(self, floats: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """A fixed direction in the space of the floating inputs."""
        rng = np.random.default_rng(7)
        return {name: jnp.asarray(rng.normal(size=x.shape), x.dtype) for name, x in floats.items()}

    def reference(
        self, arrays: Arrays, options: Mapping[str, Any] | None = None, held: Arrays | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unreduced value and shares by the textbook formula, perhaps with other options or with parts held."""
        assert self.case.reference is not None
        fixed = {} if held is None or not self.case.held else {"held": held}
        with np.errstate(all="ignore"):
            found = self.case.reference(**arrays, **{**self.options, **(options or {})}, **fixed)
        value, share = found if isinstance(found, tuple) else (found, np.ones(np.shape(found)))
        return np.asarray(value, np.float64), np.asarray(share, np.float64)

    def reference_mean(
        self, arrays: Arrays, options: Mapping[str, Any] | None = None, held: Arrays | None = None
    ) -> float:
        """The mean by the textbook formula."""
        value, share = self.reference(arrays, options, held)
        return float(np.sum(value) / np.sum(share))

    def tolerance(self) -> dict[str, float]:
        """How far two roads to one float32 (or float64) number may part."""
        return {"rtol": 1e-10, "atol": 1e-12} if self.dtype == "float64" else {"rtol": 2e-5, "atol": 2e-6}

    def slope_tolerance(self, scale: float) -> dict[str, float]:
        """The same for slopes, which come back in the input's dtype: half precision is rounded once."""
        unit = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}[self.dtype]
        least = {"float16": 6e-8}.get(self.dtype, 0.0)  # its smallest subnormal
        if self.case.half_products and self.dtype in ("bfloat16", "float16"):
            least += 2 * unit * scale
        return {
            "rtol": unit + 2e-5 * (self.dtype != "float64"),
            "atol": (1e-9 if unit < 1e-8 else 2e-5) * scale + least,
        }

    def rows(self, arrays: Arrays, index: Any) -> Arrays:
        """The same rows (or, of a statistic, the same entries of each group) of every array that has rows."""
        axis = 1 if self.case.kind == "statistic" else 0
        return {k: np.take(x, index, axis=axis) if "N" in self.axes[k] else x for k, x in arrays.items()}

    def dirtied(self, arrays: Arrays, hidden: np.ndarray) -> Arrays:
        """`arrays` with nan, infinities and impossible indices wherever `hidden` (of the tail's shape) is True."""
        found: Arrays = {}
        for name, x in arrays.items():
            if "N" not in self.axes[name]:
                found[name] = x
                continue
            where = np.broadcast_to(hidden.reshape(hidden.shape + (1,) * (x.ndim - hidden.ndim)), x.shape)
            if x.dtype == bool:
                found[name] = x | where
            elif np.issubdtype(x.dtype, np.integer):
                found[name] = np.where(where, np.where(np.arange(x.size).reshape(x.shape) % 2, -100, 10**6), x)
            else:
                found[name] = np.where(where, np.resize([np.nan, np.inf, -np.inf], x.shape), x)
        return found


@functools.cache
def quicker_options() -> dict[str, str | bool]:
    """Those of `QUICKER` that this XLA knows."""
    return {name: value for name, value in QUICKER.items() if _is_known(name, value)}


def _is_known(name: str, value: str | bool) -> bool:
    try:
        jax.jit(jnp.negative).lower(1.0).compile(compiler_options={name: value})
    except jax.errors.JaxRuntimeError as problem:
        if "No such compile option" not in str(problem):
            raise
        return False
    return True


def _compiling(program: Callable[..., Any]) -> Callable[..., Any]:
    """`program`, compiled quickly, once for each set of shapes."""
    cache: dict[Any, Any] = {}

    def call(*args: Any) -> Any:
        key = jax.tree.structure(args), tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args))
        if key not in cache:
            cache[key] = jax.jit(program).lower(*args).compile(compiler_options=QUICK | quicker_options())
        return cache[key](*args)

    return call


def _numpy(tree: Any) -> Any:
    def ready(x: Any) -> Any:
        return x if x.dtype in (np.float64, np.float32, np.bool_) else np.asarray(x)

    return jax.tree.map(lambda x: ready(np.asarray(x)), tree)


def _dot(a: Any, b: Any) -> Any:
    return sum(jnp.sum(x.astype(y.dtype) * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _close(got: Any, want: Any, message: str, *, rtol: float, atol: float) -> None:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{message}: shape {got.shape} is not {want.shape}"
    good = (np.abs(got - want) <= atol + rtol * np.abs(want)) | (got == want) | (np.isnan(got) & np.isnan(want))
    if not np.all(good):
        i = tuple(int(k) for k in np.argwhere(~good)[0])
        raise AssertionError(f"{message}: {got[i]!r} is not {want[i]!r} at {list(i)}")


def _scale(slopes: Mapping[str, Any]) -> float:
    return max([float(np.max(np.abs(np.asarray(g, np.float64)), initial=0)) for g in slopes.values()] or [0.0])


def _same(run: Run, got: Mapping[str, Any], want: Mapping[str, Any], message: str) -> None:
    """Mean, unreduced value and slopes of two roads agree."""
    _close(got["mean"], want["mean"], f"mean {message}", **run.tolerance())
    _close(got["none"], want["none"], f"value {message}", **run.tolerance())
    for name, slope in want["slopes"].items():
        tolerance = run.slope_tolerance(_scale(want["slopes"]))
        _close(got["slopes"][name], slope, f"gradient in `{name}` {message}", **tolerance)


# --- The laws -----------------------------------------------------------------------------------------------------


def value_is_the_textbook_formula(run: Run) -> None:
    """The unreduced value and the mean are what the reference says, at the rounded inputs."""
    if run.case.reference is None:
        return
    value, _ = run.reference(run.arrays)
    got = run.whole(run.arrays)
    _close(got["none"], value, "value", **run.tolerance())
    _close(got["mean"], run.reference_mean(run.arrays), "mean", **run.tolerance())
    _close(run.plain(run.arrays)["none"], value, "value without mask and weights", **run.tolerance())


def gradient_is_the_slope(run: Run) -> None:
    """Each partial derivative is the slope of the reference, taken by a central difference of fourth order."""
    if run.case.reference is None:
        return
    got = run.whole(run.arrays)["slopes"]
    for name in run.case.slopes if run.case.slopes is not None else run.floats:
        if name in OBSERVED and isinstance(run.domains[name], Domain) and run.domains[name].points:
            continue
        want = np.zeros_like(run.arrays[name])
        for index in np.ndindex(want.shape):
            step = 1e-3 * max(0.1, min(1.0, abs(float(run.arrays[name][index]))))
            want[index] = sum(
                weight * run.reference_mean(_moved(run.arrays, name, index, k * step), held=run.arrays)
                for k, weight in ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))
            ) / (12 * step)
        _close(got[name], want, f"gradient in `{name}`", **_slope_of_reference(run, got))


def _slope_of_reference(run: Run, got: Mapping[str, Any]) -> dict[str, float]:
    tolerance = run.slope_tolerance(_scale(got))
    # The difference itself is good to about 1e-9 of the values.
    return {"rtol": max(tolerance["rtol"], 1e-7), "atol": max(tolerance["atol"], 1e-9 + 1e-7 * _scale(got))}


def _moved(arrays: Arrays, name: str, index: tuple[int, ...], by: float) -> Arrays:
    moved = arrays[name].copy()
    moved[index] += by
    return {**arrays, name: moved}


def options_have_slopes(run: Run) -> None:
    """The derivative in each number among the options is the reference's, and nan behind a mask does not reach it."""
    keep = KEPT[: run.tail_shape(run.arrays)[-1]]
    mask = np.broadcast_to(keep, run.tail_shape(run.arrays))
    kept = run.rows(run.arrays, np.flatnonzero(keep))
    got = run.whole(run.dirtied(run.arrays, ~mask), where=mask)["option_slopes"]
    for name, want in run.plain(kept)["option_slopes"].items():
        if want is None:
            continue
        tolerance = {bound: 10 * number for bound, number in run.tolerance().items()}
        _close(got[name], want, f"slope in `{name}` of the kept", **tolerance)
        if run.case.reference is not None and run.dtype == "float64":
            number, step = np.asarray(run.traced[name], np.float64), 1e-4
            for index in np.ndindex(number.shape):
                sides = [number.copy() for _ in range(2)]
                sides[0][index] -= step
                sides[1][index] += step
                low, high = (run.reference_mean(kept, {name: side}) for side in sides)
                if np.isfinite(low):  # gamma = 0 has nothing below it
                    slope = (high - low) / (2 * step)
                    _close(np.asarray(want)[index], slope, f"slope in `{name}`", rtol=1e-5, atol=1e-6)


def forward_mode_is_reverse_mode(run: Run) -> None:
    """The directional derivative is the gradient times the direction."""
    got = run.whole(run.arrays)
    direction = run.direction(run.split(run.arrays)[0])
    parts = [np.asarray(got["slopes"][k], np.float64) * np.asarray(direction[k], np.float64) for k in direction]
    want, size = sum(float(p.sum()) for p in parts), sum(float(np.abs(p).sum()) for p in parts)
    unit = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2.0**-7, "float16": 2.0**-9}[run.dtype]
    _close(got["forward"], want, "forward mode", rtol=0.0, atol=unit * (size + 1e-3))


def hessian_is_the_slope_of_the_gradient(run: Run) -> None:
    """Hessian-vector products agree forward over reverse, reverse over reverse, and with a difference of gradients."""
    got = run.whole(run.arrays)
    if "curve" not in got:
        return
    scale = max(_scale(got["curve"]), 1e-3 * _scale(got["slopes"]))
    for name, want in got["curve"].items():
        rtol = 1e-9 if run.dtype == "float64" else 2e-4
        if "curve_in_reverse" in got:
            _close(got["curve_in_reverse"][name], want, f"Hessian in reverse, `{name}`", rtol=rtol, atol=rtol * scale)
    if run.dtype != "float64":
        return
    direction = run.direction(run.split(run.arrays)[0])
    if run.case.held:
        _curvature_of_reference(run, got["curve"], direction)
        return
    step = 1e-4
    moved = run.floats if run.case.slopes is None else run.case.slopes  # a constant's slope is 0, and its effect is not
    sides = [
        run.whole({**run.arrays, **{k: run.arrays[k] + s * step * np.asarray(direction[k]) for k in moved}})
        for s in (-2, -1, 1, 2)
    ]
    for name, curve in got["curve"].items():
        far, near, right, farther = (np.asarray(side["slopes"][name]) for side in sides)
        want = (far - 8 * near + 8 * right - farther) / (12 * step)
        _close(curve, want, f"Hessian in `{name}`", rtol=1e-6, atol=1e-6 * scale + 1e-9)


def _curvature_of_reference(run: Run, curve: Mapping[str, Any], direction: Mapping[str, Any]) -> None:
    """Where the gradient holds parts constant, its own slope does not: but the reference can be told to."""
    if run.case.reference is None:
        return
    step, along = 1e-3, {name: np.asarray(x, np.float64) for name, x in direction.items()}
    values = [
        run.reference_mean({k: x + s * step * along.get(k, 0) for k, x in run.arrays.items()}, held=run.arrays)
        for s in (-2, -1, 0, 1, 2)
    ]
    want = float(np.dot([-1, 16, -30, 16, -1], values)) / (12 * step**2)
    found = sum(float(np.sum(np.asarray(curve[name]) * along[name])) for name in along)
    _close(found, want, "curvature along a direction", rtol=1e-5, atol=1e-7)


def dtypes_are_kept(run: Run) -> None:
    """Values are float32 or wider, gradients come back in the input's dtype."""
    got = run.whole(run.arrays)
    for name in ("none", "sum", "mean"):
        assert str(got[name].dtype) == run.wide, f"{name} is {got[name].dtype}, not {run.wide}"
    for name, slope in got["slopes"].items():
        assert str(slope.dtype) == run.dtype, f"gradient in `{name}` is {slope.dtype}, not {run.dtype}"


def where_is_deletion(run: Run) -> None:
    """Excluded entries do not exist: nan, inf and impossible labels behind the mask change nothing."""
    keep = KEPT[: run.tail_shape(run.arrays)[-1]]
    mask = np.broadcast_to(keep, run.tail_shape(run.arrays))
    got = run.whole(run.dirtied(run.arrays, ~mask), where=mask)
    want = run.plain(run.rows(run.arrays, np.flatnonzero(keep)))
    _close(got["mean"], want["mean"], "mean of the kept", **run.tolerance())
    if run.case.kind == "statistic":
        _close(got["none"], want["none"], "value of the kept", **run.tolerance())
    else:
        _close(got["none"][keep], want["none"], "value of the kept", **run.tolerance())
        _close(got["none"][~keep], np.zeros((~keep).sum()), "value of the excluded", rtol=0.0, atol=0.0)
    axis = 1 if run.case.kind == "statistic" else 0
    for name, slope in got["slopes"].items():
        tolerance = run.slope_tolerance(_scale(want["slopes"]))
        if "N" not in run.axes[name]:
            _close(slope, want["slopes"][name], f"gradient in shared `{name}`", **tolerance)
            continue
        kept, lost = np.compress(keep, slope, axis), np.compress(~keep, slope, axis)
        _close(kept, want["slopes"][name], f"gradient of the kept in `{name}`", **tolerance)
        _close(lost, np.zeros_like(lost), f"gradient of the excluded in `{name}`", rtol=0.0, atol=0.0)


def all_masked_is_zero(run: Run) -> None:
    """Nothing valid gives exactly 0 with zero gradient, in every reduction."""
    shape = run.tail_shape(run.arrays)
    got = run.whole(run.dirtied(run.arrays, np.ones(shape, bool)), where=False)
    for name in ("none", "sum", "mean"):
        assert not np.any(got[name]), f"{name} is {got[name]}"
    if "partial" in got:
        assert got["partial"].total == 0, f"partial is {got['partial']}"
        assert got["partial"].weight == 0, f"partial is {got['partial']}"
    for name, slope in [*got["slopes"].items(), ("weights", got["weight_slopes"])]:
        assert not np.any(slope), f"gradient in `{name}` is {slope}"


def weights_are_repetition(run: Run) -> None:
    """An integer weight is the entry appearing that often; of a coupled loss it scales the row's own term."""
    shape = run.tail_shape(run.arrays)
    counts = COUNTS[: shape[-1]]
    got = run.whole(run.arrays, weights=np.broadcast_to(counts, shape))
    if run.case.kind == "coupled":
        base = run.whole(run.arrays)["none"]
        _close(got["none"], counts * base, "weighted rows", **run.tolerance())
        _close(got["mean"], np.sum(counts * base) / np.sum(counts), "weighted mean", **run.tolerance())
        return
    index = np.repeat(np.arange(counts.size), counts)
    want = run.plain(run.rows(run.arrays, index))
    _close(got["mean"], want["mean"], "mean of the repeated", **run.tolerance())
    axis = 1 if run.case.kind == "statistic" else 0
    for name, slope in want["slopes"].items():
        if "N" not in run.axes[name]:
            tolerance = run.slope_tolerance(_scale(want["slopes"]))
            _close(got["slopes"][name], slope, f"gradient of the repeated in shared `{name}`", **tolerance)
            continue
        summed = np.zeros(run.arrays[name].shape)
        moved = np.moveaxis(summed, axis, 0)
        np.add.at(moved, index, np.moveaxis(np.asarray(slope, np.float64), axis, 0))
        tolerance = run.slope_tolerance(_scale(want["slopes"]) * max(1, counts.max()))
        tolerance["rtol"] *= 2  # two rounded copies are added
        _close(got["slopes"][name], summed, f"gradient of the repeated in `{name}`", **tolerance)


def reductions_agree(run: Run) -> None:
    """none, sum, mean and partial are four views of one thing, under a mask and fractional weights."""
    shape = run.tail_shape(run.arrays)
    where, weights = np.resize(KEPT, shape), np.resize(np.linspace(0.25, 2.0, 6), shape)
    got, base = run.whole(run.arrays, where, weights), run.whole(run.arrays, where)
    _close(np.sum(got["none"], dtype=np.float64), got["sum"], "sum of none", **run.tolerance())
    if run.case.kind == "statistic":
        assert np.all(np.isfinite(got["none"])), got["none"]
        _close(got["mean"], np.mean(got["none"], dtype=np.float64), "mean of the groups", **run.tolerance())
        return
    share = run.reference(run.arrays)[1] if run.case.reference is not None else np.ones(shape)
    pooled = float(np.sum(where * weights * share))
    _close(got["none"], weights * base["none"], "weighted none", **run.tolerance())
    _close(got["partial"].total, got["sum"], "total of partial", **run.tolerance())
    _close(got["partial"].weight, pooled, "weight of partial", **run.tolerance())
    _close(got["mean"], np.float64(got["sum"]) / pooled, "mean", **run.tolerance())
    assert got["partial"].coupled == (run.case.kind == "coupled"), f"coupled is {got['partial'].coupled}"
    want = where * (base["none"] - got["mean"] * share) / pooled
    tolerance = {name: 10 * bound for name, bound in run.tolerance().items()}
    _close(got["weight_slopes"], want, "gradient in the weights", **tolerance)


def shards_merge(run: Run) -> None:
    """The halves of two disjoint shards of an entry loss add up to the whole."""
    if run.case.kind != "entry":
        return
    left, right, both = (run.whole(run.arrays, where=w)["partial"] for w in (KEPT, ~KEPT, True))
    whole = Mean(jnp.asarray(left.total), jnp.asarray(left.weight)).merge(right)
    _close(whole.total, both.total, "merged total", **run.tolerance())
    _close(whole.weight, both.weight, "merged weight", **run.tolerance())
    _close(whole.value, run.whole(run.arrays)["mean"], "merged mean", **run.tolerance())


def rows_may_be_permuted(run: Run) -> None:
    """The order of the rows decides only the order of the values."""
    order = np.array([3, 0, 5, 1, 4, 2])[: run.tail_shape(run.arrays)[-1]]
    order = np.argsort(np.argsort(order))
    got, want = run.whole(run.rows(run.arrays, order)), run.whole(run.arrays)
    rows = want["none"] if run.case.kind == "statistic" else want["none"][order]
    _close(got["none"], rows, "permuted value", **run.tolerance())


def vmap_is_a_loop(run: Run) -> None:
    """Mapping over rows (of a coupled loss or a statistic: over batches) equals calling one after the other."""
    ready, traced = run.cast(run.arrays), run._traced()
    if run.case.kind == "entry":
        rowless = {k: None if "N" not in run.axes[k] else 0 for k in ready}
        one = _compiling(
            lambda arrays, traced: jax.vmap(
                lambda x: run.call({k: v[None] if "N" in run.axes[k] else v for k, v in x.items()}, traced),
                in_axes=(rowless,),
            )(arrays)
        )
        share = run.reference(run.arrays)[1] if run.case.reference is not None else np.ones(KEPT.size)
        want = run.plain(run.arrays)["none"] / np.where(share == 0, 1, share)
        _close(one(ready, traced), want, "vmap over rows", **run.tolerance())
        return
    if not run.first:
        return
    second = run.rows(run.arrays, np.roll(np.arange(run.tail_shape(run.arrays)[-1]), 1)[: KEPT.size])
    second = {k: run.rounded(0.7 * x) if k in run.floats and k not in OBSERVED else x for k, x in second.items()}
    stacked = jax.tree.map(lambda *x: jnp.stack(x), ready, run.cast(second))
    many = _compiling(lambda arrays, traced: jax.vmap(lambda x: run.call(x, traced, reduction="none"))(arrays))
    want = np.stack([run.plain(x)["none"] for x in (run.arrays, second)])
    _close(many(stacked, traced), want, "vmap over batches", **run.tolerance())


def axis_is_a_transpose(run: Run) -> None:
    """`axis=0` of transposed inputs is `axis=-1` of the plain ones."""
    if "axis" not in run.signature or run.case.kind != "entry" or not run.first:
        return
    letter = next(iter(run.axes.values()))[-1]
    has = {k: a.endswith(letter) and len(a) > 1 for k, a in run.axes.items()}

    def turned(x: Arrays) -> Arrays:
        return {k: np.moveaxis(v, -1, 0) if has[k] else v for k, v in x.items()}

    other = Run(run.case, {**run.options, "axis": 0}, run.dtype, first=False)
    got, want = other.plain(turned(run.arrays)), run.plain(run.arrays)
    _same(run, got, {**want, "slopes": turned(want["slopes"])}, "along axis 0")
    last = len(next(iter(run.axes.values()))) - 1
    other = Run(run.case, {**run.options, "axis": last}, run.dtype, first=False)
    _close(other.plain(run.arrays)["none"], want["none"], "value along a positive axis", **run.tolerance())


def valid_is_deletion(run: Run) -> None:
    """What `valid` excludes along the consumed axis does not exist, and may be nan."""
    if "valid" not in run.signature or any(np.ndim(x) for x in run.traced.values() if x is not None):
        return
    letter = run.class_axis
    has = [k for k, a in run.axes.items() if a.endswith(letter) and len(a) > 1]
    if not has:
        return
    arrays = run.arrays
    for k, domain in run.domains.items():
        if isinstance(domain, ClassIndex) and k in arrays:
            arrays = {**arrays, k: np.minimum(arrays[k], SIZES[letter] - 2)}
    mask = np.arange(SIZES[letter]) < SIZES[letter] - 1
    dirty = {k: np.where(mask, x, np.resize([np.nan, np.inf], x.shape)) if k in has else x for k, x in arrays.items()}
    short = {k: x[..., :-1] if k in has else x for k, x in arrays.items()}

    def program(floats: Any, others: Any, traced: Any) -> Any:
        def f(x: Any, **tail: Any) -> Any:
            valid = jnp.asarray(mask if run.case.classes else mask[None])
            return run.call({**x, **others}, traced, valid=valid, **tail)

        mean, slopes = jax.value_and_grad(f)(floats)
        return {"mean": mean, "slopes": slopes, "none": f(floats, reduction="none")}

    floats, others = run.split(dirty)
    got, want = _numpy(_compiling(program)(floats, others, run._traced())), run.plain(short)
    for k in has:
        lost = np.asarray(got["slopes"][k][..., -1], np.float64)
        _close(lost, np.zeros_like(lost), f"gradient of the invalid in `{k}`", rtol=0.0, atol=0.0)
        got["slopes"][k] = got["slopes"][k][..., :-1]
    _same(run, got, want, "of the valid")
    nothing = {k: jnp.asarray(x) for k, x in run.cast(dirty).items()}
    if "labels" not in run.arrays:
        alone = run.call(nothing, run._traced(), valid=jnp.zeros((1, SIZES[letter]), bool), reduction="sum")
        assert np.isfinite(alone), f"lists without anything valid give {alone}"


def lengths_are_deletion(run: Run) -> None:
    """What lies behind a length may be nan or -1, and has no gradient."""
    governed = {k: x for k, x in run.domains.items() if isinstance(x, Length) and k in run.arrays}
    for name in governed:
        lengths, letter = run.arrays[name], run.steps_axis(name)
        dirty = dict(run.arrays)
        for k, x in run.arrays.items():
            if k == name or run.axes[k][1:2] != letter:
                continue
            behind = np.arange(SIZES[letter]) >= lengths[:, None]
            behind = np.broadcast_to(behind.reshape(behind.shape + (1,) * (x.ndim - 2)), x.shape)
            dirty[k] = np.where(behind, -1 if np.issubdtype(x.dtype, np.integer) else np.nan, x)
        _same(run, run.whole(dirty), run.whole(run.arrays), "behind the lengths")
        bad = run.whole({**run.arrays, name: np.where(np.arange(lengths.size) == 1, SIZES[letter] + 1, lengths)})
        assert np.isnan(bad["none"][1]), f"a length beyond the steps gives {bad['none'][1]}"
        assert np.all(np.isfinite(np.delete(bad["none"], 1))), f"a bad length spreads: {bad['none']}"


def bad_labels_are_nan(run: Run) -> None:
    """A label outside [0, classes) turns its row's value and gradient into nan, and no other."""
    if not any(isinstance(run.domains[k], ClassIndex) for k in run.arrays) or run.case.kind != "entry":
        return
    first = next(iter(run.axes))
    classes = SIZES[run.class_axis]
    named = next(k for k in run.arrays if isinstance(run.domains[k], ClassIndex))
    labels = run.arrays[named].copy()
    labels[1], labels[2] = (-1, classes) if labels.ndim == 1 else (labels[1], labels[2])
    if labels.ndim > 1:
        labels[1, -1], labels[2, -1] = -1, classes
    counts = [k for k in run.arrays if isinstance(run.domains[k], Length)]
    alive = {k: np.full_like(run.arrays[k], SIZES[run.steps_axis(k)]) for k in counts}
    got = run.whole({**run.arrays, **alive, named: labels})
    bad = np.isin(np.arange(KEPT.size), [1, 2])
    assert np.array_equal(np.isnan(got["none"]), bad), f"nan in rows {np.flatnonzero(np.isnan(got['none']))}"
    rows = np.isnan(np.asarray(got["slopes"][first], np.float64)).reshape(KEPT.size, -1)
    assert np.all(np.any(rows[bad], axis=1)), "the gradient of a bad label's row is finite"
    assert not np.any(rows[~bad]), "a bad label turns another row's gradient into nan"


def absent_options_are_neutral(run: Run) -> None:
    """An option that is None means the same as its neutral number."""
    if not run.first:
        return
    want = run.plain(run.arrays)
    for name, number in run.case.neutral.items():
        _same(run, run.plain(run.arrays, {**run.traced, name: number}), want, f"with {name}={number}")


def equality_is_zero(run: Run) -> None:
    """Where prediction and target agree, value and gradient are exactly 0; elsewhere the value is above."""
    first, second, *_ = [*run.arrays, "", ""]
    if run.case.zero_at_equality:
        got = run.whole({**run.arrays, second: run.arrays[first]})
        assert not np.any(got["none"]), f"value at equality is {got['none']}"
        assert not np.any(got["slopes"][first]), f"gradient at equality is {got['slopes'][first]}"
        assert np.all(run.whole(run.arrays)["none"] > 0), "a value beside equality is not above 0"
    if run.case.non_negative:
        value = run.whole(run.arrays)["none"]
        assert np.all(value >= 0), f"negative value {value.min()}"


def edges_are_finite(run: Run) -> None:
    """Zeros, ties, huge and tiny numbers, and the ends of closed domains give finite values and gradients."""
    first = next(iter(run.arrays))
    for name, x in run.arrays.items():
        domain = run.domains[name]
        if run.case.edges is not None and name not in run.case.edges:
            continue
        if not isinstance(domain, Domain) or domain.points or domain.name == "log-probability":
            continue
        # The powers of a real number leave float16, and the gradient with them; a logit's loss grows like the logit.
        narrow = run.dtype == "float16" and domain.name != "logit" and domain.name != "binary logit"
        far = 10.0 if narrow else 200.0
        edges = [1e-4, far] if domain.high == np.inf else [domain.high if domain.high_closed else 0.99]
        edges += [0.0] if domain.low < 0 or domain.low_closed else []
        edges += [-1e-4, -far] if domain.low < 0 else []
        if domain.low == -np.inf and name == first and not narrow:
            edges += [-1e4, 1e4]
        for others in (x, np.resize(x.flat[0], x.shape)):  # among drawn numbers, then among ties
            planted = others.copy()
            spots = np.linspace(0, planted.size - 1, len(edges)).astype(int)
            planted.flat[spots] = edges
            _finite(run.whole({**run.arrays, name: run.rounded(planted)}), f"`{name}` holds {edges}")
        if domain.low < 0 or domain.low_closed:
            _finite(run.whole({**run.arrays, name: np.zeros_like(x)}), f"`{name}` is zero")


def _finite(got: Mapping[str, Any], message: str) -> None:
    assert np.all(np.isfinite(got["none"])), f"{message}: value {got['none']}"
    for name, slope in [*got["slopes"].items(), *(got["curve"].items() if "curve" in got else [])]:
        found = np.asarray(slope, np.float64)
        assert np.all(np.isfinite(found)), f"{message}: derivative in `{name}` {found[~np.isfinite(found)][:3]}"


def empty_and_single_axes_work(run: Run) -> None:
    """No rows at all give 0; axes of size 1 give the textbook value; a scalar mask is a mask."""
    if run.dtype != "float32" or not run.first:
        return
    none = run.plain({k: x[:0] if "N" in run.axes[k] else x for k, x in run.arrays.items()})
    assert none["mean"] == 0, f"an empty batch gives {none['mean']}"
    if run.case.reference is not None:
        small = {k: 1 if k not in "N" else size for k, size in SIZES.items()}
        arrays = run.draw(small)
        _close(run.plain(arrays)["none"], run.reference(arrays)[0], "axes of size 1", **run.tolerance())
    ready = run.cast(run.arrays)
    kept = run.call(ready, where=True, weights=2)
    _close(kept, run.plain(run.arrays)["mean"], "scalar mask and weight", **run.tolerance())
    if set(run.axes.values()) == {"N"} and run.case.kind == "entry":
        alone = run.call({k: x[2] for k, x in ready.items()})
        _close(alone, run.plain(run.arrays)["none"][2], "inputs of shape ()", **run.tolerance())


def nothing_broadcasts_silently(run: Run) -> None:
    """Wrong shapes, dtypes, masks, axes and reductions are refused in words that name the argument."""
    if run.dtype != "float32" or not run.first:
        return
    ready = run.cast(run.arrays)
    shape = (*run.tail_shape(run.arrays), *(SIZES[a] for a in run.case.entries))
    for name in list(ready)[1:]:
        wrong = jnp.expand_dims(ready[name], -1)
        _refused(run, {**ready, name: wrong}, {}, ValueError, (f"`{name}`", str(list(wrong.shape))))
    for name, x in ready.items():
        if name in INDICES:
            _refused(run, {**ready, name: x.astype("float32")}, {}, TypeError, (f"`{name}`", "integer"))
        elif name in run.floats and name not in OBSERVED:
            _refused(run, {**ready, name: x.astype("int32")}, {}, TypeError, (f"`{name}`", "floating"))
        _refused(run, {**ready, name: [1.0, 2.0]}, {}, TypeError, (f"`{name}`", "array"))
    for mask, error, words in (
        (jnp.ones(shape), TypeError, ("`where`", "bool")),
        (jnp.ones((5, *shape), bool), ValueError, ("`where`", "5")),
        (jnp.ones((*shape, 1), bool), ValueError, ("`where`",)),
        (jnp.ones((shape[0] + 1, *shape[1:]), bool), ValueError, ("`where`",)),
    ):
        _refused(run, ready, {"where": mask}, error, words)
        other = mask.astype("float32") if error is ValueError else mask.astype(bool)
        _refused(run, ready, {"weights": other}, error, ("`weights`",))
    _refused(run, ready, {"reduction": "avg"}, ValueError, ("`reduction`", "'avg'"))
    if "axis" in run.signature:
        _refused(run, ready, {"axis": 7}, ValueError, ("`axis`", "7"))
    if "valid" in run.signature:
        _refused(run, ready, {"valid": jnp.ones((7, 7), bool)}, ValueError, ("`valid`", "[7, 7]"))
    for name, value in run.traced.items():
        if value is not None and np.ndim(value) == 0 and name not in ("alpha", "class_weights"):
            _refused(run, ready, {name: jnp.ones(3)}, ValueError, (f"`{name}`", "[3]"))
    if run.case.kind == "statistic":
        _refused(run, ready, {"reduction": "partial"}, ValueError, ("partial", "merge"))


def _refused(
    run: Run, arrays: Mapping[str, Any], tail: dict[str, Any], error: type[Exception], words: Sequence[str]
) -> None:
    everything = {**arrays, **run.static, **run.traced, **tail}
    what = str({k: getattr(v, "shape", v) for k, v in everything.items()})
    static = static_options(run.case.loss)
    loss = functools.partial(run.case.loss, **{k: v for k, v in everything.items() if k in static})
    try:
        jax.eval_shape(loss, **{k: v for k, v in everything.items() if k not in static})
    except error as problem:
        said = str(problem)
    except Exception as problem:
        raise AssertionError(f"{what} raised {type(problem).__name__}, not {error.__name__}: {problem}") from problem
    else:
        raise AssertionError(f"{what} was accepted")
    missing = [word for word in words if word not in said]
    assert not missing, f"the error for {what} does not say {missing}: {said}"


def signature_is_honest(run: Run) -> None:
    """A plain, picklable function; options keyword-only; the tail typed out, last, with its standard defaults."""
    if run.dtype != "float32" or not run.first:
        return
    loss, parameters = run.case.loss, run.signature
    assert inspect.isfunction(loss), f"{loss} is not a function"
    assert tuple(parameters)[-3:] == TAIL, f"the last arguments are {tuple(parameters)[-3:]}, not {TAIL}"
    assert [parameters[k].default for k in TAIL] == [None, None, "mean"], "the tail has other defaults"
    for name, parameter in parameters.items():
        assert parameter.kind is not parameter.VAR_KEYWORD, "**kwargs in a loss"
        if name in TAIL or (parameter.default is not parameter.empty and name not in domains(loss)):
            assert parameter.kind is parameter.KEYWORD_ONLY, f"`{name}` is not keyword-only"
    assert isinstance(run.domains.get("where"), Inclusion), "`where` is not annotated as a Mask"
    if getattr(sys.modules.get(loss.__module__), loss.__name__, None) is loss:  # not one defined inside a function
        assert pickle.loads(pickle.dumps(loss)) is loss, "the function does not pickle"


LAWS: tuple[Callable[[Run], None], ...] = (
    value_is_the_textbook_formula,
    gradient_is_the_slope,
    options_have_slopes,
    forward_mode_is_reverse_mode,
    hessian_is_the_slope_of_the_gradient,
    dtypes_are_kept,
    where_is_deletion,
    all_masked_is_zero,
    weights_are_repetition,
    reductions_agree,
    shards_merge,
    rows_may_be_permuted,
    vmap_is_a_loop,
    axis_is_a_transpose,
    valid_is_deletion,
    lengths_are_deletion,
    bad_labels_are_nan,
    absent_options_are_neutral,
    equality_is_zero,
    edges_are_finite,
    empty_and_single_axes_work,
    nothing_broadcasts_silently,
    signature_is_honest,
)

ROUNDING_LAWS: tuple[Callable[[Run], None], ...] = (
    value_is_the_textbook_formula,
    gradient_is_the_slope,
    forward_mode_is_reverse_mode,
    dtypes_are_kept,
    edges_are_finite,
)
