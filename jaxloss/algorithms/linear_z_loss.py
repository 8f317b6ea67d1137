"""The cross-entropy of hidden states and a kernel beside the z-loss in it, from one pass: for those who log both."""

from __future__ import annotations

from typing import Literal

from jaxloss.algorithms.linear_cross_entropy import Head, Options, linear_nll_totals
from jaxloss.algorithms.linear_heads import admitted_head
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import summed
from jaxloss.core.reduction import Mean
from jaxloss.core.types import (
    Array,
    AxisName,
    Fraction,
    Label,
    Mask,
    NonNegative,
    Positive,
    Real,
    ValidMask,
    Weights,
)

__all__ = ["linear_cross_entropy_and_z_loss"]


@compiled
def linear_cross_entropy_and_z_loss(
    hidden: Real,
    kernel: Real,
    labels: Label,
    *,
    z_loss: NonNegative = 1e-4,
    bias: Real | None = None,
    transposed_kernel: bool = False,
    valid: ValidMask = None,
    label_smoothing: Fraction | None = None,
    soft_cap: Positive | None = None,
    temperature: Positive | None = None,
    vocab_axis_name: AxisName = None,
    memory: Literal["fast", "low"] = "fast",
    chunk_rows: int | None = None,
    chunk_classes: int | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Literal["mean", "sum", "partial"] = "mean",
) -> tuple[Array, Array] | tuple[Mean, Mean]:
    """`linear_softmax_cross_entropy` with its z-loss, and that z-loss alone: (loss, z), both under one reduction.

        loss - z is the loss without z-loss;   z is z_loss logsumexp(logits)^2

    Args:
      z_loss: >= 0, the coefficient.
      hidden, kernel, labels, and all others: as in `linear_softmax_cross_entropy`.
      reduction: "mean", "sum" or "partial" (a pair of `Mean`). "none" there is not: one pass knows totals.
    Returns: two numbers in nats; z has no gradient, since the loss already pulls by it.
    """
    head = admitted_head(hidden, kernel, bias, valid, transposed=transposed_kernel, axis_name=vocab_axis_name)
    options = Options(transposed_kernel, memory == "low", chunk_rows, chunk_classes, vocab_axis_name)

    def value(
        hidden: Array,
        labels: Array,
        kernel: Array,
        bias: Array | None,
        valid: Array | None,
        *scalars: Array | None,
        coefficients: Array,
    ) -> Array:
        return linear_nll_totals(Head(hidden, kernel, bias, *scalars), labels, valid, coefficients, options)

    found = summed(
        value,
        hidden=hidden,
        labels=labels,
        trailing={"hidden": 1, "labels": 0},
        classes=head.classes,
        shared={"kernel": kernel, "bias": bias, "valid": head.valid},
        scalars={
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "soft_cap": soft_cap,
            "temperature": temperature,
        },
        where=where,
        weights=weights,
        reduction=reduction,
    )
    if isinstance(found, Mean):
        return Mean(found.total[0], found.weight), Mean(found.total[1], found.weight)
    return found[0], found[1]
