"""Textbook formulas of the losses of scores of classes: hinges, perceptrons, margins, polynomial cross-entropy."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def sparsemax_binary(scores, signs):
    m = signs * scores
    return np.select([m >= 1, m <= -1], [0.0, -m], (1 - m) ** 2 / 4)


def poly_cross_entropy(logits, labels, epsilon=2.0, axis=-1):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = p[np.arange(len(labels)), labels]
    return -np.log(p) + epsilon * (1 - p)


def generalized_cross_entropy(logits, labels, q=0.7, axis=-1):
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return (1 - p[np.arange(len(labels)), labels] ** q) / q


def multiclass_hinge(scores, labels, margin=1.0, axis=-1):
    """As Crammer and Singer write it: the margin is added to all but the label's own score."""
    others = np.arange(scores.shape[-1]) != labels[:, None]
    return (scores + margin * others).max(-1) - scores[np.arange(len(labels)), labels]


def multiclass_perceptron(scores, labels, axis=-1):
    return scores.max(-1) - scores[np.arange(len(labels)), labels]


def multiclass_margin(scores, labels, margin=1.0, p=1, class_weights=None, axis=-1):
    c = np.ones(scores.shape[-1]) if class_weights is None else np.broadcast_to(class_weights, scores.shape[-1:])
    return np.array(
        [
            c[y] / len(row) * sum(max(0.0, margin - row[y] + row[j]) ** p for j in range(len(row)) if j != y)
            for row, y in zip(scores, labels, strict=True)
        ]
    )


def multilabel_margin(scores, targets, axis=-1):
    return np.array(
        [
            sum(max(0.0, 1 - (a - b)) for a, yes in zip(row, on, strict=True) for b, no in zip(row, on, strict=True)
                if yes == 1 and no == 0) / len(row)
            for row, on in zip(scores, targets, strict=True)
        ]
    )  # fmt: skip


LABELLED = {"scores": "NC", "labels": "N"}
CLASS_WEIGHTS = np.array([0.5, 1.0, 2.0, 0.25, 3.0])

CASES = (
    Case(jl.perceptron, lambda scores, signs: np.maximum(0, -signs * scores)),
    Case(jl.squared_hinge, lambda scores, signs: np.maximum(0, 1 - signs * scores) ** 2),
    Case(jl.logistic, lambda scores, signs: np.log(1 + np.exp(-signs * scores))),
    Case(jl.sparsemax_binary, sparsemax_binary),
    Case(
        jl.poly_cross_entropy,
        poly_cross_entropy,
        shapes={"logits": "NC", "labels": "N"},
        options=({}, {"epsilon": -0.75}),
    ),
    Case(
        jl.generalized_cross_entropy,
        generalized_cross_entropy,
        shapes={"logits": "NC", "labels": "N"},
        options=({}, {"q": 0.05}),
    ),
    Case(jl.multiclass_hinge, multiclass_hinge, shapes=LABELLED, options=({}, {"margin": 0.3})),
    Case(jl.multiclass_perceptron, multiclass_perceptron, shapes=LABELLED),
    Case(
        jl.multiclass_margin,
        multiclass_margin,
        shapes=LABELLED,
        options=({}, {"p": 2, "margin": 2.5, "class_weights": CLASS_WEIGHTS}),
        neutral={"class_weights": 1.0},
    ),
    Case(jl.multilabel_margin, multilabel_margin, shapes={"scores": "NC", "targets": "NC"}, slopes=("scores",)),
)
