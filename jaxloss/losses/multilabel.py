"""Several classes out of many at once: one value an example, from all of its classes together.

Several questions that each stand alone are no family of their own: `sigmoid_cross_entropy` and `sigmoid_focal` have one
value a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloss.algorithms.sorted_pairs import pair_total
from jaxloss.core.compiled import compiled
from jaxloss.core.formulas import shortfall
from jaxloss.core.frames import listwise
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, Binary, Mask, Real, Reduction, ValidMask, Weights

__all__ = ["multilabel_margin"]

# Up to this number of classes all pairs at once are faster than sorting.
_FEW_CLASSES = 128


def _side(applies: Array, scores: Array) -> Array:
    """1 for a class that applies, -1 for one that does not."""
    return jnp.where(applies, 1, -1).astype(scores.dtype)


def _of_pairs(scores: Array, applies: Array, valid: Array) -> Array:
    """max(0, 1 - (s_i - s_j)) of each class [..., C, 1] with each one of the other kind [..., 1, C], and else 0.

    s_i is the score of the one of the two that applies.
    """
    is_pair = (applies[..., :, None] != applies[..., None, :]) & valid[..., :, None] & valid[..., None, :]
    side = _side(applies, scores)[..., :, None]
    each = shortfall(side * scores[..., :, None], side * scores[..., None, :], jnp.ones((), scores.dtype))
    return jnp.where(is_pair, each, 0)


@jax.custom_jvp
def _all_pairs(scores: Array, applies: Array, valid: Array) -> Array:
    """The sum of max(0, 1 - (s_i - s_j)) over the pairs of each list, the classes along the last axis."""
    return 0.5 * jnp.sum(_of_pairs(scores, applies, valid), axis=(-2, -1))  # each pair is met twice


@_all_pairs.defjvp
def _all_pairs_rule(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Array, Array]:
    # Each class adds up its own pairs, in one sum: differentiating the value's would add up in two directions.
    scores, applies, valid = primals
    active = jnp.sum((_of_pairs(scores, applies, valid) > 0).astype(scores.dtype), axis=-1)
    tangent = jnp.sum(-_side(applies, scores) * active * tangents[0], axis=-1)
    return _all_pairs(scores, applies, valid), tangent


@compiled
def multilabel_margin(
    scores: Real,
    targets: Binary,
    *,
    axis: int = -1,
    valid: ValidMask = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Hinge loss of every pair of a class that applies and one that does not, over the number of classes.

        1 / C sum over targets_i = 1 and targets_j = 0 of max(0, 1 - (scores_i - scores_j))

    Use to order the classes of an example, those that apply before the others; whether a class applies at all is a
    question of its own, for `sigmoid_cross_entropy`.

    Args:
      scores: [..., C] real.
      targets: [..., C] 0 or 1, the shape of `scores`: which classes apply.
      axis: the class axis.
      valid: [..., C] bool, which classes exist; the others are in no pair, and not among the C that divide.
      where, weights, reduction: see `jaxloss.reduce`; one value an example. One without a valid class is absent.
    Returns: score units, in [0, inf); 0 where all classes or none apply. C classes take O(C log C) time and O(C)
      memory beyond 128: they are sorted, and each active pair is counted exactly.
    Gradient: -1 / C per pair closer than the margin towards s_i, the opposite towards s_j; 0 at the margin itself.
    Peers: torch.nn.MultiLabelMarginLoss, torch.nn.functional.multilabel_margin_loss (targets as class indices).
    Reference: Elisseeff and Weston (2001), A kernel method for multi-labelled classification, NIPS 14.
    """

    def value(scores: Array, targets: Array, *, axis: int, valid: Array) -> Array:
        s, on, v = (jnp.moveaxis(x, axis, -1) for x in (widen(scores), targets > 0.5, valid))
        if s.shape[-1] > _FEW_CLASSES:
            total, _ = pair_total("hinge", s, on.astype(s.dtype), v)
        else:
            total = _all_pairs(s, on, v)
        return total / jnp.maximum(jnp.sum(v, axis=-1, dtype=s.dtype), 1)

    return listwise(
        value,
        scores=scores,
        targets=targets,
        axis=axis,
        valid=valid,
        where=where,
        weights=weights,
        reduction=reduction,
    )
