"""Time and memory against size, both axes logarithmic: an image for each case that has three sizes or more."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.case import VALUE
from benchmarks.results import clock, series

__all__ = ["IMAGES", "draw"]

IMAGES = pathlib.Path(__file__).parent / "images"
# Okabe and Ito's colours, told apart by everybody; the yellow is left out, which is lost on white.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def draw(document: Mapping[str, Any], directory: pathlib.Path = IMAGES) -> dict[str, pathlib.Path]:
    """Write the images of one kind of device; by case, where they are."""
    groups: dict[str, list[tuple[str, Sequence[Any]]]] = {}
    for (case, dtype, mode, rest), points in series(document["points"]).items():
        if mode != VALUE:  # the gradient is what training pays for, and holds the value
            title = ", ".join([dtype, mode, *(f"{n} classes or columns" for n in rest)])
            groups.setdefault(case, []).append((title, points))
    return {case: _figure(document, case, rows, directory) for case, rows in groups.items()}


def _figure(
    document: Mapping[str, Any], case: str, rows: Sequence[tuple[str, Sequence[Any]]], directory: pathlib.Path
) -> pathlib.Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.8 + 3.6 * len(rows)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 2, squeeze=False)
    names = list(dict.fromkeys(name for _, points in rows for point in points for name in point["variants"]))
    others = [name for name in names if not _is(rows, name, "ours") and not _is(rows, name, "limit")]
    handles: dict[str, Any] = {}
    seconds = clock(document)
    for (title, points), (time, memory) in zip(rows, panels, strict=True):
        for name in names:
            if _is(rows, name, "ours"):
                style = {"color": "black", "linewidth": 2.6, "zorder": 5}
            elif _is(rows, name, "limit"):
                style = {"color": "black", "linestyle": ":", "linewidth": 1.6}
            else:
                style = {"color": _COLOURS[others.index(name) % len(_COLOURS)], "linewidth": 1.4}
            found = [(point["size"][0], point["variants"][name]) for point in points if name in point["variants"]]
            milliseconds = [(n, 1e3 * each[seconds]) for n, each in found]
            # A growth of 0 bytes has no place on a logarithmic axis.
            mebibytes = [(n, size / 2**20) for n, each in found if (size := _bytes(each))]
            for panel, pairs in ((time, milliseconds), (memory, mebibytes)):
                sizes, heights = np.array(pairs).reshape(-1, 2).T
                handles.setdefault(name, panel.plot(sizes, heights, marker="o", markersize=4, **style)[0])
        clock_name = "CPU time of all threads" if seconds == "cpu_min" else "wall time"
        time.set(title=title, ylabel=f"{clock_name}, minimum, ms")
        memory.set(title=title, ylabel="memory besides the inputs, MiB")
        for panel in (time, memory):
            panel.set(xscale="log", yscale="log", xlabel="entries" if len(points[0]["size"]) == 1 else "rows")
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(7, len(handles)))
    figure.suptitle(f"{case} on {document['device']['kind']}", fontsize=12)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{document['device']['name']}-{case}.png"
    # No version of matplotlib inside: a rerun that changes nothing should change nothing.
    figure.savefig(path, metadata={"Software": None})
    return path


def _bytes(found: Mapping[str, Any]) -> int:
    """What the compiler says, to the byte, or else by how much the process grew."""
    if "temp_bytes" in found and "output_bytes" in found:
        return found["temp_bytes"] + found["output_bytes"]
    return found.get("peak_bytes", 0)


def _is(rows: Sequence[tuple[str, Sequence[Any]]], name: str, role: str) -> bool:
    return any(point["variants"].get(name, {}).get("role") == role for _, points in rows for point in points)
