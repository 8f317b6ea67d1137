"""Values against the annotated domains: `check` eagerly, `checked` inside compiled code.

Both ask one function (`_findings`), so they call the same entry bad and say so in the same words:

    `targets`[3, 1] of sigmoid_cross_entropy is 1.5, outside [0, 1]

What `where`, `valid` or a length excludes does not exist and is never looked at.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.experimental import checkify
from jax.experimental.xla_metadata import set_xla_metadata

from jaxloss.core.compiled import domains, observed_calls
from jaxloss.core.types import Array, ClassIndex, Domain, Inclusion, Length

__all__ = ["check", "checked"]

P = ParamSpec("P")
R = TypeVar("R")

# Class scores, by what their annotation calls them: the classes that a label may name lie along their axis.
SCORES = frozenset({"logit", "log-probability"})
# Arrays that belong to classes or to the whole model, not to entries: no mask reaches into them, even where its
# shape happens to fit (three rows and three classes).
SHARED = frozenset({"kernel", "bias", "transition", "transitions", "start", "end", "cutpoints", "centers", "proxies"})


def check(loss: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise if `loss(*args, **kwargs)` would be given a value outside the domain of its argument.

        check(jl.sigmoid_cross_entropy, logits, targets, where=mask)
        ValueError: `targets`[3, 1] of sigmoid_cross_entropy is 1.5, outside [0, 1]

    Use on a batch, outside jit, when a loss is nan or unlikely; inside jit use `checked`.

    Args:
      loss: a loss of jaxloss, or your own function whose arguments are annotated with the domains of
        `jaxloss.core.types`, compiled or not, or a `functools.partial` of one.
      args, kwargs: what the loss would be called with.
    Returns: None. A ValueError names the loss, the argument, the first bad index in row-major order, its value and
      the admissible set; arguments are tried in the order of the signature. Wrong shapes, dtypes and options raise
      what the loss itself raises for them.
    """
    if isinstance(loss, functools.partial):
        return check(loss.func, *loss.args, *args, **{**loss.keywords, **kwargs})
    name = _name(loss)
    known = domains(loss)
    if not any(isinstance(domain, (Domain, ClassIndex, Length, Inclusion)) for domain in known.values()):
        raise TypeError(f"{name} annotates no argument with a domain (`Real`, `Probability`, ...): nothing to check")
    bound = inspect.signature(loss).bind(*args, **kwargs)
    bound.apply_defaults()
    given = {key: bound.arguments[key] for key in known if bound.arguments[key] is not None}
    for key, value in given.items():
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(f"check reads values, and `{key}` of {name} is traced; inside jit, grad, ... use `checked`")

    def call(given: Mapping[str, Any]) -> Any:
        bound.arguments.update(given)
        return loss(*bound.args, **bound.kwargs)

    jax.eval_shape(call, given)  # what is wrong with shapes, dtypes and options the loss says better
    bound.arguments.update(given)
    with jax.ensure_compile_time_eval():
        for finding, fine in _findings(loss, bound.arguments):
            if not fine:
                raise ValueError(str(finding))
    return None


def checked(fn: Callable[P, R]) -> Callable[P, R]:
    """`fn`, with every loss that it calls checking the values of its arguments.

        loss, grads = jax.jit(jax.value_and_grad(jl.checked(loss_fn)))(params, batch)

    Use to find the bad entry of a run that goes wrong under jit. It belongs around the innermost function: inside
    jit, inside grad, inside shard_map, inside the body of a scan. A function that is jitted already is refused, and so
    are checks that jax would drop without a word (`checked` around the gradient of a scan).

    Outputs and gradients are those of `fn`. Functions jitted before, or shared with unchecked code, are traced anew
    while checks are on, and no check stays behind in them. Only compiled losses (`jaxloss.core.compiled`) report.

    What is raised, and when, with the same message as from `check`:
      called directly         ValueError, in the call (through `chex.chexify`; chex's own value assertions work too).
      in grad, vmap, no jit   ValueError, in the call.
      in jit, scan, cond,     `jax.errors.JaxRuntimeError` from a host callback; the message stands in its text. It is
      while_loop, shard_map   raised where the result is waited for: in the call when the computation runs
                              synchronously (small programs on a CPU do), else in `block_until_ready` or
                              `jax.effects_barrier()`.

    The first check that fails speaks, for its first bad entry. Inside vmap the message begins with the first mapped
    example that failed; where `vmap` stands inside `fn`, the entry is one within some example that failed, unnamed, and
    in a scan inside `fn` it is one of the first step that failed. A checked function within a checked function raises
    for its own losses, as it does inside jit.

    Args:
      fn: any function that jax can trace; its arguments may be anything. A direct call compiles it each time: to
        call it often, jit it.
    Returns: a function with the signature of `fn`.
    """
    if hasattr(fn, "lower"):
        raise TypeError(f"{_name(fn)} is jitted already; put checked inside: jax.jit(jl.checked(fn))")

    context = str(next(_contexts))

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))}

        def with_arrays(arrays: Arrays) -> R:
            given = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
            return cast(Callable[..., R], fn)(*given[0], **given[1])

        traced = _staged() or any(isinstance(leaf, Tracer) for leaf in leaves)
        run = _in_transformation if traced else _chexified()
        nonlocal context
        try:
            return run(with_arrays, arrays, context)
        except checkify.JaxRuntimeError as error:
            raise ValueError(str(error).removesuffix(_SUFFIX)) from None
        except LostChecksError:
            context = str(next(_contexts))  # else the next attempt would find cached traces, and nothing lost
            raise

    return call


class LostChecksError(ValueError):
    """Checks were traced and never reached `checkify`."""


_SUFFIX = " (`check` failed)"  # which checkify appends


Arrays = Mapping[int, Any]


@functools.cache
def _chexified() -> Callable[..., Any]:
    # One for the process: chex keeps every function that it wraps.
    def run(function: Callable[[Arrays], Any], arrays: Arrays, context: str) -> Any:
        # Compiled, or a direct call would compile each operation on its own; afresh, as `fn` may read what changes.
        error, out = jax.jit(lambda arrays: _functionalised(functools.partial(function, arrays), context))(arrays)
        if jax.tree.leaves(error):
            checkify.check_error(error)
        return out

    return chex.chexify(run, async_check=False)


def _in_transformation(function: Callable[[Arrays], R], arrays: Arrays, context: str) -> R:
    error, out = _functionalised(functools.partial(function, arrays), context)
    _report(error)
    return out


def _staged() -> bool:
    """Whether operations are being recorded for later: then nothing can be raised from Python now."""
    return isinstance(jnp.zeros(()), Tracer)


# jax caches the traces of jitted functions, scan bodies, remat, ... by function, shapes and context. While checks are
# on, the number of the checked function is part of the context: a body that was traced before cannot hide its checks
# here, nor one that is traced here keep them elsewhere. One number for all would let a trace whose checks reached
# `checkify` stand in for one whose checks did not, and the loss of these would go unnoticed.
_contexts = itertools.count()


def _functionalised(closed: Callable[[], R], context: str) -> tuple[checkify.Error, R]:
    """The result of `closed`, and what its checks found, as data."""
    emitted: set[_What] = set()

    def observer(loss: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        for finding, fine in _findings(loss, arguments):
            emitted.add(finding.what)
            checkify.check(fine, "{}", finding)

    def run() -> R:
        with observed_calls(observer), set_xla_metadata(jaxloss_checked=context):
            return closed()

    error, out = checkify.checkify(run)()
    # checkify loses the checks of a scan that is differentiated inside. Never to check without a word: every check
    # that was emitted must be known to the error, whose structure prints what each was about.
    known = str(jax.tree.structure(error))
    lost = sorted(f"`{what.argument}` of {what.loss}" for what in emitted if repr(what) not in known)
    if lost:
        raise LostChecksError(
            f"jax drops the checks of {', '.join(lost)}, as it does when a scan is differentiated inside the checked "
            "function; put checked around the function that is differentiated: jax.grad(jl.checked(fn))"
        )
    return error, out


def _report(error: checkify.Error) -> None:
    """Raise from the host what `error` holds once its values are known."""
    leaves, structure = jax.tree.flatten(error)
    if not leaves:
        return

    def raise_found(leaves: Sequence[Any], places: Sequence[Any]) -> None:
        message = jax.tree.unflatten(structure, leaves).get()
        if message is not None:
            mapped = f"in mapped example [{', '.join(str(place) for place in places)}]: " if places else ""
            raise ValueError(mapped + message.removesuffix(_SUFFIX))

    def call_host(bad: Array, leaves: Sequence[Array], places: tuple[Array, ...]) -> Array:
        jax.debug.callback(raise_found, leaves, places)
        return bad

    def call_host_once(
        size: int, batched: Any, bad: Array, leaves: Sequence[Array], places: tuple[Array, ...]
    ) -> tuple[Array, bool]:
        first = jnp.argmax(bad) if batched[0] else jnp.zeros((), jnp.int32)

        def take(x: Array, has_axis: bool) -> Array:
            if not has_axis:
                return x
            # Selected, not indexed: the mapped axis may be sharded.
            here = jnp.expand_dims(jnp.arange(size) == first, tuple(range(1, x.ndim)))
            return jnp.any(here & x, 0) if x.dtype == jnp.bool_ else jnp.sum(jnp.where(here, x, 0), 0, dtype=x.dtype)

        leaves, places = jax.tree.map(take, (leaves, places), (batched[1], batched[2]))
        report(take(bad, batched[0]), leaves, (first, *places))
        return bad, batched[0]

    # vmap would unroll the callback, one for each example. One is enough: for the first example that failed.
    report = custom_vmap(call_host)
    report.def_vmap(call_host_once)
    leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for leaf in leaves]
    # The boolean scalars of the error are its predicates: a payload is an index or a value, and never boolean.
    bad = functools.reduce(jnp.logical_or, [leaf for leaf in leaves if leaf.dtype == jnp.bool_ and not leaf.ndim])
    report(bad, leaves, ())


@dataclasses.dataclass(frozen=True)
class _What:
    """What is known of a check before any value is."""

    loss: str
    argument: str
    admissible: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Finding:
    """The first bad entry of one argument: travels through checkify as arrays and is put into words on the host."""

    index: Array
    value: Array
    what: _What = dataclasses.field(metadata={"static": True})

    def __str__(self) -> str:
        index = ", ".join(str(i) for i in np.asarray(self.index))
        place = f"`{self.what.argument}`" + (f"[{index}]" if index else "")
        return f"{place} of {self.what.loss} is {np.asarray(self.value)[()]!s}, outside {self.what.admissible}"


def _findings(loss: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[tuple[_Finding, Array]]:
    """For each argument with a domain, in order: its first bad entry, and whether there is none."""
    known = domains(loss)
    arrays = {name: jnp.asarray(arguments[name]) for name in known if arguments.get(name) is not None}
    plan = _plan(
        loss, {name: x.shape for name, x in arrays.items()}, arguments.get("axis", -1), arguments.get("image_axes")
    )
    # One computation, traced under one key for all checked functions: a direct call compiles it once.
    with set_xla_metadata(jaxloss_checked=None):
        found = _search(jax.lax.stop_gradient(list(arrays.values())), tuple(search for _, search in plan))
    for (what, _), (index, value, fine) in zip(plan, found, strict=True):
        yield _Finding(index, value, what), fine


@dataclasses.dataclass(frozen=True)
class _Mask:
    """How a mask speaks of the entries of an array."""

    missing: tuple[int, ...]  # the axes of the array that it lacks
    together: int | None = None  # an axis of the mask along which whatever is kept keeps all


@dataclasses.dataclass(frozen=True)
class _Search:
    """What to look for in one array, as far as shapes tell. Arrays by number: losses of one kind share a program."""

    array: int
    domain: Domain
    # Which entries exist: masks, each with what of it is one entry and the axes that it then lacks, and lengths, each
    # with the axis that it measures.
    masks: tuple[tuple[int, _Mask], ...]
    lengths: tuple[tuple[int, int], ...]


@functools.partial(jax.jit, static_argnames="plan")
def _search(arrays: Sequence[Array], plan: tuple[_Search, ...]) -> list[tuple[Array, Array, Array]]:
    found: list[tuple[Array, Array, Array]] = []
    for search in plan:
        x = arrays[search.array]
        bad = ~_inside(search.domain, x)
        for number, mask in search.masks:
            kept = arrays[number].astype(bool)
            kept = kept if mask.together is None else jnp.any(kept, axis=mask.together)
            bad &= jnp.expand_dims(kept, mask.missing)
        for lengths, axis in search.lengths:
            steps = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
            bad &= steps < jnp.expand_dims(arrays[lengths], tuple(range(axis, x.ndim)))
        found.append(_first(bad, x))
    return found


def _first(bad: Array, x: Array) -> tuple[Array, Array, Array]:
    """The row-major first index at which `bad` holds, the value there, and whether it holds nowhere.

    Axis by axis with iotas: neither a flat index, which overflows, nor a reshape, which a sharded array refuses.
    """
    here, index = bad, list[Array]()
    for axis, size in enumerate(x.shape):
        iota = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
        index.append(jnp.min(jnp.where(here, iota, size)))
        here &= iota == index[-1]
    number = x.astype(jnp.int32) if x.dtype == jnp.bool_ else x
    value = jnp.sum(jnp.where(here, number, 0), dtype=number.dtype)  # one entry: the sum is that entry, nan too
    return (jnp.stack(index), value, index[0] == len(x)) if index else (jnp.zeros((0,), jnp.int32), value, ~bad)


def _inside(domain: Domain, x: Array) -> Array:
    """Where `x` is a member; nan is a member of nothing."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _inside_integers(domain, x.astype(jnp.int32) if x.dtype == jnp.bool_ else x)
    if domain.points:
        return functools.reduce(jnp.logical_or, [x == point for point in domain.points])
    above = x >= domain.low if domain.low_closed else x > domain.low
    below = x <= domain.high if domain.high_closed else x < domain.high
    return above & below & (x == jnp.round(x)) if domain.integer else above & below


def _inside_integers(domain: Domain, x: Array) -> Array:
    # In integers throughout: float32 does not tell class 2**24 from the next.
    if domain.points:
        return functools.reduce(jnp.logical_or, [x == int(point) for point in domain.points])
    limits = jnp.iinfo(x.dtype)
    low, high = limits.min, limits.max
    if math.isfinite(domain.low):
        low = max(low, math.ceil(domain.low) if domain.low_closed else math.floor(domain.low) + 1)
    if math.isfinite(domain.high):
        high = min(high, math.floor(domain.high) if domain.high_closed else math.ceil(domain.high) - 1)
    return (x >= low) & (x <= high)


# ---------------------------------------------------------------------------------------------------------------------
# What shapes and annotations tell


Shapes = Mapping[str, tuple[int, ...]]


def _plan(loss: Callable[..., Any], shapes: Shapes, axis: object, image_axes: object) -> list[tuple[_What, _Search]]:
    known = domains(loss)
    parameters = inspect.signature(loss).parameters
    number = {name: i for i, name in enumerate(shapes)}
    plan: list[tuple[_What, _Search]] = []
    for name, shape in shapes.items():
        found = _admissible(name, known, shapes, axis)
        if found is None or 0 in shape:
            continue
        domain, admissible = found
        # Hyper-parameters are keyword-only; they hold for all entries, and an excluded entry excuses none.
        of_entries = parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY or name == "weights"
        masks: list[tuple[int, _Mask]] = []
        lengths: list[tuple[int, int]] = []
        for other in shapes:
            if isinstance(known[other], Inclusion) and name not in SHARED:
                # `where` alone speaks of values; labels and what is valid have no class axis.
                of_values = other == "where" and isinstance(known[name], Domain)
                mask = _mask(shapes[other], shape, axis, image_axes if of_values else None)
                if mask is not None and (of_entries or isinstance(known[name], Length)):
                    masks.append((number[other], mask))
            elif isinstance(known[other], Length):
                measured = _measured(other, known, shapes)
                lengths += [(number[other], steps) for array, steps in measured if array == name]
        what = _What(_name(loss), name, admissible)
        plan.append((what, _Search(number[name], domain, tuple(masks), tuple(lengths))))
    return plan


def _admissible(name: str, known: Mapping[str, Any], shapes: Shapes, axis: object) -> tuple[Domain, str] | None:
    """The set that the values of the argument `name` must lie in, and how to write it."""
    domain = known[name]
    if isinstance(domain, Domain):
        return domain, domain.text
    if isinstance(domain, Inclusion):
        return Domain(domain.name, points=(0.0, 1.0)), domain.text
    if isinstance(domain, ClassIndex):
        classes = _classes(known, shapes, axis) if domain.beside_scores else None
        last = None if classes is None else classes - 1
    elif isinstance(domain, Length):
        last = min((shapes[other][steps] for other, steps in _measured(name, known, shapes)), default=None)
    else:
        return None
    high = math.inf if last is None else float(last)
    indices = Domain(domain.name, low=0.0, high=high, low_closed=True, high_closed=last is not None, integer=True)
    return indices, "{0, 1, ...}" if last is None else f"{{0, ..., {last}}}"


def _classes(known: Mapping[str, Any], shapes: Shapes, axis: object) -> int | None:
    """How many classes the scores beside the labels have; None where there are no scores (labels of embeddings)."""
    for name, shape in shapes.items():
        domain = known[name]
        if (
            isinstance(domain, Domain)
            and domain.name in SCORES
            and isinstance(axis, int)
            and -len(shape) <= axis < len(shape)
        ):
            return shape[axis]
    return None


def _measured(name: str, known: Mapping[str, Any], shapes: Shapes) -> list[tuple[str, int]]:
    """The arguments whose steps the lengths `name` count, each with its axis of steps.

    `label_lengths` [B] speak of `labels` [B, S]; plain `lengths` [B] of everything that has one size after [B].
    """
    batch = shapes[name]
    steps = len(batch)
    longer = {
        other: shape[steps]
        for other, shape in shapes.items()
        if len(shape) > steps
        and shape[:steps] == batch
        and other not in SHARED
        and not isinstance(known[other], (Inclusion, Length))
    }
    stem = name.removesuffix("lengths").rstrip("_")
    if stem:
        return [(other, steps) for other in longer if other in (stem, f"{stem}s")]
    first = next(iter(longer.values()), None)
    return [(other, steps) for other, size in longer.items() if size == first]


def _mask(mask: tuple[int, ...], shape: tuple[int, ...], axis: object, image_axes: object) -> _Mask | None:
    """How a mask speaks of an array: it lacks the axes that the loss consumes, or the last; None: of other entries."""
    if not mask or len(mask) >= len(shape):
        return _Mask(()) if _fits(mask, shape) else None
    pixels = len(image_axes) if isinstance(image_axes, tuple) else int(image_axes is not None)
    if pixels and len(mask) == len(shape) - pixels:
        # One value for each class of an image: the classes share their softmax, and only an image without one is free.
        batch = len(mask) - 1
        return _Mask(tuple(range(batch, len(shape))), together=batch) if _fits(mask[:-1], shape[:batch]) else None
    axes = axis if isinstance(axis, tuple) else (axis,)
    consumed = tuple(a % len(shape) for a in axes if isinstance(a, int))
    last = tuple(range(len(mask), len(shape)))
    for missing in (consumed, last):
        if _fits(mask, _without(shape, missing)):
            return _Mask(missing)
    return None


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for i, size in enumerate(shape) if i not in axes)


def _fits(mask: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return not mask or (len(mask) == len(shape) and all(a in (1, b) for a, b in zip(mask, shape, strict=True)))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
