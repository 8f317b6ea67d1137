"""The comparison: every pair is trained, the validation rows choose its learning rate, the test rows judge it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from jaxloss.lab.contenders import DEFAULT_LOSSES, Contender, contender
from jaxloss.lab.data import BATCH_SIZE, DataSet
from jaxloss.lab.metrics import METRICS, Metric, measure
from jaxloss.lab.naming import RequestError
from jaxloss.lab.optimizers import DEFAULT_OPTIMIZERS, Optimizer, optimizer_named
from jaxloss.lab.training import Bench, Runs

__all__ = ["Comparison", "Difference", "Standing", "Watcher", "compare", "paired_difference"]

Floats = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """What one pair came to. Arrays are [seeds]; without a `best` every learning rate had a diverged run."""

    contender: Contender
    optimizer: Optimizer
    runs: Runs
    best: int | None  # which of the learning rates
    validation: Mapping[str, Floats]  # by metric, [seeds, learning rates]: those that choose
    test: Mapping[str, Floats]  # by metric, [seeds], at the best learning rate

    @property
    def name(self) -> str:
        """The pair, as it is written everywhere."""
        return f"{self.contender.name} + {self.optimizer.name}"

    @property
    def learning_rate(self) -> float | None:
        """The best one."""
        return None if self.best is None else self.runs.learning_rates[self.best]

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate is the smallest or the largest that was tried."""
        rates = self.runs.learning_rates
        return len(rates) > 1 and self.learning_rate in (min(rates), max(rates))

    @property
    def diverged(self) -> int:
        """How many runs, over all seeds and learning rates, met something that is not finite."""
        return int(self.runs.failed.sum())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All pairs, the best first."""

    data: DataSet
    seeds: int
    epochs: int
    batch_size: int
    standings: tuple[Standing, ...]
    seconds: float
    compile_seconds: float

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured; the first ranks."""
        return METRICS[self.data.task]


class Watcher(Protocol):
    """Somebody who is told how far the comparison is."""

    def pair_started(self, number: int, pairs: int, loss: str, optimizer: str) -> None:
        """Pair `number` of `pairs` begins, by compiling."""
        ...

    def epoch_ended(self, epoch: int, best_score: float) -> None:
        """`best_score`: of the validation rows, mean over seeds, at the best learning rate so far."""
        ...

    def pair_ended(self, standing: Standing) -> None:
        """The pair is done."""
        ...


class _Nobody:
    def pair_started(self, number: int, pairs: int, loss: str, optimizer: str) -> None: ...

    def epoch_ended(self, epoch: int, best_score: float) -> None: ...

    def pair_ended(self, standing: Standing) -> None: ...


def compare(
    data: DataSet,
    losses: Sequence[str] | None = None,
    optimizers: Sequence[str] = DEFAULT_OPTIMIZERS,
    *,
    seeds: int = 5,
    epochs: int = 30,
    learning_rates: Sequence[float] | None = None,
    batch_size: int = BATCH_SIZE,
    watcher: Watcher | None = None,
) -> Comparison:
    """Train every pair of loss and optimizer on `data` and rank them.

    Args:
      data: from `jaxloss.lab.load`.
      losses: names, perhaps with options (`softmax_focal:gamma=1`); None is a choice that fits the task.
      optimizers: names.
      seeds: how many; each is other first params and another order of the rows, the same for every pair.
      epochs: how often every training row is seen.
      learning_rates: tried with every optimizer; None is each optimizer's own five.
      batch_size: training rows a step.
      watcher: is told of the progress.
    Returns: a `Comparison`.
    Raises: RequestError for unknown names and numbers that cannot be meant, before anything is trained.
    """
    watcher = watcher or _Nobody()
    names = DEFAULT_LOSSES[data.task] if losses is None else losses
    contenders = [contender(name, data.task) for name in _once("loss", names)]
    chosen = [optimizer_named(name) for name in _once("optimizer", optimizers)]
    for what, number in (("seeds", seeds), ("epochs", epochs), ("batch_size", batch_size)):
        if number < 1:
            raise RequestError(f"{what} must be at least 1, got {number}")
    if learning_rates is not None:
        _check_rates(learning_rates)

    started = time.perf_counter()
    bench = Bench(data, seeds=seeds, epochs=epochs, batch_size=batch_size)
    pairs = [(each, optimizer) for each in contenders for optimizer in chosen]
    better = np.nanmax if METRICS[data.task][0].higher_is_better else np.nanmin
    standings: list[Standing] = []
    for i, (each, optimizer) in enumerate(pairs):
        watcher.pair_started(i + 1, len(pairs), each.name, optimizer.name)
        told = watcher

        def on_epoch(epoch: int, scores: Floats, told: Watcher = told) -> None:
            means = scores.mean(axis=0)
            told.epoch_ended(epoch, float(better(means)) if not np.isnan(means).all() else float("nan"))

        rates = tuple(learning_rates) if learning_rates is not None else optimizer.learning_rates
        standings.append(judge(data, each, optimizer, bench.train(each, optimizer, rates, on_epoch)))
        watcher.pair_ended(standings[-1])
    return Comparison(
        data=data,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        standings=ranked(standings, METRICS[data.task][:2]),
        seconds=time.perf_counter() - started,
        compile_seconds=sum(standing.runs.compile_seconds for standing in standings),
    )


def judge(data: DataSet, each: Contender, optimizer: Optimizer, runs: Runs) -> Standing:
    """Choose the learning rate by the validation rows; only then look at the test rows, at that rate alone."""
    deciding = METRICS[data.task][:2]
    measured = [
        [
            {} if failed else measure(data, predictions, data.validation.y, deciding)
            for failed, predictions in zip(*of_seed, strict=True)
        ]
        for of_seed in zip(runs.failed, runs.validation_predictions, strict=True)
    ]
    validation = _by_metric(deciding, measured)
    best = best_rate(validation, runs.failed, runs.learning_rates, deciding)
    test: dict[str, Floats] = {}
    if best is not None:
        of_seeds = [measure(data, predictions[best], data.test.y) for predictions in runs.test_predictions]
        test = _by_metric(METRICS[data.task], of_seeds)
    return Standing(each, optimizer, runs, best, validation, test)


def best_rate(
    validation: Mapping[str, Floats], failed: NDArray[np.bool_], rates: Sequence[float], deciding: Sequence[Metric]
) -> int | None:
    """The learning rate with the best mean over seeds; of equals the better by the second metric, then the smaller.

    A rate at which any seed diverged is out: a mean over the seeds that survived would flatter it.
    """
    sound = [i for i in range(len(rates)) if not failed[:, i].any()]
    keys = {i: (*_worth({name: of[:, i] for name, of in validation.items()}, deciding), rates[i]) for i in sound}
    return min(sound, key=lambda i: keys[i]) if sound else None


def ranked(standings: Iterable[Standing], deciding: Sequence[Metric]) -> tuple[Standing, ...]:
    """By the same validation metrics that chose the learning rates; what diverged everywhere comes last.

    Not by the test metrics: the first of many would then look better than it is.
    """

    def key(standing: Standing) -> tuple[float, ...]:
        if standing.best is None:
            return (1.0,)
        at_best = {name: of[:, standing.best] for name, of in standing.validation.items()}
        return (0.0, *_worth(at_best, deciding))

    return tuple(sorted(standings, key=key))


def _worth(of_seeds: Mapping[str, Floats], deciding: Sequence[Metric]) -> tuple[float, ...]:
    # Rounded, because equal accuracies in another order have means that differ in the last digit.
    return tuple(
        round(float(np.mean(of_seeds[metric.name])) * (-1 if metric.higher_is_better else 1), 12) for metric in deciding
    )


def _by_metric(metrics: Sequence[Metric], measured: Any) -> dict[str, Floats]:
    """Nested lists of {metric: number} as {metric: array}; nan where there is nothing."""

    def pick(name: str, nested: Any) -> Any:
        return [pick(name, each) for each in nested] if isinstance(nested, list) else nested.get(name, np.nan)

    return {metric.name: np.asarray(pick(metric.name, measured)) for metric in metrics}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean of differences taken seed by seed, and half the width of its 95 % interval (Student's t)."""

    mean: float
    half_width: float

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return abs(self.mean) > self.half_width


def paired_difference(first: Floats, second: Floats) -> Difference | None:
    """`first` - `second`, seed by seed: what both owe to a seed cancels. None for a single seed."""
    differences = np.asarray(first) - np.asarray(second)
    n = len(differences)
    if n < 2:
        return None
    quantile = float(scipy.stats.t.ppf(0.975, n - 1))
    return Difference(float(differences.mean()), quantile * float(differences.std(ddof=1)) / n**0.5)


def _once(kind: str, names: Sequence[str]) -> Sequence[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"the {kind} {' and '.join(twice)} is named twice")
    if not names:
        raise RequestError(f"at least one {kind} must be named")
    return names


def _check_rates(rates: Sequence[float]) -> None:
    if not rates or not all(np.isfinite(rate) and rate > 0 for rate in rates):
        raise RequestError(
            f"learning rates must be numbers > 0, got {', '.join(f'{rate:g}' for rate in rates) or 'none'}"
        )
    if len(set(rates)) < len(rates):
        raise RequestError("a learning rate is named twice")
