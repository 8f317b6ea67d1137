"""Sparse softmax losses: the projection of many scores onto few probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Size, Variant
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Sparse softmax losses on logits, integer labels, mean"


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, classes = size
    return {
        "logits": 2 * rng.standard_normal(size, np.float32),
        "labels": rng.integers(0, classes, rows, np.int32),
    }


def by_bisection(alpha: float) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Value and gradient in float64, the threshold halved in until nothing moves."""

    def rows(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at_label = np.arange(len(labels)), labels
        a = (alpha - 1) * logits
        high = a.max(axis=-1, keepdims=True)
        low = high - 1
        for _ in range(55):
            middle = (low + high) / 2
            enough = (np.maximum(a - middle, 0) ** (1 / (alpha - 1))).sum(axis=-1, keepdims=True) >= 1
            low, high = np.where(enough, middle, low), np.where(enough, high, middle)
        p = np.maximum(a - low, 0) ** (1 / (alpha - 1))
        entropy = (1 - (p**alpha).sum(axis=-1)) / (alpha * (alpha - 1))
        value = (p * logits).sum(axis=-1) - logits[at_label] + entropy
        p[at_label] -= 1
        return value, p

    return rows


def of_optax(z: jax.Array, y: jax.Array) -> jax.Array:
    return optax.losses.multiclass_sparsemax_loss(z, y).mean()


def loss_of(z: jax.Array, p: jax.Array, y: jax.Array, alpha: float) -> jax.Array:
    """The Fenchel-Young loss, with p held: its gradient is p - onehot."""
    p = jax.lax.stop_gradient(p)
    entropy = (1 - jnp.sum(p**alpha, axis=-1)) / (alpha * (alpha - 1))
    own = jnp.take_along_axis(z, y[:, None], axis=-1)[:, 0]
    return jnp.mean(jnp.sum(p * z, axis=-1) - own + entropy)


def sorted_sparsemax(z: jax.Array, y: jax.Array) -> jax.Array:
    falling = jnp.sort(z, axis=-1, descending=True)
    k = jnp.arange(1, z.shape[-1] + 1)
    above = jnp.cumsum(falling, axis=-1) - 1
    number = jnp.sum(k * falling > above, axis=-1, keepdims=True)
    tau = jnp.take_along_axis(above, number - 1, axis=-1) / number
    return loss_of(z, jnp.maximum(z - tau, 0), y, 2.0)


def sorted_entmax(z: jax.Array, y: jax.Array) -> jax.Array:
    """The closed form for alpha = 1.5 (Peters, Niculae and Martins 2019, algorithm 2)."""
    a = z / 2 - jnp.max(z, axis=-1, keepdims=True) / 2
    falling = jnp.sort(a, axis=-1, descending=True)
    k = jnp.arange(1, z.shape[-1] + 1)
    mean = jnp.cumsum(falling, axis=-1) / k
    spread = k * (jnp.cumsum(falling**2, axis=-1) / k - mean**2)
    tau = mean - jnp.sqrt(jnp.maximum((1 - spread) / k, 0))
    number = jnp.sum(tau <= falling, axis=-1, keepdims=True)
    p = jnp.square(jnp.maximum(a - jnp.take_along_axis(tau, number - 1, axis=-1), 0))
    return loss_of(z, p, y, 1.5)


def torch_sparsemax(z: Any, y: Any) -> Any:
    import torch

    falling = z.detach().sort(dim=-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, device=z.device)
    above = falling.cumsum(-1) - 1
    number = (k * falling > above).sum(-1, keepdim=True)
    p = (z.detach() - above.gather(-1, number - 1) / number).clamp(min=0)
    return ((p * z).sum(-1) - z.gather(-1, y[:, None])[:, 0] + (1 - (p * p).sum(-1)) / 2).mean()


def case(name: str, alpha: float, ours: Callable[..., Any], peers: dict[str, Variant], baseline: str) -> Case:
    return Case(
        name=name,
        sizes=((256, 1000), (4096, 1000), (64, 32000)),
        tiny=(8, 50),
        inputs=inputs,
        truth=mean_over_rows(by_bisection(alpha)),
        baseline=baseline,
        variants={
            "jaxloss": with_jax.loss(ours, role="ours"),
            **peers,
            "limit": with_jax.limit(value=lambda z, y: z.sum(), gradient=lambda z, y: z * 2),
        },
        limit="value: sum the logits; with gradient: read the logits once, write as many",
    )


CASES = [
    case(
        "sparsemax",
        2.0,
        lambda z, y: jl.sparsemax(z, y),
        {
            "optax": with_jax.loss(of_optax, needs=("optax",)),
            "sorted": with_jax.loss(sorted_sparsemax),
            "sorted in torch": with_torch.loss(torch_sparsemax),
        },
        "optax",
    ),
    case(
        "entmax",
        1.5,
        lambda z, y: jl.entmax(z, y),
        {"sorted": with_jax.loss(sorted_entmax, tolerance={"float32": 1e-3})},  # its variance is a difference
        "sorted",
    ),
]
