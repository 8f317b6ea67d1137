"""Every optimizer of optax that can be driven from outside is, as by hand and in one compile; the rest say why not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from optimizers import IMPOSSIBLE, ROWS

from jaxloss import reduce
from jaxloss.train import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 4)).astype(np.float32)
BATCH = {
    "x": X,
    "y": (X @ np.arange(8, dtype=np.float32).reshape(4, 2) / 4 + 0.1).astype(np.float32),
    "mask": np.arange(8) != 5,
}
PARAMS = {"w": np.full((4, 2), 0.1, np.float32), "b": np.zeros(2, np.float32)}
STEPS = 5


def errors(params, batch):
    return ((batch["x"] @ params["w"] + params["b"][None] - batch["y"]) ** 2).mean(-1)


def loss_fn(params, batch):
    return reduce(errors(params, batch), where=batch["mask"], reduction="partial")


def by_hand(row):
    """The loop that a user of optax writes for this optimizer, on the whole batch."""
    optimizer = row.make()
    pair = row.shape == "pair"

    def whole(params):
        # Line searches hand on what they do not know.
        return jnp.where(BATCH["mask"], errors(params, BATCH), 0).sum() / BATCH["mask"].sum()

    def value_fn(params, obj_fn=None, grad_fn=None):
        return whole(params)

    def one(params, row):
        row = {name: leaf[None] for name, leaf in row.items()}
        return jnp.where(row["mask"], errors(params, row), 0)[0]

    def step(params, opt_state):
        trained = params.fast if pair else params
        value, grad = jax.value_and_grad(whole)(trained)
        if row.shape == "examples":
            grad = jax.vmap(jax.grad(one), in_axes=(None, 0))(params, BATCH)
        offered = {
            "value": value,
            "grad": grad,
            "value_fn": value_fn,
            "obj_fn": whole,
            "grad_fn": lambda params, _: jax.grad(whole)(params),
        }
        updates, opt_state = optimizer.update(grad, opt_state, params, **{name: offered[name] for name in row.wants})
        return optax.apply_updates(params, updates), opt_state, value

    params = jax.tree.map(jnp.asarray, PARAMS)
    params = optax.LookaheadParams.init_synced(params) if pair else params
    opt_state, step = optimizer.init(params), jax.jit(step)
    losses = []
    for _ in range(STEPS):
        params, opt_state, value = step(params, opt_state)
        losses.append(value)
    return params, losses


# One of each way in which an optimizer is driven; the others differ from these in their arithmetic only.
USUAL = {
    "adam", "adamw", "sgd", "lbfgs", "sgd+zoom", "sgd+backtracking", "momo", "polyak_sgd", "sophia", "muon", "prodigy",
    "sam(transparent)", "schedule_free_adamw", "lookahead(sgd)", "dpsgd", "MultiSteps(adam)",
    "inject_hyperparams(adam)", "chain(adam,reduce_on_plateau)", "apply_if_finite(lbfgs)", "masked(adam)",
    "partition(adam,sgd)",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.exhaustive) for name in ROWS]
)
@jax.numpy_rank_promotion("allow")  # optax's own, inside scale_by_distance_over_gradients
def test_as_by_hand_donated_in_one_compile(name):
    row = ROWS[name]
    step = make_train_step(loss_fn, row.make(), accumulate=2, per_example_gradients=row.shape == "examples")
    state = step.init(optax.LookaheadParams.init_synced(PARAMS) if row.shape == "pair" else PARAMS)
    before, losses = len(COMPILES), []
    for _ in range(STEPS):
        old = state
        state, metrics = step(state, BATCH)
        losses.append(metrics.loss)
    assert len(COMPILES) - before == 1
    assert jax.tree.leaves(old.params)[0].is_deleted()
    assert int(state.skipped) == 0
    params, expected = by_hand(row)
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    assert losses[-1] != losses[0]  # something was learnt, or both stood still
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), state.params, params)


def test_the_usual_ones_are_there():
    assert ROWS.keys() >= USUAL


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_work_says_why(name):
    make, words = IMPOSSIBLE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optax's own, of a deprecated alias
        step = make_train_step(loss_fn, make())
        state = step.init(PARAMS)
        with pytest.raises(TypeError, match=words) as caught:
            jax.eval_shape(step.pure, state, BATCH)
    assert "no set of extra arguments suits this optimizer" in str(caught.value)


def test_all_ninety_configurations_are_here():
    assert len(ROWS) == 86
    assert len(IMPOSSIBLE) == 4
