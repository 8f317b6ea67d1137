"""One yes-or-no question an entry: logits, probabilities or scores against it."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import binary_focal, binary_nll, sigmoid, softplus, weighted_binary_nll
from jaxloss.core.frames import pointwise
from jaxloss.core.numerics import apart, differentiable, log1p
from jaxloss.core.types import (
    Array,
    BinaryLogit,
    Fraction,
    Mask,
    NonNegative,
    Positive,
    Probability,
    Real,
    Reduction,
    Sign,
    Weights,
)

__all__ = [
    "binary_cross_entropy",
    "hinge",
    "logistic",
    "perceptron",
    "sigmoid_cross_entropy",
    "sigmoid_focal",
    "sparsemax_binary",
    "squared_hinge",
]


@compiled
def sigmoid_cross_entropy(
    logits: BinaryLogit,
    targets: Probability,
    *,
    positive_weight: Positive | None = None,
    label_smoothing: Fraction | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Binary cross-entropy on logits: the negative log-likelihood of a yes or a no.

        -w t log(sigmoid(x)) - (1 - t) log(sigmoid(-x)),   x = logits, t = targets, w = positive_weight

    Use for yes-or-no questions, one an entry, several of which may be yes at once (multi-label problems too).

    Args:
      logits: [...] real, log-odds of yes; -inf and inf are certainty.
      targets: [...] in [0, 1], the shape of `logits`; 0 and 1 are hard labels.
      positive_weight: > 0, multiplies the yes term, to trade recall against precision; None is 1.
      label_smoothing: in [0, 1), moves targets towards 1/2: t (1 - s) + s / 2; None is 0.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); 0 for certainty on the right side.
    Gradient: sigmoid(logits) - targets, in [-1, 1], without positive_weight; it keeps its digits in both tails.
    Peers: optax.sigmoid_binary_cross_entropy, torch.nn.BCEWithLogitsLoss,
      torch.nn.functional.binary_cross_entropy_with_logits, torch.nn.MultiLabelSoftMarginLoss,
      keras.losses.BinaryCrossentropy, jaxopt.loss.binary_logistic_loss, rax.pointwise_sigmoid_loss.
    Reference: Cox (1958), The regression analysis of binary sequences, J. R. Stat. Soc. B 20(2).
    """

    def value(x: Array, t: Array, positive_weight: Array | None, label_smoothing: Array | None) -> Array:
        if label_smoothing is not None:
            t = t * (1 - label_smoothing) + 0.5 * label_smoothing
        if positive_weight is None:
            return binary_nll(x, t)
        return weighted_binary_nll(x, t, positive_weight)

    return pointwise(
        value,
        logits=logits,
        targets=targets,
        scalars={"positive_weight": positive_weight, "label_smoothing": label_smoothing},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def sigmoid_focal(
    logits: BinaryLogit,
    targets: Probability,
    *,
    gamma: NonNegative = 2.0,
    alpha: Probability | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Binary cross-entropy that counts an entry the less, the better it is already classified.

        a q^gamma l,   l = sigmoid_cross_entropy(logits, targets)
        q = (1 - t) sigmoid(x) + t sigmoid(-x), the probability given to the wrong side
        a = alpha t + (1 - alpha) (1 - t), or 1 without alpha

    Use for many easy negatives and few positives (dense detection, rare events); gamma = 0 is plain cross-entropy.

    Args:
      logits: [...] real, log-odds of yes.
      targets: [...] in [0, 1], the shape of `logits`.
      gamma: >= 0, how fast easy entries fade.
      alpha: in [0, 1], the weight of yes against no; None weighs neither (0.25 in the paper).
      where, weights, reduction: see `jaxloss.reduce`. The paper divides the sum by the number of positives.
    Returns: nats, in [0, inf). Within 4 (1 + gamma) ulp: a power multiplies the error of its base.
    Gradient: a q^gamma (gamma (1 - 2 t) sigmoid(x) sigmoid(-x) l / q + sigmoid(x) - t); finite for every gamma >= 0.
    Peers: optax.sigmoid_focal_loss, torchvision.ops.sigmoid_focal_loss, keras.losses.BinaryFocalCrossentropy.
    Reference: Lin, Goyal, Girshick, He and Dollar (2017), Focal loss for dense object detection, ICCV, eq. 5.
    """

    def value(x: Array, t: Array, gamma: Array, alpha: Array | None) -> Array:
        loss = binary_focal(x, t, gamma)
        return loss if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * loss

    return pointwise(
        value,
        logits=logits,
        targets=targets,
        scalars={"gamma": gamma, "alpha": alpha},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _probability_nll_value(p: Array, t: Array) -> Array:
    # A label of 0 or 1 takes one term away, whose logarithm may be infinite: there, and only there, the maximum keeps
    # it finite. A select would make XLA's CPU write the entries out before it sums them.
    limits = jnp.finfo(p.dtype)
    of_yes = t * jnp.log(jnp.maximum(p, float(limits.tiny) - t))
    # Scaled, t - 1 is either 0 or at most -2, and -p at least -1.
    steps = (t - 1) * (2 / float(limits.epsneg))
    return (t - 1) * jnp.log1p(jnp.maximum(-p, steps)) - of_yes


def _probability_nll_slope(p: Array, t: Array) -> Array:
    # (p - t) / (p (1 - p)), which is 0 / 0 where a hard label is met exactly; there one factor cancels.
    p, t, zero, one = apart(p, t, jnp.zeros((), p.dtype), jnp.ones((), p.dtype))
    wrong = jnp.where(t == zero, one, (p - t) / jnp.where(t == zero, one, p))
    return jnp.where(t == one, -one / p, wrong / jnp.where(t == one, one, one - p))


_probability_nll = differentiable(
    _probability_nll_value,
    _probability_nll_slope,
    lambda p, t: log1p(-p) - jnp.log(p),
)


@compiled
def binary_cross_entropy(
    probabilities: Probability,
    targets: Probability,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Binary cross-entropy on probabilities, for models that end in a probability and have no logit.

        -t log(p) - (1 - t) log(1 - p),   p = probabilities, t = targets

    Use only where logits cannot be had: a probability near 1 has already lost the digits of 1 - p;
    `sigmoid_cross_entropy` keeps them.

    Args:
      probabilities: [...] in [0, 1].
      targets: [...] in [0, 1], the shape of `probabilities`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; exactly 0 for a met hard label, inf for a hard label given probability 0.
    Gradient: (p - t) / (p (1 - p)); 1 / (1 - p) or -1 / p for hard labels, also where p meets them. Nothing is clipped.
    Peers: torch.nn.BCELoss, torch.nn.functional.binary_cross_entropy, keras.losses.BinaryCrossentropy, rlax.log_loss.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1).
    """
    return pointwise(
        _probability_nll,
        probabilities=probabilities,
        targets=targets,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _hinge_slope(scores: Array, signs: Array) -> Array:
    scores, signs, zero, one = apart(scores, signs, jnp.zeros((), scores.dtype), jnp.ones((), scores.dtype))
    return jnp.where(signs * scores < one, -signs, zero)


# Written down, because the derivative of a maximum at a tie is one half of each: at the margin it is to be 0.
_hinge = differentiable(
    lambda scores, signs: jnp.maximum(1 - signs * scores, 0),
    _hinge_slope,
    lambda scores, signs: jnp.where(signs * scores < 1, -scores, 0),
)


@compiled
def hinge(
    scores: Real,
    signs: Sign,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far a score falls short of a margin of 1 on the right side of 0.

        max(0, 1 - signs scores)

    Use for large-margin classifiers (support vector machines): entries beyond the margin do not pull at all.

    Args:
      scores: [...] real; their sign is the decision.
      signs: [...] -1 or 1, the shape of `scores`. Labels in {0, 1} are spelled `signs=2 * labels - 1`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf).
    Gradient: -signs inside the margin, 0 at it and beyond.
    Peers: optax.hinge_loss, keras.losses.Hinge, jaxopt.loss.binary_hinge_loss.
    Reference: Cortes and Vapnik (1995), Support-vector networks, Machine Learning 20(3).
    """

    return pointwise(_hinge, scores=scores, signs=signs, where=where, weights=weights, reduction=reduction)


def _squared_hinge_slope_value(scores: Array, signs: Array) -> Array:
    scores, signs, zero, one = apart(scores, signs, jnp.zeros((), scores.dtype), jnp.ones((), scores.dtype))
    return -2 * signs * jnp.maximum(one - signs * scores, zero)


_squared_hinge_slope = differentiable(
    _squared_hinge_slope_value,
    lambda scores, signs: jnp.where(signs * scores < 1, 2 * jnp.square(signs), 0),
    lambda scores, signs: jnp.where(signs * scores < 1, 4 * signs * scores - 2, 0),
)

_squared_hinge = differentiable(
    lambda scores, signs: jnp.square(jnp.maximum(1 - signs * scores, 0)),
    _squared_hinge_slope,
    lambda scores, signs: -2 * scores * _hinge(scores, signs),
)


@compiled
def squared_hinge(
    scores: Real,
    signs: Sign,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Square of how far a score falls short of a margin of 1 on the right side of 0.

        max(0, 1 - signs scores)^2

    Use like `hinge` where the slope must not jump: it fades towards the margin, and grows with how wrong a score is.

    Args:
      scores: [...] real; their sign is the decision.
      signs: [...] -1 or 1, the shape of `scores`. Labels in {0, 1} are spelled `signs=2 * labels - 1`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf).
    Gradient: -2 signs max(0, 1 - signs scores); continuous, its slope jumps from 2 to 0 at the margin.
    Peers: keras.losses.SquaredHinge.
    Reference: Chang, Hsieh and Lin (2008), Coordinate descent method for large-scale L2-loss linear support vector
      machines, JMLR 9.
    """

    return pointwise(_squared_hinge, scores=scores, signs=signs, where=where, weights=weights, reduction=reduction)


def _perceptron_slope(scores: Array, signs: Array) -> Array:
    scores, signs, zero = apart(scores, signs, jnp.zeros((), scores.dtype))
    return jnp.where(signs * scores < zero, -signs, zero)


_perceptron = differentiable(
    lambda scores, signs: jnp.maximum(-signs * scores, 0),
    _perceptron_slope,
    lambda scores, signs: jnp.where(signs * scores < 0, -scores, 0),
)


@compiled
def perceptron(
    scores: Real,
    signs: Sign,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far a score lies on the wrong side of 0.

        max(0, -signs scores)

    Use for the perceptron's own updates: only mistakes pull. All scores 0 is a minimum too, which `hinge` is not.

    Args:
      scores: [...] real; their sign is the decision.
      signs: [...] -1 or 1, the shape of `scores`. Labels in {0, 1} are spelled `signs=2 * labels - 1`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: score units, in [0, inf), exact.
    Gradient: -signs on the wrong side, 0 on the right side and at a score of 0.
    Peers: optax.losses.perceptron_loss, jaxopt.loss.binary_perceptron_loss.
    Reference: Rosenblatt (1958), The perceptron: a probabilistic model for information storage and organization in the
      brain, Psychological Review 65(6).
    """

    return pointwise(_perceptron, scores=scores, signs=signs, where=where, weights=weights, reduction=reduction)


def _logistic_slope_value(scores: Array, signs: Array) -> Array:
    scores, signs, one = apart(scores, signs, jnp.ones((), scores.dtype))
    right = signs * scores
    decay = jnp.exp(-jnp.abs(right))
    return -signs * jnp.where(right < -right, one, decay) / (one + decay)


_logistic_slope = differentiable(
    _logistic_slope_value,
    lambda scores, signs: jnp.square(signs) * sigmoid(scores) * sigmoid(-scores),
    lambda scores, signs: sigmoid(-signs * scores) * (signs * scores * sigmoid(signs * scores) - 1),
)

_logistic = differentiable(
    lambda scores, signs: softplus(-signs * scores),
    _logistic_slope,
    lambda scores, signs: -scores * sigmoid(-signs * scores),
)


@compiled
def logistic(
    scores: Real,
    signs: Sign,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Logistic loss of a score and a sign: the negative log-likelihood of a yes (1) or a no (-1).

        log(1 + exp(-signs scores))

    Use for yes-or-no questions whose answers are signs; labels in [0, 1] have `sigmoid_cross_entropy`.

    Args:
      scores: [...] real, log-odds of yes.
      signs: [...] -1 or 1, the shape of `scores`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); log(2) at a score of 0. A confident score keeps all digits: 1e-30 is not 0.
    Gradient: -signs sigmoid(-signs scores), in (-1, 1); it keeps its digits in both tails.
    Peers: torch.nn.SoftMarginLoss, torch.nn.functional.soft_margin_loss.
    Reference: Friedman, Hastie and Tibshirani (2000), Additive logistic regression: a statistical view of boosting,
      Ann. Stat. 28(2).
    """

    return pointwise(_logistic, scores=scores, signs=signs, where=where, weights=weights, reduction=reduction)


def _sparsemax_value(scores: Array, signs: Array) -> Array:
    margin = signs * scores
    return jnp.where(margin < -1, -margin, 0.25 * jnp.square(jnp.maximum(1 - margin, 0)))


def _sparsemax_slope_value(scores: Array, signs: Array) -> Array:
    scores, signs, zero, one = apart(scores, signs, jnp.zeros((), scores.dtype), jnp.ones((), scores.dtype))
    margin = signs * scores
    return -signs * jnp.where(margin < -one, one, 0.5 * jnp.maximum(one - margin, zero))


_sparsemax_slope = differentiable(
    _sparsemax_slope_value,
    lambda scores, signs: jnp.where(jnp.abs(scores) < 1, 0.5 * jnp.square(signs), 0),
    lambda scores, signs: jnp.where(
        jnp.abs(scores) < 1, signs * scores - 0.5, jnp.where(signs * scores < 0, -1.0, 0.0)
    ),
)

_sparsemax = differentiable(
    _sparsemax_value,
    _sparsemax_slope,
    lambda scores, signs: -0.5 * scores * jnp.clip(1 - signs * scores, 0, 2),
)


@compiled
def sparsemax_binary(
    scores: Real,
    signs: Sign,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """The loss of two classes whose predicted probability is a line clipped to [0, 1] (modified Huber).

        0               where m >= 1,   m = signs scores
        1/4 (1 - m)^2   between
        -m              where m <= -1

    Use like `logistic` where a sure answer should have probability exactly 1 and pull no more.

    Args:
      scores: [...] real; the probability of yes is clip((1 + scores) / 2, 0, 1).
      signs: [...] -1 or 1, the shape of `scores`. Labels in {0, 1} are spelled `signs=2 * labels - 1`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf); 0 from a margin of 1 on.
    Gradient: -signs clip((1 - m) / 2, 0, 1); continuous, its slope jumps at m = -1 and m = 1.
    Peers: optax.losses.sparsemax_loss (labels in {0, 1}), jaxopt.loss.binary_sparsemax_loss.
    Reference: Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR 21(35), section 4.4.
    """

    return pointwise(_sparsemax, scores=scores, signs=signs, where=where, weights=weights, reduction=reduction)
