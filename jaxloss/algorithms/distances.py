"""Euclidean distances of rows to columns, [n, M], from differences: squares minus products lose near neighbours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = ["distances"]

# Each of a few features adds one matrix [n, M] of differences, which are made again for the gradient: held, they would
# be as large as all differences, [n, M, D].
_FEATURES_AT_A_TIME = 8


@jax.custom_jvp
def distances(rows: Array, columns: Array) -> Array:
    """|rows_i - columns_j|: [n, D], [M, D] -> [n, M]. At equality the gradient is 0; entries' squares are finite."""
    return jnp.sqrt(_products(rows, columns, rows, columns))


@distances.defjvp
def _distances_rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    length = distances(*primals)
    apart = length > 0
    inverse = jnp.where(apart, 1 / jnp.where(apart, length, 1), 0)
    return length, inverse * _products(*primals, *tangents)


def _products(rows: Array, columns: Array, more_rows: Array, more_columns: Array) -> Array:
    """(rows_i - columns_j) . (more_rows_i - more_columns_j)."""

    def step(total: Array, parts: tuple[Array, ...]) -> tuple[Array, None]:
        a, b, c, d = parts
        found = (a[:, :, None] - b[:, None, :]) * (c[:, :, None] - d[:, None, :])
        # Term by term: XLA's CPU (jax 0.10) sums long arrays along their first axis wrongly.
        near = found[0]
        for one in found[1:]:
            near = near + one
        return total + near, None

    arrays = (rows, columns, more_rows, more_columns)
    start = 0 * (rows[:, :1] + more_rows[:, :1]) + 0 * (columns[:, :1] + more_columns[:, :1]).T
    return lax.scan(jax.checkpoint(step, prevent_cse=False), start, tuple(_in_parts(x) for x in arrays))[0]


def _in_parts(x: Array) -> Array:
    """[n, D] -> [parts, features, n]; what is missing at the end is zeros."""
    width = min(_FEATURES_AT_A_TIME, max(x.shape[1], 1))
    parts = -(-x.shape[1] // width)
    padded = jnp.pad(x, [(0, 0), (0, parts * width - x.shape[1])])
    return padded.T.reshape(parts, width, x.shape[0])
