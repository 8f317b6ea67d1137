"""The textbook formulas of the losses from hidden states and a kernel, by way of the logits that they avoid."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def logits(hidden, kernel, bias=0.0, soft_cap=None, temperature=1.0, transposed_kernel=False):
    u = hidden @ (kernel.T if transposed_kernel else kernel) + bias
    return (u if soft_cap is None else soft_cap * np.tanh(u / soft_cap)) / temperature


def log_softmax(z):
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def pick(x, labels):
    return np.take_along_axis(x, labels[..., None], -1)[..., 0]


def linear_softmax_cross_entropy(hidden, kernel, labels, label_smoothing=0.0, z_loss=0.0, **options):
    for static in ("memory", "chunk_rows", "chunk_classes"):
        options.pop(static, None)
    z = logits(hidden, kernel, **options)
    nll = -log_softmax(z)
    normalizer = pick(nll, labels) + pick(z, labels)
    smoothed = (1 - label_smoothing) * pick(nll, labels) + label_smoothing * nll.mean(-1)
    return smoothed + z_loss * normalizer**2


BIAS = np.array([0.3, -1.0, 0.5, 2.0, -0.2])
EXTRAS = {"label_smoothing": 0.2, "z_loss": 0.1, "soft_cap": 3.0, "temperature": 1.5}

CASES = (
    Case(
        jl.linear_softmax_cross_entropy,
        linear_softmax_cross_entropy,
        shapes={"hidden": "ND", "kernel": "DV", "labels": "N"},
        options=({}, {"bias": BIAS, **EXTRAS, "memory": "low", "chunk_rows": 4, "chunk_classes": 2}),
        neutral={"label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0},
        classes="V",
        half_products=True,
    ),
)
