"""Smooth ranks and pairs weighted by what their swap changes, sorted or in pairs, against all pairs in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms.smooth_ranks import dcg_gap
from jaxloss.algorithms.swapped_pairs import swap_total

pytestmark = pytest.mark.usefixtures("quick_compilation")

DRAWS = {
    "normal": lambda rng, r: rng.normal(size=r.size),
    "of scale 1e3": lambda rng, r: 1e3 * rng.normal(size=r.size),
    "around 1e4": lambda rng, r: 1e4 + rng.normal(size=r.size),
    "tied": lambda rng, r: rng.integers(0, 4, r.size) * 0.5,
    "with long tails": lambda rng, r: rng.standard_cauchy(r.size),
    "dense": lambda rng, r: 1e-2 * rng.normal(size=r.size),
    "in good order": lambda rng, r: 20.0 * r + rng.normal(size=r.size),
}
every_draw = pytest.mark.parametrize("draw", DRAWS)
LIMIT = {"in order": 0, "in pairs": 10**6}
either_way = pytest.mark.parametrize("way", LIMIT)


def lists(draw, n=300, levels=(2, 5, 10**6)):
    """Lists of scores, of gains and of what exists."""
    rng = np.random.default_rng(0)
    r = np.stack([5.0 * rng.integers(0, k, n) / k for k in levels])
    s = np.stack([DRAWS[draw](rng, each) for each in r]).astype(np.float32)
    valid = rng.random(s.shape) < 0.9
    return s, (valid * (2**r - 1)).astype(np.float32), valid


def precision(draw):
    """exp(-x) of a rounded difference x is off by x / 2 ulp, and a list in good order has nothing but large ones."""
    return 4e-6 if draw == "in good order" else 1e-6


def in_order(s, valid):
    """The items that exist by falling score, the first of equal ones first."""
    order = np.argsort(-s.real, kind="stable")
    return order[valid[order]]


def smooth_gap(s, g, valid):
    """Of one list: ideal DCG less DCG, ideal DCG, and the slopes of the first in scores and gains."""
    s, g = np.asarray(s, np.result_type(s, np.float64)), np.asarray(g, np.float64)
    d = s[:, None] - s[None]
    e = np.exp(-d * np.sign(d.real))
    other = valid[:, None] & valid[None] & ~np.eye(s.size, dtype=bool)
    rank = 1 + np.where(other, np.where(d.real > 0, e, 1) / (1 + e), 0).sum(1)
    # Of equal gains the better scores first.
    best = np.lexsort((-s.real, -g))
    place = np.empty(s.size)
    place[best] = 1 + np.arange(s.size)
    # Not 1 / log2(1 + place) - 1 / log2(1 + rank): even float64 has few digits left of a list in good order.
    lost = np.log2((1 + rank) / (1 + place)) / (np.log2(1 + rank) * np.log2(1 + place))
    rise = g * np.log(2) / ((1 + rank) * np.log(1 + rank) ** 2)
    steep = np.where(other, e / (1 + e) ** 2, 0)
    return (g * lost).sum(), (g / np.log2(1 + place)).sum(), steep @ rise - rise * steep.sum(1), lost


def test_the_truth_itself():
    """smooth_rank counts who is ahead: here by the definition, item by item."""
    s, g, everyone = np.array([0.3, -1.0, 2.0]), np.array([1.0, 3.0, 0.0]), np.ones(3, bool)
    rank = [1 + sum(1 / (1 + np.exp(s[i] - s[j])) for j in range(3) if j != i) for i in range(3)]
    dcg = sum(a / np.log2(1 + r) for a, r in zip(g, rank, strict=True))
    ideal = 3 / np.log2(2) + 1 / np.log2(3)
    np.testing.assert_allclose(smooth_gap(s, g, everyone)[:2], (ideal - dcg, ideal), rtol=1e-14)


@functools.cache
def measured(way):
    def found(s, g, valid):
        gap, ideal = dcg_gap(s, g, valid, short=LIMIT[way])
        return jnp.sum(gap), (gap, ideal)

    return jax.jit(jax.value_and_grad(found, argnums=(0, 1), has_aux=True))


@every_draw
@either_way
def test_dcg_gap(way, draw):
    s, g, valid = lists(draw)
    (_, (gap, ideal)), (slopes, lost) = measured(way)(s, g, valid)
    want = [smooth_gap(*each) for each in zip(s, g, valid, strict=True)]
    np.testing.assert_allclose(gap, [w[0] for w in want], rtol=precision(draw))
    np.testing.assert_allclose(ideal, [w[1] for w in want], rtol=1e-6)
    for i, w in enumerate(want):
        np.testing.assert_allclose(slopes[i], w[2], rtol=0, atol=2e-6 * abs(w[2]).max())
        np.testing.assert_allclose(lost[i][g[i] > 0], w[3][g[i] > 0], rtol=0, atol=1e-6 * abs(w[3]).max())
    np.testing.assert_array_equal(slopes[~valid], 0)


def swaps(s, g, valid):
    """Of one list: the sum over its pairs, the slopes in the scores, and the Hessian."""
    s, g = np.asarray(s, np.float64), np.asarray(g, np.float64)
    order = in_order(s, valid)
    worth = np.zeros(s.size)
    worth[order] = 1 / np.log2(2 + np.arange(order.size))
    pair = (g[:, None] > g[None]) & valid[:, None] & valid[None]
    weight = np.where(pair, (g[:, None] - g[None]) * abs(worth[:, None] - worth[None]), 0)
    d = s[:, None] - s[None]
    p = np.exp(-np.logaddexp(0, d))
    slope, curve = weight * p, weight * p * (1 - p)
    both = curve + curve.T
    return (weight * np.logaddexp(0, -d)).sum(), slope.sum(0) - slope.sum(1), np.diag(both.sum(1)) - both


@functools.cache
def weighed(way):
    def found(s, g, valid):
        total = swap_total(s, g, valid, short=LIMIT[way])
        return jnp.sum(total), total

    return jax.jit(jax.value_and_grad(found, has_aux=True))


@every_draw
@either_way
def test_swapped_pairs(way, draw):
    s, g, valid = lists(draw)
    (_, total), slopes = weighed(way)(s, g, valid)
    want = [swaps(*each) for each in zip(s, g, valid, strict=True)]
    np.testing.assert_allclose(total, [w[0] for w in want], rtol=precision(draw))
    for i, w in enumerate(want):
        np.testing.assert_allclose(slopes[i], w[1], rtol=0, atol=precision(draw) * abs(w[1]).max())
    np.testing.assert_array_equal(slopes[~valid], 0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["smooth ranks", "swapped pairs"])
def test_every_derivative_in_float64(engine):
    """The Hessian forward over reverse, in reverse twice, and mapped over lists."""
    with jax.enable_x64(True):
        s, g, valid = lists("normal", n=30, levels=(5, 2))
        s, g = s.astype(np.float64), g.astype(np.float64)
        v = np.random.default_rng(1).normal(size=s.shape)

        def derivatives(s, g, valid, v):
            def total(s):
                return (
                    dcg_gap(s, g, valid, short=0)[0] if engine == "smooth ranks" else swap_total(s, g, valid, short=0)
                )

            slopes = jax.grad(total)
            return slopes(s), jax.jvp(slopes, (s,), (v,))[1], jax.grad(lambda s: jnp.vdot(slopes(s), v))(s)

        found = jax.jit(jax.vmap(derivatives))(s, g, valid, v)
        for i in range(2):
            if engine == "smooth ranks":
                # A step into the complex plane: the derivative of the slopes without a difference.
                slope = smooth_gap(s[i], g[i], valid[i])[2]
                curve = smooth_gap(s[i] + 1e-30j * v[i], g[i], valid[i])[2].imag / 1e-30
            else:
                _, slope, hessian = swaps(s[i], g[i], valid[i])
                curve = hessian @ v[i]
            for got, want in zip(found, (slope, curve, curve), strict=True):
                np.testing.assert_allclose(got[i], want, rtol=0, atol=1e-10 * abs(want).max())


@pytest.mark.exhaustive
def test_long_lists_as_they_are_compiled_for_use():
    """Longer than what XLA's CPU, fully optimised, sums right along a first axis; a hundredth has a gain."""
    n = 20000
    s = np.random.default_rng(0).normal(size=n).astype(np.float32)
    r = np.where(np.arange(n) % 100 == 0, 1 + np.arange(n) % 3, 0).astype(np.float32)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        losses = (lambda s, r: jl.approx_ndcg(s, r)), (lambda s, r: jl.lambda_rank(s, r))
        ndcg, swaps = (jax.jit(jax.value_and_grad(loss)).lower(s, r).compile() for loss in losses)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    (gap, slopes), (total, pulls) = ndcg(s, r), swaps(s, r)
    for program, most in ((ndcg, 1000), (swaps, 2000)):  # all pairs would take 80000 bytes an item
        assert program.memory_analysis().temp_size_in_bytes < most * n
    top = np.flatnonzero(r)
    gain, x = 2.0 ** r[top] - 1, s.astype(np.float64)
    ideal = (np.sort(gain)[::-1] / np.log2(2 + np.arange(top.size))).sum()
    d = x[top, None] - x
    p = np.exp(-np.logaddexp(0, d))  # sigmoid(-d)
    rank = 0.5 + p.sum(1)
    rise = gain / ideal * np.log(2) / ((1 + rank) * np.log(1 + rank) ** 2)
    steep = p * (1 - p)
    want = rise @ steep
    want[top] -= rise * steep.sum(1)
    np.testing.assert_allclose(gap, 1 - (gain / np.log2(1 + rank)).sum() / ideal, rtol=1e-6)
    np.testing.assert_allclose(slopes, want, rtol=0, atol=1e-6 * abs(want).max())
    worth = np.empty(n)
    worth[np.argsort(-x, kind="stable")] = 1 / np.log2(2 + np.arange(n))
    every = np.zeros(n)
    every[top] = gain
    weight = np.maximum(gain[:, None] - every, 0) * abs(worth[top, None] - worth) / ideal
    want = (weight * p).sum(0)
    want[top] -= (weight * p).sum(1)
    np.testing.assert_allclose(total, (weight * np.logaddexp(0, -d)).sum(), rtol=1e-6)
    np.testing.assert_allclose(pulls, want, rtol=0, atol=1e-6 * abs(want).max())


@pytest.mark.exhaustive
def test_sharded_lists():
    def both(s, g, valid):
        return jnp.sum(dcg_gap(s, g, valid, short=0)[0] + swap_total(s, g, valid, short=0))

    inputs = lists("normal", n=6, levels=(2, 5, 2, 3) * 2)
    slopes = jax.grad(both)
    want = jax.jit(slopes)(*inputs)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data"))
        got = jax.jit(slopes)(*(jax.device_put(x, rows) for x in inputs))
    assert got.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(slopes, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=True)
    np.testing.assert_allclose(jax.jit(mapped)(*inputs), want, rtol=1e-5, atol=1e-6)


@either_way
def test_a_score_that_is_not_a_number_is_seen(way):
    s, g, valid = lists("normal")
    s[:, 7], valid[:, 7] = np.nan, True
    assert np.all(np.isnan(measured(way)(s, g, valid)[0][1][0]))
    assert np.all(np.isnan(weighed(way)(s, np.where(g == 0, 1, g), valid)[0][1]))


# --- The losses -------------------------------------------------------------------------------------------------------


def test_lists_that_say_nothing_are_absent():
    s = jnp.asarray([[1.0, -1.0, 0.5]] * 2)
    ready = {
        jl.approx_ndcg: ([2.0, 0.0, 1.0], [0.0, 0.0, 0.0]),
        jl.lambda_rank: ([2.0, 0.0, 1.0], [2.0, 2.0, 2.0]),
        jl.approx_mrr: ([1.0, 0.0, 0.0], [0.9, 0.0, 0.9]),
        jl.auc_margin: ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    }
    for loss, (told, silent) in ready.items():
        step = jax.jit(lambda s, r, loss=loss: (loss(s, r, reduction="partial").weight, jax.grad(loss)(s, r)))
        count, slopes = step(s, jnp.asarray([told, silent]))
        assert count == 1
        assert np.any(slopes[0])
        np.testing.assert_array_equal(slopes[1], 0)


def test_a_list_in_good_order_keeps_its_digits():
    """1 - NDCG of float32 numbers would be 0 or 6e-8."""
    s, r = np.array([36.0, 18.0, 0.0], np.float32), np.array([2.0, 1.0, 0.0], np.float32)
    gap, ideal, slopes, _ = smooth_gap(s, 2**r - 1, np.ones(3, bool))
    value, got = jax.value_and_grad(jl.approx_ndcg)(s, r)
    np.testing.assert_allclose(value, gap / ideal, rtol=2e-5)  # what exp(-18) of a float32 number is good for
    assert value < 1e-8
    np.testing.assert_allclose(got, slopes / ideal, rtol=2e-5)


def test_approx_mrr_ranks_the_best_relevant_item():
    rng = np.random.default_rng(0)
    s, r = rng.normal(size=(20, 9)).astype(np.float32), (rng.random((20, 9)) < 0.4) * 1.0
    d = s[:, None].astype(np.float64) - s[:, :, None]
    rank = 0.5 + (1 / (1 + np.exp(-d / 0.3))).sum(-1)
    want = 1 - np.max(r / rank, axis=-1)
    got = jl.approx_mrr(s, r, temperature=0.3, reduction="none")
    some = r.any(1)
    np.testing.assert_allclose(got[some], want[some], rtol=1e-6)
    np.testing.assert_array_equal(got[~some], 0)


def test_the_first_of_equally_good_items_is_ranked():
    slopes = jax.grad(jl.approx_mrr)(jnp.asarray([0.0, 1.0, 1.0, 1.0]), jnp.asarray([1.0, 0.0, 1.0, 1.0]))
    assert np.argmin(slopes) == 2
    assert np.sum(np.asarray(slopes) < 0) == 1


def test_equal_scores_are_ranked_in_the_order_of_the_list():
    """|change| of the two orders: 1 / log2(2) - 1 / log2(3) and that of the places 1 and 3."""
    s = jnp.zeros(3)
    for r, places in (([0.0, 1.0, 0.0], ((1, 2), (2, 3))), ([1.0, 0.0, 0.0], ((1, 2), (1, 3)))):
        want = sum(1 / np.log2(1 + a) - 1 / np.log2(1 + b) for a, b in places) * np.log(2)
        np.testing.assert_allclose(jl.lambda_rank(s, jnp.asarray(r)), want, rtol=1e-6)


def test_the_weights_of_lambda_rank_are_constants():
    s, r = jnp.asarray([0.3, -0.2, 0.1]), jnp.asarray([0.0, 2.0, 1.0])
    np.testing.assert_array_equal(jax.grad(jl.lambda_rank, argnums=1)(s, r), 0)


def test_a_common_offset_of_the_scores_changes_nothing():
    rng = np.random.default_rng(0)
    s = np.round(rng.normal(size=50) * 64) / 64  # exact in float32 beside 1e4
    t = (rng.random(50) < 0.3) * 1.0
    step = jax.jit(jax.value_and_grad(lambda s: jl.auc_margin(s, t, margin=2.0)))
    a, b = s[t > 0], s[t == 0]
    (value, slopes), short = step(jnp.asarray(s + 1e4, jnp.float32)), 2.0 - (a.mean() - b.mean())
    np.testing.assert_allclose(value, a.var() + b.var() + short**2, rtol=1e-6)
    want = np.where(t > 0, (s - a.mean() - short) / a.size, (s - b.mean() + short) / b.size) * 2
    np.testing.assert_allclose(slopes, want, rtol=0, atol=1e-6 * abs(want).max())


def test_auc_margin_is_the_min_max_problem():
    """The paper's objective with its variables a, b and alpha: a saddle at the loss's value."""
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=30), np.arange(30) % 4 == 0

    def objective(a, b, alpha):
        of_means = 2 * alpha * (1.5 + s[~t].mean() - s[t].mean()) - alpha**2
        return ((s[t] - a) ** 2).mean() + ((s[~t] - b) ** 2).mean() + of_means

    steps = np.linspace(-0.5, 0.5, 11)
    a, b = s[t].mean(), s[~t].mean()
    value = float(jl.auc_margin(s.astype(np.float32), t, margin=1.5))
    inner = max(objective(a, b, alpha) for alpha in np.linspace(0, 5, 5001))
    np.testing.assert_allclose(value, inner, rtol=1e-6)
    assert all(objective(a + i, b + j, 0.0) >= objective(a, b, 0.0) for i in steps for j in steps)
