"""Contrast in tiles: the truth is NumPy float64, pair by pair; memory and speed are why there are tiles."""

import functools

import cases_contrastive as textbook
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms import tiled_contrast

pytestmark = pytest.mark.usefixtures("quick_compilation")

GROUPS = ("nt_xent", "supervised_contrastive")
OPTION = {"siglip": {"scale": 3.0, "bias": -2.0}}
RARER = ("info_nce", "in_batch_softmax", "supervised_contrastive")


def names(*often, rarer=RARER):
    """Losses whose rows run by default, and those that only the exhaustive run takes."""
    return [*often, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in rarer)]


@pytest.fixture
def small_tiles(monkeypatch):
    for name, size in (("_TILE", 24), ("_SHORTEST", 3)):
        monkeypatch.setattr(tiled_contrast, name, size)


def options(name):
    return OPTION.get(name, {"temperature": 0.3})


def drawn(name, rows, features=4, seed=0):
    """Arrays that have slopes, and the others."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, rows, features))
    if name in GROUPS:
        return (x,), (np.resize([0, 0, 1, 0, 2, 1, 2], rows).astype(np.int32),)
    third = (rng.normal(size=(rows, 2, features)),) if name == "in_batch_softmax" else ()
    return (x, y, *third), ()


def truth(name, floats, others, numbers):
    found = getattr(textbook, name)(*floats, *others, **dict(zip(options(name), numbers, strict=True)))
    value, share = found if isinstance(found, tuple) else (found, np.ones(len(found)))
    return value, value.sum() / share.sum()


def ours(name, others=(), **tail):
    """A function of the floats and the numbers among the options."""

    def call(floats, numbers):
        numbers = dict(zip(options(name), numbers, strict=True))
        return getattr(jl, name)(*floats, *others, **numbers, **tail)

    return call


# 13 rows are no whole number of tiles, 20 are.
@pytest.mark.parametrize("rows", [13, pytest.param(20, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", names("clip_contrastive", "siglip", "nt_xent"))
def test_tiles_have_the_value_slope_and_curvature_of_the_textbook(name, rows, small_tiles):
    floats, others = drawn(name, rows)
    numbers = tuple(options(name).values())
    rng = np.random.default_rng(1)
    direction = [rng.normal(size=x.shape) for x in floats], [0.1 * rng.normal() for _ in numbers]

    def along(h):
        moved = [x + h * d for x, d in zip(floats, direction[0], strict=True)]
        return truth(name, moved, others, [n + h * d for n, d in zip(numbers, direction[1], strict=True)])[1]

    h = 1e-3
    far, near, here, right, farther = (along(k * h) for k in (-2, -1, 0, 1, 2))
    slope = (far - 8 * near + 8 * right - farther) / (12 * h)
    curve = (-far + 16 * near - 30 * here + 16 * right - farther) / (12 * h * h)
    with jax.enable_x64(True):
        f = ours(name, others)
        point = (tuple(jnp.asarray(x) for x in floats), tuple(jnp.asarray(n) for n in numbers))
        way = (tuple(jnp.asarray(d) for d in direction[0]), tuple(jnp.asarray(d) for d in direction[1]))

        def dotted(tree):
            return sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(way), strict=True))

        def everything(point):
            each = ours(name, others, reduction="none")(*point)
            value, gradient = jax.value_and_grad(lambda p: f(*p))(point)
            forward = jax.jvp(lambda p: f(*p), (point,), (way,))[1]
            bent = jax.jvp(jax.grad(lambda p: f(*p)), (point,), (way,))[1]
            return each, value, dotted(gradient), forward, dotted(bent)

        each, value, reverse, forward, bent = jax.jit(everything)(point)
    np.testing.assert_allclose(each, truth(name, floats, others, numbers)[0], rtol=1e-10)
    np.testing.assert_allclose(value, here, rtol=1e-10)
    np.testing.assert_allclose([reverse, forward], slope, rtol=1e-8)
    np.testing.assert_allclose(bent, curve, rtol=1e-5)


@pytest.mark.parametrize("name", ["in_batch_softmax", "clip_contrastive", "siglip", "supervised_contrastive"])
def test_rows_behind_a_mask_are_in_no_tile(name, small_tiles):
    floats, others = drawn(name, 17)
    where = np.arange(17) % 5 != 2
    dirty = [np.where(where.reshape(-1, *(1,) * (x.ndim - 1)), x, np.nan).astype(np.float32) for x in floats]
    numbers = tuple(options(name).values())

    def step(floats, numbers):
        return jax.value_and_grad(ours(name, others, where=where), argnums=(0, 1))(floats, numbers)

    value, (slopes, option_slopes) = jax.jit(step)(tuple(dirty), numbers)
    kept = [x[where] for x in (*floats, *others)]
    want = truth(name, kept[: len(floats)], kept[len(floats) :], numbers)[1]
    np.testing.assert_allclose(value, want, rtol=2e-5)
    assert np.all(np.isfinite(option_slopes))
    for slope in slopes:
        assert np.all(np.isfinite(slope))
        assert not np.any(slope[~where])
        assert np.all(np.any(slope[where] != 0, axis=-1))


# Unit vectors at right angles: of each row the score of its own is 1 / t and all others are 0, exactly.
@pytest.mark.parametrize("name", ["info_nce", "clip_contrastive", "nt_xent", "supervised_contrastive"])
def test_confident_rows_keep_their_digits(name, small_tiles):
    rows, t = 12, np.float32(0.04)
    basis = np.eye(rows, dtype=np.float32)
    if name in GROUPS:
        others_of_a_row = 2 * rows - 2
        arrays = (np.concatenate([basis, basis]), np.tile(np.arange(rows), 2).astype(np.int32))
    else:
        others_of_a_row = rows - 1
        arrays = (basis, basis)
    value, slope = jax.value_and_grad(lambda t: getattr(jl, name)(*arrays, temperature=t))(t)
    z = 1 / np.float64(t)
    miss = others_of_a_row * np.exp(-z)  # 1e-10: in float32 1 + miss is 1
    np.testing.assert_allclose(value, np.log1p(miss), rtol=1e-5)
    np.testing.assert_allclose(slope, z * z * miss / (1 + miss), rtol=1e-5)


def test_pairs_of_labels_are_what_optax_says():
    floats, _ = drawn("nt_xent", 16, seed=3)
    x, labels = jnp.asarray(floats[0], jnp.float32), jnp.arange(16) // 2

    @jax.jit
    def three(x):  # of one positive a row, all are SimCLR
        losses = optax.losses.ntxent, jl.nt_xent, jl.supervised_contrastive
        return [jax.value_and_grad(lambda x, loss=loss: loss(x, labels, temperature=0.2))(x) for loss in losses]

    want, *got = three(x)
    for each in got:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), each, want)


@pytest.mark.parametrize("name", GROUPS)
def test_an_anchor_without_a_positive_is_absent(name):
    floats, _ = drawn("nt_xent", 5, seed=4)
    x, loss = jnp.asarray(floats[0], jnp.float32), getattr(jl, name)

    @jax.jit
    def everything(labels):
        differentiated = jax.value_and_grad(loss)(x, labels)
        return loss(x, labels, reduction="partial").weight, loss(x, labels, reduction="none"), *differentiated

    weight, each, value, _ = everything(jnp.array([0, 0, 1, 2, 3]))
    assert weight == 2
    np.testing.assert_array_equal(each > 0, [True, True, False, False, False])
    np.testing.assert_allclose(value, (each[0] + each[1]) / 2, rtol=1e-6)
    weight, each, value, slope = everything(jnp.arange(5))
    assert value == weight == 0
    assert not np.any(slope)
    _, each, _, slope = everything(jnp.zeros(5, int))  # no negative at all
    assert np.all(np.isfinite(each))
    assert np.all(np.isfinite(slope))


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("clip_contrastive", rarer=("siglip", "nt_xent")))
def test_a_batch_of_32768_takes_less_than_300_megabytes(name):
    x = jax.ShapeDtypeStruct((2**15, 512), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    arrays = (x, jax.ShapeDtypeStruct((2**15,), jnp.int32)) if name in GROUPS else (x, x)

    def loss(a, b, number):
        return getattr(jl, name)(a, b, **{next(iter(options(name))): number})

    wrt = (0, 2) if name in GROUPS else (0, 1, 2)
    program = jax.jit(jax.value_and_grad(loss, argnums=wrt)).lower(*arrays, number).compile()
    # The matrix alone would be 4096 MiB, the two inputs made unit and their slopes are 256.
    assert program.memory_analysis().temp_size_in_bytes < 300 * 2**20


# --- Four devices -------------------------------------------------------------------------------------------------


def spread(function, floats, others, numbers, kind=AxisType.Auto):
    """Value and slopes inside `shard_map`, the mean over all devices' rows."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    rows = P("data")

    def total(floats, numbers, others):
        part = function(floats, numbers, others)
        return jl.Mean(jax.lax.psum(part.total, "data"), jax.lax.psum(part.weight, "data")).value

    mapped = jax.shard_map(total, mesh=mesh, in_specs=(rows, P(), rows), out_specs=P(), check_vma=True)
    return jax.jit(lambda f, n, o: jax.value_and_grad(mapped, argnums=(0, 1))(f, n, o)), (floats, numbers, others)


def of_everything(name, gather, where):
    def part(floats, numbers, others):
        others, kept = others[:-1], others[-1] if where else None
        return ours(name, others, axis_name="data", gather=gather, where=kept, reduction="partial")(floats, numbers)

    return part


def four_device_inputs(name, rows):
    floats, others = drawn(name, rows, seed=5)
    floats = tuple(jnp.asarray(x, jnp.float32) for x in floats)
    where = np.arange(rows) % 7 != 3
    return floats, (*others, where), tuple(jnp.float32(n) for n in options(name).values())


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


# test_sharding.py gathers all; of those that travel the plain run takes one of each kind.
ALSO_TRAVEL = ("in_batch_softmax", "siglip", "supervised_contrastive")
SPREAD = [("clip_contrastive", "all"), ("clip_contrastive", "ring"), ("nt_xent", "ring")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "gather"), [*SPREAD, *(pytest.param(name, "ring", marks=pytest.mark.exhaustive) for name in ALSO_TRAVEL)]
)
def test_four_devices_are_one(name, gather, small_tiles):
    floats, others, numbers = four_device_inputs(name, 24)
    where = others[-1]
    kept = [np.asarray(x, np.float64)[where] for x in floats], [np.asarray(x)[where] for x in others[:-1]]
    step, arguments = spread(of_everything(name, gather, where=True), floats, others, numbers)
    value, slopes = step(*arguments)
    np.testing.assert_allclose(value, truth(name, *kept, [float(n) for n in numbers])[1], rtol=2e-5)
    one = jax.value_and_grad(ours(name, others[:-1], where=where), argnums=(0, 1))
    close(slopes, jax.jit(one)(floats, numbers)[1])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "kind"), [("clip_contrastive", AxisType.Explicit), ("nt_xent", AxisType.Auto)])
def test_tiles_of_sharded_rows_under_jit(name, kind, small_tiles):
    floats, others, numbers = four_device_inputs(name, 40)
    step = functools.partial(jax.value_and_grad, argnums=(0, 1))
    want = jax.jit(lambda f, n, o: step(ours(name, o[:-1], where=o[-1]))(f, n))(floats, numbers, others)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        put = functools.partial(jax.device_put, device=NamedSharding(mesh, P("data")))
        there = jax.tree.map(lambda x: put(jnp.asarray(x)), (floats, others))
        numbers = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), numbers)
        got = jax.jit(lambda f, n, o: step(ours(name, o[:-1], where=o[-1]))(f, n))(there[0], numbers, there[1])
    close(got, want)


@pytest.mark.parametrize("name", names("clip_contrastive", rarer=(*RARER, "siglip", "nt_xent")))
def test_a_ring_gathers_nothing(name):
    floats, others, numbers = four_device_inputs(name, 44)
    for gather in ("all", "ring"):
        step, arguments = spread(of_everything(name, gather, where=False), floats, others, numbers)
        text = step.lower(*arguments).as_text()
        assert ("all_gather" in text) == (gather == "all")
        assert ("collective_permute" in text) == (gather == "ring")


# --- Words --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_words():
    x, y = jnp.ones((5, 3)), jnp.arange(5)
    with pytest.raises(ValueError, match=r"`image` \[5, 3\] and `text` \[5, 2\] must have one shape"):
        jl.clip_contrastive(x, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match=r"`image` \[5\] must be \[N, D\]"):
        jl.siglip(jnp.ones(5), jnp.ones(5))
    with pytest.raises(ValueError, match=r"`hard_negatives` \[5, 3\] must be \[N, M, D\] beside `queries`"):
        jl.in_batch_softmax(x, x, x)
    with pytest.raises(ValueError, match=r"`labels` \[5, 1\] must be \[N\], one for each row of `embeddings` \[5, 3\]"):
        jl.nt_xent(x, y[:, None])
    with pytest.raises(TypeError, match="`labels` must be integer"):
        jl.supervised_contrastive(x, x[:, 0])
    with pytest.raises(ValueError, match="'all' or 'ring'"):
        jl.siglip(x, x, gather="tree")
