"""From whatever `loss_fn` is to one shape: named terms, the next model state, metrics; and from terms to one number."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from jaxloss.core.demand import demand
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array, ArrayLike
from jaxloss.train.precision import ComputeDtype, caster

__all__ = ["Aux", "Coefficient", "Objective", "Outcome"]

# A number, or a number for every step.
Coefficient = ArrayLike | Callable[[Array], ArrayLike]

# What `loss_fn` may ask for by naming it.
_OFFERED = ("key", "model_state", "step", "training")

_SHAPES = "a `Mean`, a dict of `Mean` by name, or one of these with an `Aux`"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aux:
    """What `loss_fn` hands back beside the loss: `return terms, Aux(model_state=..., metrics=...)`.

    `model_state` is the next one (None: it stays). `metrics` are `Mean`, or anything else with a `merge`, by name;
    those of microbatches are merged, and nothing is differentiated.
    """

    model_state: Any = None
    metrics: Mapping[str, Any] | None = None


class Outcome(NamedTuple):
    """One evaluation of `loss_fn`, normalised."""

    terms: dict[str, Mean]
    model_state: Any
    metrics: dict[str, Any]


class Objective:
    """`loss_fn` with its coefficients: asks it for what it names, checks what it returns, and weighs the terms."""

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        *,
        coefficients: Mapping[str, Coefficient] | None,
        allow_coupled: bool,
        compute_dtype: ComputeDtype | None = None,
    ) -> None:
        self._loss_fn = loss_fn
        self._coefficients = dict(coefficients or {})
        self._allow_coupled = allow_coupled
        self._cast = caster(compute_dtype)
        self.asks, self.needs = _asks(loss_fn)

    def __call__(
        self,
        params: Any,
        batch: Any,
        *,
        model_state: Any,
        key: Array | None,
        step: Array,
        training: bool,
        parts: int = 1,
    ) -> Outcome:
        """Evaluate on one of `parts` of a batch. With several, what cannot be added up exactly is refused."""
        # Containers of its own: some (equinox's State) can be used up, and the step still needs the old one's types.
        lent = jax.tree.map(lambda leaf: leaf, model_state)
        offered = {"key": key, "model_state": lent, "step": step, "training": training}
        params, batch = self._cast("params", params), self._cast("batch", batch)
        out = self._loss_fn(params, batch, **{name: offered[name] for name in _OFFERED if name in self.asks})
        aux = Aux()
        if isinstance(out, tuple):
            pair = cast(tuple[Any, ...], out)
            if len(pair) != 2 or not isinstance(pair[1], Aux):
                kinds = ", ".join(type(part).__name__ for part in pair)
                raise TypeError(f"`loss_fn` must return {_SHAPES}; got a tuple ({kinds})")
            out, aux = pair
        named = cast(dict[Any, Any], out) if isinstance(out, dict) else {"loss": out}
        if not named:
            raise TypeError(f"`loss_fn` must return {_SHAPES}; got an empty dict")
        metrics = dict(aux.metrics or {})
        return Outcome(
            {name: self._term(name, term, parts) for name, term in named.items()},
            _next_model_state(aux.model_state, model_state),
            {name: _metric(name, metric, parts, named) for name, metric in metrics.items()},
        )

    def combine(self, terms: Mapping[str, Mean], weights: Mapping[str, Array], step: Array) -> Array:
        """sum_k c_k total_k / W_k, the denominators W_k held constant; terms with W_k = 0 add exactly 0."""
        unknown = sorted(set(self._coefficients) - set(terms))
        if unknown:
            raise ValueError(
                f"`coefficients` names {_listed(unknown)}, but `loss_fn` returns the terms {_listed(sorted(terms))}"
            )
        loss: Array | None = None
        for name, term in terms.items():
            # Constant, or microbatches (which see W as given) and the whole batch would differ in their gradients.
            part = Mean(term.total, jax.lax.stop_gradient(weights[name])).value
            if name in self._coefficients:
                coefficient = self._coefficients[name]
                at_step = coefficient(step) if callable(coefficient) else coefficient
                part = jnp.asarray(at_step).astype(part.dtype) * part
            loss = part if loss is None else loss + part
        assert loss is not None  # `__call__` refuses a loss without terms
        return loss

    def _term(self, name: object, term: Any, parts: int) -> Mean:
        if not isinstance(name, str):
            raise TypeError(f"`loss_fn` must name its terms by strings; got the name {name!r}")
        if not isinstance(term, Mean):
            term = _scalar(f"term {name!r}", term, parts)
        total, weight = jnp.asarray(term.total), jnp.asarray(term.weight)
        for half, value in (("total", total), ("weight", weight)):
            message = (
                f"term {name!r}: its {half} has shape {list(value.shape)}; a term is one number: "
                "give several numbers several names"
            )
            demand(chex.assert_shape, value, (), error=ValueError, message=message)
        if not jnp.issubdtype(total.dtype, jnp.floating):
            raise TypeError(
                f"term {name!r}: its total is {total.dtype}, and only a real floating number has a gradient"
            )
        if term.coupled and parts > 1 and not self._allow_coupled:
            raise ValueError(
                f"term {name!r} is batch-coupled: its rows see each other, so {parts} microbatches do not add up to "
                "the batch; use accumulate=1, or allow_coupled=True if a loss within microbatches is what you want"
            )
        # A sum over microbatches in bfloat16 stops growing at 256, and one of counts in int8 at 127.
        return Mean(widen(total), widen(weight), term.coupled)


def _asks(loss_fn: Callable[..., Any]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of `_OFFERED` that `loss_fn` takes by keyword, and those of them without a default."""
    if not callable(loss_fn):
        raise TypeError(f"`loss_fn` must be a function (params, batch) -> loss; got {type(loss_fn).__name__}")
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # a callable written in C says nothing about itself
        return frozenset(), frozenset()
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())
    # The first two are params and batch, whatever they are called.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    # What a partial has bound is bound.
    bound: set[str] = set(loss_fn.keywords) if isinstance(loss_fn, functools.partial) else set()
    asked = [
        p
        for p in parameters
        if p.kind in by_keyword and p.name in _OFFERED and p not in positional and p.name not in bound
    ]
    asks = frozenset(p.name for p in asked)
    try:
        signature.bind(None, None, **dict.fromkeys(asks))
    except TypeError as error:
        raise TypeError(
            f"`loss_fn` must be callable as loss_fn(params, batch), with the keyword-only arguments "
            f"{', '.join(_OFFERED)} where it names them; its signature is {signature} ({error})"
        ) from None
    return asks, frozenset(p.name for p in asked if p.default is p.empty)


def _scalar(what: str, value: Any, parts: int) -> Mean:
    """A bare number as a mean over one entry; honest only where one evaluation sees the whole batch."""
    if not isinstance(value, jax.Array | float) and not hasattr(value, "__array__"):
        raise TypeError(f"`loss_fn` must return {_SHAPES}; {what} is {type(value).__name__}")
    number = jnp.asarray(value)
    if number.ndim:
        raise TypeError(
            f"`loss_fn` must return {_SHAPES}; {what} is an array {list(number.shape)}: "
            'reduce it with jaxloss.reduce(values, reduction="partial")'
        )
    if parts > 1:
        raise TypeError(
            f"`loss_fn` must return {_SHAPES}; {what} is a bare scalar, which does not say how many entries it is a "
            f"mean over, so the {parts} parts of the batch (accumulate={parts}) cannot be weighed; "
            'use reduction="partial", or jaxloss.Mean(total, weight)'
        )
    return Mean(number, jnp.ones((), jnp.float32))


def _metric(name: object, metric: Any, parts: int, terms: Mapping[Any, Any]) -> Any:
    if not isinstance(name, str):
        raise TypeError(f"`Aux.metrics` must name its metrics by strings; got the name {name!r}")
    if name in terms:
        raise ValueError(f"`Aux.metrics` and the terms of the loss both have {name!r}; give the metric another name")
    if not callable(getattr(metric, "merge", None)):
        metric = _scalar(f"metric {name!r}", metric, parts)
    return jax.lax.stop_gradient(metric)


def _next_model_state(new: Any, old: Any) -> Any:
    if new is None:
        return old
    if old is None:
        if not jax.tree.leaves(new):  # a model without state hands back an empty one
            return None
        raise ValueError("`loss_fn` returned Aux(model_state=...), but there is none; give it to init(model_state=...)")
    return keep_types("`loss_fn` returned an `Aux.model_state`", "the state's", new, old)


def keep_types(what: str, whose: str, new: Any, old: Any, *, dtypes: bool = True) -> Any:
    """`new` with exactly the types of `old`, so that a step compiles once and can be scanned over.

    Only the dtype may differ, and is brought back: some optimizers widen a half-precision state in their first update.
    With dtypes=False it stays (an update is added to its param before it is rounded).
    """
    message = f"{what} of another structure than {whose}: {jax.tree.structure(new)} and {jax.tree.structure(old)}"
    demand(chex.assert_trees_all_equal_structs, new, old, error=ValueError, message=message)

    def keep(path: Any, a: Any, b: Any) -> Any:
        a = jnp.asarray(a)
        message = f"{what} of another shape than {whose} at {jax.tree_util.keystr(path) or 'its root'}"
        demand(chex.assert_shape, a, b.shape, error=ValueError, message=message)
        if not dtypes or (a.dtype == b.dtype and a.weak_type == b.weak_type):
            return a
        return jax.lax.convert_element_type(a, b.dtype)

    return jax.tree_util.tree_map_with_path(keep, new, old)


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
