"""The losses of torch.nn and torch.nn.functional: a class takes what its function does, options first."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

UNSHARED = (
    "torch's `weight` multiplies the entries while its mean divides by their number, ours by the sum of the weights: "
    'write (weight * jl...(reduction="none")).mean().'
)
SHARED = "With weights, which the function alone takes in torch, both means divide by the sum of the weights."
SAME = "The three reductions are the same."
IGNORED = "torch's `ignore_index` is `where` here, and its classes stand on axis 1."


def both(name: str, function: str) -> tuple[str, str]:
    """A class and its function."""
    return f"torch.nn.{name}", f"torch.nn.functional.{function}"


ANSWERS = (
    # Regression
    Answer(
        names=both("MSELoss", "mse_loss"),
        loss="squared_error",
        call="jl.squared_error(input, target, weights=weight, reduction=reduction)",
        differs=f"{SAME} {SHARED}",
    ),
    Answer(
        names=both("L1Loss", "l1_loss"),
        loss="absolute_error",
        call="jl.absolute_error(input, target, weights=weight, reduction=reduction)",
        differs=f"{SAME} {SHARED}",
    ),
    Answer(
        names=both("SmoothL1Loss", "smooth_l1_loss"),
        loss="smooth_l1",
        call="jl.smooth_l1(input, target, beta=beta, reduction=reduction)",
        differs=f"{SAME} beta = 0, which torch allows, is jl.absolute_error.",
    ),
    Answer(
        names=both("HuberLoss", "huber_loss"),
        loss="huber",
        call="jl.huber(input, target, delta=delta, reduction=reduction)",
        differs=f"{SAME} {UNSHARED}",
    ),
    Answer(
        names=both("GaussianNLLLoss", "gaussian_nll_loss"),
        loss="gaussian_nll",
        call="jl.gaussian_nll(input, target, var, full=full, reduction=reduction)",
        differs=f"{SAME} torch raises variances below `eps` to it, here the formula is kept: give jnp.maximum(var, "
        "eps). A variance of fewer axes is broadcast by the caller.",
    ),
    Answer(
        names=both("PoissonNLLLoss", "poisson_nll_loss"),
        loss="poisson_nll",
        call="jl.poisson_nll(input if log_input else jnp.log(input), target, full=full, reduction=reduction)",
        differs=f"{SAME} The rate is given by its logarithm here; torch adds `eps` to a rate of its own. With `full` "
        "torch adds Stirling's approximation of log(target!), and that for targets above 1 only; here it is exact.",
    ),
    # Binary
    Answer(
        names=both("BCELoss", "binary_cross_entropy"),
        loss="binary_cross_entropy",
        call="jl.binary_cross_entropy(input, target, reduction=reduction)",
        differs=f"torch cuts logarithms off at -100, here a certain miss is inf. {UNSHARED}",
    ),
    Answer(
        names=both("BCEWithLogitsLoss", "binary_cross_entropy_with_logits"),
        loss="sigmoid_cross_entropy",
        call="jl.sigmoid_cross_entropy(input, target, positive_weight=pos_weight, reduction=reduction)",
        differs="positive_weight is one number here; torch's `pos_weight` of one number a class is, for targets 0 or "
        f"1, a `weight` of jnp.where(target == 1, pos_weight, 1). {UNSHARED}",
    ),
    Answer(
        names=both("SoftMarginLoss", "soft_margin_loss"),
        loss="logistic",
        call="jl.logistic(input, target, reduction=reduction)",
        differs=f"{SAME} Targets are -1 or 1 in both; large scores overflow in torch, not here.",
    ),
    Answer(
        names=both("MultiLabelSoftMarginLoss", "multilabel_soft_margin_loss"),
        loss="sigmoid_cross_entropy",
        call="jl.sigmoid_cross_entropy(input, target)",
        differs='torch averages the classes of a row first: of its other values of `reduction`, "none" is '
        'jl.sigmoid_cross_entropy(..., reduction="none").mean(-1), and "sum" the sum of that. '
        "`weight`, one number a class, multiplies before that mean.",
    ),
    Answer(
        names=both("HingeEmbeddingLoss", "hinge_embedding_loss"),
        loss="hinge_embedding",
        call="jl.hinge_embedding(input, target, margin=margin, reduction=reduction)",
        differs=f"{SAME} Both take distances, which torch calls `input`, and signs -1 or 1.",
    ),
    # Classes
    Answer(
        names=both("CrossEntropyLoss", "cross_entropy"),
        when="`target` holds class indices",
        loss="softmax_cross_entropy",
        call="jl.softmax_cross_entropy(input, target, axis=1, where=target != ignore_index, class_weights=weight, "
        "label_smoothing=label_smoothing, reduction=reduction)",
        differs=f"{IGNORED} (axis=-1 without a batch axis.) Where nothing is left the mean is 0 here, nan in torch. "
        "With class weights both means divide by the sum of the weights of the labels.",
    ),
    Answer(
        names=both("CrossEntropyLoss", "cross_entropy"),
        when="`target` holds class probabilities",
        loss="softmax_cross_entropy_with_soft_labels",
        call="jl.softmax_cross_entropy_with_soft_labels(input, target * (1 - label_smoothing) + label_smoothing / "
        "input.shape[1], axis=1, reduction=reduction)",
        differs="Classes stand on axis 1 in torch. `weight` multiplies the targets of each class; the mean divides by "
        "the number of rows all the same. `ignore_index` has no meaning here, nor in torch.",
    ),
    Answer(
        names=("torch.nn.functional.linear_cross_entropy",),
        loss="linear_softmax_cross_entropy",
        call="jl.linear_softmax_cross_entropy(input, linear_weight, target, bias=linear_bias, transposed_kernel=True, "
        "where=target != (-100 if ignore_index is None else ignore_index), label_smoothing=label_smoothing, "
        "reduction=reduction)",
        differs="Logits are never all held here, in either direction, whatever torch's `options` say. Class weights "
        "(`weight`) are weights=weight[target], exact without label smoothing. Labels are indices, one a row.",
    ),
    Answer(
        names=("torch.nn.LinearCrossEntropyLoss",),
        loss="linear_softmax_cross_entropy",
        call="jl.linear_softmax_cross_entropy(input, linear.weight, target, bias=linear.bias, transposed_kernel=True, "
        "where=target != (-100 if ignore_index is None else ignore_index), label_smoothing=label_smoothing, "
        "reduction=reduction)",
        differs="The class owns the projection (`in_features`, `num_classes`, `out_features`, `bias`), its attribute "
        "`linear`; here the kernel is an argument, and yours to train. Class weights (`weight`) are "
        "weights=weight[target], exact without label smoothing; `options` are not needed.",
    ),
    Answer(
        names=("torch.nn.NLLLoss", "torch.nn.NLLLoss2d", "torch.nn.functional.nll_loss"),
        loss="categorical_nll",
        call="jl.categorical_nll(input, target, axis=1, class_weights=weight, where=target != ignore_index, "
        "reduction=reduction)",
        differs=f"{IGNORED} Both take log-probabilities; from logits, jl.softmax_cross_entropy is the same and "
        "exacter. Where nothing is left the mean is 0 here, nan in torch.",
    ),
    Answer(
        names=both("MultiMarginLoss", "multi_margin_loss"),
        loss="multiclass_margin",
        call="jl.multiclass_margin(input, target, p=p, margin=margin, class_weights=weight, reduction=reduction)",
        differs=f"{SAME} Both are Weston and Watkins's, divided by the number of classes, and the mean divides by the "
        "number of rows also with class weights. Crammer and Singer's is jl.multiclass_hinge.",
    ),
    Answer(
        names=both("MultiLabelMarginLoss", "multilabel_margin_loss"),
        loss="multilabel_margin",
        call="jl.multilabel_margin(input, jax.nn.one_hot(jnp.where(jnp.cumsum(target < 0, -1) > 0, -1, target), "
        "input.shape[-1]).max(-2), reduction=reduction)",
        differs="torch takes the indices of the true classes up to the first negative one, here targets are 0 or 1 for "
        "each class: if you have those, give them as they are.",
    ),
    Answer(
        names=("torch.nn.AdaptiveLogSoftmaxWithLoss",),
        not_yet="It holds the parameters of its clusters, as a layer does, and its loss is that of another model: "
        "losses here hold none. For the exact softmax over a large vocabulary without its logits there is "
        "jl.linear_softmax_cross_entropy.",
    ),
    # Distributions
    Answer(
        names=both("KLDivLoss", "kl_div"),
        when="log_target=False, its default",
        loss="kl_divergence",
        call='jl.kl_divergence(input, target, reduction="sum") / input.size',
        differs='torch\'s "mean" divides by the number of all entries; its "batchmean" is our mean for [N, C], the sum '
        'over an axis of classes averaged over rows. Its "sum" is ours; its "none" is not summed over classes. So much '
        "for `reduction`; for `log_target=True` see the other answer.",
    ),
    Answer(
        names=both("KLDivLoss", "kl_div"),
        when="log_target=True",
        loss="kl_divergence_with_log_targets",
        call='jl.kl_divergence_with_log_targets(input, target, reduction="sum") / input.size',
        differs='torch\'s "mean" divides by the number of all entries; its "batchmean" is our mean for [N, C]. So '
        "much for "
        "`reduction`; for `log_target=False` see the other answer.",
    ),
    # Pairs, triplets
    Answer(
        names=both("CosineEmbeddingLoss", "cosine_embedding_loss"),
        loss="cosine_embedding",
        call="jl.cosine_embedding(input1, input2, target, margin=margin, reduction=reduction)",
        differs=f"{SAME} torch adds 1e-12 to squared lengths; here the cosine of a zero vector is 0, with gradient 0.",
    ),
    Answer(
        names=("torch.nn.CosineSimilarity", "torch.nn.functional.cosine_similarity"),
        loss="cosine_distance",
        call='1 - jl.cosine_distance(x1, x2, axis=dim, reduction="none")',
        differs="No loss: it rises as things get better. torch's `eps` is a floor under the lengths; here the cosine "
        "of a zero vector is 0.",
    ),
    Answer(
        names=both("MarginRankingLoss", "margin_ranking_loss"),
        loss="margin_ranking",
        call="jl.margin_ranking(input1, input2, target, margin=margin, reduction=reduction)",
        differs=f"{SAME} Targets are -1 or 1 in both.",
    ),
    Answer(
        names=both("TripletMarginLoss", "triplet_margin_loss"),
        loss="triplet_margin",
        call="jl.triplet_margin(anchor, positive, negative, margin=margin, p=p, swap=swap, reduction=reduction)",
        differs=f"{SAME} torch adds `eps` to each difference, none is needed here.",
    ),
    Answer(
        names=both("TripletMarginWithDistanceLoss", "triplet_margin_with_distance_loss"),
        loss="triplet_margin_with_distance",
        call="jl.triplet_margin_with_distance(anchor, positive, negative, distance=distance_function, margin=margin, "
        "swap=swap, reduction=reduction)",
        differs=f"{SAME} The distance is a function of JAX arrays. Without one torch adds 1e-6 to each difference.",
    ),
    # Sequences
    Answer(
        names=both("CTCLoss", "ctc_loss"),
        loss="ctc",
        call="jl.ctc(log_probs.swapaxes(0, 1), targets, logit_lengths=input_lengths, label_lengths=target_lengths, "
        'blank=blank, infeasible="zero" if zero_infinity else "inf", weights=1 / target_lengths.clip(1), '
        'reduction="sum") / len(targets)',
        differs="torch's mean divides each sequence by its target length and then averages over the batch, ours is per "
        'sequence; for torch\'s `reduction` of "none" or "sum" leave out the weights and the division. torch has time '
        "first and wants log-probabilities, here logits will do; targets are [N, S], not one after the other.",
    ),
)
