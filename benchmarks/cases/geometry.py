"""Sets of points, and the pixels of regions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Inputs, Outputs, Size
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Chamfer distance of two sets of n points, and the Lovasz hinge of images, mean"


def two_sets(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(size, np.float32) for name in ("x", "y")}


def nearest(inputs: Inputs) -> Outputs:
    x, y = (np.asarray(a).astype(np.float64) for a in inputs.values())
    of_y, best = np.zeros(len(y), int), np.full(len(y), np.inf)
    total, gradient = 0.0, np.zeros_like(x)
    step = max(1, 2**22 // y.size)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        d = ((part[:, None] - y) ** 2).sum(axis=-1)
        total += d.min(axis=1).sum() / len(x)
        gradient[start : start + step] += 2 * (part - y[d.argmin(axis=1)]) / len(x)
        closer = d.min(axis=0) < best
        of_y, best = np.where(closer, start + d.argmin(axis=0), of_y), np.minimum(best, d.min(axis=0))
    np.add.at(gradient, of_y, 2 * (x[of_y] - y) / len(y))
    return [np.asarray(total + best.mean()), gradient]


def matrix(x: jax.Array, y: jax.Array) -> jax.Array:
    d = jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)
    return d.min(axis=1).mean() + d.min(axis=0).mean()


def matrix_in_torch(x: Any, y: Any) -> Any:
    d = (x[:, None] - y[None]).square().sum(-1)
    return d.min(1).values.mean() + d.min(0).values.mean()


def images(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All errors of an image are different, none 0: among equal ones every order is right, and has its own slopes."""
    pixels = math.prod(size[1:])
    steps = 2 ** (pixels - 1).bit_length() / 4  # a power of two: 1 - z s is exact
    errors = (np.stack([rng.permutation(pixels) for _ in range(size[0])]).reshape(size) + 0.5) / steps - 2
    targets = (rng.random(size) < 0.2).astype(np.float32)
    return {"logits": ((1 - errors) * (2 * targets - 1)).astype(np.float32), "targets": targets}


def hinge(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, slopes = np.empty(len(logits)), np.empty(logits.shape)
    for i, (z, t) in enumerate(zip(logits, targets, strict=True)):
        sign = 2 * t.ravel() - 1
        errors = 1 - z.ravel() * sign
        order = np.argsort(-errors, kind="stable")
        truth = t.ravel()[order]
        jaccard = 1 - (truth.sum() - np.cumsum(truth)) / (truth.sum() + np.cumsum(1 - truth))
        steps = np.empty_like(jaccard)
        steps[order] = np.diff(jaccard, prepend=0)
        values[i] = (np.maximum(errors, 0) * steps).sum()
        slopes[i] = np.where(errors > 0, -sign * steps, 0).reshape(z.shape)
    return values, slopes


def algorithm_one(z: jax.Array, t: jax.Array) -> jax.Array:
    """As Berman et al. wrote it, image by image."""

    def of_one(z: jax.Array, t: jax.Array) -> jax.Array:
        z, t = z.ravel(), t.ravel()
        errors = jnp.maximum(1 - z * (2 * t - 1), 0)
        order = jnp.argsort(-jax.lax.stop_gradient(errors))
        truth = t[order]
        jaccard = 1 - (truth.sum() - jnp.cumsum(truth)) / (truth.sum() + jnp.cumsum(1 - truth))
        return jnp.dot(errors[order], jax.lax.stop_gradient(jnp.diff(jaccard, prepend=0.0)))

    return jax.vmap(of_one)(z, t).mean()


def algorithm_one_in_torch(z: Any, t: Any) -> Any:
    z, t = z.flatten(1), t.flatten(1)
    errors, order = (1 - z * (2 * t - 1)).clamp(min=0).sort(dim=1, descending=True)
    truth = t.gather(1, order)
    total = truth.sum(1, keepdim=True)
    jaccard = 1 - (total - truth.cumsum(1)) / (total + (1 - truth).cumsum(1))
    return (errors * jaccard.diff(dim=1, prepend=0 * total)).sum(1).mean()


CASES = [
    Case(
        name="chamfer",
        sizes=((512, 3), (4096, 3), (1024, 32)),
        tiny=(40, 3),
        inputs=two_sets,
        truth=nearest,
        baseline="textbook",
        variants={
            "jaxloss": with_jax.loss(lambda x, y: jl.chamfer(x, y), role="ours"),
            "textbook": with_jax.loss(matrix),
            "torch": with_torch.loss(matrix_in_torch),
            "limit": with_jax.limit(value=lambda x, y: (x.sum(), y.sum()), gradient=lambda x, y: x + y),
        },
        limit="read both sets",
        entries=lambda size: size[0] ** 2 * size[1],
    ),
    Case(
        name="lovasz_hinge",
        sizes=((8, 128, 128), (2, 512, 512), (1, 1024, 1024)),
        tiny=(2, 9, 11),
        inputs=images,
        truth=mean_over_rows(hinge),
        baseline="textbook",
        variants={
            "jaxloss": with_jax.loss(lambda z, t: jl.lovasz_hinge(z, t), role="ours"),
            # Differences of numbers near 1: at 10^6 pixels some of their slopes have no digit left.
            "textbook": with_jax.loss(algorithm_one, tolerance={"float32": 0.5}),
            "torch": with_torch.loss(algorithm_one_in_torch, tolerance={"float32": 0.5}),
            "limit": with_jax.limit(
                value=lambda z, t: jnp.sort(z.reshape(len(z), -1)),
                gradient=lambda z, t: jnp.sort(z.reshape(len(z), -1)),
            ),
        },
        limit="sort the pixels of each image once",
    ),
]
