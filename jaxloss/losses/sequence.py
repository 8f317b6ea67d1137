"""Padded sequences: one value a sequence, nothing behind its length."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import label_nll
from jaxloss.core.frames import sequencewise
from jaxloss.core.types import Array, Label, Lengths, Logit, Mask, Reduction, Weights

__all__ = ["token_nll"]


@compiled
def token_nll(
    logits: Logit,
    labels: Label,
    *,
    lengths: Lengths = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-likelihood of a sequence of tokens; its mean is per token.

        sum over t < length of logsumexp(logits_t) - logits_t[labels_t]

    Use for language models and taggers on padded batches; `exp` of the mean is the perplexity.

    Args:
      logits: [..., T, V] real; what lies behind a length may be nan.
      labels: [..., T] integer in [0, V); behind a length anything, -1 too.
      lengths: [...] integer in [0, T], how many tokens of each sequence exist; None is all.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the sequences. "mean" divides by the number
        of tokens, not of sequences, so that it is the same however sequences are batched. A mask on single tokens goes
        to `softmax_cross_entropy`.
    Returns: nats, in [0, inf]; unreduced, one number a sequence: minus the log-probability of all its tokens.
    Gradient: softmax(logits_t) - onehot(labels_t) for t < length, 0 behind.
    Peers: torch.nn.NLLLoss.
    Reference: Shannon (1948), A mathematical theory of communication, Bell Syst. Tech. J. 27(3).
    """

    def value(logits: Array, labels: Array, *, alive: tuple[Array]) -> tuple[Array, Array]:
        (exists,) = alive
        each = jnp.where(exists, label_nll(logits, labels, logits.ndim - 1), 0)
        return jnp.sum(each, axis=-1), jnp.sum(exists, axis=-1, dtype=each.dtype)

    return sequencewise(
        value,
        logits=logits,
        labels=labels,
        steps={"logits": 2, "labels": 1},
        lengths={"lengths": (lengths, ("logits", "labels"))},
        classes="logits",
        where=where,
        weights=weights,
        reduction=reduction,
    )
