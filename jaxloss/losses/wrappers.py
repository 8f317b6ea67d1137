"""Functions that build a loss, or make another one of it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloss.core.compiled import traced
from jaxloss.core.frames import eventwise
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, Mask, Real, Reduction, Weights

__all__ = ["fenchel_young"]


def fenchel_young(
    max_fun: Callable[[Array], Array], *, regularizer: Callable[[Array], Array] | None = None
) -> Callable[..., Array]:
    """The loss whose predicted distribution is the gradient of a convex function of the scores.

        L(z, y) = F(z) + R(y) - <y, z>,   F(z) = max over p of <p, z> - R(p),   z = scores, y = targets

    Use for a structured or sparse model of your own: give F, the smoothed maximum, and get its convex loss. logsumexp
    gives cross-entropy, 1/2 |z|^2 half the squared error; `sparsemax` and `entmax` are there already, with labels.

    Args:
      max_fun: F, from the scores [C] of one row to a number: convex, differentiable by jax. It may close over
        parameters, which then get their gradients.
      regularizer: R, from the targets [C] of one row to a number; then the loss is 0 where the prediction is the
        target. None is 0, which is right for one-hot targets wherever R vanishes at the corners (entropies), and
        else leaves a constant away.
    Returns: a loss(scores [..., C] real, targets [..., C] real, *, axis=-1, where, weights, reduction), not compiled
      by itself: one value a row, in [0, inf) with `regularizer`.
    Gradient: in the scores: grad F(scores) - targets; in the targets: grad R(targets) - scores.
    Peers: optax.losses.make_fenchel_young_loss, jaxopt.loss.make_fenchel_young_loss.
    Reference: Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR 21(35), definition 2.
    """

    def rows(function: Callable[[Array], Array], x: Array) -> Array:
        for _ in range(x.ndim - 1):
            function = jax.vmap(function)
        return function(x)

    @traced
    def loss(
        scores: Real,
        targets: Real,
        *,
        axis: int = -1,
        where: Mask = None,
        weights: Weights = None,
        reduction: Reduction = "mean",
    ) -> Array:
        """F(scores) + R(targets) - <targets, scores>; see `jaxloss.fenchel_young`."""

        def value(z: Array, y: Array, *, axis: int) -> Array:
            z, y = (jnp.moveaxis(widen(x), axis, -1) for x in (z, y))
            found = rows(max_fun, z) - jnp.sum(y * z, axis=-1)
            return found if regularizer is None else found + rows(regularizer, y)

        return eventwise(
            value,
            scores=scores,
            targets=targets,
            axis=axis,
            where=where,
            weights=weights,
            reduction=reduction,
        )

    return loss
