"""The only test code of a single loss: its textbook formula in NumPy float64, and the options to try.

A row is written from the paper, not from jaxloss: no jax here, and no stability tricks. It must fail differently from
the code under test.
"""

import numpy as np
from cases_alignment import CASES as ALIGNMENT
from cases_classes import CASES as CLASSES
from cases_contrastive import CASES as CONTRASTIVE
from cases_embedding import CASES as EMBEDDING
from cases_language import CASES as LANGUAGE
from cases_numbers import CASES as NUMBERS
from cases_ranking import CASES as RANKING
from cases_ranking_surrogates import CASES as RANKING_SURROGATES
from cases_regions import CASES as REGIONS
from cases_sequence import CASES as SEQUENCE
from cases_sorted import CASES as SORTED
from cases_transducer import CASES as TRANSDUCER
from cases_vocabulary import CASES as VOCABULARY

import jaxloss as jl
from jaxloss.testing import Case


def softmax(z):
    e = np.exp(z)
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pick(x, labels):
    return np.take_along_axis(x, labels[..., None], -1)[..., 0]


# --- regression ---------------------------------------------------------------------------------------------------


def huber(predictions, targets, delta=1.0):
    r = abs(predictions - targets)
    return np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))


def smooth_l1(predictions, targets, beta=1.0):
    r = abs(predictions - targets)
    return np.where(r < beta, r**2 / (2 * beta), r - beta / 2)


def cosine(p, t):
    return (p * t).sum(-1) / np.sqrt((p * p).sum(-1) * (t * t).sum(-1))


def cosine_distance(predictions, targets):
    return 1 - cosine(predictions, targets)


def root_mean_squared_error(predictions, targets, axis=None):
    return np.sqrt(np.mean((predictions - targets) ** 2, axis=axis))


# --- binary -------------------------------------------------------------------------------------------------------


def sigmoid_cross_entropy(logits, targets, positive_weight=1.0, label_smoothing=0.0):
    p, t = sigmoid(logits), targets * (1 - label_smoothing) + label_smoothing / 2
    return -positive_weight * t * np.log(p) - (1 - t) * np.log(1 - p)


def sigmoid_focal(logits, targets, gamma=2.0, alpha=None):
    p, t = sigmoid(logits), targets
    p_t = p * t + (1 - p) * (1 - t)
    a_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return a_t * (1 - p_t) ** gamma * (-t * np.log(p) - (1 - t) * np.log(1 - p))


def binary_cross_entropy(probabilities, targets):
    return -targets * np.log(probabilities) - (1 - targets) * np.log(1 - probabilities)


def hard_targets(rng, arrays):
    return {**arrays, "targets": np.resize([0.0, 1.0, 1.0, 0.0, 0.25, 1.0], arrays["targets"].shape)}


# --- multiclass ---------------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits, labels, class_weights=None, label_smoothing=0.0, z_loss=0.0, temperature=1.0, axis=-1
):
    z = logits / temperature
    c = np.ones(z.shape[-1]) if class_weights is None else np.broadcast_to(class_weights, z.shape[-1:])
    nll = -np.log(softmax(z))
    own = c[labels]
    value = (1 - label_smoothing) * own * pick(nll, labels) + label_smoothing * (c * nll).mean(-1)
    return value + z_loss * own * np.log(np.exp(z).sum(-1)) ** 2, own


def softmax_cross_entropy_with_soft_labels(logits, targets, axis=-1):
    return -(targets * np.log(softmax(logits))).sum(-1)


def softmax_focal(logits, labels, gamma=2.0, alpha=1.0, axis=-1):
    p = pick(softmax(logits), labels)
    return np.broadcast_to(alpha, logits.shape[-1:])[labels] * (1 - p) ** gamma * -np.log(p)


def entmax_probabilities(z, alpha):
    """By bisection on the threshold, for each row."""
    a = (alpha - 1) * z
    low, high = a.max(-1, keepdims=True) - 1, a.max(-1, keepdims=True)
    for _ in range(200):
        middle = (low + high) / 2
        total = (np.maximum(a - middle, 0) ** (1 / (alpha - 1))).sum(-1, keepdims=True)
        low, high = np.where(total >= 1, middle, low), np.where(total >= 1, high, middle)
    return np.maximum(a - low, 0) ** (1 / (alpha - 1))


def entmax(logits, labels, alpha=1.5, axis=-1):
    p = entmax_probabilities(logits, alpha)
    entropy = (1 - (p**alpha).sum(-1)) / (alpha * (alpha - 1))
    return (p * logits).sum(-1) - pick(logits, labels) + entropy


def sparsemax(logits, labels, axis=-1):
    return entmax(logits, labels, alpha=2.0)


# --- divergence ---------------------------------------------------------------------------------------------------


def normalised_targets(rng, arrays):
    t = arrays["targets"]
    return {**arrays, "targets": t / t.sum(-1, keepdims=True)}


def kl_divergence(log_predictions, targets):
    return (targets * (np.log(targets) - log_predictions)).sum(-1)


def kl_divergence_with_log_targets(log_predictions, log_targets):
    return (np.exp(log_targets) * (log_targets - log_predictions)).sum(-1)


def reverse_kl_divergence(log_predictions, targets):
    return (np.exp(log_predictions) * (log_predictions - np.log(targets))).sum(-1)


def jensen_shannon(logits_p, logits_q, beta=0.5):
    p, q = softmax(logits_p), softmax(logits_q)
    m = beta * p + (1 - beta) * q
    return (beta * p * np.log(p / m) + (1 - beta) * q * np.log(q / m)).sum(-1)


def gaussian_kl(mean, log_variance, prior_mean=0.0, prior_log_variance=0.0):
    v, v0 = np.exp(log_variance), np.exp(prior_log_variance)
    return 0.5 * ((mean - prior_mean) ** 2 / v0 + v / v0 - 1 - np.log(v / v0)).sum(-1)


# --- embedding ----------------------------------------------------------------------------------------------------


def triplet_margin(anchors, positives, negatives, margin=1.0, p=2.0, swap=False):
    def distance(a, b):
        return (abs(a - b) ** p).sum(-1) ** (1 / p)

    far = distance(anchors, negatives)
    if swap:
        far = np.minimum(far, distance(positives, negatives))
    return np.maximum(0, distance(anchors, positives) - far + margin)


# --- sequence -----------------------------------------------------------------------------------------------------


def token_nll(logits, labels, lengths=None):
    values, counts = [], []
    for i in range(len(labels)):
        steps = labels.shape[1] if lengths is None else int(lengths[i])
        values.append(sum(-np.log(softmax(logits[i, t])[labels[i, t]]) for t in range(steps)))
        counts.append(steps)
    return np.array(values, float), np.array(counts, float)


LABELLED = {"logits": "NC", "labels": "N"}
PAIR = {"predictions": "ND", "targets": "ND"}

CASES = (
    Case(jl.squared_error, lambda predictions, targets: (predictions - targets) ** 2, zero_at_equality=True),
    Case(jl.half_squared_error, lambda predictions, targets: (predictions - targets) ** 2 / 2, zero_at_equality=True),
    Case(jl.absolute_error, lambda predictions, targets: abs(predictions - targets), zero_at_equality=True),
    Case(jl.huber, huber, options=({}, {"delta": 0.3}, {"delta": 7.0}), zero_at_equality=True),
    Case(jl.smooth_l1, smooth_l1, options=({}, {"beta": 0.3}), zero_at_equality=True),
    Case(jl.log_cosh, lambda predictions, targets: np.log(np.cosh(predictions - targets)), zero_at_equality=True),
    Case(jl.cosine_distance, cosine_distance, shapes=PAIR),
    Case(
        jl.root_mean_squared_error,
        root_mean_squared_error,
        shapes={"predictions": "NK", "targets": "NK"},
        options=({"axis": 1},),
        kind="statistic",
        zero_at_equality=True,
    ),
    Case(
        jl.sigmoid_cross_entropy,
        sigmoid_cross_entropy,
        options=({}, {"positive_weight": 3.0}, {"label_smoothing": 0.2, "positive_weight": 0.5}),
        neutral={"positive_weight": 1.0, "label_smoothing": 0.0},
    ),
    Case(jl.sigmoid_focal, sigmoid_focal, options=({}, {"gamma": 0.5, "alpha": 0.25}, {"gamma": 0.0}, {"gamma": 5.0})),
    Case(jl.sigmoid_focal, sigmoid_focal, options=({}, {"gamma": 0.5}), draw=hard_targets),
    Case(jl.binary_cross_entropy, binary_cross_entropy, edges=()),  # a missed hard label is inf, as it should
    Case(jl.hinge, lambda scores, signs: np.maximum(0, 1 - signs * scores)),
    Case(
        jl.softmax_cross_entropy,
        softmax_cross_entropy,
        shapes=LABELLED,
        options=(
            {},
            {"label_smoothing": 0.2, "z_loss": 0.1, "temperature": 2.0},
            {"class_weights": np.array([0.5, 1.0, 2.0, 0.25, 3.0])},
            {"class_weights": np.array([0.5, 1.0, 2.0, 0.25, 3.0]), "label_smoothing": 0.3, "z_loss": 0.1},
        ),
        neutral={"label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0, "class_weights": 1.0},
    ),
    Case(
        jl.softmax_cross_entropy_with_soft_labels,
        softmax_cross_entropy_with_soft_labels,
        shapes={"logits": "NC", "targets": "NC"},
    ),
    Case(
        jl.softmax_focal,
        softmax_focal,
        shapes=LABELLED,
        options=({}, {"gamma": 0.5}, {"gamma": 5.0, "alpha": np.array([0.5, 1.0, 2.0, 0.25, 3.0])}),
        neutral={"alpha": 1.0},
    ),
    Case(jl.sparsemax, sparsemax, shapes=LABELLED),
    Case(jl.entmax, entmax, shapes=LABELLED, options=({}, {"alpha": 1.25}, {"alpha": 2.0})),
    Case(
        jl.kl_divergence,
        kl_divergence,
        shapes={"log_predictions": "NC", "targets": "NC"},
        draw=normalised_targets,
        non_negative=False,
        edges=(),  # t log t has an infinite slope at t = 0
    ),
    Case(
        jl.kl_divergence_with_log_targets,
        kl_divergence_with_log_targets,
        shapes={"log_predictions": "NC", "log_targets": "NC"},
        non_negative=False,
    ),
    Case(
        jl.reverse_kl_divergence,
        reverse_kl_divergence,
        shapes={"log_predictions": "NC", "targets": "NC"},
        draw=normalised_targets,
        non_negative=False,
        edges=(),  # t log t has an infinite slope at t = 0
    ),
    Case(
        jl.jensen_shannon,
        jensen_shannon,
        shapes={"logits_p": "NC", "logits_q": "NC"},
        options=({}, {"beta": 0.2}),
        zero_at_equality=True,
    ),
    Case(  # exp(200) is beyond float32, so only the means have extreme values
        jl.gaussian_kl, gaussian_kl, shapes={"mean": "ND", "log_variance": "ND"}, edges=("mean",)
    ),
    Case(
        jl.gaussian_kl,
        gaussian_kl,
        shapes={"mean": "ND", "log_variance": "ND", "prior_mean": "ND", "prior_log_variance": "ND"},
        edges=("mean", "prior_mean"),
    ),
    Case(
        jl.triplet_margin,
        triplet_margin,
        shapes={"anchors": "ND", "positives": "ND", "negatives": "ND"},
        options=({}, {"p": 1.0}, {"p": 3.0, "swap": True, "margin": 4.0}),
    ),
    Case(jl.token_nll, token_nll, shapes={"logits": "NTV", "labels": "NT"}),
    Case(jl.token_nll, token_nll, shapes={"logits": "NTV", "labels": "NT", "lengths": "N"}),
    *RANKING,
    *RANKING_SURROGATES,
    *ALIGNMENT,
    *CONTRASTIVE,
    *EMBEDDING,
    *TRANSDUCER,
    *VOCABULARY,
    *LANGUAGE,
    *SEQUENCE,
    *SORTED,
    *CLASSES,
    *NUMBERS,
    *REGIONS,
)
