"""The child process that holds one library and runs what it is told to: requests and replies are lines of JSON.

A process for each library, because the thread pools of two in one process fight for the cores, and because memory is
counted by process. Only one process works at a time: the parent asks, and waits.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, TextIO

import ml_dtypes
import numpy as np

from benchmarks import cases
from benchmarks.case import VALUE, Case, Inputs, Prepared

__all__ = ["Worker", "main"]

_PACKAGES = ("jax", "jaxlib", "jaxloss", "optax", "numpy", "torch", "keras", "rax", "tokamax", "flax")

_SHORT = 0.05  # seconds
_SETTLE = 0.001  # seconds: until the threads of a pool sleep


class Worker:
    """The requests, each a method: its arguments are the request, what it returns is the reply."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.driver: ModuleType = importlib.import_module(f"benchmarks.with_{library}")
        self.inputs: Inputs = {}
        self.truth: list[np.ndarray] = []
        self.prepared: dict[str, Prepared] = {}

    def describe(self) -> dict[str, Any]:
        """The machine and the versions, as this library sees them."""
        found: dict[str, Any] = {"versions": _versions(), "platform": "cpu", "kind": _processor(), "count": _cores()}
        found["memory"] = _available_memory()
        if self.library == "jax":
            import jax

            device = jax.devices()[0]
            if device.platform != "cpu":
                found |= {"platform": device.platform, "kind": device.device_kind, "count": len(jax.devices())}
                found["memory"] = min(found["memory"], (device.memory_stats() or {}).get("bytes_limit", math.inf))
        if self.library == "torch":
            import torch

            found["platform"] = "gpu" if torch.cuda.is_available() else "cpu"
        return found

    def open(self, directory: str) -> dict[str, Any]:
        """Forget the last point and take the inputs of a new one; every library reads the same files."""
        self.close()
        files = sorted(pathlib.Path(directory).glob("*.npy"))
        # The first characters of a name keep the order of the arguments.
        arrays = {path.stem: _load(path) for path in files}
        self.inputs = self.driver.place({name[3:]: a for name, a in arrays.items() if name[0] == "i"})
        self.truth = [array for name, array in arrays.items() if name[0] == "t"]
        return {}

    def close(self) -> dict[str, Any]:
        self.prepared.clear()
        self.inputs, self.truth = {}, []
        gc.collect()
        return {}

    def forget(self) -> dict[str, Any]:
        """Drop what was compiled and keep the inputs: the next mode of the same point follows."""
        self.prepared.clear()
        gc.collect()
        return {}

    def prepare(self, case: str, variant: str, mode: str, dtype: str) -> dict[str, Any]:
        """Compile, check against the truth, run once more for the peak memory and the warm caches."""
        declared: Case = cases.by_name()[case]
        chosen = declared.variants[variant]
        prepared = chosen.build(self.inputs, mode)
        reply: dict[str, Any] = {"compile_s": prepared.compile_s}
        start = time.perf_counter()
        if chosen.role != "limit":
            wanted = self.truth[:1] if mode == VALUE else self.truth
            found = prepared.outputs()
            reply["seconds"] = time.perf_counter() - start
            if len(found) != len(wanted):
                raise ValueError(f"{len(found)} results, the truth has {len(wanted)}")
            errors = [declared.error(np.asarray(a), b) for a, b in zip(found, wanted, strict=True)]
            allowed = (chosen.tolerance or declared.tolerance)[dtype]
            # Not `any(error > allowed)`, which a nan would pass.
            if not all(error <= allowed for error in errors):
                return reply | {"wrong": f"off by {', '.join(f'{e:.2g}' for e in errors)}; {allowed:g} is allowed"}
            reply["error"] = max(errors)
            del found
        if prepared.peak_bytes:
            if chosen.role == "limit":
                prepared.call()
                reply["seconds"] = time.perf_counter() - start
            peak = prepared.peak_bytes()
        else:
            before, start = _memory_before(self.library), time.perf_counter()
            result = prepared.call()
            reply["seconds"] = time.perf_counter() - start
            peak = _memory_growth(self.library, before)
            del result
            for _ in range(3 if reply["seconds"] < _SHORT else 0):  # how many calls are timed in a row hangs on it
                start = time.perf_counter()
                prepared.call()
                reply["seconds"] = min(reply["seconds"], time.perf_counter() - start)
        self.prepared[variant] = prepared
        return reply | {
            "temp_bytes": prepared.temp_bytes,
            "output_bytes": prepared.output_bytes,
            "peak_bytes": peak,
        }

    def time(self, variant: str, calls: int) -> dict[str, Any]:
        """Seconds of one call, the mean of `calls` in a row: by the clock, and of all threads and children together."""
        call = self.prepared[variant].call
        if calls > 1:
            call()  # threads that slept while the others worked wake up, and caches fill
        busy, start = _cpu_seconds(), time.perf_counter()
        for _ in range(calls):
            result = call()
        wall = time.perf_counter() - start
        cpu = _cpu_seconds() - busy
        del result  # after the clocks: a peer's result would be freed then too
        return {"wall": wall / calls, "cpu": cpu / calls}


def main(library: str, requests: TextIO, replies: TextIO) -> None:
    worker = Worker(library)
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        name: getattr(worker, name) for name in ("describe", "open", "close", "forget", "prepare", "time")
    }
    for line in requests:
        request = json.loads(line)
        try:
            reply = methods[request.pop("do")](**request)
        except ImportError as error:
            reply = {"missing": str(error)}
        except Exception as error:  # whatever a library raises travels to the parent, which reports it by name
            reply = {
                "failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}"
            }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _cpu_seconds() -> float:
    # A thread that runs on another core is counted in ticks of some milliseconds; one that has gone to sleep, exactly.
    time.sleep(_SETTLE)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _load(path: pathlib.Path) -> np.ndarray:
    array = np.load(path, mmap_mode="r")
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Name, family and model: a virtual machine tells the name of a whole line of processors."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = [line.partition(":") for line in text.splitlines()]
    found = {name.strip(): value.strip() for name, _, value in reversed(pairs)}
    numbers = [
        f"{word} {found[name]}" for name, word in (("cpu family", "family"), ("model", "model")) if name in found
    ]
    return ", ".join([found.get("model name", platform.machine()), *numbers])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_memory() -> int:
    try:
        text = pathlib.Path("/proc/meminfo").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_before(library: str) -> tuple[str, int, int]:
    """Which count is used, how much is in use now, and the peak so far."""
    gc.collect()
    if library == "jax":
        import jax

        stats = jax.devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
        if stats:
            return "jax", stats["bytes_in_use"], stats["peak_bytes_in_use"]
    if library == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return "torch", torch.cuda.memory_allocated(), 0
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would be used again without growing
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except (AttributeError, OSError):
        return "unknown", 0, 0
    return "process", _resident("VmRSS"), 0


def _memory_growth(library: str, before: tuple[str, int, int]) -> int | None:
    kind, used, peak = before
    if kind == "process":
        return max(0, _resident("VmHWM") - used)
    if kind == "torch":
        import torch

        return torch.cuda.max_memory_allocated() - used
    if kind == "jax":
        import jax

        now = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return now - used if now > peak else None  # jax cannot start its peak anew: a lower one is not seen
    return None


def _resident(field: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field))


if __name__ == "__main__":
    # Libraries print what they like; the replies go where nothing else is written.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main(sys.argv[1], sys.stdin, channel)
