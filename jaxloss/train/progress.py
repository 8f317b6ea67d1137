"""How far a fit is: a moving bar in a terminal or notebook, a line now and then everywhere else; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

import jax

from jaxloss.train.tally import Log

__all__ = ["Display", "display"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_MOVES = 0.1


class Display(Protocol):
    """What a fit tells; a context, that tidies up however it ends."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *_: object) -> None: ...

    def moved(self, step: int) -> None:
        """Step `step` is done."""
        ...

    def logged(self, log: Log) -> None:
        """There are new numbers."""
        ...

    def said(self, text: str) -> None:
        """Something that happens once."""
        ...


def display(progress: bool | None, *, start: int, total: int | None) -> Display:
    """What suits the place.

    Args:
      progress: None: a bar in a terminal or notebook, if rich is installed, else lines; of several processes the first
        speaks. True: a bar, wherever stderr leads. False: nothing.
      start: steps done so far.
      total: the last step, where it is known.
    Returns: a `Display`.
    Raises: ImportError for True without rich.
    """
    if progress is False or (progress is None and jax.process_index() != 0):
        return _Silence()
    try:
        from rich.console import Console
    except ImportError as error:
        if progress:
            raise ImportError("the bar of `progress=True` is drawn by rich: pip install 'jaxloss[train]'") from error
        return _Lines(total)
    console = Console(stderr=True, force_terminal=progress)
    # Not `console.is_terminal`: colours may be forced in a log, where every frame of a bar would stay.
    if progress or sys.stderr.isatty() or console.is_jupyter:
        return _Bar(console, start, total)
    return _Lines(total)


class _Silence:
    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def moved(self, step: int) -> None:
        pass

    def logged(self, log: Log) -> None:
        pass

    def said(self, text: str) -> None:
        pass


class _Lines:
    """The first log, every validation, the last log, and of the others one in ten seconds."""

    def __init__(self, total: int | None) -> None:
        self._total = "" if total is None else f"/{total}"
        self._first: Log | None = None
        self._withheld: Log | None = None
        self._not_finite = 0
        self._next = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._withheld is not None:
            self._write(self._withheld)

    def moved(self, step: int) -> None:
        pass

    def logged(self, log: Log) -> None:
        self._first = self._first or log
        self._not_finite += log.not_finite
        self._withheld = log
        if log.validation is not None or log.seconds >= self._next:
            self._next = log.seconds + _SECONDS_BETWEEN_LINES
            self._write(log)

    def said(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _write(self, log: Log) -> None:
        self._withheld = None
        # Since the first log, because compiling is no step.
        since = self._first or log
        took = log.seconds - since.seconds
        speed = [f"{(log.step - since.step) / took:.3g} steps/s"] if took > 0 else []
        words = _in_words(log.training, log.validation, self._not_finite)
        self.said(", ".join([f"step {log.step}{self._total}: {words}", *speed]))


class _Bar:
    def __init__(self, console: Any, start: int, total: int | None) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text("" if task.speed is None else f"{task.speed:.3g} steps/s")

        self._console = console
        self._step = start
        self._not_finite = 0
        self._validation: dict[str, float] | None = None
        self._next = 0.0
        self._total = "" if total is None else f"/{total}"
        self._bar = Progress(
            BarColumn(bar_width=16),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            Speed(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            # What the program prints for a file or a pipe must not end up on stderr.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._words = "compiling"
        self._task = self._bar.add_task(self._described(), total=total, completed=start)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._show()
        self._bar.stop()

    def moved(self, step: int) -> None:
        self._step = step
        now = time.monotonic()
        if now >= self._next:  # drawing costs more than a small step
            self._next = now + _SECONDS_BETWEEN_MOVES
            self._words = "" if self._words == "compiling" else self._words
            self._show()

    def logged(self, log: Log) -> None:
        self._not_finite += log.not_finite
        self._step = max(self._step, log.step)
        self._validation = log.validation or self._validation  # the last one stays in sight
        self._words = _in_words(log.training, self._validation, self._not_finite)
        self._show()

    def said(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self._step, description=self._described())

    def _described(self) -> str:
        return f"{self._step}{self._total} {self._words}"


def _in_words(training: dict[str, float], validation: dict[str, float] | None, not_finite: int) -> str:
    # First what must not be cut off by a narrow terminal.
    words = [f"{not_finite} step{'s' if not_finite > 1 else ''} NOT FINITE"] if not_finite else []
    words += [f"{name} {value:.4g}" for name, value in training.items()]
    words += [f"validation {name} {value:.4g}" for name, value in (validation or {}).items()]
    return ", ".join(words)
