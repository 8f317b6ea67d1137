"""The losses of keras.losses: classes, and functions of nearly the same names that keep the batch."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

CLASS = (
    "keras takes `y_true` first. Its `reduction` sum_over_batch_size is our mean, but under `sample_weight` it still "
    "divides by the element count, while `weights` here divide by their sum, as its mean_with_sample_weight does."
)
FUNCTION = "keras takes `y_true` first, and its function averages the last axis only."
ROWS = "keras takes `y_true` first, and its function returns one value a row."
CLIPPED = "keras clips probabilities to [1e-7, 1 - 1e-7]; here they count as they are, and a certain miss is inf."
LOGITS = "Probabilities become logits by their logarithm: keras divides them by their sum, as the softmax does."


def averaged(
    name: str, function: str, loss: str, arguments: str, differs: str = "", factor: str = ""
) -> tuple[Answer, ...]:
    """The class and the function of a loss that averages over the last axis."""
    return (
        Answer(
            names=(f"keras.losses.{name}",),
            loss=loss,
            call=f"{factor}jl.{loss}({arguments})",
            differs=f"{CLASS} {differs}".strip(),
        ),
        Answer(
            names=(f"keras.losses.{function}",),
            loss=loss,
            call=f'{factor}jl.{loss}({arguments}, reduction="none").mean(-1)',
            differs=f"{FUNCTION} {differs}".strip(),
        ),
    )


def rowwise(
    name: str, function: str, loss: str, arguments: str, differs: str, minus: str = "", when: str = ""
) -> tuple[Answer, ...]:
    """The class and the function of a loss with one value a row."""
    return (
        Answer(
            names=(f"keras.losses.{name}",),
            when=when,
            loss=loss,
            call=f"jl.{loss}({arguments}){minus}",
            differs=f"{CLASS} {differs}",
        ),
        Answer(
            names=(f"keras.losses.{function}",),
            when=when,
            loss=loss,
            call=f'jl.{loss}({arguments}, reduction="none"){minus}',
            differs=f"{ROWS} {differs}",
        ),
    )


def regions(name: str, function: str, loss: str, arguments: str, differs: str) -> tuple[Answer, ...]:
    """The class and the function of a loss of a region, which takes everything as one region by default."""
    call = f"jl.{loss}(jax.scipy.special.logit(y_pred), y_true, {arguments}smooth=0.0, axis=tuple(range(y_pred.ndim)))"
    shared = (
        "keras takes probabilities, here logits. Its default `axis` None makes one region of the whole batch, the "
        f"default here is one an image: axis=(-2, -1). {differs}"
    )
    return (
        Answer(names=(f"keras.losses.{name}",), loss=loss, call=call, differs=f"{shared} {CLASS}"),
        Answer(names=(f"keras.losses.{function}",), loss=loss, call=call, differs=f"{shared} `y_true` comes first."),
    )


ANSWERS = (
    # Regression
    *averaged("MeanSquaredError", "mean_squared_error", "squared_error", "y_pred, y_true"),
    *averaged("MeanAbsoluteError", "mean_absolute_error", "absolute_error", "y_pred, y_true"),
    *averaged(
        "MeanAbsolutePercentageError",
        "mean_absolute_percentage_error",
        "absolute_percentage_error",
        "y_pred, y_true",
        "keras counts in percent, here it is a fraction; keras divides by at least 1e-7.",
        factor="100 * ",
    ),
    *averaged(
        "MeanSquaredLogarithmicError",
        "mean_squared_logarithmic_error",
        "squared_log_error",
        "y_pred, y_true",
        "keras raises what is below 1e-7 to it, also what is negative; here both must be at least 0.",
    ),
    *averaged("Huber", "huber", "huber", "y_pred, y_true, delta=delta"),
    *averaged("LogCosh", "log_cosh", "log_cosh", "y_pred, y_true"),
    *averaged(
        "Poisson",
        "poisson",
        "poisson_nll",
        "jnp.log(y_pred), y_true",
        "keras takes the rate (plus 1e-7 in its logarithm), here it is given by its logarithm.",
    ),
    *rowwise(
        "CosineSimilarity",
        "cosine_similarity",
        "cosine_distance",
        "y_pred, y_true, axis=axis",
        "keras returns minus the cosine, in [-1, 1], here it is 1 minus the cosine.",
        minus=" - 1",
    ),
    Answer(
        names=("keras.metrics.RootMeanSquaredError",),
        loss="root_mean_squared_error",
        call="jl.root_mean_squared_error(y_pred, y_true)",
        differs="keras takes `y_true` first, and pools all batches since its reset: that is "
        "jl.metrics.root_mean_squared. Its `sample_weight` is `weights` here.",
    ),
    # Binary
    Answer(
        names=("keras.losses.BinaryCrossentropy",),
        when="from_logits=True",
        loss="sigmoid_cross_entropy",
        call="jl.sigmoid_cross_entropy(y_pred, y_true, label_smoothing=label_smoothing)",
        differs=f"{CLASS} `axis` only says what is averaged first. For `from_logits=False` see the other answer.",
    ),
    Answer(
        names=("keras.losses.BinaryCrossentropy",),
        when="from_logits=False, its default",
        loss="binary_cross_entropy",
        call="jl.binary_cross_entropy(y_pred, y_true * (1 - label_smoothing) + 0.5 * label_smoothing)",
        differs=f"{CLIPPED} {CLASS} `axis` only says what is averaged first. `from_logits=True`: see the other answer.",
    ),
    Answer(
        names=("keras.losses.binary_crossentropy",),
        when="from_logits=True",
        loss="sigmoid_cross_entropy",
        call='jl.sigmoid_cross_entropy(y_pred, y_true, label_smoothing=label_smoothing, reduction="none").mean(axis)',
        differs=f"{FUNCTION} For `from_logits=False` see the other answer.",
    ),
    Answer(
        names=("keras.losses.binary_crossentropy",),
        when="from_logits=False, its default",
        loss="binary_cross_entropy",
        call="jl.binary_cross_entropy(y_pred, y_true * (1 - label_smoothing) + 0.5 * label_smoothing, "
        'reduction="none").mean(axis)',
        differs=f"{FUNCTION} {CLIPPED} For `from_logits=True` see the other answer.",
    ),
    *averaged(
        "BinaryFocalCrossentropy",
        "binary_focal_crossentropy",
        "sigmoid_focal",
        "y_pred if from_logits else jax.scipy.special.logit(y_pred), y_true * (1 - label_smoothing) + 0.5 * "
        "label_smoothing, gamma=gamma, alpha=alpha if apply_class_balancing else None",
        "keras ignores its `alpha` unless apply_class_balancing is set; here None weighs nothing. `axis` is averaged.",
    ),
    *averaged(
        "Hinge",
        "hinge",
        "hinge",
        "y_pred, jnp.where(y_true > 0, 1, -1)",
        "keras takes labels 0 and 1 for -1 and 1; here signs are -1 or 1.",
    ),
    *averaged(
        "SquaredHinge",
        "squared_hinge",
        "squared_hinge",
        "y_pred, jnp.where(y_true > 0, 1, -1)",
        "keras takes labels 0 and 1 for -1 and 1; here signs are -1 or 1.",
    ),
    # Classes
    *rowwise(
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        "softmax_cross_entropy",
        "y_pred if from_logits else jnp.log(y_pred), y_true, axis=axis, where=y_true != ignore_class",
        f"{LOGITS} {CLIPPED} `ignore_class` is `where` here.",
    ),
    *rowwise(
        "CategoricalCrossentropy",
        "categorical_crossentropy",
        "softmax_cross_entropy_with_soft_labels",
        "y_pred if from_logits else jnp.log(y_pred), y_true * (1 - label_smoothing) + label_smoothing / "
        "y_true.shape[axis], axis=axis",
        f"{LOGITS} {CLIPPED} With integer labels, jl.softmax_cross_entropy smooths without a one-hot array.",
    ),
    *rowwise(
        "CategoricalFocalCrossentropy",
        "categorical_focal_crossentropy",
        "softmax_focal",
        "y_pred if from_logits else jnp.log(y_pred), y_true.argmax(axis), gamma=gamma, alpha=alpha, axis=axis",
        "keras takes one-hot labels, here they are integers; its default alpha is 0.25 for every class, a mere factor, "
        f"none here. Smoothed or soft targets (`label_smoothing`) have no equal here. {LOGITS}",
    ),
    *rowwise(
        "CategoricalGeneralizedCrossEntropy",
        "categorical_generalized_cross_entropy",
        "generalized_cross_entropy",
        "jnp.log(y_pred), y_true, q=q",
        "keras takes probabilities; their logarithms are logits that the softmax leaves as they are. The default `q` "
        "is 0.5 there, 0.7 here.",
    ),
    *rowwise(
        "CategoricalHinge",
        "categorical_hinge",
        "multiclass_hinge",
        "jnp.pad(y_pred, ((0, 0), (0, 1))), y_true.argmax(-1)",
        "keras takes one-hot labels, and the true class counts among the others with a score of 0: the padding is that "
        "class, and is best left out.",
    ),
    # Distributions
    *rowwise(
        "KLDivergence",
        "kl_divergence",
        "kl_divergence",
        "jnp.log(y_pred), y_true",
        "keras takes probabilities and clips both to [1e-7, 1]; here predictions are log-probabilities.",
    ),
    # Sequences
    *rowwise(
        "CTC",
        "ctc",
        "ctc",
        "y_pred, y_true, label_lengths=(y_true != 0).sum(-1)",
        "The blank is 0 in both, and in keras fills up the labels too: here their lengths are given. keras takes all "
        "frames to exist, here logit_lengths says which. Both means are per sequence.",
    ),
    # Embeddings
    *rowwise(
        "Circle",
        "circle",
        "circle",
        "y_pred, y_true, margin=margin, scale=gamma",
        "keras takes embeddings of length 1, here they are brought to it. Rows that are 0 do not count in keras's "
        "mean, here those without a positive or a negative. The weights of pairs are detached here, as in the paper. "
        "`ref_labels`, `ref_embeddings`, `remove_diagonal`: here the rows are compared with each other.",
    ),
    # Regions
    *regions(
        "Dice",
        "dice",
        "dice",
        "",
        "keras has no smoothing but 1e-7 under the fraction; (2 I + s) / (P + T + s) is smooth=s / 2 here.",
    ),
    *regions(
        "Tversky",
        "tversky",
        "tversky",
        "alpha=alpha, beta=beta, ",
        "`alpha` weighs false positives and `beta` false negatives, as keras documents; keras 3.15.1 computes it the "
        "other way round.",
    ),
)
