"""Dice losses of one region and of several classes: what sums without cancellation cost beside 1 - coefficient."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Size
from benchmarks.cases.elementwise import ENTRYWISE, ENTRYWISE_IN_WORDS
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Dice losses of images [N, H, W] and of class maps [N, H, W, C], mean"


def images(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "logits": 3 * rng.standard_normal(size, np.float32),
        "targets": (rng.random(size) < 0.1).astype(np.float32),
    }


def class_maps(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    labels = rng.integers(0, size[-1], size[:-1])
    return {"logits": 3 * rng.standard_normal(size, np.float32), "targets": np.eye(size[-1], dtype=np.float32)[labels]}


def coefficient(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2 I + 2) / (P + T + 2) over the pixels, and its slope in p."""
    both = p.sum(axis=(1, 2), keepdims=True) + t.sum(axis=(1, 2), keepdims=True) + 2
    met = 2 * (p * t).sum(axis=(1, 2), keepdims=True) + 2
    return np.squeeze(met / both, (1, 2)), 2 * t / both - met / both**2


def dice_rows(z: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = 1 / (1 + np.exp(-z))
    value, slope = coefficient(p, t)
    return 1 - value, -slope * p * (1 - p)


def class_rows(z: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    value, slope = coefficient(p, t)
    slope = slope / z.shape[-1]
    return (1 - value).mean(axis=-1), p * ((p * slope).sum(axis=-1, keepdims=True) - slope)


def textbook(p: Any, t: Any) -> Any:
    """In either library."""
    met = (p * t).sum((1, 2))
    return (1 - (2 * met + 2) / (p.sum((1, 2)) + t.sum((1, 2)) + 2)).mean()


CASES = [
    Case(
        name="dice",
        sizes=((8, 256, 256), (8, 1024, 1024)),
        tiny=(2, 9, 11),
        inputs=images,
        truth=mean_over_rows(dice_rows),
        variants={
            "jaxloss": with_jax.loss(lambda z, t: jl.dice(z, t), role="ours"),
            "optax": with_jax.loss(lambda z, t: optax.losses.binary_dice_loss(z, t).mean(), needs=("optax",)),
            "textbook": with_jax.loss(lambda z, t: textbook(jax.nn.sigmoid(z), t)),
            "torch": with_torch.loss(lambda z, t: textbook(z.sigmoid(), t)),
            "limit": ENTRYWISE,
        },
        limit=ENTRYWISE_IN_WORDS,
    ),
    Case(
        name="multiclass_dice",
        sizes=((4, 128, 128, 5), (4, 256, 256, 21)),
        tiny=(2, 5, 4, 3),
        inputs=class_maps,
        truth=mean_over_rows(class_rows),
        variants={
            "jaxloss": with_jax.loss(lambda z, t: jl.multiclass_dice(z, t), role="ours"),
            "optax": with_jax.loss(lambda z, t: optax.losses.dice_loss(z, t).mean(), needs=("optax",)),
            "textbook": with_jax.loss(lambda z, t: textbook(jax.nn.softmax(z), t)),
            "torch": with_torch.loss(lambda z, t: textbook(z.softmax(-1), t)),
            "limit": ENTRYWISE,
        },
        limit=ENTRYWISE_IN_WORDS,
    ),
]
