"""Data sets that ship inside scikit-learn: real, small, and there without a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import jax
import numpy as np
import sklearn.datasets
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from jaxloss.core.types import Array
from jaxloss.lab.naming import look_up

__all__ = ["BATCH_SIZE", "DATASETS", "DataSet", "Split", "Task", "epoch_order", "load"]

Task = Literal["classification", "regression"]
Floats = NDArray[np.floating[Any]]

BATCH_SIZE = 32
# Fixed, so that everybody's held-out rows are the same rows.
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of a data set: `x` [rows, features] and `y` [rows]."""

    x: Floats
    y: NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set, split 60 / 20 / 20 and standardised by what its training rows say.

    In classification `y` holds integers that index `classes`. In regression `classes` is empty and `y` is
    standardised like `x`: y = (target - target_mean) / target_scale.
    """

    name: str
    task: Task
    inputs: tuple[str, ...]  # what the columns of x are
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    target_mean: float = 0.0
    target_scale: float = 1.0

    @property
    def outputs(self) -> int:
        """How many scores a model gives a row."""
        return len(self.classes) if self.task == "classification" else 1

    def batches(self, *, epochs: int, seed: int = 0, batch_size: int = BATCH_SIZE) -> Iterator[dict[str, Any]]:
        """The training rows in batches {"x", "y"}, in the very order that `jaxloss compare` uses for this seed."""
        for epoch in range(epochs):
            order = epoch_order(jax.random.key(seed), epoch, len(self.train), batch_size)
            for rows in np.asarray(order):
                yield {"x": self.train.x[rows], "y": self.train.y[rows]}


def epoch_order(key: Array, epoch: Array | int, rows: int, batch_size: int) -> Array:
    """Row numbers [batches, batch_size] of one epoch: a fresh permutation of all rows, cut into batches.

    What does not fill a batch is left out: other rows in every epoch. Fewer rows than a batch make one batch.
    """
    size = min(batch_size, rows)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
    return order[: rows // size * size].reshape(-1, size)


def load(name: str) -> DataSet:
    """The data set of this name; a `RequestError` lists the known ones."""
    task, loader = look_up("data set", name, DATASETS)
    raw = loader()
    classes = tuple(str(each) for each in raw.target_names) if task == "classification" else ()
    return split(name, task, tuple(str(each) for each in raw.feature_names), classes, raw.data, raw.target)


# `as_frame=False` is their default; the unscaled diabetes features are standardised here like everybody's.
DATASETS: dict[str, tuple[Task, Callable[[], Any]]] = {
    "digits": ("classification", sklearn.datasets.load_digits),
    "wine": ("classification", sklearn.datasets.load_wine),
    "breast_cancer": ("classification", sklearn.datasets.load_breast_cancer),
    "diabetes": ("regression", lambda: sklearn.datasets.load_diabetes(scaled=False)),
}


def split(
    name: str, task: Task, inputs: tuple[str, ...], classes: tuple[str, ...], x: NDArray[Any], y: NDArray[Any]
) -> DataSet:
    """A `DataSet` from plain arrays: split (by class where there are classes), then standardised."""

    def halve(x: NDArray[Any], y: NDArray[Any], share: float) -> tuple[Split, Split]:
        by = y if task == "classification" else None
        parts = cast(
            "list[NDArray[Any]]",
            train_test_split(x, y, test_size=share, stratify=by, random_state=SPLIT_SEED),
        )
        return Split(parts[0], parts[2]), Split(parts[1], parts[3])

    train, rest = halve(np.asarray(x, np.float64), y, 0.4)
    validation, test = halve(rest.x, rest.y, 0.5)

    mean, scale = _moments(train.x)
    target_mean, target_scale = (0.0, 1.0) if task == "classification" else map(float, _moments(train.y))

    def standardised(part: Split) -> Split:
        inputs = ((part.x - mean) / scale).astype(np.float32)
        if task == "classification":
            return Split(inputs, part.y.astype(np.int32))
        return Split(inputs, ((part.y - target_mean) / target_scale).astype(np.float32))

    return DataSet(
        name,
        task,
        inputs,
        classes,
        train=standardised(train),
        validation=standardised(validation),
        test=standardised(test),
        target_mean=target_mean,
        target_scale=target_scale,
    )


def _moments(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    scale = values.std(axis=0)
    # A column that never changes (the corner pixels of the digits) says nothing, and divides nothing.
    return values.mean(axis=0), np.where(scale > 0, scale, 1)
