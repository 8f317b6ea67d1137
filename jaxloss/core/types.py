"""The vocabulary of every signature: which numbers an argument admits.

A loss says what its arguments are by their annotations, and everything else reads them there: `compiled`
learns which arguments are traced, `check` which values are legal, the tests from where to draw and which
edges to plant. An annotation is therefore never decoration.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from jax import Array as Array
from jax.typing import ArrayLike as ArrayLike


@dataclasses.dataclass(frozen=True)
class Domain:
    """A set of admissible numbers: an interval, whose ends may or may not belong to it, or a few points."""

    name: str
    low: float = -math.inf
    high: float = math.inf
    low_closed: bool = False
    high_closed: bool = False
    integer: bool = False
    points: tuple[float, ...] = ()  # the only members, where there are finitely many

    @property
    def text(self) -> str:
        """The set as mathematics writes it: `(0, inf)`, `[0, 1]`, `{-1, 1}`."""
        if self.points:
            return "{" + ", ".join(f"{point:g}" for point in self.points) + "}"
        left, right = "[" if self.low_closed else "(", "]" if self.high_closed else ")"
        return f"{left}{self.low:g}, {self.high:g}{right}" + (" integer" if self.integer else "")


@dataclasses.dataclass(frozen=True)
class ClassIndex:
    """Integers in [0, classes); how many classes there are is read from the scores beside the labels, if they tell."""

    name: str = "label"
    text: str = "{0, ..., classes - 1}"
    beside_scores: bool = True


@dataclasses.dataclass(frozen=True)
class Length:
    """Integers in [0, steps]: how many steps of a padded sequence exist."""

    name: str = "length"
    text: str = "{0, ..., steps}"


@dataclasses.dataclass(frozen=True)
class Inclusion:
    """Booleans that say what exists."""

    name: str = "mask"
    text: str = "{False, True}"


# What a model or a data set hands over.
Real = Annotated[ArrayLike, Domain("real")]
Positive = Annotated[ArrayLike, Domain("positive", low=0.0)]
NonNegative = Annotated[ArrayLike, Domain("non-negative", low=0.0, low_closed=True)]
Probability = Annotated[ArrayLike, Domain("probability", low=0.0, high=1.0, low_closed=True, high_closed=True)]
# -inf is a legal logit or log-probability: it is how a class is ruled out. A binary logit may be +inf too.
Logit = Annotated[ArrayLike, Domain("logit", low_closed=True)]
BinaryLogit = Annotated[ArrayLike, Domain("binary logit", low_closed=True, high_closed=True)]
LogProbability = Annotated[ArrayLike, Domain("log-probability", high=0.0, low_closed=True, high_closed=True)]
Sign = Annotated[ArrayLike, Domain("sign", low=-1.0, high=1.0, points=(-1.0, 1.0))]
Binary = Annotated[ArrayLike, Domain("binary", low=0.0, high=1.0, points=(0.0, 1.0))]
Label = Annotated[ArrayLike, ClassIndex()]
VocabularyLabel = Annotated[ArrayLike, ClassIndex(beside_scores=False)]  # of a kernel's classes, not of scores' entries
Lengths = Annotated[ArrayLike | None, Length()]
ValidMask = Annotated[ArrayLike | None, Inclusion("valid")]
Fraction = Annotated[ArrayLike, Domain("fraction", low=0.0, high=1.0, low_closed=True)]

# The shared tail; `core/reduction.py` holds its meaning.
Mask = Annotated[ArrayLike | None, Inclusion("where")]
Weights = Annotated[ArrayLike | None, Domain("weight", low=0.0, low_closed=True)]
Reduction = Literal["mean", "sum", "none", "partial"]

# A loss that sees all rows of a batch: the mesh axes over which the batch is sharded inside `shard_map`.
AxisName = str | tuple[str, ...] | None

# Arrays of these names come from a data set, not from a model: integers and booleans are taken as numbers.
OBSERVED = frozenset({"targets", "relevance", "signs", "counts", "times", "events", "is_same"})
# Arrays of these names are indices, and must be integer.
INDICES = frozenset({"labels"})
