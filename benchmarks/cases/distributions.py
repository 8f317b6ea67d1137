"""Distributions given by samples: their score against a target, and the cost of moving one to the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Inputs, Outputs, Size
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Losses of samples: ensembles against targets, and two samples on a line, mean"


def different(rows: int, count: int, whole: int, rng: np.random.Generator) -> np.ndarray:
    """Different whole numbers in each row: among equal ones every order is right, and has slopes of its own."""
    return np.stack([rng.permutation(whole)[:count] for _ in range(rows)])


def forecasts(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, members = size
    whole = 4 * members
    ensemble, targets = different(rows, members, whole, rng), rng.integers(0, whole, rows) + 0.5
    return {"ensemble": (ensemble / whole).astype(np.float32), "targets": (targets / whole).astype(np.float32)}


def score(ensemble: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the integral of the squared difference of distribution functions, and its slope by the pairs' signs."""
    members = ensemble.shape[1]
    values, slopes = np.empty(len(targets)), np.empty(ensemble.shape)
    for i, (x, y) in enumerate(zip(ensemble, targets, strict=True)):
        points = np.sort(np.append(x, y))
        below = np.searchsorted(np.sort(x), points[:-1], side="right") / members
        values[i] = (np.diff(points) * (below - (points[:-1] >= y)) ** 2).sum()
        order = np.sign(x[:, None] - x).sum(axis=1)
        slopes[i] = np.sign(x - y) / members - order / members**2
    return values, slopes


def every_pair(x: jax.Array, y: jax.Array) -> jax.Array:
    pairs = jnp.abs(x[:, :, None] - x[:, None, :]).mean(axis=(1, 2))
    return (jnp.abs(x - y[:, None]).mean(axis=1) - pairs / 2).mean()


def pairs_in_torch(x: Any, y: Any) -> Any:
    pairs = (x[:, :, None] - x[:, None, :]).abs().mean((1, 2))
    return ((x - y[:, None]).abs().mean(1) - pairs / 2).mean()


def samples(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, n, m = size
    whole = 4 * max(n, m)
    x, y = (different(rows, count, whole, rng) for count in (n, m))
    return {"x": (2 * x / whole).astype(np.float32), "y": ((2 * y + 1) / whole + 0.25).astype(np.float32)}


def moved(inputs: Inputs) -> Outputs:
    """By the quantiles of both on the grid of their breaks, in integers."""
    x, y = (np.asarray(a).astype(np.float64) for a in inputs.values())
    (rows, n), m = x.shape, y.shape[1]
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.append(0, ends[:-1])
    mass = (ends - starts) / (n * m * rows)
    total, gradient = 0.0, np.zeros_like(x)
    for a, b, slope in zip(x, y, gradient, strict=True):
        order = np.argsort(a)
        d = a[order][starts // m] - np.sort(b)[starts // n]
        total += (mass * abs(d)).sum()
        np.add.at(slope, order[starts // m], mass * np.sign(d))
    return [np.asarray(total), gradient]


def distribution_functions(x: jax.Array, y: jax.Array) -> jax.Array:
    """As scipy.stats.wasserstein_distance: the area between both distribution functions."""

    def of_one(x: jax.Array, y: jax.Array) -> jax.Array:
        u, v = jnp.sort(x), jnp.sort(y)
        both = jnp.sort(jnp.concatenate([u, v]))
        below = [jnp.searchsorted(s, both[:-1], side="right") / len(s) for s in (u, v)]
        return jnp.sum(jnp.abs(below[0] - below[1]) * jnp.diff(both))

    return jax.vmap(of_one)(x, y).mean()


def sorting(x: jax.Array, y: jax.Array) -> Any:
    return jnp.sort(x), jnp.sort(y)


CASES = [
    Case(
        name="crps_ensemble",
        sizes=((2000, 50), (200, 500), (20, 2000)),
        tiny=(7, 150),
        inputs=forecasts,
        truth=mean_over_rows(score),
        baseline="textbook",
        variants={
            "jaxloss": with_jax.loss(lambda x, y: jl.crps_ensemble(x, y), role="ours"),
            "textbook": with_jax.loss(every_pair),
            "torch": with_torch.loss(pairs_in_torch),
            "limit": with_jax.limit(value=lambda x, y: jnp.sort(x), gradient=lambda x, y: jnp.sort(x)),
        },
        limit="sort the members once",
    ),
    Case(
        name="wasserstein_1d",
        sizes=((64, 1000, 1000), (64, 1000, 1500), (4, 30000, 20000)),
        tiny=(3, 9, 12),
        inputs=samples,
        truth=moved,
        baseline="textbook",
        variants={
            "jaxloss": with_jax.loss(lambda x, y: jl.wasserstein_1d(x, y), role="ours"),
            # The slopes are differences of frequencies near 1: at 30000 numbers they have three digits.
            "textbook": with_jax.loss(distribution_functions, tolerance={"float32": 1e-2}),
            "limit": with_jax.limit(value=sorting, gradient=sorting),
        },
        limit="sort both samples once",
        entries=lambda size: size[0] * (size[1] + size[2]),
    ),
]
