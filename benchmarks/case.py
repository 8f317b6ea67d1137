"""What a benchmark case is: a declaration. How it is measured stands in measure.py and worker.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.truth import worst_error

__all__ = ["GRADIENT", "RUN", "VALUE", "Case", "Inputs", "Outputs", "Prepared", "Role", "Size", "Variant", "label"]

Size = tuple[int, ...]
Inputs = Mapping[str, Any]
Outputs = Sequence[np.ndarray]
Role = Literal["ours", "peer", "limit", "extra"]

VALUE = "value"
GRADIENT = "value and gradient"
RUN = "run"


@dataclass(frozen=True)
class Prepared:
    """A variant made ready for one point: compiled, its inputs in place."""

    call: Callable[[], Any]  # what is timed; returns when the result is there
    outputs: Callable[[], Outputs]  # what is compared with the truth
    compile_s: float | None = None
    temp_bytes: int | None = None  # what the compiler says that it needs besides inputs and outputs
    output_bytes: int | None = None
    peak_bytes: Callable[[], int] | None = None  # of the last call, where the variant is a process of its own


@dataclass(frozen=True)
class Variant:
    """One way to do the work of a case. Made by `with_jax`, `with_torch` and `with_command`."""

    build: Callable[[Inputs, str], Prepared]  # (inputs in place, mode)
    library: str  # which worker process runs it
    role: Role = "peer"
    needs: tuple[str, ...] = ()  # packages; where one is missing the variant is skipped, and the result says so
    modes: tuple[str, ...] | None = None  # None: all of the case
    tolerance: Mapping[str, float] | None = None  # None: that of the case


@dataclass(frozen=True)
class Case:
    """One piece of work at several sizes, the ways to do it, and the truth.

    Sizes that differ in the first number only (three or more) make a series, which has a slope and a plot.
    """

    name: str
    sizes: tuple[Size, ...]
    tiny: Size  # correctness in milliseconds, for continuous integration
    inputs: Callable[[Size, np.random.Generator], dict[str, np.ndarray]]  # float32 and integers, in the argument order
    truth: Callable[[Inputs], Outputs]  # NumPy float64: the value, then the gradients
    variants: Mapping[str, Variant]
    limit: str  # in words, what "limit" does: less than this no implementation can do
    modes: tuple[str, ...] = (VALUE, GRADIENT)
    dtypes: tuple[str, ...] = ("float32",)
    baseline: str = "optax"  # the variant that the gate divides by
    error: Callable[[np.ndarray, np.ndarray], float] = worst_error  # (found, truth)
    # Loose: they ask whether the right thing is timed; exactness.py asks how right it is.
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float32": 1e-4, "bfloat16": 2e-2})
    bound: float = 2.5  # of ours over the baseline, where nothing is stored for this kind of device
    least_rounds: int = 5
    entries: Callable[[Size], int] = math.prod  # how many numbers a variant holds at once, about

    @property
    def ours(self) -> str:
        return next(name for name, variant in self.variants.items() if variant.role == "ours")


def label(size: Sequence[int]) -> str:
    """`(65536, 1000)` as it is written in tables."""
    return " x ".join(f"{n:.0e}".replace("e+0", "e") if n >= 10**5 and n == float(f"{n:.0e}") else str(n) for n in size)
