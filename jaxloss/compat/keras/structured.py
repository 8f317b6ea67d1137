"""Losses of many entries at once: regions, batches of embeddings, sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.compat.keras.loss import BoundLoss, Reduction, floating, matched
from jaxloss.core.formulas import log_sum_exp, softplus
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, ArrayLike
from jaxloss.losses.alignment import ctc as native_ctc

__all__ = ["CTC", "Circle", "Dice", "Tversky", "circle", "ctc", "dice", "tversky"]

Axes = int | tuple[int, ...] | None


def dice(y_true: ArrayLike, y_pred: ArrayLike, axis: Axes = None) -> Array:
    """1 - 2 sum(t p) / (sum(t) + sum(p)) over `axis`; of probabilities what `jaxloss.dice` is of logits."""
    return tversky(y_true, y_pred, axis=axis)


def tversky(
    y_true: ArrayLike, y_pred: ArrayLike, alpha: ArrayLike = 0.5, beta: ArrayLike = 0.5, axis: Axes = None
) -> Array:
    """(alpha FP + beta FN) / (TP + alpha FP + beta FN) over `axis`; what `jaxloss.tversky` is of logits."""
    t, p = matched(y_true, y_pred)
    axis = tuple(axis) if isinstance(axis, list) else axis
    false_positives, false_negatives = jnp.sum(p * (1 - t), axis=axis), jnp.sum(t * (1 - p), axis=axis)
    # Not one minus the index, which has no digit left of a small loss.
    wrong = alpha * false_positives + beta * false_negatives
    total = jnp.sum(t * p, axis=axis) + wrong
    nothing = total == 0
    return jnp.where(nothing, 1, wrong / jnp.where(nothing, 1, total))


def circle(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    ref_labels: ArrayLike | None = None,
    ref_embeddings: ArrayLike | None = None,
    remove_diagonal: bool = True,
    gamma: ArrayLike = 80,
    margin: ArrayLike = 0.4,
) -> Array:
    """Each row's positives against its negatives. `jaxloss.circle` also normalises rows, and detaches weights."""
    return _circle(y_true, y_pred, ref_labels, ref_embeddings, remove_diagonal, gamma, margin)[0]


def _circle(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    ref_labels: ArrayLike | None = None,
    ref_embeddings: ArrayLike | None = None,
    remove_diagonal: bool = True,
    gamma: ArrayLike = 80,
    margin: ArrayLike = 0.4,
) -> tuple[Array, Array]:
    """The values, and which rows count: those whose loss is not 0, so none without a positive or a negative."""
    rows = widen(floating(y_pred))
    columns = rows if ref_embeddings is None else widen(floating(ref_embeddings))
    mine = _labels(y_true).reshape(-1)
    theirs = mine if ref_labels is None else _labels(ref_labels).reshape(-1)
    # relu, whose slope at 0 is 0: what rounding leaves of a row's distance from itself is noise.
    distance = jax.nn.relu(1 - jnp.matmul(rows, columns.T, precision=lax.Precision.HIGHEST))
    near = mine[:, None] == theirs[None, :]
    far = ~near
    if remove_diagonal:
        near = near & ~jnp.eye(*near.shape, dtype=bool)
    both = jnp.any(near, axis=1) & jnp.any(far, axis=1)
    gamma, margin = jnp.asarray(gamma, rows.dtype), jnp.asarray(margin, rows.dtype)
    pull = gamma * jax.nn.relu(margin + distance) * (distance - margin)
    push = gamma * jax.nn.relu(1 + margin - distance) * (1 - margin - distance)

    def log_sum(x: Array, kept: Array) -> Array:
        # A row that lacks one kind of pair is 0 throughout: log_sum_exp of nothing is nan.
        return log_sum_exp(jnp.where(both[:, None], jnp.where(kept, x, -jnp.inf), 0), 1)

    value = jnp.where(both, softplus(log_sum(pull, near) + log_sum(push, far)), 0)
    return value, value > 0


def ctc(y_true: ArrayLike, y_pred: ArrayLike) -> Array:
    """`jaxloss.ctc` of each sequence, blank 0; labels [N, S] are padded with 0, and all frames of [N, T, V] exist."""
    labels, logits = _labels(y_true), floating(y_pred)
    if labels.ndim != 2:
        raise ValueError(f"`y_true` must be labels [N, S], got {list(labels.shape)}")
    if logits.ndim != 3:
        raise ValueError(f"`y_pred` must be logits [N, T, V], got {list(logits.shape)}")
    lengths = jnp.sum(labels != 0, axis=-1, dtype=jnp.int32)
    return native_ctc(logits, labels, label_lengths=lengths, blank=0, reduction="none")


def _labels(y: ArrayLike) -> Array:
    return jnp.asarray(y).astype(jnp.int32)


class Dice(BoundLoss):
    """Overlap of a region with its truth: `jaxloss.dice`, from logits and per image."""

    def __init__(
        self,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "dice",
        axis: Axes = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(dice, name=name, reduction=reduction, dtype=dtype, axis=axis)


class Tversky(BoundLoss):
    """Dice with prices: `alpha` for false positives, `beta` for false negatives. `jaxloss.tversky`, from logits."""

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "tversky",
        axis: Axes = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(tversky, name=name, reduction=reduction, dtype=dtype, alpha=alpha, beta=beta, axis=axis)


class Circle(BoundLoss):
    """Each row's positives against its negatives: `jaxloss.circle`. The mean is over the rows whose loss is not 0."""

    def __init__(
        self,
        gamma: float = 80.0,
        margin: float = 0.4,
        remove_diagonal: bool = True,
        reduction: Reduction = "sum_over_batch_size",
        name: str = "circle",
        dtype: Any = None,
    ) -> None:
        options = {"gamma": gamma, "margin": margin, "remove_diagonal": remove_diagonal}
        super().__init__(_circle, name=name, reduction=reduction, dtype=dtype, **options)


class CTC(BoundLoss):
    """Labels without alignment: `jaxloss.ctc`, blank 0."""

    def __init__(self, reduction: Reduction = "sum_over_batch_size", name: str = "ctc", dtype: Any = None) -> None:
        super().__init__(ctc, name=name, reduction=reduction, dtype=dtype)
