"""Distributions by how far mass has to be moved to make one of the other."""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxloss.algorithms.quantiles import transport_cost
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import sequencewise
from jaxloss.core.inputs import as_array, canonical_axes, wide_dtype
from jaxloss.core.types import Array, Mask, Real, Reduction, Weights

__all__ = ["wasserstein_1d"]


@compiled
def wasserstein_1d(
    x: Real,
    y: Real,
    *,
    p: float = 1.0,
    axis: int = -1,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cost of the best transport of one sample of numbers to another (earth mover's distance).

        integral over u in (0, 1) of |F^-1(u) - G^-1(u)|^p,   F^-1, G^-1 = the quantile functions of x and y
        1/N sum_i |x_(i) - y_(i)|^p   for samples of one size

    Use to compare distributions by samples whose numbers are not paired. It is W_p^p; the distance itself is its root
    W_p, which has no gradient at equality.

    Args:
      x: [..., N] real.
      y: [..., M] real; M need not be N.
      p: >= 1, a Python number.
      axis: the axis of the samples' numbers.
      where, weights, reduction: see `jaxloss.reduce`; of the shape [...] of the pairs of samples.
    Returns: units to the power p, in [0, inf); 0 where both samples are one distribution. Two sorts, O(N + M) memory.
    Gradient: in x_i: the sum of p |d|^(p - 1) sign(d) du over what is moved from it, by d; 0 where d = 0. Of equal
      numbers the one that stands first comes first.
    Peers: scipy.stats.wasserstein_distance (p = 1), ot.wasserstein_1d, geomloss.SamplesLoss.
    Reference: Vallender (1974), Calculation of the Wasserstein distance between probability distributions on the line,
      Theory Probab. Appl. 18(4); p > 1: Villani (2003), Topics in optimal transportation, AMS, theorem 2.18.
    """
    if not 1 <= p < math.inf:
        raise ValueError(f"`p` of wasserstein_1d must be a finite number >= 1, got {p}")

    def in_rows(name: str, sample: object) -> Array:
        array = as_array(name, sample)
        (own,) = canonical_axes(axis, array.shape, name)
        if array.shape[own] == 0:
            raise ValueError(f"`{name}` {list(array.shape)} must have at least one number along axis {axis}")
        return jnp.moveaxis(array, own, -1)

    def value(x: Array, y: Array, *, alive: tuple[()]) -> Array:
        dtype = wide_dtype([x, y])
        return transport_cost(x.astype(dtype), y.astype(dtype), p)

    return sequencewise(
        value,
        x=in_rows("x", x),
        y=in_rows("y", y),
        steps={"x": 1, "y": 1},
        lengths={},
        where=where,
        weights=weights,
        reduction=reduction,
    )
