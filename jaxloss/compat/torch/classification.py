"""Classes: one of several, and several that may be or not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss import losses
from jaxloss.compat.torch.arguments import (
    Reduction,
    admit_reduction,
    broadcast,
    class_axis,
    class_weights,
    floating,
    integers,
    is_traced,
    of_one_shape,
    predictions_and_targets,
    reduced,
)
from jaxloss.core.formulas import weighted_binary_nll
from jaxloss.core.frames import pointwise
from jaxloss.core.inputs import wide_dtype
from jaxloss.core.numerics import differentiable, log1p
from jaxloss.core.types import Array, ArrayLike

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "soft_margin_loss",
]


# --- One of several classes ---------------------------------------------------------------------------------------


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Of log-probabilities: `jl.categorical_nll(input, target, axis=1, where=target != ignore_index)`."""
    admit_reduction(reduction, size_average, reduce)
    x = floating("input", input)
    axis = class_axis(x)
    labels = _labels(target, x.shape, axis)
    return losses.categorical_nll(
        x,
        labels,
        axis=axis,
        class_weights=class_weights(weight, x.shape[axis]),
        where=labels != ignore_index,
        reduction=reduction,
    )


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: Reduction = "mean",
    label_smoothing: ArrayLike = 0.0,
) -> Array:
    """Of logits: `jl.softmax_cross_entropy(input, target, axis=1, where=target != ignore_index)`; targets of the
    shape of `input` are probabilities: `jl.softmax_cross_entropy_with_soft_labels`.
    """
    admit_reduction(reduction, size_average, reduce)
    x = floating("input", input)
    axis = class_axis(x)
    smoothing = _smoothing(label_smoothing)
    of_classes = class_weights(weight, x.shape[axis])
    if jnp.shape(target) == x.shape:
        if not is_traced(ignore_index) and ignore_index >= 0:
            raise ValueError(f"`ignore_index` {ignore_index} is of class indices, and `target` holds probabilities")
        targets = _soft_targets(floating("target", target), of_classes, smoothing, axis)
        return losses.softmax_cross_entropy_with_soft_labels(x, targets, axis=axis, reduction=reduction)
    labels = _labels(target, x.shape, axis)
    return losses.softmax_cross_entropy(
        x,
        labels,
        axis=axis,
        class_weights=of_classes,
        label_smoothing=smoothing,
        where=labels != ignore_index,
        reduction=reduction,
    )


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    ignore_index: int | None = None,
    label_smoothing: ArrayLike = 0.0,
    options: None = None,
) -> Array:
    """Of hidden states: `jl.linear_softmax_cross_entropy(input, linear_weight, target, transposed_kernel=True)`, which
    never holds the logits; they are made for probabilities, K-dimensional targets, and `weight` with smoothing.
    """
    admit_reduction(reduction)
    if options is not None:
        raise ValueError(
            "`options` must be None: they are of torch's chunks. Here the shapes decide, or `chunk_rows` and "
            f"`chunk_classes` of jaxloss.linear_softmax_cross_entropy; got {options!r}"
        )
    x, kernel = floating("input", input), floating("linear_weight", linear_weight)
    bias = None if linear_bias is None else floating("linear_bias", linear_bias)
    logits_shape = _assert_layer(x, kernel, bias)
    smoothing = _smoothing(label_smoothing)
    has_probabilities = jnp.shape(target) == logits_shape
    if has_probabilities and ignore_index is not None:
        raise ValueError(f"`ignore_index` {ignore_index} is of class indices, and `target` holds probabilities")
    ignored = -100 if ignore_index is None else ignore_index
    if has_probabilities or kernel.ndim > 2 or (weight is not None and smoothing is not None):
        logits = _logits(x, kernel, bias).reshape(logits_shape)
        return cross_entropy(logits, target, weight, None, ignored, None, reduction, label_smoothing)
    labels = _labels(target, logits_shape, x.ndim - 1)
    share = class_weights(weight, kernel.shape[0])
    return losses.linear_softmax_cross_entropy(
        x,
        kernel,
        labels,
        bias=bias,
        transposed_kernel=True,
        label_smoothing=smoothing,
        where=labels != ignored,
        weights=None if share is None else jnp.take(share, labels, mode="clip"),
        reduction=reduction,
    )


def multi_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    p: int = 1,
    margin: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Margin to each other class: `jl.multiclass_margin(input, target, p=p, margin=margin, class_weights=weight)`;
    the mean divides by the count, not by the weights.
    """
    admit_reduction(reduction, size_average, reduce)
    if p not in (1, 2):
        raise ValueError(f"`p` must be 1 or 2, got {p!r}")
    x = _rows_of_classes(input)
    labels = _labels(target, x.shape, x.ndim - 1)
    of_classes = class_weights(weight, x.shape[-1])
    return losses.multiclass_margin(x, labels, p=p, margin=margin, class_weights=of_classes, reduction=reduction)


def _labels(target: ArrayLike, scores: tuple[int, ...], axis: int) -> Array:
    """Class indices, of the shape of the scores without their class axis."""
    labels = integers("target", target)
    shape = scores[:axis] + scores[axis + 1 :]
    if labels.shape != shape:
        raise ValueError(
            f"`target` {list(labels.shape)} must be `input` {list(scores)} without its class axis {axis}, "
            f"{list(shape)}, to hold class indices"
        )
    return labels


def _smoothing(label_smoothing: ArrayLike) -> ArrayLike | None:
    if is_traced(label_smoothing):
        return label_smoothing
    share = float(np.asarray(label_smoothing))
    if not 0 <= share <= 1:
        raise ValueError(f"`label_smoothing` must be in [0, 1], got {share}")
    return None if share == 0 else share


def _soft_targets(t: Array, of_classes: Array | None, smoothing: ArrayLike | None, axis: int) -> Array:
    t = t.astype(wide_dtype([t]))
    if smoothing is not None:
        t = t * (1 - jnp.asarray(smoothing, t.dtype)) + jnp.asarray(smoothing, t.dtype) / t.shape[axis]
    if of_classes is not None:
        t = t * of_classes.reshape([-1 if i == axis else 1 for i in range(t.ndim)])
    return t


def _assert_layer(x: Array, kernel: Array, bias: Array | None) -> tuple[int, ...]:
    """Refuse a layer that does not fit in words; the shape of its logits."""
    shapes = f"`input` {list(x.shape)} and `linear_weight` {list(kernel.shape)}"
    if x.ndim not in (1, 2) or kernel.ndim < 2 or (x.ndim == 1 and kernel.ndim > 2):
        raise ValueError(f"{shapes} must be [D] and [C, D], or [N, D] and [C, D] or [C, d1, ..., D]")
    if x.shape[-1] != kernel.shape[-1]:
        raise ValueError(f"{shapes} must have one last axis, of features")
    if bias is not None and bias.shape != kernel.shape[:-1]:
        raise ValueError(
            f"`linear_bias` {list(bias.shape)} must be `linear_weight` {list(kernel.shape)} without its last axis"
        )
    return (*x.shape[:-1], *kernel.shape[:-1])


def _logits(x: Array, kernel: Array, bias: Array | None) -> Array:
    """[..., D], [C, ..., D] -> [..., C ...], the axes of the classes in one."""
    flat = kernel.reshape(-1, kernel.shape[-1])
    dtype = wide_dtype([x, kernel])
    logits = jnp.matmul(x, flat.T, preferred_element_type=dtype)
    return logits if bias is None else logits + jnp.broadcast_to(bias.astype(dtype).reshape(-1), logits.shape)


def _rows_of_classes(input: ArrayLike) -> Array:
    x = floating("input", input)
    if x.ndim not in (1, 2):
        raise ValueError(f"`input` {list(x.shape)} must be [C] or [N, C]")
    return x


# --- Several classes that may be or not ---------------------------------------------------------------------------

# What torch documents: no logarithm is below this.
_LEAST_LOG = -100.0
# And what its gradient divides by where a probability is exactly on the wrong side.
_NOTHING = 1e-12


def _clamped_logs(p: Array) -> tuple[Array, Array]:
    return jnp.maximum(jnp.log(p), _LEAST_LOG), jnp.maximum(log1p(-p), _LEAST_LOG)


def _probability_nll_value(p: Array, t: Array) -> Array:
    of_yes, of_no = _clamped_logs(p)
    return (t - 1) * of_no - t * of_yes


def _probability_nll_slope(p: Array, t: Array) -> Array:
    # (p - t) / (p (1 - p)), one factor cancelled for hard labels. The floor stands at exactly 0 and 1 only: below 1e-12
    # it would take its slope from a sigmoid that comes before.
    yes, no = (jnp.where(x == 0, _NOTHING, x) for x in (p, 1 - p))
    return jnp.where(t == 1, -1 / yes, jnp.where(t == 0, 1 / no, (p - t) / (yes * no)))


def _probability_nll_target_slope(p: Array, t: Array) -> Array:
    of_yes, of_no = _clamped_logs(p)
    return of_no - of_yes


_probability_nll = differentiable(_probability_nll_value, _probability_nll_slope, _probability_nll_target_slope)


def binary_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Of probabilities: `jl.binary_cross_entropy(input, target)`, no logarithm below -100; the mean divides by the
    count, not by the weights.
    """
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    of_entries = None if weight is None else broadcast("weight", weight, x.shape)
    return reduced(pointwise(_probability_nll, input=x, target=t, weights=of_entries, reduction="none"), reduction)


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
    pos_weight: ArrayLike | None = None,
) -> Array:
    """Of logits: `jl.sigmoid_cross_entropy(input, target, positive_weight=pos_weight)`, whose positive weight is one
    number; the mean divides by the count, not by the weights.
    """
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    of_entries = None if weight is None else broadcast("weight", weight, x.shape)
    if pos_weight is None:
        return reduced(losses.sigmoid_cross_entropy(x, t, weights=of_entries, reduction="none"), reduction)
    of_yes = broadcast("pos_weight", pos_weight, x.shape)
    each = pointwise(weighted_binary_nll, input=x, target=t, pos_weight=of_yes, weights=of_entries, reduction="none")
    return reduced(each, reduction)


def soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Logistic loss against signs: `jl.logistic(input, target)`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    return losses.logistic(x, t, reduction=reduction)


def multilabel_soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Mean over the classes, the last axis, of `jl.sigmoid_cross_entropy(input, target)`, times `weight`."""
    admit_reduction(reduction, size_average, reduce)
    x, t = predictions_and_targets(input, target)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"`input` {list(x.shape)} must have a last axis of classes")
    of_entries = None if weight is None else broadcast("weight", weight, x.shape)
    each = losses.sigmoid_cross_entropy(x, t, weights=of_entries, reduction="none")
    return reduced(jnp.mean(each, axis=-1), reduction)


def multilabel_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    size_average: None = None,
    reduce: None = None,
    reduction: Reduction = "mean",
) -> Array:
    """Every own class against every other: `jl.multilabel_margin(input, targets)` of targets in {0, 1}; here they
    are class indices, ended by -1.
    """
    admit_reduction(reduction, size_average, reduce)
    x, listed = _rows_of_classes(input), integers("target", target)
    of_one_shape(input=x, target=listed)
    classes = x.shape[-1]
    is_listed = jnp.cumsum(listed == -1, axis=-1) == 0
    bad = jnp.any((listed < -1) | (listed >= classes), axis=-1)

    def mark(slots: Array) -> Array:
        return jnp.zeros((classes,), bool).at[slots].set(True, mode="drop")

    slots = jnp.where(is_listed & (listed >= 0), listed, classes)
    targets = mark(slots) if x.ndim == 1 else jax.vmap(mark)(slots)
    each = losses.multilabel_margin(x, targets, reduction="none")
    # Multiplied, as a bad label is everywhere: a select would leave the gradient finite.
    return reduced(each * jnp.where(bad, jnp.nan, 1).astype(each.dtype), reduction)
