"""Labels without an alignment, as optax says which frames and labels exist: by paddings of 0 and 1."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxloss.algorithms.ctc import ctc_nll
from jaxloss.algorithms.ctc_forward import ctc_forward
from jaxloss.compat.optax.arrays import floating
from jaxloss.core.inputs import as_array
from jaxloss.core.types import Array, ArrayLike

__all__ = ["ctc_loss", "ctc_loss_with_forward_probs"]


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> Array:
    """Labels over all their alignments: `jl.ctc(logits, labels, logit_lengths=..., label_lengths=..., blank=blank_id,
    reduction="none")`.

    The lengths are those of the zeros of the paddings; padded frames need not be the last ones here. Labels that no
    alignment gives are worth inf, with a gradient of 0; `log_epsilon`, which optax approximates that by, changes only
    the tables of `ctc_loss_with_forward_probs`.
    """
    given = _admitted(logits, logit_paddings, labels, label_paddings, blank_id)
    return _loss(*given, blank=blank_id)


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[Array, Array, Array]:
    """`ctc_loss` [B], which is `jl.ctc`, and the log-probabilities of the ways to have said n labels after each frame.

    The second output, [T, B, N + 1], is of those whose frame says the blank after n labels; in the last frame also of
    those that say the n-th label itself. The third, [T, B, N], is of those whose frame says label n + 1. A padded frame
    repeats the one before. What no way leads to is `log_epsilon`. All three are differentiable.
    """
    given = _admitted(logits, logit_paddings, labels, label_paddings, blank_id)
    return _loss(*given, blank=blank_id), *_tables(*given, jnp.asarray(log_epsilon), blank=blank_id)


def _admitted(
    logits: ArrayLike, logit_paddings: ArrayLike, labels: ArrayLike, label_paddings: ArrayLike, blank_id: int
) -> tuple[Array, Array, Array, Array]:
    """The logits [B, T, K], which frames exist [B, T], the labels [B, N], and which of them exist [B, N]."""
    z, index = floating("logits", logits), as_array("labels", labels)
    if z.ndim != 3 or index.ndim != 2 or z.shape[0] != index.shape[0]:
        raise ValueError(
            f"`logits` {list(z.shape)} must be [B, T, K] and `labels` {list(index.shape)} [B, N], with one batch B"
        )
    frames, exists = as_array("logit_paddings", logit_paddings) == 0, as_array("label_paddings", label_paddings) == 0
    for name, paddings, shape in (("logit", frames, z.shape[:2]), ("label", exists, index.shape)):
        if paddings.shape != shape:
            raise ValueError(f"`{name}_paddings` {list(paddings.shape)} must be {list(shape)}, as what they are of")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integer class indices, got {index.dtype}")
    classes = z.shape[-1]
    if not 0 <= blank_id < classes:
        raise ValueError(f"`blank_id` {blank_id} must be a class of `logits` {list(z.shape)}, in [0, {classes})")
    return z, frames, index, exists


@functools.partial(jax.jit, static_argnames="blank", inline=True)
def _loss(logits: Array, frames: Array, labels: Array, exists: Array, *, blank: int) -> Array:
    count = jnp.sum(exists, axis=-1, dtype=labels.dtype)
    z, index, factor = _harmless(logits, frames, labels, exists, blank)
    value = ctc_nll(z, index, frames, count, blank)
    return value * factor.astype(value.dtype)


@functools.partial(jax.jit, static_argnames="blank", inline=True)
def _tables(
    logits: Array, frames: Array, labels: Array, exists: Array, log_epsilon: Array, *, blank: int
) -> tuple[Array, Array]:
    z, index, factor = _harmless(logits, frames, labels, exists, blank)
    blanks, said = (
        jnp.where(table == -jnp.inf, log_epsilon.astype(table.dtype), table) * factor[None, :, None].astype(table.dtype)
        for table in ctc_forward(z, index, frames, blank)
    )
    return blanks, said


def _harmless(logits: Array, frames: Array, labels: Array, exists: Array, blank: int) -> tuple[Array, Array, Array]:
    """Logits without what is padded, labels in range, and [B] nan for a sequence with a label that is none, else 1."""
    classes = logits.shape[-1]
    wrong = (labels < 0) | (labels >= classes) | (labels == blank)
    factor = jnp.where(jnp.any(wrong & exists, axis=-1), jnp.nan, 1)
    return jnp.where(frames[..., None], logits, 0), jnp.clip(labels, 0, classes - 1), factor
