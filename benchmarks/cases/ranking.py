"""Pairwise losses of one list with binary relevance, a tenth of it relevant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import Case, Inputs, Outputs, Size, Variant

__all__ = ["CASES", "TITLE"]

TITLE = "Pairwise ranking losses, one list of n items, a tenth relevant, mean over the pairs"

Pair = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "scores": rng.standard_normal(size, np.float32),
        "relevance": (np.arange(size[0]) % 10 == 0).astype(np.float32),
    }


def hinge(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(1 - d, 0), -(d < 1).astype(np.float64)


def squared_hinge(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    short = np.maximum(1 - d, 0)
    return short * short, -2 * short


def logistic(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    e = np.exp(-np.abs(d))
    return np.maximum(-d, 0) + np.log1p(e), -np.where(d < 0, 1, e) / (1 + e)


def every_pair(pair: Pair) -> Callable[[Inputs], Outputs]:
    """From a pair's value and slope by its difference: all pairs, a few relevant items at a time."""

    def truth(inputs: Inputs) -> Outputs:
        s, upper = inputs["scores"].astype(np.float64), inputs["relevance"] > 0
        above, below = s[upper], s[~upper]
        total, slopes_above, slopes_below = 0.0, np.empty_like(above), np.zeros_like(below)
        step = max(1, 2**20 // len(below))
        for start in range(0, len(above), step):
            value, slope = pair(above[start : start + step, None] - below)
            total += value.sum()
            slopes_above[start : start + step] = slope.sum(axis=1)
            slopes_below -= slope.sum(axis=0)
        gradient = np.empty_like(s)
        gradient[upper], gradient[~upper] = slopes_above, slopes_below
        pairs = len(above) * len(below)
        return [np.asarray(total / pairs), gradient / pairs]

    return truth


def textbook(value: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def loss(s: jax.Array, r: jax.Array) -> jax.Array:
        pair = r[:, None] > r[None]
        return jnp.sum(jnp.where(pair, value(s[:, None] - s[None]), 0)) / jnp.sum(pair)

    return loss


def of_rax(name: str) -> Variant:
    def loss(s: jax.Array, r: jax.Array) -> Any:
        import rax

        return getattr(rax, name)(s, r)

    return with_jax.loss(loss, needs=("rax",))


def sorting() -> Variant:
    return with_jax.limit(
        value=lambda s, r: jax.lax.sort((s, r), num_keys=1),
        gradient=lambda s, r: jax.lax.sort((s, r), num_keys=1),
    )


def cases(
    name: str, ours: Callable[..., Any], pair: Pair, value: Callable[[jax.Array], jax.Array], peer: dict[str, Variant]
) -> list[Case]:
    jaxloss, limit = with_jax.loss(lambda s, r: ours(s, r), role="ours"), "sort the scores once"
    return [
        Case(
            name=name,
            sizes=((100,), (10**4,)),
            tiny=(300,),
            inputs=inputs,
            truth=every_pair(pair),
            tolerance={"float32": 1e-5},
            variants={
                "jaxloss": jaxloss,
                "textbook": with_jax.loss(textbook(value)),
                **peer,
                "limit": sorting(),
            },
            baseline="textbook",
            limit=limit,
        ),
        Case(  # all pairs would take 40 GB and more
            name=f"{name}_long",
            sizes=((10**5,),),
            tiny=(1000,),
            inputs=inputs,
            truth=every_pair(pair),
            tolerance={"float32": 1e-5},
            variants={"jaxloss": jaxloss, "limit": sorting()},
            baseline="limit",
            limit=limit,
            bound=100.0,
        ),
    ]


CASES = [
    *cases(
        "pairwise_hinge",
        jl.pairwise_hinge,
        hinge,
        lambda d: jnp.maximum(1 - d, 0),
        {"rax": of_rax("pairwise_hinge_loss")},
    ),
    *cases(
        "pairwise_squared_hinge",
        jl.pairwise_squared_hinge,
        squared_hinge,
        lambda d: jnp.square(jnp.maximum(1 - d, 0)),
        {},
    ),
    *cases(
        "pairwise_logistic",
        jl.pairwise_logistic,
        logistic,
        lambda d: jax.nn.softplus(-d),
        {"rax": of_rax("pairwise_logistic_loss")},
    ),
]
