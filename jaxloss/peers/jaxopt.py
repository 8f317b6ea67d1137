"""The losses of jaxopt.loss: the label first, one example a call."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

ONE_EXAMPLE = (
    "jaxopt takes the label first and one example a call (vmap), here whole batches, and the mean is the default."
)

ANSWERS = (
    Answer(
        names=("jaxopt.loss.huber_loss",),
        loss="huber",
        call='jl.huber(pred, target, delta=delta, reduction="none")',
        differs="jaxopt takes the target first and reduces nothing; here predictions come first and the mean is the "
        "default.",
    ),
    Answer(
        names=("jaxopt.loss.binary_logistic_loss",),
        loss="sigmoid_cross_entropy",
        call='jl.sigmoid_cross_entropy(logit, label, reduction="none")',
        differs=f"{ONE_EXAMPLE} Labels are 0 or 1 in both; soft ones are right here only.",
    ),
    Answer(
        names=("jaxopt.loss.binary_sparsemax_loss",),
        loss="sparsemax_binary",
        call='jl.sparsemax_binary(logit, 2 * label - 1, reduction="none")',
        differs=f"{ONE_EXAMPLE} Labels are 0 or 1 there, signs -1 or 1 here.",
    ),
    Answer(
        names=("jaxopt.loss.binary_hinge_loss",),
        loss="hinge",
        call='jl.hinge(score, 2 * label - 1, reduction="none")',
        differs=f"{ONE_EXAMPLE} Labels are 0 or 1 there, signs -1 or 1 here.",
    ),
    Answer(
        names=("jaxopt.loss.binary_perceptron_loss",),
        loss="perceptron",
        call='jl.perceptron(score, 2 * label - 1, reduction="none")',
        differs=f"{ONE_EXAMPLE} Labels are 0 or 1 there, signs -1 or 1 here.",
    ),
    Answer(
        names=("jaxopt.loss.multiclass_logistic_loss",),
        loss="softmax_cross_entropy",
        call='jl.softmax_cross_entropy(logits, label, reduction="none")',
        differs=ONE_EXAMPLE,
    ),
    Answer(
        names=("jaxopt.loss.multiclass_sparsemax_loss",),
        loss="sparsemax",
        call='jl.sparsemax(scores, label, reduction="none")',
        differs=ONE_EXAMPLE,
    ),
    Answer(
        names=("jaxopt.loss.multiclass_hinge_loss",),
        loss="multiclass_hinge",
        call='jl.multiclass_hinge(scores, label, reduction="none")',
        differs=f"{ONE_EXAMPLE} Both are Crammer and Singer's, which counts the worst class.",
    ),
    Answer(
        names=("jaxopt.loss.multiclass_perceptron_loss",),
        loss="multiclass_perceptron",
        call='jl.multiclass_perceptron(scores, label, reduction="none")',
        differs=ONE_EXAMPLE,
    ),
    Answer(
        names=("jaxopt.loss.make_fenchel_young_loss",),
        differs="No loss: it builds one of `max_fun`, as jl.fenchel_young does, whose losses have `axis`, masks, "
        "weights and reductions, and with `regularizer` are 0 where the prediction is the target. Those in use are "
        "losses of their own: jl.softmax_cross_entropy (logsumexp), jl.sparsemax, jl.entmax.",
    ),
)
