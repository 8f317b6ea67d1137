"""Every loss as a pure compiled JAX function that is right at the edges, and one train_step for all of them.

jl.huber, jl.softmax_cross_entropy, ...      the losses, flat; `jl.catalogue` lists and finds them
jl.viterbi, jl.chain_marginals, jl.ctc_alignment, jl.linear_log_probability
                                             what their losses' models say: paths, marginals, log-probabilities
jl.make_train_step(loss_fn, optimizer)       one step for any of them and any optax optimizer
jl.metrics                                   accuracy, F-beta, ROC-AUC, calibration, NDCG, ...: mergeable
jl.train                                     the loop, checkpoints, learning-rate finder and diagnosis around it
jl.frames, jl.compiled, jl.reduce, jl.Mean   what a loss of your own is made of
jl.check, jl.checked                         are these values legal? eagerly, or inside jit
jaxloss.testing.check_loss                   your own loss under every law
"""

import importlib
from typing import TYPE_CHECKING

from jaxloss._version import __version__ as __version__
from jaxloss.algorithms.ctc import ctc_alignment as ctc_alignment
from jaxloss.algorithms.linear_chain import chain_marginals as chain_marginals
from jaxloss.algorithms.linear_chain import viterbi as viterbi
from jaxloss.algorithms.linear_log_probability import linear_log_probability as linear_log_probability
from jaxloss.algorithms.linear_z_loss import linear_cross_entropy_and_z_loss as linear_cross_entropy_and_z_loss
from jaxloss.checks import check as check
from jaxloss.checks import checked as checked
from jaxloss.core import frames as frames
from jaxloss.core import types as types
from jaxloss.core.compiled import compiled as compiled
from jaxloss.core.compiled import traced as traced
from jaxloss.core.numerics import differentiable as differentiable
from jaxloss.core.reduction import Mean as Mean
from jaxloss.core.reduction import reduce as reduce
from jaxloss.losses import *

# What a program that only wants losses never touches is a good part of the import's time: it comes when it is named.
if TYPE_CHECKING:
    from jaxloss import catalogue as catalogue
    from jaxloss import metrics as metrics
    from jaxloss import train as train
    from jaxloss.train import Aux as Aux
    from jaxloss.train import make_train_step as make_train_step

_MODULES = ("catalogue", "metrics", "train")
_OF_TRAIN = ("Aux", "make_train_step")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"jaxloss.{name}")  # which makes it an attribute: asked once
    if name in _OF_TRAIN:
        found = globals()[name] = getattr(importlib.import_module("jaxloss.train"), name)
        return found
    raise AttributeError(f"module 'jaxloss' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_OF_TRAIN})
