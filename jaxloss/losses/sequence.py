"""Padded sequences: one value a sequence, nothing behind its length."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.algorithms.linear_chain import assert_states, chain_nll, with_ends
from jaxloss.algorithms.soft_dtw import soft_alignment_cost
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import label_nll
from jaxloss.core.frames import sequencewise
from jaxloss.core.inputs import wide_dtype
from jaxloss.core.types import Array, Label, Lengths, Logit, Mask, Positive, Real, Reduction, Weights

__all__ = ["linear_chain_crf", "soft_dtw", "token_nll"]


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


@compiled
def linear_chain_crf(
    emissions: Logit,
    labels: Label,
    transitions: Logit,
    *,
    start: Logit | None = None,
    end: Logit | None = None,
    lengths: Lengths = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-likelihood of a label sequence in a linear-chain conditional random field.

        logsumexp over paths y of s(y) - s(labels)
        s(y) = start[y_1] + sum_t emissions_t[y_t] + sum_t transitions[y_(t-1), y_t] + end[y_length]

    Use to tag sequences whose neighbouring labels depend on each other; `jaxloss.viterbi` gives the best labels.

    Args:
      emissions: [..., T, K] real, unnormalised; -inf forbids a label at a step; behind a length anything.
      labels: [..., T] integer in [0, K); behind a length anything, -1 too.
      transitions: [K, K] real, from row to column; -inf forbids.
      start, end: [K] real, scores of the first and the last label; None is 0.
      lengths: [...] integer in [0, T], how many steps of each sequence exist; None is all. A sequence of length 0 is 0
        and absent from the mean.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the sequences. "mean" is per sequence.
    Returns: nats, in [0, inf]: +inf where the labels are forbidden. Summed as conditional probabilities, so a sure
      sequence keeps its digits.
    Gradient: emissions: marginals - onehot(labels); transitions: expected - observed counts; 0 where the labels are
      forbidden. Messages more than about 58 nats apart, or a label less likely than about exp(-83) given the one before
      it, take a slower road in log space (compiled code chooses); transitions within 58 nats of each other do not.
    Peers: torchcrf.CRF (minus its log-likelihood; transitions the same way round), tfa.text.crf_log_likelihood,
      synjax.LinearChainCRF.
    Reference: Lafferty, McCallum and Pereira (2001), Conditional random fields, ICML.
    """

    def value(
        e: Array, labels: Array, a: Array, start: Array | None, end: Array | None, *, alive: tuple[Array]
    ) -> tuple[Array, Array]:
        (exists,) = alive
        assert_states(e, a, start, end)
        dtype = wide_dtype([x for x in (e, a, start, end) if x is not None])
        first, last = (x if x is None else x.astype(dtype) for x in (start, end))
        e = with_ends(e.astype(dtype), first, last, exists)
        return chain_nll(e, a.astype(dtype), labels, exists), jnp.any(exists, axis=-1)

    return sequencewise(
        value,
        emissions=emissions,
        labels=labels,
        steps={"emissions": 2, "labels": 1},
        lengths={"lengths": (lengths, ("emissions", "labels"))},
        classes="emissions",
        shared={"transitions": transitions, "start": start, "end": end},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def soft_dtw(
    predictions: Real,
    targets: Real,
    *,
    gamma: Positive = 1.0,
    prediction_lengths: Lengths = None,
    target_lengths: Lengths = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cost of the best alignment of two series, smoothed over all alignments (dynamic time warping).

        -gamma log sum over alignments of exp(-cost / gamma),   cost = sum over aligned (i, j) of |x_i - y_j|^2

    Use for series whose events may come early or late. The divergence of Blondel, Mensch and Vert (2021), which does
    not shrink series towards each other's average, is soft_dtw(x, y) - (soft_dtw(x, x) + soft_dtw(y, y)) / 2.

    Args:
      predictions: [..., N, D] real, x.
      targets: [..., M, D] real, y; an alignment goes from the first steps to the last ones, and skips none.
      gamma: > 0, in squared units of the series; towards 0 it is dynamic time warping.
      prediction_lengths, target_lengths: [...] integer in [0, N] and in [0, M], how many steps exist; None is all. A
        pair with an empty series is 0 and absent from the mean.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the pairs.
    Returns: squared target units, in (-inf, inf): negative where many alignments are cheap, so not 0 at equality.
    Gradient: 2 sum_j E_ij (x_i - y_j), E the probability that i and j are aligned; in gamma: minus the entropy of the
      alignment, exact.
    Peers: ott.geometry.costs.SoftDTW, tslearn.metrics.SoftDTWLossPyTorch.
    Reference: Cuturi and Blondel (2017), Soft-DTW: a differentiable loss function for time-series, ICML.
    """

    def value(x: Array, y: Array, gamma: Array, *, alive: tuple[Array, Array]) -> tuple[Array, Array]:
        if x.shape[-1] != y.shape[-1]:
            shapes = f"`predictions` {list(x.shape)} and `targets` {list(y.shape)}"
            raise ValueError(f"{shapes} must have one last axis, of features")
        here, there = alive
        present = jnp.any(here, axis=-1) & jnp.any(there, axis=-1)
        if here.shape[-1] == 0 or there.shape[-1] == 0:
            return jnp.zeros_like(present, gamma.dtype), present
        # Directly: |x|^2 + |y|^2 - 2 x y loses the digits of series that are close.
        costs = jnp.sum(jnp.square(x.astype(gamma.dtype)[..., :, None, :] - y.astype(gamma.dtype)[..., None, :, :]), -1)
        last = jnp.stack([jnp.maximum(jnp.sum(steps, axis=-1) - 1, 0) for steps in alive], axis=-1)
        found = soft_alignment_cost(costs, gamma, last)
        return jnp.where(present, found, 0), present

    return sequencewise(
        value,
        predictions=predictions,
        targets=targets,
        steps={"predictions": 2, "targets": 2},
        lengths={
            "prediction_lengths": (prediction_lengths, ("predictions",)),
            "target_lengths": (target_lengths, ("targets",)),
        },
        scalars={"gamma": gamma},
        where=where,
        weights=weights,
        reduction=reduction,
    )
