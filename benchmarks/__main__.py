"""Run the cases: python -m benchmarks --help."""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import cases, results
from benchmarks.case import Case, label
from benchmarks.gate import complaints
from benchmarks.measure import Team, measure
from benchmarks.table import times


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        wanted = cases.select(options.case)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        for family, module in cases.families().items():
            print(f"{family}: {module.TITLE}")
            for case in module.CASES:
                print(f"  {case.name}: {', '.join(map(label, case.sizes))}; {', '.join(case.variants)}")
        return 0
    if options.gate:
        wanted = [case for case in wanted if case.baseline in case.variants]
    only = frozenset(options.variants.split(",")) if options.variants else None
    started = time.perf_counter()
    points: list[Any] = []
    with Team() as team:
        description = team.ask("jax", "describe")
        empty = results.document([], description)
        try:  # before minutes are spent
            stored = _stored(options.gate, empty) if options.gate else None
            path = results.path_for(empty) if options.json in (None, _DEFAULT) else pathlib.Path(options.json)
            # A run of everything replaces the file; one of some cases must fit to what is there.
            partial = options.case or only or options.smallest
            kept = results.load(path) if options.json and partial and path.exists() else None
            if kept:
                results.merge(kept, empty)
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 2
        settings = {"tiny": options.tiny, "smallest": options.smallest, "rounds": options.rounds}
        if options.gate:
            settings["seconds"] = _SECONDS_AT_THE_GATE

        def look(case: Case) -> Iterator[Any]:
            compared = frozenset({case.ours, case.baseline}) if options.gate else None
            yield from measure(case, team, only=only or compared, **settings)
            if not options.tiny:
                team.dismiss()

        for case in wanted:
            for point in look(case):
                points.append(point)
                _report(point)
        found = results.document(points, description)
        worse = complaints(found, stored) if options.gate else {}
        for _ in range(_MORE_LOOKS if worse else 0):
            # A busy machine can make one ratio bad, but not the same one again and again.
            for name in sorted({case for case, *_ in worse}):
                again = [point for point in look(cases.by_name()[name]) if results.key(point) in worse]
                found = results.better(found, results.document(again, description))
            worse = complaints(found, stored)
    print(f"\n{times(found['points'], results.clock(found))}\n{time.perf_counter() - started:.0f} s")
    failures = [
        f"{point['case']}, {point['dtype']}, {label(point['size'])}, {point['mode']}: {name} refused: {reason}"
        for point in found["points"]
        for name, reason in point["refused"].items()
        # At full size, what a peer cannot do is news and no failure; at a tiny one the case is at fault.
        if options.tiny or cases.by_name()[point["case"]].variants[name].role != "peer"
    ]
    failures += worse.values()
    if options.json:
        results.save(results.merge(kept, found) if kept else found, path)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


_DEFAULT = "by the device"
_MORE_LOOKS = 2
# It asks whether a ratio is half as large again, not which it is; and what looks bad it looks at again.
_SECONDS_AT_THE_GATE = 1.5


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time and memory beside every peer.")
    parser.add_argument("case", nargs="*", help="names of cases or families; all of them by default")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--tiny", action="store_true", help="only a tiny size, checked, timed once, nothing written")
    parser.add_argument("--smallest", action="store_true", help="only the first of the sizes")
    parser.add_argument("--rounds", type=int, help="of each variant; by default what fits into a few seconds")
    parser.add_argument("--variants", help="only these, with commas between: jaxloss,optax,limit")
    parser.add_argument(
        "--json", nargs="?", const=_DEFAULT, help="write the results; by default to benchmarks/results/<device>.json"
    )
    parser.add_argument(
        "--gate",
        nargs="?",
        const=_DEFAULT,
        help="measure ours and the baseline, compare with this file; by default that of the device",
    )
    options = parser.parse_args(arguments)
    if options.tiny and (options.json or options.gate):
        parser.error("a tiny run is timed once, at sizes where only the overhead counts: no --json and no --gate")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _stored(gate: str, found: dict[str, Any]) -> dict[str, Any] | None:
    if gate != _DEFAULT:
        return results.load(pathlib.Path(gate))
    path = results.path_for(found)
    return results.load(path) if path.exists() else None


def _report(point: dict[str, Any]) -> None:
    took = ", ".join(f"{name} {1e3 * each['wall_min']:.3g}" for name, each in point["variants"].items())
    print(f"{point['case']}, {point['dtype']}, {label(point['size'])}, {point['mode']}: wall ms {took}", flush=True)
    for name, reason in (point["refused"] | point["skipped"]).items():
        print(f"  {name}: {reason}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
