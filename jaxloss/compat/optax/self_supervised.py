"""Embeddings against each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxloss import losses as jl
from jaxloss.compat.optax.arrays import aligned, flat, floating, number, ordered_axes
from jaxloss.core.inputs import as_array
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, ArrayLike

__all__ = ["ntxent", "triplet_margin_loss"]


def ntxent(embeddings: ArrayLike, labels: ArrayLike, temperature: ArrayLike = 0.07) -> Array:
    """Each pair of one label against the rows of others, averaged over pairs.

    `jl.nt_xent(embeddings, labels, temperature=temperature)` averages over rows, which is the same where all labels
    have equally many; here each row is weighted by the number of its pairs. Inside `shard_map` this sees the local
    rows, as optax does; `jl.nt_xent(..., axis_name=...)` sees all.
    """
    x, index = floating("embeddings", embeddings), as_array("labels", labels)
    if x.ndim != 2 or index.shape != x.shape[:1]:
        raise ValueError(
            f"`embeddings` {list(x.shape)} must be [N, D] and `labels` {list(index.shape)} [N], with one N"
        )
    # Labels of any kind and sign: how many are smaller is an integer in [0, N), the same for equal ones alone.
    ordered = jnp.sort(index)
    smaller, not_larger = (jnp.searchsorted(ordered, index, side=side) for side in ("left", "right"))
    pairs = (not_larger - smaller - 1).astype(jnp.promote_types(x.dtype, jnp.float32))
    return jl.nt_xent(x, smaller, temperature=temperature, axis_name=(), weights=pairs)


def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: ArrayLike = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
) -> Array:
    """How little further the negative is: `jl.triplet_margin(anchors, positives, negatives, reduction="none")`.

    `norm_degree` is jaxloss's `p`, a Python number. jaxloss has no `eps`: here it is part of the distance,
    (sum |a - b|^k + eps)^(1 / k), that of vectors with one more component, eps^(1 / k) apart.
    """
    named = {"anchors": anchors, "positives": positives, "negatives": negatives}
    given = [floating(name, x) for name, x in named.items()]
    axes = ordered_axes(axis, max(x.ndim for x in given), "anchors")
    if isinstance(norm_degree, Tracer):
        raise TypeError("`norm_degree` shapes the program: it must be a Python number, got a traced array")
    degree = float(norm_degree)  # pyright: ignore[reportArgumentType]
    apart, margins = number("eps", eps), number("margin", margin)
    a, p, n = (widen(flat(x, axes)) for x in aligned(*given))
    rows = jnp.broadcast_shapes(a.shape[:-1], margins.shape, apart.shape)
    more = jnp.broadcast_to(jnp.power(apart, 1 / degree).astype(a.dtype), rows)[..., None]
    a, p, n = (jnp.broadcast_to(x, (*rows, x.shape[-1])) for x in (a, p, n))
    a, p, n = (jnp.concatenate([x, y], axis=-1) for x, y in ((a, more), (p, 0 * more), (n, 0 * more)))

    def loss(a: Array, p: Array, n: Array, margin: Array) -> Array:
        return jl.triplet_margin(a, p, n, margin=margin, p=degree, reduction="none")

    if margins.ndim == 0:
        return loss(a, p, n, margins)
    for _ in rows:
        loss = jax.vmap(loss)
    return loss(a, p, n, jnp.broadcast_to(margins, rows))
