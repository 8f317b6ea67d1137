"""Textbook formulas of the stand-ins for ranking metrics, list by list and pair by pair."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def smooth_rank(s, i, temperature):
    return 1 + sum(1 / (1 + np.exp(-(s[j] - s[i]) / temperature)) for j in range(len(s)) if j != i)


def dcg(relevance, ranks):
    return sum((2.0**r - 1) / np.log2(1 + rank) for r, rank in zip(relevance, ranks, strict=True))


def ideal_dcg(relevance):
    return dcg(np.sort(relevance)[::-1], range(1, len(relevance) + 1))


def approx_ndcg(scores, relevance, temperature=1.0):
    values = [
        1 - dcg(r, [smooth_rank(s, i, temperature) for i in range(len(s))]) / ideal_dcg(r)
        for s, r in zip(scores, relevance, strict=True)
    ]
    return np.array(values)


def approx_mrr(scores, relevance, temperature=1.0):
    values, present = [], []
    for s, r in zip(scores, relevance, strict=True):
        each = [1 / smooth_rank(s, i, temperature) for i in range(len(s)) if r[i] >= 1]
        values.append(1 - max(each) if each else 0.0)
        present.append(bool(each))
    return np.array(values), np.array(present, float)


def lambda_rank(scores, relevance):
    values = []
    for s, r in zip(scores, relevance, strict=True):
        rank = {item: place for place, item in enumerate(np.argsort(-s, kind="stable"), 1)}
        each = [
            (2 ** r[i] - 2 ** r[j])
            * abs(1 / np.log2(1 + rank[i]) - 1 / np.log2(1 + rank[j]))
            * np.log(1 + np.exp(s[j] - s[i]))
            for i in rank
            for j in rank
            if r[i] > r[j]
        ]
        values.append(np.sum(each) / ideal_dcg(r))
    return np.array(values)


def auc_margin(scores, targets, margin=1.0):
    def moments(s, w):
        mean = (w * s).sum() / w.sum()
        return mean, (w * (s - mean) ** 2).sum() / w.sum()

    values = []
    for s, t in zip(scores, targets, strict=True):
        (a, spread_a), (b, spread_b) = moments(s, t), moments(s, 1 - t)
        alpha = max(0.0, margin - (a - b))
        values.append(spread_a + spread_b + 2 * alpha * (margin - (a - b)) - alpha**2)
    return np.array(values)


LISTS = {"scores": "NL", "relevance": "NL"}

CASES = (
    Case(jl.approx_ndcg, approx_ndcg, shapes=LISTS, options=({"temperature": 0.7},)),
    Case(jl.approx_mrr, approx_mrr, shapes=LISTS, options=({"temperature": 0.7},)),
    Case(jl.lambda_rank, lambda_rank, shapes=LISTS, slopes=("scores",)),
    Case(jl.auc_margin, auc_margin, shapes={"scores": "NL", "targets": "NL"}, options=({"margin": 3.0},)),
)
