"""Values and gradients against 120 digits, in units of the last place (ulp), where others lose every digit.

Bounds are those of the cards: 2 ulp where XLA's primitives allow, 4 otherwise, times (1 + condition number) only
where a power or a difference of the inputs themselves magnifies what rounding left.
"""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact import condition, log_sum_exp, logistic, partials, softplus, spread, ulps

import jaxloss as jl

mpf = mp.mpf


def focal_nll(x, t, gamma):
    p = logistic(x)
    return (p * (1 - t) + (1 - p) * t) ** gamma * (t * softplus(-x) + (1 - t) * softplus(x))


def against(exponent_of_power=0.0):
    """A bound's factor that the card grants to a loss with a power."""
    return 1 + exponent_of_power


# name: (loss, textbook formula of (x, t), targets, domain, value bound, gradient bound, magnified by its condition)
SCALARS = {
    "squared_error": (jl.squared_error, lambda x, t: (x - t) ** 2, (0, 1.5), None, 2, 1, False),
    "half_squared_error": (jl.half_squared_error, lambda x, t: (x - t) ** 2 / 2, (0, 1.5), None, 2, 1, False),
    "absolute_error": (jl.absolute_error, lambda x, t: abs(x - t), (0, 1.5), None, 1, 0.5, False),
    "huber": (
        jl.huber,
        lambda x, t: (x - t) ** 2 / 2 if abs(x - t) <= 1 else abs(x - t) - mpf(1) / 2,
        (0, 1.5),
        None,
        2,
        1,
        False,
    ),
    "huber_narrow": (
        functools.partial(jl.huber, delta=0.25),
        lambda x, t: (x - t) ** 2 / 2 if abs(x - t) <= 0.25 else (abs(x - t) - mpf(1) / 8) / 4,
        (0,),
        None,
        2,
        1,
        False,
    ),
    "smooth_l1": (
        functools.partial(jl.smooth_l1, beta=0.25),
        lambda x, t: (x - t) ** 2 * 2 if abs(x - t) <= 0.25 else abs(x - t) - mpf(1) / 8,
        (0, 1.5),
        None,
        3,
        1,
        False,
    ),
    "hinge": (jl.hinge, lambda x, t: max(1 - t * x, mpf(0)), (-1, 1), None, 1, 0.5, False),
    "log_cosh": (
        jl.log_cosh,
        lambda x, t: mp.log(mp.cosh(x - t)) if abs(x - t) < 1e4 else abs(x - t) - mp.log(2),
        (0,),
        None,
        2,
        2,
        False,
    ),
    "sigmoid_cross_entropy": (
        jl.sigmoid_cross_entropy,
        lambda x, t: t * softplus(-x) + (1 - t) * softplus(x),
        (0, 1, 0.25),
        1e4,
        2.5,
        2.5,
        False,
    ),
    "positive_weight": (
        functools.partial(jl.sigmoid_cross_entropy, positive_weight=3.0),
        lambda x, t: 3 * t * softplus(-x) + (1 - t) * softplus(x),
        (0, 1),
        1e4,
        4,
        4,
        False,
    ),
    "focal_0": (
        functools.partial(jl.sigmoid_focal, gamma=0.0),
        lambda x, t: focal_nll(x, t, 0),
        (0, 1),
        1e4,
        4,
        4,
        False,
    ),
    "focal_half": (
        functools.partial(jl.sigmoid_focal, gamma=0.5),
        lambda x, t: focal_nll(x, t, mpf(1) / 2),
        (0, 1, 0.25),
        1e4,
        against(0.5) * 4,
        against(0.5) * 4,
        False,
    ),
    "focal_2": (
        functools.partial(jl.sigmoid_focal, gamma=2.0),
        lambda x, t: focal_nll(x, t, 2),
        (0, 1, 0.25),
        1e4,
        against(2) * 4,
        against(2) * 4,
        False,
    ),
    "focal_5": (
        functools.partial(jl.sigmoid_focal, gamma=5.0),
        lambda x, t: focal_nll(x, t, 5),
        (0, 1),
        1e4,
        against(5) * 4,
        against(5) * 4,
        False,
    ),
}


def flat(x, t):
    return np.concatenate([x] * len(t)), np.repeat(np.float32(t), x.size)


@functools.cache
def measured(name):
    """The loss's values and gradients on the points, compiled as a user would."""
    loss, _, targets, high, *_ = SCALARS[name]
    x, t = flat(spread(160, high=high or 1e38), targets)
    value = jax.jit(lambda x, t: loss(x, t, reduction="none"))(x, t)
    slope = jax.jit(jax.grad(lambda x, t: loss(x, t, reduction="sum")))(x, t)
    return x, t, np.asarray(value), np.asarray(slope)


@pytest.mark.parametrize("name", SCALARS)
def test_scalar_values_and_gradients(name):
    _, formula, _, _, value_bound, slope_bound, _ = SCALARS[name]
    x, t, value, slope = measured(name)
    worst = {"value": (0.0,), "gradient": (0.0,)}
    for a, b, v, s in zip(x, t, value, slope, strict=True):
        a, b = mpf(float(a)), mpf(float(b))
        f = functools.partial(lambda x, b: formula(x, b), b=b)
        exact = f(a)
        worst["value"] = max(worst["value"], (ulps(v, exact), float(a), float(b), float(v), mp.nstr(exact, 12)))
        if a == b:
            continue  # a kink of some; the value law has seen it
        d = mp.diff(f, a)
        # Near sigmoid(x) = t the gradient is a difference of the inputs; its condition number belongs to the question.
        k = condition(functools.partial(mp.diff, f), a, d) if b not in (0, 1) and d != 0 else 0.0
        error = ulps(s, d) / (1 + k)
        worst["gradient"] = max(worst["gradient"], (error, float(a), float(b), float(s), mp.nstr(d, 12)))
    print(name, worst)
    assert worst["value"][0] <= value_bound, worst
    assert worst["gradient"][0] <= slope_bound, worst


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["squared_error", "huber", "log_cosh", "sigmoid_cross_entropy", "focal_2"])
def test_half_precision_gradients_are_rounded_once(name, dtype):
    loss, formula, targets, *_ = SCALARS[name]
    high = 60.0 if "cross" in name or "focal" in name else 100.0
    x, t = flat(spread(120, low=1e-3, high=high), targets)
    x = np.asarray(jnp.asarray(x, dtype), np.float32)
    slope = jax.jit(jax.grad(lambda x, t: loss(x, t, reduction="sum")))(jnp.asarray(x, dtype), t)
    value = loss(jnp.asarray(x, dtype), t, reduction="none")
    assert slope.dtype == dtype
    assert value.dtype == jnp.float32
    for a, b, s in zip(x, t, np.asarray(slope, np.float64), strict=True):
        if a == b:
            continue
        target = mpf(float(b))
        d = mp.diff(functools.partial(lambda target, x: formula(x, target), target), mpf(float(a)))
        assert ulps(s, d, dtype) <= 1, (a, b, s, mp.nstr(d, 10))


def test_binary_cross_entropy_on_probabilities():
    rng = np.random.default_rng(0)
    p = np.concatenate([rng.uniform(0, 1, 60), np.exp(rng.uniform(-80, -1, 40)), 1 - np.exp(rng.uniform(-15, -1, 40))])
    p, t = flat(p.astype(np.float32), (0, 1, 0.25))
    value = jl.binary_cross_entropy(p, t, reduction="none")
    slope = jax.grad(lambda p: jl.binary_cross_entropy(p, t, reduction="sum"))(p)
    for a, b, v, s in zip(p, t, value, slope, strict=True):
        a, b = mpf(float(a)), mpf(float(b))
        if a in (0, 1):
            continue
        assert ulps(v, -b * mp.log(a) - (1 - b) * mp.log(1 - a)) <= 4, (a, b)
        assert ulps(s, (a - b) / (a * (1 - a))) <= 4, (a, b)


def test_certain_probabilities_cost_nothing_or_everything():
    grid = [(p, t) for p in (0, 1) for t in (0, 1e-30, 0.25, 1 - 2**-24, 1)]
    p, t = np.float32(grid).T
    value = jl.binary_cross_entropy(p, t, reduction="none")
    np.testing.assert_array_equal(value, np.where(p == t, 0.0, np.inf))
    assert jl.binary_cross_entropy(p[p == t], t[p == t]) == 0


# --- Rows ---------------------------------------------------------------------------------------------------------


def rows_of(kind, rng, count=6):
    """Logits on which other implementations lose digits; see the names."""
    classes = 2 if kind.startswith("two") else 64 if kind.startswith("many") else 6
    z = rng.normal(size=(count, classes)) * {"two_x30": 30, "x30": 30, "x0.001": 1e-3}.get(kind, 1.0)
    if kind == "plus_3e4":
        z = np.float32(z) + 3e4
    if kind == "minus_3e4":
        z = np.float32(z) - 3e4
    if kind.endswith("confident"):
        z[:, 0] += np.linspace(10, 80, count)  # beyond, the others' exponentials are subnormal, and flushed
    if kind == "wrong":
        z[:, 1] += np.linspace(10, 85, count)
    if kind == "ruled_out":
        z[:, 2:4] = -np.inf
    if kind == "ties":
        z = np.round(z)
        z[:, 0] = z.max(-1)
    return z.astype(np.float32), np.zeros(count, np.int32)


KINDS = (
    "plain", "x30", "two_x30", "x0.001", "plus_3e4", "minus_3e4", "confident", "two_confident", "wrong", "ruled_out",
    "ties",
)  # fmt: skip


def as_mp(row):
    return [mp.mpf(float(a)) for a in row]


def check_rows(loss, formula, z, *others, bound, slope_bound, power=0.0):
    """Each row's value, and each entry of its gradient, against the formula; returns the worst of both."""
    value = np.asarray(jax.jit(lambda z: loss(z, *others, reduction="none"))(z))
    slope = np.asarray(jax.jit(jax.grad(lambda z: loss(z, *others, reduction="sum")))(z))
    worst = [0.0, 0.0]
    for i, row in enumerate(z):
        f = functools.partial(formula, i=i)
        exact, gradient = f(as_mp(row)), partials(f, as_mp(row))
        error = ulps(value[i], exact) / (1 + power)
        worst[0] = max(worst[0], error)
        assert error <= bound, (i, row, value[i], mp.nstr(exact, 12), error)
        for j, (got, want) in enumerate(zip(slope[i], gradient, strict=True)):
            error = ulps(got, want) / (1 + power)
            worst[1] = max(worst[1], error)
            assert error <= slope_bound, (i, j, row, got, mp.nstr(want, 12), error)
    print(worst)


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_cross_entropy_rows(kind):
    z, y = rows_of(kind, np.random.default_rng(1))

    def formula(row, i):
        return log_sum_exp(row) - row[y[i]]

    check_rows(jl.softmax_cross_entropy, formula, z, y, bound=2.5, slope_bound=4)


def test_softmax_cross_entropy_of_many_classes():
    """64 classes are summed in groups: the label in the first and in the last of them, leading by 10 and by 80."""
    z, _ = rows_of("many_confident", np.random.default_rng(1), count=2)
    z = np.concatenate([z, z[:, ::-1]])
    y = np.array([0, 0, 63, 63])

    def formula(row, i):
        return log_sum_exp(row) - row[y[i]]

    check_rows(jl.softmax_cross_entropy, formula, z, y, bound=2.5, slope_bound=4)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("kind", ["plain", "confident", "wrong", "ruled_out", "plus_3e4"])
def test_softmax_focal_rows(kind, gamma):
    z, y = rows_of(kind, np.random.default_rng(2))

    def formula(row, i):
        nll = log_sum_exp(row) - row[y[i]]
        return (1 - mp.exp(-nll)) ** mpf(gamma) * nll

    # A miss of 1e-30 to the fifth power is below float32 altogether: the row is 0, as it should.
    check_rows(functools.partial(jl.softmax_focal, gamma=gamma), formula, z, y, bound=4, slope_bound=4, power=gamma)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ruled_out"])
def test_soft_label_rows(kind):
    rng = np.random.default_rng(3)
    z, _ = rows_of(kind, rng)
    t = rng.dirichlet(np.ones(z.shape[1]), len(z)).astype(np.float32)
    t[::2] = np.eye(z.shape[1], dtype=np.float32)[0]  # every other row one-hot

    def formula(row, i):
        lse = log_sum_exp(row)
        return mp.fsum(mpf(float(w)) * (lse - a) for w, a in zip(t[i], row, strict=True))

    value = np.asarray(jl.softmax_cross_entropy_with_soft_labels(z, t, reduction="none"))
    slope = jax.grad(lambda z: jl.softmax_cross_entropy_with_soft_labels(z, t, reduction="sum"))(z)
    for i, row in enumerate(z):
        exact = formula(as_mp(row), i)
        assert ulps(value[i], exact) <= 3, (row, t[i], value[i], mp.nstr(exact, 12))
        if i % 2 == 0:  # one-hot: entry by entry; a soft target's p - t is a difference of inputs
            for got, want in zip(slope[i], partials(functools.partial(formula, i=i), as_mp(row)), strict=True):
                assert ulps(got, want) <= 4, (row, got, mp.nstr(want, 12))
        else:
            want = partials(functools.partial(formula, i=i), as_mp(row))
            scale = max(abs(w) for w in want) + max(float(w) for w in t[i])
            assert all(abs(float(g) - w) <= 4e-7 * scale for g, w in zip(slope[i], want, strict=True))


def test_what_a_soft_target_leaves_to_the_others_keeps_its_digits():
    """A sure row, and 1e-7 of the target elsewhere: the slope at the top is that share, which 1 - t_top has not."""
    z, t = np.float32([[60, 0, -3, 1]]), np.float32([[1, 3e-8, 0, 7e-8]])
    slope = jax.grad(lambda z: jl.softmax_cross_entropy_with_soft_labels(z, t, reduction="sum"))(z)

    def formula(row):
        return mp.fsum(mpf(float(w)) * (log_sum_exp(row) - a) for w, a in zip(t[0], row, strict=True))

    for got, want in zip(slope[0], partials(formula, as_mp(z[0])), strict=True):
        assert ulps(got, want) <= 4, (got, mp.nstr(want, 12))


def sparsemax_formula(row, label):
    """Sort, threshold, and the definition: in 120 digits nothing cancels."""
    finite = sorted((a for a in row if a != -mp.inf), reverse=True)
    k = max(k for k in range(1, len(finite) + 1) if 1 + k * finite[k - 1] > mp.fsum(finite[:k]))
    tau = (mp.fsum(finite[:k]) - 1) / k
    p = [max(a - tau, mpf(0)) for a in row if a != -mp.inf]
    z = [a for a in row if a != -mp.inf]
    inner = mp.fsum(a * b for a, b in zip(p, z, strict=True))
    return inner - row[label] + (1 - mp.fsum(a * a for a in p)) / 2


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e4])
def test_sparsemax_keeps_its_digits_under_an_offset(offset):
    rng = np.random.default_rng(4)
    z = (np.float32(rng.normal(size=(8, 6))) + np.float32(offset)).astype(np.float32)
    y = np.arange(8) % 6
    value = jl.sparsemax(z, y, reduction="none")
    slope = jax.grad(lambda z: jl.sparsemax(z, y, reduction="sum"))(z)
    for i, row in enumerate(z):
        exact = sparsemax_formula(as_mp(row), y[i])
        assert abs(float(value[i]) - exact) <= 3e-7 * max(abs(exact), mpf(1)), (value[i], mp.nstr(exact, 12))
        want = partials(lambda r, i=i: sparsemax_formula(r, y[i]), as_mp(row))
        assert max(abs(float(g) - w) for g, w in zip(slope[i], want, strict=True)) <= 3e-7


def test_sparsemax_and_entmax_are_small_to_the_last_digit():
    # The label leads by 1 - d (1.5: 2 - d): the loss is about d^2 / 4, where a difference of two numbers near 1 is 0.
    d = np.float32([1e-1, 1e-2, 1e-3])
    z = np.stack([np.zeros_like(d), d - 1], -1)
    value = jl.sparsemax(z, np.zeros(3, int), reduction="none")
    for v, row in zip(value, z, strict=True):
        exact = sparsemax_formula(as_mp(row), 0)
        k = 1 / float(row[1] + 1)  # p itself is a difference of the inputs
        assert ulps(v, exact) <= 4 * (1 + 2 * k), (row, v, mp.nstr(exact, 10))
        assert v > 0


@pytest.mark.parametrize("kind", ["plain", "parallel", "huge", "tiny"])
def test_cosine_distance(kind):
    rng = np.random.default_rng(5)
    p, t = rng.normal(size=(2, 6, 5))
    if kind == "parallel":
        p = t * 1.7 + 1e-4 * p
    scale = {"huge": 1e20, "tiny": 1e-25}.get(kind, 1.0)
    p, t = (np.float32(x * scale) for x in (p, t))

    def formula(row, i):
        b = as_mp(t[i])
        dot, square = mp.fsum(x * y for x, y in zip(row, b, strict=True)), mp.fsum(x * x for x in row)
        return 1 - dot / mp.sqrt(square * mp.fsum(y * y for y in b))

    value = jl.cosine_distance(p, t, reduction="none")
    slope = np.asarray(jax.grad(lambda p: jl.cosine_distance(p, t, reduction="sum"))(p), np.float64)
    for i, row in enumerate(p):
        exact = formula(as_mp(row), i)
        # The angle is a difference of directions: its relative rounding is eps / sqrt(distance).
        assert ulps(value[i], exact) <= 4 * (1 + 2 / float(mp.sqrt(exact))), (kind, value[i], mp.nstr(exact, 10))
        want = partials(functools.partial(formula, i=i), as_mp(row))
        size = max(abs(w) for w in want)
        bound = 1e-6 * (1 + 1 / float(mp.sqrt(exact)))
        assert all(abs(float(g) - w) <= bound * size for g, w in zip(slope[i], want, strict=True)), (kind, slope[i])


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-30])
def test_cosine_distance_to_itself_is_zero_and_nothing_hides_a_nan(scale):
    p = np.float32(np.random.default_rng(6).normal(size=(50, 7)) * scale)
    for other in (p, 2 * p):
        value, slope = jax.value_and_grad(lambda p, t: jl.cosine_distance(p, t, reduction="sum"))(p, other)
        assert value == 0
        assert not np.any(slope)
    p[0, 0], p[1, 0] = np.nan, np.inf
    value = np.asarray(jl.cosine_distance(p, p[::-1], reduction="none"))
    np.testing.assert_array_equal(np.isnan(value), np.isin(np.arange(50), [0, 1, 48, 49]))


@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-25])
def test_root_mean_squared_error(scale):
    rng = np.random.default_rng(6)
    p, t = (np.float32(rng.normal(size=7) * scale) for _ in range(2))
    exact = mp.sqrt(mp.fsum((mpf(float(a)) - mpf(float(b))) ** 2 for a, b in zip(p, t, strict=True)) / 7)
    assert ulps(jl.root_mean_squared_error(p, t), exact) <= 2
    for got, a, b in zip(jax.grad(jl.root_mean_squared_error)(p, t), p, t, strict=True):
        assert ulps(got, (mpf(float(a)) - mpf(float(b))) / (7 * exact)) <= 3


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-3])
def test_jensen_shannon_of_close_distributions(distance):
    rng = np.random.default_rng(7)
    zp = np.float32(rng.normal(size=(4, 5)))
    zq = np.float32(zp + distance * rng.normal(size=(4, 5)))
    value = jl.jensen_shannon(zp, zq, reduction="none")
    for v, a, b in zip(value, zp, zq, strict=True):
        p, q = ([mp.exp(x - log_sum_exp(as_mp(r))) for x in as_mp(r)] for r in (a, b))
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        exact = mp.fsum(x * mp.log(x / c) + y * mp.log(y / c) for x, y, c in zip(p, q, m, strict=True)) / 2
        k = float(mp.fsum(-x * mp.log(x) for x in p) / mp.sqrt(exact))
        assert ulps(v, exact) <= 4 * (1 + k), (v, mp.nstr(exact, 10), ulps(v, exact), k)


def test_gaussian_kl_near_the_prior():
    s = spread(120, low=1e-18, high=60)
    zero = np.zeros_like(s)[:, None]
    value = jl.gaussian_kl(zero, s[:, None], reduction="none")
    slope = jax.grad(lambda s: jl.gaussian_kl(zero, s, reduction="sum"))(s[:, None])[:, 0]
    for a, v, g in zip(s, value, slope, strict=True):
        a = mpf(float(a))
        assert ulps(v, (mp.exp(a) - 1 - a) / 2) <= 3, (a, v)
        assert ulps(g, (mp.exp(a) - 1) / 2) <= 2, (a, g)


@pytest.mark.parametrize("close", [1.0, 1e-2])
def test_kl_divergences(close):
    rng = np.random.default_rng(8)
    a = rng.normal(size=(5, 6))
    b = a + close * rng.normal(size=(5, 6))
    lp, lt = (np.float32(x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in (a, b))
    t = np.exp(lt).astype(np.float32)
    found = {
        "kl": jl.kl_divergence(lp, t, reduction="none"),
        "log": jl.kl_divergence_with_log_targets(lp, lt, reduction="none"),
        "reverse": jl.reverse_kl_divergence(lp, t, reduction="none"),
    }
    for i in range(5):
        p, s, w = as_mp(lp[i]), as_mp(lt[i]), as_mp(t[i])
        terms = {
            "kl": [(u * mp.log(u), -u * x) for u, x in zip(w, p, strict=True)],
            "log": [(mp.exp(u) * u, -mp.exp(u) * x) for u, x in zip(s, p, strict=True)],
            "reverse": [(mp.exp(x) * x, -mp.exp(x) * mp.log(u)) for u, x in zip(w, p, strict=True)],
        }
        for name, each in terms.items():
            exact = mp.fsum(x + y for x, y in each)
            k = float(mp.fsum(abs(x) + abs(y) for x, y in each) / abs(exact))
            error = ulps(found[name][i], exact)
            assert error <= 4 * (1 + k), (name, found[name][i], mp.nstr(exact, 10), error, k)


def entmax_formula(row, label, alpha):
    """The threshold by bisection, then the definition."""
    a = [(alpha - 1) * x for x in row]
    low, high = max(a) - 1, max(a)
    for _ in range(400):
        middle = (low + high) / 2
        total = mp.fsum((x - middle) ** (1 / (alpha - 1)) for x in a if x > middle)
        low, high = (middle, high) if total >= 1 else (low, middle)
    p = [max(x - low, mpf(0)) ** (1 / (alpha - 1)) for x in a]
    inner = mp.fsum(x * y for x, y in zip(p, row, strict=True))
    return inner - row[label] + (1 - mp.fsum(x**alpha for x in p)) / (alpha * (alpha - 1))


@pytest.mark.parametrize("alpha", [pytest.param(1.25, marks=pytest.mark.exhaustive), 1.5, 1.75])
def test_entmax(alpha):
    rng = np.random.default_rng(9)
    z, y = np.float32(rng.normal(size=(8, 5))), np.arange(8) % 5
    value = jl.entmax(z, y, alpha=alpha, reduction="none")
    slope = jax.grad(lambda z: jl.entmax(z, y, alpha=alpha, reduction="sum"))(z)
    for i, row in enumerate(z):
        exact = entmax_formula(as_mp(row), y[i], mpf(alpha))
        k = float(max(abs(a) for a in row)) / float(exact)
        assert ulps(value[i], exact) <= 4 * (1 + k), (value[i], mp.nstr(exact, 10))
        with mp.workdps(60):
            want = partials(lambda r, i=i: entmax_formula(r, y[i], mpf(alpha)), as_mp(row))
        assert max(abs(float(g) - w) for g, w in zip(slope[i], want, strict=True)) <= 1e-6


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_triplet_margin(p):
    rng = np.random.default_rng(10)
    a, x, n = (np.float32(v) for v in rng.normal(size=(3, 8, 4)))
    value = jl.triplet_margin(a, x, n, p=p, margin=2.0, reduction="none")

    def distance(u, v):
        return mp.fsum(abs(s - t) ** mpf(p) for s, t in zip(as_mp(u), as_mp(v), strict=True)) ** (1 / mpf(p))

    for i in range(8):
        near, far = distance(a[i], x[i]), distance(a[i], n[i])
        exact = max(near - far + 2, mpf(0))
        k = float((near + far + 2) / exact) if exact else 0.0
        assert ulps(value[i], exact) <= 4 * (1 + k), (value[i], mp.nstr(exact, 10))


def test_info_nce():
    rng = np.random.default_rng(11)
    q, k = (np.float32(v) for v in rng.normal(size=(2, 6, 5)))
    value = jl.info_nce(q, k, reduction="none")
    for i in range(6):
        s = [-(as_mp_cosine(q[i], other) - 1) / mpf(float(np.float32(0.1))) for other in k]
        exact = log_sum_exp([-v for v in s]) + s[i]
        cond = float(max(abs(v) for v in s)) / float(exact)
        assert ulps(value[i], exact) <= 8 * (1 + cond), (value[i], mp.nstr(exact, 10))


def as_mp_cosine(a, b):
    a, b = as_mp(a), as_mp(b)
    dot = mp.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / mp.sqrt(mp.fsum(x * x for x in a) * mp.fsum(y * y for y in b))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_lists_and_sequences(scale):
    rng = np.random.default_rng(12)
    z, r = np.float32(scale * rng.normal(size=(5, 4))), rng.integers(0, 3, (5, 4)).astype(np.float32)
    r[:, 0], r[:, 1] = 2, 0  # every list has a pair
    soft = jl.list_softmax(z, r, reduction="none")
    pairs = jl.pairwise_logistic(z, r, reduction="none")
    tokens = jl.token_nll(z, np.arange(5) % 4, reduction="none")
    total = mpf(0)
    for i in range(5):
        s = as_mp(z[i])
        lse = log_sum_exp(s)
        total += lse - s[i % 4]
        assert ulps(soft[i], mp.fsum(mpf(float(w)) * (lse - x) for w, x in zip(r[i], s, strict=True))) <= 4
        each = [softplus(s[b] - s[a]) for a in range(4) for b in range(4) if r[i, a] > r[i, b]]
        k = float(max(abs(x) for x in s))  # the difference of two scores is rounded, and exp magnifies it
        assert ulps(pairs[i], mp.fsum(each) / len(each)) <= 4 + k / 2
    assert ulps(tokens, total) <= 4
