"""Metrics of an order, beside scikit-learn's: one set of scores with a tenth of positives, one list of graded items."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import VALUE, Case, Inputs, Outputs, Prepared, Size, Variant

__all__ = ["CASES", "TITLE"]

TITLE = "Metrics of an order, n scores"

SIZES: tuple[Size, ...] = ((1000,), (10**5,), (10**6,))


def answers(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "scores": rng.standard_normal(size, np.float32).round(3),  # with ties
        "targets": (rng.random(size) < 0.1).astype(np.int32),
    }


def grades(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "scores": rng.standard_normal(size, np.float32).round(3),
        "relevance": rng.integers(0, 5, size).astype(np.float32),
    }


def area(inputs: Inputs) -> Outputs:
    """Of each positive: the negatives below it, and half of those beside it."""
    positive = inputs["targets"] == 1
    negatives = np.sort(inputs["scores"][~positive])
    below, through = (np.searchsorted(negatives, inputs["scores"][positive], side) for side in ("left", "right"))
    return [np.asarray((below + through).mean() / 2 / len(negatives))]


def gain(inputs: Inputs) -> Outputs:
    """Equal scores share their places evenly."""
    gains = 2.0 ** inputs["relevance"].astype(np.float64) - 1
    discount = 1 / np.log2(np.arange(len(gains)) + 2)
    _, level, count = np.unique(-inputs["scores"], return_inverse=True, return_counts=True)
    until = np.cumsum(count)
    sums = np.concatenate([[0], np.cumsum(discount)])
    shared = (sums[until] - sums[until - count]) / count
    return [np.asarray((gains * shared[level]).sum() / (np.sort(gains)[::-1] * discount).sum())]


def of_scikit_learn(name: str) -> Variant:
    def build(inputs: Inputs, mode: str) -> Prepared:
        import sklearn.metrics

        scores, truth = (np.asarray(x) for x in inputs.values())
        if name == "ndcg_score":
            scores, truth = scores[None], (2.0**truth - 1)[None]
        score = getattr(sklearn.metrics, name)
        return Prepared(call=lambda: score(truth, scores), outputs=lambda: [np.asarray(score(truth, scores))])

    return Variant(build, "jax", needs=("sklearn",), modes=(VALUE,))


def of_rax(s: jax.Array, r: jax.Array) -> Any:
    import rax

    return rax.ndcg_metric(s, r)


def sorting() -> Variant:
    return with_jax.limit(value=lambda s, t: jax.lax.sort((s, t), num_keys=1))


CASES = [
    Case(
        name="roc_auc",
        sizes=SIZES,
        tiny=(300,),
        inputs=answers,
        truth=area,
        modes=(VALUE,),
        tolerance={"float32": 1e-6},
        variants={
            "jaxloss": with_jax.loss(lambda s, t: jl.metrics.roc_auc(s, t).value, role="ours"),
            "binned": with_jax.loss(
                lambda s, t: jl.metrics.binned_roc_auc(s, t).value, role="extra", tolerance={"float32": 1e-3}
            ),
            "scikit-learn": of_scikit_learn("roc_auc_score"),
            "limit": sorting(),
        },
        baseline="scikit-learn",
        limit="sort the scores once",
    ),
    Case(
        name="ndcg",
        sizes=SIZES,
        tiny=(300,),
        inputs=grades,
        truth=gain,
        modes=(VALUE,),
        tolerance={"float32": 1e-5},
        variants={
            "jaxloss": with_jax.loss(lambda s, r: jl.metrics.ndcg(s, r).value, role="ours"),
            "rax": with_jax.loss(of_rax, needs=("rax",), tolerance={"float32": 1e-1}),  # ties in random order
            "scikit-learn": of_scikit_learn("ndcg_score"),
            "limit": sorting(),
        },
        baseline="scikit-learn",
        limit="sort the scores once",
        bound=10.0,  # NumPy's vectorised sort is several times as fast as XLA's, and there are two
    ),
]
