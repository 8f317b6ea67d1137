"""Textbook formulas of the losses of lists and pairs of items."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def list_softmax(scores, relevance):
    p = np.exp(scores)
    return -(relevance * np.log(p / p.sum(-1, keepdims=True))).sum(-1)


def list_mle(scores, relevance):
    values = []
    for s, r in zip(scores, relevance, strict=True):
        s = s[np.argsort(-r, kind="stable")]
        values.append(sum(np.log(np.exp(s[i:]).sum()) - s[i] for i in range(len(s))))
    return np.array(values)


def of_pairs(value):
    """The mean or sum of `value(difference, **options)` over each list's pairs, one by one."""

    def reference(scores, relevance, pairs="mean", **options):
        values = []
        for s, r in zip(scores, relevance, strict=True):
            items = list(zip(s, r, strict=True))
            each = [value(a - b, **options) for a, x in items for b, y in items if x > y]
            values.append(np.sum(each) / (max(len(each), 1) if pairs == "mean" else 1))
        return np.array(values)

    return reference


def hinge(difference, margin=1.0):
    return max(0.0, margin - difference)


def logistic(difference, margin=None):
    return np.log(1 + np.exp(-difference))


def margin_ranking(scores_a, scores_b, signs, margin=0.0):
    return np.maximum(0, margin - signs * (scores_a - scores_b))


LISTS = {"scores": "NL", "relevance": "NL"}

CASES = (
    Case(jl.list_softmax, list_softmax, shapes=LISTS),
    Case(jl.list_mle, list_mle, shapes=LISTS),
    Case(
        jl.pairwise_logistic,
        of_pairs(logistic),
        shapes=LISTS,
        options=({}, {"pairs": "sum"}),
    ),
    Case(jl.pairwise_hinge, of_pairs(hinge), shapes=LISTS, options=({"margin": 0.7}, {"pairs": "sum"})),
    Case(
        jl.pairwise_squared_hinge,
        of_pairs(lambda difference, margin=1.0: hinge(difference, margin) ** 2),
        shapes=LISTS,
        options=({"margin": 0.7},),
    ),
    Case(jl.margin_ranking, margin_ranking, options=({"margin": 0.5},)),
    Case(jl.bayesian_personalized_ranking, lambda positive, negative: np.log(1 + np.exp(negative - positive))),
)
