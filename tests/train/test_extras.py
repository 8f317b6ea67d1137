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

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3)).astype(np.float32)
BATCH = {"x": X, "y": X @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3, "mask": np.arange(8)[:, None] != 5}
PARAMS = {"w": np.zeros((3, 1), np.float32), "b": np.zeros(1, np.float32)}


def loss_fn(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return reduce(r**2, where=batch["mask"], reduction="partial")


def sam(**options):
    return contrib.sam(optax.sgd(0.05), optax.chain(contrib.normalize(), optax.sgd(0.01)), **options)


RATE = 0.05
WORKING = {
    "sgd": lambda: optax.sgd(RATE),
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE),
    "lbfgs": lambda: optax.lbfgs(),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "momo": lambda: contrib.momo(),
    "sophia": lambda: contrib.sophia(RATE),
    "sam, opaque": lambda: sam(opaque_mode=True),
    "sam, transparent": lambda: sam(),
    "sam in a chain": lambda: optax.chain(optax.clip(10.0), sam(opaque_mode=True)),
    "schedule_free": lambda: contrib.schedule_free_adamw(RATE),
    "muon": lambda: contrib.muon(RATE),
    "prodigy": lambda: contrib.prodigy(),
    "plateau": lambda: optax.chain(optax.adam(RATE), contrib.reduce_on_plateau(patience=5)),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(RATE), 2),
    "MultiSteps of polyak": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "noisy_sgd": lambda: optax.noisy_sgd(RATE, key=jax.random.key(0)),
}

_COMPILES: list[str] = []


def _heard(event, duration, **_):
    if event.endswith("backend_compile_duration"):
        _COMPILES.append(event)


jax.monitoring.register_event_duration_secs_listener(_heard)


@pytest.mark.parametrize("name", WORKING)
def test_works_donated_in_one_compile_and_learns(name):
    step = make_train_step(loss_fn, WORKING[name](), accumulate=2)
    state, losses = step.init(PARAMS), []
    before = len(_COMPILES)
    for _ in range(12):
        old = state
        state, metrics = step(state, BATCH)
        losses.append(metrics.loss)
    assert len(_COMPILES) - before == 1
    assert old.params["w"].is_deleted()
    assert int(state.skipped) == 0
    losses = [float(loss) for loss in losses]
    assert losses[-1] < (1.0 if name == "prodigy" else 0.9) * losses[0]  # prodigy feels its way


IMPOSSIBLE = {
    "lookahead": (lambda: optax.lookahead(optax.sgd(RATE), 5, 0.5), "optax.LookaheadParams"),
    "dpsgd": (lambda: contrib.dpsgd(RATE, 1.0, 0.1, 0), "gradient of every example"),
    "masked(lbfgs)": (lambda: optax.masked(optax.lbfgs(), {"w": True, "b": False}), "pruned tree"),
    "partition(lbfgs)": (
        lambda: optax.partition({"a": optax.lbfgs(), "s": optax.sgd(RATE)}, {"w": "a", "b": "s"}),
        "pruned tree",
    ),
    "inject_hyperparams(lbfgs)": (lambda: optax.inject_hyperparams(optax.lbfgs)(learning_rate=1.0), "static_args"),
    "chain(MultiSteps(polyak))": (
        lambda: optax.chain(optax.clip(1.0), optax.MultiSteps(optax.polyak_sgd(), 2).gradient_transformation()),
        "drops what the inner optimizer needs",
    ),
}


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
