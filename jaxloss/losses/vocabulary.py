"""Large vocabularies: losses of hidden states and the output kernel, which never hold the logits [N, V] of both."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxloss.algorithms.linear_cross_entropy import linear_nll_reduced
from jaxloss.algorithms.linear_distillation import Layer, distilled, distilled_from_top_k
from jaxloss.algorithms.linear_heads import admitted_head, cross_entropy_of_head
from jaxloss.core.compiled import compiled
from jaxloss.core.frames import summed
from jaxloss.core.inputs import as_array
from jaxloss.core.types import (
    Array,
    AxisName,
    Fraction,
    LogProbability,
    Mask,
    NonNegative,
    Positive,
    Real,
    Reduction,
    ValidMask,
    VocabularyLabel,
    Weights,
)

__all__ = ["linear_distillation", "linear_softmax_cross_entropy", "linear_top_k_distillation"]


@compiled
def linear_softmax_cross_entropy(
    hidden: Real,
    kernel: Real,
    labels: VocabularyLabel,
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
    the time of the three matrix products and a fraction of the memory. With fewer classes than features the plain loss
    holds less.

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
    return cross_entropy_of_head(
        linear_nll_reduced,
        hidden,
        kernel,
        labels,
        bias=bias,
        transposed_kernel=transposed_kernel,
        valid=valid,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        soft_cap=soft_cap,
        temperature=temperature,
        vocab_axis_name=vocab_axis_name,
        memory=memory,
        chunk_rows=chunk_rows,
        chunk_classes=chunk_classes,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def linear_distillation(
    hidden: Real,
    kernel: Real,
    teacher_hidden: Real,
    teacher_kernel: Real,
    *,
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward",
    bias: Real | None = None,
    teacher_bias: Real | None = None,
    transposed_kernel: bool = False,
    temperature: Positive | None = None,
    chunk_rows: int | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How far a student's next token is from a teacher's, from both last layers, without the logits.

        T^2 KL(p || q)                              forward:   p = softmax(teacher's logits / T), q the student's
        T^2 KL(q || p)                              reverse
        T^2 (KL(p || m) + KL(q || m)) / 2           jensen_shannon:   m = (p + q) / 2

    Use to train a small language model towards a large one: forward covers all that the teacher says, reverse keeps to
    what it says most, Jensen-Shannon lies between and is bounded.

    Args:
      hidden: [..., D] real, the input of the student's last layer.
      kernel: [D, V] real.
      teacher_hidden: [..., E] real, the input of the teacher's; the same rows.
      teacher_kernel: [E, V] real; the same classes.
      divergence: which of the three.
      bias, teacher_bias: [V] real; -inf rules a class out.
      transposed_kernel: whether the kernels are [V, D] and [V, E].
      temperature: T > 0, divides both models' logits; None is 1. The factor T^2 keeps the gradient's size.
      chunk_rows: how many rows' logits are held at once; None chooses by the shapes.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats times T^2, in [0, inf], Jensen-Shannon in [0, T^2 log 2]; 0 for equal logits, and never below. inf
      where forward's student or reverse's teacher rules out what the other does not.
    Gradient: forward: T (q - p) towards the student's logits, times kernel and hidden. None to the teacher: its hidden
      states, kernel and bias count as constants. Computed with the value (four products, three of them the student's);
      with "none" it makes both models' logits again.
    Peers: liger_kernel.transformers.LigerFusedLinearJSD (without T^2), torch.nn.KLDivLoss of the logits.
    Reference: Hinton, Vinyals and Dean (2015), Distilling the knowledge in a neural network, arXiv 1503.02531; reverse:
      Gu et al. (2024), MiniLLM, ICLR; Jensen-Shannon: Agarwal et al. (2024), On-policy distillation, ICLR.
    """
    head = admitted_head(hidden, kernel, bias, None, transposed=transposed_kernel)
    given = admitted_head(
        teacher_hidden, teacher_kernel, teacher_bias, None, transposed=transposed_kernel, prefix="teacher_"
    )
    if head.classes != given.classes:
        raise ValueError(
            f"`kernel` {list(jnp.shape(kernel))} and `teacher_kernel` {list(jnp.shape(teacher_kernel))} must have the "
            f"same classes: {head.classes} is not {given.classes}"
        )

    def value(
        hidden: Array,
        teacher_hidden: Array,
        kernel: Array,
        bias: Array | None,
        teacher_kernel: Array,
        teacher_bias: Array | None,
        temperature: Array | None,
        coefficients: Array | None,
    ) -> Array:
        return distilled(
            Layer(hidden, kernel, bias),
            Layer(teacher_hidden, teacher_kernel, teacher_bias),
            temperature,
            coefficients,
            divergence=divergence,
            transposed=transposed_kernel,
            chunk_rows=chunk_rows,
        )

    return summed(
        value,
        hidden=hidden,
        teacher_hidden=teacher_hidden,
        trailing={"hidden": 1, "teacher_hidden": 1},
        classes=head.classes,
        shared={"kernel": kernel, "bias": bias, "teacher_kernel": teacher_kernel, "teacher_bias": teacher_bias},
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def linear_top_k_distillation(
    hidden: Real,
    kernel: Real,
    log_probabilities: LogProbability,
    labels: VocabularyLabel,
    *,
    bias: Real | None = None,
    transposed_kernel: bool = False,
    temperature: Positive | None = None,
    chunk_rows: int | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Divergence of a student's next token from a teacher of whom the K most probable tokens were kept.

        T^2 (sum_k p_k log(p_k / q[labels_k]) + r log(r / s)),   p = exp(log_probabilities), q = softmax(z / T)
        r = 1 - sum_k p_k, s = 1 - sum_k q[labels_k];   z = hidden @ kernel + bias

    Use where the teacher's answers are stored, or come from a service. What was not kept is one bucket: renormalised,
    the K would teach that nothing else is possible; as they are and no bucket, nothing would hold the student's tail.

    Args:
      hidden: [..., D] real, the input of the last layer.
      kernel: [D, V] real.
      log_probabilities: [..., K] the teacher's, at the same temperature; -inf is probability 0.
      labels: [..., K] integer in [0, V), the classes of these; distinct within a row.
      bias: [V] real; -inf rules a class out.
      transposed_kernel: whether `kernel` is [V, D].
      temperature: T > 0, divides the student's logits; None is 1.
      chunk_rows: how many rows' logits are held at once; None chooses by the shapes.
      where, weights, reduction: see `jaxloss.reduce`.
    Returns: nats times T^2, in [0, inf], at most the divergence from the whole teacher. Probabilities that add up to
      more than 1 (by their rounding) leave an empty bucket; where K is V there is none.
    Gradient: T (q - p) towards the K classes' logits; elsewhere T q (1 - r / s). None to the teacher.
    Peers: none known.
    Reference: Anshumann et al. (2025), Sparse logit sampling: accelerating knowledge distillation in LLMs, ACL, where
      the bucket is the "ghost token".
    """
    head = admitted_head(hidden, kernel, bias, None, transposed=transposed_kernel)
    given, index = as_array("log_probabilities", log_probabilities), as_array("labels", labels)
    if given.shape != index.shape:
        raise ValueError(
            f"`log_probabilities` {list(given.shape)} and `labels` {list(index.shape)} must have one shape, [..., K]"
        )
    if index.ndim and index.shape[-1] > head.classes:
        raise ValueError(f"`labels` {list(index.shape)} has more entries a row than there are classes, {head.classes}")

    def value(
        hidden: Array,
        log_probabilities: Array,
        labels: Array,
        kernel: Array,
        bias: Array | None,
        temperature: Array | None,
        coefficients: Array | None,
    ) -> Array:
        return distilled_from_top_k(
            Layer(hidden, kernel, bias),
            log_probabilities,
            labels,
            temperature,
            coefficients,
            transposed=transposed_kernel,
            chunk_rows=chunk_rows,
        )

    return summed(
        value,
        hidden=hidden,
        log_probabilities=given,
        labels=index,
        trailing={"hidden": 1, "log_probabilities": 1, "labels": 1},
        classes=head.classes,
        shared={"kernel": kernel, "bias": bias},
        scalars={"temperature": temperature},
        where=where,
        weights=weights,
        reduction=reduction,
    )
