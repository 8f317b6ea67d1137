"""soft_dtw against every alignment at tiny size and the float64 recursion at real size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_sequence import alignments

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")


def every_alignment(x, y, gamma):
    """The value, the gradient in x, and the derivative in gamma."""
    paths = list(alignments(len(x) - 1, len(y) - 1))
    cost = np.array([sum(((x[i] - y[j]) ** 2).sum() for i, j in path) for path in paths])
    p = np.exp(-(cost - cost.min()) / gamma)
    log_z = np.log(p.sum()) - cost.min() / gamma
    p = p / p.sum()
    slope = np.zeros_like(x)
    for path, share in zip(paths, p, strict=True):
        for i, j in path:
            slope[i] += 2 * share * (x[i] - y[j])
    return -gamma * log_z, slope, (p[p > 0] * np.log(p[p > 0])).sum()


def recursion(x, y, gamma):
    """The value and the gradient in x by Cuturi and Blondel's two algorithms, in float64."""
    n, m = len(x), len(y)
    d = np.zeros((n + 2, m + 2))
    d[1:-1, 1:-1] = ((x[:, None] - y[None]) ** 2).sum(-1)
    r = np.full((n + 2, m + 2), np.inf)
    r[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            z = -np.array([r[i - 1, j - 1], r[i - 1, j], r[i, j - 1]]) / gamma
            r[i, j] = d[i, j] - gamma * (z.max() + np.log(np.exp(z - z.max()).sum()))
    value = r[n, m]
    r[n + 1, :], r[:, m + 1], r[n + 1, m + 1] = -np.inf, -np.inf, value
    e = np.zeros((n + 2, m + 2))
    e[n + 1, m + 1] = 1
    for j in reversed(range(1, m + 1)):
        for i in reversed(range(1, n + 1)):
            for a, b in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
                e[i, j] += e[a, b] * np.exp((r[a, b] - r[i, j] - d[a, b]) / gamma)
    e = e[1:-1, 1:-1]
    return value, 2 * (e.sum(1)[:, None] * x - e @ y)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("gamma", [1.0, 0.1, 1e-6, 100.0])
@pytest.mark.parametrize(("n", "m"), [(4, 3), (1, 4), (3, 1), (1, 1)])
def test_every_alignment(n, m, gamma):
    x, y = draw(n, (3, n, 2), (3, m, 2))

    def f(x, gamma):
        return jl.soft_dtw(x, jnp.asarray(y), gamma=gamma, reduction="none")

    value = f(x, gamma)
    slope, in_gamma = jax.grad(lambda x, gamma: f(x, gamma).sum(), (0, 1))(jnp.asarray(x), jnp.float32(gamma))
    want = [every_alignment(a.astype(float), b.astype(float), gamma) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(value, [w[0] for w in want], rtol=2e-6, atol=1e-6 * gamma)
    np.testing.assert_allclose(slope, [w[1] for w in want], atol=2e-5)
    np.testing.assert_allclose(in_gamma, sum(w[2] for w in want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 1000.0])
def test_real_size(gamma):
    x, y = (np.cumsum(a, axis=1) for a in draw(1, (2, 120, 1), (2, 100, 1)))
    value, slope = jax.value_and_grad(lambda x: jl.soft_dtw(x, y, gamma=gamma, reduction="sum"))(jnp.asarray(x))
    want = [recursion(a.astype(float), b.astype(float), gamma) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(value, sum(w[0] for w in want), rtol=2e-6)
    largest = max(np.abs(w[1]).max() for w in want)
    # Where many alignments compete, values that are not kept near the path are off by 6e-6.
    np.testing.assert_allclose(slope, np.stack([w[1] for w in want]), atol=1e-6 * largest)


def test_lengths():
    x, y = draw(2, (4, 5, 2), (4, 4, 2))
    n, m = np.array([5, 2, 1, 3]), np.array([2, 4, 1, 0])
    dirty_x = np.where((np.arange(5) >= n[:, None])[..., None], np.nan, x)
    dirty_y = np.where((np.arange(4) >= m[:, None])[..., None], np.nan, y)
    lengths = {"prediction_lengths": jnp.asarray(n), "target_lengths": jnp.asarray(m)}
    value = jl.soft_dtw(dirty_x, dirty_y, reduction="none", **lengths)
    want = [every_alignment(x[i, : n[i]].astype(float), y[i, : m[i]].astype(float), 1.0) for i in range(3)]
    np.testing.assert_allclose(value, [*(w[0] for w in want), 0], rtol=2e-6)
    np.testing.assert_allclose(jl.soft_dtw(dirty_x, dirty_y, **lengths), np.mean([w[0] for w in want]), rtol=2e-6)
    slope = jax.grad(lambda x: jl.soft_dtw(x, dirty_y, reduction="sum", **lengths))(jnp.asarray(dirty_x))
    for i in range(3):
        np.testing.assert_allclose(slope[i, : n[i]], want[i][1], atol=2e-5)
    assert not np.any(slope[3])
    assert jl.soft_dtw(x[:, :0], y) == 0


@pytest.mark.exhaustive
def test_second_derivatives_and_vmap():
    with jax.enable_x64(True):
        x, y = (a.astype(float) for a in draw(3, (2, 4, 2), (2, 3, 2)))

        def f(x, gamma):
            return jl.soft_dtw(x, y, gamma=gamma, reduction="sum")

        dx, gamma, dg = draw(4, x.shape)[0].astype(float), 0.7, 0.3
        gradient = jax.jit(jax.grad(f, (0, 1)))
        forward = jax.jvp(gradient, (x, gamma), (dx, dg))[1]
        inner = jax.grad(lambda x, gamma: jnp.vdot(gradient(x, gamma)[0], dx) + gradient(x, gamma)[1] * dg, (0, 1))
        sides = [gradient(x + s * 1e-4 * dx, gamma + s * 1e-4 * dg) for s in (-2, -1, 1, 2)]
        for got, again, a, b, c, d in zip(forward, inner(x, gamma), *sides, strict=True):
            np.testing.assert_allclose(got, (a - 8 * b + 8 * c - d) / 12e-4, atol=1e-8)
            np.testing.assert_allclose(again, got, atol=1e-11)
        each = jax.vmap(lambda x, y: jax.grad(lambda x: jl.soft_dtw(x, y))(x))(x, y)
        np.testing.assert_allclose(each, gradient(x, 1.0)[0], atol=1e-12)


def test_refused_in_words():
    with pytest.raises(ValueError, match="one last axis, of features"):
        jl.soft_dtw(jnp.ones((2, 3, 1)), jnp.ones((2, 4, 2)))
    with pytest.raises(ValueError, match="one batch"):
        jl.soft_dtw(jnp.ones((2, 3, 1)), jnp.ones((3, 4, 1)))
