"""The transducer's lattice: every way to spell the labels with blanks between them, summed without [T, U, V] beside it.

Node (t, u) has read t frames and written u labels. A blank goes to (t + 1, u), the next label to (t, u + 1), and the
last blank leaves from (T - 1, U). All nodes of a diagonal t + u depend on the one before alone, so T + U steps of
width U + 1 do, in extended range. (Graves 2012; diagonals: Bagby et al. 2018; the fused gradient: Li et al. 2019.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.algorithms import extended
from jaxloss.algorithms.extended import Extended
from jaxloss.core.numerics import widen
from jaxloss.core.sharding import is_label, take_label
from jaxloss.core.types import Array

__all__ = ["Joiner", "edge_log_probabilities", "edges_of_joined", "joined_shape", "lattice_nll", "sum_joiner"]

# From encoder outputs [..., t, De] and predictor outputs [..., U+1, Dp] to logits [..., t, U+1, V].
Joiner: TypeAlias = Callable[[Array, Array], Array]

_ENTRIES = 2**24  # logits of a tile: enough to keep a matrix product busy


# --- From logits to the two edges of each node --------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def edge_log_probabilities(logits: Array, labels: Array, blank: int) -> tuple[Array, Array]:
    """log p(blank) and log p(next label) at each node: logits [..., T, U+1, V], labels [..., U] -> [..., T, U+1] both.

    The labels are in range. A node whose logits are nan has nan here and, as long as nobody looks at it, gradient 0: so
    no mask has to reach into the logits, where a select would make XLA's CPU write a second [..., T, U+1, V].
    """
    top, log_sum = _normalizer(logits)
    possible = top != -jnp.inf  # also of nan
    chosen = take_label(logits, _at_nodes(labels, logits), logits.ndim - 1)
    found = (widen(x) - top - log_sum for x in (logits[..., blank : blank + 1], chosen))
    at_blank, at_label = (jnp.squeeze(jnp.where(possible, x, -jnp.inf), -1) for x in found)
    return at_blank, at_label


@edge_log_probabilities.defjvp
def _edges_rule(blank: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Any, Any]:
    (z, labels), (dz, _) = primals, tangents
    at_nodes = _at_nodes(labels, z)

    # Made again in the backward pass: nothing with a class axis is kept for it but the logits.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def slope(z: Array, dz: Array) -> tuple[Array, Array]:
        dz = widen(dz)
        mean = jnp.sum(_probabilities(z) * dz, axis=-1)
        # Selected and summed, not gathered: the transpose is then one pass that writes p * share - onehots.
        at_blank, at_label = (
            jnp.sum(jnp.where(is_label(z, index, z.ndim - 1), dz, 0), axis=-1)
            for index in (jnp.full_like(at_nodes, blank), at_nodes)
        )
        return at_blank - mean, at_label - mean

    return edge_log_probabilities(z, labels, blank), slope(z, dz)


def _at_nodes(labels: Array, logits: Array) -> Array:
    ended = jnp.pad(labels, [(0, 0)] * (labels.ndim - 1) + [(0, 1)])
    return jnp.broadcast_to(jnp.expand_dims(ended, -2), logits.shape[:-1])


def _normalizer(z: Array) -> tuple[Array, Array]:
    """The maximum over classes and the logarithm of the sum of exp(z - maximum), [..., T, U+1, 1]."""
    top = widen(jnp.max(z, axis=-1, keepdims=True, initial=-jnp.inf))
    # A node without a possible class: nothing is subtracted from -inf, and exp gives 0, not nan.
    offset = jnp.where(top == -jnp.inf, 0, top)
    # Behind the barrier the widening is part of the sum; before it, XLA shares a float32 copy among all uses.
    total = jnp.sum(jnp.exp(widen(lax.optimization_barrier(z)) - offset), axis=-1, keepdims=True)
    return top, jnp.log(jnp.where(total == 0, 1, total))


@jax.custom_jvp
def _probabilities(z: Array) -> Array:
    """softmax over the last axis; 0 where it is no number, so that a node that nobody looks at adds 0 * 0."""
    # Behind the barrier, or XLA would share with the forward pass what is spread over all classes, and write it out.
    top, log_sum = lax.optimization_barrier(_normalizer(z))
    below = widen(z) - jnp.where(top == -jnp.inf, 0, top)
    p = jnp.exp(below - log_sum)
    return jnp.where(p == p, p, 0)


@_probabilities.defjvp
def _probabilities_rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    p, dz = _probabilities(z), widen(dz)
    return p, p * (dz - jnp.sum(p * dz, axis=-1, keepdims=True))


def sum_joiner(encoder: Array, predictor: Array) -> Array:
    """The joiner of Graves (2012): the frame's logits plus the logits of the labels so far."""
    return jnp.expand_dims(widen(encoder), -2) + jnp.expand_dims(widen(predictor), -3)


def joined_shape(encoder: Array, predictor: Array, joiner: Joiner) -> tuple[int, ...]:
    """[..., 1, U+1, V], the logits that the joiner makes of one frame; refused in words where they are others."""
    frame = encoder[..., :1, :]
    found = jax.eval_shape(joiner, frame, predictor)
    due = (*frame.shape[:-1], predictor.shape[-2])
    if getattr(found, "shape", ())[:-1] != due or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ValueError(
            f"`joiner` must turn `encoder` {list(frame.shape)} and `predictor` {list(predictor.shape)} into floating "
            f"logits of the shape {list(due)} + [classes], got {found}"
        )
    return found.shape


def edges_of_joined(
    encoder: Array, predictor: Array, labels: Array, joiner: Joiner, blank: int, tile: int | None
) -> tuple[Array, Array]:
    """`edge_log_probabilities` of what `joiner` makes of [..., T, De] and [..., U+1, Dp], some frames at a time.

    The logits of a tile are made, used, and made again for the gradient. No rule of ours encloses the joiner, so what
    it closes over is differentiated like everything else.
    """
    frames = encoder.shape[-2]
    tile = tile or _frames_at_a_time(frames, math.prod(joined_shape(encoder, predictor, joiner)))
    count = -(-frames // tile)
    if count == 1:
        return edge_log_probabilities(joiner(encoder, predictor), labels, blank)
    # The last frame again fills up the last tile: a joiner may divide by the norm of what it gets, and zeros have none.
    index = jnp.minimum(jnp.arange(count * tile), frames - 1)
    tiles = jnp.take(encoder, index, axis=-2).reshape(*encoder.shape[:-2], count, tile, encoder.shape[-1])
    wide = widen(predictor)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def of_tile(encoder: Array) -> tuple[Array, Array]:
        # Each tile adds to the predictor's gradient: the sum is in float32.
        return edge_log_probabilities(joiner(encoder, wide.astype(predictor.dtype)), labels, blank)

    _, edges = lax.scan(lambda _, tile: (None, of_tile(tile)), None, jnp.moveaxis(tiles, -3, 0))

    def joined(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], count * tile, x.shape[-1])[..., :frames, :]

    at_blank, at_label = edges
    return joined(at_blank), joined(at_label)


def _frames_at_a_time(frames: int, entries: int) -> int:
    """Of `frames` with so many logits each: few enough to be small, many enough to be quick, and as even as may be."""
    count = max(1, -(-frames * entries // _ENTRIES))
    return max(1, -(-frames // count))


# --- The sum over all paths ---------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    """What leaves the nodes of each diagonal, [T + U, ..., U+1]: entry (k, u) belongs to the node (k - u, u)."""

    blanks: Array  # log-probabilities; where a finished lattice waits for the longer ones, 0
    labels: Array
    exists: Array  # bool: the blank is one of the lattice


@jax.custom_jvp
def lattice_nll(blanks: Array, labels: Array, frames: Array, symbols: Array) -> Array:
    """-log of the sum over all paths, from log-probabilities [..., T, U+1] of the two edges of each node -> [...].

    `frames` and `symbols`, [...] integers, say how much of each lattice exists. A lattice without a path is inf, with
    gradient exactly 0; a nan among the edges that exist makes value and gradient nan.
    """
    edges, start, end = _diagonals(blanks, labels, frames, symbols)
    last, _ = lax.scan(lambda alpha, edge: (_forward(alpha, edge), None), extended.from_float(start), edges)
    return _nll(_at_end(last, end), edges)


@lattice_nll.defjvp
def _lattice_rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    value, *shares = _forward_backward(*primals)
    return value, _slope(shares, tangents)


def _slope(shares: Sequence[Array], tangents: Sequence[Any]) -> Array:
    of_blanks, of_labels = (jnp.sum(s * d, axis=(-2, -1)) for s, d in zip(shares, tangents[:2], strict=True))
    return -(of_blanks + of_labels)


@jax.custom_jvp
def _forward_backward(blanks: Array, labels: Array, frames: Array, symbols: Array) -> tuple[Array, Array, Array]:
    """The loss, and for each edge the share of all paths that take it."""
    edges, start, end = _diagonals(blanks, labels, frames, symbols)
    steps = edges.blanks.shape[0]

    def both(carry: tuple[Extended, Extended], k: Array) -> tuple[tuple[Extended, Extended], tuple[Extended, Extended]]:
        alpha, beta = carry
        here, there = (_Edges(*(x[i] for x in edges)) for i in (k, steps - 1 - k))
        return (_forward(alpha, here), _backward(beta, there)), carry

    # Both directions in one loop: half as many steps, of which each costs its launch and little else.
    corners = extended.from_float(start), extended.from_float(end)
    (last, _), (alphas, betas) = lax.scan(both, corners, jnp.arange(steps))
    total = _at_end(last, end)
    value = _nll(total, edges)
    whole = Extended(*(x[None, ..., None] for x in total))
    rest = Extended(*(jnp.flip(x, 0) for x in betas))

    def shares(weight: Extended, rest: Extended) -> Array:
        # Normalised in between, because the exponents of three factors may leave int32.
        part = extended.normalised(extended.multiply(alphas, weight))
        found = extended.ratio_as_float(extended.multiply(part, rest), whole)
        return _from_diagonals(jnp.where(jnp.isnan(value)[None, ..., None], jnp.nan, found), blanks.shape[-2])

    stay, move = _weights(edges)
    stay = stay._replace(mantissa=jnp.where(edges.exists, stay.mantissa, 0))
    return value, shares(stay, rest), shares(move, extended.shifted(rest, -1, -1))


@_forward_backward.defjvp
def _forward_backward_rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    blanks, labels, frames, symbols = primals
    value, *shares = _forward_backward(*primals)

    # Bits have no derivative: that of the shares is taken from the textbook recursion.
    def shares_of(blanks: Array, labels: Array) -> tuple[Array, ...]:
        found, transpose = jax.vjp(lambda b, y: _log_space_nll(b, y, frames, symbols), blanks, labels)
        return transpose(-jnp.ones_like(found))

    _, slopes = jax.jvp(shares_of, (blanks, labels), tangents[:2])
    possible = jnp.isfinite(value)[..., None, None]
    return (value, *shares), (_slope(shares, tangents), *(jnp.where(possible, x, 0) for x in slopes))


def _weights(edges: _Edges) -> tuple[Extended, Extended]:
    # Made where they are used: two arrays for each edge instead of one would be stored for nothing.
    return extended.from_log(edges.blanks), extended.from_log(edges.labels)


def _forward(alpha: Extended, edge: _Edges) -> Extended:
    stay, move = (extended.multiply(alpha, weight) for weight in _weights(edge))
    return extended.normalised(extended.add(stay, extended.shifted(move, 1, -1)))


def _backward(beta: Extended, edge: _Edges) -> Extended:
    both = beta, extended.shifted(beta, -1, -1)
    stay, move = (extended.multiply(x, weight) for x, weight in zip(both, _weights(edge), strict=True))
    return extended.normalised(extended.add(stay, move))


def _at_end(last: Extended, end: Array) -> Extended:
    """The last diagonal's one node that a path can have reached."""
    return extended.sum_over(extended.multiply(last, extended.from_float(end)), -1)


def _nll(total: Extended, edges: _Edges) -> Array:
    broken = jnp.any(jnp.isnan(edges.blanks) | jnp.isnan(edges.labels), axis=(0, -1))
    # A probability may round to more than 1; the loss of a certainty is 0.
    return jnp.where(broken, jnp.nan, jnp.maximum(-extended.to_log(total), 0))


def _diagonals(blanks: Array, labels: Array, frames: Array, symbols: Array) -> tuple[_Edges, Array, Array]:
    """The edges by diagonals, and 1 at the first and at the last node of each lattice.

    A lattice that ends before diagonal T + U waits in its last column, by blanks of probability 1, so that all end
    together and no history has to be kept to look the value up.
    """
    width = blanks.shape[-1]
    steps = blanks.shape[-2] + width - 1
    ones = (1,) * (blanks.ndim - 2)
    u = jnp.arange(width).reshape(1, *ones, width)
    t = jnp.arange(steps).reshape(steps, *ones, 1) - u
    # Lengths that were not given live on no mesh: they are brought to where the lattices are.
    here = jnp.sum(jnp.zeros_like(blanks), axis=(-2, -1)).astype(frames.dtype)
    frames, symbols = ((x + here)[None, ..., None] for x in (frames, symbols))
    exists = (t >= 0) & (t < frames)
    waits = (t >= frames) & (u == symbols)
    edges = _Edges(
        jnp.where(exists & (u <= symbols), _to_diagonals(blanks), jnp.where(waits, 0, -jnp.inf)),
        jnp.where(exists & (u < symbols), _to_diagonals(labels), -jnp.inf),
        exists,
    )
    # Made from the edges, so that the loops also run where they vary over a mesh axis.
    nowhere = jnp.sum(jnp.zeros_like(edges.blanks) + jnp.zeros_like(edges.labels), axis=0)
    start, end = (jnp.where(corner[0], 1, nowhere) for corner in ((u == 0) & (frames > 0), u == symbols))
    return edges, start, end


def _to_diagonals(x: Array) -> Array:
    """[..., T, U+1] -> [T + U, ..., U+1]: entry (k, u) is node (k - u, u), or anything where there is none."""
    *batch, frames, width = x.shape
    rows = jnp.pad(jnp.swapaxes(x, -1, -2), [(0, 0)] * (x.ndim - 1) + [(0, width)])
    # Read with rows one entry shorter, each row starts one entry later than the one above.
    flat = rows.reshape(*batch, width * (frames + width))[..., : width * (frames + width - 1)]
    return jnp.moveaxis(flat.reshape(*batch, width, frames + width - 1), -1, 0)


def _from_diagonals(x: Array, frames: int) -> Array:
    """The inverse of `_to_diagonals`."""
    rows = jnp.moveaxis(x, 0, -1)
    *batch, width, steps = rows.shape
    flat = jnp.pad(rows.reshape(*batch, width * steps), [(0, 0)] * (rows.ndim - 2) + [(0, width)])
    return jnp.swapaxes(flat.reshape(*batch, width, steps + 1)[..., :frames], -1, -2)


def _log_space_nll(blanks: Array, labels: Array, frames: Array, symbols: Array) -> Array:
    """The loss by the textbook: right in every derivative, but with the rounding errors of logarithms."""
    edges, start, end = _diagonals(blanks, labels, frames, symbols)
    none = -1e30  # stands for -inf, whose differences would be nan

    def step(alpha: Array, edge: tuple[Array, Array]) -> tuple[Array, None]:
        blank, label = edge
        move = alpha + label
        moved = jnp.concatenate([jnp.full_like(move[..., :1], none), move[..., :-1]], axis=-1)
        return jnp.logaddexp(alpha + blank, moved), None

    first = jnp.where(start > 0, 0, none + start)
    last, _ = lax.scan(step, first, (jnp.maximum(edges.blanks, none), jnp.maximum(edges.labels, none)))
    return -jnp.sum(jnp.where(end > 0, last, 0), axis=-1)
