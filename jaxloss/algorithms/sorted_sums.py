"""Sums over all items before each item of a sorted list, in one scan, without a difference of large numbers.

With gaps d_t = x_t - x_(t-1) >= 0 the sums over what lies before, w_s (x_t - x_s)^p for p = 0, 1, 2, follow from those
of the item before by adding terms >= 0; sums of w_s x_s^p would cancel. Exponential sums w_s exp(-k (x_t - x_s)) decay
by exp(-k d_t). Both are kept for runs of items, and two runs can be joined; a run's length is kept and not its decay,
whose rounding would grow with the number of items in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.types import Array

__all__ = ["LOG1P", "RECIPROCAL", "Table", "both_ways", "running", "series", "terms"]

# log(1 + u) / u and 1 / (1 + u) on [0, 1] as polynomials in u, the Chebyshev interpolants: relative errors 4.8e-9 and
# 5.3e-8 for float32, 1.5e-18 and 3.5e-17 for float64. Printed by tests/test_sorted_pairs.py.
LOG1P = (
    (
        0.9999999953848528,
        -0.4999990399276533,
        0.33330004035247246,
        -0.2495455887130389,
        0.1967811725740179,
        -0.15311863105178813,
        0.1061426469215204,
        -0.05706420081325259,
        0.019907160954662186,
        -0.0032563784795127102,
    ),
    (
        1.0,
        -0.49999999999999856,
        0.3333333333330949,
        -0.2499999999843862,
        0.19999999945642613,
        -0.16666665502473302,
        0.1428569754127087,
        -0.12499828623758322,
        0.11109811161025777,
        -0.09992471165250032,
        0.09056858424538239,
        -0.08210947245718597,
        0.07337729402900432,
        -0.06304580921998865,
        0.050303843126643315,
        -0.035784160399938626,
        0.02173078169041112,
        -0.010758925970247484,
        0.004117085140168128,
        -0.0011323393272978208,
        0.00019799792526709671,
        -1.6465135558686542e-05,
    ),
)
RECIPROCAL = (
    (
        0.9999999622647718,
        -0.999992118240708,
        0.9997252470291889,
        -0.996223765735996,
        0.9729937235086292,
        -0.8847629082972969,
        0.6812732956989483,
        -0.3913968774492881,
        0.14226496879314451,
        -0.023881554254229418,
    ),
    (
        1.0,
        -0.9999999999999758,
        0.9999999999960143,
        -0.9999999997387088,
        0.9999999908909702,
        -0.9999998045976017,
        0.9999971843148985,
        -0.9999711184477814,
        0.9997803443278028,
        -0.998723750980406,
        0.9942050374087834,
        -0.9790679116487526,
        0.9389693145048236,
        -0.8545166188712059,
        0.7128914095535237,
        -0.5242712017497134,
        0.32620905102672443,
        -0.16438899129707404,
        0.0637281685136345,
        -0.01769778541381646,
        0.0031173972182103747,
        -0.00026071501034977156,
    ),
)

# Runs of this many items are summed one after the other, all runs at once, and then the runs in the same way. A binary
# tree takes minutes to compile, and one loop over all items rounds as often as there are items.
_ITEMS_AT_A_TIME = 32


class _Run(NamedTuple):
    """A run of items of one group; if several groups meet in it, of the last one."""

    anew: Array  # bool [..., L]: begins a group
    length: Array  # from the item before the run to its last one
    moments: tuple[Array, ...]  # [C, ..., L]: sums of w, of w times the distance to the run's last item, of its square
    decayed: Array  # [K, C, ..., L]: sums of w exp(-k distance)


Table: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # for float32 and for float64
Run = TypeVar("Run")


def terms(dtype: jnp.dtype) -> int:
    """How many exponential sums a polynomial above needs."""
    return len(LOG1P[dtype == jnp.float64])


def series(sums: Array, table: Table) -> Array:
    """The polynomial's u p(u), summed over items: from the sums of u, u^2, ... along the first axis."""
    # Term by term: XLA's CPU (jax 0.10) sums long arrays along their first axis wrongly, and a matrix product would be
    # rounded to three digits on some devices.
    total = 0 * sums[0]
    for coefficient, part in zip(table[sums.dtype == jnp.float64], sums, strict=True):
        total = total + coefficient * part
    return total


def both_ways(
    x: Array, weights: Array, first: Array, last: Array, *, degree: int, exponentials: int = 0
) -> tuple[tuple[tuple[Array, ...], Array], tuple[tuple[Array, ...], Array]]:
    """For every item the sums over the items of its group up to it, and over those from it on, itself in both.

    x: [..., L], rising within each group; weights: [C, ..., L], of C kinds of items; `first` and `last` mark the ends
    of the groups. Each way: (distances to the powers 0 to `degree`, each [C, ..., L]; the exponential sums of rates 1
    to `exponentials`, [exponentials, C, ..., L]).
    """
    sides = [(x, weights, first), (-jnp.flip(x, -1), jnp.flip(weights, -1), jnp.flip(last, -1))]
    columns = list(zip(*sides, strict=True))
    x, first, weights = jnp.stack(columns[0]), jnp.stack(columns[2]), jnp.stack(columns[1], axis=1)
    # A group may begin below the end of the last one: its sums are not wanted, and would overflow.
    gap = jnp.concatenate([0 * x[..., :1], jnp.where(first[..., 1:], 0, x[..., 1:] - x[..., :-1])], axis=-1)
    many = jnp.broadcast_to(weights[None], (exponentials, *weights.shape))
    done = running(_Run(first, gap, (weights, *(0 * weights for _ in range(degree))), many), _joined)
    ahead = tuple(m[:, 0] for m in done.moments), done.decayed[:, :, 0]
    back = tuple(jnp.flip(m[:, 1], -1) for m in done.moments), jnp.flip(done.decayed[:, :, 1], -1)
    return ahead, back


def running(items: Run, joined: Callable[[Run, Run], Run]) -> Run:
    """Each item joined with all before it: `items` is a tree of arrays [..., L], `joined` acts on it entry by entry."""
    size = jax.tree.leaves(items)[0].shape[-1]
    blocks = -(-size // _ITEMS_AT_A_TIME)
    width = _ITEMS_AT_A_TIME if blocks > 1 else size

    def in_blocks(x: Array) -> Array:
        # What is added at the end weighs nothing and has no length.
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, blocks * width - size)])
        return jnp.moveaxis(padded.reshape(*x.shape[:-1], blocks, width), -1, 0)

    def joined_on(run: Run, item: Run) -> tuple[Run, Run]:
        longer = joined(run, item)
        return longer, longer

    parts = jax.tree.map(in_blocks, items)
    whole, within = lax.scan(joined_on, jax.tree.map(lambda x: _nothing(x[0]), parts), parts)
    if blocks > 1:
        ahead = running(whole, joined)
        before = jax.tree.map(lambda x: jnp.concatenate([_nothing(x[..., :1]), x[..., :-1]], axis=-1), ahead)
        within = jax.vmap(joined, in_axes=(None, 0))(before, within)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], blocks * width)[..., :size], within)


def _nothing(x: Array) -> Array:
    """What joins without effect, made from the inputs."""
    return x & False if x.dtype == jnp.bool_ else 0 * x


def _joined(left: _Run, right: _Run) -> _Run:
    kept = jnp.where(right.anew, 0, jnp.ones_like(right.length))
    far = right.length[None]
    moved = [left.moments[0]]
    if len(left.moments) > 1:
        moved.append(left.moments[1] + far * left.moments[0])
    if len(left.moments) > 2:
        moved.append(left.moments[2] + far * (2 * left.moments[1] + far * left.moments[0]))
    moments = tuple(kept[None] * m + own for m, own in zip(moved, right.moments, strict=True))
    rates = jnp.arange(1, left.decayed.shape[0] + 1, dtype=far.dtype).reshape((-1,) + (1,) * (far.ndim - 1))
    decay = kept[None] * jnp.exp(-rates * far)
    return _Run(
        left.anew | right.anew,
        left.length + right.length,
        moments,
        decay[:, None] * left.decayed + right.decayed,
    )
