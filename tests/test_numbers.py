"""Errors of logarithms and fractions, quantiles, likelihoods, hinge and distance: their digits, edges and relations."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from cases_numbers import quantile as quantile_by_definition
from exact import spread, ulps
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from test_compiled import count_compilations
from test_relations import same

import jaxloss as jl
from jaxloss.core import numerics
from jaxloss.testing import LAWS, Case, Run

mpf = mp.mpf
LEVEL = np.float32(0.1)


# --- Digits -------------------------------------------------------------------------------------------------------


def neighbours(x, seed=1):
    """For each number others: unrelated ones, nearly equal ones, equal ones."""
    rng = np.random.default_rng(seed)
    by = rng.choice([0, 1e-7, 1e-5, 1e-3, 1], x.size) * rng.normal(size=x.size)
    return np.concatenate([x, x]), np.concatenate([rng.permutation(x), np.float32(x * (1 + by))])


def real_pairs(high=1e38):
    return neighbours(spread(100, high=high))


def positive_pairs():
    return tuple(abs(x) for x in real_pairs())


def nonzero_targets():
    p, t = real_pairs()
    return p[t != 0], t[t != 0]


def means_and_variances():
    """A third of the variances is about the square of the error, where the slope towards them changes sign."""
    rng = np.random.default_rng(2)
    m, t = real_pairs(high=3e38)
    with np.errstate(over="ignore"):
        square = np.square(np.float64(m) - t) * (1 + rng.choice([0, 1e-7, 1e-4, 0.1], m.size) * rng.normal(size=m.size))
    v = abs(rng.permutation(m))
    fits = (square > 1e-37) & (square < 3e38) & (np.arange(m.size) % 3 > 0)
    v = np.where(fits, square, np.where(v == 0, 1, v)).astype(np.float32)
    # Further errors that are exact themselves, so that only the difference v - r^2 is asked.
    r = np.float32(spread(60, low=1e-18, high=1e18)[1:])
    near = np.float32(np.square(np.float64(r)) * (1 + rng.choice([0, 1e-7, 1e-4], r.size) * rng.normal(size=r.size)))
    return np.concatenate([m, r]), np.concatenate([t, 0 * r]), np.concatenate([v, near])


def rates_and_counts():
    """Unrelated ones, and log-rates near the logarithm of the count, where the gradient changes sign."""
    rng = np.random.default_rng(3)
    x = spread(60, low=1e-30, high=85)
    n = np.resize(np.float32([0, 1, 2, 3, 7, 40, 1e3, 1e6, 1e9]), x.size)
    near = np.float32(np.concatenate([np.exp(rng.uniform(-30, 30, 60)), np.repeat([1.0, 2, 3, 5, 100, 1e6], 10)]))
    by = rng.choice([1e-5, 1e-3, 0.1, 1], near.size) * rng.normal(size=near.size)
    tiny = np.float32([1e-8, -1e-9, 3e-5, -2e-3])  # beside a count of 1
    return (
        np.concatenate([x, np.float32(np.log(np.float64(near)) * (1 + by)), tiny]),
        np.concatenate([n, near, np.ones(4, np.float32)]),
    )


def log_factorial(n):
    return mp.loggamma(n + 1)


def relative_entropy(x, t):
    return (t * (mp.log(t) - x) if t else mpf(0)) - t + mp.exp(x)


def over(part, whole):
    return float(abs(part / whole)) if whole else 0.0


def cancelling(*terms):
    """How much larger the terms are than their sum."""
    return over(mp.fsum(abs(term) for term in terms), mp.fsum(terms))


# name: (loss, its definition, points, bound of the value, bounds of the slopes by argument, and their k: the card's)
SCALARS = {
    "squared_log_error": (
        jl.squared_log_error,
        lambda p, t: (mp.log(1 + p) - mp.log(1 + t)) ** 2,
        positive_pairs,
        5,
        (4, 4),
        {},
    ),
    "absolute_percentage_error": (
        jl.absolute_percentage_error,
        lambda p, t: abs(p - t) / abs(t),
        nonzero_targets,
        2,
        (0.5, 2),
        {},
    ),
    "quantile": (
        functools.partial(jl.quantile, level=LEVEL),
        lambda p, t: max(mpf(float(LEVEL)) * (t - p), (mpf(float(LEVEL)) - 1) * (t - p)),
        functools.partial(real_pairs, 3.4e38),
        2,
        (0.5, 0.5),
        {},
    ),
    "expectile": (
        functools.partial(jl.expectile, level=LEVEL),
        lambda p, t: abs(mpf(float(LEVEL)) - (t < p)) * (t - p) ** 2,
        functools.partial(real_pairs, 3.4e38),
        4,
        (2, 2),
        {},
    ),
    "gaussian_nll": (
        jl.gaussian_nll,
        lambda m, t, v: (mp.log(v) + (m - t) ** 2 / v) / 2,
        means_and_variances,
        2,
        (2, 2, 3),
        {
            "value": lambda m, t, v: cancelling(mp.log(v), (m - t) ** 2 / v),
            # The error is rounded before it is squared: the difference of two inputs, not of what they became.
            2: lambda m, t, v: over(2 * (abs(m) + abs(t)) * (m - t), v - (m - t) ** 2) if t else 0.0,
        },
    ),
    "poisson_nll": (
        jl.poisson_nll,
        lambda x, n: mp.exp(x) - n * x,
        rates_and_counts,
        1,
        (2,),
        {
            "value": lambda x, n: cancelling(mp.exp(x), -n * x),
            0: lambda x, n: over(x * mp.exp(x), mp.exp(x) - n),
        },
    ),
    "poisson_nll_full": (
        functools.partial(jl.poisson_nll, full=True),
        lambda x, n: mp.exp(x) - n * x + log_factorial(n),
        rates_and_counts,
        2,
        (2,),
        {
            "value": lambda x, n: over(x * (mp.exp(x) - n), mp.exp(x) - n * x + log_factorial(n)),
            0: lambda x, n: over(x * mp.exp(x), mp.exp(x) - n),
        },
    ),
    "generalized_kl_divergence": (
        lambda x, t, **tail: jl.generalized_kl_divergence(x[:, None], t[:, None], **tail),
        relative_entropy,
        rates_and_counts,
        4,
        (2,),
        {
            "value": lambda x, t: over(x * (mp.exp(x) - t), relative_entropy(x, t)),
            0: lambda x, t: over(x * mp.exp(x), mp.exp(x) - t),
        },
    ),
}


@pytest.mark.parametrize("name", SCALARS)
def test_values_and_gradients_keep_their_digits(name):
    loss, formula, points, value_bound, slope_bounds, conditions = SCALARS[name]
    columns = points()
    arguments = range(len(slope_bounds))
    value = np.asarray(jax.jit(lambda *x: loss(*x, reduction="none"))(*columns))
    slopes = jax.jit(jax.grad(lambda *x: loss(*x, reduction="sum"), tuple(arguments)))(*columns)
    worst = {"value": (0.0,), **dict.fromkeys(arguments, (0.0,))}
    for i, row in enumerate(zip(*columns, strict=True)):
        x = [mpf(float(a)) for a in row]

        def noted(part, got, exact, x=x, row=row):
            k = conditions[part](*x) if part in conditions else 0.0
            worst[part] = max(worst[part], (ulps(got, exact) / (1 + k), *map(float, row), float(got), float(exact)))

        noted("value", value[i], formula(*x))
        for k in arguments:
            if x[0] != x[1]:  # a kink of some; the laws ask there
                f = lambda a, k=k, x=x: formula(*x[:k], a, *x[k + 1 :])  # noqa: E731
                noted(k, slopes[k][i], mp.diff(f, x[k]))
    print(name, worst)
    for part, bound in {"value": value_bound, **dict(enumerate(slope_bounds))}.items():
        assert worst[part][0] <= bound, (part, worst[part])


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["squared_log_error", "expectile", "poisson_nll", "generalized_kl_divergence"])
def test_half_precision_gradients_are_rounded_once(name, dtype):
    loss, formula, *_ = SCALARS[name]
    p, t = (np.asarray(jnp.asarray(abs(x), dtype), np.float32) for x in neighbours(spread(60, low=1e-3, high=8)))
    slope = jax.grad(lambda p: loss(p, jnp.asarray(t, dtype), reduction="sum"))(jnp.asarray(p, dtype))
    assert slope.dtype == dtype
    for a, b, s in zip(p, t, np.asarray(slope, np.float64), strict=True):
        if a != b:
            d = mp.diff(lambda x, b=b: formula(x, mpf(float(b))), mpf(float(a)))
            assert ulps(s, d, dtype) <= 1, (a, b, s, mp.nstr(d, 10))


COUNTS = np.concatenate([np.linspace(0, 4, 161), np.geomspace(1e-30, 1e30, 100)])
# name: (function, definition, columns in float64)
PIECES = {
    "exp_minus": (numerics.exp_minus, lambda x, t: mp.exp(x) - t, (np.linspace(-3, 3, 50), np.linspace(0.2, 5, 50))),
    "exp_gap": (numerics.exp_gap, relative_entropy, (np.linspace(-3, 3, 50), np.linspace(0, 5, 50))),
    "stirling_gap": (
        numerics.stirling_gap,
        lambda t: log_factorial(t) - (t * mp.log(t) if t else 0) + t,
        (COUNTS,),
    ),
    "square_gap": (
        numerics.square_gap,
        lambda r, v: 1 - r * r / v,
        (np.linspace(1, 3, 50), np.linspace(1, 3, 50) ** 2 * (1 + np.geomspace(1e-12, 2, 50))),
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_keep_their_digits_in_float64(name):
    function, definition, columns = PIECES[name]
    with jax.enable_x64(True):
        value = np.asarray(jax.jit(function)(*columns))
    for v, row in zip(value, zip(*columns, strict=True), strict=True):
        exact = definition(*(mpf(float(a)) for a in row))
        assert abs(v - exact) <= 2e-14 * abs(exact), (row, v, mp.nstr(exact, 20))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PIECES)
def test_pieces_have_gradients_and_hessians_in_every_mode(name):
    function, _, columns = PIECES[name]
    with jax.enable_x64(True):
        for row in ((0.3, 0.5), (1.5, 2.5)):
            at = tuple(np.float64(a) for a in row[: len(columns)])
            check_grads(jax.jit(function), at, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


# --- Edges --------------------------------------------------------------------------------------------------------


def both(loss, *x):
    """The unreduced value, and the slope in the first argument."""
    value, pull = jax.vjp(lambda first: loss(first, *x[1:], reduction="none"), x[0])
    return np.asarray(value), np.asarray(pull(jnp.ones_like(value))[0])


def test_percentages_of_a_target_of_zero():
    p, t = jnp.array([0.0, 2.0, -1e-30, 3.0]), jnp.array([0.0, 0.0, 0.0, 2.0])
    value, slope = both(jl.absolute_percentage_error, p, t)
    np.testing.assert_array_equal(value, [0, np.inf, np.inf, 0.5])
    np.testing.assert_array_equal(slope, [0, np.inf, -np.inf, 0.5])
    assert jl.absolute_percentage_error(p, t, where=t != 0) == 0.5
    assert jax.grad(jl.absolute_percentage_error)(p, t, where=t != 0)[1] == 0


def test_differences_beyond_the_range_of_a_number():
    """Ours is finite where the truth is; r^2, and t - p itself, are not."""
    huge, other = jnp.array([3e38, -3e38]), jnp.array([-3e38, 3e38])
    w = np.float64(np.float32(0.1)), 1 - np.float64(np.float32(0.1))
    value, slope = both(functools.partial(jl.quantile, level=0.1), huge[1:], other[1:])
    np.testing.assert_allclose(value, w[0] * 6e38, rtol=1e-6)
    assert slope == -np.float32(0.1)
    np.testing.assert_allclose(
        both(functools.partial(jl.expectile, level=0.1), huge[1:], other[1:])[1], -2 * w[0] * 6e38, rtol=1e-6
    )
    np.testing.assert_allclose(jl.expectile(jnp.array(0.0), 4e19, level=0.1), w[0] * 16e38, rtol=1e-6)
    np.testing.assert_allclose(jl.absolute_percentage_error(huge, other), 2, rtol=1e-6)
    v = jnp.full(2, 3.3e38)
    assert jl.gaussian_nll(huge, other, v, reduction="sum") == np.inf  # truly
    np.testing.assert_allclose(jl.gaussian_nll(huge / 2, other / 2.5, v, reduction="none"), 1.104e38, rtol=1e-3)
    slopes = jax.grad(lambda *x: jl.gaussian_nll(*x, reduction="sum"), (0, 2))(huge, other, v)
    np.testing.assert_allclose(slopes[0], np.array([6.0, -6.0]) / 3.3, rtol=1e-6)
    np.testing.assert_allclose(slopes[1], -0.5 * (6 / 3.3) ** 2, rtol=1e-6)


def test_gaussians_that_are_sure():
    """Variances down to the smallest normal number: value and slopes of what is finite."""
    v = np.float32([1.2e-38, 1e-30, 1e-12])
    r = np.sqrt(np.float64(v)).astype(np.float32)
    value = jl.gaussian_nll(r, 0 * r, v, full=True, reduction="none")
    want = -scipy.stats.norm.logpdf(r.astype(np.float64), scale=np.sqrt(v.astype(np.float64)))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    slope = jax.grad(lambda v: jl.gaussian_nll(2 * r, 0 * r, v, reduction="sum"))(v)
    q = np.square(2 * r.astype(np.float64)) / v
    np.testing.assert_allclose(slope, (1 - q) / (2 * v.astype(np.float64)), rtol=1e-6)


def test_large_counts_keep_what_is_left_of_the_factorial():
    n = np.float32([0, 1, 2, 170, 1e4, 1e7])
    x = np.log(np.maximum(n, 0.5) + 0.5).astype(np.float32)
    value = jl.poisson_nll(x, n, full=True, reduction="none")
    rows = [(mpf(float(a)), mpf(float(b))) for a, b in zip(x, n, strict=True)]
    want = [float(mp.exp(a) - b * a + log_factorial(b)) for a, b in rows]
    np.testing.assert_allclose(value, want, rtol=2e-6)
    integers = jl.poisson_nll(x, n.astype(int), full=True, reduction="none")
    np.testing.assert_array_equal(integers, value)


def test_nothing_expected_and_nothing_there():
    x = jnp.array([[-jnp.inf, 0.0], [-jnp.inf, 0.0], [0.5, 0.5]])
    t = jnp.array([[0.0, 1.0], [0.5, 1.0], [0.0, 0.0]])
    value, slope = both(jl.generalized_kl_divergence, x, t)
    np.testing.assert_allclose(value, [0, np.inf, 2 * np.exp(0.5)], rtol=1e-6)
    np.testing.assert_allclose(slope, np.exp(x) - t, rtol=1e-6)
    towards = jax.grad(lambda t: jl.generalized_kl_divergence(x, t, reduction="sum"))(t)
    np.testing.assert_array_equal(towards, [[0, 0], [np.inf, 0], [-np.inf, -np.inf]])


def test_a_label_that_is_ruled_out():
    x = jnp.log(jnp.array([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]]))
    value, slope = both(jl.categorical_nll, x, jnp.array([0, 1]))
    np.testing.assert_array_equal(value, [np.inf, -x[1, 1]])
    np.testing.assert_array_equal(slope, [[-1, 0, 0], [0, -1, 0]])


def test_hinge_embedding_at_the_margin_does_not_push():
    d, signs = jnp.array([0.0, 0.4, 0.5, 2.0, 3.0]), jnp.array([-1, -1, -1, -1, 1])
    value, slope = both(functools.partial(jl.hinge_embedding, margin=0.5), d, signs)
    np.testing.assert_allclose(value, [0.5, 0.1, 0, 0, 3], rtol=1e-6)
    np.testing.assert_array_equal(slope, [-1, -1, 0, 0, 1])


# --- Several quantiles --------------------------------------------------------------------------------------------


def several_quantiles(predictions, targets, level):
    return quantile_by_definition(predictions, targets[..., None], level).mean(-1)


LEVELS = np.array([0.05, 0.25, 0.5, 0.9])
SEVERAL = Case(
    jl.quantile, several_quantiles, shapes={"predictions": "NK", "targets": "N"}, options=({"level": LEVELS},)
)


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(d, marks=pytest.mark.exhaustive) for d in ("float64", "bfloat16", "float16"))]
)
def test_several_quantiles_obey_the_laws(dtype):
    with jax.enable_x64(dtype == "float64"):
        run = Run(SEVERAL, {"level": LEVELS}, dtype, first=False)
        for law in LAWS:
            law(run)


def test_several_quantiles_are_the_mean_of_one_at_a_time():
    rng = np.random.default_rng(0)
    p, t = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 2, 4), (3, 2)))
    each = [jl.quantile(p[..., k], t, level=level, reduction="none") for k, level in enumerate(LEVELS)]
    np.testing.assert_allclose(jl.quantile(p, t, level=LEVELS, reduction="none"), np.mean(each, 0), rtol=1e-6)
    assert jl.quantile(p, t, level=LEVELS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jl.quantile(p, t, level=LEVELS).dtype == jnp.float32


@pytest.mark.parametrize(
    ("predictions", "targets", "level", "words"),
    [
        ((6,), (6,), (3,), r"`level` \[3\] and `predictions` \[6\] .* \[..., 3\] .* here \[6\]"),
        ((6, 3), (6, 3), (3,), r"`predictions` \[6, 3\] and `targets` \[6, 3\] must have one batch"),
        ((6, 3), (6,), (), r"`predictions` \[6, 3\] and `targets` \[6\] must have one shape"),
        ((6, 3), (6,), (1, 3), r"`level` \[1, 3\] must be a scalar or an array \[Q\]"),
        ((6, 0), (6,), (0,), r"`level` \[0\]"),
        ((), (), (2,), r"`predictions` \[\]"),
    ],
)
def test_levels_that_fit_nothing_are_refused_in_words(predictions, targets, level, words):
    with pytest.raises(ValueError, match=words):
        jl.quantile(jnp.ones(predictions), jnp.ones(targets), level=jnp.full(level, 0.5))


def test_a_list_of_levels_is_refused_in_words():
    with pytest.raises(TypeError, match="`level` must be an array, got list"):
        jl.quantile(jnp.ones((6, 2)), jnp.ones(6), level=[0.1, 0.9])


def test_other_levels_do_not_recompile():
    p, t = jnp.ones((6, 2)), jnp.ones(6)
    levels = [jnp.float32([a, 0.9]) for a in (0.1, 0.2)]
    jl.quantile(p, t, level=levels[0])
    jl.quantile(p[:, 0], t, level=levels[0][0])
    others = levels[1][0]
    assert count_compilations(lambda: jl.quantile(p, t, level=levels[1])) == 0
    assert count_compilations(lambda: jl.quantile(p[:, 0], t, level=others)) == 0


@pytest.mark.exhaustive
def test_several_quantiles_of_sharded_rows():
    rng = np.random.default_rng(1)
    p, t = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 4), (8,)))
    step = jax.jit(jax.value_and_grad(lambda p, t: jl.quantile(p, t, level=LEVELS)))
    want = step(p, t)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        got = step(*(jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (p, t)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- Relations ----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
X, T = (jnp.asarray(RNG.normal(size=20), jnp.float32) for _ in range(2))
Z = jnp.asarray(RNG.normal(size=(20, 6)), jnp.float32)
Q = jax.nn.softmax(jnp.asarray(RNG.normal(size=(20, 6)), jnp.float32))
Y = jnp.asarray(RNG.integers(0, 6, 20))


def test_the_middle_level_is_half_of_the_symmetric_error():
    same(lambda p: jl.quantile(p, T), lambda p: jl.absolute_error(p, T) / 2, X)
    same(lambda p: jl.expectile(p, T), lambda p: jl.half_squared_error(p, T), X)


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_the_minimiser_is_the_sample_quantile_or_expectile(level):
    sample = np.sort(RNG.normal(size=31)).astype(np.float32)
    costs = jax.vmap(lambda c: jl.quantile(jnp.full_like(sample, c), sample, level=level))(sample)
    assert sample[int(np.argmin(costs))] == np.quantile(sample, level, method="inverted_cdf")
    expectile = sample.mean()
    for _ in range(200):  # the fixed point: a mean that weighs the two sides by the level
        w = np.where(sample > expectile, level, 1 - level)
        expectile = np.sum(w * sample) / np.sum(w)

    def cost(c):
        return jl.expectile(jnp.full_like(sample, c), sample, level=level)

    assert abs(jax.grad(cost)(float(expectile))) < 1e-6
    assert cost(float(expectile)) < min(cost(float(expectile) + e) for e in (-0.01, 0.01))


def test_gaussians_of_unit_variance_are_half_the_squared_error():
    one = jnp.ones_like(T)
    same(lambda m: jl.gaussian_nll(m, T, one), lambda m: jl.half_squared_error(m, T), X, rtol=0, atol=0)


def test_full_likelihoods_are_those_of_scipy():
    v = np.exp(np.asarray(X))
    want = -scipy.stats.norm.logpdf(np.asarray(T, np.float64), np.asarray(X, np.float64), np.sqrt(v.astype(np.float64)))
    np.testing.assert_allclose(jl.gaussian_nll(X, T, v, full=True, reduction="none"), want, rtol=2e-6)
    n = np.arange(20)
    want = -scipy.stats.poisson.logpmf(n, np.exp(np.asarray(X, np.float64)))
    np.testing.assert_allclose(jl.poisson_nll(X, n, full=True, reduction="none"), want, rtol=2e-6)
    plain = jl.poisson_nll(X, n, reduction="none")
    np.testing.assert_allclose(plain, want - scipy.special.gammaln(n + 1), rtol=2e-5, atol=1e-5)


@pytest.mark.exhaustive
def test_log_probabilities_of_logits_make_cross_entropy():
    def of_log_probabilities(z, **options):
        return jl.categorical_nll(jax.nn.log_softmax(z), Y, **options)

    same(of_log_probabilities, lambda z: jl.softmax_cross_entropy(z, Y), Z)
    c = jnp.asarray(RNG.uniform(0.5, 2, 6), jnp.float32)
    weighted = functools.partial(jl.softmax_cross_entropy, labels=Y, class_weights=c)
    same(lambda z: of_log_probabilities(z, class_weights=c), weighted, Z)


def test_generalized_kl_adds_what_the_sums_differ_by():
    more = jnp.mean(jnp.sum(3 * Q, -1))
    same(
        lambda x: jl.generalized_kl_divergence(x, 3 * Q),
        lambda x: jl.kl_divergence(x, 3 * Q) + jnp.mean(jnp.sum(jnp.exp(x), -1)) - more,
        Z,
    )
    normal = jax.nn.log_softmax(Z)
    np.testing.assert_allclose(jl.generalized_kl_divergence(normal, Q), jl.kl_divergence(normal, Q), rtol=1e-5)


def test_squared_log_error_is_the_squared_error_of_logarithms():
    p, t = jnp.exp(X), jnp.exp(T)
    same(lambda p: jl.squared_log_error(p, t), lambda p: jl.squared_error(jnp.log1p(p), jnp.log1p(t)), p)


def test_hinge_embedding_is_a_hinge_of_the_distance():
    d = jnp.exp(X)
    apart = jl.hinge_embedding(d, -jnp.ones_like(d), margin=1.0)
    np.testing.assert_allclose(apart, jl.hinge(d, jnp.ones_like(d)), rtol=1e-6)
    assert jl.hinge_embedding(d, jnp.ones_like(d)) == jnp.mean(d)


# --- A distance of one's own --------------------------------------------------------------------------------------

TRIPLETS = [jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32) for _ in range(3)]


def weighed(w):
    return lambda x, y: jnp.sum(w[None] * jnp.square(x - y), axis=-1)


def naive(x, y):
    """As it is usually written: without a gradient at equality."""
    return jnp.sqrt(jnp.sum((x - y) ** 2, axis=-1))


def angle(x, y):
    """As it is usually written: without a gradient where the vectors are parallel."""
    return jnp.arccos(jnp.sum(x * y, -1) / jnp.sqrt(jnp.sum(x * x, -1) * jnp.sum(y * y, -1)))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("distance", "swap"), [(None, False), (naive, True)])
def test_the_euclidean_distance_makes_triplet_margin(distance, swap):
    a, p, n = TRIPLETS
    options = {"swap": swap, "margin": 2.0}
    same(
        jax.jit(lambda a: jl.triplet_margin_with_distance(a, p, n, distance=distance, **options)),
        lambda a: jl.triplet_margin(a, p, n, **options),
        a,
    )
    turned = [jnp.moveaxis(x, -1, 0) for x in TRIPLETS]
    got = jl.triplet_margin_with_distance(*turned, distance=distance, axis=0, reduction="none", **options)
    np.testing.assert_allclose(got, jl.triplet_margin(a, p, n, reduction="none", **options), rtol=1e-6)


def test_a_distance_may_have_parameters_and_change():
    a, p, n = TRIPLETS

    def by_hand(w):
        near, far = (np.sum(w * (np.asarray(a, np.float64) - np.asarray(x, np.float64)) ** 2, -1) for x in (p, n))
        return np.mean(np.maximum(0, near - far + 1))

    def loss(w):
        return jl.triplet_margin_with_distance(a, p, n, distance=weighed(w))

    for w in (np.ones(4, np.float32), np.float32([0.3, 2.0, 0.7, 1.1])):  # the second call is not the first's
        steps = [np.float64(w) + 1e-6 * e for e in np.concatenate([np.eye(4), -np.eye(4)])]
        slope = [(by_hand(steps[k]) - by_hand(steps[k + 4])) / 2e-6 for k in range(4)]
        for run in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss))):
            value, got = run(w)
            np.testing.assert_allclose(value, by_hand(w), rtol=1e-6)
            np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-5)
            assert np.all(got != 0)


class Stretched:
    """A distance as a mutable object: the same function in each call, with other parameters."""

    def __init__(self, w):
        self.w = w

    def __call__(self, x, y):
        return weighed(self.w)(x, y)


def test_a_distance_that_is_changed_in_place_is_not_remembered():
    module, first, second = Stretched(None), jnp.ones(4), jnp.array([0.3, 2.0, 0.7, 1.1])
    for w in (first, second):
        module.w = w
        got = jl.triplet_margin_with_distance(*TRIPLETS, distance=module)
        assert got == jl.triplet_margin_with_distance(*TRIPLETS, distance=weighed(w))


@pytest.mark.parametrize(("distance", "size"), [(naive, 1), (angle, 4)])
def test_a_distance_is_asked_nothing_impossible_behind_a_mask(distance, size):
    """Of equal or parallel vectors these have an infinite slope; the mask's zero times that reaches the parameters."""
    where = jnp.arange(7) < 4
    kept = [x[:4, :size] for x in TRIPLETS]
    dirty = [jnp.where(where[:, None], x[:, :size], jnp.nan) for x in TRIPLETS]

    def loss(x, w, where=None):
        own = lambda x, y: distance(w[None] * x, w[None] * y)  # noqa: E731
        return jl.triplet_margin_with_distance(*x, distance=own, swap=True, where=where)

    w = jnp.linspace(0.5, 1.5, size)
    got = jax.jit(jax.value_and_grad(loss, (0, 1)))(dirty, w, where)
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(kept, w)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
    np.testing.assert_allclose(got[1][1], want[1][1], rtol=1e-5, atol=1e-6)
    for g, ours in zip(got[1][0], want[1][0], strict=True):
        np.testing.assert_allclose(g[:4], ours, rtol=1e-5, atol=1e-6)
        assert not np.any(g[4:])


def test_a_distance_that_is_none_is_refused_in_words():
    with pytest.raises(ValueError, match=r"`distance` returned \[7, 1\] for vectors \[7, 4\]; .* due: \[7\]"):
        jl.triplet_margin_with_distance(*TRIPLETS, distance=lambda x, y: jnp.sum(x - y, -1, keepdims=True))
    with pytest.raises(TypeError, match="`distance` of triplet_margin_with_distance must be a function or None"):
        jl.triplet_margin_with_distance(*TRIPLETS, distance=2.0)
