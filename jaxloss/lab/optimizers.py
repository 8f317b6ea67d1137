"""The optimizers that a comparison knows, each with the learning rates that are worth trying on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import optax

from jaxloss.core.types import Array
from jaxloss.lab.naming import look_up

__all__ = ["DEFAULT_OPTIMIZERS", "OPTIMIZERS", "Optimizer", "optimizer_named"]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer up to its learning rate."""

    name: str
    make: Callable[[Array | float], optax.GradientTransformation]
    learning_rates: tuple[float, ...]
    source: str  # the same in a program; {learning_rate} stands for the number


# Two decades in steps of half a decade. Those whose step does not shrink with the gradient want smaller numbers.
_BOLD = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_USUAL = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
_TIMID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)

OPTIMIZERS = {
    each.name: each
    for each in (
        Optimizer("adam", lambda rate: optax.adam(rate), _USUAL, "optax.adam({learning_rate})"),
        Optimizer("sgd", lambda rate: optax.sgd(rate, momentum=0.9), _BOLD, "optax.sgd({learning_rate}, momentum=0.9)"),
        Optimizer("adamw", lambda rate: optax.adamw(rate), _USUAL, "optax.adamw({learning_rate})"),
        Optimizer("lion", lambda rate: optax.lion(rate), _TIMID, "optax.lion({learning_rate})"),
        Optimizer("rmsprop", lambda rate: optax.rmsprop(rate), _USUAL, "optax.rmsprop({learning_rate})"),
        Optimizer("adagrad", lambda rate: optax.adagrad(rate), _BOLD, "optax.adagrad({learning_rate})"),
    )
}
DEFAULT_OPTIMIZERS = ("adam", "sgd")


def optimizer_named(name: str) -> Optimizer:
    """The optimizer of this name; a `RequestError` names the nearest ones."""
    return look_up("optimizer", name, OPTIMIZERS)
