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


def linear_distillation(
    hidden, kernel, teacher_hidden, teacher_kernel, divergence="forward", bias=0.0, teacher_bias=0.0,
    transposed_kernel=False, temperature=1.0, chunk_rows=None,
):  # fmt: skip
    q = np.exp(log_softmax(logits(hidden, kernel, bias, None, temperature, transposed_kernel)))
    p = np.exp(log_softmax(logits(teacher_hidden, teacher_kernel, teacher_bias, None, temperature, transposed_kernel)))
    m = (p + q) / 2
    each = {
        "forward": p * np.log(p / q),
        "reverse": q * np.log(q / p),
        "jensen_shannon": (p * np.log(p / m) + q * np.log(q / m)) / 2,
    }[divergence]
    return temperature**2 * each.sum(-1)


def linear_top_k_distillation(
    hidden, kernel, log_probabilities, labels, bias=0.0, transposed_kernel=False, temperature=1.0, chunk_rows=None
):
    q = np.exp(log_softmax(logits(hidden, kernel, bias, None, temperature, transposed_kernel)))
    q, p = np.take_along_axis(q, labels, -1), np.exp(log_probabilities)
    rest_q, rest_p = 1 - q.sum(-1), 1 - p.sum(-1)
    rest = np.where(rest_p > 0, rest_p * np.log(np.where(rest_p > 0, rest_p, 1) / np.maximum(rest_q, 1e-300)), 0)
    return temperature**2 * ((p * np.log(p / q)).sum(-1) + rest)


def best_classes(rng, arrays):
    """Distinct classes, and probabilities that leave something for the others, if there are any."""
    (rows, k), classes = arrays["labels"].shape, arrays["kernel"].shape[1]
    labels = np.stack([rng.permutation(classes)[:k] for _ in range(rows)]) if rows else arrays["labels"]
    p = rng.dirichlet(np.ones(min(k + 1, classes)), rows)[:, :k]
    return {**arrays, "labels": labels, "log_probabilities": np.log(p)}


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
    Case(
        jl.linear_distillation,
        linear_distillation,
        shapes={"hidden": "ND", "kernel": "DV", "teacher_hidden": "NM", "teacher_kernel": "MV"},
        options=({"divergence": "jensen_shannon", "chunk_rows": 4},),
        neutral={"temperature": 1.0},
        slopes=("hidden", "kernel"),
        half_products=True,
    ),
    Case(
        jl.linear_top_k_distillation,
        linear_top_k_distillation,
        shapes={"hidden": "ND", "kernel": "DV", "log_probabilities": "NS", "labels": "NS"},
        options=({"chunk_rows": 4},),
        neutral={"temperature": 1.0},
        draw=best_classes,
        slopes=("hidden", "kernel"),
        classes="V",
        half_products=True,
    ),
)
