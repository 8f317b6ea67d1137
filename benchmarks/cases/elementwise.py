"""Losses entry by entry, mean over all: what they cost beyond moving the entries through the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Inputs, Outputs, Size, Variant
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Losses entry by entry, mean, float32"

Loss = Callable[[Any, Any], Any]


# What a loss entry by entry cannot go below.
ENTRYWISE = with_jax.limit(value=lambda p, t: (p * t).sum(), gradient=lambda p, t: p * t)
ENTRYWISE_IN_WORDS = "value: read both inputs; with gradient: read both, write one array"


def real_targets(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(size, np.float32) for name in ("predictions", "targets")}


def hard_targets(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "logits": 3 * rng.standard_normal(size, np.float32),
        "targets": rng.integers(0, 2, size).astype(np.float32),
    }


def huber_rows(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r = predictions - targets
    return np.where(np.abs(r) <= 1, 0.5 * r * r, np.abs(r) - 0.5), np.clip(r, -1, 1)


def sigmoid_rows(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.logaddexp(0, np.where(targets == 1, -logits, logits)), 1 / (1 + np.exp(-logits)) - targets


def focal_rows(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sign = 1 - 2 * targets
    q = 1 / (1 + np.exp(-sign * logits))  # the probability of the wrong answer
    loss = np.logaddexp(0, sign * logits)
    return q**2 * loss, sign * (2 * q**2 * (1 - q) * loss + q**3)


def textbook_huber(p: jax.Array, t: jax.Array) -> jax.Array:
    r = p - t
    return jnp.where(jnp.abs(r) <= 1, 0.5 * r * r, jnp.abs(r) - 0.5).mean()


def textbook_sigmoid(x: jax.Array, t: jax.Array) -> jax.Array:
    return (jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))).mean()


def textbook_focal(x: jax.Array, t: jax.Array) -> jax.Array:
    p = jax.nn.sigmoid(x)
    q = p * (1 - t) + (1 - p) * t
    return (q**2 * (jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x))))).mean()


def keras_loss(name: str, **options: Any) -> Loss:
    def function(p: Any, t: Any) -> Any:
        import keras

        return getattr(keras.losses, name)(t, p, **options).mean()

    return function


def rax_sigmoid(x: jax.Array, t: jax.Array) -> Any:
    import rax

    return rax.pointwise_sigmoid_loss(x, t, reduce_fn=jnp.mean)


def torch_loss(name: str) -> Loss:
    def function(p: Any, t: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(p, t)

    return function


def torch_focal(x: Any, t: Any) -> Any:
    # As torchvision.ops.sigmoid_focal_loss has it, without alpha.
    import torch

    p = torch.sigmoid(x)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    return (loss * (1 - (p * t + (1 - p) * (1 - t))) ** 2).mean()


def case(
    name: str,
    inputs: Callable[[Size, np.random.Generator], dict[str, np.ndarray]],
    truth: Callable[[Inputs], Outputs],
    ours: Loss,
    optax_s: Loss,
    textbook: Loss,
    in_torch: Loss,
    **others: Variant,
) -> Case:
    return Case(
        name=name,
        sizes=((10**5,), (10**6,), (10**7,)),
        tiny=(1000,),
        inputs=inputs,
        truth=truth,
        variants={
            "jaxloss": with_jax.loss(ours, role="ours"),
            "optax": with_jax.loss(optax_s, needs=("optax",)),
            "textbook": with_jax.loss(textbook),
            "torch": with_torch.loss(in_torch),
            "torch compiled": with_torch.loss(in_torch, compiled=True),
            **others,
            "limit": ENTRYWISE,
        },
        limit=ENTRYWISE_IN_WORDS,
    )


CASES = [
    case(
        "sigmoid_cross_entropy",
        hard_targets,
        mean_over_rows(sigmoid_rows),
        lambda x, t: jl.sigmoid_cross_entropy(x, t),
        lambda x, t: optax.sigmoid_binary_cross_entropy(x, t).mean(),
        textbook_sigmoid,
        torch_loss("binary_cross_entropy_with_logits"),
        keras=with_jax.loss(keras_loss("binary_crossentropy", from_logits=True), needs=("keras",)),
        rax=with_jax.loss(rax_sigmoid, needs=("rax",)),
    ),
    case(
        "huber",
        real_targets,
        mean_over_rows(huber_rows),
        lambda p, t: jl.huber(p, t),
        lambda p, t: optax.huber_loss(p, t).mean(),
        textbook_huber,
        torch_loss("huber_loss"),
        keras=with_jax.loss(keras_loss("huber"), needs=("keras",)),
    ),
    case(
        "sigmoid_focal",
        hard_targets,
        mean_over_rows(focal_rows),
        lambda x, t: jl.sigmoid_focal(x, t),
        lambda x, t: optax.sigmoid_focal_loss(x, t).mean(),
        textbook_focal,
        torch_focal,
        keras=with_jax.loss(
            keras_loss("binary_focal_crossentropy", from_logits=True, apply_class_balancing=False), needs=("keras",)
        ),
    ),
]
