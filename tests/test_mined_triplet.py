"""Mined triplets: the truth is the cube of all triplets in NumPy float64; memory and speed are why there is none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms import mined_triplets

pytestmark = pytest.mark.usefixtures("quick_compilation")

MINED = ("all", "hard", "semi_hard")


def rarer(*values):
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def cube(x, labels, margin=1.0, mining="all", average="active"):
    """The mean over the anchors that have a triplet, and its slope in every row: a mask of triplets [N, N, N]."""
    x, rows = x.astype(np.float64), np.arange(len(x))
    difference = x[:, None] - x
    d = np.sqrt((difference**2).sum(-1))
    same = labels[:, None] == labels
    near = same & ~np.eye(len(x), dtype=bool)
    mask = near[:, :, None] & ~same[:, None, :]
    anchors = mask.any((1, 2))
    if mining == "hard":
        p, n = np.where(near, d, -np.inf).argmax(1), np.where(same, np.inf, d).argmin(1)
        mask &= (rows == p[:, None])[:, :, None] & (rows == n[:, None])[:, None]
    if mining == "semi_hard":
        beyond = np.where(~same[:, None, :] & (d[:, None, :] > d[:, :, None]), d[:, None, :], np.inf)
        farthest = np.where(same, -np.inf, d).argmax(1)[:, None]
        n = np.where(np.isinf(beyond.min(2)), farthest, beyond.argmin(2))
        mask &= rows == n[:, :, None]
    gap = d[:, :, None] - d[:, None, :]
    if margin is None:
        value, slope = np.logaddexp(0, gap), 1 / (1 + np.exp(-gap))
    else:
        value, slope = np.maximum(gap + margin, 0), (gap + margin > 0) * 1.0
    counted = mask & (value > 0) if average == "active" else mask
    weight = mask / np.maximum(counted.sum((1, 2)), 1)[:, None, None] / max(anchors.sum(), 1)
    pull = slope * weight
    pull = (pull.sum(2) - pull.sum(1)) / np.where(d > 0, d, np.inf)
    return (value * weight).sum(), ((pull + pull.T)[:, :, None] * difference).sum(1)


def drawn(rows, features=5, classes=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    return (0.4 * rng.normal(size=(classes, features))[labels] + rng.normal(size=(rows, features))), labels


def ours(x, labels, dtype=jnp.float32, **options):
    step = jax.jit(jax.value_and_grad(functools.partial(jl.mined_triplet, **options)))
    return step(jnp.asarray(x, dtype), labels)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(mined_triplets, "_ENTRIES", 600)


# 53 rows are no whole number of chunks.
@pytest.mark.parametrize(
    ("mining", "margin"),
    [("all", 0.7), ("semi_hard", 0.7), rarer("hard", 0.7), *(rarer(mining, None) for mining in MINED)],
)
def test_chunks_of_anchors_have_the_value_and_slope_of_the_cube(mining, margin, small_chunks):
    x, labels = drawn(53)
    with jax.enable_x64(True):
        value, slope = ours(x, labels, jnp.float64, mining=mining, margin=margin)
    want, want_slope = cube(x, labels, margin, mining)
    np.testing.assert_allclose(value, want, rtol=1e-10)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("mining", "average"), [("all", "active"), rarer("all", "all"), ("semi_hard", "active"), rarer("semi_hard", "all")]
)
def test_ties_are_counted_exactly(mining, average):
    # On a line of whole numbers many triplets are at the margin itself, where they are not active.
    rng = np.random.default_rng(1)
    x, labels = rng.integers(0, 5, (40, 1)).astype(float), rng.integers(0, 4, 40).astype(np.int32)
    value, slope = ours(x, labels, mining=mining, average=average)
    want, want_slope = cube(x, labels, 1.0, mining, average)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("few", [rarer(0), 1000])
def test_few_positives_and_many_take_different_ways_to_one_number(few, monkeypatch):
    monkeypatch.setattr(mined_triplets, "_FEW_POSITIVES", few)
    x, labels = drawn(40, seed=2)
    x[3] = x[4] = x[5]
    labels[3:6] = 2
    value, slope = ours(x, labels, margin=None)
    want, want_slope = cube(x.astype(np.float32), labels, None)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-5, atol=1e-7)


@pytest.mark.exhaustive
def test_the_soft_form_bends_as_its_slope_says():
    x, labels = drawn(14, features=3, classes=3, seed=9)
    way, h = np.random.default_rng(1).normal(size=x.shape), 1e-4
    far, near, right, farther = (cube(x + k * h * way, labels, None)[1] for k in (-2, -1, 1, 2))
    want = (far - 8 * near + 8 * right - farther) / (12 * h)
    with jax.enable_x64(True):
        slope = jax.grad(lambda x: jl.mined_triplet(x, labels, margin=None))
        forward = jax.jit(lambda x, way: jax.jvp(slope, (x,), (way,))[1])(x, way)
        reverse = jax.jit(jax.grad(lambda x: jnp.sum(slope(x) * way)))(x)
    np.testing.assert_allclose(forward, want, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(reverse, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("mining", "margin"), [("all", 0.05), rarer("semi_hard", 0.05), ("hard", None)])
def test_neighbours_far_from_the_origin_keep_their_digits(mining, margin):
    x, labels = drawn(48, features=96, seed=3)
    x = (1000 + 0.01 * x).astype(np.float32)  # 1e-5 of their length apart: their squares have no digit of it
    value, slope = ours(x, labels, mining=mining, margin=margin)
    want, want_slope = cube(x, labels, margin, mining)
    np.testing.assert_allclose(value, want, rtol=3e-6)
    np.testing.assert_allclose(slope, want_slope, rtol=0, atol=1e-5 * np.abs(want_slope).max())


def test_squares_neither_vanish_nor_overflow():
    plain, labels = drawn(12, seed=4)
    step = jax.jit(jax.value_and_grad(lambda x, margin: jl.mined_triplet(x, labels, margin=margin)))
    for scale in (1e-25, 1e25):
        x = (scale * plain).astype(np.float32)
        value, slope = step(x, np.float32(scale))
        want, want_slope = cube(x.astype(np.float64) / scale, labels, 1.0)
        np.testing.assert_allclose(value, scale * want, rtol=1e-5)
        np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("mining", "margin"), [("all", 0.25), ("hard", 0.25), rarer("semi_hard", 0.25), *(rarer(m, None) for m in MINED)]
)
def test_equal_rows_have_a_value_and_no_slope(mining, margin):
    x, labels = np.full((6, 3), 0.3), np.array([0, 0, 1, 1, 2, 2], np.int32)
    value, slope = ours(x, labels, mining=mining, margin=margin)
    np.testing.assert_allclose(value, np.log(2) if margin is None else margin, rtol=1e-6)
    assert not np.any(slope)


# One anchor at 0, on a line with the others.
@pytest.mark.parametrize(
    ("mining", "others", "slope"),
    [
        ("hard", [2, -2, 1, -1], [1, 0, -1, 0]),  # of equally hard ones the first
        ("semi_hard", [1, 2, -2, -3], [1, -1, 0, 0]),  # the nearest beyond the positive, of equals the first
        ("semi_hard", [5, 1, -3, 2], [1, 0, 1, 0]),  # none is beyond: the farthest
        ("semi_hard", [1, -1, 3, -3], [1, 0, -1, 0]),  # as far as the positive is not further
    ],
)
def test_the_triplets_that_are_mined(mining, others, slope):
    labels = np.array([0, 0, 0, 1, 1] if mining == "hard" else [0, 0, 1, 1, 1], np.int32)
    only_the_anchor = jnp.array([1.0, 0, 0, 0, 0])
    x = jnp.array([0, *others], jnp.float32)[:, None]
    got = jax.grad(jl.mined_triplet)(x, labels, mining=mining, margin=5.0, weights=only_the_anchor)
    np.testing.assert_array_equal(got[1:, 0], slope)


@pytest.mark.parametrize("mining", ["all", rarer("hard"), rarer("semi_hard")])
def test_anchors_without_a_triplet_are_absent(mining):
    x = jnp.asarray(drawn(5, seed=5)[0], jnp.float32)
    loss = functools.partial(jl.mined_triplet, mining=mining, margin=9.0)

    @jax.jit
    def everything(labels):
        return loss(x, labels, reduction="partial").weight, loss(x, labels, reduction="none"), jax.grad(loss)(x, labels)

    weight, each, _ = everything(jnp.array([0, 0, 1, 2, 3]))
    assert weight == 2
    np.testing.assert_array_equal(each > 0, [1, 1, 0, 0, 0])
    for labels in (jnp.arange(5), jnp.zeros(5, int)):  # no positive, no negative
        weight, each, slope = everything(labels)
        assert weight == 0
        assert not np.any(each)
        assert not np.any(slope)


@pytest.mark.parametrize(
    ("mining", "margin"), [("all", 1.0), ("hard", 1.0), rarer("all", None), rarer("semi_hard", 1.0)]
)
def test_what_is_unknown_is_not_hidden(mining, margin):
    x, labels = drawn(12, seed=7)
    x[3], labels[3] = np.nan, 9  # no anchor itself
    assert np.isnan(ours(x, labels, mining=mining, margin=margin)[0])


@pytest.mark.parametrize("margin", [rarer(None), 1.0])
def test_a_batch_of_2048_takes_less_than_200_megabytes(margin):
    x, labels = jax.ShapeDtypeStruct((2048, 128), jnp.float32), jax.ShapeDtypeStruct((2048,), jnp.int32)
    program = jax.jit(jax.value_and_grad(functools.partial(jl.mined_triplet, margin=margin)))
    # One matrix of distances is 16 MiB, the cube would be 32768.
    assert program.lower(x, labels).compile().memory_analysis().temp_size_in_bytes < 200 * 2**20


@pytest.mark.parametrize(("mining", "kind"), [("all", AxisType.Explicit), rarer("semi_hard", AxisType.Auto)])
def test_chunks_of_sharded_rows_under_jit(mining, kind, monkeypatch):
    monkeypatch.setattr(mined_triplets, "_ENTRIES", 64)
    x, labels = drawn(40, seed=8)
    step = jax.jit(jax.value_and_grad(functools.partial(jl.mined_triplet, mining=mining)))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data"))
        value, slope = step(jax.device_put(x.astype(np.float32), rows), jax.device_put(labels, rows))
    want, want_slope = cube(x.astype(np.float32), labels, 1.0, mining)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("margin", [None, 0.8])
def test_inside_shard_map(margin, monkeypatch):
    monkeypatch.setattr(mined_triplets, "_ENTRIES", 100)  # the devices' rows in chunks too
    x, labels = drawn(24, seed=10)
    weights = np.linspace(0.5, 2.0, 24, dtype=np.float32)

    def total(x, labels, weights):
        part = jl.mined_triplet(
            x, labels, margin=margin, axis_name="data", where=weights > 0.6, weights=weights, reduction="partial"
        )
        return jl.Mean(jax.lax.psum(part.total, "data"), jax.lax.psum(part.weight, "data")).value

    mesh, rows = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), P("data")
    mapped = jax.shard_map(total, mesh=mesh, in_specs=(rows, rows, rows), out_specs=P(), check_vma=True)
    value, slope = jax.jit(jax.value_and_grad(mapped))(x.astype(np.float32), labels, weights)
    want, want_slope = ours(x, labels, margin=margin, where=weights > 0.6, weights=weights)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope, want_slope, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused_in_words():
    x, y = jnp.ones((5, 3)), jnp.arange(5)
    with pytest.raises(ValueError, match=r"`embeddings` \[5\] must be \[N, D\]"):
        jl.mined_triplet(jnp.ones(5), y)
    with pytest.raises(ValueError, match=r"`labels` \[5, 1\] must be \[N\], one for each row of `embeddings` \[5, 3\]"):
        jl.mined_triplet(x, y[:, None])
    with pytest.raises(ValueError, match="'all', 'hard' or 'semi_hard'"):
        jl.mined_triplet(x, y, mining="easy")
