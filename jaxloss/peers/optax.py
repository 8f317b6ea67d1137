"""The losses of optax: `optax.losses.x`, many of them as `optax.x` too."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

UNREDUCED = "optax reduces nothing; here the mean is the default."


def both(name: str) -> tuple[str, str]:
    """The two names of what optax also exports at its top."""
    return f"optax.losses.{name}", f"optax.{name}"


ANSWERS = (
    # Regression
    Answer(
        names=both("squared_error"),
        loss="squared_error",
        call='jl.squared_error(predictions, targets, reduction="none")',
        differs=f"{UNREDUCED} Without `targets` optax takes 0: write jnp.zeros_like(predictions).",
    ),
    Answer(
        names=both("l2_loss"),
        loss="half_squared_error",
        call='jl.half_squared_error(predictions, targets, reduction="none")',
        differs=f"Both have the factor 1/2. {UNREDUCED} Without `targets` optax takes 0: write "
        "jnp.zeros_like(predictions).",
    ),
    Answer(
        names=both("huber_loss"),
        loss="huber",
        call='jl.huber(predictions, targets, delta=delta, reduction="none")',
        differs=f"{UNREDUCED} Without `targets` optax takes 0: write jnp.zeros_like(predictions).",
    ),
    Answer(
        names=both("log_cosh"),
        loss="log_cosh",
        call='jl.log_cosh(predictions, targets, reduction="none")',
        differs=f"{UNREDUCED} Near 0 optax subtracts log 2 from log 2; here small errors keep their digits.",
    ),
    Answer(
        names=both("cosine_distance"),
        loss="cosine_distance",
        call='jl.cosine_distance(predictions, targets, axis=axis, reduction="none")',
        differs=f"{UNREDUCED} optax's `epsilon` is a floor under squared lengths; none is needed here, where a zero "
        "vector is at distance 1 with gradient 0. optax's `where` picks components: multiply both by it.",
    ),
    Answer(
        names=both("cosine_similarity"),
        loss="cosine_distance",
        call='1 - jl.cosine_distance(predictions, targets, axis=axis, reduction="none")',
        differs="Losses fall as things get better, so that only the distance exists here. optax's `epsilon` is a floor "
        "under squared lengths, here the similarity of a zero vector is 0; its `where` picks components: multiply both "
        "by it.",
    ),
    # Binary
    Answer(
        names=both("sigmoid_binary_cross_entropy"),
        loss="sigmoid_cross_entropy",
        call='jl.sigmoid_cross_entropy(logits, labels, reduction="none")',
        differs=f"{UNREDUCED} Infinite logits are certainty here, with finite gradients; optax gives nan.",
    ),
    Answer(
        names=both("hinge_loss"),
        loss="hinge",
        call='jl.hinge(predictor_outputs, targets, reduction="none")',
        differs=f"{UNREDUCED} Targets are -1 or 1 in both.",
    ),
    Answer(
        names=("optax.losses.perceptron_loss",),
        loss="perceptron",
        call='jl.perceptron(predictor_outputs, targets, reduction="none")',
        differs=f"{UNREDUCED} Targets are -1 or 1 in both.",
    ),
    Answer(
        names=("optax.losses.sparsemax_loss",),
        loss="sparsemax_binary",
        call='jl.sparsemax_binary(logits, 2 * labels - 1, reduction="none")',
        differs=f"optax takes labels 0 or 1, here signs are -1 or 1. {UNREDUCED}",
    ),
    Answer(
        names=both("sigmoid_focal_loss"),
        loss="sigmoid_focal",
        call='jl.sigmoid_focal(logits, labels, gamma=gamma, alpha=alpha, reduction="none")',
        differs=f"{UNREDUCED} The paper divides the sum by the number of positives; neither does.",
    ),
    # Classes
    Answer(
        names=(*both("softmax_cross_entropy"), *both("safe_softmax_cross_entropy")),
        loss="softmax_cross_entropy_with_soft_labels",
        call='jl.softmax_cross_entropy_with_soft_labels(logits, labels, axis=axis, valid=where, reduction="none")',
        differs=f"optax's `where` is about classes, which is `valid` here; `where` here is about rows. {UNREDUCED} A "
        "target 0 on a logit -inf counts 0, as in optax's safe form.",
    ),
    Answer(
        names=both("softmax_cross_entropy_with_integer_labels"),
        loss="softmax_cross_entropy",
        call='jl.softmax_cross_entropy(logits, labels, axis=axis, valid=where, reduction="none")',
        differs=f"optax's `where` is about classes, which is `valid` here; `where` here is about rows. {UNREDUCED} A "
        "label out of range is nan here; in optax negative ones count from the end.",
    ),
    Answer(
        names=("optax.losses.poly_loss_cross_entropy",),
        loss="poly_cross_entropy",
        call='jl.poly_cross_entropy(logits, labels.argmax(axis), epsilon=epsilon, axis=axis, reduction="none")',
        differs=f"optax takes one-hot labels, here they are integers. {UNREDUCED} optax's `where` picks classes: give "
        "jnp.where(where, logits, -jnp.inf).",
    ),
    Answer(
        names=("optax.losses.multiclass_hinge_loss",),
        loss="multiclass_hinge",
        call='jl.multiclass_hinge(scores, labels, reduction="none")',
        differs=f"Both are Crammer and Singer's, which counts the worst class. {UNREDUCED}",
    ),
    Answer(
        names=("optax.losses.multiclass_perceptron_loss",),
        loss="multiclass_perceptron",
        call='jl.multiclass_perceptron(scores, labels, reduction="none")',
        differs=UNREDUCED,
    ),
    Answer(
        names=("optax.losses.multiclass_sparsemax_loss",),
        loss="sparsemax",
        call='jl.sparsemax(scores, labels, reduction="none")',
        differs=f"{UNREDUCED} optax takes one batch axis, here any.",
    ),
    Answer(
        names=("optax.losses.make_fenchel_young_loss",),
        differs="No loss: it builds one of `max_fun`, as jl.fenchel_young does, whose losses have `axis`, masks, "
        "weights and reductions, and with `regularizer` are 0 where the prediction is the target. Those in use are "
        "losses of their own: jl.softmax_cross_entropy (logsumexp), jl.sparsemax, jl.entmax.",
    ),
    Answer(
        names=both("smooth_labels"),
        differs="No loss: it prepares targets. The share `alpha` is the option label_smoothing of "
        "jl.softmax_cross_entropy, which takes the integer labels and makes no one-hot array; over `axis`, with "
        "`where` as `valid`. For `labels` that are soft already, write (1 - alpha) * labels + alpha / C.",
    ),
    # Distributions
    Answer(
        names=both("kl_divergence"),
        loss="kl_divergence",
        call='jl.kl_divergence(log_predictions, targets, axis=axis, reduction="none")',
        differs=f"{UNREDUCED} optax's `where` picks classes: give jnp.where(where, targets, 0).",
    ),
    Answer(
        names=("optax.losses.kl_divergence_with_log_targets",),
        loss="kl_divergence_with_log_targets",
        call='jl.kl_divergence_with_log_targets(log_predictions, log_targets, axis=axis, reduction="none")',
        differs=f"{UNREDUCED} optax's `where` picks classes: give jnp.where(where, log_targets, -jnp.inf). A log "
        "target -inf counts 0 here and is nan in optax.",
    ),
    Answer(
        names=(*both("generalized_kl_divergence"), *both("convex_kl_divergence")),
        loss="generalized_kl_divergence",
        call='jl.generalized_kl_divergence(log_predictions, targets, axis=axis, reduction="none")',
        differs=f"{UNREDUCED} optax's `where` picks classes: give jnp.where(where, log_predictions, -jnp.inf) and "
        "jnp.where(where, targets, 0).",
    ),
    # Sequences
    Answer(
        names=both("ctc_loss"),
        loss="ctc",
        call="jl.ctc(logits, labels, logit_lengths=(1 - logit_paddings).sum(-1).astype(int), "
        'label_lengths=(1 - label_paddings).sum(-1).astype(int), blank=blank_id, reduction="none")',
        differs=f"optax takes paddings (1 where a frame or label is none), here lengths. {UNREDUCED} Labels without an "
        "alignment cost about -`log_epsilon` in optax, and inf here.",
    ),
    Answer(
        names=both("ctc_loss_with_forward_probs"),
        when="the first of its three results",
        loss="ctc",
        call="jl.ctc(logits, labels, logit_lengths=(1 - logit_paddings).sum(-1).astype(int), "
        'label_lengths=(1 - label_paddings).sum(-1).astype(int), blank=blank_id, reduction="none")',
        differs="optax takes paddings, here lengths; `log_epsilon` is a true -inf here. The forward probabilities are "
        "not returned: jl.ctc_alignment gives the best path.",
    ),
    # Lists, embeddings
    Answer(
        names=("optax.losses.ranking_softmax_loss",),
        loss="list_softmax",
        call="jl.list_softmax(logits, labels, valid=where)",
        differs="optax's `where` is about items, which is `valid` here, and its `weights` multiply the labels: give "
        "labels * weights. The mean over lists is the default in both; `reduce_fn` is `reduction` here.",
    ),
    Answer(
        names=both("ntxent"),
        loss="nt_xent",
        call="jl.nt_xent(embeddings, labels, temperature=temperature, weights=(labels[:, None] == "
        "labels[None]).sum(1) - 1)",
        differs="optax averages over the positive pairs, here each row averages over its own: the weights say how "
        "many it has, and may be left out where all labels have equally many rows. The default temperature is 0.07 in "
        "optax, 0.1 here.",
    ),
    Answer(
        names=("optax.losses.triplet_margin_loss",),
        loss="triplet_margin",
        call="jl.triplet_margin(anchors, positives, negatives, margin=margin, p=norm_degree, axis=axis, "
        'reduction="none")',
        differs=f"{UNREDUCED} optax adds `eps` to the sum under the root, none is needed here; and it raises signed "
        "differences to `norm_degree`, which is right for even degrees only.",
    ),
    # Regions
    Answer(
        names=("optax.losses.binary_dice_loss",),
        loss="dice",
        call='jl.dice(predictions, targets, smooth=smooth, axis=tuple(range(1, predictions.ndim)), reduction="none")',
        differs="One value an image in both; the mean over images is the default here. The smoothing is the same. "
        "Probabilities (`apply_sigmoid=False`) become logits by jax.scipy.special.logit.",
    ),
    Answer(
        names=("optax.losses.dice_loss",),
        when="alpha = beta = 1/2, its default",
        loss="multiclass_dice",
        call="jl.multiclass_dice(predictions, targets, smooth=smooth, image_axes=tuple(range(1, predictions.ndim - "
        "1)), "
        'reduction="none").mean(-1)',
        differs="optax averages the classes of an image and returns one value an image, here it is one a class. "
        "`class_weights` multiply the classes before that mean; `ignore_background` drops the first: [..., 1:]. "
        "Other `alpha`, `beta` are jl.multiclass_tversky; `axis` is image_axes, `reduction` is over the classes; "
        "probabilities (`apply_softmax=False`) become logits by jnp.log.",
    ),
    Answer(
        names=("optax.losses.dice_loss",),
        when="any alpha and beta",
        loss="multiclass_tversky",
        call="jl.multiclass_tversky(predictions, targets, alpha=alpha, beta=beta, smooth=smooth, "
        'image_axes=tuple(range(1, predictions.ndim - 1)), reduction="none").mean(-1)',
        differs="`alpha` weighs false positives and `beta` false negatives in both; one class alone is jl.tversky. "
        "`class_weights`, `ignore_background`, `axis`, `reduction` and `apply_softmax`: see the other answer.",
    ),
    Answer(
        names=("optax.losses.multiclass_generalized_dice_loss",),
        loss="multiclass_dice",
        call="jl.multiclass_dice(predictions, targets, smooth=smooth, image_axes=tuple(range(1, predictions.ndim - "
        "1)), weights=1 / (targets.sum(tuple(range(targets.ndim - 1))) ** 2 + 1e-7)[None])",
        differs="optax weighs the dice losses of the classes by their inverse squared frequency in the batch, which "
        "for a class without a target is 1e7. That is not Sudre's generalised Dice, which has the weights inside the "
        "fraction, and is jl.generalized_dice. "
        "Probabilities (`apply_softmax=False`) become logits by jnp.log; `ignore_background` drops the first class.",
    ),
)
