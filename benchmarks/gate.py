"""The gate: has a ratio to the baseline got worse? Never an absolute time, which is the machine's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import cases
from benchmarks.case import label
from benchmarks.results import clock, key, to_baseline

__all__ = ["TOLERANCE", "complaints"]

# Two copies of one program differ by up to 10 % in such a race, and small machines are shared.
TOLERANCE = 1.5


def complaints(found: Mapping[str, Any], stored: Mapping[str, Any] | None) -> dict[tuple[Any, ...], str]:
    """A sentence for each point that got worse, by the point's key.

    Args:
      found: the results of this run.
      stored: results to compare with; None, or of another kind of device: the bounds of the cases hold instead.
    """
    same = stored is not None and stored["device"] == found["device"]
    before = {key(point): to_baseline(point, clock(found)) for point in stored["points"]} if same else {}
    sentences: dict[tuple[Any, ...], str] = {}
    for point in found["points"]:
        ratio = to_baseline(point, clock(found))
        if ratio is None:
            continue
        case, old = cases.by_name()[point["case"]], before.get(key(point))
        name = f"{case.name}, {point['dtype']}, {label(point['size']) or 'no size'}, {point['mode']}"
        against = f"jaxloss took {ratio:.2f} of the time of {case.baseline}"
        if old is not None and ratio > TOLERANCE * old:
            sentences[key(point)] = f"{name}: {against}, stored is {old:.2f}."
        elif old is None and ratio > case.bound:
            sentences[key(point)] = f"{name}: {against}, at most {case.bound:g} is allowed where nothing is stored."
    return sentences
