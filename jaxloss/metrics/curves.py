"""Areas under the curves that a moving threshold draws: ROC-AUC and average precision, exact or in bins that merge."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core import sharding
from jaxloss.core.compiled import compiled
from jaxloss.core.types import Array, AxisName, Mask, Probability, Real, Weights
from jaxloss.metrics.sorted_counts import precision_sum, sorted_counts
from jaxloss.metrics.tallies import Tallied, Total, entries, on_every_device, safe, summed

__all__ = [
    "BinnedAveragePrecision",
    "BinnedRocAuc",
    "Whole",
    "average_precision",
    "binned_average_precision",
    "binned_roc_auc",
    "roc_auc",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Whole:
    """A metric of everything at once. It has a value, and no halves that could be merged."""

    value: Array
    binned: str = dataclasses.field(metadata={"static": True})  # the metric that can

    def merge(self, other: object) -> NoReturn:
        """Refused, in words."""
        raise TypeError(
            "an exact area does not follow from those of two batches, because scores of one are compared with scores "
            f"of the other: evaluate it on all scores together, or use jaxloss.metrics.{self.binned}, which merges"
        )


@compiled
def roc_auc(
    scores: Real,
    targets: Probability,
    *,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
) -> Whole:
    """The probability that a positive scores higher than a negative, a tie counting one half: the area under the ROC.

        sum over positives i and negatives j of w_i w_j ([s_i > s_j] + 1/2 [s_i = s_j]) / (sum w_i sum w_j)

    Use to judge a ranking whatever the threshold and however rare the positives. Exact, of one set of scores: of many
    batches `binned_roc_auc` is merged.

    Args:
      scores: [...] real, pooled; logits or anything else that rises with the belief in yes.
      targets: [...] 0 or 1, the shape of `scores`; anything else makes the metric nan, as a nan score does.
      axis_name: inside `shard_map`, the mesh axis (or axes) over which the entries are sharded: every device compares
        all. () compares the local ones only.
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with a `.value` in [0, 1], 1/2 by chance; nan without a positive or without a negative. It cannot
      be merged. O(n log n) time; without weights every pair is counted exactly.
    Peers: sklearn.metrics.roc_auc_score, keras.metrics.AUC, torchmetrics.AUROC.
    Reference: Hanley and McNeil (1982), The meaning and use of the area under a receiver operating characteristic (ROC)
      curve, Radiology 143(1).
    """
    s, signed, poison = _all_entries(scores, targets, axis_name, where, weights)
    at = sorted_counts(s, signed)
    # Of each negative: the positives above it, and half of those beside it.
    ahead = (at.positives_before + at.positives_through).astype(poison.dtype)
    positives, negatives = (_last(x).astype(poison.dtype) for x in (at.positives, at.negatives))
    pairs = summed(at.negative.astype(poison.dtype) * (ahead / (2 * safe(positives))))
    area = _defined(pairs / safe(negatives), (positives > 0) & (negatives > 0)) + poison
    return Whole(_alike(area, axis_name), "binned_roc_auc")


@compiled
def average_precision(
    scores: Real,
    targets: Probability,
    *,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
) -> Whole:
    """The mean, over the positives, of the precision at each one's threshold: the area under precision and recall.

        sum over thresholds of (recall_n - recall_(n - 1)) precision_n

    Use where positives are rare, and what is retrieved must be right. Exact, of one set of scores: of many batches
    `binned_average_precision` is merged. Of many lists, `mean_average_precision`.

    Args:
      scores: [...] real, pooled; equal ones are retrieved together.
      targets: [...] 0 or 1, the shape of `scores`; anything else makes the metric nan, as a nan score does.
      axis_name: inside `shard_map`, the mesh axis (or axes) over which the entries are sharded: every device compares
        all. () compares the local ones only.
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with a `.value` in (0, 1], the share of positives by chance; nan without a positive (scikit-learn:
      0). It cannot be merged. O(n log n) time.
    Peers: sklearn.metrics.average_precision_score, torchmetrics.AveragePrecision.
    Reference: Davis and Goadrich (2006), The relationship between precision-recall and ROC curves, ICML.
    """
    s, signed, poison = _all_entries(scores, targets, axis_name, where, weights)
    at = sorted_counts(s, signed)
    positives = _last(at.positives).astype(poison.dtype)
    area = precision_sum(at, poison.dtype) / safe(positives)
    return Whole(_alike(_defined(area, positives > 0) + poison, axis_name), "binned_average_precision")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Histogram(Tallied):
    """How many positives and negatives have a score in each bin, by rising scores."""

    positives: Total  # [2^bits]
    negatives: Total  # [2^bits]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BinnedRocAuc(_Histogram):
    """`roc_auc` of scores that are rounded down to bins; scores of one bin are ties."""

    @property
    def value(self) -> Array:
        """The area, in [0, 1]; nan without a positive or without a negative."""
        positive, negative = (_shares(x) for x in (self.positives, self.negatives))
        above = jnp.cumsum(positive[::-1])[::-1] - positive
        return summed(negative * (above + 0.5 * positive))

    @property
    def margin(self) -> Array:
        """The exact area lies within `value` +- this: half of the pairs that share a bin."""
        return 0.5 * jnp.sum(_shares(self.positives) * _shares(self.negatives))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BinnedAveragePrecision(_Histogram):
    """`average_precision` of scores that are rounded down to bins; scores of one bin are ties."""

    @property
    def value(self) -> Array:
        """The area, in (0, 1]; nan without a positive."""
        positive, negative = self.positives.value[::-1], self.negatives.value[::-1]
        through = jnp.cumsum(positive)
        precision = through / safe(through + jnp.cumsum(negative))
        return summed(_shares(self.positives)[::-1] * precision)


@compiled
def binned_roc_auc(
    scores: Real,
    targets: Probability,
    *,
    bits: int = 16,
    where: Mask = None,
    weights: Weights = None,
) -> BinnedRocAuc:
    """`roc_auc` of any number of batches, in constant memory: scores are rounded down to their leading bits.

        roc_auc(floor(scores), targets),   floor keeps the sign, the exponent and the first mantissa bits of a float32

    Use over batches, microbatches or devices; the result comes with its margin of error.

    Args:
      scores: [...] real. Two that differ by 1 % are told apart (16 bits), near 0 as elsewhere; so give logits:
        probabilities near 1 differ by less.
      targets: [...] 0 or 1, the shape of `scores`; anything else makes the metric nan, as a nan score does.
      bits: 10 to 24, how many are kept: 9 are sign and exponent. There are 2^bits bins.
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with `.merge`, of 16 2^bits bytes (1 MiB); `.value` in [0, 1], and the exact area is within
      `.value` +- `.margin`. nan without a positive or without a negative.
    Peers: keras.metrics.AUC, torchmetrics.AUROC (thresholds).
    Reference: Hanley and McNeil (1982), The meaning and use of the area under a receiver operating characteristic (ROC)
      curve, Radiology 143(1).
    """
    return BinnedRocAuc(*_in_bins(scores, targets, bits, where, weights))


@compiled
def binned_average_precision(
    scores: Real,
    targets: Probability,
    *,
    bits: int = 16,
    where: Mask = None,
    weights: Weights = None,
) -> BinnedAveragePrecision:
    """`average_precision` of any number of batches, in constant memory: scores are rounded down to their leading bits.

        average_precision(floor(scores), targets),   floor as in `binned_roc_auc`

    Use over batches, microbatches or devices.

    Args:
      scores: [...] real. Two that differ by 1 % are told apart (16 bits), near 0 as elsewhere; so give logits:
        probabilities near 1 differ by less.
      targets: [...] 0 or 1, the shape of `scores`; anything else makes the metric nan, as a nan score does.
      bits: 10 to 24, how many are kept: 9 are sign and exponent. There are 2^bits bins.
      where, weights: see `jaxloss.reduce`.
    Returns: a metric with `.merge`, of 16 2^bits bytes (1 MiB); `.value` in (0, 1], nan without a positive.
    Peers: keras.metrics.AUC (curve="PR"), torchmetrics.AveragePrecision (thresholds).
    Reference: Davis and Goadrich (2006), The relationship between precision-recall and ROC curves, ICML.
    """
    return BinnedAveragePrecision(*_in_bins(scores, targets, bits, where, weights))


def _all_entries(
    scores: Real, targets: Probability, axis_name: AxisName, where: Mask, weights: Weights
) -> tuple[Array, Array, Array]:
    """Scores [n] of all devices; how often each counts, as a positive or (with a minus) as a negative; 0 or nan."""
    sharding.refuse_hidden_rows(axis_name)
    seen = entries(where, weights, scores=lax.stop_gradient(scores), targets=lax.stop_gradient(targets))
    s, t, count = (on_every_device(x, axis_name) for x in (*seen.arrays, seen.times))
    return s, jnp.where(t == 1, count, -count), _poison(s, t, count).astype(s.dtype)


def _in_bins(scores: Real, targets: Probability, bits: int, where: Mask, weights: Weights) -> tuple[Total, Total]:
    if not 10 <= bits <= 24:
        raise ValueError(
            f"`bits` must be from 10 to 24, got {bits}: 9 are sign and exponent, and there are 2^bits bins"
        )
    seen = entries(where, weights, scores=lax.stop_gradient(scores), targets=lax.stop_gradient(targets))
    s, t, count = (on_every_device(x) for x in (*seen.arrays, seen.times))
    # The bits of a float, read as an integer, are in order; those of negative ones in the opposite order. -0 is 0.
    raw = lax.bitcast_convert_type(jnp.where(s == 0, 0, s).astype(jnp.float32), jnp.int32)
    rising = jnp.where(raw < 0, raw ^ jnp.int32(0x7FFFFFFF), raw)
    cell = (rising >> (32 - bits)) + (1 << (bits - 1))
    poison = _poison(s, t, count)

    def total(of: Array) -> Total:
        found = Total.of(jnp.zeros((1 << bits,), count.dtype).at[cell].add(jnp.where(of, count, 0)))
        return Total(found.high + poison, found.low)

    return total(t == 1), total(t == 0)


def _alike(x: Array, axis_name: AxisName) -> Array:
    """What every device has found for itself, known to be the same on all."""
    return lax.pmax(x, axis_name) if axis_name else x


def _poison(scores: Array, targets: Array, count: Array) -> Array:
    """nan if an entry that exists has no score or no answer, else 0. A weight may be nan itself."""
    bad = (jnp.isnan(scores) | ((targets != 0) & (targets != 1))) & (count != 0)
    return jnp.where(jnp.any(bad), jnp.nan, 0)


def _shares(counts: Total) -> Array:
    each = counts.value
    whole = jnp.sum(each)
    return _defined(each / safe(whole), whole != 0)


def _last(x: Array) -> Array:
    """The last of sums that go on; 0 of nothing."""
    return jnp.max(x, initial=0)


def _defined(x: Array, condition: Array) -> Array:
    return jnp.where(condition, x, jnp.nan)
