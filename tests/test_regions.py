"""Dice and Tversky losses: exact on good images, defined on empty ones, and what the peers' formulas say elsewhere."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest
from exact import logistic, partials, spread, ulps

import jaxloss as jl
from jaxloss.algorithms.overlap import inverse_square_weights


def data(shape, classes=None, seed=0):
    rng = np.random.default_rng(seed)
    if classes is None:
        return 3 * rng.normal(size=shape), (rng.random(shape) < 0.4).astype(float)
    return 3 * rng.normal(size=(*shape, classes)), np.eye(classes)[rng.integers(0, classes, shape)]


def single(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


# --- Peers --------------------------------------------------------------------------------------------------------


def test_optax_says_the_same_of_one_region():
    z, t = single(*data((3, 4, 5)))
    for smooth in (1.0, 0.25):
        want = optax.losses.binary_dice_loss(z, t, smooth=smooth)
        np.testing.assert_allclose(jl.dice(z, t, smooth=smooth, reduction="none"), want, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.3, "beta": 0.7, "smooth": 0.01}])
def test_optax_says_the_same_of_classes(options):
    z, t = single(*data((2, 4, 5), classes=3))
    want = optax.losses.dice_loss(z, t, reduction="none", **options)
    found = jl.multiclass_tversky(z, t, reduction="none", **options)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    if not options:
        np.testing.assert_allclose(jl.multiclass_dice(z, t, reduction="none"), want, rtol=1e-5)


def test_half_of_what_others_add_to_their_fraction():
    z, t = data((4, 5))
    p, added = 1 / (1 + np.exp(-z)), 0.5
    of_others = 1 - (2 * (p * t).sum() + added) / (p.sum() + t.sum() + added)
    np.testing.assert_allclose(jl.dice(*single(z, t), smooth=added / 2), of_others, rtol=1e-5)


@pytest.mark.exhaustive
def test_keras_itself(monkeypatch):
    """Its `alpha` is the price of what is there and not predicted; it adds 1e-7 to the denominator alone."""
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    z, t = single(*data((4, 5)))
    p = jax.nn.sigmoid(z)
    np.testing.assert_allclose(jl.dice(z, t, smooth=0.0), float(keras.losses.dice(t, p)), rtol=1e-5)
    want = float(keras.losses.tversky(t, p, alpha=0.7, beta=0.3))
    np.testing.assert_allclose(jl.tversky(z, t, alpha=0.3, beta=0.7, smooth=0.0), want, rtol=1e-5)


# --- Exactness ----------------------------------------------------------------------------------------------------


def exact_binary(z, t, alpha, beta, smooth):
    p, q = [logistic(mp.mpf(x)) for x in z], [logistic(-mp.mpf(x)) for x in z]
    missed = mp.fsum(alpha * a * (1 - u) + beta * b * u for a, b, u in zip(p, q, t, strict=True))
    met = mp.fsum(a * u for a, u in zip(p, t, strict=True))
    return missed / (met + missed + smooth)


def exact_classes(z, t, pixels, smooth):
    """The mean over the classes of dice; z and t are flat."""
    classes = len(z) // pixels
    missed, met = [mp.mpf(0)] * classes, [mp.mpf(smooth)] * classes
    for i in range(pixels):
        e = [mp.exp(mp.mpf(x)) for x in z[i * classes : (i + 1) * classes]]
        for c in range(classes):
            p, u = e[c] / mp.fsum(e), mp.mpf(t[i * classes + c])
            missed[c] += (p * (1 - u) + (1 - p) * u) / 2
            met[c] += p * u
    return mp.fsum(m / (h + m) for m, h in zip(missed, met, strict=True)) / classes


def worst(got, want):
    return max(ulps(g, w) for g, w in zip(np.ravel(got), want, strict=True))


def sure_images(pixels=5):
    """Logits of sure and right, of sure and wrong, and of mixed pixels, beside their targets."""
    rng = np.random.default_rng(3)
    for size in (2.0, 12.0, 40.0, 80.0):
        t = np.array([1.0, 0.0, 1.0, 0.0, 0.0])[:pixels]
        right = np.float32(size * rng.uniform(0.9, 1.0, pixels) * (2 * t - 1))
        for z in (right, -right, np.where(np.arange(pixels) == 1, -right, right), np.float32(0.1) * right):
            yield z.astype(np.float32), t


@pytest.mark.parametrize("prices", [(0.5, 0.5), (0.25, 1.0)], ids=["dice", "tversky"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_every_digit_of_sure_images(prices, smooth):
    alpha, beta = prices

    def loss(z, t):
        return jl.tversky(z, t, alpha=alpha, beta=beta, smooth=smooth, axis=-1)

    both = jax.jit(jax.value_and_grad(loss))
    for z, t in sure_images():
        value, slopes = both(*single(z, t))
        row = [mp.mpf(float(x)) for x in z]
        assert ulps(value, exact_binary(row, t, alpha, beta, smooth)) <= 4, (z, value)
        want = partials(lambda row, t=t: exact_binary(row, t, alpha, beta, smooth), row)
        assert worst(slopes, want) <= 8, (z, slopes)


def test_every_digit_of_one_pixel():
    loss = jax.jit(jax.vmap(jax.value_and_grad(lambda z, t: jl.dice(z[None], t[None], axis=0)), in_axes=(0, None)))
    x = spread(60, low=1e-6, high=85.0)
    for t in (0.0, 1.0, 0.25):
        values, slopes = loss(jnp.asarray(x), jnp.float32(t))
        for z, value, slope in zip(x, values, slopes, strict=True):
            assert ulps(value, exact_binary([float(z)], [t], 0.5, 0.5, 1)) <= 4, (z, t, value)
            (want,) = partials(lambda row, t=t: exact_binary(row, [t], 0.5, 0.5, 1), [mp.mpf(float(z))])
            # A soft target's own slope changes its sign, and is relative to its two parts.
            part = logistic(mp.mpf(float(z))) * logistic(-mp.mpf(float(z))) / 2
            assert ulps(slope, want) <= 8 or abs(float(slope) - want) <= 4e-7 * part, (z, t, slope)


def class_images(pixels=3, classes=3):
    rng = np.random.default_rng(5)
    for size in (1.0, 8.0, 30.0):
        label = rng.integers(0, classes, pixels)
        t = np.eye(classes)[label]
        # Multiples of 1/8: their differences are exact, so that nothing but our own rounding is measured.
        z = np.round(8 * rng.normal(size=(pixels, classes))) / 8
        right = z + size * t
        wrong = right + 2 * size * np.roll(t, 1, axis=-1) * (np.arange(pixels) == 1)[:, None]
        soft = 0.75 * t + 0.25 / classes
        yield from ((right, t), (wrong, t), (right, soft), (np.round(z), t))


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_every_digit_of_sure_classes(smooth):
    pixels, classes = 3, 3

    def loss(z, t):
        return jl.multiclass_dice(z, t, smooth=smooth, image_axes=0)

    both = jax.jit(jax.value_and_grad(loss))
    forward = jax.jit(jax.vmap(lambda z, t, d: jax.jvp(lambda z: loss(z, t), (z,), (d,))[1], in_axes=(None, None, 0)))
    units = jnp.eye(pixels * classes, dtype=jnp.float32).reshape(-1, pixels, classes)
    for z, t in class_images():
        z, t = np.float32(z), np.float32(t)
        value, slopes = both(*single(z, t))
        flat, targets = [mp.mpf(float(x)) for x in np.ravel(z)], [float(x) for x in np.ravel(t)]
        assert ulps(value, exact_classes(flat, targets, pixels, smooth)) <= 4, (z, value)
        want = partials(lambda row, u=targets: exact_classes(row, u, pixels, smooth), flat)
        hard = np.all(t % 1 == 0)
        for found in (slopes, forward(*single(z, t), units)):
            # Soft targets, and classes that pull with and against each other, have slopes that cross 0.
            limit = 5e-7 * np.abs(np.array(want, float).reshape(z.shape)).max(-1, keepdims=True)
            error = np.abs(np.ravel(found) - np.array(want, float)).reshape(z.shape)
            assert np.all(error <= limit), (z, t, found)
            assert not hard or worst(found, want) <= 16, (z, found)


def test_a_perfect_image_has_a_loss_and_a_slope():
    """1 - coefficient is 0 in float32 from logits of 17 on, and so is its slope."""
    z = jnp.array([20.0, 20.0, -20.0, -20.0])
    t = jnp.array([1.0, 1.0, 0.0, 0.0])
    value, slopes = jax.value_and_grad(lambda z: jl.dice(z, t, axis=0))(z)
    np.testing.assert_allclose(value, 4 * np.exp(-20.0) / 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(slopes, np.array([-1.0, -1.0, 1.0, 1.0]) * np.exp(-20.0) / 2 / 3, rtol=1e-6)
    assert optax.losses.dice_loss(z[None, :, None], t[None, :, None])[0] == 0  # what would be noise is not compared


@pytest.mark.exhaustive
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_every_mode_on_perfect_empty_and_single_images(smooth):
    loss = jax.jit(functools.partial(jl.dice, axis=-1, smooth=smooth))
    curve = jax.jit(jax.hessian(lambda z, t: jl.dice(z, t, axis=-1, smooth=smooth)))
    reverse = jax.jit(jax.jacrev(jax.jacrev(lambda z, t: jl.dice(z, t, axis=-1, smooth=smooth))))
    for z in ([30.0, -30.0, -30.0], [-60.0] * 3, [0.0] * 3, [90.0] * 3, [np.inf, -np.inf, 0.0], [np.inf, 1.0, -2.0]):
        for t in ([1.0, 0.0, 0.0], [0.0] * 3, [1.0] * 3):
            a, b = single(np.array(z), np.array(t))
            assert 0 <= loss(a, b) <= 1
            hessian = curve(a, b)
            assert np.all(np.isfinite(hessian)), (z, t, hessian)
            np.testing.assert_allclose(reverse(a, b), hessian, rtol=1e-5, atol=1e-7)
            if np.all(np.isfinite(a)) and abs(np.array(z)).max() < 50:

                def plain(z, t):
                    p = 1 / (1 + jnp.exp(-z))
                    return 1 - (jnp.sum(p * t) + smooth) / (jnp.sum(p + t) / 2 + smooth)

                with jax.enable_x64():
                    want = jax.hessian(plain)(jnp.asarray(z, float), jnp.asarray(t, float))
                np.testing.assert_allclose(hessian, want, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
def test_the_curvature_of_sure_classes():
    """Forward over reverse against float64, where a class has all but 1e-3, 1e-9, or less than all others."""
    z = np.array([[8.0, 1.0, 0.5], [0.5, 24.0, 2.0], [-8.0, 0.25, 0.125], [1.0, 1.0, 1.0]])
    t, along = np.eye(3)[[0, 1, 1, 2]], np.random.default_rng(0).normal(size=z.shape)

    def plain(z):
        p = jax.nn.softmax(z)
        return jnp.mean(1 - (jnp.sum(p * t, 0) + 1) / (jnp.sum(p + t, 0) / 2 + 1))

    def curve(loss, z, along):
        return jax.jvp(jax.grad(loss), (z,), (along,))[1]

    with jax.enable_x64():
        want = curve(plain, jnp.asarray(z), jnp.asarray(along))
    found = curve(lambda z: jl.multiclass_dice(z, jnp.asarray(t, jnp.float32), image_axes=0), *single(z, along))
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-14)


def test_nothing_there_and_nothing_predicted_is_a_match():
    z, t = jnp.full((2, 2), -jnp.inf), jnp.zeros((2, 2))
    for smooth in (0.0, 1.0):
        value, slopes = jax.value_and_grad(lambda z, s=smooth: jl.dice(z, t, smooth=s))(z)
        assert value == 0
        assert not np.any(slopes)
    # What is predicted all the same is all wrong; only what is added to both makes it better to predict less.
    value, slopes = jax.value_and_grad(lambda z: jl.dice(z, t, smooth=0.0))(jnp.zeros((2, 2)))
    assert value == 1
    assert not np.any(slopes)
    assert np.all(jax.grad(lambda z: jl.dice(z, t))(jnp.zeros((2, 2))) > 0)
    of_absent = jl.multiclass_dice(jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.eye(3)[:1], image_axes=0, smooth=0.0)
    assert np.isfinite(of_absent)


def test_half_precision_is_summed_in_float32():
    n = 2**15
    z, t = jnp.full(n, -2.0, jnp.bfloat16), jnp.asarray(np.arange(n) % 2, jnp.bfloat16)
    p = 1 / (1 + np.exp(2.0))
    want = 1 - (p * n / 2 + 1) / (p * n / 2 + n / 4 + 1)
    np.testing.assert_allclose(jl.dice(z, t, axis=0), want, rtol=1e-5)
    classes = jnp.stack([jnp.zeros_like(z), z], axis=-1)
    of_classes = jl.multiclass_dice(classes, jnp.stack([1 - t, t], axis=-1), image_axes=0, reduction="none")
    np.testing.assert_allclose(of_classes[1], want, rtol=1e-5)


# --- Relations ----------------------------------------------------------------------------------------------------


def test_relations_between_the_losses():
    z, t = single(*data((3, 4, 5)))
    np.testing.assert_array_equal(jl.dice(z, t, smooth=0.3), jl.tversky(z, t, smooth=0.3))
    p = jax.nn.sigmoid(z)
    union = jnp.sum(p + t - p * t, axis=(1, 2))
    of_jaccard = 1 - jnp.sum(p * t, axis=(1, 2)) / union
    found = jl.tversky(z, t, alpha=1.0, beta=1.0, smooth=0.0, reduction="none")
    np.testing.assert_allclose(found, of_jaccard, rtol=1e-5)
    # Two classes are one question: the second class's log-odds are the difference.
    two, both = jnp.stack([jnp.sin(z), z + jnp.sin(z)], axis=-1), jnp.stack([1 - t, t], axis=-1)
    options = {"alpha": 0.2, "beta": 0.9, "reduction": "none"}
    np.testing.assert_allclose(
        jl.multiclass_tversky(two, both, **options)[:, 1], jl.tversky(z, t, **options), rtol=1e-5
    )
    # A false pixel and a missed one change places with prediction and target.
    hard = jnp.where(z > 0, jnp.inf, -jnp.inf)
    there = jnp.where(t > 0, jnp.inf, -jnp.inf)
    swapped = jl.tversky(there, (z > 0), alpha=0.9, beta=0.2)
    np.testing.assert_allclose(jl.tversky(hard, t > 0, alpha=0.2, beta=0.9), swapped, rtol=1e-6)


def test_targets_may_be_bool_or_integer():
    z, t = data((3, 4))
    want = jl.dice(*single(z, t))
    for kind in (bool, np.int32, np.uint8):
        np.testing.assert_array_equal(jl.dice(jnp.asarray(z, jnp.float32), t.astype(kind)), want)


# --- What exists --------------------------------------------------------------------------------------------------


def test_pixels_that_do_not_exist():
    z, t = data((2, 3, 4))
    valid = np.random.default_rng(1).random(z.shape) < 0.6
    dirty = single(np.where(valid, z, np.nan), np.where(valid, t, np.nan))
    value, slopes = jax.value_and_grad(lambda z: jl.dice(z, dirty[1], valid=valid))(dirty[0])
    alone = [jl.dice(*single(z[i][valid[i]], t[i][valid[i]]), axis=0) for i in range(2)]
    np.testing.assert_allclose(value, np.mean(alone), rtol=1e-6)
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[~valid])
    nowhere = jl.dice(*dirty, valid=valid & np.array([True, False])[:, None, None], reduction="partial")
    assert nowhere.weight == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["multiclass_dice", "generalized_dice"])
def test_pixels_of_classes_that_do_not_exist(name):
    loss = getattr(jl, name)
    z, t = data((2, 3, 4), classes=3)
    valid = np.random.default_rng(2).random(z.shape[:-1]) < 0.6
    dirty = single(*(np.where(valid[..., None], x, np.nan) for x in (z, t)))
    value, slopes = jax.value_and_grad(lambda z: loss(z, dirty[1], valid=valid))(dirty[0])
    alone = [loss(*single(z[i][valid[i]], t[i][valid[i]]), image_axes=0) for i in range(2)]
    np.testing.assert_allclose(value, np.mean(alone), rtol=1e-6)
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[~valid])
    nowhere = loss(*dirty, valid=valid & np.array([True, False])[:, None, None], reduction="partial")
    assert nowhere.weight == (1 if name == "generalized_dice" else 3)
    with pytest.raises(ValueError, match=r"`valid`.*\[2, 3, 4, 3\]"):
        loss(*single(z, t), valid=np.ones(z.shape, bool))


def test_an_excluded_class_keeps_its_place_in_the_softmax():
    z, t = single(*data((2, 3, 4), classes=3))
    each = jl.multiclass_dice(z, t, reduction="none")
    found = jl.multiclass_dice(z, t, where=jnp.arange(3)[None] > 0)
    np.testing.assert_allclose(found, jnp.mean(each[:, 1:]), rtol=1e-6)
    # Only an image of which nothing is kept may hold anything.
    dirty = z.at[1].set(jnp.nan)
    kept = jnp.array([[True, False, True], [False, False, False]])
    value, slopes = jax.value_and_grad(lambda z: jl.multiclass_dice(z, t, where=kept))(dirty)
    np.testing.assert_allclose(value, (each[0, 0] + each[0, 2]) / 2, rtol=1e-6)
    assert np.all(np.isfinite(slopes))


def test_axes_may_stand_anywhere():
    z, t = single(*data((2, 3, 4), classes=3))
    first = [jnp.moveaxis(x, -1, 1) for x in (z, t)]
    for loss in (jl.multiclass_dice, jl.generalized_dice):
        want = loss(z, t, reduction="none")
        np.testing.assert_allclose(loss(*first, axis=1, reduction="none"), want, rtol=1e-6)
        outside = [jnp.moveaxis(x, -1, 0) for x in (z, t)]
        np.testing.assert_allclose(loss(*outside, axis=0, reduction="none"), want, rtol=1e-6)
        whole = loss(z.reshape(1, 6, 4, 3), t.reshape(1, 6, 4, 3), reduction="none")[0]
        np.testing.assert_allclose(loss(z, t, image_axes=(0, 1, 2), reduction="none"), whole, rtol=1e-6)
        with pytest.raises(ValueError, match=r"`image_axes` \(0, 5\) must name axes of `logits` without its class"):
            loss(z, t, image_axes=(0, 5))
    volumes = single(*data((2, 2, 3, 4), classes=3))
    assert jl.multiclass_dice(*volumes, image_axes=(1, 2, 3), reduction="none").shape == (2, 3)
    assert jl.dice(*single(*data((2, 2, 3, 4))), axis=(1, 2, 3), reduction="none").shape == (2,)


# --- Generalized dice ---------------------------------------------------------------------------------------------


def sudre(p, t, smooth=0.0):
    """Section 2.1, of the classes that are there."""
    there = t.sum(0) > 0
    w = np.where(there, 1 / np.where(there, t.sum(0), 1) ** 2, 0) if there.any() else np.ones(t.shape[1])
    w = w / w[w > 0].mean()
    return 1 - 2 * ((w * (p * t).sum(0)).sum() + smooth) / ((w * (p + t).sum(0)).sum() + 2 * smooth)


def test_an_absent_class_has_no_weight_of_its_own():
    z, t = data((40,), classes=4)
    t = np.where(t[:, 3:] > 0, np.eye(4)[0], t)  # nothing is of class 3
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    for smooth in (0.0, 1.0):
        found = jl.generalized_dice(*single(z, t), image_axes=0, smooth=smooth)
        np.testing.assert_allclose(found, sudre(p, t, smooth), rtol=1e-5)
    nothing = jl.generalized_dice(*single(z, 0 * t), image_axes=0)
    np.testing.assert_allclose(nothing, sudre(p, 0 * t, 1.0), rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(jl.generalized_dice, 1)(*single(z, 0 * t), image_axes=0)))


@pytest.mark.exhaustive
def test_weights_have_mean_one_and_keep_to_float32():
    sizes = jnp.array([[1e-20, 2e-20, 0.0, 1e-20], [1e7, 1e3, 1e7, 0.0], [0.0, 0.0, 0.0, 0.0]])
    got = inverse_square_weights(sizes)
    for row, found in zip(np.asarray(sizes, float), got, strict=True):
        w = np.where(row > 0, 1 / np.where(row > 0, row, 1) ** 2, 0)
        want = w / w[w > 0].mean() if w.any() else np.ones(4)
        np.testing.assert_allclose(found, want, rtol=1e-6)
    assert np.all(np.isfinite(jax.jacobian(inverse_square_weights)(sizes)))


def test_without_smooth_the_scale_of_the_targets_of_all_classes_is_none_of_its_business():
    """Each image twice over is the same image."""
    z, t = single(*data((12,), classes=3))
    twice = jnp.concatenate([z, z]), jnp.concatenate([t, t])
    once = jl.generalized_dice(z, t, image_axes=0, smooth=0.0)
    np.testing.assert_allclose(jl.generalized_dice(*twice, image_axes=0, smooth=0.0), once, rtol=1e-5)


# --- Cost ---------------------------------------------------------------------------------------------------------


def test_classes_need_few_copies_of_the_logits():
    shape = jax.ShapeDtypeStruct((2, 32, 32, 21), jnp.float32)
    program = jax.jit(jax.value_and_grad(jl.multiclass_dice)).lower(shape, shape).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 3 * 4 * np.prod(shape.shape)
