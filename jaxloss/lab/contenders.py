"""How each loss is fed from a model's scores, and how the scores become predictions once it has trained them.

The metrics of a comparison look at predictions only: class probabilities, or numbers. A loss is typed by its own name,
with options after colons: `softmax_focal:gamma=1`.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxloss import catalogue
from jaxloss.algorithms.entmax import entmax_probabilities
from jaxloss.checks import check
from jaxloss.core.types import Array
from jaxloss.lab.data import Task
from jaxloss.lab.naming import RequestError, look_up, suggestion

__all__ = ["DEFAULT_LOSSES", "RECIPES", "Contender", "Recipe", "contender"]

Options = Mapping[str, float]


# ---------------------------------------------------------------------------------------------------------------------
# What a loss is fed with, from scores [rows, outputs] and y [rows]; `source` is the same as program text.


@dataclasses.dataclass(frozen=True)
class Feed:
    """The two arguments of a loss."""

    arguments: Callable[[Array, Array], tuple[Array, Array]]
    source: str  # {scores}, {y} and {outputs} are filled in


def _one_hot(scores: Array, y: Array) -> Array:
    return jax.nn.one_hot(y, scores.shape[-1])


_LABELS = Feed(lambda scores, y: (scores, y), "{scores}, {y}")
_ONE_HOT = Feed(
    lambda scores, y: (scores, _one_hot(scores, y)),
    "{scores}, jax.nn.one_hot({y}, {outputs})",
)
_SIGNS = Feed(
    lambda scores, y: (scores, 2 * _one_hot(scores, y) - 1),
    "{scores}, 2 * jax.nn.one_hot({y}, {outputs}) - 1",
)
_PROBABILITIES = Feed(
    lambda scores, y: (jax.nn.softmax(scores), _one_hot(scores, y)),
    "jax.nn.softmax({scores}), jax.nn.one_hot({y}, {outputs})",
)
_NUMBERS = Feed(lambda scores, y: (scores[:, 0], y), "{scores}[:, 0], {y}")


# ---------------------------------------------------------------------------------------------------------------------
# What the scores say


def _softmax(scores: Array, options: Options) -> Array:
    return jax.nn.softmax(scores)


def _sparsemax(scores: Array, options: Options) -> Array:
    return entmax_probabilities(scores, 2.0, -1)


def _entmax(scores: Array, options: Options) -> Array:
    return entmax_probabilities(scores, options.get("alpha", 1.5), -1)


def _sigmoid_normalised(scores: Array, options: Options) -> Array:
    # sigmoid(z_j) / sum_k sigmoid(z_k), taken through logarithms: a row of nothing but noes still has a sum.
    return jax.nn.softmax(jax.nn.log_sigmoid(scores))


def _number(scores: Array, options: Options) -> Array:
    return scores[:, 0]


# ---------------------------------------------------------------------------------------------------------------------
# The recipes


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a comparison must know of a loss, beyond the loss itself."""

    feed: Feed
    predictions: Callable[[Array, Options], Array]
    in_words: str
    options: tuple[str, ...] = ()  # the numbers that may be given after a colon


RECIPES: dict[Task, dict[str, Recipe]] = {
    "classification": {
        "softmax_cross_entropy": Recipe(_LABELS, _softmax, "softmax of the scores", ("label_smoothing", "z_loss")),
        "softmax_focal": Recipe(_LABELS, _softmax, "softmax of the scores", ("gamma",)),
        "sparsemax": Recipe(_LABELS, _sparsemax, "sparsemax of the scores"),
        "entmax": Recipe(_LABELS, _entmax, "entmax of the scores, of the loss's alpha", ("alpha",)),
        "sigmoid_cross_entropy": Recipe(
            _ONE_HOT,
            _sigmoid_normalised,
            "one question a class; the sigmoids divided by their sum",
            ("label_smoothing", "positive_weight"),
        ),
        "sigmoid_focal": Recipe(
            _ONE_HOT,
            _sigmoid_normalised,
            "one question a class; the sigmoids divided by their sum",
            ("gamma", "alpha"),
        ),
        "squared_error": Recipe(
            _PROBABILITIES, _softmax, "softmax of the scores, whose distance to the one-hot label is the loss (Brier)"
        ),
        "hinge": Recipe(
            _SIGNS,
            _softmax,
            "one class against the rest; softmax of the scores, though a margin promises no probabilities: "
            "read its calibration accordingly",
        ),
    },
    "regression": {
        "squared_error": Recipe(_NUMBERS, _number, "the score"),
        "absolute_error": Recipe(_NUMBERS, _number, "the score"),
        "huber": Recipe(_NUMBERS, _number, "the score", ("delta",)),
        "log_cosh": Recipe(_NUMBERS, _number, "the score"),
        "smooth_l1": Recipe(_NUMBERS, _number, "the score", ("beta",)),
    },
}

DEFAULT_LOSSES: dict[Task, tuple[str, ...]] = {
    "classification": ("softmax_cross_entropy", "softmax_focal", "sparsemax", "entmax", "sigmoid_cross_entropy"),
    "regression": ("squared_error", "absolute_error", "huber", "log_cosh"),
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """A loss with its options, ready to train a model's scores."""

    name: str  # as typed: softmax_focal:gamma=1.0
    function: Callable[..., Any]
    recipe: Recipe
    options: Options

    def loss(self, scores: Array, y: Array) -> Any:
        """The mean over the rows, as a `Mean`."""
        return self.function(*self.recipe.feed.arguments(scores, y), **self.options, reduction="partial")

    def predictions(self, scores: Array) -> Array:
        """Class probabilities [rows, classes], or numbers [rows]."""
        return self.recipe.predictions(scores, self.options)

    def source(self, scores: str, y: str, outputs: int) -> str:
        """`loss` as it stands in a program."""
        arguments = self.recipe.feed.source.format(scores=scores, y=y, outputs=outputs)
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f'jl.{self.function.__name__}({arguments}{options}, reduction="partial")'


def contender(text: str, task: Task) -> Contender:
    """The contender that `text` means: a loss's name, then perhaps `:option=number`, several times."""
    name, *given = text.split(":")
    recipes = RECIPES[task]
    if name not in recipes and name in {entry.name for entry in catalogue.entries()}:
        raise RequestError(f"{name} is not a loss that {task} is compared by; those are: {', '.join(recipes)}")
    recipe = look_up(f"{task} loss", name, recipes)
    options = dict(_option(name, each, recipe.options) for each in given)
    found = Contender(text, catalogue.entry(name).function, recipe, options)
    _try_out(found, task)
    return found


def _option(loss: str, text: str, known: tuple[str, ...]) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    if name not in known:
        takes = f"it takes {', '.join(known)}" if known else "it takes none here"
        raise RequestError(f"{loss} has no option {name!r}{suggestion(name, known)}; {takes}")
    try:
        value: object = ast.literal_eval(number)
    except (ValueError, SyntaxError):
        value = None
    if not equals or isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"the option {name} of {loss} must be a number, as in {loss}:{name}=0.5; got {text!r}")
    return name, float(value)


def _try_out(found: Contender, task: Task) -> None:
    """Call the loss once on two rows, so that an option outside its domain is refused before any training."""
    if not found.options:
        return
    scores = jnp.zeros((2, 2 if task == "classification" else 1))
    y = jnp.zeros(2, jnp.int32 if task == "classification" else jnp.float32)
    try:
        check(found.function, *found.recipe.feed.arguments(scores, y), **cast("Any", dict(found.options)))
    except (TypeError, ValueError) as error:
        raise RequestError(str(error)) from None
