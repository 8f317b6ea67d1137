"""The sorted forms of the pairwise losses against all pairs, one by one, in float64.

python tests/test_sorted_pairs.py       prints the polynomials of jaxloss/algorithms/sorted_sums.py, sorted_sigmoids.py
"""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.algorithms import sorted_sigmoids, sorted_sums
from jaxloss.algorithms.sorted_pairs import pair_total
from jaxloss.core.frames import pairwise
from jaxloss.losses import ranking

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = ("hinge", "squared_hinge", "logistic")
FITS = {
    "LOG1P": (sorted_sums.LOG1P, lambda u: mp.log1p(u) / u if u else mp.mpf(1)),
    "RECIPROCAL": (sorted_sums.RECIPROCAL, lambda u: 1 / (1 + u)),
    "RECIPROCAL_SQUARED": (sorted_sigmoids.RECIPROCAL_SQUARED, lambda u: 1 / (1 + u) ** 2),
}


def polynomial(f, terms):
    """Coefficients of the Chebyshev interpolant of `f` on [0, 1], and its largest relative error."""
    with mp.workdps(60):
        nodes = [mp.cos(mp.pi * (i + mp.mpf(1) / 2) / (4 * terms + 40)) for i in range(4 * terms + 40)]
        values = [f((t + 1) / 2) for t in nodes]
        # T_k(2u - 1) in powers of u, by the recurrence.
        basis = [[mp.mpf(1)], [mp.mpf(-1), mp.mpf(2)]]
        for _ in range(terms - 2):
            ahead = [mp.mpf(0), *(4 * c for c in basis[-1])]
            for i, c in enumerate(basis[-1]):
                ahead[i] -= 2 * c
            for i, c in enumerate(basis[-2]):
                ahead[i] -= c
            basis.append(ahead)
        found = [mp.mpf(0)] * terms
        for k, powers in enumerate(basis):
            share = mp.fsum(v * mp.cos(k * mp.acos(t)) for v, t in zip(values, nodes, strict=True))
            for i, c in enumerate(powers):
                found[i] += (2 if k else 1) * share / len(nodes) * c
        points = (mp.mpf(i) / 400 for i in range(401))
        error = max(abs(mp.fsum(c * u**i for i, c in enumerate(found)) / f(u) - 1) for u in points)
    return tuple(float(c) for c in found), error


@pytest.mark.parametrize("name", FITS)
def test_the_polynomials_are_what_they_say(name):
    table, function = FITS[name]
    for row, bound in zip(table, (6e-8, 5e-17), strict=True):
        want, error = polynomial(function, len(row))
        np.testing.assert_allclose(row, want, rtol=1e-14)
        assert error < bound


def every_pair(kind, scores, relevance, valid, margin=1.0):
    """For one list: the sum of its pairs, the slope in every score and in the margin, the Hessian, and the number."""
    s = np.asarray(scores, np.float64)
    d = s[:, None] - s[None]
    pair = (relevance[:, None] > relevance[None]) & valid[:, None] & valid[None]
    if kind == "logistic":
        p = np.exp(-np.logaddexp(0, d))
        value, slope, curve = np.logaddexp(0, -d), -p, p * (1 - p)
    else:
        short = np.maximum(margin - d, 0)
        active = (short > 0).astype(float)
        value, slope, curve = (short, -active, 0 * d) if kind == "hinge" else (short**2, -2 * short, 2 * active)
    value, slope, curve = (np.where(pair, x, 0) for x in (value, slope, curve))
    both = curve + curve.T
    return value.sum(), slope.sum(1) - slope.sum(0), -slope.sum(), np.diag(both.sum(1)) - both, pair.sum()


DRAWS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "of scale 1e3": lambda rng, n: 1e3 * rng.normal(size=n),
    "around 1e4": lambda rng, n: 1e4 + rng.normal(size=n),
    "tied": lambda rng, n: rng.integers(0, 4, n) * 0.5,
    "with long tails": lambda rng, n: rng.standard_cauchy(n),
    "equal": lambda rng, n: np.full(n, 3.25),
}


@functools.cache
def measured(kind):
    def found(scores, relevance, valid, margin):
        total, count = pair_total(kind, scores, relevance, valid, margin)
        return jnp.sum(total), (total, count)

    return jax.jit(jax.value_and_grad(found, argnums=(0, 3), has_aux=True))


def lists(draw, levels, n=300):
    rng = np.random.default_rng(levels)
    rng = np.random.default_rng(0)
    s = np.stack([DRAWS[draw](rng, n) for _ in levels]).astype(np.float32)
    r = np.stack([rng.integers(0, k, n) * 0.5 for k in levels]).astype(np.float32)
    return s, r, rng.random(s.shape) < 0.9


@pytest.mark.parametrize("levels", [(2, 1, 2), (2, 5, 10**6)], ids=["binary", "graded"])
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair(kind, draw, levels):
    s, r, valid = lists(draw, levels)
    margin = np.float32(0.7 if draw != "tied" else 0.5)  # among ties some pairs are apart by exactly the margin
    (_, (total, count)), (slopes, pull) = measured(kind)(s, r, valid, margin)
    want = [every_pair(kind, *each, float(margin)) for each in zip(s, r, valid, strict=True)]
    np.testing.assert_allclose(total, [w[0] for w in want], rtol=1e-6)
    np.testing.assert_array_equal(count, [w[4] for w in want])
    for found, w in zip(slopes, want, strict=True):
        np.testing.assert_allclose(found, w[1], rtol=0, atol=1e-6 * abs(w[1]).max())
    if kind == "hinge":
        np.testing.assert_array_equal(slopes, [w[1] for w in want])
    if kind != "logistic":
        np.testing.assert_allclose(pull, sum(w[2] for w in want), rtol=1e-6)


def test_a_long_list():
    """Against NumPy's own order and sums in float64: at 10^5 items there are 2.5 10^9 pairs."""
    rng = np.random.default_rng(0)
    s, upper = rng.normal(size=10**5).astype(np.float32), rng.random(10**5) < 0.3
    above, below = s[upper].astype(np.float64), np.sort(s[~upper]).astype(np.float64)
    edge = np.searchsorted(below, above - 1, side="right")
    behind = np.append(np.cumsum(below[::-1])[::-1], 0)[edge]
    want = (behind + (len(below) - edge) * (1 - above)).sum()
    (_, (total, count)), (slopes, _) = measured("hinge")(s[None], upper[None] * 1.0, np.ones((1, 10**5), bool), 1.0)
    np.testing.assert_allclose(total[0], want, rtol=1e-6)
    np.testing.assert_allclose(count[0], len(above) * len(below), rtol=1e-7)
    np.testing.assert_array_equal(slopes[0][upper], edge - float(len(below)))


@pytest.mark.exhaustive
def test_a_long_list_of_the_logistic_loss_as_it_is_compiled_for_use():
    """Longer than what XLA's CPU, fully optimised, sums right along a first axis: 4 10^6 pairs in float64."""
    n = 20000
    s, upper = np.random.default_rng(0).normal(size=n).astype(np.float32), np.arange(n) % 100 == 0
    difference = s[upper, None].astype(np.float64) - s[~upper]
    pull = 1 / (1 + np.exp(difference))
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        total, slopes = jax.jit(jax.value_and_grad(lambda s, r: jl.pairwise_logistic(s, r, pairs="sum")))(
            s, upper * 1.0
        )
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    np.testing.assert_allclose(total, np.logaddexp(0, -difference).sum(), rtol=1e-6)
    np.testing.assert_allclose(slopes[upper], -pull.sum(1), rtol=1e-5)
    np.testing.assert_allclose(slopes[~upper], pull.sum(0), rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["squared_hinge", "logistic"])
def test_every_derivative_in_float64(kind):
    """The Hessian forward over reverse, in reverse twice, and mapped over lists, which then hold their own levels."""
    with jax.enable_x64(True):
        s, r, valid = lists("normal", (5, 2), n=40)
        s, v = np.asarray(s, np.float64), np.random.default_rng(1).normal(size=s.shape)

        def derivatives(s, r, valid, v):
            def total(s):
                return pair_total(kind, s, r, valid, jnp.asarray(0.7))[0]

            slopes = jax.grad(total)
            forward, reverse = jax.jvp(slopes, (s,), (v,))[1], jax.grad(lambda s: jnp.vdot(slopes(s), v))(s)
            return total(s), slopes(s), forward, reverse

        found = jax.jit(jax.vmap(derivatives))(s, r, valid, v)
        for i in range(2):
            value, slope, _, hessian, _ = every_pair(kind, s[i], r[i], valid[i], 0.7)
            for got, want in zip(found, (value, slope, hessian @ v[i], hessian @ v[i]), strict=True):
                np.testing.assert_allclose(got[i], want, rtol=0, atol=1e-11 * abs(want).max())


def test_hessian_times_vector_of_a_long_list():
    (s,), (r,), (valid,) = lists("normal", (5,))
    v = np.random.default_rng(1).normal(size=s.shape).astype(np.float32)
    slopes = jax.grad(lambda s: pair_total("logistic", s, r, valid)[0])
    got = jax.jit(lambda s, v: jax.jvp(slopes, (s,), (v,))[1])(s, v)
    want = every_pair("logistic", s, r, valid)[3] @ v
    np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 * abs(want).max())


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_short_and_long_lists_agree(kind):
    loss = {"hinge": jl.pairwise_hinge, "logistic": jl.pairwise_logistic}[kind]
    n = {"hinge": ranking._SHORT_FOR_HINGE, "logistic": ranking._SHORT_FOR_LOGISTIC}[kind]
    s, r, valid = lists("normal", (2, 5), n=n)
    longer = [np.pad(x, ((0, 0), (0, 1))) for x in (s, r, valid)]
    longer[0][:, -1] = np.nan
    step = jax.jit(jax.value_and_grad(lambda s, r, v: loss(s, r, valid=v)))
    (short, slopes), (long, more) = step(s, r, valid), step(*longer)
    np.testing.assert_allclose(long, short, rtol=1e-6)
    np.testing.assert_allclose(more[:, :-1], slopes, rtol=0, atol=1e-6 * abs(slopes).max())
    np.testing.assert_array_equal(more[:, -1], 0)


@pytest.mark.exhaustive
def test_sharded_lists():
    def loss(s, r):
        beyond = (0, functools.partial(pair_total, "hinge"))
        return pairwise(
            jnp.maximum, scores=s, relevance=r, scalars={"margin": 1.0}, beyond=beyond, pairs="sum", reduction="sum"
        )

    s, r, _ = lists("normal", (2, 5, 2, 3) * 2, n=6)

    slopes = jax.grad(loss)
    want = jax.jit(slopes)(s, r)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            rows = NamedSharding(mesh, P("data"))
            got = jax.jit(slopes)(jax.device_put(s, rows), jax.device_put(r, rows))
        assert got.sharding.is_equivalent_to(rows, 2)
        np.testing.assert_allclose(got, want, rtol=1e-6)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(slopes, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=True)
    np.testing.assert_allclose(jax.jit(mapped)(s, r), want, rtol=1e-6)


def test_memory_is_linear():
    s, r = jnp.zeros(10**4), jnp.zeros(10**4)
    program = jax.jit(jax.value_and_grad(lambda s, r: jl.pairwise_logistic(s, r))).lower(s, r).compile()
    assert program.memory_analysis().temp_size_in_bytes < 10 * 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_of_unknown_relevance_is_in_no_pair(kind):
    s, r, valid = lists("normal", (2, 5, 10**6))
    unknown = np.arange(300) % 7 == 3
    got = measured(kind)(s, np.where(unknown, np.nan, r).astype(np.float32), valid, np.float32(1))
    want = measured(kind)(s, r, valid & ~unknown, np.float32(1))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_not_a_number_is_seen(kind):
    s, r, valid = lists("normal", (2, 5, 10**6))
    s[:, 7], valid[:, 7] = np.nan, True
    (_, (total, _)), _ = measured(kind)(s, r, valid, np.float32(1))
    assert np.all(np.isnan(total))


def test_no_lists_at_all():
    value, slopes = jax.value_and_grad(jl.pairwise_hinge)(jnp.zeros((0, 300)), jnp.zeros((0, 300)))
    assert value == 0
    assert slopes.shape == (0, 300)


if __name__ == "__main__":
    for name, (table, function) in FITS.items():
        for terms in map(len, table):
            row, error = polynomial(function, terms)
            print(f"{name}, {terms} terms, relative error {mp.nstr(error, 2)}:", *row, sep="\n    ")
