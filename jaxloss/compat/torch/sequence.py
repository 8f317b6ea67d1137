"""Labels without their times."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxloss import losses
from jaxloss.compat.torch.arguments import Reduction, admit_reduction, floating, integers, is_traced, reduced
from jaxloss.core.types import Array, ArrayLike

__all__ = ["ctc_loss"]

Lengths = ArrayLike | Sequence[int]


def ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
) -> Array:
    """`jl.ctc(swapaxes(log_probs, 0, 1), targets, ...)`: time comes first here, and the mean divides each sequence by
    its number of labels before it averages over the batch.
    """
    admit_reduction(reduction)
    x, labels = floating("log_probs", log_probs), integers("targets", targets)
    if x.ndim not in (2, 3):
        raise ValueError(f"`log_probs` {list(x.shape)} must be [T, C] or [T, N, C]")
    batch = x.shape[1:-1]
    frames = _lengths("input_lengths", input_lengths, batch)
    counts = _lengths("target_lengths", target_lengths, batch)
    if batch and labels.ndim == 1:
        labels = _taken_apart(labels, target_lengths)
    if labels.ndim != len(batch) + 1 or labels.shape[:-1] != batch:
        raise ValueError(
            f"`targets` {list(labels.shape)} must be {'[N, S], or all labels in a row,' if batch else '[S]'} for "
            f"`log_probs` {list(x.shape)}"
        )
    each = losses.ctc(
        jnp.moveaxis(x, 0, -2),
        labels,
        logit_lengths=frames,
        label_lengths=counts,
        blank=blank,
        infeasible="zero" if zero_infinity else "inf",
        reduction="none",
    )
    if reduction == "mean":
        each = each / jnp.maximum(counts, 1).astype(each.dtype)
    return reduced(each, reduction)


def _lengths(name: str, lengths: Lengths, batch: tuple[int, ...]) -> Array:
    """One for each sequence; a tuple of them will do, and for a single sequence [] or [1]."""
    if isinstance(lengths, Sequence):
        lengths = jnp.asarray(lengths) if lengths else jnp.zeros((0,), int)
    found = integers(name, lengths)
    if found.shape != batch and not (batch == () and found.shape == (1,)):
        wanted = "one length for each sequence" if batch else "[], one length"
        raise ValueError(f"`{name}` {list(found.shape)} must be {list(batch)}, {wanted}")
    return found.reshape(batch)


def _taken_apart(labels: Array, counts: Lengths) -> Array:
    """Labels of all sequences in a row as [N, S], S the longest: what follows a sequence's own is not looked at."""
    if any(is_traced(x) for x in (counts if isinstance(counts, Sequence) else (counts,))):
        raise TypeError(
            "`targets` [S] of a whole batch need `target_lengths` that are known when compiling, and these are traced; "
            "pass `targets` as [N, S], padded"
        )
    sizes = np.asarray(counts, np.int64)
    if np.any(sizes < 0) or sizes.sum() != labels.size:
        raise ValueError(
            f"`targets` {list(labels.shape)} in a row must have as many labels as `target_lengths` say: {sizes.sum()}"
        )
    starts = np.cumsum(sizes) - sizes
    index = starts[:, None] + np.arange(sizes.max(initial=0))[None]
    return jnp.take(labels, index, mode="clip") if labels.size else jnp.zeros(index.shape, labels.dtype)
