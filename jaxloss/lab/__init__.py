"""The work of the command line: data sets, models, comparisons of losses and optimizers, reports.

Two names are all that the printed programs need; they are looked up on first use, because flax and scikit-learn take
seconds to import and `jaxloss list` needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxloss.lab.data import load as load
    from jaxloss.lab.models import MLP as MLP

__all__ = ["MLP", "load"]

_HOMES = {"MLP": "jaxloss.lab.models", "load": "jaxloss.lab.data"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
