"""The names of `keras.losses` (3.15), on jax arrays, without keras.

    from jaxloss.compat import keras as losses

    loss = losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    loss(y_true, y_pred, sample_weight=w)                       # a number, as by keras
    losses.binary_crossentropy(y_true, y_pred)                  # unreduced: the mean over the last axis

Arguments, defaults, shapes and reductions are keras's: the truth comes first; "sum_over_batch_size" (and "mean")
divides by the number of losses, under sample weights too, and "mean_with_sample_weight" by the sum of the sample
weights as they were given, before they are broadcast; a loss that is one number (Dice without `axis`) is not divided.
Computed by jaxloss's own losses, or by exact formulas where keras takes probabilities and they take logits.

Where the numbers differ from those of keras 3.15 on its jax backend, and by how much:

Probabilities. Keras clips them to [1e-7, 1 - 1e-7]; here nothing is clipped inside (0, 1).
  - A right answer of probability 1 costs 0; keras 1.2e-7.
  - A wrong one keeps its digits and its slope: -log(1e-20) is 46.05, slope -1e20; keras 16.118, slope 0, so that a
    sigmoid or softmax that is sure and wrong never learns. Towards the logit the slope here is p - t.
  - At the pole, finite and without a slope: a true class of probability exactly 0 costs 87.34 in float32 (708.4 in
    float64), a false one of probability exactly 1 costs 17.33 (37.43).
  - KLDivergence: an entry of true probability 0 is exactly 0; keras adds 1e-7 log(1e-7 / p), -1e-6 at p = 0.01.
  - Poisson: log(rate), where keras has log(rate + 1e-7): at a rate of 1e-6 its slope is 9 % off. A rate of exactly 0
    counts as the smallest normal number and has keras's slope, 1 - 1e7 count. A negative one is nan.
  - CategoricalGeneralizedCrossEntropy: no slope at a probability of exactly 0, where keras has -inf. Labels [N, 1]
    give losses [N]; keras broadcasts them to [N, N].
Focal losses of logits are computed from logits. Keras goes through the clipped probability: 16.118 and a slope below
  1e-7 beyond a logit of 16.6, nan for gamma < 1, and nan in bfloat16 from 5.56 up.
Dice, Tversky: no 1e-7 in the denominator; no truth and no prediction is 1, as there. Tversky's `alpha` weighs false
  positives and `beta` false negatives, as keras documents; keras 3.15.1 has them the other way round (mended in its
  repository by pull request 23333).
MeanAbsoluteError, MeanAbsolutePercentageError: slope 0 at equality, keras -1. Hinge, SquaredHinge, CategoricalHinge:
  slope 0 at the margin itself, where keras has half of that inside.
LogCosh: exact near 0, where keras is noise (5.96e-8 for 1.1e-16), and finite far out, where it is inf from 1.7e38 on.
  Huber: errors beyond 1.7e38 have a slope; keras's is nan outside of jit.
CosineSimilarity: vectors of length below 1e-7 or beyond 1.8e19 have a cosine; keras shrinks it, or gives 0. The slope
  at a zero vector is 0, keras nan.
SparseCategoricalCrossentropy: a label that is no class makes its loss nan; keras counts it as 0. Spell it
  `ignore_class=-1`. Labels stay integers; keras rounds them to the loss's dtype (257 is 256 in bfloat16). `axis` works.
Categorical losses: `label_smoothing` divides by the number of classes along `axis`, and a list `alpha` runs along it;
  keras takes the last axis. KLDivergence refuses two shapes, which keras would broadcast.
CTC: a sequence that cannot be aligned is inf with slope 0; keras 1e5 with a slope that leads nowhere. A 0 among the
  labels makes its loss nan.
Circle: slope 0 in the distance of a row from itself, where keras has what rounding makes of it.
Half precision: functions return float32, and classes compute and sum in float32 or wider; keras does all of it in half
  precision. `dtype` is that of a class's result (None: float32). An empty batch has mean 0; keras returns the empty
  array.

Keras masks (`y_pred._keras_mask`) do not exist on jax arrays: what a layer masks, pass as `sample_weight`. The masks
that losses make themselves are kept: labels of `ignore_class`, and rows of Circle whose loss is 0, do not count in a
mean. `serialize` and `deserialize` are left to keras; `get_config` and `from_config` hold every argument.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxloss.compat.keras import classification as _classification
from jaxloss.compat.keras import regression as _regression
from jaxloss.compat.keras import structured as _structured
from jaxloss.compat.keras.classification import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    CategoricalHinge,
    Hinge,
    KLDivergence,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    categorical_hinge,
    hinge,
    kl_divergence,
    sparse_categorical_crossentropy,
    squared_hinge,
)
from jaxloss.compat.keras.loss import Loss
from jaxloss.compat.keras.regression import (
    CosineSimilarity,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Poisson,
    cosine_similarity,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
)
from jaxloss.compat.keras.structured import CTC, Circle, Dice, Tversky, circle, ctc, dice, tversky

__all__ = [
    "CTC",
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy",
    "CategoricalHinge",
    "Circle",
    "CosineSimilarity",
    "Dice",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "Tversky",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "categorical_generalized_cross_entropy",
    "categorical_hinge",
    "circle",
    "cosine_similarity",
    "ctc",
    "dice",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "sparse_categorical_crossentropy",
    "squared_hinge",
    "tversky",
]

_SHORT: dict[str, Callable[..., Any]] = {
    "bce": binary_crossentropy,
    "kld": kl_divergence,
    "mae": mean_absolute_error,
    "mape": mean_absolute_percentage_error,
    "mse": mean_squared_error,
    "msle": mean_squared_logarithmic_error,
}
_NAMED: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(module, name) for module in (_classification, _regression, _structured) for name in module.__all__
    },
    **{spelling: loss for name, loss in _SHORT.items() for spelling in (name, name.upper())},
}


def get(identifier: Any) -> Any:
    """The loss of a name ("mse", "huber", "Huber"); a class becomes a loss with its defaults, None stays None."""
    if identifier is None:
        return None
    loss = _NAMED.get(identifier) if isinstance(identifier, str) else identifier
    if inspect.isclass(loss):
        loss = loss()
    if not callable(loss):
        raise ValueError(f"no loss is called {identifier!r}; there are {', '.join(sorted(_NAMED))}")
    return loss
