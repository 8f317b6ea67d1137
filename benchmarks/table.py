"""README.md of this folder, written from the stored results.

python -m benchmarks.table
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import cases, plots
from benchmarks.case import label
from benchmarks.results import RESULTS, clock, cost, load, ratios, series, to_baseline

__all__ = ["main", "render", "times"]

HERE = pathlib.Path(__file__).parent

HEAD = """\
# What jaxloss costs, beside its peers and the physical limit

Written by `python -m benchmarks.table` from `results/`; do not edit.

```sh
python -m benchmarks --list                   # the cases
python -m benchmarks huber --variants jaxloss,optax,limit
python -m benchmarks --json                   # all of them, about ten minutes, into results/<device>.json
python -m benchmarks --tiny                   # in CI: every case at a size of nothing: is it right?
python -m benchmarks --smallest --gate        # in CI: has a ratio to the baseline got worse, three times in a row?
python -m benchmarks.table                    # this page and the images
python -m benchmarks.exactness                # not how fast, how right: the digits that are left
```

**Method.** Every variant is first compared with NumPy in float64 and refused if it is wrong. JAX compiles each as one
program whose inputs are arguments: constants would be folded. Every library has a process of its own, one works at a
time, and the variants take turns (A B C A B C ...), so that a busy minute hits all of them. CPU time is that of all
threads and children together, read when they sleep (a running one is counted in ticks of milliseconds only); other
programs hardly change it, its minimum is compared, on an accelerator the wall time's. Short work is called many times
in a row. Time for compilation is apart. Memory is what the compiler reserves besides inputs and outputs (temp), and how
far the process or device grew in one call (peak, with the result in it). "limit" is what the work cannot go below: each
case says what it does. Two copies of one program differ by up to 10 %.

**Your own case**: a `Case` in a file of [cases/](cases/__init__.py), whose docstring holds the smallest one.
"""


def render(documents: Sequence[Mapping[str, Any]], images: Mapping[str, Mapping[str, str]]) -> str:
    """The page. `images`: by the device's name and the case, where its image lies."""
    parts = [HEAD]
    for document in documents:
        device = document["device"]
        dates = sorted({point["date"] for point in document["points"]})
        parts.append(
            f"## {device['kind']}, {device['count']} {'cores' if device['platform'] == 'cpu' else 'devices'}\n"
        )
        versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        parts.append(f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with {versions}.\n")
        parts.append(_worst(document))
        for module in cases.families().values():
            names = [case.name for case in module.CASES]
            points = [point for point in document["points"] if point["case"] in names]
            if points:
                parts.append(f"### {module.TITLE}\n")
                parts.append("\n".join(f"- {case.name}, limit: {case.limit}." for case in module.CASES) + "\n")
                parts.append(times(points, clock(document)))
                parts.append(_slopes(points, clock(document)))
                parts.append(_memory(points))
                parts.append(_compilation(points))
                drawn = images.get(device["name"], {})
                parts.extend(
                    f"![{name}: time and memory against size]({drawn[name]})\n" for name in names if name in drawn
                )
        parts.append(_left_out(document["points"]))
    return "\n".join(part for part in parts if part)


def times(points: Sequence[Any], clock: str) -> str:
    """A row a point: what each variant took, and the ratios of ours."""
    unit = "CPU time of all threads (wall time), minimum, ms" if clock == "cpu_min" else "wall time, minimum, ms"
    names = _variants(points)
    last = ["/ " + _baseline(points), "/ best peer", "/ limit"]
    rows = []
    for point in points:
        cells = [_time(point["variants"].get(name), clock) for name in names]
        rows.append([*_what(point), *cells, *(_ratio(ratio) for ratio in ratios(point, clock).values())])
    return f"{unit}; the last columns: jaxloss over the others.\n\n" + _markdown([*_WHAT, *names, *last], rows)


_WHAT = ("case", "dtype", "size", "mode")


def _what(point: Any) -> list[str]:
    less = f" (of {label(point['asked'])})" if "asked" in point else ""
    return [point["case"], point["dtype"], label(point["size"]) + less, point["mode"]]


def _variants(points: Sequence[Any]) -> list[str]:
    """Ours, the peers, other forms of ours, the limit."""
    roles = {name: each["role"] for point in points for name, each in point["variants"].items()}
    order = ("ours", "peer", "extra", "limit")
    return sorted(roles, key=lambda name: order.index(roles[name]))


def _baseline(points: Sequence[Any]) -> str:
    names = {point["baseline"] for point in points}
    return names.pop() if len(names) == 1 else "baseline"


def _time(found: Mapping[str, Any] | None, clock: str) -> str:
    if found is None:
        return ""
    wall = f" ({_milliseconds(found['wall_min'])})" if clock == "cpu_min" else ""
    return _milliseconds(found[clock]) + wall


def _milliseconds(seconds: float) -> str:
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _worst(document: Mapping[str, Any]) -> str:
    """What to mend next."""
    seconds = clock(document)
    found = [(ratio, point) for point in document["points"] if (ratio := to_baseline(point, seconds)) is not None]
    found.sort(key=lambda pair: -pair[0])
    lines = [
        f"{ratio:.2f} x {point['baseline']}: {', '.join(word for word in _what(point) if word)}"
        for ratio, point in found[:3]
    ]
    return "The worst ratios to the baseline:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" if lines else ""


def _slopes(points: Sequence[Any], seconds: str) -> str:
    groups = series(points)
    if not groups:
        return ""
    names = _variants(points)
    rows = []
    for (case, dtype, mode, rest), members in groups.items():
        sizes = " to ".join(label(members[i]["size"][:1]) for i in (0, -1)) + "".join(f" x {n}" for n in rest)
        rows.append([case, dtype, sizes, mode, *(_slope(members, name, seconds) for name in names)])
    caption = "Growth: the exponent of the size, between the two ends and the sizes between; 1 is proportional.\n\n"
    return caption + _markdown([*_WHAT, *names], rows)


def _slope(points: Sequence[Any], name: str, seconds: str) -> str:
    costs = [cost(point, name, seconds) for point in points]
    if not all(costs):
        return ""
    sizes = np.log([point["size"][0] for point in points])
    return f"{np.polyfit(sizes, np.log(np.array(costs, float)), 1)[0]:.2f}"


def _memory(points: Sequence[Any]) -> str:
    """Of the largest sizes; of the smaller ones the process's own noise would be shown."""
    shown = [point for point in _largest(points) if any("peak_bytes" in each for each in point["variants"].values())]
    if not shown:
        return ""
    names = _variants(shown)
    rows = [[*_what(point), *(_bytes(point["variants"].get(name)) for name in names)] for point in shown]
    return "Memory: peak growth in one call (temp of the compiled program), MiB.\n\n" + _markdown(
        [*_WHAT, *names], rows
    )


def _bytes(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    peak, temp = (f"{found[what] / 2**20:.0f}" if what in found else "" for what in ("peak_bytes", "temp_bytes"))
    return peak + (f" ({temp})" if temp else "")


def _compilation(points: Sequence[Any]) -> str:
    shown = _largest(points)
    if not any("compile_s" in each for point in shown for each in point["variants"].values()):
        return ""
    names = [name for name in _variants(shown) if any("compile_s" in p["variants"].get(name, {}) for p in shown)]

    def cell(point: Any, name: str) -> str:
        seconds = point["variants"].get(name, {}).get("compile_s")
        return "" if seconds is None else f"{seconds:.2g}"

    rows = [[*_what(point), *(cell(point, name) for name in names)] for point in shown]
    return "Compilation, seconds.\n\n" + _markdown([*_WHAT, *names], rows)


def _largest(points: Sequence[Any]) -> list[Any]:
    """Of each case, dtype and mode the point with the most entries."""
    found: dict[tuple[str, str, str], Any] = {}
    for point in points:
        name = point["case"], point["dtype"], point["mode"]
        if name not in found or np.prod(point["size"]) >= np.prod(found[name]["size"]):
            found[name] = point
    return list(found.values())


def _left_out(points: Sequence[Any]) -> str:
    lines = dict.fromkeys(
        f"{point['case']}: {name}: {reason}" for point in points for name, reason in point["skipped"].items()
    )
    lines |= dict.fromkeys(
        f"{', '.join(_what(point))}: {name} refused: {reason}"
        for point in points
        for name, reason in point["refused"].items()
    )
    return "Left out:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" if lines else ""


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in which nothing stands are left away."""
    kept = [k for k in range(len(columns)) if any(row[k] for row in rows)]
    line: Callable[[Sequence[str]], str] = lambda cells: "| " + " | ".join(cells[k] for k in kept) + " |"  # noqa: E731
    rule = "|" + "|".join(":--" if columns[k] in _WHAT else "--:" for k in kept) + "|"
    return "\n".join([line(columns), rule, *map(line, rows)]) + "\n"


def main() -> None:
    documents = [load(path) for path in sorted(RESULTS.glob("*.json"))]
    images = {
        document["device"]["name"]: {
            case: path.relative_to(HERE).as_posix() for case, path in plots.draw(document).items()
        }
        for document in documents
    }
    (HERE / "README.md").write_text(render(documents, images), encoding="utf-8")
    print(f"{HERE.name}/README.md: {len(documents)} kinds of device, {sum(map(len, images.values()))} images")


if __name__ == "__main__":
    main()
