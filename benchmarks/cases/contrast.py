"""Contrast: every row of a batch against all others, whose similarities need not be held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import GRADIENT, Case, Inputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "Contrastive losses of unit vectors, mean"
TEMPERATURE = 0.1
BOTH = (0, 1)
_ROWS_AT_A_TIME = 512


def two_kinds(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    image = rng.standard_normal(size, np.float32)
    return {"image": image, "text": image + rng.standard_normal(size, np.float32)}


def two_views(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, features = size
    seen = np.repeat(rng.standard_normal((rows // 2, features), np.float32), 2, axis=0)
    labels = np.arange(rows, dtype=np.int32) // 2
    return {"embeddings": seen + rng.standard_normal(size, np.float32), "labels": labels}


def unit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x).astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / length, length


def of_length(slope: np.ndarray, x: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The slope towards a vector, from that towards it at length 1."""
    return (slope - x * (x * slope).sum(1, keepdims=True)) / length


def truth_of_clip(inputs: Inputs) -> list[np.ndarray]:
    (x, x_length), (y, y_length) = (unit(array) for array in inputs.values())
    count = len(x)
    parts = [slice(i, i + _ROWS_AT_A_TIME) for i in range(0, count, _ROWS_AT_A_TIME)]
    # exp(1 / temperature) is far from overflow.
    across, down = np.zeros(count), np.zeros(count)
    for part in parts:
        e = np.exp(x[part] @ y.T / TEMPERATURE)
        across[part], down = e.sum(1), down + e.sum(0)
    value = np.mean((np.log(across) + np.log(down)) / 2 - (x * y).sum(1) / TEMPERATURE)
    of_x, of_y = -y.copy(), -x.copy()
    for part in parts:
        e = np.exp(x[part] @ y.T / TEMPERATURE)
        p = (e / across[part, None] + e / down) / 2
        of_x[part] += p @ y
        of_y += p.T @ x[part]
    scale = count * TEMPERATURE
    return [np.asarray(value), of_length(of_x, x, x_length) / scale, of_length(of_y, y, y_length) / scale]


def truth_of_views(inputs: Inputs) -> list[np.ndarray]:
    x, length = unit(inputs["embeddings"])
    count = len(x)
    e = np.exp(x @ x.T / TEMPERATURE)
    np.fill_diagonal(e, 0)
    p, mate = e / e.sum(1, keepdims=True), np.arange(count) ^ 1
    value = -np.log(p[np.arange(count), mate]).mean()
    p[np.arange(count), mate] -= 1
    return [np.asarray(value), of_length((p + p.T) @ x, x, length) / (count * TEMPERATURE)]


def clip(x: jax.Array, y: jax.Array) -> jax.Array:
    return jl.clip_contrastive(x, y, temperature=TEMPERATURE)


def info_nce_both_ways(x: jax.Array, y: jax.Array) -> jax.Array:
    return jl.info_nce(x, y, temperature=TEMPERATURE) / 2 + jl.info_nce(y, x, temperature=TEMPERATURE) / 2


def textbook_clip(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = (v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    s = x @ y.T / TEMPERATURE
    return jnp.mean((jax.nn.logsumexp(s, 0) + jax.nn.logsumexp(s, 1)) / 2 - jnp.diagonal(s))


def three_products(x: jax.Array, y: jax.Array) -> Any:
    s = jax.lax.optimization_barrier(x @ y.T)
    return s[0, 0], s @ y, s.T @ x


def views(z: jax.Array, labels: jax.Array) -> jax.Array:
    return jl.nt_xent(z, labels, temperature=TEMPERATURE)


def of_optax(z: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.losses.ntxent(z, labels, temperature=TEMPERATURE)


def textbook_views(z: jax.Array, labels: jax.Array) -> jax.Array:
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    rows = jnp.arange(len(z))
    s = jnp.where(rows[:, None] == rows, -jnp.inf, z @ z.T / TEMPERATURE)
    positive = (labels[:, None] == labels) & (rows[:, None] != rows)
    return jnp.mean(jax.nn.logsumexp(s, 1) - jnp.sum(jnp.where(positive, s, 0), 1))


def of_torch(z: Any, labels: Any) -> Any:
    import torch

    z = torch.nn.functional.normalize(z)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    mate = ((labels[:, None] == labels) & ~itself).int().argmax(1)
    return torch.nn.functional.cross_entropy((z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf), mate)


def two_products(z: jax.Array, labels: jax.Array) -> Any:
    s = jax.lax.optimization_barrier(z @ z.T)
    return s[0, 0], s @ z


CASES = [
    Case(
        name="clip_contrastive",
        sizes=((1024, 512), (4096, 512), (8192, 512)),
        tiny=(32, 8),
        inputs=two_kinds,
        truth=truth_of_clip,
        modes=(GRADIENT,),
        baseline="textbook",
        variants={
            "jaxloss": with_jax.loss(clip, role="ours", wrt=BOTH),
            "jaxloss, info_nce both ways": with_jax.loss(info_nce_both_ways, role="extra", wrt=BOTH),
            "textbook": with_jax.loss(textbook_clip, wrt=BOTH),
            "limit": with_jax.limit(gradient=three_products),
        },
        limit="the three matrix products: similarities, and the gradients in both inputs",
    ),
    Case(
        name="nt_xent",
        sizes=((256, 256), (512, 256), (1024, 256)),
        tiny=(32, 8),
        inputs=two_views,
        truth=truth_of_views,
        modes=(GRADIENT,),
        variants={
            "jaxloss": with_jax.loss(views, role="ours"),
            "optax": with_jax.loss(of_optax, needs=("optax",)),
            "textbook": with_jax.loss(textbook_views),
            "torch": with_torch.loss(of_torch),
            "limit": with_jax.limit(gradient=two_products),
        },
        limit="the two matrix products: similarities, and the gradient",
    ),
]
