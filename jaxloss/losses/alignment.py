"""Monotone alignments between two sequences: no frame is labelled, and every way to align them counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from jaxloss.algorithms.ctc import ctc_nll
from jaxloss.algorithms.transducer import (
    Joiner,
    edge_log_probabilities,
    edges_of_joined,
    joined_shape,
    lattice_nll,
    sum_joiner,
)
from jaxloss.core.compiled import compiled, traced
from jaxloss.core.frames import sequencewise
from jaxloss.core.inputs import neutralised
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, Label, Lengths, Logit, Mask, Real, Reduction, Weights

__all__ = ["ctc", "transducer", "transducer_with_joiner"]


@compiled
def ctc(
    logits: Logit,
    labels: Label,
    *,
    logit_lengths: Lengths = None,
    label_lengths: Lengths = None,
    blank: int = 0,
    infeasible: Literal["inf", "zero"] = "inf",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Connectionist temporal classification: -log-probability of labels, over all their alignments.

        -log sum over a of prod_t softmax(logits_t)[a_t],   a_1 ... a_T: one class a frame

    over the a that become the labels when repeated classes are merged and blanks are taken away. Two equal labels in a
    row need a blank between them.

    Use for speech and handwriting: frames outnumber labels, come in the same order, and nobody knows which is which.

    Args:
      logits: [..., T, V] real; -inf rules a class out of a frame. What lies behind a length may be nan.
      labels: [..., S] integer in [0, V) without the blank, which is a bad label here; behind a length anything, -1 too.
      logit_lengths: [...] integer in [0, T], how many frames of each sequence exist; None is all.
      label_lengths: [...] integer in [0, S], how many labels of each sequence exist; None is all.
      blank: the class in [0, V) that stands for no label.
      infeasible: what a sequence is worth that has no alignment (too few frames for its labels and repeats, or every
        path ruled out): "inf", or "zero". Its gradient is exactly 0 in both; such a row counts in the mean.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the sequences. "mean" is per sequence, as
        keras has it, and optax after `.mean()`. torch's "mean" divides each sequence by its number of labels first:
        `weights=1 / maximum(label_lengths, 1)` with "sum", divided by the number of sequences.
    Returns: nats, in [0, inf]; one number a sequence.
    Gradient: softmax(logits_t) minus the share of all alignments that is in each class at frame t; within 1e-5 at
      T = 8000, where log-space recursions in float32 are off by 1e-2. Each frame's sums to 0.
    Peers: optax.ctc_loss, optax.ctc_loss_with_forward_probs, torch.nn.CTCLoss, torch.nn.functional.ctc_loss,
      keras.losses.CTC.
    Reference: Graves, Fernández, Gomez and Schmidhuber (2006), Connectionist temporal classification, ICML.
    """

    def value(logits: Array, labels: Array, *, alive: tuple[Array, Array]) -> Array:
        frames, exists = alive
        count = jnp.sum(exists, axis=-1, dtype=labels.dtype)
        found = ctc_nll(logits, labels, frames, count, _class(blank, logits.shape[-1]))
        return _of_legal_labels(found, labels == blank, exists, infeasible)

    return sequencewise(
        value,
        logits=logits,
        labels=labels,
        steps={"logits": 2, "labels": 1},
        lengths={"logit_lengths": (logit_lengths, ("logits",)), "label_lengths": (label_lengths, ("labels",))},
        classes="logits",
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def transducer(
    logits: Logit,
    labels: Label,
    *,
    logit_lengths: Lengths = None,
    label_lengths: Lengths = None,
    blank: int = 0,
    infeasible: Literal["inf", "zero"] = "inf",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of the labels under a transducer, over all alignments (RNN-T loss).

        -log sum over alignments of prod over their steps of softmax(logits[t, u])[blank or labels[u]]
        a blank goes from (t, u) to (t + 1, u), a label to (t, u + 1); from (0, 0) to (T, U), by a blank at the end

    Use for streaming speech recognition: unlike `ctc` each label depends on those before it, and a frame may bear
    several. `transducer_with_joiner` needs no logits [..., T, U+1, V] in memory.

    Args:
      logits: [..., T, U+1, V] real, for each frame and number of labels so far; -inf rules a class out. What lies
        behind the lengths may be nan.
      labels: [..., U] integer in [0, V), none of them `blank`; behind a length anything, -1 too.
      logit_lengths: [...] integer in [0, T], how many frames exist; None is all.
      label_lengths: [...] integer in [0, U], how many labels exist; None is all.
      blank: in [0, V), the class that takes the next frame.
      infeasible: the value of labels that no alignment gives (no frame, or only classes that are ruled out): "inf", or
        "zero". The gradient is 0 either way, and the mean counts the sequence.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the sequences.
    Returns: nats, in [0, inf]; unreduced, one number a sequence.
    Gradient: at each node softmax(logits) times the share of alignments that pass it, minus at each class the share
      that leave by it. It is the only array [..., T, U+1, V] that is written.
    Peers: torchaudio.functional.rnnt_loss, torchaudio.transforms.RNNTLoss.
    Reference: Graves (2012), Sequence transduction with recurrent neural networks, arXiv:1211.3711.
    """

    def value(logits: Array, labels: Array, *, alive: tuple[Array, Array]) -> Array:
        _assert_nodes("logits", logits.shape, -2, labels.shape)
        found = lattice_nll(*edge_log_probabilities(logits, labels, _class(blank, logits.shape[-1])), *_counts(alive))
        return _of_legal_labels(found, labels == blank, alive[1], infeasible)

    return sequencewise(
        value,
        logits=logits,
        labels=labels,
        steps={"logits": 3, "labels": 1},
        lengths={"logit_lengths": (logit_lengths, ("logits",)), "label_lengths": (label_lengths, ("labels",))},
        classes="logits",
        bare=("logits",),
        where=where,
        weights=weights,
        reduction=reduction,
    )


@traced
def transducer_with_joiner(
    encoder: Real,
    predictor: Real,
    labels: Label,
    *,
    joiner: Joiner | None = None,
    encoder_lengths: Lengths = None,
    label_lengths: Lengths = None,
    blank: int = 0,
    infeasible: Literal["inf", "zero"] = "inf",
    tile: int | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """`transducer` of logits that are made some frames at a time, and never held at once.

        transducer(joiner(encoder, predictor), labels)

    Use where logits [..., T, U+1, V] do not fit: memory is that of a tile's logits, and [..., T, U+1]. The joiner runs
    once more for the gradient.

    Args:
      encoder: [..., T, De] real, what the acoustic model makes of each frame.
      predictor: [..., U+1, Dp] real, what the label model makes of no label, one label, ..., all.
      labels: [..., U] integer in [0, V), none of them `blank`; behind a length anything, -1 too.
      joiner: from encoder outputs [..., t, De] and predictor outputs [..., U+1, Dp] to logits [..., t, U+1, V], each
        frame on its own; None is Graves's sum, encoder[..., :, None, :] + predictor[..., None, :, :]. It may close
        over parameters and their gradients are right, as in `lambda e, p: joint.apply(params, e, p)`.
      encoder_lengths: [...] integer in [0, T], how many frames exist; None is all. What lies behind may be nan.
      label_lengths: [...] integer in [0, U], how many labels exist; None is all. What lies behind may be nan.
      blank: in [0, V), the class that takes the next frame.
      infeasible: the value of labels that no alignment gives: "inf", or "zero". The gradient is 0 either way.
      tile: >= 1, how many frames at a time; None makes a tile of about 16 million logits.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the sequences.
    Returns: nats, in [0, inf]; unreduced, one number a sequence.
    Gradient: that of `transducer`, through the joiner, tile by tile; the predictor's is summed in float32.
    Peers: none known.
    Reference: Li et al. (2019), Improving RNN transducer modeling for end-to-end speech recognition, ASRU.
    """
    join = sum_joiner if joiner is None else joiner
    if tile is not None and tile < 1:
        raise ValueError(f"`tile` must be at least 1, got {tile}")

    def value(encoder: Array, predictor: Array, labels: Array, *, alive: tuple[Array, Array]) -> Array:
        _assert_nodes("predictor", predictor.shape, -2, labels.shape)
        # One more node than labels: the first is always there.
        nodes = jnp.pad(alive[1], [(0, 0)] * (labels.ndim - 1) + [(1, 0)], constant_values=True)
        predictor = neutralised(predictor, nodes, (predictor.ndim - 1,))
        if joiner is None:
            predictor = widen(predictor)  # no rounding between tiles
        classes = joined_shape(encoder, predictor, join)[-1]
        edges = edges_of_joined(encoder, predictor, labels, join, _class(blank, classes), tile)
        wrong = (labels < 0) | (labels >= classes) | (labels == blank)
        return _of_legal_labels(lattice_nll(*edges, *_counts(alive)), wrong, alive[1], infeasible)

    return sequencewise(
        value,
        encoder=encoder,
        predictor=predictor,
        labels=labels,
        steps={"encoder": 2, "predictor": 2, "labels": 1},
        lengths={"encoder_lengths": (encoder_lengths, ("encoder",)), "label_lengths": (label_lengths, ("labels",))},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _counts(alive: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(jnp.sum(exists, axis=-1, dtype=jnp.int32) for exists in alive)


def _assert_nodes(name: str, shape: tuple[int, ...], axis: int, labels: tuple[int, ...]) -> None:
    if shape[axis] != labels[-1] + 1:
        raise ValueError(
            f"`{name}` {list(shape)} must have {labels[-1] + 1} entries along axis {axis}, one more than `labels` "
            f"{list(labels)}: the first stands before any label"
        )


def _class(blank: int, classes: int) -> int:
    if not 0 <= blank < classes:
        raise ValueError(f"`blank` must be one of the {classes} classes, in [0, {classes}), got {blank}")
    return blank


def _of_legal_labels(value: Array, wrong: Array, exists: Array, infeasible: str) -> Array:
    """`value` with "zero" for inf, times nan where a label that exists is wrong."""
    value = jnp.where(jnp.isinf(value), 0, value) if infeasible == "zero" else value
    return value * jnp.where(jnp.any(wrong & exists, axis=-1), jnp.nan, 1).astype(value.dtype)
