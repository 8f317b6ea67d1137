"""The names of `optax.losses` 0.2.8, with its signatures and its unreduced values, on jaxloss's implementations.

    from jaxloss.compat import optax as losses

    losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

A program written for optax runs as it is: argument names, defaults, implicit broadcasting, `axis` as a tuple, `where`
over classes. optax's own tests pass. What differs, because there optax is wrong, ambiguous or refuses:

Classes
  - Labels out of range: nan, in value and gradient. optax takes -1 for the last class in the cross-entropy of integer
    labels and in sparsemax, any such label for a score of 0 in the multiclass hinge and perceptron, and for certain in
    CTC, where the blank as a label is one too.
  - A label that `where` excludes: inf, for it has no probability. optax uses the excluded logit; it may be negative.
  - Classes ruled out: a logit of -inf whose label is 0 adds nothing, in value and gradient and in forward mode; in a
    list and in `make_fenchel_young_loss` too. optax is nan; its safe form is nan in forward mode.
  - Confident rows: the loss and its gradient keep all digits. optax has 0 below 1e-7.
  - Offsets: logits near 3e4 lose no digits in the cross-entropy of integer labels, nor in sparsemax.
  - Many classes in float16: 70000 of them do not overflow the sum.
  - Sparsemax of any shape: [..., C], where optax takes [N, C] alone.

Yes or no
  - Infinite binary logits: 0 where they are right, in cross-entropy and focal loss. optax is nan.
  - Huge binary logits: the gradients of focal loss and sparsemax are finite. optax's are nan.
  - At a kink: the gradient is 0 at the margin of a hinge, a perceptron and their relatives, and where two classes tie
    with the label nothing is pulled. optax has one half of the slope.

Divergences
  - Impossible outcomes: a target of 0 adds nothing, whatever the prediction is. optax is nan where that is -inf.
  - The gradient towards a target of 0: -inf in `kl_divergence`, as the limit is. optax is nan.
  - Generalised divergence of close masses: its terms, which are >= 0, are never differences.

Regression and vectors
  - Small residuals: `huber_loss` has their gradient and `log_cosh` their value, where optax has 0.
  - Large residuals: `l2_loss` overflows where the value does, not where the square does.
  - Zero vectors: similarity 0 and distance 1, with gradient 0. optax is nan.
  - Long and short vectors: entries of 1e20 and 1e-25 have an angle. optax has 0, inf and nan.
  - Nearly parallel vectors: their cosine distance is half the square of what lies between, not 1 - cos.

Segmentation
  - A good image: `dice_loss` keeps its digits, being what is missed over the whole, and no difference from 1.
  - Nothing to find: with smooth=0 an empty target that is predicted as empty is worth 0. optax is nan.
  - Probabilities of one channel: apply_softmax=False (apply_sigmoid=False) takes any in [0, 1]. optax wants all to
    be 1.
  - Probabilities inside jit: allowed; a pixel that is no distribution makes its image nan. optax cannot be traced.
  - Absent classes: weigh nothing in `multiclass_generalized_dice_loss`. In optax one outweighs all that are there.

Embeddings
  - Rows without a positive: `ntxent` of nothing but such is 0. optax is nan.
  - Short embeddings: `ntxent` sees their angle. optax puts a floor of 3e-4 under their length.
  - Odd norms: `triplet_margin_loss` with norm_degree=1 or 3 sums magnitudes. optax lets differences cancel, or is nan.
  - Equal vectors: with eps=0 their distance has gradient 0. optax is nan.
  - A traced degree: `norm_degree` must be a Python number, not a traced array.

CTC
  - Negative losses: there are none.
  - Labels without an alignment: inf, with a gradient of 0. optax has about -log_epsilon, 1e5, with a gradient; here
    `log_epsilon` stands for log(0) in the tables of `ctc_loss_with_forward_probs` alone.
  - Classes ruled out in a frame: a logit of -inf is no obstacle. optax is nan.

The rest
  - Half precision: float16 and bfloat16 inputs have float32 values; gradients come back in the inputs' dtype.
  - Integer scores: float32 values. optax's hinge and perceptron stay integer.
  - Repeated vectors: where one argument would be repeated along the axis over which the other is normalised, which
    optax does silently, a ValueError says so.
  - Smoothing over `where`: `smooth_labels` counts the classes that a `where` of size 1 stands for, and spreads nothing
    where there are none. optax counts 1, and divides by 0.
  - Arguments of max_fun: those after `scores` and `targets` reach it. optax refuses them, and drops keyword ones.
"""

from jaxloss.compat.optax.classification import (
    hinge_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    multiclass_sparsemax_loss,
    perceptron_loss,
    poly_loss_cross_entropy,
    safe_softmax_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    sparsemax_loss,
)
from jaxloss.compat.optax.ctc import ctc_loss, ctc_loss_with_forward_probs
from jaxloss.compat.optax.divergence import (
    convex_kl_divergence,
    generalized_kl_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
)
from jaxloss.compat.optax.others import make_fenchel_young_loss, ranking_softmax_loss, smooth_labels
from jaxloss.compat.optax.regression import (
    cosine_distance,
    cosine_similarity,
    huber_loss,
    l2_loss,
    log_cosh,
    squared_error,
)
from jaxloss.compat.optax.segmentation import binary_dice_loss, dice_loss, multiclass_generalized_dice_loss
from jaxloss.compat.optax.self_supervised import ntxent, triplet_margin_loss

__all__ = [
    "binary_dice_loss",
    "convex_kl_divergence",
    "cosine_distance",
    "cosine_similarity",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "log_cosh",
    "make_fenchel_young_loss",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "ntxent",
    "perceptron_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
    "squared_error",
    "triplet_margin_loss",
]
