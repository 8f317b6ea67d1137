"""Sorted and searched losses at real sizes against float64, scipy and algorithm 1 of the paper; and what they build."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy.special import logsumexp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms.ensemble import _SHORT
from jaxloss.testing import check_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def value_and_slopes(loss, *arrays, given=(), **options):
    """Compiled with every optimisation; the arrays and what is `given` beside them are arguments, never constants."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        step = jax.jit(jax.value_and_grad(lambda *x: loss(*x, **options), argnums=tuple(range(len(arrays)))))
        value, slopes = step(*arrays, *given)
        return float(value), [np.asarray(s, np.float64) for s in slopes]
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.max(np.abs(want)))


# --- sparsemax and entmax -----------------------------------------------------------------------------------------


def projection(z):
    """The threshold of the projection onto the simplex, by sorting (Martins and Astudillo 2016, algorithm 1)."""
    z = np.asarray(z, np.float64)
    falling = -np.sort(-z, axis=-1)
    k = np.arange(1, z.shape[-1] + 1)
    inside = 1 + k * falling > np.cumsum(falling, axis=-1)
    number = inside.sum(-1, keepdims=True)
    tau = (np.where(inside, falling, 0).sum(-1, keepdims=True) - 1) / number
    return np.maximum(z - tau, 0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_sparsemax_of_many_classes(offset):
    z = (2 * normal(8, 32000) + np.float32(offset)).astype(np.float32)
    labels = np.argsort(z, axis=-1)[np.arange(8), [-1, -1, -2, -3, 0, 0, 100, -1]]
    z[7, labels[7]] += 2  # ahead by more than 1: the loss is 0
    p, exact = projection(z), z.astype(np.float64)
    own = (np.arange(32000) == labels[:, None]).astype(np.float64)
    want = ((p - own) * (exact - offset)).sum(-1) + (1 - (p**2).sum(-1)) / 2
    value, (slopes,) = value_and_slopes(jl.sparsemax, z, given=(labels,), reduction="sum")
    np.testing.assert_allclose(jl.sparsemax(z, labels, reduction="none"), want, rtol=2e-6, atol=1e-12)
    np.testing.assert_allclose(value, want.sum(), rtol=2e-6)
    np.testing.assert_allclose(slopes, p - own, rtol=0, atol=5e-7)
    np.testing.assert_array_equal((slopes + own) > 1e-5, p > 1e-5)
    assert np.count_nonzero(slopes) < 100


# --- ensembles ----------------------------------------------------------------------------------------------------


def crps(x, y, fair=False):
    """Every pair of members, and the slopes where none are equal."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    m = x.shape[-1]
    order = np.sign(x[:, :, None] - x[:, None]).sum(-1)
    distance = abs(x - y[:, None])
    value = distance.mean(-1) - np.array([abs(r[:, None] - r).sum() for r in x]) / (2 * m * (m - fair))
    slopes = np.sign(x - y[:, None]) / m - order / (m * (m - fair))
    return value, slopes


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("members", [2, _SHORT, 500])
def test_ensembles_against_every_pair(members, fair):
    # On a grid: what is not equal stays so when a target is subtracted.
    x = np.random.default_rng(0).permuted(np.tile(np.arange(members), (20, 1)), axis=1) / np.float32(64)
    y = np.linspace(-1, members + 1, 20).round().astype(np.float32) / 64 + np.float32(1 / 128)
    want, slopes = crps(x, y, fair)
    found, (of_x, of_y) = value_and_slopes(jl.crps_ensemble, x, y, fair=fair)
    np.testing.assert_allclose(found, want.mean(), rtol=1e-6)
    np.testing.assert_allclose(of_x, slopes / 20, rtol=2e-6, atol=1e-8 / members)
    np.testing.assert_allclose(of_y, -slopes.sum(-1) / 20, rtol=0, atol=1e-7)


@pytest.mark.parametrize("members", [50, 500])
def test_ensembles_far_from_zero_keep_their_digits(members):
    """The members stand a thousandth apart, around 1e4: their average distance would have no digit."""
    x = (1e4 + np.round(normal(20, members) * 2) * 2.0**-10).astype(np.float32)
    y = (1e4 + np.round(normal(20, seed=1) * 2) * 2.0**-10).astype(np.float32)
    np.testing.assert_allclose(jl.crps_ensemble(x, y, reduction="none"), crps(x, y)[0], rtol=2e-6)


@pytest.mark.parametrize("members", [50, 500])
def test_members_whose_distances_rounding_cannot_tell_apart(members):
    """They differ by 1e-7, the target is 2^20 away: every difference is one number, every member has its own slope."""
    x = np.random.default_rng(0).permutation(members).reshape(1, -1).astype(np.float32) * 2.0**-23
    _, (slopes,) = value_and_slopes(jl.crps_ensemble, x.astype(np.float32), given=(np.float32([2.0**20]),))
    np.testing.assert_allclose(slopes, crps(x, np.float32([2.0**20]))[1], rtol=2e-6, atol=1e-8 / members)


@pytest.mark.parametrize("members", [5, 500])
def test_equal_members_share_out_the_slopes_of_their_places(members):
    x = np.full((1, members), 3.0, np.float32)
    value, (slopes,) = value_and_slopes(lambda x: jl.crps_ensemble(x, jnp.array([1.0])), x)
    np.testing.assert_allclose(value, 2, rtol=1e-6)
    i = np.arange(1, members + 1)
    np.testing.assert_allclose(slopes[0], (2 * (members - i) + 1) / members**2, rtol=1e-6)
    value, (slopes,) = value_and_slopes(lambda x: jl.crps_ensemble(x, jnp.array([3.0])), x)
    assert value == 0
    np.testing.assert_allclose(slopes.sum(), 0, atol=1e-7)


@pytest.mark.parametrize("members", [5, 500])
def test_a_member_that_is_not_a_number_is_seen(members):
    x = normal(2, members)
    x[0, 2] = np.nan
    assert np.isnan(jl.crps_ensemble(x, jnp.zeros(2), reduction="none")).tolist() == [True, False]


def test_a_fair_score_needs_two_members():
    with pytest.raises(ValueError, match=r"`ensemble` \[3, 1\] .* two members"):
        jl.crps_ensemble(jnp.zeros((3, 1)), jnp.zeros(3), fair=True)
    with pytest.raises(ValueError, match=r"`ensemble` \[3, 0\] .* one member"):
        jl.crps_ensemble(jnp.zeros((3, 0)), jnp.zeros(3))


# --- transport ----------------------------------------------------------------------------------------------------


def quantile_cost(x, y, p):
    """Each number repeated until both samples have n m numbers of one mass."""
    n, m = x.shape[-1], y.shape[-1]
    x, y = np.repeat(np.sort(x), m, -1), np.repeat(np.sort(y), n, -1)
    return (abs(x.astype(np.float64) - y) ** p).mean(-1)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("sizes", [(7, 7), (6, 4), (1, 9)])
def test_unequal_samples_by_repetition(sizes, p):
    x, y = normal(3, sizes[0]), 2 + normal(3, sizes[1], seed=1)
    np.testing.assert_allclose(jl.wasserstein_1d(x, y, p=p, reduction="none"), quantile_cost(x, y, p), rtol=2e-6)


def test_unequal_samples_as_scipy():
    x, y = normal(1000), 0.3 + normal(1777, seed=1)
    want = scipy.stats.wasserstein_distance(x.astype(np.float64), y.astype(np.float64))
    value, slopes = value_and_slopes(jl.wasserstein_1d, x, y)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose([s.sum() for s in slopes], [-1, 1], atol=0.2)  # nearly everything moves up


@pytest.mark.parametrize("p", [1.5, 3.0])
def test_slopes_and_curvature_of_transport(p):
    with jax.enable_x64(True):
        x, y = (np.asarray(a, np.float64) for a in (normal(6), 1 + normal(4, seed=1)))
        v = np.random.default_rng(2).normal(size=10)

        def cost(both):
            return jl.wasserstein_1d(both[:6], both[6:], p=p)

        @jax.jit
        def derivatives(both):
            slopes = jax.grad(cost)
            forward, reverse = jax.jvp(slopes, (both,), (v,))[1], jax.grad(lambda x: jnp.vdot(slopes(x), v))(both)
            return slopes(both), forward, reverse

        both, eye = np.concatenate([x, y]), np.eye(10) * 1e-6

        def slope(both):
            sides = [[quantile_cost((both + s * e)[:6], (both + s * e)[6:], p) for e in eye] for s in (-1, 1)]
            return np.subtract(*sides[::-1]) / 2e-6

        slopes, forward, reverse = derivatives(both)
        np.testing.assert_allclose(slopes, slope(both), rtol=1e-6, atol=1e-8)
        want = (derivatives(both + 1e-6 * v)[0] - derivatives(both - 1e-6 * v)[0]) / 2e-6
        for got in (forward, reverse):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_equal_samples_cost_nothing_and_pull_nowhere(p):
    x = normal(5)
    y = np.repeat(x, 2)[::-1].copy()
    value, slopes = value_and_slopes(jl.wasserstein_1d, x, y, p=p)
    assert value == 0
    assert not any(np.any(s) for s in slopes)
    curvature = jax.jit(jax.hessian(lambda x, y: jl.wasserstein_1d(x, y, p=p)))(x, y)
    assert np.all(curvature == 0)


def test_samples_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"`y` \[3, 0\] must have at least one number"):
        jl.wasserstein_1d(jnp.zeros((3, 2)), jnp.zeros((3, 0)))
    with pytest.raises(ValueError, match=r"`p` .* >= 1, got 0.5"):
        jl.wasserstein_1d(jnp.zeros(2), jnp.zeros(2), p=0.5)


# --- regions ------------------------------------------------------------------------------------------------------


def extension(errors, truth):
    """Berman et al., algorithm 1, with its sums in float64: value and slopes in the errors."""
    order = np.argsort(-errors, axis=-1, kind="stable")
    truth, errors = truth[order].astype(np.float64), errors[order].astype(np.float64)
    jaccard = 1 - (truth.sum() - np.cumsum(truth)) / (truth.sum() + np.cumsum(1 - truth))
    steps = np.diff(jaccard, prepend=0)
    slopes = np.empty_like(steps)
    slopes[order] = steps
    return (errors * steps).sum(), slopes


def test_a_million_pixels():
    z, t = normal(1, 1024, 1024), np.random.default_rng(1).random((1, 1024, 1024)) < 0.3
    sign = np.where(t, 1, -1).astype(np.float32).ravel()
    errors = np.maximum(0, 1 - z.ravel() * sign)  # rounded as they are compared
    want, steps = extension(errors, t.ravel())
    value, (slopes,) = value_and_slopes(jl.lovasz_hinge, z, given=(t,))
    np.testing.assert_allclose(value, want, rtol=2e-6)
    np.testing.assert_allclose(jl.lovasz_hinge(z, t), want, rtol=2e-6)
    np.testing.assert_allclose(slopes.ravel(), np.where(errors > 0, -sign * steps, 0), rtol=2e-6, atol=1e-13)


def class_errors(z, labels):
    p = np.exp(z.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    return [(abs((labels == c) - p[..., c]), labels == c) for c in range(z.shape[-1])]


def test_classes_of_an_image():
    z, labels = normal(2, 9, 11, 4), np.random.default_rng(1).integers(0, 3, (2, 9, 11))  # class 3 is absent
    valid = np.random.default_rng(2).random(labels.shape) < 0.8
    dirty, ignored = np.where(valid[..., None], z, np.nan), np.where(valid, labels, 255)
    for classes, counted in (("present", 3), ("all", 4)):
        want = [
            np.mean([extension(e[ok], t[ok])[0] for e, t in class_errors(image, label)[:counted]])
            for image, label, ok in zip(z, labels, valid, strict=True)
        ]
        got = jl.lovasz_softmax(dirty, ignored, valid=valid, classes=classes, reduction="none")
        np.testing.assert_allclose(got, want, rtol=2e-6)
    slopes = jax.grad(lambda z: jl.lovasz_softmax(z, ignored, valid=valid))(dirty)
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[~valid])
    # The classes first, and both images as one.
    both = np.mean([extension(e[valid], t[valid])[0] for e, t in class_errors(z, labels)[:3]])
    found = jl.lovasz_softmax(np.moveaxis(dirty, -1, 1), ignored, axis=1, image_axes=(0, 1, 2), valid=valid)
    np.testing.assert_allclose(found, both, rtol=2e-6)


def test_a_sure_pixel_keeps_its_digits():
    z = np.zeros((1, 1, 2, 2), np.float32)
    z[..., 0] = 25
    value = jl.lovasz_softmax(z, jnp.zeros((1, 1, 2), int))
    np.testing.assert_allclose(value, np.exp(-25.0) / (1 + np.exp(-25.0)), rtol=1e-6)


def test_regions_without_a_pixel_inside_or_without_any():
    z = np.array([[[2.0, -3.0, 0.5]], [[1.0, 1.0, 1.0]]], np.float32)
    value = jl.lovasz_hinge(z, jnp.zeros((2, 1, 3)), valid=jnp.array([True, False])[:, None, None], reduction="partial")
    assert (value.total, value.weight) == (3, 1)
    value = jl.lovasz_softmax(z, jnp.zeros((2, 1), int), axis=-1, image_axes=-1, valid=jnp.zeros((2, 1), bool))
    assert value == 0


def test_shapes_of_regions_are_refused_in_words():
    z = jnp.zeros((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"`labels` \[2, 4\] must be `logits` \[2, 4, 4, 3\] without its class axis"):
        jl.lovasz_softmax(z, jnp.zeros((2, 4), int))
    with pytest.raises(ValueError, match=r"`image_axes` \(0, 7\) must name axes of `labels` \[2, 4, 4\]"):
        jl.lovasz_softmax(z, jnp.zeros((2, 4, 4), int), image_axes=(0, 7))


# --- sets of points -----------------------------------------------------------------------------------------------


def nearest_both_ways(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    d = ((x[:, None] - y) ** 2).sum(-1)
    of_x, of_y = y[d.argmin(1)] - x, x[d.argmin(0)] - y
    slopes_x, slopes_y = -2 * of_x / len(x), -2 * of_y / len(y)
    np.add.at(slopes_x, d.argmin(0), 2 * of_y / len(y))
    np.add.at(slopes_y, d.argmin(1), 2 * of_x / len(x))
    return d.min(1).mean() + d.min(0).mean(), slopes_x, slopes_y


@pytest.mark.parametrize(
    ("shapes", "offset"),
    [(((300, 3), (471, 3)), 0.0), (((300, 3), (471, 3)), 1e4), (((40, 20), (50, 20)), 1e4), (((30, 70), (1, 70)), 0.0)],
)
def test_sets_of_points(shapes, offset):
    x, y = (normal(*shape, seed=i) + np.float32(offset) for i, shape in enumerate(shapes))
    value, slopes = value_and_slopes(jl.chamfer, x, y)
    want, *want_slopes = nearest_both_ways(x, y)
    np.testing.assert_allclose(value, want, rtol=2e-6)
    for got, of_paper in zip(slopes, want_slopes, strict=True):
        close(got, of_paper, 2e-6)


def test_one_set_in_two_orders():
    x = normal(300, 3)
    value, slopes = value_and_slopes(jl.chamfer, x, x[::-1].copy())
    assert value == 0
    assert not any(np.any(s) for s in slopes)


def test_points_that_do_not_exist_and_points_that_are_not_numbers():
    x, y = normal(2, 30, 3), normal(2, 40, 3, seed=1)
    in_x, in_y = np.arange(30) < np.array([[20], [30]]), np.arange(40) % 3 > np.array([[0], [9]])
    dirty_x, dirty_y = np.where(in_x[..., None], x, np.nan), np.where(in_y[..., None], y, np.inf)

    def loss(x, y):
        return jl.chamfer(x, y, x_valid=in_x, y_valid=in_y)

    value, (of_x, of_y) = value_and_slopes(loss, dirty_x, dirty_y)
    want, slopes_x, slopes_y = nearest_both_ways(x[0][in_x[0]], y[0][in_y[0]])  # the second pair has no y: absent
    np.testing.assert_allclose(value, want, rtol=2e-6)
    close(of_x[0][in_x[0]], slopes_x, 2e-6)
    close(of_y[0][in_y[0]], slopes_y, 2e-6)
    assert not np.any(of_x[0][~in_x[0]])
    assert not np.any(of_y[0][~in_y[0]])
    assert not np.any(of_x[1])
    for spot in ("x", "y"):
        both = {"x": x.copy(), "y": y.copy()}
        both[spot][0, 3] = np.nan
        assert np.isnan(jl.chamfer(**both, reduction="none")).tolist() == [True, False]


def test_sets_without_points_or_coordinates():
    value, slopes = jax.value_and_grad(jl.chamfer)(jnp.zeros((2, 3, 3)), jnp.zeros((2, 0, 3)))
    assert value == 0
    assert not np.any(slopes)
    with pytest.raises(ValueError, match=r"`x` \[4, 3\] and `y` \[4, 2\] must be"):
        jl.chamfer(jnp.zeros((4, 3)), jnp.zeros((4, 2)))


def test_no_matrix_of_distances():
    x = jnp.zeros((4096, 3))
    step = jax.jit(jax.value_and_grad(jl.chamfer, argnums=(0, 1))).lower(x, x).compile()
    assert step.memory_analysis().temp_size_in_bytes < 0.05 * 4096**2 * 4


def test_no_matrix_of_members():
    x, y = jnp.zeros((16, 4096)), jnp.zeros(16)
    step = jax.jit(jax.value_and_grad(jl.crps_ensemble)).lower(x, y).compile()
    assert step.memory_analysis().temp_size_in_bytes < 10 * 16 * 4096 * 4


# --- all of them over devices -------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_sharded_rows_of_large_problems():
    """The engines for many members, unequal samples and many pixels, of which the contract's rows are too small."""

    def loss(x, y, z):
        return (
            jl.crps_ensemble(x, x[:, 0] + 1)
            + jl.wasserstein_1d(x, y, p=2.0)
            + jl.lovasz_softmax(z, (z[..., 0] > 0).astype(int))
            + jl.chamfer(z[:, 0], z[:, 1], reduction="sum")
        )

    arrays = normal(4, _SHORT + 1), normal(4, 9, seed=1), normal(4, 5, 7, 4, seed=2)
    step = jax.value_and_grad(loss, argnums=(0, 1, 2))
    want = jax.jit(step)(*arrays)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            placed = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in arrays]
            got = jax.jit(step)(*placed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


def test_inside_shard_map():
    def local(x, y):
        value = jl.crps_ensemble(x, y[:, 0], reduction="sum") + jl.wasserstein_1d(x, y, reduction="sum")
        return jax.lax.psum(value, "data")

    x, y = normal(4, _SHORT + 1), normal(4, 9, seed=1)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=True)
    got = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1)))(x, y)

    def whole(x, y):
        return jl.crps_ensemble(x, y[:, 0], reduction="sum") + jl.wasserstein_1d(x, y, reduction="sum")

    want = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


# --- losses that are built ----------------------------------------------------------------------------------------


def cross_entropy(scores, targets, axis=-1):
    return np.log(np.exp(scores).sum(-1)) - (targets * scores).sum(-1)


def test_a_built_loss_obeys_the_laws():
    check_loss(
        jl.fenchel_young(logsumexp),
        dtypes=("float32",),
        reference=cross_entropy,
        shapes={"scores": "NC", "targets": "NC"},
        non_negative=False,
    )


def test_with_its_regularizer_a_built_loss_is_what_it_is_called():
    z, y = normal(6, 5), np.asarray(jax.nn.softmax(normal(6, 5, seed=1)))

    def negative_entropy(p):
        return jnp.sum(jax.scipy.special.xlogy(p, p))

    loss = jl.fenchel_young(logsumexp, regularizer=negative_entropy)
    want = (y * (np.log(y) - np.log(np.exp(z) / np.exp(z).sum(-1, keepdims=True)))).sum(-1)
    np.testing.assert_allclose(loss(z, y, reduction="none"), want, rtol=2e-6)

    def half_square(x):
        return 0.5 * jnp.vdot(x, x)

    squared = jl.fenchel_young(half_square, regularizer=half_square)
    np.testing.assert_allclose(squared(z, y, reduction="none"), ((z - y) ** 2).sum(-1) / 2, rtol=2e-6)
    np.testing.assert_allclose(jax.grad(squared)(z, y), (z - y) / 6, rtol=2e-5, atol=1e-7)


def test_the_function_of_a_built_loss_gets_its_gradient():
    """Not compiled by itself: what the function closes over is not frozen at the first call."""
    z, y = normal(6, 5), np.eye(5, dtype=np.float32)[[0, 1, 2, 3, 4, 0]]

    def mean(temperature):
        return jl.fenchel_young(lambda z: temperature * logsumexp(z / temperature))(z, y)

    low, high = mean(1.0), mean(2.0)
    assert high > low
    slope = jax.grad(mean)(1.5)
    np.testing.assert_allclose(slope, (mean(1.51) - mean(1.49)) / 0.02, rtol=1e-3)
