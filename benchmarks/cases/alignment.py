"""CTC: raw logits and labels without lengths, mean over the sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Inputs, Outputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "CTC on logits [B, T, V] and labels [B, S], blank 0, mean over the sequences"


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    batch, frames, labels, classes = size
    return {
        "logits": 2 * rng.standard_normal((batch, frames, classes), np.float32),
        "labels": rng.integers(1, classes, (batch, labels), np.int32),
    }


def truth(inputs: Inputs) -> Outputs:
    """The recursions of Graves et al. (2006) in log space and float64, all sequences at once."""
    z, labels = inputs["logits"].astype(np.float64), inputs["labels"]
    (batch, frames, _), states = z.shape, 2 * labels.shape[1] + 1
    log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    of_state = np.zeros((batch, states), int)
    of_state[:, 1::2] = labels
    scores = np.take_along_axis(log_p, of_state[:, None], axis=-1)
    skip = np.zeros((batch, states), bool)
    skip[:, 3::2] = labels[:, 1:] != labels[:, :-1]
    never = np.full((batch, 2), -np.inf)

    def after(x: np.ndarray, may_skip: np.ndarray) -> np.ndarray:
        one = np.concatenate([never[:, :1], x[:, :-1]], axis=1)
        two = np.concatenate([never, x[:, :-2]], axis=1)
        return np.logaddexp(np.logaddexp(x, one), np.where(may_skip, two, -np.inf))

    first = np.where(np.arange(states) == 0, 0, np.full((batch, 1), -np.inf))
    forward, backward = np.empty((2, frames, batch, states))
    now = first
    for t in range(frames):
        now = forward[t] = after(now, skip) + scores[:, t]
    now, turned = first, np.concatenate([np.zeros((batch, 2), bool), skip[:, :1:-1]], axis=1)
    for t in reversed(range(frames)):
        before = after(now, turned)
        backward[t] = before[:, ::-1]
        now = before + scores[:, t, ::-1]
    total = np.logaddexp.reduce(forward[0] + backward[0], axis=-1)
    gradient = np.exp(log_p)
    shares = np.exp(forward + backward - total[:, None])
    rows, times = np.arange(batch)[:, None], np.arange(frames)[None]
    for s in range(states):
        gradient[rows, times, of_state[:, s, None]] -= shares[:, :, s].T
    return [np.asarray(-total.mean()), gradient / batch]


def of_optax(z: jax.Array, y: jax.Array) -> jax.Array:
    return optax.ctc_loss(z, jnp.zeros(z.shape[:2]), y, jnp.zeros(y.shape)).mean()


def of_torch(z: Any, y: Any) -> Any:
    import torch

    (batch, frames, _), labels = z.shape, y.shape[1]
    log_p = torch.log_softmax(z, -1).transpose(0, 1)
    lengths = torch.full((batch,), frames), torch.full((batch,), labels)
    return torch.nn.functional.ctc_loss(log_p, y, *lengths, reduction="none").mean()


# The peers' gradients are off by up to 4e-2 at T = 2000: in float32, log space has no more digits.
LOOSE = {"float32": 0.3}

CASES = [
    Case(
        name="ctc",
        sizes=((16, 200, 30, 32), (32, 800, 100, 64), (8, 2000, 200, 1000)),
        tiny=(3, 20, 4, 6),
        entries=lambda size: size[0] * size[1] * (size[2] + size[3]),
        inputs=inputs,
        truth=truth,
        tolerance={"float32": 1e-5},
        variants={
            "jaxloss": with_jax.loss(lambda z, y: jl.ctc(z, y), role="ours"),
            "optax": with_jax.loss(of_optax, needs=("optax",), tolerance=LOOSE),
            "torch": with_torch.loss(of_torch, tolerance=LOOSE),
            "limit": with_jax.limit(value=lambda z, y: z.sum(), gradient=lambda z, y: z * 2),
        },
        limit="value: read the logits; with gradient: read them once, write as many",
    )
]
