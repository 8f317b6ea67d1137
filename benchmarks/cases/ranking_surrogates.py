"""Surrogates of NDCG of one list with graded relevance, a part of it relevant."""

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

TITLE = "Surrogates of NDCG, one list of n items, a tenth (long lists: a hundredth) of relevance 1 to 4"

Rows = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def inputs(every: int) -> Callable[[Size, np.random.Generator], dict[str, np.ndarray]]:
    def draw(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
        item = np.arange(size[0])
        return {
            "scores": rng.standard_normal(size, np.float32),
            "relevance": np.where(item % every == 0, 1 + item // every % 4, 0).astype(np.float32),
        }

    return draw


def discount(rank: np.ndarray) -> np.ndarray:
    return 1 / np.log2(1 + rank)


def by_relevant_items(rows: Rows) -> Callable[[Inputs], Outputs]:
    """From value and slopes of a few relevant items' pairs with all others: `rows(scores, gains, items)`."""

    def truth(inputs: Inputs) -> Outputs:
        s, gains = inputs["scores"].astype(np.float64), 2.0 ** inputs["relevance"].astype(np.float64) - 1
        relevant = np.flatnonzero(gains)
        ideal = (np.sort(gains[relevant])[::-1] * discount(1 + np.arange(relevant.size))).sum()
        total, slopes = 0.0, np.zeros_like(s)
        step = max(1, 2**20 // s.size)
        for start in range(0, relevant.size, step):
            part, pull = rows(s, gains, relevant[start : start + step])
            total += part
            slopes += pull
        return [np.asarray(total / ideal), slopes / ideal]

    return truth


def ndcg_rows(s: np.ndarray, gains: np.ndarray, items: np.ndarray) -> tuple[float, np.ndarray]:
    p = 1 / (1 + np.exp(s[items, None] - s))
    rank = 0.5 + p.sum(axis=1)
    # Each item's part of the ideal less that of the DCG.
    place = np.argsort(np.argsort(-gains, kind="stable"), kind="stable")[items] + 1
    lost = gains[items] * (discount(place) - discount(rank))
    rise = gains[items] * np.log(2) / ((1 + rank) * np.log1p(rank) ** 2)
    p *= 1 - p
    slopes = rise @ p
    slopes[items] -= rise * p.sum(axis=1)
    return lost.sum(), slopes


def swap_rows(s: np.ndarray, gains: np.ndarray, items: np.ndarray) -> tuple[float, np.ndarray]:
    worth = np.empty_like(s)
    worth[np.argsort(-s, kind="stable")] = discount(1 + np.arange(s.size))
    weight = np.maximum(gains[items, None] - gains, 0) * np.abs(worth[items, None] - worth)
    d = s[items, None] - s
    e = np.exp(-np.abs(d))
    value = (weight * (np.maximum(-d, 0) + np.log1p(e))).sum()
    weight *= np.where(d < 0, 1, e) / (1 + e)
    slopes = weight.sum(axis=0)
    slopes[items] -= weight.sum(axis=1)
    return value, slopes


def ideal_dcg(gains: jax.Array) -> jax.Array:
    return jnp.sum(-jnp.sort(-gains) / jnp.log2(2 + jnp.arange(gains.size)))


def textbook_ndcg(s: jax.Array, r: jax.Array) -> jax.Array:
    gains = 2**r - 1
    rank = 0.5 + jnp.sum(jax.nn.sigmoid(s[None] - s[:, None]), axis=1)
    return 1 - jnp.sum(gains / jnp.log2(1 + rank)) / ideal_dcg(gains)


def textbook_lambda(s: jax.Array, r: jax.Array) -> jax.Array:
    gains, worth = 2**r - 1, 1 / jnp.log2(2 + jnp.argsort(jnp.argsort(-s)))
    weight = jnp.maximum(gains[:, None] - gains[None], 0) * jnp.abs(worth[:, None] - worth[None])
    return jnp.sum(weight * jax.nn.softplus(s[None] - s[:, None])) / ideal_dcg(gains)


def rax_ndcg(s: jax.Array, r: jax.Array) -> Any:
    import rax

    return 1 - rax.ndcg_metric(s, r, rank_fn=rax.utils.approx_ranks)


def rax_lambda(s: jax.Array, r: jax.Array) -> Any:
    import rax

    def weights(*args: Any, **options: Any) -> Any:
        return rax.dcg_lambdaweight(*args, normalize=True, **options)

    # Its weights hold the list's length as a factor.
    return rax.pairwise_logistic_loss(s, r, lambdaweight_fn=weights, reduce_fn=jnp.sum) / s.size


def sorting() -> Variant:
    return with_jax.limit(
        value=lambda s, r: jax.lax.sort((s, r), num_keys=1),
        gradient=lambda s, r: jax.lax.sort((s, r), num_keys=1),
    )


def cases(
    name: str, ours: Callable[..., Any], rows: Rows, textbook: Callable[..., Any], rax: Callable[..., Any]
) -> list[Case]:
    jaxloss, limit = with_jax.loss(lambda s, r: ours(s, r), role="ours"), "sort the scores once"
    return [
        Case(
            name=name,
            sizes=((100,), (10**4,)),
            tiny=(300,),
            inputs=inputs(10),
            truth=by_relevant_items(rows),
            tolerance={"float32": 1e-5},
            variants={
                "jaxloss": jaxloss,
                "textbook": with_jax.loss(textbook),
                "rax": with_jax.loss(rax, needs=("rax",)),
                "limit": sorting(),
            },
            baseline="textbook",
            limit=limit,
        ),
        Case(  # all pairs would take 40 GB and more
            name=f"{name}_long",
            sizes=((10**5,),),
            tiny=(1000,),
            inputs=inputs(100),
            truth=by_relevant_items(rows),
            tolerance={"float32": 1e-5},
            variants={"jaxloss": jaxloss, "limit": sorting()},
            baseline="limit",
            limit=limit,
            bound=100.0,
        ),
    ]


CASES = [
    *cases("approx_ndcg", jl.approx_ndcg, ndcg_rows, textbook_ndcg, rax_ndcg),
    *cases("lambda_rank", jl.lambda_rank, swap_rows, textbook_lambda, rax_lambda),
]
