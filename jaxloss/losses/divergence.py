"""How far one distribution lies from another."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import log_sum_exp, softmax
from jaxloss.core.frames import eventwise
from jaxloss.core.numerics import differentiable, exp_gap, expm1_minus, log1p, widen, xlogx_gap
from jaxloss.core.types import (
    Array,
    Logit,
    LogProbability,
    Mask,
    NonNegative,
    Probability,
    Real,
    Reduction,
    Weights,
)

__all__ = [
    "gaussian_kl",
    "generalized_kl_divergence",
    "jensen_shannon",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "reverse_kl_divergence",
]


# t (log t - lp) for a probability t and a log-probability lp: 0 at t = 0 whatever lp is.
_relative_entropy = differentiable(
    lambda lp, t: jnp.where(t == 0, 0, t * (jnp.log(jnp.where(t == 0, 1, t)) - jnp.where(t == 0, 0, lp))),
    lambda lp, t: -t,
    lambda lp, t: jnp.where((t == 0) & (lp == -jnp.inf), 0, (jnp.log(t) - lp) + 1),
)

# exp(s) (s - lp) for two log-probabilities: 0 at s = -inf whatever lp is.
_log_relative_entropy = differentiable(
    lambda lp, s: jnp.where(s == -jnp.inf, 0, jnp.exp(s) * jnp.where(s == -jnp.inf, 0, s - lp)),
    lambda lp, s: -jnp.exp(s),
    lambda lp, s: jnp.where(s == -jnp.inf, 0, jnp.exp(s) * jnp.where(s == -jnp.inf, 0, (s - lp) + 1)),
)

# exp(lp) (lp - log t): 0 at lp = -inf whatever t is, inf at t = 0 elsewhere.
_reverse_relative_entropy = differentiable(
    lambda lp, t: jnp.where(lp == -jnp.inf, 0, jnp.exp(lp) * jnp.where(lp == -jnp.inf, 0, lp - jnp.log(t))),
    lambda lp, t: jnp.where(lp == -jnp.inf, 0, jnp.exp(lp) * jnp.where(lp == -jnp.inf, 0, (lp - jnp.log(t)) + 1)),
    lambda lp, t: jnp.where(lp == -jnp.inf, 0, -jnp.exp(lp) / jnp.where(lp == -jnp.inf, 1, t)),
)


def _summed(each: Any) -> Any:
    def value(first: Array, second: Array, *, axis: int) -> Array:
        return jnp.sum(each(widen(first), widen(second)), axis=axis)

    return value


@compiled
def kl_divergence(
    log_predictions: LogProbability,
    targets: Probability,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kullback-Leibler divergence of predicted log-probabilities from target probabilities.

        sum_j t_j (log t_j - l_j),   l = log_predictions, t = targets;  0 log 0 = 0

    Use to match a known distribution; the model must give mass wherever the target has some.

    Args:
      log_predictions: [..., C] log-probabilities, -inf where the model excludes a class (log_softmax of logits).
      targets: [..., C] probabilities, the same shape.
      axis: the axis that is summed.
      where, weights, reduction: see `jaxloss.reduce`. torch's "mean" divides by all entries, ours by distributions.
    Returns: nats, in [0, inf] for normalised inputs; inf where a target meets l = -inf. Within 4 (1 + k) ulp, where
      k = sum t |l| / |value|: for two nearly equal distributions the logarithms cancel.
    Gradient: -targets, towards log_predictions; log(t) - l + 1 towards targets, -inf at t = 0.
    Peers: optax.kl_divergence, torch.nn.KLDivLoss, torch.nn.functional.kl_div, keras.losses.KLDivergence.
    Reference: Kullback and Leibler (1951), On information and sufficiency, Ann. Math. Stat. 22(1).
    """
    return eventwise(
        _summed(_relative_entropy),
        log_predictions=log_predictions,
        targets=targets,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def kl_divergence_with_log_targets(
    log_predictions: LogProbability,
    log_targets: LogProbability,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kullback-Leibler divergence of predicted from target log-probabilities.

        sum_j exp(s_j) (s_j - l_j),   l = log_predictions, s = log_targets;  exp(-inf) (-inf) = 0

    Use when the target comes as log-probabilities (a teacher): nearly equal distributions keep more digits so.

    Args:
      log_predictions: [..., C] log-probabilities, -inf where the model excludes a class.
      log_targets: [..., C] log-probabilities, the same shape; -inf has no weight.
      axis: the axis that is summed.
      where, weights, reduction: see `jaxloss.reduce`. torch's "mean" divides by all entries, ours by distributions.
    Returns: nats, in [0, inf] for normalised inputs. Within 4 (1 + k) ulp, k = sum exp(s) (|s| + |l|) / |value|.
    Gradient: -exp(log_targets), towards log_predictions.
    Peers: optax.losses.kl_divergence_with_log_targets, torch.nn.KLDivLoss, rlax.categorical_kl_divergence.
    Reference: Kullback and Leibler (1951), On information and sufficiency, Ann. Math. Stat. 22(1).
    """
    return eventwise(
        _summed(_log_relative_entropy),
        log_predictions=log_predictions,
        log_targets=log_targets,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def reverse_kl_divergence(
    log_predictions: LogProbability,
    targets: Probability,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kullback-Leibler divergence of target probabilities from predicted log-probabilities.

        sum_j exp(l_j) (l_j - log t_j),   l = log_predictions, t = targets;  exp(-inf) (-inf) = 0

    Use when the model should settle on a mode of the target rather than cover all of it; the target must have mass
    wherever the model has some.

    Args:
      log_predictions: [..., C] log-probabilities, -inf where the model excludes a class.
      targets: [..., C] probabilities, the same shape.
      axis: the axis that is summed.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf] for normalised inputs; inf where the model has mass and the target none. Within
      4 (1 + k) ulp, k = sum exp(l) (|l| + |log t|) / |value|.
    Gradient: exp(l) (l - log t + 1), towards log_predictions, 0 where l = -inf.
    Peers: none known.
    Reference: Kullback and Leibler (1951), On information and sufficiency, Ann. Math. Stat. 22(1).
    """
    return eventwise(
        _summed(_reverse_relative_entropy),
        log_predictions=log_predictions,
        targets=targets,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def generalized_kl_divergence(
    log_predictions: Logit,
    targets: NonNegative,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kullback-Leibler divergence of measures that need not add up to 1 (I-divergence).

        sum_j t_j (log t_j - l_j) - t_j + exp(l_j),   l = log_predictions, t = targets;  0 log 0 = 0

    Use to match amounts, counts or spectra, where the total is to be learnt too; between distributions it is
    `kl_divergence`, and >= 0 entry by entry, however little they differ.

    Args:
      log_predictions: [..., C] logarithms of what is predicted; -inf predicts 0.
      targets: [..., C] real >= 0, the same shape.
      axis: the axis that is summed.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; 0 only at equality, inf where a target meets l = -inf. No term cancels another: within
      4 (1 + k) ulp, k = sum |l (exp(l) - t)| / value.
    Gradient: exp(log_predictions) - targets, towards log_predictions; log(t) - l towards targets, -inf at t = 0.
    Peers: optax.losses.generalized_kl_divergence.
    Reference: Csiszar (1991), Why least squares and maximum entropy? An axiomatic approach to inference for linear
      inverse problems, Ann. Stat. 19(4), section 1.
    """
    return eventwise(
        _summed(exp_gap),
        log_predictions=log_predictions,
        targets=targets,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _shares(zp: Array, zq: Array, beta: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """p, q, their mixture m, and (p - q) / m."""
    p, q = softmax(zp, axis), softmax(zq, axis)
    m = beta * p + (1 - beta) * q
    alive = m > 0
    return p, q, m, jnp.where(alive, p - q, 0) / jnp.where(alive, m, 1)


def _log_share(z: Array, log_m: Array, u: Array, axis: int) -> Array:
    """log(p / m) for p = m (1 + u): by u where p is near m, by the logits where p is nearly nothing, 0 at p = 0."""
    far = u < -0.5
    distance = jnp.where(far & (z > -jnp.inf), z - jnp.expand_dims(log_sum_exp(z, axis), axis) - log_m, 0)
    return jnp.where(far, distance, log1p(jnp.where(far, 0, u)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _jensen_shannon_value(zp: Array, zq: Array, beta: Array, axis: int) -> Array:
    _, _, m, ratio = _shares(zp, zq, beta, axis)
    # With p = m (1 + u), q = m (1 + v) and beta u + (1 - beta) v = 0, each class adds the Jensen gap of x log x:
    # terms >= 0, of which none cancels where p and q are close.
    gap = beta * xlogx_gap((1 - beta) * ratio) + (1 - beta) * xlogx_gap(-beta * ratio)
    return jnp.sum(m * gap, axis=axis)


@_jensen_shannon_value.defjvp
def _jensen_shannon_rule(
    axis: int, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    # Through p, the chain rule would meet log(p) at an underflowed p: inf * 0. Towards the logits nothing is infinite.
    (zp, zq, beta), (dp, dq, dbeta) = primals, tangents
    p, q, m, ratio = _shares(zp, zq, beta, axis)
    log_m = jnp.log(jnp.where(m > 0, m, 1))
    r, s = _log_share(zp, log_m, (1 - beta) * ratio, axis), _log_share(zq, log_m, -beta * ratio, axis)
    kl_p, kl_q = (jnp.sum(a * b, axis=axis, keepdims=True) for a, b in ((p, r), (q, s)))
    tangent = jnp.sum(beta * p * (r - kl_p) * dp + (1 - beta) * q * (s - kl_q) * dq, axis=axis)
    return _jensen_shannon_value(zp, zq, beta, axis), tangent + jnp.squeeze(kl_p - kl_q, axis) * dbeta


def _jensen_shannon(logits_p: Array, logits_q: Array, beta: Array, *, axis: int) -> Array:
    return _jensen_shannon_value(widen(logits_p), widen(logits_q), beta, axis)


@compiled
def jensen_shannon(
    logits_p: Logit,
    logits_q: Logit,
    *,
    beta: Probability = 0.5,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Jensen-Shannon divergence of the distributions that two rows of logits stand for.

        beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q, p = softmax(logits_p), ...

    Use to pull two models together: symmetric at beta = 1/2, bounded, and finite where one excludes a class.

    Args:
      logits_p, logits_q: [..., C] real, one shape; -inf excludes a class.
      beta: in [0, 1], the share of p in the mixture; 0 and 1 give a divergence of 0.
      axis: the axis of the classes.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, log 2]; 0 only for equal distributions. Within 4 (1 + k) ulp, k the relative rounding of
      p - q: sum p |log p| / sqrt(value) at most.
    Gradient: beta p (log(p / m) - KL(p || m)) towards logits_p; 0 at equality, bounded by log 2 at beta = 1/2.
    Peers: none known.
    Reference: Lin (1991), Divergence measures based on the Shannon entropy, IEEE Trans. Inf. Theory 37(1).
    """

    return eventwise(
        _jensen_shannon,
        logits_p=logits_p,
        logits_q=logits_q,
        scalars={"beta": beta},
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def gaussian_kl(
    mean: Real,
    log_variance: Real,
    prior_mean: Real | None = None,
    prior_log_variance: Real | None = None,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Kullback-Leibler divergence of one diagonal Gaussian from another, by default from the standard one.

        1/2 sum_j ((mu_j - mu0_j)^2 / exp(s0_j) + exp(d_j) - 1 - d_j),   d = s - s0

    Use as the rate of a variational autoencoder: s and s0 are `log_variance` and the prior's, 0 by default.

    Args:
      mean, log_variance: [..., D] real, one shape.
      prior_mean, prior_log_variance: [..., D] real, the same shape; None is 0.
      axis: the axis that is summed (the latent's components).
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); 0 only where the two agree.
    Gradient: (mu - mu0) / exp(s0) towards mean, 1/2 (exp(d) - 1) towards log_variance; exact at 0, where they vanish.
    Peers: rlax.multivariate_normal_kl_divergence.
    Reference: Kingma and Welling (2014), Auto-encoding variational Bayes, ICLR, appendix B.
    """
    prior = {"prior_mean": prior_mean, "prior_log_variance": prior_log_variance}
    given = {name: x for name, x in prior.items() if x is not None}

    def value(mean: Array, log_variance: Array, *others: Array, axis: int) -> Array:
        named = dict(zip(given, others, strict=True))
        shift, growth = widen(mean), widen(log_variance)
        if "prior_mean" in named:
            shift = shift - widen(named["prior_mean"])
        square = jnp.square(shift)
        if "prior_log_variance" in named:
            width = widen(named["prior_log_variance"])
            growth, square = growth - width, square * jnp.exp(-width)
        # exp(d) - 1 - d is about d^2 / 2, of which the plain form has no digit left near 0.
        return 0.5 * jnp.sum(square + expm1_minus(growth), axis=axis)

    return eventwise(
        value,
        mean=mean,
        log_variance=log_variance,
        **given,
        valid=None,
        scalars=None,
        axis=axis,
        where=where,
        weights=weights,
        reduction=reduction,
    )
