"""The other plain losses beside optax, or beside a textbook form where optax has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import Case, Size
from benchmarks.cases.elementwise import ENTRYWISE, ENTRYWISE_IN_WORDS, real_targets
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "The other plain losses, mean, float32"

ENTRIES = ((10**6,), (10**7,))
ROWS = ((10**4, 100), (10**5, 100))

Draw = Callable[[Size, np.random.Generator], dict[str, np.ndarray]]
Rows = Callable[..., tuple[np.ndarray, np.ndarray]]


def signs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"scores": rng.standard_normal(size, np.float32), "signs": np.sign(rng.random(size, np.float32) - 0.5)}


def probabilities(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    p = rng.uniform(0.01, 0.99, size).astype(np.float32)
    return {"probabilities": p, "targets": rng.integers(0, 2, size).astype(np.float32)}


def normalised(x: np.ndarray) -> np.ndarray:
    return x / x.sum(axis=-1, keepdims=True)


def scores_and_shares(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "logits": rng.standard_normal(size, np.float32),
        "targets": normalised(rng.uniform(0.1, 1, size)).astype(np.float32),
    }


def two_distributions(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    p, t = (normalised(rng.uniform(0.1, 1, size)).astype(np.float32) for _ in range(2))
    return {"log_predictions": np.log(p), "targets": t}


def squared_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (p - t) ** 2, 2 * (p - t)


def absolute_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.abs(p - t), np.sign(p - t)


def log_cosh_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.log(np.cosh(p - t)), np.tanh(p - t)


def hinge_rows(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(1 - y * s, 0), np.where(y * s < 1, -y, 0)


def bernoulli_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)), (1 - t) / (1 - p) - t / p


def soft_label_rows(z: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return -(t * log_p).sum(axis=-1), t.sum(axis=-1, keepdims=True) * np.exp(log_p) - t


def kl_rows(log_p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (t * (np.log(t) - log_p)).sum(axis=-1), -t


def cosine_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = np.linalg.norm(p, axis=-1, keepdims=True)
    p, t = p / length, t / np.linalg.norm(t, axis=-1, keepdims=True)
    similar = (p * t).sum(axis=-1, keepdims=True)
    return 1 - similar[..., 0], (similar * p - t) / length


def case(
    name: str, sizes: tuple[Size, ...], draw: Draw, rows: Rows, textbook: Any, in_optax: Any = None, bound: float = 2.5
) -> Case:
    """`textbook` and `in_optax` give each row's loss."""

    def mean_of(loss: Any) -> Any:
        return lambda x, y: loss(x, y).mean()

    peers = {} if in_optax is None else {"optax": with_jax.loss(mean_of(in_optax), needs=("optax",))}
    return Case(
        name=name,
        sizes=sizes,
        tiny=(1000,) if len(sizes[0]) == 1 else (50, 20),
        inputs=draw,
        truth=mean_over_rows(rows),
        variants={
            "jaxloss": with_jax.loss(getattr(jl, name), role="ours"),
            **peers,
            "textbook": with_jax.loss(mean_of(textbook)),
            "limit": ENTRYWISE,
        },
        limit=ENTRYWISE_IN_WORDS,
        baseline="textbook" if in_optax is None else "optax",
        bound=bound,
    )


def textbook_cosine(p: jax.Array, t: jax.Array) -> jax.Array:
    return 1 - (p * t).sum(-1) / (jnp.linalg.norm(p, axis=-1) * jnp.linalg.norm(t, axis=-1))


CASES = [
    case("squared_error", ENTRIES, real_targets, squared_rows, lambda p, t: (p - t) ** 2, optax.squared_error),
    case("absolute_error", ENTRIES, real_targets, absolute_rows, lambda p, t: jnp.abs(p - t)),
    case("log_cosh", ENTRIES, real_targets, log_cosh_rows, lambda p, t: jnp.log(jnp.cosh(p - t)), optax.log_cosh),
    case("hinge", ENTRIES, signs, hinge_rows, lambda s, y: jnp.maximum(1 - s * y, 0), optax.hinge_loss),
    case(
        "binary_cross_entropy",
        ENTRIES,
        probabilities,
        bernoulli_rows,
        lambda p, t: -(t * jnp.log(p) + (1 - t) * jnp.log(1 - p)),
    ),
    case(
        "softmax_cross_entropy_with_soft_labels",
        ROWS,
        scores_and_shares,
        soft_label_rows,
        lambda z, t: -(t * jax.nn.log_softmax(z)).sum(-1),
        optax.softmax_cross_entropy,
        bound=4.0,  # its sums share what XLA's CPU then writes out
    ),
    case(
        "kl_divergence",
        ROWS,
        two_distributions,
        kl_rows,
        lambda log_p, t: (t * (jnp.log(t) - log_p)).sum(-1),
        optax.kl_divergence,
    ),
    case("cosine_distance", ROWS, real_targets, cosine_rows, textbook_cosine, optax.cosine_distance, 3.0),
]
