"""What `diagnose` knows of one array of params and of one activation, and both as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

__all__ = ["Activation", "Layer", "activation_table", "layer_table"]

# A table shows its first and its last rows where it has more than twice as many.
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Layer:
    """One array of params, or, of layers stacked for a scan, one slice of it.

    `param`, `gradient` and `update` are roots of mean squares; the update is what the optimizer makes of this step.
    `zeros` is the share of the gradient's entries that are exactly 0, `nonfinite` the number of those that are nan or
    inf. `used` says whether the loss depends on it at all. `order` is its place among all rows of both tables, by
    first use in the program.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    param: float
    gradient: float
    update: float
    zeros: float
    nonfinite: int
    used: bool
    order: int

    @property
    def ratio(self) -> float:
        """Update over param; nan where the param is 0."""
        return self.update / self.param if self.param else math.nan


@dataclasses.dataclass(frozen=True)
class Activation:
    """One nonlinearity; of one inside of a scan, one iteration.

    `rms`, `mean` and `zeros` (a share) are those of its output, `nonfinite` counts nan and inf in it; `gradient` is the
    rms of the gradient of the loss with respect to it. `dead` counts the units that are 0 in every row, None where the
    nonlinearity does not cut to 0; there are `units` of them, the entries of one axis. `saturated` is the share of
    entries at its flat ends, None where it has none; of a softmax, the share of rows in which one entry exceeds 0.99.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    rms: float
    mean: float
    gradient: float
    zeros: float
    dead: int | None
    units: int
    saturated: float | None
    nonfinite: int
    order: int

    @property
    def rows(self) -> int:
        """In how many places every unit was seen."""
        return math.prod(self.shape) // max(1, self.units)

    @property
    def strength(self) -> float:
        """The norm of the gradient; unlike the rms, the same in wide and narrow layers that hand it on as it is."""
        return self.gradient * math.sqrt(math.prod(self.shape))


def layer_table(layers: Sequence[Layer]) -> str:
    """One line a row, under a head."""
    head = ("params", "shape", "param", "gradient", "update", "update/param")
    lines = [
        (
            layer.name,
            _shape(layer.shape),
            _number(layer.param),
            _number(layer.gradient) if layer.used else "unused",
            _number(layer.update),
            _number(layer.ratio) if layer.param else "",
        )
        for layer in layers
    ]
    return _aligned(head, lines)


def activation_table(activations: Sequence[Activation]) -> str:
    """One line a row, under a head."""
    head = ("activations", "shape", "rms", "mean", "gradient", "zeros", "dead units", "saturated")
    lines = [
        (
            each.name,
            _shape(each.shape),
            _number(each.rms),
            _number(each.mean),
            _number(each.gradient),
            f"{each.zeros:.0%}",
            "" if each.dead is None else f"{each.dead}/{each.units}",
            "" if each.saturated is None else f"{each.saturated:.0%}",
        )
        for each in activations
    ]
    return _aligned(head, lines)


def _aligned(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    left_out = len(lines) - 2 * _SHOWN
    shown = [head, *(lines[:_SHOWN] + lines[-_SHOWN:] if left_out > 0 else lines)]
    widths = [max(len(line[column]) for line in shown) for column in range(len(head))]
    # Names may be paths of any length, and their ends tell them apart.
    widths[0] = min(widths[0], 100 - sum(widths[1:]) - 2 * (len(head) - 1))
    texts = [
        "  ".join(
            [_shortened(line[0], widths[0]).ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in shown
    ]
    if left_out > 0:
        texts.insert(1 + _SHOWN, f"... {left_out} more ...")
    return "\n".join(texts)


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
