"""The rows of linear_chain_crf and soft_dtw for `cases.py`: every path, and every alignment, one after the other."""

import itertools

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def path_scores(emissions, transitions, start, end):
    """Each path of one chain, with its score."""
    steps, states = emissions.shape
    for path in itertools.product(range(states), repeat=steps):
        score = start[path[0]] + end[path[-1]]
        score += sum(emissions[t, path[t]] for t in range(steps))
        yield path, score + sum(transitions[a, b] for a, b in itertools.pairwise(path))


def linear_chain_crf(emissions, labels, transitions, start=None, end=None, lengths=None):
    states = emissions.shape[-1]
    start, end = (np.zeros(states) if x is None else x for x in (start, end))
    values, shares = [], []
    for i, row in enumerate(emissions):
        steps = len(row) if lengths is None else int(lengths[i])
        value = 0.0
        if steps:
            scores = dict(path_scores(row[:steps], transitions, start, end))
            value = np.log(np.sum(np.exp(list(scores.values())))) - scores[tuple(labels[i, :steps])]
        values.append(value)
        shares.append(float(steps > 0))
    return np.array(values), np.array(shares)


def alignments(i, j):
    """Each way from (0, 0) to (i, j)."""
    if (i, j) == (0, 0):
        yield [(0, 0)]
    for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)):
        if a >= 0 and b >= 0:
            for before in alignments(a, b):
                yield [*before, (i, j)]


def soft_dtw(predictions, targets, gamma=1.0, prediction_lengths=None, target_lengths=None):
    values, shares = [], []
    for i, (x, y) in enumerate(zip(predictions, targets, strict=True)):
        n = len(x) if prediction_lengths is None else int(prediction_lengths[i])
        m = len(y) if target_lengths is None else int(target_lengths[i])
        value = 0.0
        if n and m:
            costs = [sum(((x[a] - y[b]) ** 2).sum() for a, b in path) for path in alignments(n - 1, m - 1)]
            least = min(costs)
            value = least - gamma * np.log(sum(np.exp(-(cost - least) / gamma) for cost in costs))
        values.append(value)
        shares.append(float(n > 0 and m > 0))
    return np.array(values), np.array(shares)


CRF = {"emissions": "NTC", "labels": "NT", "transitions": "CC"}
SERIES = {"predictions": "NTD", "targets": "NLD"}

CASES = (
    Case(jl.linear_chain_crf, linear_chain_crf, shapes=CRF),
    Case(jl.linear_chain_crf, linear_chain_crf, shapes={**CRF, "start": "C", "end": "C", "lengths": "N"}),
    Case(jl.soft_dtw, soft_dtw, shapes=SERIES, options=({}, {"gamma": 0.1}), non_negative=False),
    Case(
        jl.soft_dtw,
        soft_dtw,
        shapes={**SERIES, "prediction_lengths": "N", "target_lengths": "N"},
        non_negative=False,
    ),
)
