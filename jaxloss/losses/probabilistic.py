"""Predicted distributions against what came true."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.algorithms.ensemble import ensemble_score
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import sequencewise
from jaxloss.core.inputs import as_array, canonical_axes, wide_dtype
from jaxloss.core.types import Array, Mask, Real, Reduction, Weights

__all__ = ["crps_ensemble"]


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
