"""Training one pair of loss and optimizer over all seeds and learning rates at once, in one compiled program.

The program is one epoch: shuffle, a scan of training steps, the score on the validation rows. It is vmapped over seeds
and over learning rates, compiled once, and called once an epoch with the state donated, so that a progress bar can
move and nothing is unrolled. A seed decides the first params and the order of the rows; it means the same for every
pair and every learning rate, so differences between pairs can be taken seed by seed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from jaxloss.core.types import Array
from jaxloss.lab.contenders import Contender
from jaxloss.lab.data import BATCH_SIZE, DataSet, Task, epoch_order
from jaxloss.lab.models import MLP
from jaxloss.lab.optimizers import Optimizer
from jaxloss.train import State, make_train_step

__all__ = ["Bench", "Runs"]

Floats = NDArray[np.floating[Any]]
# What is told after every epoch: its number from 1, and the validation scores [seeds, learning rates].
Listener = Callable[[int, Floats], None]


@dataclasses.dataclass(frozen=True)
class Runs:
    """What the runs of one pair gave; arrays begin with [seeds, learning rates]."""

    loss: str
    optimizer: str
    learning_rates: tuple[float, ...]
    training_loss: Floats  # [..., epochs]
    validation_score: Floats  # [..., epochs]; accuracy, or RMSE in target units
    validation_predictions: Floats  # [..., rows] or [..., rows, classes]
    test_predictions: Floats
    compile_seconds: float
    training_seconds: float

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which runs met a loss or a prediction that is not finite."""
        runs = self.training_loss.shape[:2]
        seen = (self.training_loss, self.validation_predictions, self.test_predictions)
        finite = np.isfinite(np.concatenate([each.reshape(*runs, -1) for each in seen], axis=-1))
        return np.logical_not(np.all(finite, axis=-1, keepdims=True))[..., 0]

    @property
    def seconds(self) -> float:
        """Compiling and training."""
        return self.compile_seconds + self.training_seconds


class Bench:
    """One data set with its first params, on which pair after pair is trained."""

    def __init__(
        self, data: DataSet, *, seeds: int, epochs: int, batch_size: int = BATCH_SIZE, hidden: int = 64
    ) -> None:
        self.data, self.seeds, self.epochs, self.batch_size = data, seeds, epochs, batch_size
        self.model = MLP(outputs=data.outputs, hidden=hidden)
        self._keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
        self._train = (jnp.asarray(data.train.x), jnp.asarray(data.train.y))
        self._validation = (jnp.asarray(data.validation.x), jnp.asarray(data.validation.y))
        self._held_out = jnp.concatenate([data.validation.x, data.test.x])
        example = self._train[0][:1]
        self._params = jax.jit(jax.vmap(lambda key: self.model.init(key, example)))(self._keys)
        self._predictors: dict[str, Any] = {}
        self._initialisers: dict[tuple[str, int], Callable[[Any], State]] = {}

    def train(
        self,
        contender: Contender,
        optimizer: Optimizer,
        learning_rates: Sequence[float],
        on_epoch: Listener = lambda epoch, scores: None,
    ) -> Runs:
        """Train the pair at every seed and learning rate."""
        started = time.perf_counter()
        rates = jnp.asarray(learning_rates, jnp.float32)
        state = self._initialiser(contender, optimizer, len(rates))(self._params)
        epoch_program = self._epoch_program(contender, optimizer)
        by_rate = jax.vmap(epoch_program, in_axes=(0, 0, None, None, None, None))
        by_seed = jax.vmap(by_rate, in_axes=(0, None, 0, None, None, None))
        data = (self._train, self._validation)
        number = jnp.zeros((), jnp.int32)
        step = jax.jit(by_seed, donate_argnums=0).lower(state, rates, self._keys, number, *data).compile()
        predict = self._predictor(contender, state.params)
        compiled = time.perf_counter()

        losses: list[Floats] = []
        scores: list[Floats] = []
        for epoch in range(self.epochs):
            state, loss, score = step(state, rates, self._keys, jnp.asarray(epoch, jnp.int32), *data)
            losses.append(np.asarray(loss))
            scores.append(np.asarray(score) * self.data.target_scale)
            on_epoch(epoch + 1, scores[-1])
        predictions = np.asarray(predict(state.params, self._held_out))
        validation, test = np.split(predictions, [len(self.data.validation)], axis=2)
        return Runs(
            loss=contender.name,
            optimizer=optimizer.name,
            learning_rates=tuple(learning_rates),
            training_loss=np.stack(losses, axis=-1),
            validation_score=np.stack(scores, axis=-1),
            validation_predictions=validation,
            test_predictions=test,
            compile_seconds=compiled - started,
            training_seconds=time.perf_counter() - compiled,
        )

    def _loss_fn(self, contender: Contender) -> Callable[[Any, dict[str, Array]], Any]:
        return lambda params, batch: contender.loss(self._scores(params, batch["x"]), batch["y"])

    def _scores(self, params: Any, x: Array) -> Any:
        return self.model.apply(params, x)

    def _initialiser(self, contender: Contender, optimizer: Optimizer, rates: int) -> Callable[[Any], State]:
        """A program that makes a state for every seed and learning rate; a seed's is the same at all of them."""
        # The state before the first step depends neither on the loss nor on the rate: any will do.
        if (optimizer.name, rates) not in self._initialisers:
            init = make_train_step(self._loss_fn(contender), optimizer.make(1.0)).init

            def repeated(params: Any) -> State:
                return jax.vmap(lambda _: init(params))(jnp.arange(rates))

            self._initialisers[optimizer.name, rates] = jax.jit(jax.vmap(repeated))
        return self._initialisers[optimizer.name, rates]

    def _epoch_program(self, contender: Contender, optimizer: Optimizer) -> Callable[..., tuple[State, Array, Array]]:
        """One epoch of one run: the next state, the mean training loss, the score on the validation rows."""

        def epoch(
            state: State, rate: Array, key: Array, number: Array, train: Any, validation: Any
        ) -> tuple[State, Array, Array]:
            # "propagate": a run that meets a nan shall end as one, to be counted, and not rest on its last good step.
            step = make_train_step(self._loss_fn(contender), optimizer.make(rate), nonfinite="propagate")
            x, y = train

            def one(state: State, rows: Array) -> tuple[State, Array]:
                state, metrics = step.pure(state, {"x": x[rows], "y": y[rows]})
                return state, metrics.loss

            order = epoch_order(key, number, len(self.data.train), self.batch_size)
            state, losses = lax.scan(one, state, order)
            predictions = contender.predictions(self._scores(state.params, validation[0]))
            return state, jnp.mean(losses), _score(self.data.task, predictions, validation[1])

        return epoch

    def _predictor(self, contender: Contender, params: Any) -> Any:
        if contender.name not in self._predictors:

            def predict(params: Any, x: Array) -> Array:
                return contender.predictions(self._scores(params, x))

            by_run = jax.vmap(jax.vmap(predict, in_axes=(0, None)), in_axes=(0, None))
            self._predictors[contender.name] = jax.jit(by_run).lower(params, self._held_out).compile()
        return self._predictors[contender.name]


def _score(task: Task, predictions: Array, y: Array) -> Array:
    """Accuracy, or RMSE in units of the standardised target: what the progress bar and the curves show."""
    if task == "classification":
        return jnp.mean(jnp.argmax(predictions, axis=-1) == y)
    return jnp.sqrt(jnp.mean(jnp.square(predictions - y)))
