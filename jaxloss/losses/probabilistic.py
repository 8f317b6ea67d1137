"""Predicted distributions against what came true."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.ensemble import ensemble_score
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import labelled, pointwise, sequencewise
from jaxloss.core.inputs import as_array, canonical_axes, wide_dtype
from jaxloss.core.numerics import (
    LOG_2_PI,
    apart,
    differentiable,
    exp_gap,
    exp_minus,
    spread_apart,
    square_gap,
    stirling_gap,
    widen,
)
from jaxloss.core.sharding import take_label
from jaxloss.core.types import Array, Label, LogProbability, Mask, NonNegative, Positive, Real, Reduction, Weights

__all__ = ["categorical_nll", "crps_ensemble", "gaussian_nll", "poisson_nll"]


@compiled
def crps_ensemble(
    ensemble: Real,
    targets: Real,
    *,
    fair: bool = False,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Continuous ranked probability score of an ensemble (of samples of the predicted distribution).

        1/M sum_i |x_i - y| - 1/(2 M^2) sum_ij |x_i - x_j|,   x = ensemble, y = targets
        fair:  the second sum by 1/(2 M (M - 1))

    Use for forecasts that are given as members or samples: accuracy and spread in one number, in the target's units.

    Args:
      ensemble: [..., M] real.
      targets: [...] real: what came true.
      fair: whether the members are a sample of the distribution that is meant: then the score's expectation does not
        depend on how many they are. It takes two members at least; as it stands the ensemble is the distribution.
      axis: the axis of the members.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the targets.
    Returns: target units, in [0, inf); |x - y| for one member, 0 only where all members equal the target (fair: where
      at most one is below it and at most one above). M members take O(M log M) time and O(M) memory. They are
      compared with the target first, and only terms >= 0 are added: numbers around 1e4 lose no digit of the score.
    Gradient: in x_i: (M sign(x_i - y) - n_i) / M^2, n_i how many more members are lower than higher; fair:
      ((M - 1) sign(x_i - y) - n_i) / (M (M - 1)). Of equal members the one that stands first counts as lower: a
      subgradient, where any is.
    Peers: scoringrules.crps_ensemble, properscoring.crps_ensemble, xskillscore.crps_ensemble.
    Reference: Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation, J. Am. Stat.
      Assoc. 102(477), eq. 21; sorted and fair: Zamo and Naveau (2018), Math. Geosci. 50(2).
    """
    x = as_array("ensemble", ensemble)
    (member_axis,) = canonical_axes(axis, x.shape, "ensemble")
    if x.shape[member_axis] < 1 + fair:
        least = "two members, which a fair score needs" if fair else "one member"
        raise ValueError(f"`ensemble` {list(x.shape)} must have at least {least} along axis {axis}")

    def value(x: Array, y: Array, *, alive: tuple[()]) -> Array:
        dtype = wide_dtype([x, y])
        return ensemble_score(x.astype(dtype), jnp.expand_dims(y.astype(dtype), -1), fair=fair)

    return sequencewise(
        value,
        ensemble=jnp.moveaxis(x, member_axis, -1),
        targets=targets,
        steps={"ensemble": 1, "targets": 0},
        lengths={},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _gaussian_value(m: Array, t: Array, v: Array) -> Array:
    half = 0.5 * m - 0.5 * t
    # r (r / v): r^2 alone leaves the range for errors of 1e20. Halved before it overflows, too.
    return 0.5 * jnp.log(v) + half * (2 * (half / v))


def _in_mean(m: Array, t: Array, v: Array) -> Array:
    m, t, v = apart(m, t, v)
    d, scale = spread_apart(m, t)
    return scale * (d / v)


def _in_variance_value(m: Array, t: Array, v: Array) -> Array:
    m, t, v = apart(m, t, v)
    r, z = m - t, _in_mean(m, t, v)
    # r^2 / v may overflow where this does not.
    return jnp.where(jnp.isinf(r * z), -(0.5 * z) * z, (0.5 * square_gap(r, v)) / v)


# (v - r^2) / (2 v^2)
_in_variance = differentiable(
    _in_variance_value,
    lambda m, t, v: -_in_mean(m, t, v) / v,
    lambda m, t, v: _in_mean(m, t, v) / v,
    lambda m, t, v: (jnp.square(_in_mean(m, t, v)) - 0.5 / v) / v,
)

_gaussian = differentiable(
    _gaussian_value,
    _in_mean,
    lambda m, t, v: -_in_mean(m, t, v),
    _in_variance,
)


@compiled
def gaussian_nll(
    mean: Real,
    targets: Real,
    variance: Positive,
    *,
    full: bool = False,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-density of a Gaussian whose mean and variance are predicted.

        1/2 (log v + r^2 / v),   r = mean - targets, v = variance
        full:  + 1/2 log(2 pi)

    Use to learn how uncertain a prediction is, beside the prediction. A head of real numbers becomes a variance by exp
    or softplus; what keeps it from 0 is that head's choice.

    Args:
      mean, targets: [...] real, one shape.
      variance: [...] > 0, the same shape: the square of the standard deviation.
      full: whether the constant belongs to it, which makes it -log of the density.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, of either sign: a density may be above 1. Within 4 (1 + k) ulp, k = (|log v| + r^2 / v) / |value|.
    Gradient: (mean - targets) / v; (v - r^2) / (2 v^2) towards the variance, exact in the difference too. Its mean part
      shrinks where v is large: errors that are called uncertain are not learnt from.
    Peers: torch.nn.GaussianNLLLoss, torch.nn.functional.gaussian_nll_loss (which raise variances below eps to it).
    Reference: Nix and Weigend (1994), Estimating the mean and variance of the target probability distribution, ICNN.
    """

    def value(mean: Array, targets: Array, variance: Array) -> Array:
        found = _gaussian(mean, targets, variance)
        return found + 0.5 * LOG_2_PI if full else found

    return pointwise(
        value,
        mean=mean,
        targets=targets,
        variance=variance,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _in_log_rate(x: Array, t: Array) -> Array:
    return exp_minus(*apart(x, t))


_poisson = differentiable(lambda x, t: jnp.exp(x) - t * x, _in_log_rate, lambda x, t: -x)

# Two terms >= 0: exp(x), t x and log(t!) are each 1e7 where t is 1e6, and what is left of them is 10.
_full_poisson = differentiable(
    lambda x, t: exp_gap(x, t) + stirling_gap(t),
    _in_log_rate,
    lambda x, t: lax.digamma(1 + t) - x,
)


@compiled
def poisson_nll(
    log_rate: Real,
    counts: NonNegative,
    *,
    full: bool = False,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of counts under a Poisson distribution whose log-rate is predicted.

        exp(x) - n x,   x = log_rate, n = counts
        full:  + log(n!)

    Use for counts of events without an upper bound: visits, defects, photons.

    Args:
      log_rate: [...] real: the logarithm of the expected count.
      counts: [...] >= 0, the same shape; integers, or any numbers >= 0 (the factorial is then Gamma(n + 1)).
      full: whether log(n!) belongs to it, which makes it -log of the probability.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats; of either sign without `full`, in [0, inf) for integer counts with it. Within 4 (1 + k) ulp,
      k = (exp(x) + n |x|) / |value|; full: k = |x (exp(x) - n)| / value, also where n = 1e7 and the value is 10.
    Gradient: exp(x) - n, within 4 (1 + k) ulp, k = |x| exp(x) / |exp(x) - n|; full or not. -x, full:
      digamma(n + 1) - x, towards the counts, with the digits of XLA's digamma.
    Peers: torch.nn.PoissonNLLLoss, torch.nn.functional.poisson_nll_loss (whose full is Stirling's approximation, and
      left out for n <= 1), keras.losses.Poisson (of rates, not of their logarithms).
    Reference: Nelder and Wedderburn (1972), Generalized linear models, J. R. Stat. Soc. A 135(3).
    """

    def value(log_rate: Array, counts: Array) -> Array:
        return _full_poisson(log_rate, counts) if full else _poisson(log_rate, counts)

    return pointwise(
        value,
        log_rate=log_rate,
        counts=counts,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def categorical_nll(
    log_probabilities: LogProbability,
    labels: Label,
    *,
    axis: int = -1,
    class_weights: NonNegative | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of the true class, from log-probabilities.

        -c[label] log_probabilities[label],   c = class_weights or 1

    Use where a model gives log-probabilities themselves (a mixture, an ensemble's mean). From logits take
    `softmax_cross_entropy`, which keeps the digits that a sure log_softmax has lost.

    Args:
      log_probabilities: [..., C] log-probabilities; -inf rules a class out. They are taken as they are: nothing here
        makes their exponentials add up to 1.
      labels: [...] integer in [0, C). PyTorch's -100 is spelled `where=labels != -100`.
      axis: the class axis of `log_probabilities`.
      class_weights: [C] >= 0; the mean divides by the sum of `class_weights[labels]`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; inf where the label is ruled out. Nothing is rounded without class weights.
    Gradient: -c[label] at the label, 0 elsewhere.
    Peers: torch.nn.NLLLoss, torch.nn.functional.nll_loss.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1).
    """

    def value(
        log_probabilities: Array, labels: Array, class_weights: Array | None, *, axis: int
    ) -> Array | tuple[Array, Array]:
        nll = -widen(jnp.squeeze(take_label(log_probabilities, labels, axis), axis))
        if class_weights is None:
            return nll
        share = jnp.take(class_weights, labels, mode="clip")
        return share * nll, share

    return labelled(
        value,
        log_probabilities=log_probabilities,
        labels=labels,
        axis=axis,
        per_class={"class_weights": class_weights},
        where=where,
        weights=weights,
        reduction=reduction,
    )
