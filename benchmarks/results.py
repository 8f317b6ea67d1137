"""Results as files, one for each kind of device, and the ratios that are read off them."""

from __future__ import annotations

import datetime
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "LEAST_SECONDS",
    "RESULTS",
    "better",
    "clock",
    "cost",
    "document",
    "key",
    "load",
    "merge",
    "path_for",
    "ratios",
    "save",
    "series",
    "to_baseline",
]

# Below this the time of a call is measured, not that of the work in it.
LEAST_SECONDS = 1e-4

RESULTS = pathlib.Path(__file__).parent / "results"
Point = Mapping[str, Any]


def document(points: Iterable[Point], description: Mapping[str, Any]) -> dict[str, Any]:
    """All that a file holds; no host, no path, no user."""
    today = datetime.date.today().isoformat()
    device = {"kind": description["kind"], "platform": description["platform"], "count": description["count"]}
    return {
        "device": device | {"name": _name(device)},
        "versions": description["versions"],
        "points": [_rounded({**point, "date": today}) for point in points],
    }


def key(point: Point) -> tuple[Any, ...]:
    return point["case"], point["dtype"], tuple(point.get("asked", point["size"])), point["mode"]


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new points in the place of the old ones of the same case, dtype, size and mode; the others stay."""
    if old["device"] != new["device"] or old["versions"] != new["versions"]:
        raise ValueError("the file was measured with another device or other versions: run all cases, into a new file")
    points = {key(point): point for point in old["points"]} | {key(point): point for point in new["points"]}
    return {**new, "points": list(points.values())}


def better(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old`, with those new points in their places whose ratio to the baseline is lower."""

    def ratio(point: Point) -> float:
        found = to_baseline(point, clock(old))
        return math.inf if found is None else found

    before = {key(point): ratio(point) for point in old["points"]}
    return merge(old, {**new, "points": [point for point in new["points"] if ratio(point) < before[key(point)]]})


def path_for(document: Mapping[str, Any]) -> pathlib.Path:
    return RESULTS / f"{document['device']['name']}.json"


def load(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def save(document: Mapping[str, Any], path: pathlib.Path) -> None:
    # A point on a line of its own: a rerun is a readable change.
    head = {name: part for name, part in document.items() if name != "points"}
    lines = ",\n".join("  " + json.dumps(point, allow_nan=False) for point in document["points"])
    text = json.dumps(head, indent=1)[:-2] + f',\n "points": [\n{lines}\n ]\n}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def clock(document: Mapping[str, Any]) -> str:
    """What is compared: on a CPU the time of all threads, which other programs hardly change; else the wall's."""
    return "cpu_min" if document["device"]["platform"] == "cpu" else "wall_min"


def cost(point: Point, variant: str | None, clock: str) -> float | None:
    found = point["variants"].get(variant)
    return found[clock] if found else None


def ratios(point: Point, clock: str) -> dict[str, float | None]:
    """Ours over the baseline, over the cheapest peer and over the limit; None where one of the two is missing."""
    mine = cost(point, _with_role(point, "ours"), clock)
    peers = [each[clock] for each in point["variants"].values() if each["role"] == "peer"]
    others = {
        "baseline": cost(point, point["baseline"], clock),
        "best peer": min(peers, default=None),
        "limit": cost(point, _with_role(point, "limit"), clock),
    }
    return {name: mine / other if mine is not None and other else None for name, other in others.items()}


def to_baseline(point: Point, clock: str) -> float | None:
    """Ours over the baseline; None where one is missing, or where both are over at once."""
    long = (cost(point, point["baseline"], clock) or 0) >= LEAST_SECONDS
    return ratios(point, clock)["baseline"] if long else None


def series(points: Iterable[Point]) -> dict[tuple[Any, ...], list[Point]]:
    """Points that differ in the first number of their size only, three or more, from small to large."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        if point["size"]:
            found.setdefault((point["case"], point["dtype"], point["mode"], tuple(point["size"][1:])), []).append(point)
    ordered = {name: sorted(group, key=lambda point: point["size"][0]) for name, group in found.items()}
    return {name: group for name, group in ordered.items() if len({point["size"][0] for point in group}) >= 3}


def _with_role(point: Point, role: str) -> str | None:
    return next((name for name, each in point["variants"].items() if each["role"] == role), None)


def _name(device: Mapping[str, Any]) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", device["kind"].lower()).strip("-")
    if device["platform"] == "cpu":
        return f"cpu-{words}-{device['count']}-cores"
    return f"{device['platform']}-{words}" + (f"-x{device['count']}" if device["count"] > 1 else "")


def _rounded(value: Any) -> Any:
    """Four digits are more than a clock repeats, and keep the files small. Byte counts stay whole."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a result is not a finite number")
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items() if part is not None}
    return value
