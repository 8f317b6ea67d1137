"""Softmax over classes by angle, with a margin that the own class must keep."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxloss.algorithms.linear_blocks import in_auto_mode
from jaxloss.algorithms.tiled_contrast import log_sum
from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.formulas import label_nll, softplus
from jaxloss.core.frames import Everyone, batchwise, summed
from jaxloss.core.inputs import as_array
from jaxloss.core.numerics import norm, unit, widen
from jaxloss.core.sharding import is_label
from jaxloss.core.types import (
    Array,
    ArrayLike,
    AxisName,
    Label,
    Mask,
    NonNegative,
    Positive,
    Real,
    Reduction,
    Weights,
)

__all__ = ["arc_face", "cos_face", "proxy_anchor"]


def _over_classes(
    own: Callable[..., Array],
    *,
    embeddings: ArrayLike,
    labels: ArrayLike,
    class_weights: ArrayLike,
    margin: ArrayLike,
    scale: ArrayLike,
    where: Mask,
    weights: Weights,
    reduction: Reduction,
) -> Array:
    """Cross-entropy of scaled cosines, the label's replaced: `own(unit row, unit class vector, cosines, margin)`."""
    rows, kernel = as_array("embeddings", embeddings), as_array("class_weights", class_weights)
    message = f"`class_weights` {list(kernel.shape)} must be [C, D] beside `embeddings` [..., D] {list(rows.shape)}"
    demand(chex.assert_rank, kernel, 2, error=ValueError, message=message)
    if rows.ndim:
        demand(chex.assert_axis_dimension, kernel, 1, rows.shape[-1], error=ValueError, message=message)
    demand(
        chex.assert_type,
        kernel,
        jnp.floating,
        error=TypeError,
        message=f"`class_weights` must be floating, got {kernel.dtype}",
    )

    def formula(x: Array, labels: Array, kernel: Array, margin: Array, scale: Array) -> Array:
        x, kernel = unit(widen(x), -1), unit(widen(kernel), -1)
        cosines = jnp.einsum("...d,cd->...c", x, kernel, precision="highest")
        here = is_label(cosines, labels, cosines.ndim - 1)
        mine = kernel.at[labels].get(mode="clip")
        replaced = own(x, mine, jnp.sum(jnp.where(here, cosines, 0), axis=-1), margin)
        logits = scale * jnp.where(here, replaced[..., None], cosines)
        return label_nll(logits, labels, cosines.ndim - 1)

    def value(
        x: Array, labels: Array, kernel: Array, margin: Array, scale: Array, *, coefficients: Array | None
    ) -> Array:
        # Which class vector is a row's own is looked up: a gather along what an explicit mesh may have spread.
        each = in_auto_mode(formula, jax.tree.leaves((x, kernel)), x)(x, labels, kernel, margin, scale)
        return each if coefficients is None else jnp.sum(coefficients * each)

    return summed(
        value,
        embeddings=embeddings,
        labels=labels,
        trailing={"embeddings": 1, "labels": 0},
        classes=kernel.shape[0],
        shared={"class_weights": class_weights},
        scalars={"margin": margin, "scale": scale},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def cos_face(
    embeddings: Real,
    labels: Label,
    class_weights: Real,
    *,
    margin: NonNegative = 0.35,
    scale: Positive = 64.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of cosines to class vectors, the own one less a margin (CosFace, AM-softmax).

        -log softmax_y(scale (c_j - margin [j = y])),   c_j = cos(embeddings, class_weights_j),   y = labels

    Use to learn embeddings that are compared by angle, when all classes are known: faces, speakers, products.

    Args:
      embeddings: [..., D] real, brought to length 1.
      labels: [...] integer in [0, C).
      class_weights: [C, D] real, a vector a class, learnt with the model and brought to length 1.
      margin: >= 0, in units of cosine; 0 is the normalised softmax.
      scale: > 0, of the cosines; 64 for many classes, less for few.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf). The cosine of a zero vector is 0.
    Gradient: scale (softmax - onehot) towards the cosines; 0 towards a zero vector.
    Peers: pytorch_metric_learning.losses.CosFaceLoss, insightface.recognition.arcface_torch.losses.CosFace.
    Reference: Wang et al. (2018), CosFace: large margin cosine loss for deep face recognition, CVPR, eq. 4.
    """

    def own(row: Array, mine: Array, cosine: Array, margin: Array) -> Array:
        return cosine - margin

    return _over_classes(
        own,
        embeddings=embeddings,
        labels=labels,
        class_weights=class_weights,
        margin=margin,
        scale=scale,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def arc_face(
    embeddings: Real,
    labels: Label,
    class_weights: Real,
    *,
    margin: NonNegative = 0.5,
    scale: Positive = 64.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Cross-entropy of cosines to class vectors, the own angle wider by a margin (ArcFace).

        -log softmax_y(scale c_j),   c_j = cos(t_j) for j != y,   t_j the angle of embeddings and class_weights_j,
        c_y = cos(t_y + margin)  where t_y <= pi - margin,   cos(t_y) - margin sin(margin)  beyond

    Use like `cos_face`; the margin is the same arc everywhere on the sphere.

    Args:
      embeddings: [..., D] real, brought to length 1.
      labels: [...] integer in [0, C).
      class_weights: [C, D] real, a vector a class, learnt with the model and brought to length 1.
      margin: >= 0, in radians, at most pi / 2; 0 is the normalised softmax.
      scale: > 0, of the cosines; 64 for many classes, less for few.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf). The cosine of a zero vector is 0. Beyond pi - margin, where cos(t + margin) would rise
      again, the value falls on with the cosine, after a jump.
    Gradient: scale (softmax - onehot) towards c; d c_y / d t_y = -sin(t_y + margin), of finite slope in the vectors at
      every angle, and 0 at t_y = 0 and pi, where the direction is not defined; 0 towards a zero vector.
    Peers: pytorch_metric_learning.losses.ArcFaceLoss, insightface.recognition.arcface_torch.losses.ArcFace.
    Reference: Deng, Guo, Xue and Zafeiriou (2019), ArcFace: additive angular margin loss for deep face recognition,
      CVPR, eq. 3.
    """

    def own(row: Array, mine: Array, cosine: Array, margin: Array) -> Array:
        # |u - v| |u + v| / 2: sqrt(1 - c^2) loses half its digits near 0, and its slope in c is infinite there.
        sine = jnp.squeeze(0.5 * norm(row - mine, -1) * norm(row + mine, -1), -1)
        alive = jnp.any(row != 0, axis=-1) & jnp.any(mine != 0, axis=-1)
        sine = jnp.where(alive, sine, 1)
        wider = cosine * jnp.cos(margin) - sine * jnp.sin(margin)
        return jnp.where(cosine >= -jnp.cos(margin), wider, cosine - margin * jnp.sin(margin))

    return _over_classes(
        own,
        embeddings=embeddings,
        labels=labels,
        class_weights=class_weights,
        margin=margin,
        scale=scale,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def proxy_anchor(
    embeddings: Real,
    labels: Label,
    proxies: Real,
    *,
    margin: NonNegative = 0.1,
    scale: Positive = 32.0,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Class vectors as anchors: soft maxima of how far their own rows are, and of how near the others.

        N / (n_y P) log(1 + sum over rows i of class y of exp(-scale (s_iy - margin)))
        + 1 / C sum over classes c of log(1 + sum over rows j of other classes of exp(scale (s_jc + margin))),
        s_ic = cos(embeddings_i, proxies_c),  y = the row's label,  n_y its rows,  P the number of labels in the batch

    Use like `cos_face`, where rows should also pull on each other, the hardest most: it converges fast.

    Args:
      embeddings: [N, D] real, brought to length 1.
      labels: [N] integer in [0, C).
      proxies: [C, D] real, a vector a class, learnt with the model and brought to length 1.
      margin: >= 0, in units of cosine.
      scale: > 0, of the cosines.
      axis_name: inside `shard_map`, the mesh axes over which rows are spread; () compares local rows only.
      where: [N] bool; an excluded row does not exist. A weight scales the row's own value.
      weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf), one value a row, whose mean is the paper's loss of the batch: an anchor's pull belongs
      to its rows in equal parts, the push to all rows alike. O(N C) memory. "partial" is marked as coupled.
    Gradient: -scale softmax of an anchor's rows beside 0, and scale softmax of the other rows beside 0, towards the
      cosines; 0 towards a zero vector.
    Peers: pytorch_metric_learning.losses.ProxyAnchorLoss.
    Reference: Kim, Kim, Cho and Kwak (2020), Proxy anchor loss for deep metric learning, CVPR, eq. 4.
    """
    rows, anchors = as_array("embeddings", embeddings), as_array("proxies", proxies)
    if rows.ndim != 2 or anchors.ndim != 2 or rows.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"`embeddings` {list(rows.shape)} must be [N, D] and `proxies` {list(anchors.shape)} [C, D], of one D"
        )
    classes = anchors.shape[0]

    def formula(
        labels: Array, everyone_rows: Array, everyone_labels: Array, present: Array, proxies: Array, *numbers: Array
    ) -> Array:
        margin, scale = numbers
        x, p = unit(widen(everyone_rows), -1), unit(widen(proxies), -1)
        s = jnp.einsum("nd,cd->cn", x, p, precision="highest")
        present = present[None]
        own = is_label(s, everyone_labels, 0) & present
        pull = softplus(log_sum(jnp.where(own, -scale * (s - margin), -jnp.inf)))
        push = softplus(log_sum(jnp.where(present & ~own, scale * (s + margin), -jnp.inf)))
        count = jnp.sum(own, axis=1).astype(s.dtype)
        share = jnp.sum(present).astype(s.dtype) / jnp.maximum(count * jnp.sum(count > 0), 1)
        mine = (share * jnp.where(count > 0, pull, 0)).at[labels].get(mode="clip")
        return mine + jnp.sum(push) / max(classes, 1)

    def value(
        embeddings: Array, labels: Array, proxies: Array, margin: Array, scale: Array, *, everyone: Everyone
    ) -> Array:
        if labels.ndim != 1:
            raise ValueError(f"`labels` {list(labels.shape)} must be [N], one for each row of `embeddings`")
        all_rows, all_labels = everyone.arrays
        given = (labels, all_rows, all_labels, everyone.present, proxies, margin, scale)
        found = in_auto_mode(formula, jax.tree.leaves(given), labels)(*given)
        # One bad label is in everybody's sums.
        bad = jnp.any(everyone.present & ((all_labels < 0) | (all_labels >= classes)))
        return found * jnp.where(bad, jnp.nan, 1).astype(found.dtype)

    return batchwise(
        value,
        embeddings=rows,
        labels=labels,
        shared={"proxies": anchors},
        axis_name=axis_name,
        scalars={"margin": margin, "scale": scale},
        where=where,
        weights=weights,
        reduction=reduction,
    )
