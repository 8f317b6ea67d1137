"""Every optimizer that can be driven from outside is, donated and in one compile; the others say why not."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxloss import reduce
from jaxloss.train import Aux, UpdateContext, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
BATCH = {"x": X, "y": X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3, "mask": np.arange(8)[:, None] != 5}
PARAMS = {"w": np.zeros((3, 1), np.float32), "b": np.zeros(1, np.float32)}


def loss_fn(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return reduce(r**2, where=batch["mask"], reduction="partial")


RATE = 0.05


def test_a_line_search_is_optax_s_own_on_the_whole_batch():
    def whole(params):
        r = BATCH["x"] @ params["w"] + params["b"][None] - BATCH["y"]
        return jnp.where(BATCH["mask"], r**2, 0).sum() / BATCH["mask"].sum()

    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))

    @jax.jit
    def plain(params, opt_state):
        value, grad = jax.value_and_grad(whole)(params)
        updates, opt_state = tx.update(grad, opt_state, params, value=value, grad=grad, value_fn=whole)
        return optax.apply_updates(params, updates), opt_state

    params = jax.tree.map(jnp.asarray, PARAMS)
    opt_state = tx.init(params)
    step = make_train_step(loss_fn, tx, accumulate=2)
    state = step.init(PARAMS)
    for _ in range(3):
        params, opt_state = plain(params, opt_state)
        state, _ = step(state, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, params)


@pytest.mark.parametrize("parts", [1, 4])
def test_the_functions_are_the_loss_that_was_differentiated(parts):
    """Same batch, keys, denominators and model state; and their gradient is the step's, to the last digits."""
    key = jax.random.key(0)

    def predict(params, x, key):
        return x @ (params["w"] + 0.1 * jax.random.normal(key, (3, 1))) + params["b"][None]

    def stateful(params, batch, *, key, model_state):
        prediction = predict(params, batch["x"], key)
        # A weight that depends on the params: its sum must stay what it was at the step's params.
        loss = reduce((prediction - batch["y"] - model_state) ** 2, weights=prediction**2, reduction="partial")
        return loss, Aux(model_state=model_state + prediction.mean())

    def move(params):
        return jax.tree.map(lambda p: p + 0.1, params)

    def look(context: UpdateContext):
        here, moved = context.params, move(context.params)
        return {
            "value": (context.value_fn(here), context.value),
            "moved value": context.value_fn(moved),
            "gradient": (jax.grad(context.value_fn)(here), context.grad_fn(here), context.grad),
            "moved gradient": (jax.grad(context.value_fn)(moved), context.grad_fn(moved)),
            "step": context.step,
        }

    def init(p):
        none = jnp.zeros(())
        return {"value": (none, none), "moved value": none, "gradient": (p, p, p), "moved gradient": (p, p), "step": 0}

    # An optimizer that remembers what it was given.
    tx = optax.GradientTransformationExtraArgs(init, lambda g, state, params=None, **given: (g, given))
    step = make_train_step(stateful, tx, accumulate=parts, update_args=look, nonfinite="propagate")
    start = jax.tree.map(lambda p: p + 0.5, PARAMS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the weights of the loss depend on the params")
        found = step(step.init(start, key=key, model_state=0.0), BATCH)[0].opt_state
    np.testing.assert_allclose(*found["value"], rtol=1e-6)
    for one, *others in (found["gradient"], found["moved gradient"]):
        for other in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)

    total, weight, memory = 0.0, 0.0, [0.0, 0.0]
    for i in range(parts):
        x, y = BATCH["x"][i::parts], BATCH["y"][i::parts]
        folded = jax.random.fold_in(jax.random.fold_in(key, 0), i)
        here, moved = (np.asarray(predict(p, x, folded), np.float64) for p in (start, move(start)))
        weight += (here**2).sum()
        total += (moved**2 * (moved - y - memory[1]) ** 2).sum()
        memory = [memory[0] + here.mean(), memory[1] + moved.mean()]
    np.testing.assert_allclose(found["moved value"], total / weight, rtol=1e-5)


def test_update_args_replaces_the_automatic_choice():
    step = make_train_step(loss_fn, optax.polyak_sgd(), update_args=lambda context: {"value": 0 * context.value})
    state, metrics = step(step.init(PARAMS), BATCH)
    assert metrics.update_norm == 0  # polyak's step is proportional to the value
    np.testing.assert_array_equal(state.params["w"], PARAMS["w"])


def test_the_largest_accepted_set_is_offered():
    """An optimizer that takes `value` as optional must get it."""
    got = []

    def update(updates, state, params=None, *, value=None, **rest):
        got.append((value is not None, sorted(rest)))
        return updates, state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    step = make_train_step(loss_fn, tx)
    jax.eval_shape(step.pure, step.init(PARAMS), BATCH)
    assert got[-1] == (True, ["grad", "grad_fn", "obj_fn", "value_fn"])


@pytest.mark.parametrize("names", [("value",), ("value", "grad", "value_fn"), ("grad_fn",), ("value", "obj_fn")])
def test_a_strict_optimizer_in_a_chain_gets_what_it_names(names):
    """A chain hands everything to everyone, and one that takes no other keyword refuses the rest."""
    space: dict = {}
    exec(f"def update(updates, state, params=None, *, {', '.join(names)}): return updates, state", space)
    strict = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), space["update"])
    state = make_train_step(loss_fn, strict).init(PARAMS)
    jax.eval_shape(make_train_step(loss_fn, strict).pure, state, BATCH)  # alone, its signature says it all
    chained = make_train_step(loss_fn, optax.chain(optax.clip(1.0), strict))
    if "obj_fn" in names:  # of no set that is tried: what to do is said
        with pytest.raises(TypeError, match="a set of your own goes to `update_args`"):
            jax.eval_shape(chained.pure, chained.init(PARAMS), BATCH)
    else:
        jax.eval_shape(chained.pure, chained.init(PARAMS), BATCH)


def test_a_line_search_beside_an_optimizer_that_needs_obj_fn():
    tx = optax.chain(contrib.sophia(RATE), optax.scale_by_backtracking_linesearch(15))
    step = make_train_step(loss_fn, tx)
    jax.eval_shape(step.pure, step.init(PARAMS), BATCH)


def test_a_half_precision_state_keeps_its_types():
    tx = optax.chain(optax.scale_by_distance_over_gradients(), optax.scale(-1.0))
    step = make_train_step(loss_fn, tx)
    state = step.init(jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS))
    types = jax.tree.map(lambda x: x.dtype, state)
    with jax.numpy_rank_promotion("allow"):  # optax's own, inside
        state, _ = step(state, BATCH)
    assert jax.tree.map(lambda x: x.dtype, state) == types


def test_an_optimizer_that_changes_the_shape_of_its_state_is_refused():
    tx = optax.GradientTransformation(lambda p: jnp.zeros(2), lambda g, s, p=None: (g, jnp.zeros(3)))
    step = make_train_step(loss_fn, tx)
    state = step.init(PARAMS)
    with pytest.raises(ValueError, match="the optimizer returned a state of another shape"):
        step(state, BATCH)
