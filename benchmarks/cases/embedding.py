"""Triplets mined from the labels of a batch: eight rows a class, and so 7 (N - 8) triplets an anchor."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import GRADIENT, Case, Inputs, Outputs, Size, Variant

__all__ = ["CASES", "TITLE"]

TITLE = "Mined triplets, N rows of D features, eight a class, mean over the anchors"
ROWS_A_CLASS = 8
MARGIN = 0.5

Mining = Literal["all", "semi_hard"]


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, features = size
    labels = np.arange(rows, dtype=np.int32) // ROWS_A_CLASS
    centres = rng.standard_normal((rows // ROWS_A_CLASS, features), np.float32)
    x = 0.5 * centres[labels] + rng.standard_normal(size, np.float32)
    return {"embeddings": (x / math.sqrt(features)).astype(np.float32), "labels": labels}


def anchor_by_anchor(mining: Mining, soft: bool) -> Callable[[Inputs], Outputs]:
    """Of each anchor all triplets, or for each positive the nearest negative beyond, else the farthest."""

    def truth(inputs: Inputs) -> Outputs:
        x, labels = inputs["embeddings"].astype(np.float64), inputs["labels"]
        total, pull = 0.0, np.zeros((len(x), len(x)))
        for a in range(len(x)):
            d = np.sqrt(((x - x[a]) ** 2).sum(1))
            near = np.flatnonzero((labels == labels[a]) & (np.arange(len(x)) != a))
            far = np.flatnonzero(labels != labels[a])
            pairs = np.ones((len(near), len(far)), bool)
            if mining == "semi_hard":
                beyond = np.where(d[far] > d[near, None], d[far], np.inf)
                chosen = np.where(np.isinf(beyond.min(1)), d[far].argmax(), beyond.argmin(1))
                pairs = np.arange(len(far)) == chosen[:, None]
            gap = d[near, None] - d[far]
            value = np.logaddexp(0, gap) if soft else np.maximum(gap + MARGIN, 0)
            slope = (1 / (1 + np.exp(-gap)) if soft else value > 0) * pairs
            count = max((pairs & (value > 0)).sum(), 1) * len(x)
            total += (value * pairs).sum() / count
            pull[a, near] += slope.sum(1) / count
            pull[a, far] -= slope.sum(0) / count
            pull[a] /= np.where(d > 0, d, np.inf)
        pull += pull.T
        return [np.asarray(total), pull.sum(1)[:, None] * x - pull @ x]

    return truth


def ours(mining: Mining, soft: bool) -> Callable[..., Any]:
    return lambda x, labels: jl.mined_triplet(x, labels, mining=mining, margin=None if soft else MARGIN)


def cube(mining: Mining, soft: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The textbook: a mask and a value for every triplet, [N, N, N]."""

    def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
        square = jnp.sum(jnp.square(x[:, None] - x[None]), -1)
        d = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        same = labels[:, None] == labels
        near = same & ~jnp.eye(len(x), dtype=bool)
        triplet = near[:, :, None] & ~same[:, None, :]
        if mining == "semi_hard":
            beyond = jnp.where(~same[:, None, :] & (d[:, None, :] > d[:, :, None]), d[:, None, :], jnp.inf)
            farthest = jnp.argmax(jnp.where(same, -jnp.inf, d), axis=1)[:, None]
            chosen = jnp.where(jnp.isinf(jnp.min(beyond, axis=2)), farthest, jnp.argmin(beyond, axis=2))
            triplet &= jnp.arange(len(x)) == chosen[:, :, None]
        gap = d[:, :, None] - d[:, None, :]
        value = jnp.where(triplet, jax.nn.softplus(gap) if soft else jnp.maximum(gap + MARGIN, 0), 0)
        return jnp.mean(jnp.sum(value, (1, 2)) / jnp.maximum(jnp.sum(value > 0, (1, 2)), 1))

    return loss


def distances_and_slopes(x: jax.Array, labels: jax.Array) -> Any:
    product = jax.lax.optimization_barrier(x @ x.T)
    return product[0, 0], product @ x


def cases(name: str, mining: Mining, *, soft: bool) -> list[Case]:
    # Of negatives whose distances agree to the last digits float32 may take another: then two rows' slopes differ.
    tolerance = {"float32": 0.1 if mining == "semi_hard" else 1e-4}
    declared = functools.partial(
        Case, inputs=inputs, truth=anchor_by_anchor(mining, soft), modes=(GRADIENT,), tolerance=tolerance
    )
    jaxloss = with_jax.loss(ours(mining, soft), role="ours")
    limit: Variant = with_jax.limit(gradient=distances_and_slopes)
    words = "two matrix products: distances, and the gradient"
    return [
        declared(
            name=name,
            sizes=((128, 128), (512, 128)),
            tiny=(32, 8),
            variants={"jaxloss": jaxloss, "textbook": with_jax.loss(cube(mining, soft)), "limit": limit},
            baseline="textbook",
            limit=words,
        ),
        declared(  # the cube would take 32 GB
            name=f"{name}_long",
            sizes=((2048, 128),),
            tiny=(64, 8),
            variants={"jaxloss": jaxloss, "limit": limit},
            baseline="limit",
            limit=words,
            bound=500.0,
        ),
    ]


CASES = [
    *cases("mined_triplet", "all", soft=False),
    *cases("mined_triplet_soft", "all", soft=True),
    *cases("mined_triplet_semi_hard", "semi_hard", soft=False),
]
