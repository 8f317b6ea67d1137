"""What steps report: merged on the device, and read when the device is long past it."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array
from jaxloss.train.state import Metrics

__all__ = ["AHEAD", "Interval", "Log", "Seen", "Tally", "joined", "numbers"]

# How many steps the host may be ahead of the device: enough that the device never waits for the next one, and few,
# because every step in flight holds its batch in the device's memory.
AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Log:
    """The numbers of the steps since the log before, up to `step`; on the host.

    `training` holds terms and metrics by name, merged over those steps; nan where nothing was valid. `not_finite`
    counts the steps with a gradient that is not finite or a term that is nan; they are left out of `training`, unless
    there is nothing else. `validation` is None where none was due. `last` is what step `step` alone reported.
    `seconds` is the time since `fit` began.
    """

    step: int
    training: dict[str, float]
    validation: dict[str, float] | None
    last: Metrics
    not_finite: int
    seconds: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
    """Terms and metrics of training steps, and how many of the steps were finite (for one step: whether it was)."""

    values: dict[str, Any]
    finite: Array

    @staticmethod
    def by(metrics: Metrics) -> Seen:
        """What one step saw."""
        return Seen({**metrics.terms, **metrics.aux}, metrics.ok)

    def merge(self, later: Seen) -> Seen:
        """Both; a side without a finite step has no part in the values: nan in one batch would hide all others."""
        here, there = self.finite > 0, later.finite > 0
        values = jax.tree.map(
            lambda both, a, b: jnp.where(there, jnp.where(here, both, b), a),
            joined(self.values, later.values),
            self.values,
            later.values,
        )
        return Seen(values, self.finite.astype(jnp.int32) + later.finite.astype(jnp.int32))


class Interval(NamedTuple):
    """Several steps: their values merged, and the number of the last one; `beside` is the caller's."""

    last: int
    size: int
    merged: Any
    beside: Any


class Tally:
    """Mergeable values of step after step, in intervals.

    Nothing waits for the step that was just dispatched: `add` waits for the one `AHEAD` before it, so that the host
    does not run away, and `past` gives the intervals that were waited for in this way.
    """

    def __init__(self) -> None:
        self.added = 0
        self._open: Any = None
        self._size = 0
        self._closed: collections.deque[Interval] = collections.deque()
        self._in_flight: collections.deque[Any] = collections.deque()

    def add(self, values: Any) -> None:
        """The values of one step, still on the device: a pytree of what has a `merge`."""
        self.added += 1
        self._size += 1
        self._open = values if self._open is None else _merged(self._open, values)
        self._in_flight.append(values)
        if len(self._in_flight) > AHEAD:
            jax.block_until_ready(self._in_flight.popleft())

    def close(self, beside: Any = None) -> None:
        """End the interval at the last step; if nothing was added to it there is none."""
        if self._size:
            self._closed.append(Interval(self.added, self._size, self._open, beside))
            self._open, self._size = None, 0

    def past(self) -> Iterator[Interval]:
        """The closed intervals whose steps are done, on the host."""
        while self._closed and self._closed[0].last <= self.added - AHEAD:
            yield _fetched(self._closed.popleft())

    def rest(self) -> Iterator[Interval]:
        """All closed intervals, on the host; waits for their steps."""
        while self._closed:
            yield _fetched(self._closed.popleft())


def joined(first: Any, second: Any) -> Any:
    """Two pytrees of mergeable values, merged one by one."""
    return jax.tree.map(lambda a, b: a.merge(b), first, second, is_leaf=_is_mergeable)


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The values that are one number each, from the host; nan, not 0, for a `Mean` over nothing."""
    found: dict[str, float] = {}
    for name, metric in values.items():
        value = _quotient(metric) if isinstance(metric, Mean) else getattr(metric, "value", None)
        if value is not None and np.ndim(value) == 0:
            found[name] = float(value)
    return found


# One dispatch a step, whatever the number of terms.
_merged = jax.jit(joined)


def _fetched(interval: Interval) -> Interval:
    merged, beside = jax.device_get((interval.merged, interval.beside))
    widened = jax.tree.map(_widened, merged, is_leaf=lambda node: isinstance(node, Mean))
    return interval._replace(merged=widened, beside=beside)


def _widened(metric: Any) -> Any:
    # Intervals add up on the host: float32 would stop counting at 2^24 entries.
    if not isinstance(metric, Mean):
        return metric
    return Mean(np.asarray(metric.total, np.float64), np.asarray(metric.weight, np.float64), metric.coupled)  # pyright: ignore[reportArgumentType]


def _is_mergeable(node: object) -> bool:
    return hasattr(node, "merge")


def _quotient(mean: Mean) -> Any:
    if np.ndim(mean.total) or np.ndim(mean.weight):
        return mean.value
    return math.nan if mean.weight == 0 else np.float64(mean.total) / np.float64(mean.weight)
