"""The winner as a program: ten lines that train it again, seed 0 of the comparison, batch by batch the same."""

from __future__ import annotations

from jaxloss.lab.compare import Comparison
from jaxloss.lab.data import BATCH_SIZE

__all__ = ["winner_program"]

_TEMPLATE = """\
import jax, jaxloss as jl, jaxloss.lab, optax
data, model = jl.lab.load("{data}"), jl.lab.MLP(outputs={outputs})
def loss_fn(params, batch):
    scores, y = model.apply(params, batch["x"]), batch["y"]
    return {loss}
train_step = jl.make_train_step(loss_fn, {optimizer})
state = train_step.init(model.init(jax.random.key(0), data.train.x))
for batch in data.batches(epochs={epochs}, seed=0{batch_size}):
    state, metrics = train_step(state, batch)
print({result})
"""

_RESULTS = {
    "classification": (
        '"test accuracy", float((model.apply(state.params, data.test.x).argmax(axis=1) == data.test.y).mean())'
    ),
    "regression": (
        '"RMSE", data.target_scale * '
        "jl.root_mean_squared_error(model.apply(state.params, data.test.x)[:, 0], data.test.y)"
    ),
}


def winner_program(comparison: Comparison) -> str | None:
    """The program, or None where every pair diverged."""
    winner = comparison.standings[0]
    if winner.learning_rate is None:
        return None
    data = comparison.data
    usual = comparison.batch_size == BATCH_SIZE
    return _TEMPLATE.format(
        data=data.name,
        outputs=data.outputs,
        loss=winner.contender.source("scores", "y", data.outputs),
        optimizer=winner.optimizer.source.format(learning_rate=f"{winner.learning_rate:g}"),
        epochs=comparison.epochs,
        batch_size="" if usual else f", batch_size={comparison.batch_size}",
        result=_RESULTS[data.task],
    )
