"""Regions of an image: one value an image, from all of its pixels together."""

from __future__ import annotations

import math
from typing import Literal

import chex
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.lovasz import jaccard_extension
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.frames import eventwise, sequencewise
from jaxloss.core.inputs import admitted, canonical_axes, neutralised, without_axes
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import admit_mask
from jaxloss.core.sharding import is_label
from jaxloss.core.types import Array, Binary, Label, Logit, Mask, Real, Reduction, ValidMask, Weights

__all__ = ["lovasz_hinge", "lovasz_softmax"]


@compiled
def lovasz_hinge(
    logits: Real,
    targets: Binary,
    *,
    axis: int | tuple[int, ...] = (-2, -1),
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Convex surrogate of 1 - intersection over union of one region, from its pixels' hinge errors.

        sum_k m_(k) (J_k - J_(k-1)),   m_i = max(0, 1 - z_i s_i),  z = logits, s = 2 targets - 1,  m_(1) >= m_(2) >= ...
        J_k = 1 - |T without the first k| / |T with the first k|,   T = the pixels of target 1

    Use to train the overlap of a region itself, small regions above all, often after cross-entropy.

    Args:
      logits: [..., H, W] real; above 0 is predicted to be inside.
      targets: [..., H, W] in {0, 1}, or bool, the same shape.
      axis: the axes that make up one image; all axes for one value of a whole batch.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything (a border of unknown label).
      where, weights, reduction: see `jaxloss.reduce`; one value an image. An image without a valid pixel is absent.
    Returns: dimensionless, in [0, inf); 0 where every pixel is right by a margin of 1. Where nothing is inside, it is
      the largest error. One sort; pixels are counted in integers, and no loss is subtracted from another.
    Gradient: -s_i (J_k - J_(k-1)) where m_i > 0 stands in place k, else 0; none in the targets. Of equal errors the one
      that stands first comes first: a subgradient, where any is. The slope jumps where errors change places.
    Peers: segmentation_models_pytorch.losses.LovaszLoss, kornia.losses.LovaszHingeLoss.
    Reference: Berman, Triki and Blaschko (2018), The Lovasz-softmax loss, CVPR, section 2; Yu and Blaschko (2015),
      Learning submodular losses with the Lovasz hinge, ICML.
    """

    def value(z: Array, t: Array, *, axis: int | tuple[int, ...], valid: Array) -> tuple[Array, Array]:
        axes = (axis,) if isinstance(axis, int) else axis
        z, t, valid = (_flat(x, axes) for x in (widen(z), t, valid))
        inside = t > 0.5
        errors = 1 - jnp.where(inside, z, -z)
        # At the margin itself the slope is 0; what is not a number stays.
        return jaccard_extension(jnp.where(errors <= 0, 0, errors), inside, valid), jnp.any(valid, axis=-1)

    return eventwise(
        value,
        logits=logits,
        targets=targets,
        axis=axis,
        valid=True if valid is None else valid,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def lovasz_softmax(
    logits: Logit,
    labels: Label,
    *,
    classes: Literal["present", "all"] = "present",
    axis: int = -1,
    image_axes: int | tuple[int, ...] = (-2, -1),
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Surrogate of 1 - mean intersection over union of several classes, from the pixels' probabilities.

        mean over classes c of sum_k m_(k) (J_k - J_(k-1)),   m_i = 1 - p_ic where labels_i = c, else p_ic
        p = softmax(logits),  m_(1) >= m_(2) >= ...,  J_k = 1 - |T without the first k| / |T with the first k|,
        T = the pixels of label c

    Use to train the mean overlap of classes, rare ones as much as frequent ones, often beside cross-entropy.

    Args:
      logits: [..., H, W, C] real; -inf rules a class out.
      labels: [..., H, W] integer in [0, C).
      classes: whether an image's value is the mean over the classes "present" in its labels, or over "all" (a class
        that is absent then costs its largest probability).
      axis: the class axis of `logits`; 1 for [N, C, H, W].
      image_axes: the axes of `labels` that make up one image; (0, 1, 2) takes a batch of images as one.
      valid: [..., H, W] bool, which pixels exist; the others may have any label (255).
      where, weights, reduction: see `jaxloss.reduce`; one value an image. An image without a valid pixel is absent.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right. One sort a class; pixels are counted in
      integers, and no loss is subtracted from another.
    Gradient: through the probabilities, whose own slopes are -(J_k - J_(k-1)) at the label and J_k - J_(k-1) elsewhere,
      by the classes that count. Of equal errors the one that stands first comes first. The slope jumps where errors
      change places.
    Peers: segmentation_models_pytorch.losses.LovaszLoss, kornia.losses.LovaszSoftmaxLoss.
    Reference: Berman, Triki and Blaschko (2018), The Lovasz-softmax loss, CVPR, eqs. 8 to 13.
    """
    named = admitted({"logits": logits, "labels": labels})
    z, index = named["logits"], named["labels"]
    (class_axis,) = canonical_axes(axis, z.shape, "logits")
    shape = without_axes(z.shape, (class_axis,))
    message = (
        f"`labels` {list(index.shape)} must be `logits` {list(z.shape)} without its class axis {axis}: {list(shape)}"
    )
    demand(chex.assert_shape, index, shape, error=ValueError, message=message)
    pixel_axes = _pixel_axes(image_axes, shape)
    exists = admit_mask("valid", True if valid is None else valid, shape)
    assert exists is not None
    z = neutralised(jnp.moveaxis(z, class_axis, -1), exists, (len(shape),))
    exists_in_image = _flat(exists, pixel_axes)

    def value(z: Array, labels: Array, *, alive: tuple[()]) -> tuple[Array, Array]:
        z = widen(z)
        e = jnp.exp(z - lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True)))
        here = is_label(z, labels, z.ndim - 1)
        # 1 - p of a sure pixel is the sum of the others, not a difference.
        others = jnp.sum(jnp.where(here, 0, e), axis=-1, keepdims=True)
        total = others + jnp.sum(jnp.where(here, e, 0), axis=-1, keepdims=True)
        errors, truth = (jnp.swapaxes(x, -1, -2) for x in (jnp.where(here, others, e) / total, here))
        of_class = jnp.broadcast_to(jnp.expand_dims(exists_in_image, -2), truth.shape)
        each = jaccard_extension(errors, truth, of_class)
        counts = jnp.any(truth & of_class, axis=-1) if classes == "present" else jnp.ones_like(each, bool)
        number = jnp.maximum(jnp.sum(counts, axis=-1), 1).astype(each.dtype)
        return jnp.sum(jnp.where(counts, each, 0), axis=-1) / number, jnp.any(exists_in_image, axis=-1)

    return sequencewise(
        value,
        logits=_flat(z, pixel_axes, trailing=1),
        labels=_flat(neutralised(index, exists), pixel_axes),
        steps={"logits": 2, "labels": 1},
        lengths={},
        classes="logits",
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _pixel_axes(image_axes: int | tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return canonical_axes(image_axes, shape, "labels")
    except ValueError:
        raise ValueError(f"`image_axes` {image_axes} must name axes of `labels` {list(shape)}, each once") from None


def _flat(x: Array, axes: tuple[int, ...], trailing: int = 0) -> Array:
    """`axes` as one axis behind all others, but for the `trailing` last ones."""
    first = x.ndim - trailing
    kept = [i for i in range(first) if i not in axes]
    pixels = math.prod(x.shape[i] for i in axes)
    x = jnp.transpose(x, [*kept, *axes, *range(first, x.ndim)])
    return x.reshape(*x.shape[: len(kept)], pixels, *x.shape[first:])
