"""The model that is trained: small, so that a hundred of them train at once on a laptop."""

from __future__ import annotations

import flax.linen as nn

from jaxloss.core.types import Array

__all__ = ["MLP"]


class MLP(nn.Module):
    """One hidden layer: `outputs` scores for every row of `x`.

    A linen module, because `init` and `apply` are pure functions of a key and of params: what vmap over seeds needs.
    """

    outputs: int
    hidden: int = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Scores [rows, outputs] of `x` [rows, features]."""
        hidden = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.outputs)(hidden)
