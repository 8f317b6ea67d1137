"""Textbook formulas of the losses of regions: dice and tversky."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(z):
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def index(p, t, alpha, beta, smooth, pixels):
    """Tversky (1977), with `smooth` in numerator and denominator."""
    met, false, missed = (p * t).sum(pixels), (p * (1 - t)).sum(pixels), ((1 - p) * t).sum(pixels)
    return (met + smooth) / (met + alpha * false + beta * missed + smooth)


def tversky(logits, targets, alpha=0.5, beta=0.5, axis=-1, smooth=1.0):
    return 1 - index(sigmoid(logits), targets, alpha, beta, smooth, -1)


def dice(logits, targets, axis=-1, smooth=1.0):
    """Milletari, Navab and Ahmadi (2016), without squares."""
    p, s = sigmoid(logits), 2 * smooth
    return 1 - (2 * (p * targets).sum(-1) + s) / (p.sum(-1) + targets.sum(-1) + s)


def multiclass_tversky(logits, targets, alpha=0.5, beta=0.5, axis=-1, image_axes=-1, smooth=1.0):
    each = 1 - index(softmax(logits), targets, alpha, beta, smooth, -2)
    return each.sum(-1), np.full(len(each), float(each.shape[-1]))


def multiclass_dice(logits, targets, axis=-1, image_axes=-1, smooth=1.0):
    return multiclass_tversky(logits, targets, smooth=smooth)


def generalized_dice(logits, targets, axis=-1, image_axes=-1, smooth=1.0):
    """Sudre et al. (2017), section 2.1."""
    p = softmax(logits)
    w = 1 / targets.sum(-2) ** 2
    w = w / w.mean(-1, keepdims=True)
    met, all_of_both = (w * (p * targets).sum(-2)).sum(-1), (w * (p + targets).sum(-2)).sum(-1)
    return 1 - (2 * met + 2 * smooth) / (all_of_both + 2 * smooth)


IMAGES = {"logits": "NK", "targets": "NK"}
CLASS_MAPS = {"logits": "NKC", "targets": "NKC"}

CASES = (
    Case(jl.dice, dice, shapes=IMAGES, options=({"axis": -1}, {"axis": -1, "smooth": 0.0})),
    Case(
        jl.tversky,
        tversky,
        shapes=IMAGES,
        options=({"axis": -1, "alpha": 0.3, "beta": 0.7}, {"axis": -1, "alpha": 1.0, "beta": 1.0, "smooth": 0.1}),
    ),
    # Their `valid` is about pixels, not about the classes: see test_regions.py.
    Case(
        jl.multiclass_dice,
        multiclass_dice,
        shapes=CLASS_MAPS,
        options=({"image_axes": -1}, {"image_axes": -1, "smooth": 0.0}),
        entries="C",
        classes="V",
    ),
    Case(
        jl.multiclass_tversky,
        multiclass_tversky,
        shapes=CLASS_MAPS,
        options=({"image_axes": -1, "alpha": 0.3, "beta": 0.7},),
        entries="C",
        classes="V",
    ),
    Case(
        jl.generalized_dice,
        generalized_dice,
        shapes=CLASS_MAPS,
        options=({"image_axes": -1}, {"image_axes": -1, "smooth": 0.0}),
        classes="V",
    ),
)
