"""What `jaxloss.compat.keras` computes itself, in units of the last place. Apart: compiled as users compile."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import ulps

from jaxloss.compat import keras as ours


def _relative_entropy(p, t):
    return t * mp.log(t / p)


def _poisson(p, t):
    return p - t * mp.log(p)


def _binary(p, t):
    return -(t * mp.log(p) if t else 0) - ((1 - t) * mp.log(1 - p) if t != 1 else 0)


def _region(p, t):
    """Two pixels: the second is predicted half, and is what the first is not."""
    half = mp.mpf(1) / 2
    wrong = (p * (1 - t) + half * t) / 4 + ((1 - p) * t + half * (1 - t)) * 3 / 4
    return wrong / (p * t + half * (1 - t) + wrong)


OPEN = np.concatenate([np.geomspace(2e-38, 0.5, 20), np.linspace(0.3, 0.9, 5), 1 - 2.0 ** -np.arange(2, 25, 2)])
SPREAD = np.geomspace(1e-30, 1e30, 40)
NEAR = [0.5 * (1 + sign * 2.0**-k) for k in range(1, 24, 3) for sign in (-1, 1)]
# name, ours of (t, p), the formula, the points (t, p), and what cancels: |terms| of which the value is the difference
SCALARS = {
    "binary": (
        lambda t, p: ours.binary_crossentropy(t, p, axis=()),
        _binary,
        [(t, p) for t in (0, 0.25, 1) for p in OPEN],
        None,
    ),
    "binary focal": (
        lambda t, p: ours.binary_focal_crossentropy(t, p, axis=()),
        lambda p, t: (t * (1 - p) + (1 - t) * p) ** 2 * _binary(p, t),
        [(t, p) for t in (0, 0.25, 1) for p in OPEN[OPEN > 1e-9]],
        None,
    ),
    "power": (
        lambda t, p: ours.categorical_generalized_cross_entropy(
            jnp.zeros(p.shape, int), jnp.stack([p, p], axis=-1), q=0.7
        ),
        lambda p, t: (1 - p ** mp.mpf(float(np.float32(0.7)))) / mp.mpf(float(np.float32(0.7))),
        [(0, p) for p in OPEN],
        None,
    ),
    "divergence": (
        lambda t, p: ours.kl_divergence(t[..., None], p[..., None]),
        _relative_entropy,
        [(t, p) for t in (1e-20, 0.01, 0.5, 1) for p in [*OPEN[::3], *NEAR]],
        None,
    ),
    "rate": (
        lambda t, p: ours.poisson(t[..., None], p[..., None]),
        _poisson,
        [(t, p) for t in (0.0, 1, 2, 50) for p in SPREAD],
        lambda p, t: abs(p) + abs(t * mp.log(p)),
    ),
    "percentage": (
        lambda t, p: ours.mean_absolute_percentage_error(t[..., None], p[..., None]),
        lambda p, t: 100 * abs(p - t) / abs(t),
        [(t, p) for t in (1e-3, -2, 70) for p in [*SPREAD, -3, 0]],
        None,
    ),
    "beside one": (
        lambda t, p: ours.sparse_categorical_crossentropy(jnp.zeros(p.shape, int), jnp.stack([p, t], axis=-1)),
        lambda p, t: mp.log((p + t) / p),
        [(t, p) for t in (1e-30, 1e-3, 0.25, 1) for p in OPEN],
        None,
    ),
    "one of two": (
        lambda t, p: ours.categorical_crossentropy(
            jnp.broadcast_to(jnp.eye(2)[0], (*p.shape, 2)), jnp.stack([p, t], -1)
        ),
        lambda p, t: mp.log((p + t) / p),
        [(t, p) for t in (1e-30, 1e-3, 0.25, 1) for p in OPEN],
        None,
    ),
    "region": (
        lambda t, p: ours.tversky(
            jnp.stack([t, 1 - t], -1), jnp.stack([p, jnp.full_like(p, 0.5)], -1), alpha=0.25, beta=0.75, axis=-1
        ),
        _region,
        [(t, p) for t in (0, 1) for p in [0, 1, *OPEN[OPEN > 1e-7]]],
        None,
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", SCALARS)
def test_value_and_slope_in_units_of_the_last_place(name):
    mine, formula, points, cancelling = SCALARS[name]
    t, p = (jnp.asarray(np.float32(column)) for column in zip(*points, strict=True))
    values, slopes = jax.jit(lambda t, p: (mine(t, p), jax.grad(lambda p: jnp.sum(mine(t, p)))(p)))(t, p)
    worst = {"value": 0.0, "slope": 0.0}
    for value, derivative, one, other in zip(values, slopes, np.asarray(t), np.asarray(p), strict=True):
        truth, x = mp.mpf(float(one)), mp.mpf(float(other))
        due, slope_due = formula(x, truth), mp.diff(lambda x, truth=truth: formula(x, truth), x)
        share = 1 + float(cancelling(x, truth) / abs(due)) if cancelling else 1
        found = {"value": ulps(value, due) / share, "slope": ulps(derivative, slope_due)}
        worst = {key: max(worst[key], found[key]) for key in worst}
    assert max(worst.values()) <= (4 if "focal" in name else 2), worst  # a power multiplies the error of its base
