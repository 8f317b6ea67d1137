"""Contrast: each row has to find what belongs to it among all rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxloss.algorithms.contrast import Options, Side, of_labels, of_pairs, own_among_all, own_both_ways
from jaxloss.algorithms.tiled_contrast import Marks
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.frames import Everyone, batchwise
from jaxloss.core.numerics import widen
from jaxloss.core.types import Array, AxisName, Label, Mask, Positive, Real, Reduction, Weights

__all__ = ["clip_contrastive", "in_batch_softmax", "info_nce", "nt_xent", "siglip", "supervised_contrastive"]


@compiled
def info_nce(
    queries: Real,
    keys: Real,
    negatives: Real | None = None,
    *,
    temperature: Positive = 0.1,
    similarity: Literal["cosine", "dot"] = "cosine",
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of picking one's own key among the keys of the whole batch.

        logsumexp_j(s_ij) - s_ii,   s_ij = similarity(queries_i, keys_j) / temperature

    Use for two views of each example, with the rest of the batch as negatives.

    Args:
      queries, keys: [N, D] real, one shape; row i of `keys` is the positive of row i of `queries`.
      negatives: [M, D], further negatives of every row, or [N, M, D], of each row its own; None has none.
      temperature: > 0; smaller means that the hardest negatives dominate.
      similarity: "cosine", in which a zero vector has similarity 0 to all, or "dot".
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is no query, no key and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); log(N) for an uninformed model. Rows see each other: "partial" is marked as coupled.
      Within 8 (1 + k) ulp, k = |s| / value at most: a similarity of two vectors is itself a rounded sum.
    Gradient: (softmax(s_i) - onehot(i)) / temperature towards the similarities; 0 towards a zero vector.
    Peers: info_nce.InfoNCE.
    Reference: van den Oord, Li and Vinyals (2018), Representation learning with contrastive predictive coding,
      arXiv:1807.03748, eq. 4.
    """
    own_negatives = getattr(negatives, "ndim", 0) == 3
    options = Options(similarity == "cosine", axis_name, gather == "ring")

    def value(queries: Array, keys: Array, *others: Array, everyone: Everyone) -> Array:
        *extra, temperature = others
        _assert_rows("queries", queries)
        _assert_negatives("queries", queries, "negatives", extra, (2, 3))
        more = [] if own_negatives else [_nobodys(x) for x in extra]
        own = extra[0] if extra and own_negatives else None
        return own_among_all(options, _mine(queries, everyone), _all(everyone, 1), more, own, 1 / temperature)

    rows = {"queries": queries, "keys": keys}
    if negatives is not None and own_negatives:
        rows["negatives"] = negatives
    return batchwise(
        value,
        **rows,
        alike=("queries", "keys"),
        shared={"negatives": negatives} if negatives is not None and not own_negatives else None,
        axis_name=axis_name,
        ring=options.ring,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def in_batch_softmax(
    queries: Real,
    documents: Real,
    hard_negatives: Real | None = None,
    *,
    temperature: Positive = 0.05,
    similarity: Literal["cosine", "dot"] = "cosine",
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of finding one's own document among those of all queries and hard negatives.

        log(sum_j exp(s(q_i, d_j)) + sum_jh exp(s(q_i, h_jh))) - s(q_i, d_i),   s = similarity / temperature

    Use to train retrieval: the documents of the other queries cost nothing, mined ones are worth more.

    Args:
      queries, documents: [N, D] real, one shape; row i of `documents` answers row i of `queries`.
      hard_negatives: [N, H, D], mined for each query and negatives of all of them; None has none.
      temperature: > 0; 1 with similarity="dot" is dense passage retrieval.
      similarity: "cosine", in which a zero vector has similarity 0 to all, or "dot".
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is no query, and its documents are no negatives. A weight scales the row's term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf); log(N (1 + H)) for an uninformed model. "partial" is marked as coupled.
    Gradient: (softmax(s_i) - onehot(i)) / temperature towards the similarities; 0 towards a zero vector.
    Peers: sentence_transformers.losses.MultipleNegativesRankingLoss, tensorflow_recommenders.tasks.Retrieval.
    Reference: Karpukhin et al. (2020), Dense passage retrieval for open-domain question answering, EMNLP, eq. 2.
    """
    options = Options(similarity == "cosine", axis_name, gather == "ring")

    def value(queries: Array, documents: Array, *others: Array, everyone: Everyone) -> Array:
        *extra, temperature = others
        _assert_rows("queries", queries)
        _assert_negatives("queries", queries, "hard_negatives", extra, (3,))
        columns = _all(everyone, 1)
        if extra:
            columns = _joined(columns, _nobodys(everyone.arrays[2], everyone.present))
        return own_among_all(options, _mine(queries, everyone), columns, [], None, 1 / temperature)

    rows = {"queries": queries, "documents": documents}
    if hard_negatives is not None:
        rows["hard_negatives"] = hard_negatives
    return batchwise(
        value,
        **rows,
        alike=("queries", "documents"),
        shared=None,
        axis_name=axis_name,
        ring=options.ring,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def clip_contrastive(
    image: Real,
    text: Real,
    *,
    temperature: Positive = 0.07,
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of finding the text of an image and the image of a text, halved.

        (logsumexp_j(s_ij) + logsumexp_j(s_ji)) / 2 - s_ii,   s_ij = cos(image_i, text_j) / temperature

    Use to bring two kinds of data into one space; a pair is all that must be known of an example.

    Args:
      image, text: [N, D] real, one shape; rows i belong together. They are brought to length 1.
      temperature: > 0; a learnt scale t is temperature = 1 / t, and its gradient is exact.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is neither a pair nor a negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf), one value a row; log(N) for an uninformed model. "partial" is marked as coupled.
    Gradient: the mean of both softmaxes minus the identity, over temperature, towards the cosines.
    Peers: open_clip.ClipLoss.
    Reference: Radford et al. (2021), Learning transferable visual models from natural language supervision, ICML,
      fig. 3.
    """
    options = Options(True, axis_name, gather == "ring")

    def value(image: Array, text: Array, temperature: Array, *, everyone: Everyone) -> Array:
        _assert_rows("image", image)
        return own_both_ways(options, _mine(image, everyone), _all(everyone, 1), 1 / temperature)

    return batchwise(
        value,
        image=image,
        text=text,
        alike=("image", "text"),
        axis_name=axis_name,
        ring=options.ring,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def siglip(
    image: Real,
    text: Real,
    *,
    scale: Positive = 10.0,
    bias: Real = -10.0,
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Binary cross-entropy of every image with every text: one pair belongs together, all others do not.

        sum_j log(1 + exp(-y_ij (scale cos(image_i, text_j) + bias))),   y_ii = 1, y_ij = -1 elsewhere

    Use instead of `clip_contrastive` for small or very large batches: no pair's term needs the others.

    Args:
      image, text: [N, D] real, one shape; rows i belong together. They are brought to length 1.
      scale: > 0, of the cosines; learnt as the exponential of a parameter that begins at log(10).
      bias: real, learnt from -10 on: most pairs are negative.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is in no pair. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf), one value a row, the sum over its N pairs. "partial" is marked as coupled.
    Gradient: -y sigmoid(-y (scale cos + bias)) for each pair, towards its logit.
    Peers: open_clip.SigLipLoss.
    Reference: Zhai et al. (2023), Sigmoid loss for language image pre-training, ICCV, algorithm 1.
    """
    options = Options(True, axis_name, gather == "ring")

    def value(image: Array, text: Array, scale: Array, bias: Array, *, everyone: Everyone) -> Array:
        _assert_rows("image", image)
        return of_pairs(options, _mine(image, everyone), _all(everyone, 1), scale, bias)

    return batchwise(
        value,
        image=image,
        text=text,
        alike=("image", "text"),
        axis_name=axis_name,
        ring=options.ring,
        scalars={"scale": scale, "bias": bias},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def nt_xent(
    embeddings: Real,
    labels: Label,
    *,
    temperature: Positive = 0.1,
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of each positive against the negatives alone, averaged over the row's positives.

        mean_p log(1 + sum_n exp(s_in - s_ip)),   s_ij = cos(embeddings_i, embeddings_j) / temperature,
        p the other rows of the row's label, n the rows of other labels

    Use for two views of each example, which share a label: that is SimCLR.

    Args:
      embeddings: [N, D] real, brought to length 1.
      labels: [N] integer >= 0; rows of equal label are each other's positives.
      temperature: > 0; smaller means that the hardest negatives dominate.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is no anchor, no positive and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf), one value a row; a row without a positive is absent. "partial" is marked as coupled.
    Gradient: for each positive (softmax - onehot) / temperature towards the cosines of it and of the negatives.
    Peers: optax.losses.ntxent (the mean over pairs, which differs where labels have unequal numbers of rows),
      pytorch_metric_learning.losses.NTXentLoss, lightly.loss.NTXentLoss.
    Reference: Chen et al. (2020), A simple framework for contrastive learning of visual representations, ICML, eq. 1.
    """
    options = Options(True, axis_name, gather == "ring")

    def value(embeddings: Array, labels: Array, temperature: Array, *, everyone: Everyone) -> tuple[Array, Array]:
        _assert_labels(embeddings, labels)
        rows, columns = _mine(embeddings, everyone, labels), _all(everyone, 0, everyone.arrays[1])
        return of_labels(options, "negatives", rows, columns, 1 / temperature)

    return batchwise(
        value,
        embeddings=_wide(embeddings),
        labels=labels,
        axis_name=axis_name,
        ring=options.ring,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def supervised_contrastive(
    embeddings: Real,
    labels: Label,
    *,
    temperature: Positive = 0.1,
    axis_name: AxisName = None,
    gather: Literal["all", "ring"] = "all",
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of each positive against all other rows, averaged over the row's positives.

        logsumexp_{j != i}(s_ij) - mean_p s_ip,   s_ij = cos(embeddings_i, embeddings_j) / temperature,
        p the other rows of the row's label

    Use to learn embeddings from class labels, many rows a class.

    Args:
      embeddings: [N, D] real, brought to length 1.
      labels: [N] integer >= 0; rows of equal label are each other's positives.
      temperature: > 0; smaller means that the hardest negatives dominate.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      gather: how rows of other devices are seen there: "all" at once, or one device's after the other's ("ring"),
        which takes the memory of two devices' rows.
      where: [N] bool; an excluded row is no anchor, no positive and no negative. A weight scales the row's own term.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf), one value a row, log(positives) at best; a row without a positive is absent. "partial"
      is marked as coupled.
    Gradient: (softmax - 1 / positives at each positive) / temperature towards the cosines.
    Peers: pytorch_metric_learning.losses.SupConLoss.
    Reference: Khosla et al. (2020), Supervised contrastive learning, NeurIPS, eq. 2 ("out").
    """
    options = Options(True, axis_name, gather == "ring")

    def value(embeddings: Array, labels: Array, temperature: Array, *, everyone: Everyone) -> tuple[Array, Array]:
        _assert_labels(embeddings, labels)
        rows, columns = _mine(embeddings, everyone, labels), _all(everyone, 0, everyone.arrays[1])
        return of_labels(options, "all", rows, columns, 1 / temperature)

    return batchwise(
        value,
        embeddings=_wide(embeddings),
        labels=labels,
        axis_name=axis_name,
        ring=options.ring,
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


def _wide(embeddings: Real) -> Real:
    """Half precision to float32: rows are columns too, and their two slopes are added before they are rounded."""
    if isinstance(embeddings, jax.Array) and embeddings.dtype in (jnp.bfloat16, jnp.float16):
        return widen(embeddings)
    return embeddings


# --- Who is who ---------------------------------------------------------------------------------------------------


def _mine(rows: Array, everyone: Everyone, labels: Array | None = None) -> Side:
    return Side(rows, Marks(everyone.own, everyone.here, labels))


def _all(everyone: Everyone, which: int, labels: Array | None = None) -> Side:
    return Side(everyone.arrays[which], Marks(everyone.index, everyone.present, labels))


def _nobodys(vectors: Array, present: Array | None = None) -> Side:
    """Columns [M, D], or [N, M, D] of rows that are present, that are no row's own."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    if present is None:
        return Side(flat, Marks(jnp.full(flat.shape[:1], -1), jnp.ones(flat.shape[:1], bool)))
    each = jnp.repeat(present, vectors.shape[1], total_repeat_length=flat.shape[0])
    return Side(flat, Marks(jnp.full_like(each, -1, dtype=int), each))


def _joined(a: Side, b: Side) -> Side:
    def both(x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y.astype(x.dtype)])

    marks = Marks(both(a.marks.place, b.marks.place), both(a.marks.present, b.marks.present))
    return Side(both(a.vectors, b.vectors), marks)


def _assert_rows(name: str, x: Array) -> None:
    message = f"`{name}` {list(x.shape)} must be [N, D]; flatten or vmap over further axes"
    demand(chex.assert_rank, x, 2, error=ValueError, message=message)


def _assert_negatives(name: str, rows: Array, extra_name: str, extra: Sequence[Array], ranks: tuple[int, ...]) -> None:
    shapes = " or ".join({2: "[M, D]", 3: "[N, M, D]"}[rank] for rank in ranks)
    for x in extra:
        message = f"`{extra_name}` {list(x.shape)} must be {shapes} beside `{name}` [N, D] {list(rows.shape)}"
        demand(chex.assert_rank, x, set(ranks), error=ValueError, message=message)
        demand(chex.assert_axis_dimension, x, -1, rows.shape[1], error=ValueError, message=message)


def _assert_labels(embeddings: Array, labels: Array) -> None:
    _assert_rows("embeddings", embeddings)
    message = f"`labels` {list(labels.shape)} must be [N], one for each row of `embeddings` {list(embeddings.shape)}"
    demand(chex.assert_rank, labels, 1, error=ValueError, message=message)
