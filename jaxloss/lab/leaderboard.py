"""The leaderboard as rows of text, and as a table in a terminal."""

from __future__ import annotations

import dataclasses

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxloss.lab.compare import Comparison, Standing
from jaxloss.lab.metrics import Metric
from jaxloss.lab.wording import learning_rate, number, spread

__all__ = ["Cell", "columns", "print_table", "rows"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number and, if it has one, its spread."""

    text: str
    spread: str = ""


def columns(comparison: Comparison) -> list[str]:
    """The headings."""
    shown = [metric.title for metric in comparison.metrics if metric.in_table]
    return ["#", "loss", "optimizer", "best lr", f"validation {shown[0]}", *shown, "diverged", "seconds"]


def rows(comparison: Comparison) -> list[list[Cell]]:
    """One row a pair, the best first."""
    return [_row(i + 1, standing, comparison.metrics) for i, standing in enumerate(comparison.standings)]


def _row(rank: int, standing: Standing, metrics: tuple[Metric, ...]) -> list[Cell]:
    shown = [metric for metric in metrics if metric.in_table]
    if standing.best is None:
        measured = [Cell("-") for _ in range(len(shown) + 1)]
    else:
        validation = standing.validation[metrics[0].name][:, standing.best]
        tests = [standing.test[metric.name] for metric in shown]
        measured = [Cell(number(metrics[0], float(validation.mean())))]
        measured += [
            Cell(number(metric, float(of.mean())), spread(metric, of)) for metric, of in zip(shown, tests, strict=True)
        ]
    return [
        Cell(str(rank)),
        Cell(standing.contender.name),
        Cell(standing.optimizer.name),
        Cell(learning_rate(standing)),
        *measured,
        Cell(f"{standing.diverged} of {standing.runs.failed.size}" if standing.diverged else "0"),
        Cell(f"{standing.runs.seconds:.1f}"),
    ]


def print_table(console: Console, comparison: Comparison) -> None:
    """The table; where the terminal is narrow, two lines a pair and short headings."""
    wide = _wide_table(comparison)
    # Measured with room to spare: within the console's own width every table says that it fits.
    fits = Measurement.get(console, console.options.update(width=1000), wide).maximum <= console.width
    console.print(wide if fits else _narrow_table(comparison))


def _wide_table(comparison: Comparison) -> Table:
    table = _empty_table(comparison)
    for heading in columns(comparison):
        # Headings break at their spaces, so that they are no wider than what stands below them.
        is_text = heading in ("loss", "optimizer")
        table.add_column(heading.replace(" ", "\n"), justify="left" if is_text else "right", no_wrap=True)
    for i, row in enumerate(rows(comparison)):
        cells = [f"{cell.text} {cell.spread}".rstrip() for cell in row]
        table.add_row(*cells, style="bold" if i == 0 else "")
    return table


def _narrow_table(comparison: Comparison) -> Table:
    table = _empty_table(comparison)
    shown = [metric.short_title for metric in comparison.metrics if metric.in_table]
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("loss\noptimizer, best lr", overflow="fold")  # the only column that may break
    for heading in (f"valid.\n{shown[0]}", *shown):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, (rank, loss, optimizer, rate, *measured, diverged, seconds) in enumerate(rows(comparison)):
        below = f"{optimizer.text}, {rate.text}, {seconds.text} s"
        if diverged.text != "0":
            below += f", {diverged.text} diverged"
        cells = [f"{cell.text}\n{cell.spread}" for cell in measured]
        table.add_row(rank.text, f"{loss.text}\n{below}", *cells, style="bold" if i == 0 else "")
    return table


def _empty_table(comparison: Comparison) -> Table:
    data = comparison.data
    seeds = f"{comparison.seeds} seeds" if comparison.seeds > 1 else "1 seed"
    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        title=f"{data.name}: {len(data.train)} training rows, {seeds}, {comparison.epochs} epochs",
        title_justify="left",
    )
