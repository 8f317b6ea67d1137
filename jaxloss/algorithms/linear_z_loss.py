"""The cross-entropy of hidden states and a kernel beside the z-loss in it, from one pass: for those who log both."""

from __future__ import annotations

from typing import Literal

from jaxloss.algorithms.linear_cross_entropy import Head, Options, linear_nll_totals
from jaxloss.algorithms.linear_heads import cross_entropy_of_head
from jaxloss.core.compiled import compiled
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
    found = cross_entropy_of_head(
        _totals,
        hidden,
        kernel,
        labels,
        bias=bias,
        transposed_kernel=transposed_kernel,
        valid=valid,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        temperature=temperature,
        vocab_axis_name=vocab_axis_name,
        memory=memory,
        chunk_rows=chunk_rows,
        chunk_classes=chunk_classes,
        where=where,
        weights=weights,
        reduction=reduction,
    )
    if isinstance(found, Mean):
        return Mean(found.total[0], found.weight), Mean(found.total[1], found.weight)
    return found[0], found[1]


def _totals(head: Head, labels: Array, valid: Array | None, coefficients: Array | None, options: Options) -> Array:
    assert coefficients is not None, "there is no reduction 'none'"
    return linear_nll_totals(head, labels, valid, coefficients, options)
