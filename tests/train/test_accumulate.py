"""Microbatches: the result is that of the whole batch, whatever the masks and weights."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import Mean, reduce
from jaxloss.train import Aux, RecompilationWarning, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARTS = (1, 2, 4, 8)
LENGTHS = {
    "uneven": (6, 1, 2, 6, 3, 1, 6, 2),
    "empty rows": (6, 0, 2, 0, 0, 0, 6, 0),  # with 8 parts most microbatches are all masked
    "one entry": (0, 0, 0, 1, 0, 0, 0, 0),
    "nothing": (0,) * 8,
}


def data(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(8, 6, 3)).astype(np.float32),
        "y": rng.normal(size=(8, 6)).astype(np.float32),
        "mask": np.arange(6) < np.array(lengths)[:, None],
        "row_weight": rng.uniform(0, 0.1, 8).astype(np.float32),  # adds up to less than 1
    }


PARAMS = {"w": np.array([0.3, -0.2, 0.5], np.float32), "b": np.float32(0.1)}


def loss_fn(params, batch):
    prediction = batch["x"] @ params["w"] + params["b"]
    return {
        "fit": reduce((prediction - batch["y"]) ** 2, where=batch["mask"], reduction="partial"),
        "level": reduce(prediction.mean(1) ** 2, weights=batch["row_weight"], reduction="partial"),
    }


def truth(batch, level):
    """Loss and gradient in float64, from the formulas."""
    x, y, u = (batch[k].astype(np.float64) for k in ("x", "y", "row_weight"))
    m, w, b = batch["mask"], PARAMS["w"].astype(np.float64), float(PARAMS["b"])
    prediction = x @ w + b
    loss, gw, gb = 0.0, np.zeros(3), 0.0
    if m.any():
        r = np.where(m, prediction - y, 0)
        loss += (r**2).sum() / m.sum()
        gw += 2 * np.einsum("st,stk->k", r, x) / m.sum()
        gb += 2 * r.sum() / m.sum()
    mean = prediction.mean(1)
    loss += level * (u * mean**2).sum() / u.sum()
    gw += level * 2 * np.einsum("s,sk->k", u * mean, x.mean(1)) / u.sum()
    gb += level * 2 * (u * mean).sum() / u.sum()
    return loss, {"w": gw, "b": gb}


def one_step(loss_fn, batch, params=PARAMS, **options):
    """The gradient, read off one step of plain descent."""
    init = {name: options.pop(name) for name in ("key", "model_state") if name in options}
    step = make_train_step(loss_fn, optax.sgd(1.0), **options)
    state, metrics = step(step.init(params, **init), batch)
    gradient = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), params, state.params)
    return state, metrics, gradient


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", LENGTHS)
def test_is_the_whole_batch(name, parts):
    batch = data(LENGTHS[name])
    loss, gradient = truth(batch, 0.5)
    state, metrics, found = one_step(loss_fn, batch, accumulate=parts, coefficients={"level": 0.5})
    np.testing.assert_allclose(metrics.loss, loss, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, gradient)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in gradient.values()))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    np.testing.assert_allclose(metrics.update_norm, norm, rtol=1e-5)
    assert metrics.terms["fit"].weight == batch["mask"].sum()
    np.testing.assert_allclose(metrics.terms["level"].weight, batch["row_weight"].sum(), rtol=1e-6)
    assert bool(metrics.ok)
    assert int(state.skipped) == 0
    assert int(state.step) == 1


@pytest.mark.parametrize("parts", PARTS)
def test_an_empty_batch_changes_nothing(parts):
    def only_fit(params, batch):
        return loss_fn(params, batch)["fit"]

    state, metrics, _ = one_step(only_fit, data((0,) * 8), accumulate=parts)
    assert metrics.loss == 0
    assert metrics.grad_norm == 0
    assert bool(metrics.ok)
    assert set(metrics.terms) == {"loss"}
    for name, value in PARAMS.items():
        np.testing.assert_array_equal(state.params[name], value)


def test_the_order_of_rows_does_not_matter():
    batch = data(LENGTHS["uneven"])
    turned = jax.tree.map(lambda x: x[np.random.default_rng(1).permutation(8)], batch)
    first, second = (one_step(loss_fn, b, accumulate=4)[2] for b in (batch, turned))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, second)


def test_microbatches_are_strided():
    def seen(params, batch, *, model_state):
        del model_state
        return Mean((params * batch).sum(), jnp.ones(())), Aux(model_state=batch)

    step = make_train_step(seen, optax.sgd(0.0), accumulate=4)
    state, _ = step(step.init(1.0, model_state=jnp.zeros(2)), jnp.arange(8.0))
    np.testing.assert_array_equal(state.model_state, [3, 7])  # the last of the four


def test_many_steps_agree():
    """Adam's path over five steps, against optax and a full-batch loss written by hand."""
    batches = [data(LENGTHS["uneven"], seed) for seed in range(5)]

    def whole(params, batch):
        prediction = batch["x"] @ params["w"] + params["b"]
        fit = jnp.where(batch["mask"], (prediction - batch["y"]) ** 2, 0).sum() / batch["mask"].sum()
        return fit + 0.5 * (batch["row_weight"] * prediction.mean(1) ** 2).sum() / batch["row_weight"].sum()

    tx = optax.adam(0.1)
    params = jax.tree.map(jnp.asarray, PARAMS)
    opt_state = tx.init(params)
    gradient = jax.jit(jax.grad(whole))
    for batch in batches:
        updates, opt_state = tx.update(gradient(params, batch), opt_state)
        params = optax.apply_updates(params, updates)
    for parts in PARTS:
        step = make_train_step(loss_fn, tx, accumulate=parts, coefficients={"level": 0.5})
        state = step.init(PARAMS)
        for batch in batches:
            state, _ = step(state, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, params)


@pytest.mark.parametrize("jitted", [False, True])
def test_effects_happen_once(capfd, jitted):
    def noisy(params, batch):
        jax.debug.print("forward")

        def layer(h, _):
            jax.debug.print("layer {}", h.sum())  # of the loop's own value, or grad moves the print out of it
            return h * params["w"].mean(), None

        h, _ = jax.lax.scan(layer, batch["x"], length=2)
        return reduce((h.sum(-1) - batch["y"]) ** 2, where=batch["mask"], reduction="partial")

    noisy = jax.jit(noisy) if jitted else noisy
    step = make_train_step(noisy, optax.sgd(0.1), accumulate=4)
    jax.block_until_ready(step(step.init(PARAMS), data(LENGTHS["uneven"])))
    jax.effects_barrier()
    printed = capfd.readouterr().out.split()
    assert printed.count("forward") == 4
    assert printed.count("layer") == 8


def test_effects_happen_once_where_one_loop_holds_model_and_weight(capfd):
    """A recurrent model that adds up its loss and weight on the way: the loop stays, its model goes."""

    def recurrent(params, batch):
        def tick(carry, at):
            h, total, weight = carry
            x, y, m = at
            h = jnp.tanh(x @ params["w"] + h)
            jax.debug.print("tick {}", h.sum())
            return (h, total + jnp.where(m, (h - y) ** 2, 0).sum(), weight + m.sum()), None

        over_time = jax.tree.map(lambda a: a.swapaxes(0, 1), (batch["x"], batch["y"], batch["mask"]))
        (_, total, weight), _ = jax.lax.scan(tick, (jnp.zeros(len(batch["y"])), 0.0, 0), over_time)
        return Mean(total, weight.astype(jnp.float32))

    step = make_train_step(recurrent, optax.sgd(0.1), accumulate=2)
    jax.block_until_ready(step(step.init(PARAMS), data(LENGTHS["uneven"])))
    jax.effects_barrier()
    assert capfd.readouterr().out.split().count("tick") == 2 * 6


def test_the_model_is_not_computed_for_the_denominators():
    def flops(parts):
        step = make_train_step(deep, optax.sgd(0.1), accumulate=parts)
        state = step.init(jnp.eye(64))
        return jax.jit(step.pure).lower(state, jnp.ones((8, 64))).as_text().count("dot_general")

    def deep(params, batch):
        return reduce((batch @ params) ** 2, where=batch > 0, reduction="partial")

    assert flops(2) == flops(1)


def test_weights_that_need_params_are_exact_and_say_so():
    def gated(params, batch):
        prediction = batch["x"] @ params["w"] + params["b"]
        return reduce((prediction - batch["y"]) ** 2, weights=jax.nn.sigmoid(prediction), reduction="partial")

    batch = data(LENGTHS["uneven"])

    def whole(params, weight):
        prediction = batch["x"] @ params["w"] + params["b"]
        return (jax.nn.sigmoid(prediction) * (prediction - batch["y"]) ** 2).sum() / weight

    weight = jax.nn.sigmoid(batch["x"] @ PARAMS["w"] + PARAMS["b"]).sum()
    gradient = jax.grad(whole)(jax.tree.map(jnp.asarray, PARAMS), weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one_step(gated, batch)[2]  # no second forward: no warning
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, gradient)
    step = make_train_step(gated, optax.sgd(1.0), accumulate=4)
    short = jax.tree.map(lambda x: x[:4], batch)
    with pytest.warns(UserWarning, match="computes the model twice"):
        step(step.init(PARAMS), short)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompilationWarning)
        state, _ = step(step.init(PARAMS), batch)  # traced again, said once: a second warning is an error here
    change = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b), PARAMS, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), change, gradient)


def test_keys_differ_by_step_and_microbatch_and_are_the_same_in_both_passes():
    def drop(params, batch, *, key):
        keep = jax.random.bernoulli(key, 0.5, batch.shape)
        return reduce(params * batch, where=keep, reduction="partial")

    batch, key = jnp.arange(1.0, 65.0).reshape(16, 4), jax.random.key(3)
    step = make_train_step(drop, optax.sgd(0.0), accumulate=4)
    state = step.init(1.0, key=key)
    seen = []
    for at in range(2):
        state, metrics = step(state, batch)
        keeps = [
            np.asarray(jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, at), i), 0.5, (4, 4)))
            for i in range(4)
        ]
        kept = sum((k * np.asarray(batch)[i::4]).sum() for i, k in enumerate(keeps))
        count = sum(k.sum() for k in keeps)
        np.testing.assert_allclose(metrics.loss, kept / count, rtol=1e-6)
        np.testing.assert_allclose(metrics.grad_norm, kept / count, rtol=1e-6)
        assert metrics.terms["loss"].weight == count
        seen += [k.tobytes() for k in keeps]
    assert len(set(seen)) == 8
    assert (jax.random.key_data(state.key) == jax.random.key_data(key)).all()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_model_state_goes_through_the_microbatches_in_order(parts):
    """A running mean, and a weight that depends on it: the first pass must carry it too."""

    def running(params, batch, *, model_state):
        model_state = 0.5 * model_state + batch.mean()
        weight = len(batch) * model_state
        return Mean((params * batch).sum(), weight), Aux(model_state=model_state)

    rows = np.arange(1.0, 9.0)
    memory, weight = 0.0, 0.0
    for i in range(parts):
        memory = 0.5 * memory + rows[i::parts].mean()
        weight += len(rows) // parts * memory
    step = make_train_step(running, optax.sgd(1.0), accumulate=parts)
    state, metrics = step(step.init(1.0, model_state=0.0), jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(state.model_state, memory, rtol=1e-6)
    np.testing.assert_allclose(metrics.loss, rows.sum() / weight, rtol=1e-6)
    np.testing.assert_allclose(1 - state.params, rows.sum() / weight, rtol=1e-5)


@jax.tree_util.register_pytree_node_class
class Largest:
    """A metric of the user's own, which merges in its own way."""

    def __init__(self, value):
        self.value = value

    def merge(self, other):
        return Largest(jnp.maximum(self.value, other.value))

    def tree_flatten(self):
        return (self.value,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize("parts", [1, 4])
def test_metrics_are_merged(parts):
    def with_metrics(params, batch):
        r = batch["x"] @ params["w"] - batch["y"]
        size = reduce(jnp.abs(r), where=batch["mask"], reduction="partial")
        loss = reduce(r**2, where=batch["mask"], reduction="partial")
        return loss, Aux(metrics={"size": size, "largest": Largest(jnp.abs(r).max())})

    batch = data(LENGTHS["uneven"])
    r = np.abs(batch["x"] @ PARAMS["w"] - batch["y"])
    _, metrics, _ = one_step(with_metrics, batch, accumulate=parts)
    np.testing.assert_allclose(metrics.aux["size"].value, r[batch["mask"]].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics.aux["largest"].value, r.max(), rtol=1e-6)


def test_a_scalar_of_the_batch_goes_to_every_microbatch():
    def scaled(params, batch):
        return reduce(batch["scale"] * params * batch["x"], reduction="partial")

    batch = {"x": jnp.arange(8.0), "scale": 3.0}
    assert one_step(scaled, batch, params=1.0, accumulate=4)[1].loss == 3 * 3.5


def test_rows_that_do_not_divide_are_refused():
    step = make_train_step(loss_fn, optax.sgd(0.1), accumulate=3)
    with pytest.raises(ValueError, match=r"accumulate=3 does not divide the 8 rows.*pad it to 9"):
        step(step.init(PARAMS), data(LENGTHS["uneven"]))
    batch = data(LENGTHS["uneven"])
    batch["y"] = batch["y"][:4]
    step = make_train_step(loss_fn, optax.sgd(0.1), accumulate=2)
    with pytest.raises(ValueError, match=r"batch\['x'\]` has 8.*|batch\['mask'\]` has 8 of them and.*\['y'\]` has 4"):
        step(step.init(PARAMS), batch)


@pytest.mark.parametrize("parts", [1, 4])
def test_half_precision_params_are_summed_in_float32(parts):
    """256 + 1 = 256 in bfloat16: a running sum in the params' own dtype would lose most of the microbatches."""

    def linear(params, batch):
        return reduce(params.astype(jnp.float32) * batch, reduction="partial")

    rows = jnp.array([256.0, 1.0, 1.0, 1.0]) if parts == 4 else jnp.array([259.0] * 4) / 4
    step = make_train_step(linear, optax.sgd(1.0), accumulate=parts)
    state, metrics = step(step.init(jnp.zeros((), jnp.bfloat16)), rows)
    assert state.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(metrics.grad_norm, 259 / 4, rtol=2**-8)
    assert metrics.grad_norm == float(jnp.asarray(259 / 4, jnp.bfloat16))


def test_half_precision_terms_are_summed_in_float32():
    def half(params, batch):
        return Mean((params * batch).astype(jnp.bfloat16).sum(), batch.astype(jnp.bfloat16).sum())

    step = make_train_step(half, optax.sgd(1.0), accumulate=4)
    state, metrics = step(step.init(2.0), jnp.array([256.0, 1.0, 1.0, 1.0]))
    assert metrics.terms["loss"].weight == 259  # 256 + 1 = 256 in bfloat16
    assert metrics.terms["loss"].total == 518
    assert metrics.loss == 2
    np.testing.assert_allclose(state.params, 1, rtol=2**-8)  # the gradient passed through bfloat16


def test_one_part_needs_no_loop():
    step = make_train_step(loss_fn, optax.adam(0.1))
    text = jax.jit(step.pure).lower(step.init(PARAMS), data(LENGTHS["uneven"])).as_text()
    assert "while" not in text
