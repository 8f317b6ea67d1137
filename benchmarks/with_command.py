"""Variants that are a program: a fresh Python process, from its start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.case import RUN, Inputs, Prepared, Role, Variant

__all__ = ["place", "program"]


def place(inputs: Inputs) -> Inputs:
    return inputs


def program(
    arguments: Callable[[Inputs], Sequence[str]],
    read: Callable[[str], float],
    *,
    role: Role = "peer",
    needs: tuple[str, ...] = (),
) -> Variant:
    """`python` with these arguments; `read` takes from what it printed the number that the truth knows."""

    def build(inputs: Inputs, mode: str) -> Prepared:
        command = [sys.executable, *arguments(inputs)]
        printed, peak = "", 0

        def call() -> None:
            nonlocal printed, peak
            with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as problems:
                child = subprocess.Popen(command, stdout=out, stderr=problems, stdin=subprocess.DEVNULL)
                # wait4, because it alone says what this one process used at its peak.
                _, status, usage = os.wait4(child.pid, 0)
                child.returncode = os.waitstatus_to_exitcode(status)
                out.seek(0)
                problems.seek(0)
                if child.returncode:
                    raise RuntimeError(f"{' '.join(command[1:])} failed: {problems.read().strip()[-300:]}")
                printed = out.read()
                peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

        def outputs() -> list[Any]:
            call()
            return [np.asarray(read(printed))]

        return Prepared(call=call, outputs=outputs, peak_bytes=lambda: peak)

    return Variant(build, "command", role, needs, (RUN,))
