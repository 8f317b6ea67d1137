"""Softmax cross-entropy with integer labels on logits that are there already."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Size
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Softmax cross-entropy on logits, integer labels, mean"


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, classes = size
    return {
        "logits": 3 * rng.standard_normal(size, np.float32),
        "labels": rng.integers(0, classes, rows, np.int32),
    }


def rows(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at_label = np.arange(len(labels)), labels
    top = logits.max(axis=-1)
    p = np.exp(logits - top[:, None])
    total = p.sum(axis=-1)
    p /= total[:, None]
    p[at_label] -= 1
    return top + np.log(total) - logits[at_label], p


# The peers get a float32 copy of bfloat16 logits, as their users have to write it: without, the loss has 2 digits.
def of_optax(z: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(z.astype(jnp.float32), y).mean()


def textbook(z: jax.Array, y: jax.Array) -> jax.Array:
    z = z.astype(jnp.float32)
    return (jax.nn.logsumexp(z, axis=-1) - jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]).mean()


def of_keras(z: jax.Array, y: jax.Array) -> Any:
    import keras

    found = keras.losses.sparse_categorical_crossentropy(y, z.astype(jnp.float32), from_logits=True)
    return found.mean()


def of_torch(z: Any, y: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(z, y)


CASES = [
    Case(
        name="softmax_cross_entropy",
        sizes=((4096, 1000), (16384, 1000), (65536, 1000), (1_000_000, 10), (8192, 32000)),
        tiny=(64, 10),
        inputs=inputs,
        truth=mean_over_rows(rows),
        dtypes=("float32", "bfloat16"),
        variants={
            "jaxloss": with_jax.loss(lambda z, y: jl.softmax_cross_entropy(z, y), role="ours"),
            "optax": with_jax.loss(of_optax, needs=("optax",)),
            "textbook": with_jax.loss(textbook),
            "torch": with_torch.loss(of_torch),
            "torch compiled": with_torch.loss(of_torch, compiled=True),
            "keras": with_jax.loss(of_keras, needs=("keras",)),
            "limit": with_jax.limit(value=lambda z, y: z.sum(dtype=jnp.float32), gradient=lambda z, y: z * 2),
        },
        limit="value: sum the logits; with gradient: read the logits once, write as many",
    )
]
