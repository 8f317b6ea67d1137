"""The method: one point after the other, its variants interleaved, each library in its own process."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.case import Case, Size, Variant

__all__ = ["Team", "WorkerDiedError", "measure"]

_ROOT = pathlib.Path(__file__).parents[1]
_LEAST_SECONDS = 0.01  # shorter work is called several times in a row, or the clocks themselves would be measured
_MOST_ROUNDS = 40
# Several processes hold the inputs; a float32 copy, a result and the truth come to each of them.
_MEMORY_PER_ENTRY = 4 * 14


class WorkerDiedError(RuntimeError):
    """A worker ended before it answered; most often it had asked for more memory than there is."""


class _Process:
    def __init__(self, library: str) -> None:
        environment = {"KERAS_BACKEND": "jax", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=environment | os.environ,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerDiedError(f"the process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Team:
    """The workers, started when first needed. A context: none outlives it."""

    def __init__(self, start: Callable[[str], Any] = _Process) -> None:
        self._start = start
        self._processes: dict[str, Any] = {}
        self._opened: dict[str, str] = {}

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *problem: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End all workers: what the allocators of the libraries keep does not grow from case to case."""
        for process in self._processes.values():
            process.stop()
        self._processes.clear()
        self._opened.clear()

    def ask(self, library: str, do: str, **request: Any) -> dict[str, Any]:
        process = self._processes.get(library)
        if process is None:
            process = self._processes[library] = self._start(library)
        try:
            return process.ask(do, **request)
        except WorkerDiedError:
            del self._processes[library]
            self._opened.pop(library, None)
            raise

    def open(self, library: str, directory: str) -> None:
        if self._opened.get(library) != directory:
            reply = self.ask(library, "open", directory=directory)
            if "failed" in reply:
                raise WorkerDiedError(reply["failed"])
            self._opened[library] = directory

    def forget(self) -> None:
        for process in self._processes.values():
            process.ask("forget")

    def close(self) -> None:
        for process in self._processes.values():
            process.ask("close")
        self._opened.clear()


def measure(
    case: Case,
    team: Team,
    *,
    tiny: bool = False,
    smallest: bool = False,
    rounds: int | None = None,
    seconds: float = 4.0,
    only: frozenset[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Every point of a case, as a record that goes into the results.

    Args:
      tiny: the tiny size, checked, and timed once.
      smallest: the first size only.
      rounds: how often each variant is timed; None for what fits into `seconds`.
      seconds: for all variants of a point together, where the rounds are not given.
      only: names of variants; None for all.
    """
    description = team.ask("jax", "describe")
    sizes = (case.tiny,) if tiny else case.sizes[:1] if smallest else case.sizes
    skipped = {
        name: reason
        for name, variant in case.variants.items()
        if (reason := _why_not(variant, description["platform"], team))
    }
    variants = {
        name: variant
        for name, variant in case.variants.items()
        if name not in skipped and (only is None or name in only)
    }
    for dtype in case.dtypes:
        for asked in sizes:
            size = _fitting(asked, description["memory"], case.entries)
            with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
                _write_inputs(case, size, dtype, pathlib.Path(directory))
                for mode in case.modes:
                    found, refused = _point(
                        case, variants, team, directory, dtype, mode, 1 if tiny else rounds, seconds, tiny
                    )
                    yield {
                        "case": case.name,
                        "dtype": dtype,
                        "size": list(size),
                        **({"asked": list(asked)} if asked != size else {}),
                        "mode": mode,
                        "baseline": case.baseline,
                        "variants": found,
                        "refused": refused,
                        "skipped": skipped,
                    }
                    team.forget()
                team.close()


def _point(
    case: Case,
    variants: dict[str, Variant],
    team: Team,
    directory: str,
    dtype: str,
    mode: str,
    rounds: int | None,
    seconds: float,
    tiny: bool,
) -> tuple[dict[str, Any], dict[str, str]]:
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}

    def prepare(name: str) -> dict[str, Any]:
        library = variants[name].library
        team.open(library, directory)
        return team.ask(library, "prepare", case=case.name, variant=name, mode=mode, dtype=dtype)

    for name, variant in variants.items():
        if variant.modes is not None and mode not in variant.modes:
            continue
        try:
            reply = prepare(name)
        except WorkerDiedError as error:
            reply = {"failed": str(error)}
            for other in found:  # what stood ready in the same process went with it
                if variants[other].library == variant.library:
                    prepare(other)
        problem = next((reply[word] for word in ("missing", "failed", "wrong") if word in reply), None)
        if problem is None:
            found[name] = {"role": variant.role, **reply}
        else:
            refused[name] = problem
    walls: dict[str, list[float]] = {name: [] for name in found}
    cpus: dict[str, list[float]] = {name: [] for name in found}
    calls = {name: 1 if tiny else max(1, math.ceil(_LEAST_SECONDS / reply["seconds"])) for name, reply in found.items()}
    one_round = sum(calls[name] * reply["seconds"] for name, reply in found.items())
    if rounds is None and found:
        rounds = min(_MOST_ROUNDS, max(case.least_rounds, int(seconds / one_round)))
    for turn in range(rounds or 0):
        # Each comes first as often as the others: what stands in the caches is its predecessor's.
        names = list(found)
        for name in names[turn % len(names) :] + names[: turn % len(names)] if names else []:
            try:
                reply = team.ask(case.variants[name].library, "time", variant=name, calls=calls[name])
            except WorkerDiedError as error:
                reply = {"failed": str(error)}
            if "failed" in reply:  # its process is gone, or it succeeded once and fails now: neither is a result
                refused[name] = reply["failed"]
                del found[name]
                continue
            walls[name].append(reply["wall"])
            cpus[name].append(reply["cpu"])
    for name, reply in found.items():
        del reply["seconds"]
        reply |= {
            "rounds": len(walls[name]),
            "calls": calls[name],
            "wall_min": min(walls[name]),
            "wall_median": statistics.median(walls[name]),
            "cpu_min": min(cpus[name]),
            "cpu_median": statistics.median(cpus[name]),
        }
    return found, refused


def _why_not(variant: Variant, platform: str, team: Team) -> str | None:
    missing = [name for name in variant.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if variant.library == "torch" and platform != "cpu" and team.ask("torch", "describe")["platform"] == "cpu":
        return f"this torch has no support for the {platform}"
    return None


def _fitting(size: Size, memory: float, entries: Callable[[Size], int] = math.prod) -> Size:
    """The size, its first number halved until all processes together find room."""
    while entries(size) * _MEMORY_PER_ENTRY > memory:
        size = (size[0] // 2, *size[1:])
    return size


def _write_inputs(case: Case, size: Size, dtype: str, directory: pathlib.Path) -> None:
    """Inputs and truth as files, numbered in their order: every process reads the same numbers."""
    rng = np.random.default_rng(0)
    to = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    arrays = {
        name: array.astype(to, copy=False) if array.dtype.kind == "f" else array
        for name, array in case.inputs(size, rng).items()
    }
    for k, (name, array) in enumerate(arrays.items()):
        np.save(directory / f"i{k:02d}{name}.npy", array)
    for k, array in enumerate(case.truth(arrays)):
        np.save(directory / f"t{k:02d}.npy", array)
