"""Numbers and findings as text, the same in the terminal, in the files and on the page."""

from __future__ import annotations

import numpy as np

from jaxloss.lab.compare import Comparison, Floats, Standing, paired_difference
from jaxloss.lab.metrics import Metric

__all__ = ["findings", "learning_rate", "number", "reading", "spread", "timing"]


def number(metric: Metric, value: float) -> str:
    """One value of a metric."""
    return f"{100 * value:.1f}" if metric.in_percent else f"{value:.3g}"


def spread(metric: Metric, of_seeds: Floats) -> str:
    """The standard deviation over seeds, with its sign; nothing for a single seed."""
    return f"±{number(metric, float(np.std(of_seeds, ddof=1)))}" if len(of_seeds) > 1 else ""


def reading(comparison: Comparison) -> str:
    """How to read the table."""
    first = comparison.metrics[0]
    data, seeds = comparison.data, comparison.seeds
    what = "mean ± standard deviation over the seeds" if seeds > 1 else "one seed, so no spread"
    percent = ", in percent" if first.in_percent else ""
    return (
        f"Ranked by {first.title} on the {len(data.validation)} validation rows, which also chose each learning rate; "
        f"the columns after it are the {len(data.test)} test rows, which chose nothing: {what}{percent}."
    )


def findings(comparison: Comparison) -> list[str]:
    """What the table does not say by itself."""
    sentences = [_first_and_second(comparison), *_edges(comparison), *_diverged(comparison)]
    return [sentence for sentence in sentences if sentence]


def timing(comparison: Comparison, seconds: float | None = None) -> str:
    """How long it took; `seconds` where more than the comparison is counted."""
    total = comparison.seconds if seconds is None else seconds
    runs = sum(standing.runs.failed.size for standing in comparison.standings)
    share = 100 * comparison.compile_seconds / total
    return (
        f"{runs} runs of {comparison.epochs} epochs in {total:.0f} s, of which compiling "
        f"{comparison.compile_seconds:.0f} s ({share:.0f} %)."
    )


def _first_and_second(comparison: Comparison) -> str:
    if len(comparison.standings) < 2 or comparison.standings[1].best is None:
        return ""
    first, second = comparison.standings[:2]
    metric = comparison.metrics[0]
    difference = paired_difference(first.test[metric.name], second.test[metric.name])
    names = f"{first.name} and {second.name}"
    if difference is None:
        return f"{names}: one seed cannot tell which is better; use more seeds."
    unit = " points" if metric.in_percent else ""
    size = f"{number(metric, abs(difference.mean))} ± {number(metric, difference.half_width)}{unit}"
    how = f"in test {metric.title} (95 % interval of the difference seed by seed)"
    if not difference.is_clear:
        return f"{names} are not told apart: they differ by {size} {how}, which is within the spread over the seeds."
    better, worse = (first, second) if (difference.mean > 0) == metric.higher_is_better else (second, first)
    ahead = f"{better.name} is ahead of {worse.name} by {size} {how}"
    if better is second:
        return f"{ahead}, though the validation rows rank them the other way: take either."
    return f"{ahead}, which is more than the spread over the seeds."


def _edges(comparison: Comparison) -> list[str]:
    if not any(standing.at_edge for standing in comparison.standings):
        return []
    return ["* the smallest or the largest learning rate that was tried: a better one may lie beyond."]


def _diverged(comparison: Comparison) -> list[str]:
    lost = [standing.name for standing in comparison.standings if standing.best is None]
    some = any(standing.diverged for standing in comparison.standings)
    sentences: list[str] = []
    if some:
        sentences.append(
            "Diverged: runs that met a loss that is not finite, at any learning rate; "
            "a learning rate with such a run is never chosen."
        )
    if lost:
        sentences.append(f"Without a result, because every learning rate had a diverged run: {', '.join(lost)}.")
    return sentences


def learning_rate(standing: Standing) -> str:
    """The best learning rate, with a star at the edge of those tried."""
    if standing.learning_rate is None:
        return "-"
    return f"{standing.learning_rate:g}{'*' if standing.at_edge else ''}"
