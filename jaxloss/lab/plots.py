"""The curves: validation score over the epochs, and over the learning rates, a row of panels for every optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxloss.lab.compare import Comparison, Floats, Standing

__all__ = ["draw_curves"]

# Okabe and Ito's colours, told apart by everybody; the yellow is left out, which is lost on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":")


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Write the figure as PNG. It has a canvas of its own, so no backend of the caller's is touched."""
    optimizers = list(dict.fromkeys(standing.optimizer.name for standing in comparison.standings))
    losses = sorted({standing.contender.name for standing in comparison.standings})
    styles = {
        name: {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)]}
        for i, name in enumerate(losses)
    }
    figure = Figure(figsize=(11, 0.9 + 3.4 * len(optimizers)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(optimizers), 2, squeeze=False, sharey=True)
    metric = comparison.metrics[0]
    factor = 100 if metric.in_percent else 1
    label = f"validation {metric.title}" + (" in percent" if metric.in_percent else "")
    handles: dict[str, Any] = {}
    for (by_epoch, by_rate), optimizer in zip(panels, optimizers, strict=True):
        for standing in comparison.standings:
            if standing.optimizer.name != optimizer:
                continue
            name = standing.contender.name
            handles[name] = _draw_epochs(by_epoch, standing, factor, styles[name])
            # Each loss a little aside, or one error bar would cover the next.
            aside = 1.03 ** (losses.index(name) - (len(losses) - 1) / 2)
            _draw_rates(by_rate, standing, factor * standing.validation[metric.name], aside, styles[name])
        by_epoch.set(title=f"{optimizer}, each at its best learning rate", xlabel="epoch", ylabel=label)
        by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
        by_rate.set(title=f"{optimizer}, after the last epoch", xlabel="learning rate", xscale="log")
        rates = next(each.runs.learning_rates for each in comparison.standings if each.optimizer.name == optimizer)
        by_rate.set_xticks(rates, [f"{rate:g}" for rate in rates])
        by_rate.tick_params(axis="x", which="minor", bottom=False)
        for panel in (by_epoch, by_rate):
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylim(*_limits(comparison, factor))
    names = [name for name in losses if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=min(5, len(names)))
    over = f"mean and standard deviation over {comparison.seeds} seeds" if comparison.seeds > 1 else "1 seed"
    figure.suptitle(f"{comparison.data.name}: {over}", fontsize=12)
    figure.savefig(path)


def _draw_epochs(panel: Any, standing: Standing, factor: float, style: dict[str, str]) -> Any:
    if standing.best is None:
        return panel.plot([], [], label=standing.contender.name, **style)[0]
    scores = factor * standing.runs.validation_score[:, standing.best]
    epochs = np.arange(1, scores.shape[1] + 1)
    mean, deviation = scores.mean(axis=0), _deviation(scores)
    panel.fill_between(epochs, mean - deviation, mean + deviation, color=style["color"], alpha=0.15, linewidth=0)
    return panel.plot(epochs, mean, linewidth=1.6, **style)[0]


def _draw_rates(panel: Any, standing: Standing, scores: Floats, aside: float, style: dict[str, str]) -> None:
    """A point a learning rate; one at which a run diverged has none, and breaks the line."""
    broken = standing.runs.failed.any(axis=0)
    mean = np.where(broken, np.nan, scores.mean(axis=0))
    rates = aside * np.asarray(standing.runs.learning_rates)
    panel.errorbar(rates, mean, np.where(broken, np.nan, _deviation(scores)), linewidth=1.4, capsize=2, **style)
    if standing.best is not None:
        panel.plot(rates[standing.best], mean[standing.best], marker="o", markersize=6, color=style["color"])


def _deviation(scores: Floats) -> Floats:
    return scores.std(axis=0, ddof=1) if len(scores) > 1 else np.zeros(scores.shape[1:])


def _limits(comparison: Comparison, factor: float) -> tuple[float, float]:
    """What shows the differences at the end: the first epochs and bad learning rates may leave the panel."""
    metric = comparison.metrics[0]
    chosen = [standing for standing in comparison.standings if standing.best is not None]
    if not chosen:
        return 0.0, 1.0
    ends = np.concatenate([factor * standing.validation[metric.name][:, standing.best] for standing in chosen])
    curves = [factor * standing.runs.validation_score[:, standing.best].mean(axis=0) for standing in chosen]
    # A tenth of the way in, most of the learning is done.
    early = [curve[len(curve) // 10] for curve in curves]
    low, high = float(min(ends.min(), *early)), float(max(ends.max(), *early))
    margin = 0.08 * (high - low) or 0.01 * factor
    top = min(high + margin, 1.002 * factor) if metric.in_percent else high + margin
    return low - margin, top
