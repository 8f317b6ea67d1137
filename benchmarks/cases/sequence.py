"""Linear chains and soft dynamic time warping, beside the plain recursions in log space that jax differentiates."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import Case, Inputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "Sequences: linear-chain CRF and soft dynamic time warping, mean over the batch"


def log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


def chains(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch, steps, states = size
    return {
        "emissions": rng.standard_normal(size, np.float32),
        "labels": rng.integers(0, states, (batch, steps), np.int32),
        "transitions": rng.standard_normal((states, states), np.float32),
    }


def forward_backward(inputs: Inputs) -> Sequence[np.ndarray]:
    e, a = (np.asarray(inputs[name], np.float64) for name in ("emissions", "transitions"))
    labels = np.asarray(inputs["labels"])
    batch, steps, _ = e.shape
    alpha, beta = e.copy(), np.zeros_like(e)
    for t in range(1, steps):
        alpha[:, t] += log_sum(alpha[:, t - 1, :, None] + a, 1)
    for t in reversed(range(steps - 1)):
        beta[:, t] = log_sum(a + (e + beta)[:, t + 1, None, :], 2)
    log_z = log_sum(alpha[:, -1], 1)
    rows, time = np.arange(batch)[:, None], np.arange(steps)
    score = e[rows, time, labels].sum(1) + a[labels[:, :-1], labels[:, 1:]].sum(1)
    marginals = np.exp(alpha + beta - log_z[:, None, None])
    marginals[rows, time, labels] -= 1
    pairs = np.zeros_like(a)
    for t in range(1, steps):
        later = (e + beta)[:, t, None, :] - log_z[:, None, None]
        pairs += np.exp(alpha[:, t - 1, :, None] + a + later).sum(0)
    np.subtract.at(pairs, (labels[:, :-1], labels[:, 1:]), 1)
    return [np.mean(log_z - score), marginals / batch, pairs / batch]


def log_space_scan(e: jax.Array, labels: jax.Array, a: jax.Array) -> jax.Array:
    def step(alpha: jax.Array, emission: jax.Array) -> tuple[jax.Array, None]:
        return jax.nn.logsumexp(alpha[:, :, None] + a, axis=1) + emission, None

    alpha, _ = jax.lax.scan(step, e[:, 0], jnp.swapaxes(e[:, 1:], 0, 1))
    own = jnp.take_along_axis(e, labels[..., None], axis=2)[..., 0].sum(1)
    return (jax.nn.logsumexp(alpha, axis=1) - own - a[labels[:, :-1], labels[:, 1:]].sum(1)).mean()


def one_recursion(e: jax.Array, labels: jax.Array, a: jax.Array) -> jax.Array:
    matrix = jnp.exp(a)

    def step(alpha: jax.Array, potential: jax.Array) -> tuple[jax.Array, None]:
        product = (alpha @ matrix) * potential
        return product / product.sum(axis=1, keepdims=True), None

    potentials = jnp.swapaxes(jnp.exp(e), 0, 1)
    return jax.lax.scan(step, potentials[0], potentials[1:])[0]


def series(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch, steps = size
    walks = np.cumsum(rng.standard_normal((2, batch, steps, 1), np.float32), axis=2)
    return {"predictions": walks[0], "targets": walks[1]}


def alignment_recursion(inputs: Inputs) -> Sequence[np.ndarray]:
    """Cuturi and Blondel's algorithms 1 and 2, for the whole batch at once."""
    x, y = (np.asarray(inputs[name], np.float64) for name in ("predictions", "targets"))
    batch, n, _ = x.shape
    m = y.shape[1]
    d = np.zeros((n + 2, m + 2, batch))
    d[1:-1, 1:-1] = np.moveaxis(((x[:, :, None] - y[:, None]) ** 2).sum(-1), 0, -1)
    r = np.full(d.shape, np.inf)
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            r[i, j] = d[i, j] - log_sum(-np.stack([r[i - 1, j - 1], r[i - 1, j], r[i, j - 1]]), 0)
    value = r[n, m].copy()
    r[n + 1, :], r[:, m + 1], r[n + 1, m + 1] = -np.inf, -np.inf, value
    share = np.zeros_like(d)
    share[n + 1, m + 1] = 1
    for j in reversed(range(1, m + 1)):
        for i in reversed(range(1, n + 1)):
            for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
                share[i, j] += share[a, b] * np.exp(r[a, b] - r[i, j] - d[a, b])
    share = np.moveaxis(share[1:-1, 1:-1], -1, 0)
    return [value.mean(), 2 * (share.sum(2)[..., None] * x - share @ y) / batch]


def log_space_wavefront(x: jax.Array, y: jax.Array) -> jax.Array:
    costs = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    batch, n, m = costs.shape
    outside = 1e10
    long = jnp.pad(costs, ((0, 0), (0, 0), (0, n)), constant_values=outside).reshape(batch, -1)
    diagonals = jnp.moveaxis(long[:, : n * (m + n - 1)].reshape(batch, n, m + n - 1), 2, 0)

    def above(r: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.full_like(r[:, :1], outside), r[:, :-1]], axis=1)

    def step(carry: tuple[jax.Array, jax.Array], cost: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        near, far = carry
        before = jnp.stack([near, above(near), above(far)], axis=-1)
        here = cost - jax.nn.logsumexp(-before, axis=-1)
        return (here, near), here[:, n - 1]

    nothing = jnp.full((batch, n), outside)
    first = nothing.at[:, 0].set(diagonals[0][:, 0])
    return jax.lax.scan(step, (first, nothing), diagonals[1:])[1][-1].mean()


CASES = [
    Case(
        name="linear_chain_crf",
        sizes=((32, 100, 20), (32, 200, 64), (256, 50, 9)),
        tiny=(3, 7, 4),
        inputs=chains,
        truth=forward_backward,
        variants={
            "jaxloss": with_jax.loss(lambda e, y, a: jl.linear_chain_crf(e, y, a), role="ours", wrt=(0, 2)),
            "log-space scan": with_jax.loss(log_space_scan, wrt=(0, 2)),
            "limit": with_jax.limit(
                value=one_recursion,
                gradient=lambda e, y, a: (one_recursion(e, y, a), one_recursion(e[:, ::-1], y, a.T)),
            ),
        },
        limit="one recursion of matrix products in the linear domain, unguarded; with gradient: one each way",
        baseline="log-space scan",
        bound=1.8,  # of the value alone where there are few states
    ),
    Case(
        name="soft_dtw",
        sizes=((8, 128), (8, 256), (8, 512)),
        tiny=(2, 6),
        entries=lambda size: size[0] * size[1] ** 2,
        inputs=series,
        truth=alignment_recursion,
        variants={
            "jaxloss": with_jax.loss(lambda x, y: jl.soft_dtw(x, y), role="ours"),
            "log-space wavefront": with_jax.loss(log_space_wavefront),
            "limit": with_jax.limit(
                value=lambda x, y: jnp.square(x[:, :, None, 0] - y[:, None, :, 0]).sum(),
                gradient=lambda x, y: jnp.exp(-jnp.square(x[:, :, None, 0] - y[:, None, :, 0])),
            ),
        },
        limit="value: the costs alone; with gradient: one exponential a cell",
        baseline="log-space wavefront",
        bound=2.0,
    ),
]
