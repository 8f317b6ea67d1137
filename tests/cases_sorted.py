"""Textbook formulas of the losses that sort or search: all pairs, all quantiles, one pixel after the other."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def crps_ensemble(ensemble, targets, fair=False, axis=-1):
    x, m = ensemble, ensemble.shape[-1]
    pairs = abs(x[:, :, None] - x[:, None]).sum((1, 2))
    return abs(x - targets[:, None]).mean(-1) - pairs / (2 * m * (m - fair))


def wasserstein_1d(x, y, p=1.0, axis=-1):
    return (abs(np.sort(x) - np.sort(y)) ** p).mean(-1)


def jaccard_extension(errors, truth):
    """Berman et al., algorithm 1: the Jaccard loss of the first k pixels, in the order of falling errors."""
    value, before, first, union = 0.0, 0.0, set(), set(np.flatnonzero(truth))
    for k in np.argsort(-errors, kind="stable"):
        first.add(k)
        loss = 1 - len(set(np.flatnonzero(truth)) - first) / len(union | first)
        value, before = value + errors[k] * (loss - before), loss
    return value


def lovasz_hinge(logits, targets, axis=-1):
    errors = np.maximum(0, 1 - logits * (2 * targets - 1))
    return np.array([jaccard_extension(e, t) for e, t in zip(errors, targets, strict=True)])


def lovasz_softmax(logits, labels, axis=-1, image_axes=-1):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    values = []
    for of_image, label in zip(p, labels, strict=True):
        present = sorted(set(label.tolist()))
        of_class = [jaccard_extension(abs((label == c) - of_image[:, c]), label == c) for c in present]
        values.append(np.mean(of_class))
    return np.array(values)


def chamfer(x, y, x_valid, y_valid):
    values, shares = [], []
    for i in range(len(x)):
        a, b = x[i][x_valid[i]], y[i][y_valid[i]]
        shares.append(float(len(a) > 0 and len(b) > 0))
        d = ((a[:, None] - b[None]) ** 2).sum(-1)
        values.append(d.min(1).mean() + d.min(0).mean() if shares[-1] else 0.0)
    return np.array(values), np.array(shares)


CASES = (
    Case(jl.crps_ensemble, crps_ensemble, shapes={"ensemble": "NK", "targets": "N"}, options=({}, {"fair": True})),
    Case(
        jl.wasserstein_1d,
        wasserstein_1d,
        shapes={"x": "NK", "y": "NK"},
        options=({}, {"p": 2.0}),
        zero_at_equality=True,
    ),
    Case(
        jl.lovasz_hinge,
        lovasz_hinge,
        shapes={"logits": "NK", "targets": "NK"},
        options=({"axis": -1},),
        slopes=("logits",),
    ),
    Case(  # `valid` is about pixels, not about the classes: see test_sparse_and_sorted.py
        jl.lovasz_softmax,
        lovasz_softmax,
        shapes={"logits": "NKC", "labels": "NK"},
        options=({"image_axes": -1},),
        classes="V",
    ),
    Case(jl.chamfer, chamfer, shapes={"x": "NLD", "y": "NTD", "x_valid": "NL", "y_valid": "NT"}),
)
