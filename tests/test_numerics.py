"""The exact pieces: their digits, their derivatives to the second order, and the program behind their coefficients."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from coefficients import FITS, coefficients
from exact import spread, ulps
from jax.test_util import check_grads

import jaxloss as jl
from jaxloss.core import formulas, numerics

mpf = mp.mpf

# name: (function, its definition, sample, worst error in ulp)
PIECES = {
    "log1p": (
        numerics.log1p,
        lambda x: mp.log(1 + x),
        np.concatenate([np.abs(spread(200)), np.linspace(0.35, 0.5, 400)]),  # where XLA's own is worst
        2,
    ),
    "log1p_negative": (numerics.log1p, lambda x: mp.log(1 + x), -np.abs(spread(200, high=0.99)), 2),
    "expm1": (numerics.expm1, lambda x: mp.exp(x) - 1, spread(200, high=80), 1.6),
    "expm1_minus": (numerics.expm1_minus, lambda x: mp.exp(x) - 1 - x, spread(200, low=1e-18, high=80), 2.2),
    "tanh": (numerics.tanh, mp.tanh, spread(200, high=20), 1.5),
    "log_cosh": (
        numerics.log_cosh,
        lambda x: mp.log(mp.cosh(x)) if abs(x) < 1e4 else abs(x) - mp.log(2),
        spread(200),
        2,
    ),
    "xlogx_gap": (
        numerics.xlogx_gap,
        lambda u: (1 + u) * mp.log(1 + u) - u,
        np.concatenate([np.abs(spread(100, low=1e-18, high=3)), -np.abs(spread(100, low=1e-18, high=0.99))]),
        4,
    ),
    "softplus": (formulas.softplus, lambda x: mp.log(1 + mp.exp(x)), spread(200, high=80), 2),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_keep_their_digits(name):
    function, definition, x, bound = PIECES[name]
    value = np.asarray(jax.jit(function)(x.astype(np.float32)))
    for a, v in zip(x.astype(np.float32), value, strict=True):
        exact = definition(mpf(float(a)))
        assert ulps(v, exact) <= bound, (float(a), float(v), mp.nstr(exact, 12), ulps(v, exact))


@pytest.mark.parametrize("name", PIECES)
def test_pieces_keep_their_digits_in_float64(name):
    function, definition, x, _ = PIECES[name]
    with jax.enable_x64(True):
        value = np.asarray(jax.jit(function)(x.astype(np.float64)))
    for a, v in zip(x.astype(np.float64), value, strict=True):
        exact = definition(mpf(float(a)))
        assert abs(mpf(float(v)) - exact) <= 2e-14 * abs(exact) + mpf(10) ** -300, (a, v, mp.nstr(exact, 20))


@pytest.mark.parametrize("name", sorted({*PIECES} - {"log1p_negative"}))
def test_pieces_have_gradients_and_hessians_in_every_mode(name):
    function, _, _, _ = PIECES[name]
    with jax.enable_x64(True):
        for x in (-0.7, -0.3, -1e-3, 0.0, 2e-3, 0.31, 0.8, 1.7, 4.0):
            check_grads(function, (np.float64(x),), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_xlogy():
    grid = [(x, y) for x in (0.0, 0.5, 2.0) for y in (0.0, 0.3, np.inf)]
    for x, y in grid:
        value = numerics.xlogy(jnp.float32(x), jnp.float32(y))
        log = np.log(np.float32(y)) if y > 0 else -np.inf
        assert value == (0.0 if x == 0 else np.float32(x) * log), (x, y)
        assert x != 0 or jax.grad(numerics.xlogy, argnums=1)(jnp.float32(x), jnp.float32(y)) == 0
    with jax.enable_x64(True):
        check_grads(numerics.xlogy, (0.7, 0.3), order=2, modes=("fwd", "rev"))


def test_absolute_has_slope_zero_at_zero():
    slopes = jax.vmap(jax.grad(numerics.absolute))(jnp.array([-2.0, -0.0, 0.0, 3.0, jnp.inf]))
    np.testing.assert_array_equal(slopes, [-1.0, 0.0, 0.0, 1.0, 1.0])
    assert jax.grad(jax.grad(numerics.absolute))(1.5) == 0.0


def test_subtract_leaves_nothing_behind():
    rng = np.random.default_rng(0)
    x, y = (np.float32(rng.normal(size=4000) * 10.0 ** rng.integers(-6, 6, 4000)) for _ in range(2))
    difference, residual = jax.jit(numerics.subtract)(x, y)
    exact = x.astype(np.float64) - y.astype(np.float64)
    got = np.asarray(difference, np.float64) + np.asarray(residual, np.float64)
    np.testing.assert_allclose(got, exact, rtol=1e-14, atol=0)
    assert np.max(np.abs(residual)) > 0


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-25, 3e37, 1e-37])
def test_norm_and_unit_of_huge_and_tiny_vectors(scale):
    x = np.float32(np.array([[3.0, 4.0, 0.0], [1.0, 2.0, 2.0]]) * scale)
    length = np.sqrt(np.sum(x.astype(np.float64) ** 2, -1))
    np.testing.assert_allclose(numerics.norm(x, 1)[:, 0], length, rtol=3e-7)
    np.testing.assert_allclose(numerics.unit(x, 1), x / length[:, None], rtol=3e-7)
    slope = jax.grad(lambda x: jnp.sum(numerics.norm(x, 1)))(x)
    np.testing.assert_allclose(slope, x / length[:, None], rtol=3e-7)


@pytest.mark.exhaustive
def test_norm_and_unit_of_the_zero_vector():
    zero = jnp.zeros((2, 3))
    for function in (numerics.norm, numerics.unit):
        assert not np.any(function(zero, 1))
        assert not np.any(jax.jacrev(lambda x, f=function: f(x, 1))(zero))
        assert not np.any(jax.jacfwd(lambda x, f=function: f(x, 1))(zero))
        with jax.enable_x64(True):
            x = np.random.default_rng(0).normal(size=(2, 3))
            check_grads(lambda x, f=function: f(x, 1), (x,), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("name", FITS)
def test_coefficients_are_those_of_their_program(name):
    held = getattr(numerics, name)
    for row, made in zip(held, coefficients(name), strict=True):
        np.testing.assert_allclose(row, made, rtol=1e-9)


def test_differentiable_skips_what_is_not_asked_for():
    f = numerics.differentiable(lambda x, y: x * y, lambda x, y: y, lambda x, y: 1 / jnp.zeros_like(x))
    assert jax.grad(f)(2.0, 3.0) == 3.0
    assert jax.jvp(lambda x: f(x, 3.0), (2.0,), (1.0,))[1] == 3.0  # the infinite slope in y met no zero tangent
    g = numerics.differentiable(lambda x, y: x * y, lambda x, y: y, None)
    assert jax.grad(g, argnums=1)(2.0, 3.0) == 0.0


@pytest.mark.exhaustive
def test_softmax_pieces():
    z = jnp.array([[30.0, 1.0, -jnp.inf, 2.0], [1e4, 1e4, 0.0, -1e4]])
    np.testing.assert_allclose(formulas.softmax(z, 1).sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(formulas.log_sum_exp(z, 1), [30.0, 1e4 + np.log(2)], rtol=1e-6)
    with jax.enable_x64(True):
        x = np.random.default_rng(0).normal(size=(2, 4))
        t = np.random.default_rng(1).dirichlet(np.ones(4), 2)
        y = np.array([1, 3])
        for f in (
            lambda x: formulas.softmax(x, 1),
            lambda x: formulas.log_sum_exp(x, 1),
            lambda x: formulas.label_nll(x, y, 1),
            lambda x: formulas.soft_label_nll(x, t, 1),
        ):
            check_grads(f, (x,), order=2, modes=("rev",))
        check_grads(lambda x, t: formulas.soft_label_nll(x, t, 1), (x, t), order=2, modes=("rev",))


@pytest.mark.exhaustive
@pytest.mark.parametrize("x", [0.0, -2.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_binary_pieces_have_hessians_at_zero_too(x, t):
    with jax.enable_x64(True):
        for f in (
            lambda x, t: formulas.binary_nll(x, t),
            lambda x, t: formulas.weighted_binary_nll(x, t, 2.5),
            lambda x, t: formulas.binary_focal(x, t, 2.0),
            lambda x, t: formulas.binary_focal(x, t, 0.5),
            lambda x, t: formulas.sigmoid(x) * t,
        ):
            check_grads(f, (x, t), order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
            check_grads(lambda x, f=f: f(x, t), (x,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
        check_grads(lambda w: formulas.weighted_binary_nll(x, t, w), (2.5,), order=2, modes=("fwd", "rev"))
        check_grads(lambda g: formulas.binary_focal(x, t, g), (1.5,), order=2, modes=("fwd", "rev"))
        check_grads(lambda n, g: formulas.focal(n, g), (0.3 + x * x, 1.5), order=2, modes=("fwd", "rev"))


RARE = pytest.mark.exhaustive


@pytest.mark.parametrize("classes", [12, *(pytest.param(n, marks=RARE) for n in (5, 64, 130, 512))])
def test_grouped_classes_are_the_plain_sum(classes):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        z, y = 3 * rng.normal(size=(4, classes, 2)), rng.integers(0, classes, (4, 2))
        z[0, :3] = -np.inf
        z[0, y[0, 0], 0] = z[0, y[0, 1], 1] = 1.0
        want = jax.nn.logsumexp(z, axis=1) - np.take_along_axis(z, y[:, None], 1)[:, 0]
        np.testing.assert_allclose(formulas.label_nll(z, y, 1), want, rtol=1e-12)
        slope = jax.grad(lambda z: jnp.sum(formulas.label_nll(z, y, 1)))(z)
        here = np.arange(classes)[None, :, None] == y[:, None]
        np.testing.assert_allclose(slope, jax.nn.softmax(z, axis=1) - here, rtol=1e-10, atol=1e-14)


@jax.jit
def nll_and_slope(z, y):
    value, pull = jax.vjp(lambda z: formulas.label_nll(z, y, 1), z)
    return value, pull(jnp.ones_like(value))[0]


@pytest.mark.parametrize("offset", [-200.0, -70.0, -4.0, 0.0, 50.0, 70.0, 150.0, 3e4])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("classes", [12, 512])
def test_classes_are_exact_at_every_offset(classes, offset, scale):
    """With a shift and without one; float64 and the same float32 logits; confident rows too."""
    rng = np.random.default_rng(1)
    z = (offset + scale * rng.normal(size=(6, classes))).astype(np.float32)
    y = rng.integers(0, classes, 6).astype(np.int32)
    y[:3] = z[:3].argmax(1)
    z[:2, y[:2]] += 3 * scale
    wide = z.astype(np.float64)
    below = np.exp(wide - wide.max(1, keepdims=True))
    below[np.arange(6), y] = 0
    gap = wide.max(1) - wide[np.arange(6), y]
    others, at = below.sum(1), np.exp(-gap)
    value = np.where(gap == 0, np.log1p(others), gap + np.log(others + at))
    gradient = below / (others + at)[:, None]
    gradient[np.arange(6), y] = -others / (others + at)
    near = {"rtol": 6e-7, "atol": 1e-36}
    for rows in (slice(None), slice(0, 1)):  # alone, a row's range decides alone
        found, slope = nll_and_slope(z[rows], y[rows])
        np.testing.assert_allclose(found, value[rows], **near)
        np.testing.assert_allclose(slope, gradient[rows], **near)


def test_one_row_out_of_range_shifts_all():
    z = np.zeros((3, 512), np.float32)
    z[1] = np.linspace(80.0, 100.0, 512)  # its exponentials overflow
    y = np.zeros(3, np.int32)
    far = z[1].astype(np.float64)
    own = np.log(np.sum(np.exp(far - 100))) + 100 - far[0]
    np.testing.assert_allclose(nll_and_slope(z, y)[0], [np.log(512), own, np.log(512)], rtol=2e-7)
    z[1] = np.nan
    assert np.isnan(nll_and_slope(z, y)[0]).tolist() == [False, True, False]
    mapped = jax.jit(jax.vmap(lambda z, y: formulas.label_nll(z, y, 0)))
    np.testing.assert_allclose(mapped(z, y)[::2], np.log(512), rtol=2e-7)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("classes", "offset"), [(12, 0.0), (133, 0.0), (133, 100.0)])  # 133: 7 groups of 19
def test_classes_summed_without_a_shift_have_hessians(classes, offset):
    with jax.enable_x64(True):
        z = offset + np.random.default_rng(2).normal(size=(2, classes))
        y = np.array([z[0].argmax(), 3])
        slopes = jax.grad(lambda z: jnp.sum(formulas.label_nll(z, y, 1)))
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(jax.jit(slopes)(z), p - np.eye(classes)[y], rtol=1e-9, atol=1e-12)
        want = np.zeros((2, classes, 2, classes))
        for row in (0, 1):
            want[row, :, row] = np.diag(p[row]) - np.outer(p[row], p[row])
        for mode in (jax.jacfwd, jax.jacrev):
            np.testing.assert_allclose(jax.jit(mode(slopes))(z), want, rtol=1e-9, atol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("offset", [-2e3, 2e3])
def test_vmapped_rows_out_of_range_have_hessians(offset):
    """vmap computes both branches for every row, also the one that overflows."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        z = np.array([[0.0], [offset]]) + rng.normal(size=(2, 133))
        rows = jax.vmap(lambda z: formulas.label_nll(z, np.int32(3), 0))
        whole = jax.jacrev(jax.grad(lambda z: jnp.sum(rows(z))))(z)
        got = np.stack([whole[i, :, i] for i in (0, 1)])
        p = jax.nn.softmax(z, axis=1)
        want = p[:, :, None] * np.eye(133)[None] - p[:, :, None] * p[:, None, :]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_a_row_of_nothing_is_nan():
    z = jnp.full((1, 3), -jnp.inf)
    assert jnp.isnan(formulas.label_nll(z, jnp.array([0]), 1)[0])
    assert jnp.all(jnp.isnan(formulas.softmax(z, 1)))


ONE_PASS = {
    "sigmoid_cross_entropy": lambda x, t: jl.sigmoid_cross_entropy(x, t),
    "huber": lambda x, t: jl.huber(x, t),
    "log_cosh": lambda x, t: jl.log_cosh(x, t),
    "hinge": lambda x, t: jl.hinge(x, t),
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_value_and_slope_are_one_pass_each(name):
    """Nothing of the size of the inputs is written out, which is what sharing costs on a CPU."""
    x = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    for program in (ONE_PASS[name], jax.value_and_grad(ONE_PASS[name])):
        temporary = jax.jit(program).lower(x, x).compile().memory_analysis().temp_size_in_bytes
        assert temporary < 0.1 * x.size * 4
