"""The step on a mesh of four devices: what a plain program gives on one, however params and batch lie on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P
from optax import contrib

import jaxloss as jl
from jaxloss.train import Aux, State, make_train_step

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.exhaustive,
    pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices"),
]

ROWS, FEATURES, HIDDEN, CLASSES = 16, 4, 8, 12
RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def batch_of(valid):
    return {
        "x": drawn(ROWS, FEATURES),
        "y": RNG.integers(0, CLASSES, ROWS).astype(np.int32),
        "mask": np.isin(np.arange(ROWS), valid),
        "weights": RNG.uniform(0.5, 2, ROWS).astype(np.float32),
    }


# Rows are sharded in two blocks of eight: once the second device holds nothing valid, once the first.
BATCHES = [batch_of(valid) for valid in ([*range(7), 8, 12], range(5), [9, 10, 15])]
PARAMS = {
    "w1": drawn(FEATURES, HIDDEN) / 2,
    "b1": drawn(HIDDEN),
    "w2": drawn(HIDDEN, CLASSES) / 2,
    "b2": drawn(CLASSES),
}
MODEL_STATE = {"mean": np.zeros(FEATURES, np.float32)}

LAYOUTS = {
    "data parallel": {"w1": P(), "b1": P(), "w2": P(), "b2": P()},
    "fully sharded": {"w1": P("data"), "b1": P("data"), "w2": P(None, "data"), "b2": P("data")},
    "tensor sharded": {"w1": P(), "b1": P(), "w2": P(None, "model"), "b2": P("model")},
    "both": {"w1": P("data"), "b1": P("data"), "w2": P("data", "model"), "b2": P("model")},
}


# The model, as it is written for one device and for an Auto mesh, and for an Explicit one


def plain_layer(x, w, b, columns):
    return x @ w + b[None]


def explicit_layer(x, w, b, columns):
    """x w + b where every sharding is spelled out: first gather what is spread over the rows' axis, then multiply."""
    w, b = reshard(w, P(None, columns)), reshard(b, P(columns))
    return jnp.matmul(x, w, out_sharding=P("data", columns)) + b[None]


def loss_with(layer, columns=None):
    """Two terms, dropout, and a running mean; `columns` is the mesh axis over which the classes are spread."""

    def loss_fn(params, batch, *, key, model_state):
        kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
        x = jnp.where(kept, batch["x"], 0) - model_state["mean"][None]
        hidden = jnp.tanh(layer(x, params["w1"], params["b1"], None))
        logits = layer(hidden, params["w2"], params["b2"], columns)
        terms = {
            "nll": jl.softmax_cross_entropy(
                logits, batch["y"], where=batch["mask"], weights=batch["weights"], reduction="partial"
            ),
            "size": jl.reduce(hidden**2, where=batch["mask"][:, None], reduction="partial"),
        }
        return terms, Aux(model_state={"mean": 0.9 * model_state["mean"] + 0.1 * batch["x"].mean(0)})

    return loss_fn


def coefficient(step):
    return 0.1 * (step + 1)


def by_hand(optimizer, parts):
    """The same training as a plain program on one device: sums over the microbatches, and then two quotients."""

    def loss(params, mean, batch, step):
        sums = jnp.zeros(4)
        for i in range(parts):
            x, y, mask, weights = (batch[name][i::parts] for name in ("x", "y", "mask", "weights"))
            kept = jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(KEY, step), i), 0.8, x.shape)
            hidden = jnp.tanh((jnp.where(kept, x, 0) - mean[None]) @ params["w1"] + params["b1"][None])
            logp = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"][None])
            weights, mask = jnp.where(mask, weights, 0), mask.astype(jnp.float32)
            nll = -logp[jnp.arange(len(y)), y]
            sums += jnp.stack(
                [(weights * nll).sum(), weights.sum(), (mask[:, None] * hidden**2).sum(), mask.sum() * HIDDEN]
            )
            mean = 0.9 * mean + 0.1 * x.mean(0)
        return sums[0] / sums[1] + coefficient(step) * sums[2] / sums[3], (sums, mean)

    update = optax.with_extra_args_support(optimizer).update

    @jax.jit
    def step(params, opt_state, mean, batch, number):
        (value, (sums, mean_after)), grad = jax.value_and_grad(loss, has_aux=True)(params, mean, batch, number)
        extras = {"value": value, "grad": grad, "value_fn": lambda params: loss(params, mean, batch, number)[0]}
        updates, opt_state = update(grad, opt_state, params, **extras)
        seen = {"loss": value, "sums": sums, "grad_norm": optax.tree.norm(grad), "mean": mean_after}
        return optax.apply_updates(params, updates), opt_state, seen

    params, mean = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(MODEL_STATE["mean"])
    opt_state = optimizer.init(params)
    for number, batch in enumerate(BATCHES):
        params, opt_state, seen = step(params, opt_state, mean, batch, number)
        mean = seen["mean"]
    return jax.device_get({"params": params, **seen})


@functools.cache
def adam_by_hand(parts):
    return by_hand(optax.adam(0.05), parts)


def found_by(state, metrics):
    terms = [metrics.terms[name] for name in ("nll", "size")]
    return jax.device_get(
        {
            "params": state.params,
            "loss": metrics.loss,
            "sums": jnp.stack([half for term in terms for half in (term.total, term.weight)]),
            "grad_norm": metrics.grad_norm,
            "mean": state.model_state["mean"],
        }
    )


def assert_close(found, wanted, roundings=1.0):
    """Within 1e-6, of an array's largest entry where that is above 1; or so many times that."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        atol = 1e-6 * roundings * max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


# Meshes, and what lies where on them


def mesh_of(kind):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)


def on_rows(batch, mesh):
    return jax.device_put(batch, NamedSharding(mesh, P("data")))


def spread(layout, mesh):
    return {name: jax.device_put(PARAMS[name], NamedSharding(mesh, spec)) for name, spec in LAYOUTS[layout].items()}


def loss_for(kind, layout):
    columns = "model" if layout in ("tensor sharded", "both") else None
    return loss_with(plain_layer if kind == AxisType.Auto else explicit_layer, columns)


def places(state):
    return {
        jax.tree_util.keystr(path): (leaf.sharding, leaf.ndim)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_same_places(before, after):
    for name, (sharding, ndim) in before.items():
        assert sharding.is_equivalent_to(after[name][0], ndim), (name, sharding, after[name][0])


def train(kind, layout, optimizer, *, batches=BATCHES, **options):
    """Train on a mesh, in one compile, with every array of the state where it was: state, metrics, step."""
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        step = make_train_step(loss_for(kind, layout), optimizer, coefficients={"size": coefficient}, **options)
        state = step.init(spread(layout, mesh), model_state=MODEL_STATE, key=KEY)
        before = places(state)
        assert all(sharding.mesh == mesh for sharding, _ in before.values())
        sharded, compiles = [on_rows(batch, mesh) for batch in batches], len(COMPILES)
        for batch in sharded:
            state, metrics = step(state, batch)
        assert len(COMPILES) - compiles == 1
        assert_same_places(before, places(state))
    return state, metrics, step


every_mesh = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


@every_mesh
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_one_device(kind, layout):
    state, metrics, _ = train(kind, layout, optax.adam(0.05), accumulate=4)
    assert_close(found_by(state, metrics), by_hand_in_microbatches())
    for name, spec in LAYOUTS[layout].items():
        for leaf in (state.params[name], state.opt_state[0].mu[name], state.opt_state[0].nu[name]):
            assert leaf.sharding.is_equivalent_to(NamedSharding(leaf.sharding.mesh, spec), leaf.ndim)


@functools.cache
def by_hand_in_microbatches():
    return by_hand(optax.adam(0.05), 4)


# A smaller model, for what does not depend on the layout


LINE_BATCHES = [
    {"x": drawn(ROWS, FEATURES), "y": drawn(ROWS, HIDDEN), "mask": np.isin(np.arange(ROWS), valid)}
    for valid in ([*range(7), 8, 12], range(5), [9, 10, 15])
]
LINE = {"w": PARAMS["w1"], "b": PARAMS["b1"]}
LINE_SHARDED = {"w": P("data", "model"), "b": P("model")}


def line_loss(params, batch, layer=plain_layer):
    r = layer(batch["x"], params["w"], params["b"], "model") - batch["y"]
    return jl.reduce(r**2, where=batch["mask"][:, None], reduction="partial")


def line_loss_for(kind):
    return line_loss if kind == AxisType.Auto else functools.partial(line_loss, layer=explicit_layer)


def line_on(mesh, specs=LINE_SHARDED):
    return {name: jax.device_put(LINE[name], NamedSharding(mesh, spec)) for name, spec in specs.items()}


def line_by_hand(optimizer, batches=LINE_BATCHES, params=LINE):
    """Plain training on one device; the extras are what optax's line searches ask for."""
    update = optax.with_extra_args_support(optimizer).update

    def loss(params, batch):
        r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
        return jnp.where(batch["mask"][:, None], r**2, 0).sum() / (batch["mask"].sum() * HIDDEN)

    @jax.jit
    def step(params, opt_state, batch):
        value, grad = jax.value_and_grad(loss)(params, batch)
        extras = {"value": value, "grad": grad, "value_fn": lambda params: loss(params, batch)}
        updates, opt_state = update(grad, opt_state, params, **extras)
        return optax.apply_updates(params, updates), opt_state

    params = jax.tree.map(jnp.asarray, params)
    opt_state = jax.tree.map(jnp.copy, optimizer.init(params))
    for batch in batches:
        params, opt_state = step(params, opt_state, batch)
    return jax.device_get(params)


def train_line(kind, optimizer, specs=LINE_SHARDED, batches=LINE_BATCHES, put=on_rows, **options):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        step = make_train_step(line_loss_for(kind), optimizer, **options)
        state = step.init(line_on(mesh, specs))
        before, compiles = places(state), len(COMPILES)
        for batch in batches:
            state, metrics = step(state, put(batch, mesh))
        assert len(COMPILES) - compiles == 1
        assert_same_places(before, places(state))
    return state, metrics, step


# Optimizers with sharded params. Those that multiply params or gradients with each other (in optax by `dot`) cannot do
# so on an Explicit mesh, where optax would have to say how the product is sharded; on an Auto mesh XLA sees to it.

ANYWHERE = {
    # The norm is that of all devices together.
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05)),
    "adafactor": optax.adafactor(0.05, min_dim_size_to_factor=4),
    "schedule_free": contrib.schedule_free_adamw(0.05),
}
ON_AUTO_MESHES = {
    "line search": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "lbfgs": optax.lbfgs(0.1, linesearch=None),
    "muon": contrib.muon(0.05),
    "prodigy": contrib.prodigy(1.0, estim_lr0=0.1),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((AxisType.Auto, name) for name in (*ANYWHERE, *ON_AUTO_MESHES)),
        *((AxisType.Explicit, name) for name in ANYWHERE),
    ],
)
def test_optimizers_with_sharded_params(kind, name):
    optimizer = (ANYWHERE | ON_AUTO_MESHES)[name]
    state, _, _ = train_line(kind, optimizer)
    # Muon's five Newton-Schulz steps multiply a small singular value, and the rounding in it, by up to 3.4 each.
    assert_close(jax.device_get(state.params), line_by_hand_with(name), roundings=10.0 if name == "muon" else 1.0)


@functools.cache
def line_by_hand_with(name):
    wanted = line_by_hand((ANYWHERE | ON_AUTO_MESHES)[name])
    assert all(np.abs(wanted[leaf] - LINE[leaf]).max() > 0.01 for leaf in LINE)
    return wanted


@pytest.mark.parametrize("name", ON_AUTO_MESHES)
def test_optimizers_that_an_explicit_mesh_refuses_say_so(name):
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        step = make_train_step(line_loss_for(AxisType.Explicit), ON_AUTO_MESHES[name])
        state = step.init(line_on(mesh))
        with pytest.raises(TypeError, match="ShardingTypeError"):
            step(state, on_rows(LINE_BATCHES[0], mesh))


# Batches that are not sharded, precision, what is not finite


@every_mesh
def test_numpy_batches_meet_a_sharded_state(kind):
    state, _, _ = train_line(kind, optax.adam(0.05), put=lambda batch, mesh: batch)
    assert_close(jax.device_get(state.params), line_by_hand(optax.adam(0.05)))


@every_mesh
def test_evaluate_on_a_mesh(kind):
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        step = make_train_step(line_loss_for(kind), optax.adam(0.05), accumulate=4)
        state = step.init(line_on(mesh))
        before, compiles = jax.device_get(state), len(COMPILES)
        first, second, third = (on_rows(batch, mesh) for batch in LINE_BATCHES)
        found = step.evaluate(state, first)["loss"]
        for batch in (second, third):
            found = found.merge(step.evaluate(state, batch)["loss"])
        assert len(COMPILES) - compiles <= 2  # one, and the merge's additions
        host = step.evaluate(state, LINE_BATCHES[0])["loss"]
    total = weight = 0
    for batch in reversed(LINE_BATCHES):  # so that the last ones are those of the first batch
        r = (batch["x"].astype(np.float64) @ LINE["w"] + LINE["b"] - batch["y"])[batch["mask"]]
        own = (r**2).sum(), r.size
        total, weight = total + own[0], weight + own[1]
    assert_close(jax.device_get([found.total, found.weight]), [total, weight])
    assert_close(jax.device_get([host.total, host.weight]), own)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)


@every_mesh
def test_what_is_reported_lies_whole_on_every_device(kind):
    """Else no process could read it where each has a part of the columns."""

    def loss_fn(params, batch):
        layer = plain_layer if kind == AxisType.Auto else explicit_layer
        r = layer(batch["x"], params["w"], params["b"], "model") - batch["y"]
        by_column = jl.Mean(jnp.where(batch["mask"][:, None], r**2, 0).sum(0), batch["mask"].sum().astype(jnp.float32))
        return jl.reduce(r**2, where=batch["mask"][:, None], reduction="partial"), Aux(metrics={"by_column": by_column})

    batch, mesh = LINE_BATCHES[0], mesh_of(kind)
    with jax.set_mesh(mesh):
        step = make_train_step(loss_fn, optax.sgd(0.05))
        state = step.init(line_on(mesh))
        evaluated = step.evaluate(state, on_rows(batch, mesh))["by_column"]
        _, metrics = step(state, on_rows(batch, mesh))
    r = (batch["x"].astype(np.float64) @ LINE["w"] + LINE["b"] - batch["y"])[batch["mask"]]
    for found in (evaluated, metrics.aux["by_column"]):
        assert_close(jax.device_get(found.total), (r**2).sum(0))
        assert found.total.sharding.is_fully_replicated
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(metrics))


def test_masters_stay_sharded_and_so_does_their_copy_in_half_precision():
    seen = []

    def loss_fn(params, batch):
        seen.append({name: (leaf.dtype, jax.typeof(leaf).sharding.spec) for name, leaf in params.items()})
        return line_loss(params, batch, explicit_layer)

    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        step = make_train_step(loss_fn, optax.sgd(0.05), compute_dtype=jnp.bfloat16, accumulate=2)
        state = step.init(line_on(mesh))
        before, compiles = places(state), len(COMPILES)
        for batch in LINE_BATCHES:
            state, _ = step(state, on_rows(batch, mesh))
        assert len(COMPILES) - compiles == 1
    assert_same_places(before, places(state))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    for params in seen:
        assert params == {name: (jnp.bfloat16, spec) for name, spec in LINE_SHARDED.items()}
    for name, wanted in line_by_hand(optax.sgd(0.05)).items():
        assert np.abs(wanted - LINE[name]).max() > 0.02
        np.testing.assert_allclose(state.params[name], wanted, atol=2e-3)


def poisoned(batch):
    bad = {**batch, "x": batch["x"].copy()}
    bad["x"][3, 0] = np.nan  # a valid row of one device
    return bad


@every_mesh
def test_a_nan_on_one_device_changes_no_bit_on_any(kind):
    first, second, _ = LINE_BATCHES
    mesh = mesh_of(kind)
    with jax.set_mesh(mesh):
        step = make_train_step(line_loss_for(kind), optax.adam(0.05), accumulate=2)
        state, _ = step(step.init(line_on(mesh)), on_rows(first, mesh))
        before = [bits(state.params), bits(state.opt_state)]
        state, metrics = step(state, on_rows(poisoned(second), mesh))
        assert not bool(metrics.ok)
        assert [bits(state.params), bits(state.opt_state)] == before
        state, metrics = step(state, on_rows(second, mesh))
    assert bool(metrics.ok)
    assert (int(state.step), int(state.skipped)) == (3, 1)
    assert_close(jax.device_get(state.params), line_by_hand(optax.adam(0.05), [first, second]))


def bits(tree):
    """Of every copy on every device."""
    return [np.asarray(shard.data).tobytes() for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]


def test_a_nan_on_one_device_is_named():
    state, _, step = train_line(AxisType.Auto, optax.adam(0.05), batches=LINE_BATCHES[:1], nonfinite="raise")
    mesh = state.step.sharding.mesh
    with jax.set_mesh(mesh):
        state, _ = step(state, on_rows(poisoned(LINE_BATCHES[1]), mesh))
        with pytest.raises(FloatingPointError, match=r"step 1 .*'loss' is nan; the gradient of params\['b'\] has nan"):
            step(state, on_rows(LINE_BATCHES[2], mesh))


# Gradients of examples


CLIP = 0.5
PRIVATE = optax.chain(
    contrib.differentially_private_aggregate(CLIP, 0.0, key=jax.random.key(0)), optax.sgd(1.0)
)  # without noise, so that there is something to compare


def test_per_example_gradients_on_an_auto_mesh():
    batch = LINE_BATCHES[0]
    state, _, _ = train_line(AxisType.Auto, PRIVATE, batches=[batch], per_example_gradients=True, accumulate=2)
    x, y, mask = (batch[name].astype(np.float64) for name in ("x", "y", "mask"))
    slope = 2 * (x @ LINE["w"] + LINE["b"] - y) * mask[:, None]
    by_row = {"w": x[:, :, None] * slope[:, None, :], "b": slope}
    norms = np.sqrt(sum((leaf.reshape(ROWS, -1) ** 2).sum(1) for leaf in by_row.values()))
    factor = np.minimum(1, CLIP / np.maximum(norms, CLIP))
    assert (factor < 1).any()
    wanted = {name: LINE[name] - np.tensordot(factor, leaf, 1) / ROWS for name, leaf in by_row.items()}
    assert_close(jax.device_get(state.params), wanted)


def test_per_example_gradients_on_an_explicit_mesh_are_refused_by_jax():
    with pytest.raises((TypeError, ValueError), match=r"[Ss]harded"):
        train_line(AxisType.Explicit, PRIVATE, per_example_gradients=True)


# Other transformations


def test_models_side_by_side_on_the_devices():
    """An ensemble: vmap over the members, whose axis lies over the mesh."""
    scale = np.array([1.0, 0.5, -0.5, 2.0], np.float32)
    members = {name: np.multiply.outer(scale, leaf) for name, leaf in LINE.items()}
    mesh = jax.make_mesh((4,), ("member",), axis_types=(AxisType.Auto,))
    step = make_train_step(line_loss, optax.adam(0.05), accumulate=2)
    by_member = NamedSharding(mesh, P("member"))
    states = jax.jit(jax.vmap(step.init), out_shardings=by_member)(jax.device_put(members, by_member))
    advance = jax.jit(jax.vmap(step.pure, in_axes=(0, None)), donate_argnums=0)
    for batch in LINE_BATCHES:
        states, metrics = advance(states, batch)
    assert isinstance(states, State)
    assert len(metrics.loss.sharding.device_set) == 4
    for i in (0, 3):
        wanted = line_by_hand(optax.adam(0.05), params={name: leaf[i] for name, leaf in members.items()})
        assert_close(jax.device_get({name: leaf[i] for name, leaf in states.params.items()}), wanted)
