"""The last layer of a model, checked: hidden [..., D] against a kernel [D, V] or [V, D], a bias, a mask of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
from jax import lax

from jaxloss.algorithms.linear_rows import Head, Options
from jaxloss.core.demand import demand
from jaxloss.core.frames import summed
from jaxloss.core.inputs import admitted
from jaxloss.core.reduction import admit_mask
from jaxloss.core.types import Array, ArrayLike, AxisName, Reduction

__all__ = ["AdmittedHead", "admitted_head", "cross_entropy_of_head"]


class AdmittedHead(NamedTuple):
    """What a check of the last layer has found."""

    classes: int  # on all devices of the vocabulary's axis
    valid: Array | None  # [V] of this device


def admitted_head(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    valid: ArrayLike | None,
    *,
    transposed: bool = False,
    axis_name: AxisName = None,
    prefix: str = "",
) -> AdmittedHead:
    """Refuse in words what does not fit; `prefix` stands before the names of hidden, kernel and bias."""
    names = prefix + "hidden", prefix + "kernel"
    found = admitted({names[0]: hidden, names[1]: kernel})
    x, w = found.values()
    if x.ndim == 0:
        raise ValueError(f"`{names[0]}` [] must have a last axis of features")
    layout = "[V, D]" if transposed else "[D, V]"
    message = f"`{names[1]}` {list(w.shape)} must have two axes, {layout}"
    demand(chex.assert_rank, w, 2, error=ValueError, message=message)
    classes, features = w.shape if transposed else w.shape[::-1]
    cure = f"; is `{names[1]}` {'[D, V]' if transposed else '[V, D]'}? transposed_kernel={not transposed}"
    message = (
        f"`{names[0]}` {list(x.shape)} and `{names[1]}` {list(w.shape)}, as {layout}, must have one number of features"
        + (cure if x.shape[-1] == classes else "")
    )
    demand(chex.assert_equal, x.shape[-1], features, error=ValueError, message=message)
    if classes == 0:
        raise ValueError(f"`{names[1]}` {list(w.shape)} has no class")
    if bias is not None:
        name = prefix + "bias"
        (b,) = admitted({name: bias}).values()
        message = f"`{name}` {list(b.shape)} must have one entry for each of the {classes} classes"
        demand(chex.assert_shape, b, (classes,), error=ValueError, message=message)
    return AdmittedHead(
        classes * (lax.axis_size(axis_name) if axis_name else 1), admit_mask("valid", valid, (classes,))
    )


def cross_entropy_of_head(
    value: Callable[[Head, Array, Array | None, Array | None, Options], Array],
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None,
    transposed_kernel: bool,
    valid: ArrayLike | None,
    label_smoothing: ArrayLike | None,
    z_loss: ArrayLike | None,
    soft_cap: ArrayLike | None,
    temperature: ArrayLike | None,
    vocab_axis_name: AxisName,
    memory: Literal["fast", "low"],
    chunk_rows: int | None,
    chunk_classes: int | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: Reduction,
) -> Array:
    """`value(head, labels, valid, coefficients, options)` in the frame of losses that add up their rows themselves."""
    found = admitted_head(hidden, kernel, bias, valid, transposed=transposed_kernel, axis_name=vocab_axis_name)
    options = Options(transposed_kernel, memory == "low", chunk_rows, chunk_classes, vocab_axis_name)

    def of_arrays(
        hidden: Array,
        labels: Array,
        kernel: Array,
        bias: Array | None,
        valid: Array | None,
        *scalars: Array | None,
        coefficients: Array | None,
    ) -> Array:
        return value(Head(hidden, kernel, bias, *scalars), labels, valid, coefficients, options)

    return summed(
        of_arrays,
        hidden=hidden,
        labels=labels,
        trailing={"hidden": 1, "labels": 0},
        classes=found.classes,
        shared={"kernel": kernel, "bias": bias, "valid": found.valid},
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
