"""One class out of several: unnormalised class scores against a label, or against a distribution over the classes."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.algorithms.entmax import entmax_nll
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import focal, label_nll, log_sum_exp, soft_label_nll
from jaxloss.core.frames import eventwise, labelled
from jaxloss.core.numerics import widen
from jaxloss.core.types import (
    Array,
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
        if valid is not None:
            z = jnp.where(valid, z, -jnp.inf)
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
      keras.losses.CategoricalCrossentropy.
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
    Peers: optax.multiclass_sparsemax_loss, jaxopt.loss.multiclass_sparsemax_loss.
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
