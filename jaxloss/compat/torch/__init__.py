"""torch.nn.functional's losses on jax arrays.

    from jaxloss.compat import torch as F

    F.cross_entropy(logits, labels, label_smoothing=0.1)

Names, argument names, their order, defaults and meaning are those of torch 2.13: the class axis is axis 1, `reduction`
is "mean", "sum" or "none", and where a mean divides by the sum of the weights and where by the count is torch's. torch
itself is not imported. `jax.grad`, `jit` and `vmap` go through; strings, booleans and `p` are Python values. Each
function says which loss of jaxloss it is. Where the numbers differ from torch's, and why:

Everywhere
- A mean over nothing (all labels ignored, an empty batch, weights that sum to 0) is 0 with gradient 0; torch: nan.
- Half-precision inputs give a float32 result, summed in float32; torch rounds it to the inputs' precision. Gradients
  come in the inputs' own.
- Shapes that differ are refused; torch broadcasts them (mse, l1, smooth_l1 and huber warn): [N] against [N, 1] is
  hardly ever meant. `weight` and `pos_weight` of the binary losses broadcast, and `var`, as in torch.
- `size_average` and `reduce`, deprecated there, must be None. No warning is given, kl_div's neither.
- What torch refuses by looking at values cannot be refused in compiled code. A class index outside [0, C) multiplies
  its row by nan, in value and gradient (torch: IndexError). A negative variance and an impossible length are nan.
- A sign other than 1 and -1 counts as 1 above 0 and as -1 elsewhere in hinge_embedding_loss (torch adds both terms)
  and in cosine_embedding_loss (torch: 0).

Classes
- cross_entropy keeps the digits of a confident row: -log(p) of p = 1 - 1e-30 is 1e-30, and its gradient is as exact;
  torch: 0. A logit of -inf with target probability 0 adds 0; torch: nan.
- linear_cross_entropy never holds the logits, takes its own chunks, and has all derivatives; `options`, which choose
  torch's, must be None. Probabilities, K-dimensional targets, and `weight` together with smoothing make the logits.
- binary_cross_entropy_with_logits keeps the digits of its tail: exp(-20) for a logit of -20 and target 0; torch: 0 in
  float32. An infinite logit on the right side gives 0; torch: nan.
- binary_cross_entropy holds a logarithm at -100, as torch documents, so 100 is the most that a wrong certainty costs;
  `jl.binary_cross_entropy` says inf. Its gradient is (p - t) / (p (1 - p)) down to the smallest number, for a sigmoid
  before it to cancel; torch divides by 1e-12 at least, and here that stands for 0 alone.
- soft_margin_loss is finite for every finite score; torch: inf beyond a margin of -89 in float32, with gradient nan.
- multilabel_margin_loss counts a class once that the target lists twice; torch: twice.

Distributions
- kl_div of target 0 (or log-target -inf) and log-probability -inf is 0; torch: nan.
- poisson_nll_loss with full=True uses Stirling's approximation as torch does, but keeps the digits of large counts,
  whose terms cancel in torch; its gradient towards a target of 0 is finite. With log_input=False, target 0 and
  input + eps = 0 give 0; torch: nan.
- gaussian_nll_loss does not square a residual before it divides it: no overflow for residuals beyond 1e19.

Pairs, triplets, sequences
- cosine_embedding_loss adds no epsilon to the squared lengths: entries of 1e20 and 1e-25 give the cosine, and a zero
  vector has gradient 0 (torch: up to 1e6 of length). Nearly parallel vectors keep the digits of 1 - cos.
- hinge_embedding_loss and cosine_embedding_loss have gradient 0 exactly at the margin; torch passes it on.
  margin_ranking_loss and the triplet losses pass it on too: scores that all start equal must come apart.
- triplet_margin_loss takes p > 0 and inf; p = 0 and p < 0, which are no norms, are refused.
- ctc_loss brings `log_probs` whose probabilities do not add up to 1 there (torch takes them as they are, and gives the
  gradient of normalised ones). The gradient of a sequence without an alignment is 0 (torch: nan, but for
  zero_infinity). A label equal to the blank is nan. `targets` in a row [S] need `target_lengths` known when compiling.
"""

from jaxloss.compat.torch.classification import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    linear_cross_entropy,
    multi_margin_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    nll_loss,
    soft_margin_loss,
)
from jaxloss.compat.torch.distributions import gaussian_nll_loss, kl_div, poisson_nll_loss
from jaxloss.compat.torch.embedding import (
    cosine_embedding_loss,
    hinge_embedding_loss,
    margin_ranking_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from jaxloss.compat.torch.regression import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from jaxloss.compat.torch.sequence import ctc_loss

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]
