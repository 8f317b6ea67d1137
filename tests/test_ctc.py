"""CTC against every path at tiny size and a float64 recursion at real size; and the arithmetic that it uses."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from cases_alignment import merged, weights_of_paths

import jaxloss as jl
from jaxloss.algorithms import ctc as engine
from jaxloss.algorithms import extended
from jaxloss.algorithms.ctc import ctc_alignment
from jaxloss.algorithms.extended import Extended

pytestmark = pytest.mark.usefixtures("quick_compilation")


value_and_slope = jax.jit(
    jax.value_and_grad(lambda z, y, **options: jl.ctc(z, y, **options, reduction="none").sum()),
    static_argnames=("blank", "infeasible"),
)


def by_recursion(logits, labels, blank=0):
    """Value and gradient of one sequence in NumPy float64 and log space (Graves et al. 2006, equations 5 to 16)."""
    z = np.asarray(logits, np.float64)
    steps, states = len(z), 2 * len(labels) + 1
    log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    of_state = np.full(states, blank)
    of_state[1::2] = labels
    skip = np.zeros(states, bool)
    skip[3::2] = of_state[3::2] != of_state[1:-2:2]

    def after(x, from_state):
        moved = np.logaddexp(x, np.append(-np.inf, x[:-1]))
        return np.logaddexp(moved, np.where(from_state, np.append([-np.inf] * 2, x)[: len(x)], -np.inf))

    with np.errstate(invalid="ignore"):
        forward, backward = np.full((2, steps, states), -np.inf)
        now = np.where(np.arange(states) == 0, 0, -np.inf)
        for t in range(steps):
            now = forward[t] = after(now, skip) + log_p[t, of_state]
        # What may go on to state s + 2 is what may come to it: read from the other end.
        now, back = np.where(np.arange(states) == 0, 0, -np.inf), np.append([False] * 2, skip[:1:-1])
        for t in reversed(range(steps)):
            before = after(now, back)
            backward[t] = before[::-1]
            now = before + log_p[t, of_state[::-1]]
        total = np.logaddexp.reduce((forward + backward)[0])
        gradient = np.exp(log_p)
        shares = np.exp(forward + backward - total)
    for s, c in enumerate(of_state):
        gradient[:, c] -= shares[:, s]
    return -total, gradient


def by_enumeration(logits, labels, blank=0):
    """Value and gradient of one sequence from all its alignments."""
    z = np.asarray(logits, np.float64)
    weights, paths = weights_of_paths(z, labels, blank)
    gradient = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    for weight, path in zip(weights, paths, strict=True):
        gradient[np.arange(len(z)), path] -= weight / weights.sum()
    return -np.log(weights.sum()), gradient


# --- The arithmetic -----------------------------------------------------------------------------------------------


def exactly(x):
    return [mpmath.mpf(float(m)) * mpmath.mpf(2) ** int(e) for m, e in zip(x.mantissa, x.exponent, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_logarithm_is_undone_to_an_ulp(dtype):
    with jax.enable_x64(dtype == "float64"), mpmath.workprec(200):
        rng = np.random.default_rng(0)
        x = np.concatenate([-scale * rng.random(40) for scale in (1.0, 1e2, 1e4, 1e5)] + [[0.0, 3.0, 90.0, 1e4]])
        x = x.astype(dtype)
        low = (np.spacing(np.abs(x)) * rng.uniform(-0.5, 0.5, x.size)).astype(dtype)
        for dropped in (np.zeros_like(low), low):
            found = exactly(extended.from_log(jnp.asarray(x), jnp.asarray(dropped)))
            truth = [mpmath.exp(mpmath.mpf(float(a)) + float(b)) for a, b in zip(x, dropped, strict=True)]
            worst = max(abs(f / t - 1) for f, t in zip(found, truth, strict=True))
            assert worst < 1.5 * np.finfo(dtype).eps, float(worst)
        back = extended.to_log(extended.from_log(jnp.asarray(x)))
        np.testing.assert_allclose(back, x, rtol=3 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_products_and_shares_keep_their_digits_far_beyond_floats(dtype):
    with jax.enable_x64(dtype == "float64"), mpmath.workprec(200):
        rng = np.random.default_rng(1)
        a, b = (extended.from_log(jnp.asarray(x, dtype)) for x in rng.uniform(-4e4, 0, (2, 50)))
        b = Extended(b.mantissa, jnp.where(jnp.arange(50) < 40, a.exponent - jnp.arange(50) + 20, b.exponent))
        left, right = exactly(a), exactly(b)
        close = 1.1 * np.finfo(dtype).eps
        for found, truth in (
            (extended.normalised(extended.add(a, b)), [x + y for x, y in zip(left, right, strict=True)]),
            (extended.normalised(extended.multiply(a, b)), [x * y for x, y in zip(left, right, strict=True)]),
        ):
            assert max(abs(f / t - 1) for f, t in zip(exactly(found), truth, strict=True)) < close
            assert np.all((found.mantissa >= 1) & (found.mantissa < 2))
        total = extended.sum_over(a, 0)
        assert abs(exactly(jax.tree.map(lambda x: x[None], total))[0] / sum(left) - 1) < 5 * close
        shares = extended.ratio_as_float(a, b)
        for share, x, y in zip(shares[:40], left, right, strict=False):
            assert abs(mpmath.mpf(float(share)) / (x / y) - 1) < 2 * close
        for found, x in zip(exactly(extended.inverse(a)), left, strict=True):
            assert abs(found * x - 1) < close
        as_floats = extended.as_float(Extended(a.mantissa, -jnp.arange(50)))
        assert np.array_equal(as_floats, a.mantissa * 0.5 ** np.arange(50))


def test_zero_is_neutral_and_absorbs():
    a = extended.from_log(jnp.asarray([-5e4, 0.0, 300.0, -jnp.inf]))
    zero = extended.zeros_like(a.mantissa)
    same = extended.normalised(extended.add(a, zero))
    assert np.array_equal(same.mantissa, a.mantissa)
    assert np.array_equal(same.exponent, a.exponent)
    for nothing in (extended.multiply(a, zero), extended.multiply(zero, zero), extended.from_float(zero.mantissa)):
        assert np.array_equal(extended.normalised(nothing).exponent, zero.exponent)
        assert np.all(extended.to_log(nothing) == -np.inf)
        assert not np.any(extended.ratio_as_float(nothing, a))
    assert not np.any(extended.ratio_as_float(a, zero))
    assert not np.any(extended.inverse(zero).mantissa)
    assert not np.any(extended.as_float(zero))
    assert extended.to_log(extended.from_log(jnp.asarray([-1e9])))[0] == -np.inf
    moved = extended.shifted(a, 1, 0)
    assert np.array_equal(moved.exponent, [extended.ZERO_EXPONENT, *a.exponent[:-1]])
    assert np.array_equal(extended.shifted(moved, -1, 0).mantissa, [*a.mantissa[:-1], 0])
    again = extended.unpacked(extended.packed(a))
    assert np.array_equal(again.exponent, a.exponent)
    assert np.array_equal(again.mantissa, a.mantissa)


# --- The loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 1, 3])
def test_value_and_gradient_are_those_of_all_alignments(blank):
    rng = np.random.default_rng(blank)
    z = 2 * rng.normal(size=(6, 5, 4)).astype(np.float32)
    classes = [c for c in range(4) if c != blank]
    labels = np.array(
        [[classes[i] for i in row] for row in [(0, 0, 1), (0, 1, 2), (2, 2, 2), (1, 0, 1), (1, 1, 0), (0, 0, 0)]]
    )
    frames, lengths = np.array([5, 4, 5, 3, 5, 2]), np.array([3, 3, 3, 3, 2, 0])
    padded = np.where(np.arange(5)[None, :, None] < frames[:, None, None], z, np.nan)
    garbage = np.where(np.arange(3) < lengths[:, None], labels, -1)
    options = {"logit_lengths": jnp.asarray(frames), "label_lengths": jnp.asarray(lengths), "blank": blank}
    _, slope = value_and_slope(jnp.asarray(padded), jnp.asarray(garbage), **options)
    values = jl.ctc(jnp.asarray(padded), jnp.asarray(garbage), **options, reduction="none")
    for i in range(6):
        value, gradient = by_enumeration(z[i, : frames[i]], labels[i, : lengths[i]], blank)
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        np.testing.assert_allclose(slope[i, : frames[i]], gradient, atol=5e-7)
        assert not np.any(slope[i, frames[i] :])


@pytest.mark.parametrize(
    ("frames", "labels", "classes", "scale"), [(2000, 200, 30, 2.0), (301, 40, 32, 50.0), (2000, 5, 5, 0.0)]
)
def test_long_sequences_keep_their_digits(frames, labels, classes, scale):
    rng = np.random.default_rng(frames)
    z = (scale * rng.normal(size=(frames, classes))).astype(np.float32)
    y = rng.integers(1, classes, labels)
    value, slope = value_and_slope(jnp.asarray(z)[None], jnp.asarray(y)[None])
    want, gradient = by_recursion(z, y)
    np.testing.assert_allclose(value, want, rtol=2e-6)
    np.testing.assert_allclose(slope[0], gradient, atol=1e-5)
    np.testing.assert_allclose(np.sum(slope[0], axis=-1), 0, atol=2e-6)


def test_weights_that_are_made_again_in_every_step_are_the_same(monkeypatch):
    monkeypatch.setattr(engine, "_KEPT", 0)
    z, y = np.random.default_rng(0).normal(size=(31, 6)).astype(np.float32), np.array([1, 5, 5, 2, 3])

    def nll(z):
        return engine.ctc_nll(z, jnp.asarray(y), jnp.ones(31, bool), jnp.asarray(5), 0)

    value, slope = by_recursion(z, y)
    np.testing.assert_allclose(jax.jit(nll)(z), value, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(nll))(z), slope, atol=1e-6)


def test_many_classes_and_repeats_gather_in_their_columns():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 60, 2000)).astype(np.float32)
    y = rng.choice([3, 5, 5, 1999, 7], (1, 20))  # 20 * 2000 is beyond one product
    _, slope = value_and_slope(jnp.asarray(z), jnp.asarray(y))
    np.testing.assert_allclose(slope[0], by_recursion(z[0], y[0])[1], atol=1e-6)


def test_a_sequence_without_alignment_is_infinite_and_pulls_at_nothing():
    z = np.zeros((4, 3, 4), np.float32)
    z[3, 1, 1:] = -np.inf  # only a blank in the middle: two different labels do, three do not
    y = np.array([[1, 2, 3], [1, 1, 2], [1, 2, 1], [1, 2, 3]])
    lengths = np.array([3, 3, 2, 3])
    for infeasible, worth in (("inf", np.inf), ("zero", 0.0)):
        options = {"label_lengths": jnp.asarray(lengths), "infeasible": infeasible}
        values = jl.ctc(jnp.asarray(z), jnp.asarray(y), **options, reduction="none")
        _, slope = value_and_slope(jnp.asarray(z), jnp.asarray(y), **options)
        assert np.array_equal(np.isin(values, worth), [False, True, False, True]), values
        assert np.isfinite(values[0])
        pulls = np.any(np.asarray(slope), axis=(1, 2))
        assert np.array_equal(pulls, [True, False, True, False])


def test_ruled_out_classes_are_only_ruled_out():
    z = np.array([[[0.0, 0.5, -np.inf], [0.0, -np.inf, -np.inf], [-np.inf, 2.0, 0.0]]], np.float32)
    value, slope = value_and_slope(jnp.asarray(z), jnp.array([[1]]))
    with np.errstate(divide="ignore"):
        want, gradient = by_enumeration(z[0], [1])
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope[0], gradient, atol=1e-7)
    curve = jax.jvp(jax.grad(lambda z: jl.ctc(z, jnp.array([[1]]))), (jnp.asarray(z),), (jnp.ones_like(z),))[1]
    assert np.all(np.isfinite(curve))


def test_nothing_to_say_and_nothing_to_hear():
    z = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    silent = jl.ctc(z, jnp.zeros((2, 0), int), reduction="none")
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(silent, -np.log(p[..., 0]).sum(-1), rtol=1e-6)
    assert np.array_equal(jl.ctc(z[:, :0], jnp.zeros((2, 0), int), reduction="none"), [0, 0])
    assert np.array_equal(jl.ctc(z[:, :0], jnp.ones((2, 1), int), reduction="none"), [np.inf, np.inf])
    for spoken in (0, 1):
        assert value_and_slope(jnp.asarray(z[:, :0]), jnp.ones((2, spoken), int))[1].shape == (2, 0, 3)
    nobody = jl.ctc(
        z, jnp.ones((2, 2), int), logit_lengths=jnp.array([0, 0]), label_lengths=jnp.array([0, 1]), reduction="none"
    )
    assert np.array_equal(nobody, [0, np.inf])


def test_a_confident_sequence_is_not_negative():
    """optax gives -8e-8 here. Each frame may be off by an ulp of 1."""
    rng = np.random.default_rng(0)
    for gap in (5.0, 12.0, 20.0, 40.0):
        z = gap * np.eye(4)[[0, 1, 0, 2, 2, 0]] + 0.1 * rng.normal(size=(8, 6, 4))
        values = jl.ctc(jnp.asarray(z, jnp.float32), jnp.tile(jnp.array([1, 2]), (8, 1)), reduction="none")
        assert np.all(values >= 0)
        for i in range(8):
            with mpmath.workprec(300):
                p = [[mpmath.exp(float(np.float32(x))) for x in row] for row in z[i]]
                total = sum(
                    mpmath.fprod(row[c] / sum(row) for row, c in zip(p, path, strict=True))
                    for path in itertools.product(range(4), repeat=6)
                    if merged(path, 0) == (1, 2)
                )
                truth = float(-mpmath.log(total))
            assert abs(float(values[i]) - truth) <= 1e-6 * truth + 1e-6


def test_the_blank_is_no_label_and_a_class():
    z = jnp.zeros((2, 3, 4))
    values = jl.ctc(z, jnp.array([[1, 0], [1, 2]]), reduction="none")
    assert np.array_equal(np.isnan(values), [True, False])
    slope = jax.grad(lambda z: jl.ctc(z, jnp.array([[1, 0], [1, 2]]), reduction="sum"))(z)
    assert np.all(np.isnan(slope[0]))
    assert np.all(np.isfinite(slope[1]))
    behind = jl.ctc(z, jnp.array([[1, 0], [1, 2]]), label_lengths=jnp.array([1, 2]))
    assert np.isfinite(behind)
    for blank in (-1, 4):
        with pytest.raises(ValueError, match=r"`blank` must be one of the 4 classes, in \[0, 4\), got -?\d"):
            jl.ctc(z, jnp.array([[1, 2], [1, 2]]), blank=blank)
    assert np.all(np.isnan(jl.ctc(z.at[0, 1, 2].set(jnp.nan), jnp.array([[1, 2], [1, 2]]), reduction="none")[0]))


def test_second_derivatives_are_those_of_the_recursion_in_float64():
    rng = np.random.default_rng(3)
    z, dz = rng.normal(size=(2, 2, 9, 4))
    y = np.array([[1, 1, 2], [3, 2, 3]])
    f32 = jax.jvp(
        jax.grad(lambda z: jl.ctc(z, jnp.asarray(y), reduction="sum")),
        (jnp.asarray(z, jnp.float32),),
        (jnp.asarray(dz, jnp.float32),),
    )[1]
    step = 1e-5
    for i in range(2):
        sides = [by_recursion(z[i] + sign * step * dz[i], y[i])[1] for sign in (-1, 1)]
        np.testing.assert_allclose(f32[i], (sides[1] - sides[0]) / (2 * step), atol=2e-5)


def test_more_batch_axes_are_more_sequences():
    rng = np.random.default_rng(4)
    z, y = rng.normal(size=(2, 3, 7, 5)).astype(np.float32), rng.integers(1, 5, (2, 3, 2))
    lengths = np.array([[7, 6, 5], [4, 7, 3]])
    whole = jl.ctc(z, y, logit_lengths=lengths, reduction="none")
    flat = jl.ctc(z.reshape(6, 7, 5), y.reshape(6, 2), logit_lengths=lengths.reshape(6), reduction="none")
    np.testing.assert_allclose(whole, flat.reshape(2, 3), rtol=1e-6)
    assert np.isfinite(jl.ctc(z[0, 0], y[0, 0]))


# --- The best path ------------------------------------------------------------------------------------------------


def test_the_best_path_is_the_best_of_all():
    rng = np.random.default_rng(5)
    z = 2 * rng.normal(size=(40, 5, 3)).astype(np.float32)
    y = rng.integers(0, 2, (40, 3))  # the last class is the blank
    frames, lengths = rng.integers(3, 6, 40), rng.integers(0, 4, 40)
    padded = np.where(np.arange(5)[None, :, None] < frames[:, None, None], z, np.nan)
    path, value = jax.jit(ctc_alignment, static_argnames="blank")(
        padded, y, logit_lengths=frames, label_lengths=lengths, blank=2
    )
    feasible = skipped = 0
    for i in range(40):
        weights, paths = weights_of_paths(z[i, : frames[i]].astype(float), y[i, : lengths[i]], 2)
        if not len(weights):
            assert value[i] == -np.inf
            assert np.all(path[i] == -1)
            continue
        feasible += 1
        said = np.asarray(path[i])
        assert np.all(said[frames[i] :] == -1)
        spoken = np.where(said >= 0, y[i][said], 2)[: frames[i]]
        assert np.array_equal(spoken, paths[np.argmax(weights)])
        np.testing.assert_allclose(value[i], np.log(weights.max()), rtol=1e-5)
        used = said[said >= 0]
        assert np.array_equal(np.unique(used), np.arange(lengths[i]))
        assert np.all(np.diff(used) >= 0)
        skipped += np.any((said[1:] > said[:-1]) & (said[:-1] >= 0))
    assert 20 <= feasible < 40
    assert skipped > 3


def test_the_alignment_of_nothing_and_its_errors():
    path, value = ctc_alignment(jnp.zeros((2, 3)), jnp.zeros((0,), int))
    assert np.array_equal(path, [-1, -1])
    np.testing.assert_allclose(value, -2 * np.log(3), rtol=1e-6)
    assert ctc_alignment(jnp.zeros((0, 3)), jnp.ones((1,), int))[1] == -np.inf
    with pytest.raises(ValueError, match=r"`logits` \[2, 3, 4\] must be \[..., T, V\] and `labels` \[3, 2\]"):
        ctc_alignment(jnp.zeros((2, 3, 4)), jnp.ones((3, 2), int))
    with pytest.raises(ValueError, match="`blank` 4 must be a class"):
        ctc_alignment(jnp.zeros((2, 3, 4)), jnp.ones((2, 2), int), blank=4)
