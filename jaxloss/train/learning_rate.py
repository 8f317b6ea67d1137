"""`find_learning_rate`: the range test, a short run whose learning rate grows from step to step."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from jaxloss.core.types import Array
from jaxloss.train.canvas import COLOURS, axes, save
from jaxloss.train.passes import Batches, check_batches, one_pass
from jaxloss.train.state import State, check_readable
from jaxloss.train.step import TrainStep

__all__ = ["LearningRateCurve", "find_learning_rate"]

Floats = npt.NDArray[np.float64]

# Losses are fetched once in so many steps: the device runs ahead, and divergence is noticed a little late.
_CHUNK = 10

# The suggestion is where half of the fall is done, at most this part of the rate at the minimum. Measured on 112 range
# tests (benchmarks/range_tests.py: 7 problems, sgd, momentum, adam, lion), each followed by 200 steps at the suggested
# rate: on average they ended 7 % of the reachable fall above the best of 31 rates, twice above half of it. The usual
# suggestion, the steepest fall: 34 times above half, because one noisy step is steeper than the trend.
_BELOW_MINIMUM = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """What a range test saw, up to the step at which it stopped.

    `losses[i]` is the loss of batch i at the params before their update with `rates[i]`; `smoothed` its exponential
    average, free of the bias of its start. `suggestion` is None where the loss never fell. `diverged_at` is the rate
    at whose step divergence showed, None where it did not. `note` says in words what is wrong with the test, if
    anything.
    """

    rates: Floats
    losses: Floats
    smoothed: Floats
    suggestion: float | None
    diverged_at: float | None
    note: str | None

    def __str__(self) -> str:
        tried = f"{len(self.rates)} rates from {self.rates[0]:.1e} to {self.rates[-1]:.1e}"
        advice = "no suggestion" if self.suggestion is None else f"suggested learning rate {self.suggestion:.1e}"
        end = "no divergence" if self.diverged_at is None else f"diverged at {self.diverged_at:.1e}"
        return f"{advice} ({tried}, {end})" + ("" if self.note is None else f"; {self.note}")

    def plot(self, path: str | os.PathLike[str] | None = None, ax: Any = None) -> Any:
        """Draw the curve over the rates.

        Args:
          path: where the picture is written, if anywhere; the ending says how (.png, .pdf, .svg).
          ax: matplotlib axes to draw on; None makes a figure.
        Returns: the matplotlib figure.
        Raises: ImportError where matplotlib is missing.
        """
        ax = axes(ax, width=7, height=4.2)
        ax.plot(self.rates, self.losses, ".", markersize=4, color=COLOURS["grey"], alpha=0.6, label="loss of one batch")
        ax.plot(self.rates, self.smoothed, color=COLOURS["blue"], linewidth=2, label="smoothed")
        if self.suggestion is not None:
            label = f"suggestion {self.suggestion:.1e}"
            ax.axvline(self.suggestion, color=COLOURS["green"], linewidth=1.6, label=label)
        if self.diverged_at is not None:
            label = f"diverged at {self.diverged_at:.1e}"
            ax.axvline(self.diverged_at, color=COLOURS["vermilion"], linewidth=1.2, linestyle="--", label=label)
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        _frame(ax, self.losses, self.smoothed)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, loc="best")
        return save(ax, path)


def find_learning_rate(
    make_step: Callable[[Callable[[Any], Any]], TrainStep],
    state: State,
    batches: Batches,
    *,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.8,
    stop_at: float = 4.0,
) -> LearningRateCurve:
    """Range test: train a copy of `state` with a learning rate that grows from step to step, and watch the loss.

        curve = find_learning_rate(lambda rate: make_train_step(loss_fn, optax.adam(rate)), state, batches)
        curve.plot("learning_rate.png")
        train_step = make_train_step(loss_fn, optax.adam(curve.suggestion))

    The suggestion is the last rate before the minimum at which the smoothed loss still stood above the middle of its
    fall, from its level in the first half of the way to its minimum; and at most a fifth of the rate at the minimum.

    Args:
      make_step: gives the train step of a learning rate. The rate is an optax schedule, a function of the optimizer's
        step count, to be handed to the optimizer as it is.
      state: where the test starts. Its params, model state and key are copied, the optimizer starts fresh; your own
        is neither changed nor donated.
      batches: an iterable of batches, from the start again where it can be; or a function of the step that returns
        one. Batches of another shape compile again.
      lowest, highest: the first and the last rate, > 0; those between grow geometrically.
      steps: how many rates, at least 10.
      smoothing: in [0, 1), how much of the average before each new loss keeps.
      stop_at: > 1. The test stops where the smoothed loss exceeds `stop_at` times the best one and the largest loss
        up to it (or among the first tenth of the steps), where a loss is not finite, or where a step was skipped.
    Returns: a `LearningRateCurve`.
    Raises: TypeError and ValueError for what cannot be meant; RuntimeError for a state that was donated.
    Reference: Smith (2017), Cyclical learning rates for training neural networks, WACV.
    """
    _check(make_step, state, batches, lowest, highest, steps, smoothing, stop_at)
    rates, early = np.geomspace(lowest, highest, steps), steps // 10
    current, run = _prepared(make_step, state)
    losses: list[float] = []
    fine: list[bool] = []
    pending: list[tuple[Array, Array]] = []
    diverged: int | None = None
    supply = _supply(batches, int(state.step))
    for rate in rates:
        batch = next(supply, _END)
        if batch is not _END:
            current, *seen = run(current, batch, jnp.asarray(rate, float))
            pending.append(tuple(seen))
        if batch is _END or len(pending) == _CHUNK or rate == rates[-1]:
            fetched = jax.device_get(pending)
            losses += [float(loss) for loss, _ in fetched]
            fine += [bool(ok) for _, ok in fetched]
            pending = []
            diverged = _divergence(losses, fine, smoothing, stop_at, early)
        if batch is _END or diverged is not None:
            break
    if not losses:
        raise ValueError("`batches` gave no batch")
    count = len(losses) if diverged is None else diverged + 1
    tried, seen_losses = rates[:count], np.asarray(losses[:count])
    smoothed = _smoothed(seen_losses, smoothing)
    suggestion, notes = _suggested(
        tried, seen_losses, smoothed, smoothing, early, diverged=diverged is not None, complete=count == steps
    )
    if diverged is None and count < steps:
        notes.append(
            f"`batches` ended after {count} of {steps} steps, at {tried[-1]:.1e}: give a list, which is repeated"
        )
    return LearningRateCurve(
        rates=tried,
        losses=seen_losses,
        smoothed=smoothed,
        suggestion=suggestion,
        diverged_at=None if diverged is None else float(rates[diverged]),
        note="; ".join(notes) or None,
    )


_END = object()


def _prepared(make_step: Callable[..., Any], state: State) -> tuple[State, Callable[..., Any]]:
    """A fresh copy of `state`, and the compiled step, to which the rate is an argument like any other."""
    asked: list[Any] = []

    def build(rate: Any) -> TrainStep:
        # The rate is taken from outside, not from the count: MultiSteps and skipped steps count otherwise.
        def schedule(count: Any) -> Any:
            asked.append(count)
            return rate

        step = make_step(schedule)
        if not isinstance(step, TrainStep):
            raise TypeError(
                "`make_step` must return the train step of a learning rate, as in "
                f"lambda rate: make_train_step(loss_fn, optax.adam(rate)); it returned {type(step).__name__}"
            )
        return step

    def run(state: State, batch: Any, rate: Array) -> tuple[State, Array, Array]:
        asked.clear()
        after, metrics = build(rate).pure(state, batch)
        if not asked:
            raise ValueError(
                "`make_step` does not use its learning rate: hand it to the optimizer, as in "
                "lambda rate: make_train_step(loss_fn, optax.adam(rate))"
            )
        # A dynamic loss scale that overflows is looking for its place; that is no divergence.
        overflowed = jnp.isfinite(metrics.loss) if after.loss_scale is not None else jnp.zeros((), bool)
        return after, metrics.loss, metrics.ok | overflowed

    copy = build(jnp.zeros((), float)).init(state.params, model_state=state.model_state, key=state.key)
    copy = dataclasses.replace(copy, step=jnp.array(state.step, copy=True))
    if copy.loss_scale is not None and state.loss_scale is not None:
        copy = dataclasses.replace(
            copy, loss_scale=jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state.loss_scale)
        )
    # Pinned, as in the step itself: on a mesh XLA may choose other layouts, and would compile for each.
    layout = jax.tree.map(lambda leaf: leaf.sharding, copy)
    return copy, jax.jit(run, donate_argnums=0, out_shardings=(layout, None, None))


def _supply(batches: Batches, step: int) -> Iterator[Any]:
    """Batch after batch, pass after pass; an iterator has only one pass."""
    while True:
        before = step
        for batch in one_pass(batches, step):
            step += 1
            yield batch
        if step == before or isinstance(batches, Iterator):
            return


def _smoothed(losses: Floats, smoothing: float) -> Floats:
    averages = np.empty(len(losses))
    average = 0.0
    for i, loss in enumerate(losses):
        average = smoothing * average + (1 - smoothing) * loss
        averages[i] = average / (1 - smoothing ** (i + 1))  # as if the average had not begun at 0
    return averages


def _divergence(losses: list[float], fine: list[bool], smoothing: float, stop_at: float, early: int) -> int | None:
    """The first step that shows divergence."""
    raw = np.asarray(losses)
    smoothed = _smoothed(raw, smoothing)
    for i in range(len(raw)):
        if not (np.isfinite(raw[i]) and fine[i]):
            return i
        best = int(smoothed[: i + 1].argmin())
        # Not by the factor alone: a loss near 0 or below has no such factor, and batches differ by more than it.
        largest = raw[: max(early, best + 1)].max()
        if i >= early and smoothed[i] > max(stop_at * smoothed[best], largest):
            return i
    return None


def _suggested(
    rates: Floats, losses: Floats, smoothed: Floats, smoothing: float, early: int, *, diverged: bool, complete: bool
) -> tuple[float | None, list[str]]:
    """The suggestion, or None, and what is wrong with the test."""
    usable = np.isfinite(smoothed)
    if not usable[0]:
        return None, ["the loss is not finite before any update: see `diagnose`"]
    # Not among the first: an average of few losses may be low by chance.
    settled = usable & (np.arange(len(smoothed)) >= min(early, int(usable.sum()) - 1))
    bottom = int(np.where(settled, smoothed, np.inf).argmin())
    start = float(np.median(smoothed[: max(1, bottom // 2)]))
    fall = start - smoothed[bottom]
    at_the_end = complete and not diverged and bottom >= len(rates) - 2
    noise = _noise(losses[: max(bottom, early) + 1], smoothing)
    if fall <= noise:
        if diverged:
            where = "before it diverged: try more steps, larger batches, or a smaller `lowest`"
        elif at_the_end:
            where = "up to the last rate: try a larger `highest`"
        else:
            where = "by more than one batch differs from the next: try more steps, or larger batches"
        return None, [f"the loss never fell {where}"]
    notes: list[str] = []
    # The last one above the middle, not the first one below it: noise may dip early.
    middle = int(np.flatnonzero(smoothed[: bottom + 1] > start - 0.5 * fall).max(initial=0))
    if losses[0] - smoothed[min(early, bottom)] > max(2 * noise, 0.2 * fall):
        notes.append("the loss falls from the first rates on: try a smaller `lowest`")
    if at_the_end:
        notes.append("the loss still falls at the last rate: try a larger `highest`")
    return float(min(rates[middle], rates[bottom] / _BELOW_MINIMUM)), notes


def _noise(losses: Floats, smoothing: float) -> float:
    """How deep an average of losses dips by chance: 4.5 of its standard deviations.

    That of the losses is told by the differences of neighbours, which no trend changes much; robustly, by a median.
    Measured over 100 steps without any trend: one test in 20 takes noise for a fall, one in 8 of very skewed noise; and
    none of the 112 tests above misses its fall.
    """
    pairs = np.abs(np.diff(losses[np.isfinite(losses)]))
    deviation = 1.4826 * float(np.median(pairs)) / math.sqrt(2) if len(pairs) else 0.0
    # Nor are the last digits a fall, where every batch is the same.
    return max(4.5 * deviation * math.sqrt((1 - smoothing) / (1 + smoothing)), 1e-4 * abs(float(losses[0])))


def _frame(ax: Any, losses: Floats, smoothed: Floats) -> None:
    """Limits that show the fall: where the loss diverges it may leave the picture."""
    finite = smoothed[np.isfinite(smoothed)]
    if not len(finite):
        return
    bottom = int(finite.argmin())
    before = losses[: bottom + 1][np.isfinite(losses[: bottom + 1])]
    low, high = float(min(before.min(initial=np.inf), finite.min())), float(max(before.max(initial=-np.inf), finite[0]))
    if low > 0 and high > 30 * low:
        ax.set(yscale="log", ylim=(low / 1.5, high * 2))
    elif high > low:
        ax.set_ylim(low - 0.08 * (high - low), high + 0.25 * (high - low))


def _check(
    make_step: Any,
    state: Any,
    batches: Any,
    lowest: float,
    highest: float,
    steps: Any,
    smoothing: float,
    stop_at: float,
) -> None:
    if isinstance(make_step, TrainStep) or not callable(make_step):
        raise TypeError(
            "`make_step` must be a function of a learning rate, as in "
            f"lambda rate: make_train_step(loss_fn, optax.adam(rate)); got {type(make_step).__name__}"
        )
    check_readable(state, "a range test reads losses")
    check_batches("batches", batches)
    if not 0 < lowest < highest < math.inf:
        raise ValueError(f"rates must grow: 0 < `lowest` < `highest`; got {lowest} and {highest}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 10:
        raise ValueError(f"`steps` must be a whole number, at least 10, or there is no curve; got {steps!r}")
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1); got {smoothing}")
    if not stop_at > 1:
        raise ValueError(f"`stop_at` must be larger than 1, a factor over the best loss; got {stop_at}")
