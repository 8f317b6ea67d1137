"""Large vocabularies: losses of hidden states and the output kernel, which never hold the logits [N, V] of both."""

from __future__ import annotations

from typing import Literal

from jaxloss.algorithms.linear_cross_entropy import Head, Options, linear_nll, linear_nll_total
from jaxloss.algorithms.linear_heads import admitted_head
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import summed
from jaxloss.core.types import (
    Array,
    AxisName,
    Fraction,
    Label,
    Mask,
    NonNegative,
    Positive,
    Real,
    Reduction,
    ValidMask,
    Weights,
)

__all__ = ["linear_softmax_cross_entropy"]


@compiled
def linear_softmax_cross_entropy(
    hidden: Real,
    kernel: Real,
    labels: Label,
    *,
    bias: Real | None = None,
    transposed_kernel: bool = False,
    valid: ValidMask = None,
    label_smoothing: Fraction | None = None,
    z_loss: NonNegative | None = None,
    soft_cap: Positive | None = None,
    temperature: Positive | None = None,
    vocab_axis_name: AxisName = None,
    memory: Literal["fast", "low"] = "fast",
    chunk_rows: int | None = None,
    chunk_classes: int | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Softmax cross-entropy of a language model's last layer and loss in one, without the logits.

        (1 - s) (logsumexp(z) - z[label]) + s / V sum_j (logsumexp(z) - z_j) + z_loss logsumexp(z)^2
        z = soft_cap tanh(u / soft_cap) / temperature,   u = hidden @ kernel + bias

    Use wherever the vocabulary is large: the value and gradient of the layer followed by `softmax_cross_entropy`, in
    the time of the three matrix products and a fraction of the memory.

    Args:
      hidden: [..., D] real, the input of the last layer.
      kernel: [D, V] real. If one of the two is half precision and the other is not, cast the wider one for speed.
      labels: [...] integer in [0, V). PyTorch's -100 is spelled `where=labels != -100`.
      bias: [V] real; -inf rules a class out (not below a `soft_cap`, which bounds it).
      transposed_kernel: whether `kernel` is [V, D]: the embedding table, tied to the output.
      valid: [V] bool, which classes exist (a padded vocabulary); the others are ruled out, also from smoothing.
      label_smoothing: s in [0, 1), the share that is spread evenly over the classes; None is 0.
      z_loss: >= 0, keeps logsumexp(z) near 0 (1e-4 is usual); None is 0.
      soft_cap: > 0, bounds the logits before the temperature divides them, as Gemma 2 does; None bounds nothing.
      temperature: > 0; None is 1.
      vocab_axis_name: inside `shard_map`, the mesh axis over which the classes are spread: kernel, bias and valid are
        this device's, labels are of all classes. Under `jit` a sharded kernel needs no word.
      memory: "fast" holds the logits of some rows; "low" holds none, makes them twice, and takes a third more time.
      chunk_rows, chunk_classes: how many rows and classes are taken at once; None chooses by the shapes.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats, in [0, inf]. A confident row keeps its digits: 1e-20 is not 0. With "none" the gradient makes the
      logits again (four products).
    Gradient: (softmax(z) - onehot(label)) towards u without extras, times kernel and hidden; computed with the value.
    Peers: torch.nn.functional.linear_cross_entropy, liger_kernel.transformers.LigerFusedLinearCrossEntropyLoss,
      cut_cross_entropy.linear_cross_entropy, tokamax.linear_softmax_cross_entropy_loss.
    Reference: Wijmans et al. (2025), Cut your losses in large-vocabulary language models, ICLR; gradient with the
      value: Hsu et al. (2024), Liger kernel, arXiv 2410.10989; soft cap: Gemma Team (2024), Gemma 2, section 2.
    """
    head = admitted_head(hidden, kernel, bias, valid, transposed=transposed_kernel, axis_name=vocab_axis_name)
    options = Options(transposed_kernel, memory == "low", chunk_rows, chunk_classes, vocab_axis_name)

    def value(
        hidden: Array,
        labels: Array,
        kernel: Array,
        bias: Array | None,
        valid: Array | None,
        *scalars: Array | None,
        coefficients: Array | None,
    ) -> Array:
        head = Head(hidden, kernel, bias, *scalars)
        if coefficients is None:
            return linear_nll(head, labels, valid, options)
        return linear_nll_total(head, labels, valid, coefficients, options)

    return summed(
        value,
        hidden=hidden,
        labels=labels,
        trailing={"hidden": 1, "labels": 0},
        classes=head.classes,
        shared={"kernel": kernel, "bias": bias, "valid": head.valid},
        scalars={
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "soft_cap": soft_cap,
            "temperature": temperature,
        },
        where=where,
        weights=weights,
        reduction=reduction,
    )
