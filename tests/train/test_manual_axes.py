"""A step inside `shard_map`: what jax would add up wrongly is refused, and the rest is what one device gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.train import make_train_step

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices")

RNG = np.random.default_rng(0)
BATCH = {
    "x": RNG.normal(size=(16, 4)).astype(np.float32),
    "y": RNG.normal(size=(16, 6)).astype(np.float32),
    "mask": np.arange(16)[:, None] < 9,  # the last device holds nothing valid
}
PARAMS = {"w": RNG.normal(size=(4, 6)).astype(np.float32), "b": np.zeros(6, np.float32)}
RATE = 0.1


def loss_fn(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    return jl.reduce(r**2, where=batch["mask"], reduction="partial")


def whole_loss_fn(params, batch):
    """The loss with both of its halves added up over the devices."""
    local = loss_fn(params, batch)
    return jl.Mean(jax.lax.psum(local.total, "data"), jax.lax.psum(local.weight, "data"))


def one_step_by_hand(params):
    """One step of gradient descent in float64."""
    x, y, mask = (BATCH[name].astype(np.float64) for name in ("x", "y", "mask"))
    slope = 2 * mask * (x @ params["w"] + params["b"] - y) / (mask.sum() * y.shape[1])
    return {"w": params["w"] - RATE * x.T @ slope, "b": params["b"] - RATE * slope.sum(0)}


def assert_close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), jax.device_get(found), wanted)


def mesh_of(*axes):
    shape = (4,) if len(axes) == 1 else (2, 2)
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))


def inside(step, mesh, **options):
    """The step inside shard_map: params everywhere, the batch by rows over the first axis of the mesh."""

    def run(state, batch):
        state, _ = step.pure(state, batch)
        return state.params

    state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())))
    specs = (P(), P(mesh.axis_names[0]))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(), **options))(state, BATCH)


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_mean_for_each_device_is_refused(nonfinite, parts):
    step = make_train_step(loss_fn, optax.sgd(RATE), accumulate=parts, nonfinite=nonfinite)
    wanted = r"differs between the devices of mesh axes \['data'\] and `params\['b'\]` between those of no mesh axis"
    with pytest.raises(ValueError, match=wanted):
        inside(step, mesh_of("data"))


def test_a_weight_of_each_device_is_refused_beside_a_total_of_all():
    def half(params, batch):
        local = loss_fn(params, batch)
        return jl.Mean(jax.lax.psum(local.total, "data"), local.weight)

    with pytest.raises(ValueError, match="loss differs"):
        inside(make_train_step(half, optax.sgd(RATE), nonfinite="propagate"), mesh_of("data"))


def test_norms_of_a_part_of_the_params_are_refused():
    """Params that are cut by hand: clipping would take the norm of each device's part."""

    def whole(params, batch):
        local = loss_fn(params, batch)
        return jl.Mean(jax.lax.psum(local.total, ("data", "model")), 2 * jax.lax.psum(local.weight, "data"))

    step = make_train_step(whole, optax.sgd(RATE), nonfinite="propagate")
    mesh = mesh_of("data", "model")

    def run(params, x, y, mask):
        state, _ = step.pure(step.init(params), {"x": x, "y": y, "mask": mask})
        return state.params

    cut, rows = {"w": P(None, "model"), "b": P("model")}, P("data")
    cut_by_hand = jax.shard_map(run, mesh=mesh, in_specs=(cut, rows, P("data", "model"), rows), out_specs=cut)
    with pytest.raises(ValueError, match=r"of no mesh axis and `params\['b'\]` between those of mesh axes \['model'\]"):
        jax.jit(cut_by_hand)(PARAMS, BATCH["x"], BATCH["y"], BATCH["mask"])


@pytest.mark.parametrize("loss", [loss_fn, whole_loss_fn], ids=["local", "psum"])
def test_without_jax_knowing_what_differs_it_is_refused(loss):
    step = make_train_step(loss, optax.sgd(RATE))
    with pytest.raises(ValueError, match="check_vma=False"):
        inside(step, mesh_of("data"), check_vma=False)


@pytest.mark.parametrize("parts", [1, 4])
def test_halves_added_up_over_the_devices_are_one_device(parts):
    step = make_train_step(whole_loss_fn, optax.sgd(RATE), accumulate=parts)
    assert_close(inside(step, mesh_of("data")), one_step_by_hand(PARAMS))


def test_every_device_may_train_its_own_model():
    factors = np.array([1.0, 0.5, -0.5, 2.0], np.float32)
    members = {name: np.multiply.outer(factors, leaf) for name, leaf in PARAMS.items()}
    step = make_train_step(loss_fn, optax.sgd(RATE), nonfinite="propagate")
    mesh = mesh_of("member")

    def run(params, batch):
        state, _ = step.pure(step.init(jax.tree.map(lambda leaf: leaf[0], params)), batch)
        return jax.tree.map(lambda leaf: leaf[None], state.params)

    by_member = jax.shard_map(run, mesh=mesh, in_specs=(P("member"), P()), out_specs=P("member"))
    found = jax.jit(by_member)(members, BATCH)
    for i in range(4):
        own = {name: leaf[i] for name, leaf in found.items()}
        assert_close(own, one_step_by_hand({name: leaf[i] for name, leaf in members.items()}))


@pytest.mark.parametrize("parts", [1, 2])
def test_shard_map_inside_of_the_loss(parts):
    mesh = mesh_of("data")
    by_rows = jax.shard_map(whole_loss_fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    step = make_train_step(by_rows, optax.sgd(RATE), accumulate=parts)
    state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())))
    state, metrics = step(state, jax.device_put(BATCH, NamedSharding(mesh, P("data"))))
    assert_close(state.params, one_step_by_hand(PARAMS))
    assert metrics.terms["loss"].weight == 9 * 6
    assert jnp.isfinite(metrics.grad_norm)
