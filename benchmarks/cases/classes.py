"""Margins of classes, and losses of signs, quantiles and counts, beside whatever peer has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax, with_torch
from benchmarks.case import Case, Size, Variant
from benchmarks.cases.elementwise import ENTRYWISE, ENTRYWISE_IN_WORDS, real_targets
from benchmarks.cases.plain import ENTRIES, ROWS, Draw, Rows, signs
from benchmarks.truth import mean_over_rows

__all__ = ["CASES", "TITLE"]

TITLE = "Margins of classes, signs, quantiles, densities and counts, mean, float32"


def labelled(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "logits": 3 * rng.standard_normal(size, np.float32),
        "labels": rng.integers(0, size[1], size[0], dtype=np.int32),
    }


def with_variance(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {**real_targets(size, rng), "variance": rng.uniform(0.5, 2, size).astype(np.float32)}


def with_counts(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"log_rate": rng.standard_normal(size, np.float32), "counts": rng.poisson(2.0, size).astype(np.float32)}


# --- The truth: each row's loss and its gradient ------------------------------------------------------------------


def one_hot(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.arange(z.shape[1]) == labels[:, None]


def poly_rows(z: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = one_hot(z, labels)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    own = log_p[here]
    factor = 1 + 2 * np.exp(own)  # of d(-log p) = -dp / p
    return -own + 2 * (1 - np.exp(own)), factor[:, None] * (np.exp(log_p) - here)


def hinge_rows(s: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = one_hot(s, labels)
    rival = np.where(here, -np.inf, s).argmax(axis=1)
    short = 1 + s[np.arange(len(s)), rival] - s[here]
    return np.maximum(short, 0), (short > 0)[:, None] * (one_hot(s, rival) * 1.0 - here)


def margin_rows(s: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    here = one_hot(s, labels)
    short = np.where(here, 0, np.maximum(1 + s - s[here][:, None], 0))
    pulls = (short > 0) * 1.0
    return short.mean(axis=1), (pulls - here * pulls.sum(axis=1, keepdims=True)) / s.shape[1]


def logistic_rows(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.logaddexp(0, -y * s), -y / (1 + np.exp(y * s))


def quantile_rows(p: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(0.9 * (t - p), -0.1 * (t - p)), np.where(t > p, -0.9, 0.1)


def gaussian_rows(m: np.ndarray, t: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (np.log(v) + (m - t) ** 2 / v) / 2, (m - t) / v


def poisson_rows(x: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.exp(x) - n * x, np.exp(x) - n


# --- Peers --------------------------------------------------------------------------------------------------------


def optax_poly(z: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.losses.poly_loss_cross_entropy(z, jax.nn.one_hot(labels, z.shape[1])).mean()


def textbook_poly(z: jax.Array, labels: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1)
    return (2 * (1 - jnp.exp(own)) - own).mean()


def textbook_hinge(s: jax.Array, labels: jax.Array) -> jax.Array:
    here = jax.nn.one_hot(labels, s.shape[1], dtype=bool)
    return jnp.maximum(1 + jnp.where(here, -jnp.inf, s).max(1) - jnp.where(here, s, 0).sum(1), 0).mean()


def textbook_margin(s: jax.Array, labels: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(s, labels[:, None], 1)
    here = jax.nn.one_hot(labels, s.shape[1], dtype=bool)
    return jnp.where(here, 0, jnp.maximum(1 + s - own, 0)).mean()


def in_torch(name: str, **options: Any) -> Variant:
    def function(*tensors: Any) -> Any:
        import torch

        return getattr(torch.nn.functional, name)(*tensors, **options)

    return with_torch.loss(function)


# By the number of axes of the first input, and of inputs.
LIMITS = {
    (1, 2): (ENTRYWISE, ENTRYWISE_IN_WORDS),
    (1, 3): (
        with_jax.limit(value=lambda m, t, v: (m * t * v).sum(), gradient=lambda m, t, v: m * t * v),
        "value: read the three inputs; with gradient: read them, write one array",
    ),
    (2, 2): (
        with_jax.limit(value=lambda s, y: s.sum(), gradient=lambda s, y: 2 * s),
        "value: read the scores; with gradient: read them, write as many",
    ),
}


def case(
    name: str, sizes: tuple[Size, ...], draw: Draw, rows: Rows, textbook: Any, inputs: int = 2, **others: Variant
) -> Case:
    limit, in_words = LIMITS[len(sizes[0]), inputs]
    return Case(
        name=name,
        sizes=sizes,
        tiny=(1000,) if len(sizes[0]) == 1 else (50, 20),
        inputs=draw,
        truth=mean_over_rows(rows),
        variants={**others, "textbook": with_jax.loss(textbook), "limit": limit},
        limit=in_words,
        baseline="optax" if "optax" in others else "textbook",
    )


CASES = [
    case(
        "poly_cross_entropy",
        ROWS,
        labelled,
        poly_rows,
        textbook_poly,
        jaxloss=with_jax.loss(lambda z, y: jl.poly_cross_entropy(z, y), role="ours"),
        optax=with_jax.loss(optax_poly, needs=("optax",)),
    ),
    case(
        "multiclass_hinge",
        ROWS,
        labelled,
        hinge_rows,
        textbook_hinge,
        jaxloss=with_jax.loss(lambda s, y: jl.multiclass_hinge(s, y), role="ours"),
        optax=with_jax.loss(lambda s, y: optax.losses.multiclass_hinge_loss(s, y).mean(), needs=("optax",)),
    ),
    case(
        "multiclass_margin",
        ROWS,
        labelled,
        margin_rows,
        textbook_margin,
        jaxloss=with_jax.loss(lambda s, y: jl.multiclass_margin(s, y), role="ours"),
        torch=in_torch("multi_margin_loss"),
    ),
    case(
        "logistic",
        ENTRIES,
        signs,
        logistic_rows,
        lambda s, y: jnp.logaddexp(0, -s * y).mean(),
        jaxloss=with_jax.loss(lambda s, y: jl.logistic(s, y), role="ours"),
        torch=in_torch("soft_margin_loss"),
    ),
    case(
        "quantile",
        ENTRIES,
        real_targets,
        quantile_rows,
        lambda p, t: jnp.maximum(0.9 * (t - p), -0.1 * (t - p)).mean(),
        jaxloss=with_jax.loss(lambda p, t: jl.quantile(p, t, level=0.9), role="ours"),
    ),
    case(
        "gaussian_nll",
        ENTRIES,
        with_variance,
        gaussian_rows,
        lambda m, t, v: (jnp.log(v) + (m - t) ** 2 / v).mean() / 2,
        inputs=3,
        jaxloss=with_jax.loss(lambda m, t, v: jl.gaussian_nll(m, t, v), role="ours"),
        torch=in_torch("gaussian_nll_loss"),
    ),
    case(
        "poisson_nll",
        ENTRIES,
        with_counts,
        poisson_rows,
        lambda x, n: (jnp.exp(x) - n * x).mean(),
        jaxloss=with_jax.loss(lambda x, n: jl.poisson_nll(x, n), role="ours"),
        torch=in_torch("poisson_nll_loss"),
    ),
]
