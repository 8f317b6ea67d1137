"""Regions of an image: one value an image, from all of its pixels together."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import chex
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.lovasz import jaccard_extension
from jaxloss.algorithms.overlap import binary_overlap, class_overlaps, inverse_square_weights, missed_part
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.frames import eventwise, sequencewise
from jaxloss.core.inputs import (
    admitted,
    as_scalars,
    assert_one_shape,
    canonical_axes,
    neutralised,
    wide_dtype,
    without_axes,
)
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import admit_mask, reduce
from jaxloss.core.sharding import is_label
from jaxloss.core.types import (
    Array,
    ArrayLike,
    Binary,
    BinaryLogit,
    Label,
    Logit,
    Mask,
    NonNegative,
    Probability,
    Real,
    Reduction,
    ValidMask,
    Weights,
)

__all__ = [
    "dice",
    "generalized_dice",
    "lovasz_hinge",
    "lovasz_softmax",
    "multiclass_dice",
    "multiclass_tversky",
    "tversky",
]


@compiled
def dice(
    logits: BinaryLogit,
    targets: Probability,
    *,
    axis: int | tuple[int, ...] = (-2, -1),
    smooth: NonNegative = 1.0,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the Dice coefficient of a predicted and a true region (soft Sorensen-Dice, F1 loss).

        D / (I + D + smooth),   D = 1/2 sum_i (p_i (1 - t_i) + (1 - p_i) t_i),   I = sum_i p_i t_i
        = 1 - (I + smooth) / (1/2 sum_i p_i + 1/2 sum_i t_i + smooth),   p = sigmoid(logits), t = targets

    Use for a region that fills little of its image, where cross-entropy is ruled by what lies outside; often beside it.

    Args:
      logits: [..., H, W] real, log-odds of inside; -inf and inf are certainty.
      targets: [..., H, W] in [0, 1], or bool, the same shape.
      axis: the axes that make up one image; all axes for one value of a whole batch.
      smooth: >= 0, in pixels: so many are counted as met in every image, which keeps the loss of a small region smooth
        and gives an empty one a gradient. Where others write (2 I + s) / (sum p + sum t + s), `smooth` is s / 2.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything (a border of unknown label).
      where, weights, reduction: see `jaxloss.reduce`; one value an image. An image without a valid pixel is absent.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right, also where nothing is inside and nothing
      is predicted. No loss is one minus something: a good image keeps all digits.
    Gradient: p (1 - p) (1/2 (1 - t) (I + smooth) - t (1/2 (I + smooth) + D)) / (I + D + smooth)^2; for hard targets of
      one sign inside and the other outside, to the last digits. 0 where the loss is 0 / 0.
    Peers: optax.losses.binary_dice_loss, keras.losses.Dice, segmentation_models_pytorch.losses.DiceLoss,
      monai.losses.DiceLoss, kornia.losses.DiceLoss.
    Reference: Milletari, Navab and Ahmadi (2016), V-Net: fully convolutional neural networks for volumetric medical
      image segmentation, 3DV, section 3 (there with squares in the denominator); Dice (1945), Ecology 26(3).
    """

    def value(
        z: Array, t: Array, smooth: Array, *, axis: int | tuple[int, ...], valid: Array | None = None
    ) -> Array | tuple[Array, Array]:
        half = jnp.full_like(smooth, 0.5)
        return _region(z, t, half, half, smooth, axis=axis, valid=valid)

    return eventwise(
        value,
        logits=logits,
        targets=targets,
        axis=axis,
        valid=valid,
        scalars={"smooth": smooth},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def tversky(
    logits: BinaryLogit,
    targets: Probability,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    axis: int | tuple[int, ...] = (-2, -1),
    smooth: NonNegative = 1.0,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the Tversky index of a predicted and a true region: Dice with two prices of error.

        M / (I + M + smooth),   M = alpha sum_i p_i (1 - t_i) + beta sum_i (1 - p_i) t_i,   I = sum_i p_i t_i
        p = sigmoid(logits), t = targets

    Use to trade precision against recall of a small region (beta > alpha finds more of a lesion); 1/2 and 1/2 is
    `dice`, 1 and 1 is one minus intersection over union (soft Jaccard).

    Args:
      logits: [..., H, W] real, log-odds of inside; -inf and inf are certainty.
      targets: [..., H, W] in [0, 1], or bool, the same shape.
      alpha: >= 0, the price of a pixel that is predicted and not there (false positive).
      beta: >= 0, the price of a pixel that is there and not predicted (false negative).
      axis: the axes that make up one image; all axes for one value of a whole batch.
      smooth: >= 0, in pixels: so many are counted as met in every image; see `dice`.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything (a border of unknown label).
      where, weights, reduction: see `jaxloss.reduce`; one value an image. An image without a valid pixel is absent.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right, also where nothing is inside and nothing
      is predicted. No loss is one minus something: a good image keeps all digits.
    Gradient: p (1 - p) (alpha (1 - t) (I + smooth) - t (beta (I + smooth) + M)) / (I + M + smooth)^2; 0 where the loss
      is 0 / 0.
    Peers: optax.losses.dice_loss, keras.losses.Tversky (its alpha and beta change places),
      segmentation_models_pytorch.losses.TverskyLoss, monai.losses.TverskyLoss, kornia.losses.TverskyLoss.
    Reference: Salehi, Erdogmus and Gholipour (2017), Tversky loss function for image segmentation using 3D fully
      convolutional deep networks, MLMI, eq. 4; Tversky (1977), Features of similarity, Psychol. Rev. 84(4).
    """

    return eventwise(
        _region,
        logits=logits,
        targets=targets,
        axis=axis,
        valid=valid,
        scalars={"alpha": alpha, "beta": beta, "smooth": smooth},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def multiclass_dice(
    logits: Logit,
    targets: Probability,
    *,
    axis: int = -1,
    image_axes: int | tuple[int, ...] = (-2, -1),
    smooth: NonNegative = 1.0,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the Dice coefficient of each class's predicted and true region.

        D_c / (I_c + D_c + smooth),   D_c = 1/2 sum_i (p_ic (1 - t_ic) + (1 - p_ic) t_ic),   I_c = sum_i p_ic t_ic
        p_i = softmax(logits_i) over the classes, t = targets

    Use for several regions that share the pixels, when small ones are to count as much as large ones.

    Args:
      logits: [..., H, W, C] real; -inf rules a class out.
      targets: [..., H, W, C] in [0, 1], the same shape: one-hot, or each pixel's distribution over the classes.
      axis: the class axis of both; 1 for [N, C, H, W].
      image_axes: the axes that make up one image, of the arrays without their class axis; (0, 1, 2) takes a batch of
        images as one.
      smooth: >= 0, in pixels: so many are counted as met in every class; see `dice`.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [..., C], one value a class of each image. A class
        that is excluded (the background: `where=jnp.arange(C)[None] > 0`) has no value of its own, but keeps its place
        in the softmax; an image of which no class is kept may hold anything. One without a valid pixel is absent.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right, also for a class that is neither there nor
      predicted. 1 - p of a sure pixel is the sum of the other classes, so a good image keeps all digits.
    Gradient: through the softmax, whose own slopes are those of `dice` in p: (1/2 (1 - t) (I + smooth) - t (1/2 (I +
      smooth) + D)) / (I + D + smooth)^2; it keeps its digits at sure pixels. 0 where the loss is 0 / 0.
    Peers: optax.losses.dice_loss, optax.losses.multiclass_generalized_dice_loss, keras.losses.Dice,
      segmentation_models_pytorch.losses.DiceLoss, monai.losses.DiceLoss, kornia.losses.DiceLoss.
    Reference: Milletari, Navab and Ahmadi (2016), V-Net: fully convolutional neural networks for volumetric medical
      image segmentation, 3DV, section 3; Dice (1945), Ecology 26(3).
    """
    return _regions(logits, targets, 0.5, 0.5, smooth, axis, image_axes, valid, where, weights, reduction)


@compiled
def multiclass_tversky(
    logits: Logit,
    targets: Probability,
    *,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    axis: int = -1,
    image_axes: int | tuple[int, ...] = (-2, -1),
    smooth: NonNegative = 1.0,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus the Tversky index of each class's predicted and true region.

        M_c / (I_c + M_c + smooth),   M_c = alpha sum_i p_ic (1 - t_ic) + beta sum_i (1 - p_ic) t_ic
        I_c = sum_i p_ic t_ic,   p_i = softmax(logits_i) over the classes, t = targets

    Use for several regions that share the pixels, when a missed pixel costs other than a false one; 1/2 and 1/2 is
    `multiclass_dice`, 1 and 1 is one minus intersection over union.

    Args:
      logits: [..., H, W, C] real; -inf rules a class out.
      targets: [..., H, W, C] in [0, 1], the same shape: one-hot, or each pixel's distribution over the classes.
      alpha: >= 0, the price of a pixel that is predicted and not there (false positive).
      beta: >= 0, the price of a pixel that is there and not predicted (false negative).
      axis: the class axis of both; 1 for [N, C, H, W].
      image_axes: the axes that make up one image, of the arrays without their class axis; (0, 1, 2) takes a batch of
        images as one.
      smooth: >= 0, in pixels: so many are counted as met in every class; see `dice`.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [..., C], as in `multiclass_dice`.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right, also for a class that is neither there nor
      predicted. 1 - p of a sure pixel is the sum of the other classes, so a good image keeps all digits.
    Gradient: through the softmax, whose own slopes are those of `tversky` in p; it keeps its digits at sure pixels.
      0 where the loss is 0 / 0.
    Peers: optax.losses.dice_loss, keras.losses.Tversky (its alpha and beta change places),
      segmentation_models_pytorch.losses.TverskyLoss, monai.losses.TverskyLoss, kornia.losses.TverskyLoss.
    Reference: Salehi, Erdogmus and Gholipour (2017), Tversky loss function for image segmentation using 3D fully
      convolutional deep networks, MLMI, eq. 4; Tversky (1977), Features of similarity, Psychol. Rev. 84(4).
    """
    return _regions(logits, targets, alpha, beta, smooth, axis, image_axes, valid, where, weights, reduction)


@compiled
def generalized_dice(
    logits: Logit,
    targets: Probability,
    *,
    axis: int = -1,
    image_axes: int | tuple[int, ...] = (-2, -1),
    smooth: NonNegative = 1.0,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One minus one Dice coefficient of all classes, each weighted by its size to the power -2.

        sum_c w_c D_c / (sum_c w_c (I_c + D_c) + smooth),   I_c and D_c as in `multiclass_dice`
        w_c proportional to 1 / T_c^2, of mean 1 over the classes with T_c > 0, else 0,   T_c = sum_i t_ic

    Use for classes of very unequal sizes in one image, when their common overlap is wanted as one number.

    Args:
      logits: [..., H, W, C] real; -inf rules a class out.
      targets: [..., H, W, C] in [0, 1], the same shape: one-hot, or each pixel's distribution over the classes.
      axis: the class axis of both; 1 for [N, C, H, W].
      image_axes: the axes that make up one image, of the arrays without their class axis; (0, 1, 2) takes a batch of
        images as one.
      smooth: >= 0, in pixels that are counted as met, beside the weighted sums; 0 is the paper's.
      valid: [..., H, W] bool, which pixels exist; the others may hold anything.
      where, weights, reduction: see `jaxloss.reduce`; one value an image. An image without a valid pixel is absent.
    Returns: dimensionless, in [0, 1]; 0 where every pixel is sure and right. A class without a target has an infinite
      weight in the paper's formula; here it has none, and costs what it takes from the classes that are there. Where
      nothing is a target all classes weigh 1. A good image keeps all digits.
    Gradient: through the softmax, and in the targets through the weights too (which jump where a class vanishes); it
      keeps its digits at sure pixels. 0 where the loss is 0 / 0.
    Peers: monai.losses.GeneralizedDiceLoss (absent classes have the largest weight of those there are),
      optax.losses.multiclass_generalized_dice_loss (a weighted mean of single coefficients; absent classes weigh 1e7).
    Reference: Sudre, Li, Vercauteren, Ourselin and Cardoso (2017), Generalised Dice overlap as a deep learning loss
      function for highly unbalanced segmentations, DLMIA, section 2.1.
    """
    maps = _class_maps(logits, targets, axis, image_axes, valid)
    mask = admit_mask("where", where, maps.images)
    maps = maps.only(mask)
    maps = dataclasses.replace(maps, targets=widen(maps.targets))  # two uses, one rounding of their gradient
    half = jnp.full((), 0.5, maps.dtype)
    missed, met = maps.overlaps(half, half)
    weight = inverse_square_weights(maps.sizes())
    (share,) = as_scalars({"smooth": smooth}, maps.dtype)
    assert share is not None
    value = missed_part(jnp.sum(weight * missed, axis=-1), jnp.sum(weight * met, axis=-1) + share)
    return reduce(value, where=mask, weights=weights, reduction=reduction, present=maps.present())


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
    pixel_axes = _pixel_axes(image_axes, shape, "`labels`")
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


def _region(
    z: Array,
    t: Array,
    alpha: Array,
    beta: Array,
    smooth: Array,
    *,
    axis: int | tuple[int, ...],
    valid: Array | None = None,
) -> Array | tuple[Array, Array]:
    missed, met = binary_overlap(z, t, alpha, beta, axis, valid)
    value = missed_part(missed, met + smooth)
    return value if valid is None else (value, jnp.any(valid, axis=axis))


def _regions(
    logits: ArrayLike,
    targets: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike,
    smooth: ArrayLike,
    axis: int,
    image_axes: int | tuple[int, ...],
    valid: ArrayLike | None,
    where: Mask,
    weights: Weights,
    reduction: Reduction,
) -> Array:
    """One value a class of each image."""
    maps = _class_maps(logits, targets, axis, image_axes, valid)
    shape = (*maps.images, maps.logits.shape[maps.axis])
    mask = admit_mask("where", where, shape)
    # A class that is excluded is no region, but the others' softmax is over it too.
    maps = maps.only(None if mask is None else jnp.any(mask, axis=-1))
    prices = as_scalars({"alpha": alpha, "beta": beta, "smooth": smooth}, maps.dtype)
    of_false, of_missed, share = (x for x in prices if x is not None)
    missed, met = maps.overlaps(of_false, of_missed)
    present = maps.present()
    return reduce(
        missed_part(missed, met + share),
        where=mask,
        weights=weights,
        reduction=reduction,
        present=None if present is None else jnp.expand_dims(present, -1),
    )


@dataclasses.dataclass(frozen=True)
class _ClassMaps:
    """Checked maps of classes, with their axes; sums over an image are [..., C], the class axis last."""

    logits: Array
    targets: Array
    exists: Array | None  # which pixels do, of the logits' rank; None: all
    axis: int
    pixels: tuple[int, ...]

    @property
    def dtype(self) -> jnp.dtype:
        return wide_dtype([self.logits, self.targets])

    @property
    def images(self) -> tuple[int, ...]:
        return without_axes(self.logits.shape, (self.axis, *self.pixels))

    def only(self, mask: Array | None) -> _ClassMaps:
        """The same, harmless in the images that `mask` excludes."""
        axes = sorted((self.axis, *self.pixels))
        z, t = (neutralised(x, mask, axes) for x in (self.logits, self.targets))
        return dataclasses.replace(self, logits=z, targets=t)

    def overlaps(self, alpha: Array, beta: Array) -> tuple[Array, Array]:
        sums = class_overlaps(self.logits, self.targets, alpha, beta, self.axis, self.pixels, self.exists)
        missed, met = (self._class_last(x) for x in sums)
        return missed, met

    def sizes(self) -> Array:
        """The sum of each class's targets."""
        t = widen(self.targets)
        return self._class_last(jnp.sum(t if self.exists is None else jnp.where(self.exists, t, 0), axis=self.pixels))

    def present(self) -> Array | None:
        """Which images have a pixel."""
        return None if self.exists is None else jnp.any(self.exists, axis=(self.axis, *self.pixels))

    def _class_last(self, x: Array) -> Array:
        return jnp.moveaxis(x, self.axis - sum(i < self.axis for i in self.pixels), -1)


def _class_maps(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    image_axes: int | tuple[int, ...],
    valid: ArrayLike | None,
) -> _ClassMaps:
    named = admitted({"logits": logits, "targets": targets})
    full = assert_one_shape(named)
    (class_axis,) = canonical_axes(axis, full, "logits")
    shape = without_axes(full, (class_axis,))
    pixels = tuple(i + (i >= class_axis) for i in _pixel_axes(image_axes, shape, "`logits` without its class axis"))
    exists = admit_mask("valid", valid, shape)
    z, t = (neutralised(x, exists, (class_axis,)) for x in named.values())
    exists = None if exists is None else jnp.expand_dims(exists, class_axis)
    return _ClassMaps(z, t, exists, class_axis, pixels)


def _pixel_axes(image_axes: int | tuple[int, ...], shape: tuple[int, ...], what: str) -> tuple[int, ...]:
    try:
        return canonical_axes(image_axes, shape, "labels")
    except ValueError:
        raise ValueError(f"`image_axes` {image_axes} must name axes of {what} {list(shape)}, each once") from None


def _flat(x: Array, axes: tuple[int, ...], trailing: int = 0) -> Array:
    """`axes` as one axis behind all others, but for the `trailing` last ones."""
    first = x.ndim - trailing
    kept = [i for i in range(first) if i not in axes]
    pixels = math.prod(x.shape[i] for i in axes)
    x = jnp.transpose(x, [*kept, *axes, *range(first, x.ndim)])
    return x.reshape(*x.shape[: len(kept)], pixels, *x.shape[first:])
