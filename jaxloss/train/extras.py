"""What an optimizer wants beside gradient and params: line searches a loss to call, polyak steps its value, ...

optax passes such things as keyword arguments, and no set of names suits all: SAM refuses `value`, line searches refuse
`obj_fn`, sophia requires it. So everything is offered, and the optimizer's own signature, or else a trial on shapes,
says what it takes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from jaxloss.core.types import Array

__all__ = ["Optimizer", "UpdateArgs", "UpdateContext", "extra_arguments"]


class Optimizer(Protocol):
    """What an optax optimizer is; `optax.MultiSteps` too, which is no `GradientTransformation`."""

    @property
    def init(self) -> Callable[..., Any]: ...  # noqa: D102

    @property
    def update(self) -> Callable[..., Any]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class UpdateContext:
    """What a step knows when the optimizer is asked; `update_args` makes keyword arguments of it.

    `value_fn(params)` and `grad_fn(params)` evaluate the loss of the same batch, with the same keys and denominators.
    """

    params: Any
    value: Array
    grad: Any
    value_fn: Callable[..., Array]
    grad_fn: Callable[..., Any]
    step: Array
    batch: Any


UpdateArgs = Callable[[UpdateContext], Mapping[str, Any]]

# Tried in this order: the largest set that is accepted, because an optimizer may take one quietly as optional.
_LADDER = (
    ("value", "grad", "value_fn", "obj_fn", "grad_fn"),
    ("value", "grad", "value_fn"),
    ("value",),
    ("grad_fn",),  # SAM inside a chain
    (),
)

# Optimizers that cannot be driven from outside: a piece of what they say when tried, and why that is so.
_REASONS = (
    (
        "ShardingTypeError",
        "it multiplies sharded arrays, and on an Explicit mesh jax must be told how the product is sharded: make the "
        "mesh with axis_types=(AxisType.Auto, ...), or replicate the params",
    ),
    (
        "no attribute 'fast'",
        "optax.lookahead trains a pair of parameter sets: train_step.init(optax.LookaheadParams.init_synced(params))",
    ),
    (
        "MaskedNode",
        "optax.masked and optax.partition hand the inner optimizer a pruned tree, for which no loss can be evaluated: "
        "a line search must be the outermost optimizer",
    ),
    (
        "TracerBool",
        "optax.inject_hyperparams makes arrays of options that this optimizer reads as Python values: name them in "
        "`static_args`, or build the optimizer directly",
    ),
    (
        "missing 1 required",
        "a wrapper inside it (optax.MultiSteps(...).gradient_transformation() in a chain) drops what the inner "
        "optimizer needs: make that wrapper the outermost, optax.MultiSteps(optax.chain(...))",
    ),
)


def extra_arguments(
    optimizer: Optimizer, opt_state: Any, context: UpdateContext, update_args: UpdateArgs | str
) -> dict[str, Any]:
    """The keyword arguments for `optimizer.update`.

    Args:
      optimizer, opt_state: as they will be called.
      context: what there is to choose from.
      update_args: "auto", or the user's own choice, taken as it is.
    Returns: a dict, perhaps empty.
    Raises: TypeError naming what the optimizer said to every set, where none is accepted.
    """
    if not isinstance(update_args, str):
        return dict(update_args(context))
    # A line search hands every keyword that it does not know on to `value_fn`, so these two names must be taken there.
    offered = {
        "value": context.value,
        "grad": context.grad,
        "value_fn": lambda params, obj_fn=None, grad_fn=None: context.value_fn(params),
        "obj_fn": context.value_fn,
        "grad_fn": lambda params, *_: context.grad_fn(params),
    }
    parameters = inspect.signature(optimizer.update).parameters.values()
    sets = _LADDER
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        sets = (tuple(parameter.name for parameter in parameters if parameter.name in offered),)
    refusals: list[tuple[str, Exception]] = []
    for names in sets:
        chosen = {name: offered[name] for name in names}
        refusal = _refusal(optimizer, opt_state, context, chosen)
        if refusal is None:
            return chosen
        refusals.append((", ".join(names) or "nothing", refusal))
    raise TypeError(_why(refusals)) from refusals[0][1]


def _refusal(
    optimizer: Optimizer, opt_state: Any, context: UpdateContext, chosen: Mapping[str, Any]
) -> Exception | None:
    def update(grad: Any, opt_state: Any, params: Any) -> Any:
        return optimizer.update(grad, opt_state, params, **chosen)

    try:
        # On shapes: nothing is computed, and what a failed trial has traced is gone.
        jax.eval_shape(update, context.grad, opt_state, context.params)
    except Exception as error:  # whatever a foreign optimizer raises
        return error
    return None


def _why(refusals: list[tuple[str, Exception]]) -> str:
    said = [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" for _, error in refusals]
    whole = "\n".join(f"{type(error).__name__} {error}" for _, error in refusals)
    reasons = [reason for sign, reason in _REASONS if sign in whole][:1]
    lines = ["no set of extra arguments suits this optimizer" + "".join(f"; {reason}" for reason in reasons)]
    lines += [f"  given {names}: {text}" for (names, _), text in zip(refusals, said, strict=True)]
    lines.append("a set of your own goes to `update_args`, a function of the `UpdateContext`")
    return "\n".join(lines)
