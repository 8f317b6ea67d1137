"""Log-probabilities of tokens, and the entropy of their distribution, from hidden states and the output kernel."""

from __future__ import annotations

import jax.numpy as jnp

from jaxloss.algorithms.linear_cross_entropy import Head, Options, linear_statistics
from jaxloss.algorithms.linear_heads import admitted_head
from jaxloss.core import inputs
from jaxloss.core.compiled import compiled
from jaxloss.core.types import Array, AxisName, Label, Positive, Real, ValidMask

__all__ = ["linear_log_probability"]


@compiled
def linear_log_probability(
    hidden: Real,
    kernel: Real,
    labels: Label,
    *,
    bias: Real | None = None,
    transposed_kernel: bool = False,
    valid: ValidMask = None,
    soft_cap: Positive | None = None,
    temperature: Positive | None = None,
    vocab_axis_name: AxisName = None,
    chunk_rows: int | None = None,
    entropy: bool = False,
) -> Array | tuple[Array, Array]:
    """log softmax(z)[label], z as in `linear_softmax_cross_entropy`, without the logits of more than some rows at once.

    Policy gradients and preference losses need it of every token, often with the entropy, -sum_j p_j log p_j.

    Args:
      hidden, kernel, labels, bias, transposed_kernel, valid, soft_cap, temperature, vocab_axis_name, chunk_rows: as
        there. A label outside [0, V) is nan.
      entropy: whether the entropy is returned too.
    Returns: [...] nats, <= 0; with `entropy` a pair. float32 or wider. Differentiable in every mode; each derivative
      makes the logits again.
    """
    head = admitted_head(hidden, kernel, bias, valid, transposed=transposed_kernel, axis_name=vocab_axis_name)
    x, w, y = inputs.admitted({"hidden": hidden, "kernel": kernel, "labels": labels}).values()
    if y.shape != x.shape[:-1]:
        raise ValueError(f"`labels` {list(y.shape)} must be `hidden` {list(x.shape)} without its last axis")
    wide = inputs.wide_dtype([x, w])
    scalars = inputs.as_scalars({"soft_cap": soft_cap, "temperature": temperature}, wide)
    in_range = (y >= 0) & (y < head.classes)
    found = linear_statistics(
        Head(x, w, None if bias is None else jnp.asarray(bias), None, None, *scalars),
        jnp.clip(y, 0, head.classes - 1),
        head.valid,
        Options(transposed_kernel, chunk_rows=chunk_rows, axis_name=vocab_axis_name),
        entropy=entropy,
    )
    log_probability = found[..., 0] * jnp.where(in_range, 1, jnp.nan).astype(wide)
    return (log_probability, found[..., 1]) if entropy else log_probability
