"""How far the comparison is: a moving bar in a terminal, a plain line a pair everywhere else."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from jaxloss.lab.compare import Standing
from jaxloss.lab.metrics import METRICS, Metric
from jaxloss.lab.wording import learning_rate, number

__all__ = ["ProgressBar"]


class ProgressBar:
    """A `Watcher` that writes to a console. Use it as a context manager: it tidies up its last line."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console, self._epochs = console, epochs
        self._pair = (0, 0)
        self._pair_in_words = ""
        # Logs keep every frame of a bar: without a terminal there is none.
        self._bar = Progress(
            BarColumn(bar_width=12),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def pair_started(self, number: int, pairs: int, loss: str, optimizer: str) -> None:
        """The bar says that the pair compiles."""
        self._pair = (number, pairs)
        self._pair_in_words = f"{number}/{pairs} {loss} + {optimizer}"
        self._bar.update(
            self._task,
            total=pairs * self._epochs,
            completed=(number - 1) * self._epochs,
            description=f"{self._pair_in_words}, compiling",
        )

    def epoch_ended(self, epoch: int, best_score: float) -> None:
        """The bar moves."""
        score = "all diverged" if math.isnan(best_score) else f"validation {best_score:.3g}"
        self._bar.update(
            self._task, advance=1, description=f"{self._pair_in_words}, epoch {epoch}/{self._epochs}, {score}"
        )

    def pair_ended(self, standing: Standing) -> None:
        """A line that stays."""
        position, pairs = self._pair
        metric = _first_metric(standing)
        if standing.best is None:
            result = "diverged at every learning rate"
        else:
            score = number(metric, float(standing.validation[metric.name][:, standing.best].mean()))
            percent = " %" if metric.in_percent else ""
            rate = learning_rate(standing).rstrip("*")
            result = f"validation {metric.title} {score}{percent} at learning rate {rate}"
        self._console.print(
            f"[{position}/{pairs}] {standing.name}: {result} "
            f"({standing.runs.compile_seconds:.1f} s compiling, {standing.runs.training_seconds:.1f} s training)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _first_metric(standing: Standing) -> Metric:
    name = next(iter(standing.validation))
    return next(metric for metrics in METRICS.values() for metric in metrics if metric.name == name)
