"""Half-precision computing over float32 masters, and the loss scale: what is cast, what is kept, what is skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import Mean, reduce
from jaxloss.train import Aux, DynamicLossScale, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(8, 3)).astype(np.float32),
    "y": RNG.normal(size=8).astype(np.float32),
    "label": np.arange(8),
    "mask": np.arange(8) != 3,
}
PARAMS = {"dense": {"w": np.array([0.3, -0.2, 0.5], np.float32)}, "norm": {"scale": np.float32(1.1)}}


def loss_fn(params, batch):
    prediction = batch["x"] @ params["dense"]["w"] * params["norm"]["scale"]
    return reduce((prediction - batch["y"]) ** 2, where=batch["mask"], reduction="partial")


def dtypes(tree):
    return {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def seen_dtypes(compute_dtype, **options):
    seen = {}

    def looking(params, batch, *, model_state, key):
        seen.update(params=dtypes(params), batch=dtypes(batch), state=dtypes(model_state), key=key.dtype)
        return loss_fn(params, batch), Aux(model_state=model_state)

    step = make_train_step(looking, optax.adam(0.1), compute_dtype=compute_dtype, **options)
    state = step.init(PARAMS, model_state={"mean": jnp.zeros(3)}, key=jax.random.key(0))
    after, _ = step(state, BATCH)
    return seen, after


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "bfloat16", jnp.dtype("float16")])
@pytest.mark.parametrize("parts", [1, 2])
def test_floating_arrays_are_cast_and_the_state_is_not(dtype, parts):
    seen, after = seen_dtypes(dtype, accumulate=parts)
    assert set(seen["params"].values()) == {jnp.dtype(dtype)}
    assert seen["batch"] == {
        "['x']": jnp.dtype(dtype),
        "['y']": jnp.dtype(dtype),
        "['label']": np.dtype("int32"),
        "['mask']": np.dtype(bool),
    }
    assert seen["state"] == {"['mean']": np.float32}  # running means are not computed with, they are kept
    assert jnp.issubdtype(seen["key"], jax.dtypes.prng_key)
    floating = [leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floating) == {np.dtype("float32")}


def test_a_policy_by_path():
    paths = []

    def policy(path, leaf):
        paths.append((path, leaf.shape))
        return None if path.startswith("batch/y") or "norm" in path else jnp.bfloat16

    seen, _ = seen_dtypes(policy)
    assert set(paths) >= {("params/dense/w", (3,)), ("params/norm/scale", ()), ("batch/x", (8, 3)), ("batch/y", (8,))}
    assert not any("label" in path or "mask" in path for path, _ in paths)
    assert seen["params"] == {"['dense']['w']": jnp.bfloat16, "['norm']['scale']": np.float32}
    assert seen["batch"]["['x']"] == jnp.bfloat16
    assert seen["batch"]["['y']"] == np.float32


FLOATING = r"must be a floating dtype such as jnp\.bfloat16"


@pytest.mark.parametrize("wrong", [jnp.int32, "int8", "half a float"])
def test_only_floating_dtypes(wrong):
    with pytest.raises(TypeError, match=FLOATING):
        make_train_step(loss_fn, optax.sgd(0.1), compute_dtype=wrong)


def test_a_policy_chooses_only_floating_dtypes():
    step = make_train_step(loss_fn, optax.sgd(0.1), compute_dtype=lambda path, leaf: jnp.int32)
    with pytest.raises(TypeError, match="`compute_dtype` at params/dense/w " + FLOATING):
        jax.eval_shape(step.pure, step.init(PARAMS), BATCH)


@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float16])
def test_half_precision_params_become_float32_masters(given):
    """1 - 200 * 1e-3 = 0.8; in bfloat16 every such step is rounded away."""
    params = {"w": jnp.ones((), given)}

    def linear(params, batch):
        return Mean((params["w"] * batch).sum(), jnp.ones(()))

    step = make_train_step(linear, optax.sgd(1e-3), compute_dtype=given)
    state, _ = jax.lax.scan(lambda s, _: step.pure(s, jnp.ones(1)), step.init(params), None, length=200)
    assert state.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.params["w"], 0.8, rtol=1e-4)
    assert params["w"].dtype == given  # the caller's own

    without = make_train_step(linear, optax.sgd(1e-3))
    assert without.init(params).params["w"].dtype == given  # nobody asked for masters


@pytest.mark.parametrize("parts", [1, 4])
def test_the_gradient_is_that_of_the_rounded_model(parts):
    """Inputs rounded to bfloat16, everything else in float64: what the step may lose is the model's own rounding."""
    step = make_train_step(loss_fn, optax.sgd(1.0), compute_dtype=jnp.bfloat16, accumulate=parts)
    state, metrics = step(step.init(PARAMS), BATCH)

    def rounded(a):
        return np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64)

    x, y, w, s = (rounded(a) for a in (BATCH["x"], BATCH["y"], PARAMS["dense"]["w"], PARAMS["norm"]["scale"]))
    r = np.where(BATCH["mask"], x @ w * s - y, 0)
    np.testing.assert_allclose(metrics.loss, (r**2).sum() / 7, rtol=2e-2)
    np.testing.assert_allclose(PARAMS["dense"]["w"] - state.params["dense"]["w"], 2 * s * x.T @ r / 7, atol=2e-2)
    np.testing.assert_allclose(PARAMS["norm"]["scale"] - state.params["norm"]["scale"], 2 * r @ (x @ w) / 7, atol=2e-2)


def tiny(params, batch):
    """A mean of products whose gradient is 1e-8, which float16 rounds to 0."""
    each = (params["w"][None] * batch["x"] * batch["z"]).sum(1)
    return reduce(each, reduction="partial")


def first_update(parts=1, **options):
    step = make_train_step(tiny, optax.sgd(1.0), compute_dtype=jnp.float16, accumulate=parts, **options)
    factor = np.full((4, 3), 1e-4, np.float32)
    state, metrics = step(step.init({"w": jnp.zeros(3)}), {"x": factor, "z": factor})
    return np.asarray(state.params["w"], np.float64), metrics


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scale", [2.0**10, 1000, "dynamic", DynamicLossScale(initial=2.0**12)])
def test_small_gradients_survive_with_a_loss_scale(scale, parts):
    step_of = float(np.float16(1e-4)) ** 2
    update, metrics = first_update(parts, loss_scale=scale)
    np.testing.assert_allclose(update, -step_of, rtol=5e-3)
    np.testing.assert_allclose(metrics.grad_norm, np.sqrt(3) * step_of, rtol=5e-3)  # unscaled
    assert metrics.loss == 0  # w is 0; and no scale in it either
    update, _ = first_update(parts)
    np.testing.assert_array_equal(update, 0)  # what happens without, silently


def test_what_a_line_search_sees_is_unscaled():
    def curved(params, batch):
        return reduce((params["w"][None] - batch["x"]) ** 2, reduction="partial")

    def look(context):
        return {"found": (context.value, context.value_fn(context.params), context.grad_fn(context.params)["w"])}

    start = {"w": jnp.zeros(3)}
    keep = optax.GradientTransformationExtraArgs(
        lambda p: (jnp.zeros(()), jnp.zeros(()), p["w"]), lambda g, s, p=None, *, found: (g, found)
    )
    batch = {"x": np.full((2, 3), 0.25, np.float32)}
    step = make_train_step(curved, keep, compute_dtype=jnp.float16, loss_scale=2.0**8, update_args=look)
    value, again, gradient = step(step.init(start), batch)[0].opt_state
    np.testing.assert_allclose([value, again], 0.0625)
    np.testing.assert_allclose(gradient, -0.5 / 3, rtol=1e-3)


def simulate(option, overflows):
    """The scale by the rule in the docstring, in Python."""
    value, streak, values = option.initial, 0, []
    for overflowed in overflows:
        streak += 1
        if overflowed:
            value, streak = max(value / option.factor, option.minimum), 0
        elif streak >= option.growth_interval:
            value, streak = min(value * option.factor, option.maximum), 0
        values.append(value)
    return values


def test_the_dynamic_scale_backs_off_and_grows():
    option = DynamicLossScale(initial=16.0, growth_interval=3, factor=4.0, minimum=1.0, maximum=64.0)

    def shaky(params, batch):
        # Finite value; an infinite gradient in float16 when asked for, whatever the scale.
        return Mean((params["w"] * batch["slope"]).sum(), jnp.ones(()))

    step = make_train_step(shaky, optax.adam(0.1), compute_dtype=jnp.float16, loss_scale=option)
    state = step.init({"w": jnp.zeros(2)})
    assert state.loss_scale.value == 16
    overflows = [bool(int(c)) for c in "0001000000011110000"]
    found, skipped = [], 0
    for overflowed in overflows:
        before = jax.device_get((state.params, state.opt_state))
        slope = np.full(2, 7e4 if overflowed else 0.5, np.float32)  # 7e4 is inf in float16
        state, metrics = step(state, {"slope": slope})
        found.append(float(state.loss_scale.value))
        skipped += overflowed
        assert bool(metrics.ok) is not overflowed
        if overflowed:
            jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)
    assert found == simulate(option, overflows)
    assert {1.0, 64.0} <= set(found)  # both ends were met
    assert int(state.skipped) == skipped
    assert int(state.step) == len(overflows)


def test_too_large_a_scale_finds_its_way_down():
    step = make_train_step(
        loss_fn, optax.sgd(0.1), compute_dtype=jnp.float16, loss_scale=DynamicLossScale(initial=2.0**24)
    )
    state = step.init(PARAMS)
    for _ in range(12):
        state, metrics = step(state, BATCH)
    assert 0 < int(state.skipped) < 12
    assert bool(metrics.ok)
    assert float(state.loss_scale.value) == 2.0 ** (24 - int(state.skipped))


def test_a_nan_of_the_loss_itself_leaves_the_scale():
    step = make_train_step(loss_fn, optax.sgd(0.1), compute_dtype=jnp.float16, loss_scale="dynamic")
    state = step.init(PARAMS)
    state, metrics = step(state, {**BATCH, "y": np.full(8, np.nan, np.float32)})
    assert not bool(metrics.ok)
    assert int(state.skipped) == 1
    assert state.loss_scale.value == 2.0**15


@pytest.mark.exhaustive
def test_the_scale_goes_through_scan_and_vmap():
    step = make_train_step(
        loss_fn, optax.sgd(0.1), compute_dtype=jnp.float16, loss_scale=DynamicLossScale(2.0**4, growth_interval=2)
    )
    state = step.init(PARAMS)
    after, _ = jax.lax.scan(lambda s, _: step.pure(s, BATCH), state, None, length=4)
    assert after.loss_scale.value == 2.0**6
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    poisoned = {**BATCH, "y": np.stack([BATCH["y"], np.where(np.arange(8) == 0, 7e4, BATCH["y"])]).astype(np.float32)}
    axes = {name: 0 if name == "y" else None for name in BATCH}
    both, _ = jax.vmap(step.pure, in_axes=(0, axes))(stacked, poisoned)
    assert both.loss_scale.value.tolist() == [16.0, 8.0]  # 7e4 is inf in float16
    assert both.loss_scale.streak.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss_scale": "static"}, ValueError, "'dynamic' or a `DynamicLossScale`; got 'static'"),
        ({"loss_scale": 0.0}, ValueError, "positive and finite; got 0.0"),
        ({"loss_scale": float("inf")}, ValueError, "positive and finite"),
        ({"loss_scale": True}, TypeError, "got bool"),
        ({"loss_scale": "dynamic", "nonfinite": "raise"}, ValueError, "needs nonfinite='skip'; got 'raise'"),
        ({"loss_scale": "dynamic", "nonfinite": "propagate"}, ValueError, "needs nonfinite='skip'"),
    ],
)
def test_options_are_checked_at_once(options, error, words):
    with pytest.raises(error, match=words):
        make_train_step(loss_fn, optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"initial": 0.5}, "minimum <= initial"),
        ({"initial": 2.0**30}, "initial <= maximum"),
        ({"minimum": 0.0, "initial": 1.0}, "0 < minimum"),
        ({"growth_interval": 0}, "growth_interval >= 1"),
        ({"factor": 1.0}, "factor > 1"),
    ],
)
def test_a_scale_that_cannot_work_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DynamicLossScale(**options)


def test_a_state_of_another_step_is_refused():
    dynamic = make_train_step(loss_fn, optax.sgd(0.1), loss_scale="dynamic")
    static = make_train_step(loss_fn, optax.sgd(0.1), loss_scale=2.0)
    with pytest.raises(ValueError, match="has no dynamic loss scale and this step needs a"):
        dynamic.pure(static.init(PARAMS), BATCH)
    with pytest.raises(ValueError, match="has a dynamic loss scale and this step needs no"):
        static.pure(dynamic.init(PARAMS), BATCH)


@pytest.mark.exhaustive
def test_training_in_half_precision_ends_where_float32_does():
    """A small network on real digits; float16 with a loss that underflows needs its scale."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.data[:512] / 16).astype(np.float32), digits.target[:512]
    rng = np.random.default_rng(1)
    start = {
        "a": (rng.normal(size=(64, 32)) / 8).astype(np.float32),
        "b": (rng.normal(size=(32, 10)) / 6).astype(np.float32),
    }

    def train(**options):
        def cross_entropy(params, batch):
            logits = jax.nn.relu(batch["x"] @ params["a"]) @ params["b"]
            each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["y"])
            return 1e-6 * reduce(each, reduction="partial")

        step = make_train_step(cross_entropy, optax.adam(1e-2, eps=1e-14), **options)
        run = jax.jit(lambda state: jax.lax.scan(lambda s, _: step.pure(s, {"x": x, "y": y}), state, None, length=60))
        state, metrics = run(step.init(start))
        assert state.params["a"].dtype == jnp.float32
        return 1e6 * float(metrics.loss[-1])

    whole = train()
    assert whole < 0.1  # it learnt
    np.testing.assert_allclose(train(compute_dtype=jnp.bfloat16), whole, rtol=0.1)
    np.testing.assert_allclose(train(compute_dtype=jnp.float16, loss_scale="dynamic"), whole, rtol=0.1)
    assert train(compute_dtype=jnp.float16) > 1.0  # gradients of exactly 0, and nobody says so
