"""`check_loss` passes a good loss of one's own in six lines, and names the law that a bad one breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss.core.types import Label, Logit, Mask, Positive, Real, Reduction, Weights
from jaxloss.testing import BrokenLawError, check_loss


def quartic(
    predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None, reduction: Reduction = "mean"
) -> jax.Array:
    return jl.frames.pointwise(
        lambda p, t: (p - t) ** 4,
        predictions=predictions,
        targets=targets,
        where=where,
        weights=weights,
        reduction=reduction,
    )


def fourth_power(predictions, targets):
    return (predictions - targets) ** 4


def test_a_loss_of_ones_own_passes():
    check_loss(quartic, reference=fourth_power, zero_at_equality=True)
    check_loss(jl.compiled(quartic), reference=fourth_power, dtypes=("float32",))


def test_a_labelled_loss_with_an_option_passes():
    def worst_class(
        logits: Logit,
        labels: Label,
        *,
        margin: Positive = 1.0,
        where: Mask = None,
        weights: Weights = None,
        reduction: Reduction = "mean",
    ) -> jax.Array:
        def value(z, y, margin, *, axis):
            right = jnp.take_along_axis(z, y[:, None], axis=axis)
            raised = jnp.where(jnp.arange(z.shape[1])[None] == y[:, None], z - right, z - right + margin)
            return jnp.max(raised.astype(jnp.float32), axis=axis)

        return jl.frames.labelled(
            value,
            logits=logits,
            labels=labels,
            scalars={"margin": margin},
            where=where,
            weights=weights,
            reduction=reduction,
        )

    def reference(logits, labels, margin=1.0):
        right = np.take_along_axis(logits, labels[:, None], 1)
        other = np.arange(logits.shape[1]) != labels[:, None]
        return np.max(logits - right + margin * other, 1)

    shapes = {"logits": "NC", "labels": "N"}
    check_loss(worst_class, reference=reference, shapes=shapes, options=({}, {"margin": 0.3}), dtypes=("float32",))


def plain(formula):
    """A loss without a frame, as one would write it first."""

    def loss(
        predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None, reduction: Reduction = "mean"
    ) -> jax.Array:
        return formula(jnp.asarray(predictions), jnp.asarray(targets), where, weights, reduction)

    return loss


def framed(value):
    """A loss in a frame, with some formula."""

    def loss(
        predictions: Real, targets: Real, *, where: Mask = None, weights: Weights = None, reduction: Reduction = "mean"
    ) -> jax.Array:
        return jl.frames.pointwise(
            value, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction
        )

    return loss


@jax.custom_jvp
def wrong_slope(r):
    return r**4


@wrong_slope.defjvp
def _(primals, tangents):
    return wrong_slope(primals[0]), 3 * primals[0] ** 3 * tangents[0]


@pytest.mark.parametrize(
    ("loss", "laws"),
    [
        (framed(lambda p, t: (p - t) ** 2), ("value_is_the_textbook_formula",)),
        (framed(lambda p, t: wrong_slope(p - t)), ("gradient_is_the_slope",)),
        (framed(lambda p, t: jax.lax.stop_gradient(p - t) ** 4), ("gradient_is_the_slope",)),
        (framed(lambda p, t: jnp.sqrt((p - t) ** 8)), ("equality_is_zero",)),
        (
            plain(lambda p, t, w, s, r: jl.reduce((p - t) ** 4, where=w, weights=s, reduction=r)),
            ("where_is_deletion", "value_is_the_textbook_formula", "nothing_broadcasts_silently"),
        ),
        (
            plain(lambda p, t, w, s, r: jl.squared_error(p, t, where=w, reduction=r)),
            ("weights_are_repetition", "reductions_agree"),
        ),
    ],
)
def test_a_bad_loss_is_named_with_its_law(loss, laws):
    with pytest.raises(BrokenLawError) as caught:
        check_loss(loss, reference=fourth_power, zero_at_equality=True, dtypes=("float32", "bfloat16"))
    for law in laws:
        assert law in str(caught.value), str(caught.value)


def test_what_a_gradient_holds_constant_is_told_to_the_reference():
    """(p - t)^2 times its own square, held or not; and a curvature that is not that of the value with parts held."""

    def held_weight(predictions, targets, held=None):
        own = {"predictions": predictions, "targets": targets} if held is None else held
        return fourth_power_of(own) ** 0.5 * (predictions - targets) ** 2

    def fourth_power_of(arrays):
        return fourth_power(arrays["predictions"], arrays["targets"])

    def weighted(formula):
        def loss(
            predictions: Real,
            targets: Real,
            *,
            where: Mask = None,
            weights: Weights = None,
            reduction: Reduction = "mean",
        ) -> jax.Array:
            return jl.frames.pointwise(
                formula, predictions=predictions, targets=targets, where=where, weights=weights, reduction=reduction
            )

        return loss

    good = weighted(lambda p, t: jax.lax.stop_gradient((p - t) ** 2) * (p - t) ** 2)
    check_loss(good, reference=held_weight, held=True, dtypes=("float64",))
    with pytest.raises(BrokenLawError, match="gradient_is_the_slope"):
        check_loss(good, reference=fourth_power, dtypes=("float64",))
    with pytest.raises(BrokenLawError, match="gradient_is_the_slope"):
        check_loss(weighted(lambda p, t: (p - t) ** 4), reference=held_weight, held=True, dtypes=("float64",))
    # Its value and gradient are those of `good`.
    slopes = (lambda p, t: 2 * (p - t) ** 3), (lambda p, t: -2 * (p - t) ** 3)
    bent = weighted(jl.differentiable(lambda p, t: (p - t) ** 4, *slopes))
    with pytest.raises(BrokenLawError, match=r"hessian_is_the_slope_of_the_gradient.*curvature along"):
        check_loss(bent, reference=held_weight, held=True, dtypes=("float64",))


def test_a_law_that_cannot_be_tried_is_broken():
    def positional(predictions: Real, targets: Real, where: Mask = None, weights: Weights = None) -> jax.Array:
        return jl.squared_error(predictions, targets, where=where, weights=weights)

    with pytest.raises(BrokenLawError, match="reduction"):
        check_loss(positional, dtypes=("float32",))
