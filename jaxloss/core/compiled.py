"""`compiled`: from a plain typed function to one XLA computation, with options checked in words.

The signature is the only source: an argument annotated with a domain (`Real`, `Positive`, `Mask`, ...) is traced,
so changing its value never recompiles; an argument annotated with plain Python types (`Literal`, `bool`, `int`,
`str`, tuples, unions of these with None) is static, is brought to one spelling, and is refused in words where it
is none of what the annotation allows.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import jax
from jax.core import Tracer

__all__ = ["compiled", "domains", "observed_calls", "static_options", "traced"]

F = TypeVar("F", bound=Callable[..., Any])

# Called with (function, arguments by name) for every compiled function that is entered while it is set. A checked
# trace sets it; then the undecorated function runs, because jit's cache would hide the checks from a function that
# was compiled without them, and keep them in one that was compiled with them.
Observer = Callable[[Callable[..., Any], Mapping[str, Any]], None]
_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("jaxloss_observer", default=None)


def compiled(function: F) -> F:
    """`function` as one compiled computation under its own name scope; same signature, same help, still a function."""
    inner: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal inner
        options = static_options(function)
        _admit_options(function, kwargs)
        observer = _observer.get()
        if observer is None:
            if inner is None:
                # Compiled on first use: reading annotations costs 0.1 ms a function, and nobody uses all of them.
                scoped = jax.named_scope(function.__name__)(function)
                inner = jax.jit(scoped, static_argnames=tuple(options), inline=True)
            return inner(*args, **kwargs)
        return _entered(call, function, args, kwargs)

    return cast(F, call)


def traced(function: F) -> F:
    """`compiled` for a loss that takes a function: all of it but the compilation.

    jit would freeze the weights that the function closes over, give them no gradient, and compile for every lambda.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        _admit_options(function, kwargs)
        return _entered(call, function, args, kwargs)

    return cast(F, call)


@contextlib.contextmanager
def observed_calls(observer: Observer) -> Generator[None]:
    """Within this context every compiled function reports its arguments to `observer` and runs undecorated."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@functools.cache
def static_options(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments that are Python values, by name, with their annotations."""
    return {name: hint for name, hint in _hints(function).items() if _domain(hint) is None}


@functools.cache
def domains(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments that are arrays, by name, each with what its annotation says about its values."""
    return {name: found for name, hint in _hints(function).items() if (found := _domain(hint)) is not None}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    hints.pop("return", None)
    return hints


def _domain(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := _domain(part)) is not None), None)
    return None


def _admit_options(function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    # Options are keyword-only in every loss, so positional arguments need no look.
    for name, hint in static_options(function).items():
        if name in kwargs:
            kwargs[name] = _admitted(name, kwargs[name], hint, function.__name__)


def _entered(
    call: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The undecorated function under its name scope, its arguments reported to the observer, if there is one."""
    observer = _observer.get()
    if observer is not None:
        arguments = inspect.signature(function).bind(*args, **kwargs)
        arguments.apply_defaults()
        observer(call, arguments.arguments)
    with jax.named_scope(function.__name__):
        return function(*args, **kwargs)


def _admitted(name: str, value: Any, hint: Any, where: str) -> Any:
    """`value` in the one spelling that its annotation allows."""
    if isinstance(value, Tracer):
        raise TypeError(f"`{name}` of {where} must be a Python value known when compiling, got a traced array")
    for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        found = _spelt(value, part)
        if found is not _NOTHING:
            return found
    allowed = _words(hint)
    problem = f"`{name}` of {where} must be {allowed}, got {value!r}"
    raise (ValueError if isinstance(value, str) or _is_literal(hint) else TypeError)(problem)


_NOTHING = object()


def _spelt(value: Any, part: Any) -> Any:
    """`value` as a member of the type `part`, or `_NOTHING`."""
    if part is type(None):
        return None if value is None else _NOTHING
    if get_origin(part) is Literal:
        return next((word for word in get_args(part) if type(word) is type(value) and word == value), _NOTHING)
    if part is bool:
        return bool(value) if type(value).__name__ in ("bool", "bool_") else _NOTHING
    if part is int:
        if type(value).__name__ in ("bool", "bool_") or getattr(value, "ndim", 0) != 0:
            return _NOTHING
        try:
            return operator.index(value)
        except TypeError:
            return _NOTHING
    if part is str:
        return value if isinstance(value, str) else _NOTHING
    if part is float:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _NOTHING
    if get_origin(part) is Callable:
        return value if callable(value) else _NOTHING
    if get_origin(part) is tuple and isinstance(value, (tuple, list)):
        kinds = get_args(part)
        if kinds[-1] is not Ellipsis and len(kinds) != len(value):
            return _NOTHING
        each = tuple(
            _spelt(entry, kinds[0] if kinds[-1] is Ellipsis else kinds[i])
            for i, entry in enumerate(cast("Sequence[Any]", value))
        )
        return _NOTHING if any(entry is _NOTHING for entry in each) else each
    return _NOTHING


def _is_literal(hint: Any) -> bool:
    return any(get_origin(part) is Literal for part in (hint, *get_args(hint)))


def _words(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        words = [repr(word) for word in get_args(hint)]
        return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]
    if hint is type(None):
        return "None"
    if get_origin(hint) is Callable:
        return "a function"
    if get_origin(hint) is tuple:
        return "a tuple of " + _words(get_args(hint)[0])
    return {bool: "True or False", int: "an integer", str: "a string", float: "a number"}.get(hint, str(hint))
