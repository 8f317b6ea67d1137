"""How good predictions are, in numbers that merge: of microbatches, batches, devices and hosts.

    metrics = {"accuracy": jl.metrics.accuracy(logits, labels), "confusion": jl.metrics.confusion(logits, labels)}
    return loss, jl.Aux(metrics=metrics)           in `loss_fn`; `train_step.evaluate` gives them for a batch
    whole = first.merge(second)                    two batches, exactly as if they had been one
    whole.value                                    the number

A metric takes what a loss takes, `where` and `weights` included, and returns a `Mean` or another pytree of sums with
`merge` and `value`. All zeros, `jax.tree.map(jnp.zeros_like, metric)`, start a loop's carry. Nothing is differentiated.
Only `roc_auc` and `average_precision` cannot merge: the exact area needs all scores at once, and says so.
"""

from jaxloss.metrics.calibration import Calibration as Calibration
from jaxloss.metrics.calibration import binary_brier as binary_brier
from jaxloss.metrics.calibration import binary_calibration as binary_calibration
from jaxloss.metrics.calibration import binary_log_loss as binary_log_loss
from jaxloss.metrics.calibration import brier as brier
from jaxloss.metrics.calibration import calibration as calibration
from jaxloss.metrics.calibration import log_loss as log_loss
from jaxloss.metrics.classification import Confusion as Confusion
from jaxloss.metrics.classification import accuracy as accuracy
from jaxloss.metrics.classification import binary_accuracy as binary_accuracy
from jaxloss.metrics.classification import binary_confusion as binary_confusion
from jaxloss.metrics.classification import confusion as confusion
from jaxloss.metrics.classification import top_k_accuracy as top_k_accuracy
from jaxloss.metrics.curves import average_precision as average_precision
from jaxloss.metrics.curves import binned_average_precision as binned_average_precision
from jaxloss.metrics.curves import binned_roc_auc as binned_roc_auc
from jaxloss.metrics.curves import roc_auc as roc_auc
from jaxloss.metrics.ranking import mean_average_precision as mean_average_precision
from jaxloss.metrics.ranking import mean_reciprocal_rank as mean_reciprocal_rank
from jaxloss.metrics.ranking import ndcg as ndcg
from jaxloss.metrics.ranking import precision_at as precision_at
from jaxloss.metrics.ranking import recall_at as recall_at
from jaxloss.metrics.regression import mean_absolute as mean_absolute
from jaxloss.metrics.regression import r2 as r2
from jaxloss.metrics.regression import root_mean_squared as root_mean_squared
from jaxloss.metrics.tallies import merge_over as merge_over
