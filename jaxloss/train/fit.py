"""`fit`: the loop around a train step; `evaluate`: the means over many batches."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.train.interrupts import Hold, hold_interrupts
from jaxloss.train.passes import Batches, Padding, check_batches, is_function, one_pass
from jaxloss.train.progress import Display, display
from jaxloss.train.tally import AHEAD, Interval, Log, Seen, Tally, joined, numbers

__all__ = ["Fitted", "Step", "evaluate", "fit"]

Monitor = str | Callable[[Mapping[str, float]], float]
Callback = Callable[[Log, Any], object]
Reason = Literal["steps", "exhausted", "patience", "callback", "interrupted"]

# How many batches `evaluate` merges in float32 on the device, before float64 on the host takes over.
_MERGED = 32


class Step(Protocol):
    """What `fit` needs of a train step; `TrainStep` is one."""

    def __call__(self, state: Any, batch: Any, /) -> tuple[Any, Any]:
        """The next state, which has a `.step`, and `Metrics`."""
        ...

    def evaluate(self, state: Any, batch: Any, /) -> Mapping[str, Any]:
        """Mergeable values of one batch, by name."""
        ...


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a fit leaves.

    `state` is the last one; `best` that of the lowest validation, or None without `patience`, or where every
    validation was nan; `history` every `Log` in order. `reason` says why it ended: the "steps" were done, the batches
    "exhausted", `patience` or a `callback` stopped it, or it was "interrupted" by Ctrl-C.
    """

    state: Any
    best: Any
    history: tuple[Log, ...]
    reason: Reason


def fit(
    train_step: Step,
    state: Any,
    batches: Batches,
    *,
    steps: int | None = None,
    validation: Batches | None = None,
    validate_every: int | None = None,
    monitor: Monitor = "loss",
    patience: int | None = None,
    min_improvement: float = 0.0,
    checkpoints: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    callbacks: Sequence[Callback] = (),
    log_every: int = 50,
    mask: str | None = None,
    progress: bool | None = None,
) -> Fitted:
    """Call `train_step` on batch after batch; the params are, bit for bit, those of the plain loop.

        fitted = fit(train_step, train_step.init(params), batches, steps=2000, validation=held_out, patience=5)

    No step waits for the one before: metrics are merged on the device, and read some steps later, when they are there.
    Every "every" is counted by `state.step`, so that a resumed run does everything at the same steps.

    Args:
      train_step: a `TrainStep`, or what acts like one.
      state: where to begin; donated, so go on with the one that is returned.
      batches: what gives batches each time it is iterated over, one pass after the other; a generator gives one pass.
        Or a function that is given the number of steps done and returns the pass that begins there: for another order
        in every pass, and so that a resumed run goes on in the middle of one.
      steps: train until `state.step` is this; None: one pass over `batches`.
      validation: batches to evaluate, the same each time.
      validate_every: in steps; None: after every pass over `batches`. The end is validated in any case. One batch is
        evaluated before the first step, so that what is wrong with it is known then.
      monitor: the value of the validation that is to fall: its name, or a function of all values by name, such as
        lambda values: -values["accuracy"]. Terms come without their coefficients.
      patience: stop after so many validations in a row without improvement, and keep the best state: one more state in
        the device's memory. A number that is never reached keeps the best without stopping. nan is no improvement.
      min_improvement: how far `monitor` must fall below the last improvement to be one.
      checkpoints: a directory, for `jaxloss.train.save` every `save_every` steps and at the end, be it an error. If it
        holds a later step than `state`, that one is restored and trained further: an interrupted program is started
        again as it is. The best state is not saved, and patience begins anew.
      save_every: in steps.
      callbacks: functions (log, state), called with every `Log` in order; the training stops where one returns True.
        `state` is the newest, up to 4 steps later than `log.step` (at a validation: the same). The next step takes its
        memory: copy what is to be kept.
      log_every: in steps.
      mask: pad every batch to the largest so far, with the rows' mask under this name (`pad_batch`), so that a short
        batch compiles nothing; `loss_fn` must hand it on as `where=`. None leaves batches as they are.
      progress: None: a bar in a terminal or notebook, a line now and then elsewhere; True: a bar; False: silence.
    Returns: a `Fitted`. Ctrl-C ends the training after the step at hand, and returns what there is.
    Raises: TypeError and ValueError for what cannot be meant; what the step, the batches and the callbacks raise.
    Warns: UserWarning at the end, if steps were not finite (but not with a dynamic loss scale, which is found by them).
    """
    check_batches("batches", batches)
    _check_validation(validation, validate_every, patience, monitor, min_improvement)
    _check_counts(
        steps=steps, validate_every=validate_every, patience=patience, save_every=save_every, log_every=log_every
    )
    _check_callbacks(callbacks)
    _check_others(mask, checkpoints, progress)
    resumed = None if checkpoints is None else _newest(checkpoints, state)
    state = state if resumed is None else resumed
    start = int(state.step)
    with display(progress, start=start, total=_last_step(batches, start, steps)) as shown, hold_interrupts() as hold:
        if resumed is not None:
            shown.said(f"resumed from step {start} in {checkpoints}")
        fitted = _Run(
            train_step,
            state,
            batches,
            steps=steps,
            validation=validation,
            validate_every=validate_every,
            early_stop=None if patience is None else _EarlyStop(monitor, patience, min_improvement),
            checkpoints=checkpoints,
            save_every=save_every,
            callbacks=callbacks,
            log_every=log_every,
            mask=mask,
            shown=shown,
            hold=hold,
        ).to_the_end()
    _warn_of_the_not_finite(fitted, start)
    return fitted


def evaluate(train_step: Step, state: Any, batches: Batches, *, mask: str | None = None) -> dict[str, Any]:
    """The terms and metrics of `train_step.evaluate` over all batches together: never a mean of means.

    Args:
      train_step, state: as in `fit`; the state is not changed.
      batches: as in `fit`; one pass.
      mask: as in `fit`.
    Returns: by name, a `Mean` whose halves are NumPy float64, or what else has a `merge`, on the host.
    Raises: ValueError where there is no batch.
    """
    check_batches("batches", batches)
    _check_others(mask, None, None)
    pad, tally = Padding(mask), Tally()
    total: dict[str, Any] | None = None

    def add(intervals: Iterator[Interval]) -> None:
        nonlocal total
        for interval in intervals:
            total = interval.merged if total is None else joined(total, interval.merged)

    # The step is on the device: it is read only for a function that asks for it.
    for batch in one_pass(batches, int(state.step) if is_function(batches) else 0):
        tally.add(dict(train_step.evaluate(state, pad(batch))))
        if tally.added % _MERGED == 0:
            tally.close()
        add(tally.past())
    tally.close()
    add(tally.rest())
    if total is None:
        raise ValueError("there is no batch to evaluate; a generator gives its batches once")
    return total


class _EarlyStop:
    """Which validation was the best, and how many have not improved since the last improvement."""

    def __init__(self, monitor: Monitor, patience: int, min_improvement: float) -> None:
        self._monitor, self._patience, self._min_improvement = monitor, patience, min_improvement
        self._lowest = self._improved_to = math.inf
        self._without = 0

    def monitored(self, values: Mapping[str, float]) -> float:
        """The number that is to fall."""
        if callable(self._monitor):
            return float(self._monitor(values))
        if self._monitor not in values:
            raise ValueError(
                f"`monitor` = {self._monitor!r} is not among the values of the validation, "
                f"{', '.join(repr(name) for name in values)}: name one of them, or give a function of them"
            )
        return values[self._monitor]

    def is_best(self, values: Mapping[str, float]) -> bool:
        """Take note of a validation; whether it is the lowest so far."""
        value = self.monitored(values)
        # Both comparisons are False for nan.
        improves, lowest = value < self._improved_to - self._min_improvement, value < self._lowest
        self._without = 0 if improves else self._without + 1
        self._improved_to = value if improves else self._improved_to
        self._lowest = value if lowest else self._lowest
        return lowest

    def is_due(self) -> bool:
        """Whether patience has run out."""
        return self._without >= self._patience


class _Run:
    """One call of `fit`, under way."""

    def __init__(
        self,
        train_step: Step,
        state: Any,
        batches: Batches,
        *,
        steps: int | None,
        validation: Batches | None,
        validate_every: int | None,
        early_stop: _EarlyStop | None,
        checkpoints: str | os.PathLike[str] | None,
        save_every: int,
        callbacks: Sequence[Callback],
        log_every: int,
        mask: str | None,
        shown: Display,
        hold: Hold,
    ) -> None:
        self._train_step, self._state, self._batches = train_step, state, batches
        self._steps, self._log_every = steps, log_every
        self._validation, self._validate_every, self._early_stop = validation, validate_every, early_stop
        self._checkpoints, self._save_every = checkpoints, save_every
        self._callbacks, self._mask, self._pad = tuple(callbacks), mask, Padding(mask)
        self._shown, self._hold = shown, hold
        # On the host, so that nobody has to ask the device.
        self._step = self._start = self._saved = self._validated = int(state.step)
        self._tally = Tally()
        self._metrics: Any = None
        self._best: Any = None
        self._history: list[Log] = []
        self._reason: Reason | None = None
        self._began = time.perf_counter()

    def to_the_end(self) -> Fitted:
        try:
            self._train()
            if self._validation is not None and self._validated != self._step:
                self._validate()
            self._tell_the_rest(None)
            # With nonfinite="raise" a step's fault is raised by the next call, and there is none.
            getattr(self._train_step, "raise_pending", lambda: None)()
        except KeyboardInterrupt:
            if _is_deleted(self._state):
                raise  # a second Ctrl-C, in the middle of a step
            self._reason = "interrupted"
            self._tally.close(self._metrics)
            self._history += [self._log(interval, None) for interval in self._tally.rest()]
        except Exception as error:
            if self._save():
                error.add_note(f"the state of step {self._step} was saved in {self._checkpoints}")
            raise
        self._save()
        assert self._reason is not None
        return Fitted(self._state, self._best, tuple(self._history), self._reason)

    def _train(self) -> None:
        if self._steps is not None and self._step >= self._steps:
            self._reason = "steps"
            return
        if self._validation is not None:
            first = itertools.islice(one_pass(self._validation, self._step), 1)
            found = self._evaluated(first)
            if self._early_stop is not None:
                self._early_stop.monitored(found)
        while self._reason is None:
            before = self._step
            for batch in one_pass(self._batches, self._step):
                self._advance(batch)
                if self._reason is not None:
                    return
            if self._step == self._start and not is_function(self._batches):
                raise ValueError("`batches` gave no batch; a generator gives its batches once")
            if self._steps is None or self._step == before or isinstance(self._batches, Iterator):
                self._reason = "exhausted"
            elif self._validation is not None and self._validate_every is None:
                self._validate()

    def _advance(self, batch: Any) -> None:
        batch = self._pad(batch)
        with self._hold:
            self._state, self._metrics = self._train_step(self._state, batch)
            self._step += 1
            self._tally.add(Seen.by(self._metrics))
        if self._tally.added > AHEAD:
            self._shown.moved(self._step - AHEAD)
        if self._step % self._log_every == 0:
            self._tally.close(self._metrics)
        for interval in self._tally.past():
            self._tell(interval, None)
        if self._validate_every is not None and self._step % self._validate_every == 0:
            self._validate()
        if self._step % self._save_every == 0:
            self._save()
        if self._step == self._steps:
            self._end("steps")

    def _end(self, reason: Reason) -> None:
        self._reason = self._reason or reason  # the first one counts

    def _evaluated(self, batches: Iterator[Any]) -> dict[str, float]:
        return numbers(evaluate(self._train_step, self._state, batches, mask=self._mask))

    def _validate(self) -> None:
        found = self._evaluated(one_pass(self._validation, self._step))
        self._validated = self._step
        if self._early_stop is not None:
            if self._early_stop.is_best(found):
                self._keep()
            if self._early_stop.is_due():
                self._end("patience")
        self._tell_the_rest(found)

    def _keep(self) -> None:
        with self._hold:
            self._best = None  # first, so that there are never two
            # A copy, because the next step takes the original's memory.
            self._best = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self._state)

    def _tell_the_rest(self, validation: dict[str, float] | None) -> None:
        """Every log up to this step; the validation goes with the last."""
        self._tally.close(self._metrics)
        for interval in self._tally.rest():
            self._tell(interval, validation if interval.last == self._tally.added else None)

    def _tell(self, interval: Interval, validation: dict[str, float] | None) -> None:
        log = self._log(interval, validation)
        self._history.append(log)
        self._shown.logged(log)
        for callback in self._callbacks:
            answer = callback(log, self._state)
            # True itself: what a tracker returns may be an object that only counts as true.
            if isinstance(answer, bool | np.bool_) and answer:
                self._end("callback")

    def _log(self, interval: Interval, validation: dict[str, float] | None) -> Log:
        seen: Seen = interval.merged
        return Log(
            step=self._start + interval.last,
            training=numbers(seen.values),
            validation=validation,
            last=interval.beside,
            not_finite=interval.size - int(seen.finite),
            seconds=time.perf_counter() - self._began,
        )

    def _save(self) -> bool:
        """Save what is new; whether there was anything."""
        if self._checkpoints is None or self._saved == self._step or _is_deleted(self._state):
            return False
        from jaxloss.train import checkpoints

        self._saved = self._step  # even if it fails: an error's own save must not fail in its place
        with self._hold:
            checkpoints.save(self._checkpoints, self._state)
        return True


def _newest(directory: str | os.PathLike[str], state: Any) -> Any:
    """The state of the newest checkpoint; None unless it is further than `state`."""
    from jaxloss.train import checkpoints

    # Not at the first save: hours late to learn that orbax is missing, and its imports make jax compile anew.
    checkpoints.load_orbax()
    saved = checkpoints.saved_steps(directory)
    return checkpoints.restore(directory, state) if saved and saved[-1] > int(state.step) else None


def _last_step(batches: Any, start: int, steps: int | None) -> int | None:
    return start + len(batches) if steps is None and isinstance(batches, Sized) else steps


def _is_deleted(state: Any) -> bool:
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _warn_of_the_not_finite(fitted: Fitted, start: int) -> None:
    count = sum(log.not_finite for log in fitted.history)
    if count and getattr(fitted.state, "loss_scale", None) is None:
        warnings.warn(
            f"{count} of {fitted.history[-1].step - start} steps were not finite: a gradient had nan or inf, or a term "
            'was nan. Such a step changes nothing, unless nonfinite="propagate"; make_train_step(..., '
            'nonfinite="raise") names the cause',
            UserWarning,
            stacklevel=3,
        )


def _check_validation(
    validation: Any, validate_every: int | None, patience: int | None, monitor: Any, min_improvement: Any
) -> None:
    for name, value in (("validate_every", validate_every), ("patience", patience)):
        if validation is None and value is not None:
            raise ValueError(f"`{name}` = {value!r} needs `validation`, the batches to evaluate")
    if validation is not None:
        check_batches("validation", validation)
    if isinstance(validation, Iterator):
        raise TypeError(
            f"`validation` is passed over many times, and a {type(validation).__name__} gives its batches once: "
            "give a list, or a function of the step that returns a new one"
        )
    if patience is None and (monitor != "loss" or min_improvement):
        raise ValueError("`monitor` and `min_improvement` say when `patience` ends, and there is no `patience`")
    if not (isinstance(monitor, str) or callable(monitor)):
        raise TypeError(f"`monitor` must be a name or a function of all values; got {type(monitor).__name__}")
    if not 0 <= min_improvement < math.inf:
        raise ValueError(f"`min_improvement` must be a finite number, at least 0; got {min_improvement!r}")


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"`{name}` must be a whole number, at least 1; got {count!r}")


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, Sequence) or not all(callable(one) for one in cast(Sequence[Any], callbacks)):
        raise TypeError(f"`callbacks` must be a list of functions (log, state); got {callbacks!r}")


def _check_others(mask: Any, checkpoints: Any, progress: Any) -> None:
    if mask is not None and not isinstance(mask, str):
        raise TypeError(f"`mask` must be the name that the rows' mask has in the batch; got {type(mask).__name__}")
    if checkpoints is not None and not isinstance(checkpoints, str | os.PathLike):
        raise TypeError(f"`checkpoints` must be a directory; got {type(checkpoints).__name__}")
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"`progress` must be None, True or False; got {progress!r}")
