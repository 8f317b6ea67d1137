"""Textbook formulas in float64: errors of logarithms and fractions, quantiles, likelihoods, hinge and distance."""

import math

import jax.numpy as jnp
import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def squared_log_error(predictions, targets):
    return (np.log(1 + predictions) - np.log(1 + targets)) ** 2


def absolute_percentage_error(predictions, targets):
    return abs(predictions - targets) / abs(targets)


def quantile(predictions, targets, level=0.5):
    r = targets - predictions
    return np.maximum(level * r, (level - 1) * r)


def expectile(predictions, targets, level=0.5):
    r = targets - predictions
    return abs(level - (r < 0)) * r**2


def gaussian_nll(mean, targets, variance, full=False):
    density = np.exp(-((targets - mean) ** 2) / (2 * variance)) / np.sqrt(variance * (2 * np.pi if full else 1))
    return -np.log(density)


def poisson_nll(log_rate, counts, full=False):
    rate = np.exp(log_rate)
    factorial = np.vectorize(math.gamma)(counts + 1.0) if full else 1.0
    return -np.log(rate**counts * np.exp(-rate) / factorial)


def categorical_nll(log_probabilities, labels, class_weights=None, axis=-1):
    own = np.broadcast_to(1.0 if class_weights is None else class_weights, log_probabilities.shape[-1:])[labels]
    return -own * np.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0], own


def generalized_kl_divergence(log_predictions, targets, axis=-1):
    return (targets * np.log(targets / np.exp(log_predictions)) - targets + np.exp(log_predictions)).sum(-1)


def hinge_embedding(distances, signs, margin=1.0):
    return np.where(signs == 1, distances, np.maximum(0, margin - distances))


def squared_euclidean(x, y):
    return jnp.sum(jnp.square(x - y), axis=-1)


def triplet_margin_with_distance(anchors, positives, negatives, distance=None, margin=1.0, swap=False, axis=-1):
    def between(x, y):
        return ((x - y) ** 2).sum(-1) ** (0.5 if distance is None else 1)

    far = between(anchors, negatives)
    if swap:
        far = np.minimum(far, between(positives, negatives))
    return np.maximum(0, between(anchors, positives) - far + margin)


TRIPLETS = {"anchors": "ND", "positives": "ND", "negatives": "ND"}

CASES = (
    Case(jl.squared_log_error, squared_log_error, zero_at_equality=True),
    Case(  # at a target of 0 it is infinite, as it should be
        jl.absolute_percentage_error, absolute_percentage_error, zero_at_equality=True, edges=("predictions",)
    ),
    Case(jl.quantile, quantile, options=({}, {"level": 0.9}, {"level": 0.25}), zero_at_equality=True),
    Case(jl.expectile, expectile, options=({}, {"level": 0.9}), zero_at_equality=True),
    Case(  # the variance's slope at a variance of 1e-4 is beyond float16: see test_numbers.py
        jl.gaussian_nll,
        gaussian_nll,
        options=({}, {"full": True}),
        edges=("mean", "targets"),
        non_negative=False,
    ),
    Case(  # exp(200) is beyond float32, so only the counts have extreme values
        jl.poisson_nll, poisson_nll, options=({}, {"full": True}), edges=("counts",), non_negative=False
    ),
    Case(
        jl.categorical_nll,
        categorical_nll,
        shapes={"log_probabilities": "NC", "labels": "N"},
        options=({}, {"class_weights": np.array([0.5, 1.0, 2.0, 0.25, 3.0])}),
        neutral={"class_weights": 1.0},
    ),
    Case(
        jl.generalized_kl_divergence,
        generalized_kl_divergence,
        shapes={"log_predictions": "NC", "targets": "NC"},
        edges=(),  # t log t has an infinite slope at t = 0, and exp(200) is beyond float32
    ),
    Case(jl.hinge_embedding, hinge_embedding, options=({}, {"margin": 2.5})),
    Case(
        jl.triplet_margin_with_distance,
        triplet_margin_with_distance,
        shapes=TRIPLETS,
        options=({}, {"distance": squared_euclidean, "swap": True, "margin": 4.0}),
    ),
)
