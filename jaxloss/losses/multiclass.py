"""One class out of several: unnormalised class scores against a label, or against a distribution over the classes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms.entmax import entmax_nll
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import focal, label_nll, log_sum_exp, shortfall, soft_label_nll
from jaxloss.core.frames import eventwise, labelled
from jaxloss.core.numerics import differentiable, expm1, expm1_minus, widen
from jaxloss.core.sharding import is_label, take_label
from jaxloss.core.types import (
    Array,
    ArrayLike,
    Domain,
    Fraction,
    Label,
    Logit,
    Mask,
    NonNegative,
    Positive,
    Probability,
    Reduction,
    ValidMask,
    Weights,
)

__all__ = [
    "entmax",
    "multiclass_hinge",
    "multiclass_margin",
    "multiclass_perceptron",
    "poly_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_soft_labels",
    "softmax_focal",
    "sparsemax",
]


@compiled
def softmax_cross_entropy(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    class_weights: NonNegative | None = None,
    label_smoothing: Fraction | None = None,
    z_loss: NonNegative | None = None,
    temperature: Positive | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of the true class (categorical cross-entropy on integer labels).

        l = logsumexp(z) - z[label],   z = logits / temperature
        (1 - s) c[label] l + s / C sum_j c_j (logsumexp(z) - z_j) + z_loss c[label] logsumexp(z)^2

    Use to choose one of C classes. The extras (c = class_weights, s = label_smoothing, z_loss) are absent unless given.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C). PyTorch's -100 is spelled `where=labels != -100`.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist; the others are ruled out, also from smoothing.
      class_weights: [C] >= 0; the mean divides by the sum of `class_weights[labels]`.
      label_smoothing: in [0, 1), the share that is spread evenly over the classes; None is 0.
      z_loss: >= 0, keeps logsumexp(z) near 0 (1e-4 in language models); None is 0.
      temperature: > 0, divides the logits; None is 1.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; log(C) for equal logits, inf where the label is ruled out. A confident row keeps all
      digits: 1e-30 is not 0.
    Gradient: softmax(logits) - onehot(label) without extras, entries in [-1, 1], exact where the row is confident.
    Peers: optax.softmax_cross_entropy_with_integer_labels, torch.nn.CrossEntropyLoss,
      torch.nn.functional.cross_entropy, keras.losses.SparseCategoricalCrossentropy,
      jaxopt.loss.multiclass_logistic_loss.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1); smoothing: Szegedy et al. (2016), CVPR,
      section 7; z-loss: Chowdhery et al. (2023), PaLM, JMLR 24, section 5.
    """

    def value(
        z: Array,
        labels: Array,
        class_weights: Array | None,
        label_smoothing: Array | None,
        z_loss: Array | None,
        temperature: Array | None,
        *,
        axis: int,
        valid: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        z = _ruled_out(z, valid)
        if label_smoothing is not None or z_loss is not None or temperature is not None:
            z = widen(z)  # several parts: their gradients are added in float32, and rounded to the logits' dtype once
        if temperature is not None:
            z = z / temperature
        share = None if class_weights is None else jnp.take(class_weights, labels, mode="clip")
        loss = label_nll(z, labels, axis)
        if label_smoothing is not None:
            loss = (1 - label_smoothing) * loss
        if z_loss is not None:
            loss = loss + z_loss * jnp.square(log_sum_exp(z, axis))
        if share is not None:
            loss = share * loss
        if label_smoothing is not None:
            exists = jnp.ones(z.shape, loss.dtype) if valid is None else valid.astype(loss.dtype)
            even = exists / jnp.sum(exists, axis=axis, keepdims=True)
            if class_weights is not None:
                even = even * class_weights.reshape([-1 if i == axis else 1 for i in range(z.ndim)])
            loss = loss + label_smoothing * soft_label_nll(z, even, axis)
        return loss if share is None else (loss, share)

    return labelled(
        value,
        logits=logits,
        labels=labels,
        axis=axis,
        valid=valid,
        per_class={"class_weights": class_weights},
        scalars={"label_smoothing": label_smoothing, "z_loss": z_loss, "temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def softmax_cross_entropy_with_soft_labels(
    logits: Logit,
    targets: Probability,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of the predicted distribution under a target distribution (categorical cross-entropy).

        sum_j t_j (logsumexp(z) - z_j),   z = logits, t = targets

    Use for one-hot or soft targets (mixup, several annotators); integer labels have `softmax_cross_entropy`.

    Args:
      logits: [..., C] real; -inf rules a class out.
      targets: [..., C] in [0, 1], the same shape; usually of sum 1, but any sum is taken as it is.
      axis: the class axis.
      valid: [..., C] bool, which classes exist; a target elsewhere does not count.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; inf where a target meets a ruled-out class, 0 where both are 0 and -inf.
    Gradient: sum(targets) softmax(logits) - targets.
    Peers: optax.softmax_cross_entropy, optax.safe_softmax_cross_entropy, torch.nn.CrossEntropyLoss,
      keras.losses.CategoricalCrossentropy, rlax.categorical_cross_entropy.
    Reference: Good (1952), Rational decisions, J. R. Stat. Soc. B 14(1).
    """

    def value(z: Array, t: Array, *, axis: int, valid: Array | None = None) -> Array:
        if valid is not None:
            z, t = jnp.where(valid, z, -jnp.inf), jnp.where(valid, t, 0)
        return soft_label_nll(z, t, axis)

    return eventwise(
        value,
        logits=logits,
        targets=targets,
        axis=axis,
        valid=valid,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def softmax_focal(
    logits: Logit,
    labels: Label,
    *,
    gamma: NonNegative = 2.0,
    alpha: NonNegative | None = None,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy that counts an example the less, the better it is already classified.

        alpha[label] (1 - p)^gamma (-log p),   p = softmax(logits)[label]

    Use for many easy examples and few hard ones; gamma = 0 is `softmax_cross_entropy`.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      gamma: >= 0, how fast easy examples fade.
      alpha: [C] or one number, >= 0, weighs the classes; None weighs none. The mean divides by the count all the same.
      axis: the class axis of `logits`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]. Within 4 (1 + gamma) ulp: a power multiplies the error of its base.
    Gradient: alpha q^gamma (1 + gamma p l / q) (softmax - onehot), q = 1 - p, l = -log p; finite for every gamma >= 0.
    Peers: keras.losses.CategoricalFocalCrossentropy.
    Reference: Lin, Goyal, Girshick, He and Dollar (2017), Focal loss for dense object detection, ICCV, eq. 5.
    """

    def value(z: Array, labels: Array, alpha: Array | None, gamma: Array, *, axis: int) -> Array:
        loss = focal(label_nll(z, labels, axis), gamma)
        return loss if alpha is None else jnp.take(alpha, labels, mode="clip") * loss

    return labelled(
        value,
        logits=logits,
        labels=labels,
        axis=axis,
        per_class={"alpha": alpha},
        scalars={"gamma": gamma},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def sparsemax(
    logits: Logit,
    labels: Label,
    *,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """The loss whose predicted distribution is the Euclidean projection of the scores onto the simplex.

        <p, z> - z[label] + 1/2 (1 - sum_j p_j^2),   p = argmin over distributions of |p - z|^2,  z = logits

    Use where most classes should get probability exactly 0; the loss itself is exactly 0 at a margin of 1.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      axis: the class axis of `logits`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf]; 0 where the label's score leads by 1 or more.
    Gradient: p - onehot(label), entries in [-1, 1], exactly 0 outside the support.
    Peers: optax.losses.multiclass_sparsemax_loss, jaxopt.loss.multiclass_sparsemax_loss.
    Reference: Martins and Astudillo (2016), From softmax to sparsemax, ICML, eq. 16.
    """

    def value(z: Array, labels: Array, *, axis: int) -> Array:
        return entmax_nll(widen(z), labels, 2.0, axis)

    return labelled(value, logits=logits, labels=labels, axis=axis, where=where, weights=weights, reduction=reduction)


@compiled
def entmax(
    logits: Logit,
    labels: Label,
    *,
    alpha: float = 1.5,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """The family between softmax (alpha = 1) and sparsemax (alpha = 2): sparse probabilities, curved loss.

        <p, z> - z[label] + (1 - sum_j p_j^alpha) / (alpha (alpha - 1)),   z = logits
        p_j = [(alpha - 1) z_j - tau]_+^(1 / (alpha - 1)),  tau such that p sums to 1

    Use like sparsemax where a softer support is wanted; alpha = 1.5 is the usual choice.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      alpha: > 1, a Python number: it shapes the program. alpha = 1 is `softmax_cross_entropy`.
      axis: the class axis of `logits`.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: dimensionless, in [0, inf]; 0 where the label's score leads by 1 / (alpha - 1) or more.
    Gradient: p - onehot(label), entries in [-1, 1], exactly 0 outside the support.
    Peers: none known.
    Reference: Peters, Niculae and Martins (2019), Sparse sequence-to-sequence models, ACL, eq. 10.
    """
    if not alpha > 1:
        raise ValueError(f"`alpha` of entmax must be > 1, got {alpha}; alpha = 1 is softmax_cross_entropy")

    def value(z: Array, labels: Array, *, axis: int) -> Array:
        return entmax_nll(widen(z), labels, alpha, axis)

    return labelled(value, logits=logits, labels=labels, axis=axis, where=where, weights=weights, reduction=reduction)


# -log p + epsilon (1 - p) as a function of nll = -log p: as the sum of what both have in common and the rest it is
# exact down to epsilon = -1, where the two leading terms cancel.
_poly = differentiable(
    lambda nll, epsilon: expm1_minus(-nll) - (1 + epsilon) * expm1(-nll),
    lambda nll, epsilon: (1 + epsilon) * jnp.exp(-nll) - expm1(-nll),
    lambda nll, epsilon: -expm1(-nll),
)


@compiled
def poly_cross_entropy(
    logits: Logit,
    labels: Label,
    *,
    epsilon: Annotated[ArrayLike, Domain("polynomial coefficient", low=-1.0, low_closed=True)] = 2.0,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy with another weight for the first term of its expansion in 1 - p (PolyLoss, Poly-1).

        -log(p) + epsilon (1 - p),   p = softmax(logits)[label]

    Use to tune how long a nearly right example keeps pulling; epsilon = 0 is `softmax_cross_entropy`.

    Args:
      logits: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      epsilon: >= -1, what is added to the first coefficient, which is 1. The paper: 2 for ImageNet, -1 for detection.
      axis: the class axis of `logits`.
      valid: [..., C] bool, which classes exist; the others are ruled out.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]; inf where the label is ruled out. A confident row keeps all digits: 1 - p is not formed.
    Gradient: (1 + epsilon p) (softmax(logits) - onehot(label)), exact where the row is confident.
    Peers: optax.losses.poly_loss_cross_entropy (one-hot labels), rax.poly1_softmax_loss (of lists).
    Reference: Leng, Tan, Liu, Cubuk, Shi, Cheng and Anguelov (2022), PolyLoss: a polynomial expansion perspective of
      classification loss functions, ICLR, eq. 6.
    """

    def value(z: Array, labels: Array, epsilon: Array, *, axis: int, valid: Array | None = None) -> Array:
        return _poly(label_nll(_ruled_out(z, valid), labels, axis), epsilon)

    return labelled(
        value,
        logits=logits,
        labels=labels,
        axis=axis,
        valid=valid,
        scalars={"epsilon": epsilon},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _ruled_out(z: Array, valid: Array | None) -> Array:
    return z if valid is None else jnp.where(valid, z, -jnp.inf)


def _own_and_rival(z: Array, labels: Array, axis: int) -> tuple[Array, Array]:
    """The label's score, and the highest one of the other classes (-inf without any); `axis` is consumed."""
    own = jnp.squeeze(take_label(z, labels, axis), axis)
    rival = jnp.max(jnp.where(is_label(z, labels, axis), -jnp.inf, z), axis=axis)
    return widen(own), widen(rival)


def _first_at(z: Array, level: Array, labels: Array, axis: int) -> Array:
    """Where the first class other than the label stands that has a score of `level`; `axis` is consumed."""
    reached = (widen(z) == jnp.expand_dims(level, axis)) & ~is_label(z, labels, axis)
    place = lax.broadcasted_iota(jnp.int32, z.shape, axis)
    return jnp.min(jnp.where(reached, place, z.shape[axis]), axis=axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _behind_the_rival(z: Array, labels: Array, margin: Array, axis: int) -> Array:
    """max(0, margin - (z[label] - max of the others)) over `axis`, which is consumed."""
    own, rival = _own_and_rival(z, labels, axis)
    return jnp.where(own == -jnp.inf, jnp.inf, shortfall(own, rival, margin))


@_behind_the_rival.defjvp
def _behind_the_rival_rule(axis: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    # By comparisons: of equal rivals the first one alone, where a maximum would share among all.
    (z, labels, margin), (dz, _, dm) = primals, tangents
    value = _behind_the_rival(z, labels, margin, axis)
    _, rival = _own_and_rival(lax.stop_gradient(z), labels, axis)
    active = (value > 0).astype(value.dtype)
    up = is_label(z, _first_at(z, rival, labels, axis), axis).astype(value.dtype)
    gradient = (up - is_label(z, labels, axis)) * jnp.expand_dims(active, axis)
    return value, jnp.sum(gradient * widen(dz), axis=axis) + active * dm


@compiled
def multiclass_hinge(
    scores: Logit,
    labels: Label,
    *,
    margin: Positive = 1.0,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far the label's score falls short of leading the best other class by a margin (Crammer-Singer).

        max(0, margin + max over j != label of scores_j - scores[label])

    Use for large-margin classifiers of several classes: only the strongest rival pulls, and none beyond the margin.

    Args:
      scores: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      margin: > 0, in score units; how far the label must lead.
      axis: the class axis of `scores`.
      valid: [..., C] bool, which classes exist; the others are ruled out.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: score units, in [0, inf]; `margin` for equal scores, 0 for a single class, inf where the label is ruled
      out. Offsets that the scores share cost no digit.
    Gradient: 1 towards the first of the best other classes, -1 towards the label; 0 at the margin itself and beyond.
    Peers: optax.losses.multiclass_hinge_loss, jaxopt.loss.multiclass_hinge_loss,
      keras.losses.CategoricalHinge (with 0 among the rivals).
    Reference: Crammer and Singer (2001), On the algorithmic implementation of multiclass kernel-based vector machines,
      JMLR 2.
    """

    def value(z: Array, labels: Array, margin: Array, *, axis: int, valid: Array | None = None) -> Array:
        return _behind_the_rival(_ruled_out(z, valid), labels, margin, axis)

    return labelled(
        value,
        scores=scores,
        labels=labels,
        axis=axis,
        valid=valid,
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def multiclass_perceptron(
    scores: Logit,
    labels: Label,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far the label's score lies below the highest score.

        max_j scores_j - scores[label]

    Use for the perceptron's own updates, and for structured outputs: only mistakes pull. Equal scores are a minimum
    too, which `multiclass_hinge` has not.

    Args:
      scores: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      axis: the class axis of `scores`.
      valid: [..., C] bool, which classes exist; the others are ruled out.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: score units, in [0, inf]; 0 where the label has a highest score, inf where it is ruled out.
    Gradient: 1 towards the first of the best classes, -1 towards the label; 0 where the label is one of the best.
    Peers: optax.losses.multiclass_perceptron_loss, jaxopt.loss.multiclass_perceptron_loss.
    Reference: Collins (2002), Discriminative training methods for hidden Markov models: theory and experiments with
      perceptron algorithms, EMNLP.
    """

    def value(z: Array, labels: Array, *, axis: int, valid: Array | None = None) -> Array:
        return _behind_the_rival(_ruled_out(z, valid), labels, jnp.zeros((), widen(z).dtype), axis)

    return labelled(
        value,
        scores=scores,
        labels=labels,
        axis=axis,
        valid=valid,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _shortfalls(z: Array, labels: Array, margin: Array, axis: int) -> Array:
    """max(0, margin - (z[label] - z_j)) for each other class, 0 at the label."""
    each = shortfall(widen(take_label(z, labels, axis)), widen(z), margin)
    return jnp.where(is_label(z, labels, axis), 0, each)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _behind_each(z: Array, labels: Array, margin: Array, p: int, axis: int) -> Array:
    """The sum over the other classes of max(0, margin - (z[label] - z_j))^p; `axis` is consumed."""
    total = jnp.sum(_shortfalls(z, labels, margin, axis) ** p, axis=axis)
    return jnp.where(jnp.squeeze(take_label(z, labels, axis), axis) == -jnp.inf, jnp.inf, total)


@_behind_each.defjvp
def _behind_each_rule(p: int, axis: int, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    (z, labels, margin), (dz, _, dm) = primals, tangents
    each = _shortfalls(z, labels, margin, axis)
    slopes = 2 * each if p == 2 else (each > 0).astype(each.dtype)
    total = jnp.sum(slopes, axis=axis, keepdims=True)
    gradient = jnp.where(is_label(z, labels, axis), -total, slopes)
    tangent = jnp.sum(gradient * widen(dz), axis=axis) + jnp.squeeze(total, axis) * dm
    return _behind_each(z, labels, margin, p, axis), tangent


@compiled
def multiclass_margin(
    scores: Logit,
    labels: Label,
    *,
    margin: Positive = 1.0,
    p: Literal[1, 2] = 1,
    class_weights: NonNegative | None = None,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Hinge loss of the label's score against every other class, averaged (Weston-Watkins).

        class_weights[label] / C sum over j != label of max(0, margin - scores[label] + scores_j)^p

    Use like `multiclass_hinge` where every class within the margin should pull, not the strongest alone.

    Args:
      scores: [..., C] real; -inf rules a class out.
      labels: [...] integer in [0, C).
      margin: > 0, in score units; how far the label must lead.
      p: 1 or 2, the power of each term.
      class_weights: [C] or one number, >= 0; None weighs none. The mean divides by the count all the same.
      axis: the class axis of `scores`.
      valid: [..., C] bool, which classes exist; the others are ruled out, and not among the C that divide.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: score units to the power p, in [0, inf]; 0 for a single class, inf where the label is ruled out.
    Gradient: c / C towards each class within the margin (times 2 of its term's base if p = 2), minus their sum towards
      the label; 0 at the margin itself.
    Peers: torch.nn.MultiMarginLoss, torch.nn.functional.multi_margin_loss.
    Reference: Weston and Watkins (1999), Support vector machines for multi-class pattern recognition, ESANN, eq. 3.
    """

    def value(
        z: Array,
        labels: Array,
        class_weights: Array | None,
        margin: Array,
        *,
        axis: int,
        valid: Array | None = None,
    ) -> Array:
        total = _behind_each(_ruled_out(z, valid), labels, margin, p, axis)
        classes = z.shape[axis] if valid is None else jnp.sum(valid, axis=axis, dtype=total.dtype)
        share = 1 if class_weights is None else jnp.take(class_weights, labels, mode="clip")
        return share * total / classes

    return labelled(
        value,
        scores=scores,
        labels=labels,
        axis=axis,
        valid=valid,
        per_class={"class_weights": class_weights},
        scalars={"margin": margin},
        where=where,
        weights=weights,
        reduction=reduction,
    )
