"""The transducer's loss on logits that are there, and with a joiner that makes them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import Case, Inputs, Outputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "Transducer (RNN-T), mean over sequences"
WIDTH = 128  # of what the joiner gets


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch, frames, symbols, classes = size
    return {
        "logits": 2 * rng.standard_normal((batch, frames, symbols + 1, classes), np.float32),
        "labels": rng.integers(1, classes, (batch, symbols), np.int32),
    }


def one(z: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """A sequence's loss and its gradient by the logits, frame by frame, in float64."""
    frames, nodes, _ = z.shape
    z = z.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    z -= np.log(np.exp(z).sum(-1, keepdims=True))
    stay, move = z[..., 0], np.full((frames, nodes), -np.inf)
    move[:, :-1] = z[:, np.arange(nodes - 1), labels]
    alpha, beta = np.full((frames + 1, nodes), -np.inf), np.full((frames + 1, nodes + 1), -np.inf)
    alpha[0, 0] = beta[frames, nodes - 1] = 0
    for t in range(frames):
        # Within a frame, a sum over where the first of its labels came in.
        along = np.concatenate([[0], np.cumsum(move[t, :-1])])
        alpha[t] = along + np.logaddexp.accumulate(alpha[t] - along)
        alpha[t + 1] = alpha[t] + stay[t]
    for t in reversed(range(frames)):
        along = np.concatenate([np.cumsum(move[t, -2::-1])[::-1], [0]])
        down = beta[t + 1, :-1] + stay[t]
        beta[t, :-1] = along + np.logaddexp.accumulate((down - along)[::-1])[::-1]
    total = beta[0, 0]
    of_blank = np.exp(alpha[:-1] + stay + beta[1:, :-1] - total)
    of_label = np.exp(alpha[:-1] + move + beta[:-1, 1:] - total)
    gradient = np.exp(z) * (of_blank + of_label)[..., None]
    gradient[..., 0] -= of_blank
    gradient[:, np.arange(nodes - 1), labels] -= of_label[:, :-1]
    return -total, gradient


def truth(inputs: Inputs) -> Outputs:
    logits, labels = inputs["logits"], inputs["labels"]
    gradient, total = np.empty(logits.shape, np.float32), 0.0
    for i in range(len(logits)):
        value, slope = one(logits[i], labels[i])
        total += value / len(logits)
        gradient[i] = slope / len(logits)
    return [np.asarray(total), gradient]


def in_log_space(z: jax.Array, labels: jax.Array) -> jax.Array:
    """What the paper says, differentiated by jax: log-softmax, and a logaddexp over each diagonal."""
    log_p = jax.nn.log_softmax(z.astype(jnp.float32))
    batch, frames, nodes, _ = z.shape
    chosen = jnp.take_along_axis(log_p[:, :, :-1], labels[:, None, :, None], -1)[..., 0]
    edges = log_p[..., 0], jnp.pad(chosen, ((0, 0), (0, 0), (0, 1)), constant_values=-1e30)

    def skewed(x: jax.Array) -> jax.Array:
        rows = jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, nodes)), constant_values=-1e30)
        flat = rows.reshape(batch, -1)[:, : nodes * (frames + nodes - 1)]
        return jnp.moveaxis(flat.reshape(batch, nodes, -1), -1, 0)

    def step(alpha: jax.Array, edge: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        moved = jnp.pad((alpha + edge[1])[:, :-1], ((0, 0), (1, 0)), constant_values=-1e30)
        return jnp.logaddexp(alpha + edge[0], moved), None

    start = jnp.full((batch, nodes), -1e30).at[:, 0].set(0)
    last, _ = jax.lax.scan(step, start, (skewed(edges[0]), skewed(edges[1])))
    return -last[:, -1].mean()


def parts(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch, frames, symbols, classes = size
    return {
        "encoder": rng.standard_normal((batch, frames, WIDTH), np.float32),
        "predictor": rng.standard_normal((batch, symbols + 1, WIDTH), np.float32),
        "kernel": 2 / WIDTH**0.5 * rng.standard_normal((WIDTH, classes), np.float32),
        "labels": rng.integers(1, classes, (batch, symbols), np.int32),
    }


def truth_of_parts(inputs: Inputs) -> Outputs:
    encoder, predictor, kernel = (inputs[name].astype(np.float64) for name in ("encoder", "predictor", "kernel"))
    batch, total = len(encoder), 0.0
    slopes = [np.zeros_like(x) for x in (encoder, predictor, kernel)]
    for i in range(batch):
        hidden = np.tanh(encoder[i, :, None] + predictor[i])
        value, slope = one(hidden @ kernel, inputs["labels"][i])
        total += value / batch
        through = (slope @ kernel.T) * (1 - hidden**2) / batch
        slopes[0][i], slopes[1][i] = through.sum(1), through.sum(0)
        slopes[2] += hidden.reshape(-1, WIDTH).T @ slope.reshape(-1, slope.shape[-1]) / batch
    return [np.asarray(total), *slopes]


def joiner_of(kernel: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda encoder, predictor: jnp.tanh(encoder[..., None, :] + predictor[..., None, :, :]) @ kernel


def tiled(encoder: jax.Array, predictor: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jl.transducer_with_joiner(encoder, predictor, labels, joiner=joiner_of(kernel))


def of_joined(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]:
    """`loss` of all logits at once."""
    return lambda encoder, predictor, kernel, labels: loss(joiner_of(kernel)(encoder, predictor), labels)


def product(encoder: jax.Array, predictor: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.max(joiner_of(kernel)(encoder, predictor))


def three_products(
    encoder: jax.Array, predictor: jax.Array, kernel: jax.Array, labels: jax.Array
) -> tuple[jax.Array, ...]:
    hidden = jnp.tanh(encoder[..., None, :] + predictor[..., None, :, :]).reshape(-1, WIDTH)
    logits = hidden @ kernel
    return hidden.T @ logits, jnp.max(logits @ kernel.T)


AUTODIFF = "log space, jax's gradient"
LOOSE = {"float32": 1e-2, "bfloat16": 2e-2}  # what logarithms near -1e3 leave of a float32 gradient

CASES = [
    Case(
        name="transducer",
        sizes=((2, 100, 20, 128), (4, 200, 40, 256), (4, 400, 60, 512)),
        tiny=(2, 7, 3, 11),
        inputs=inputs,
        truth=truth,
        dtypes=("float32", "bfloat16"),
        baseline=AUTODIFF,
        variants={
            "jaxloss": with_jax.loss(lambda z, y: jl.transducer(z, y), role="ours"),
            AUTODIFF: with_jax.loss(in_log_space, tolerance=LOOSE),
            "limit": with_jax.limit(value=lambda z, y: z.sum(dtype=jnp.float32), gradient=lambda z, y: z * 2),
        },
        limit="value: sum the logits; with gradient: read the logits once, write as many",
    ),
    Case(
        name="transducer_with_joiner",
        sizes=((2, 50, 10, 256), (4, 100, 20, 512), (4, 200, 40, 1024)),
        tiny=(2, 7, 3, 11),
        inputs=parts,
        truth=truth_of_parts,
        baseline=AUTODIFF,
        variants={
            "jaxloss": with_jax.loss(tiled, role="ours", wrt=(0, 1, 2)),
            "jaxloss, all logits at once": with_jax.loss(of_joined(jl.transducer), role="extra", wrt=(0, 1, 2)),
            AUTODIFF: with_jax.loss(of_joined(in_log_space), wrt=(0, 1, 2), tolerance=LOOSE),
            "limit": with_jax.limit(value=product, gradient=three_products),
        },
        limit="the joiner's product; with gradient: its three products",
    ),
]
