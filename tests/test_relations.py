"""Relations between losses, each from the mathematics of both: one of them wrong breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
P, T = (jnp.asarray(RNG.normal(size=20), jnp.float32) for _ in range(2))
Z, W = (jnp.asarray(2 * RNG.normal(size=(20, 6)), jnp.float32) for _ in range(2))
Y = jnp.asarray(RNG.integers(0, 6, 20))
Q = jax.nn.softmax(W)
ONE_HOT = jax.nn.one_hot(Y, 6)


def same(left, right, argument, rtol=2e-5, atol=2e-6):
    """Two functions agree in value and gradient."""
    for a, b in zip(jax.value_and_grad(left)(argument), jax.value_and_grad(right)(argument), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_huber_lies_between_the_parabola_and_the_line():
    same(lambda p: jl.huber(p, T, delta=1e3), lambda p: jl.half_squared_error(p, T), P)
    same(lambda p: jl.huber(p, T, delta=1e-6) / 1e-6, lambda p: jl.absolute_error(p, T), P)
    same(lambda p: jl.huber(p, T, delta=0.3), lambda p: 0.3 * jl.smooth_l1(p, T, beta=0.3), P)
    same(lambda p: 2 * jl.half_squared_error(p, T), lambda p: jl.squared_error(p, T), P)


def test_hubers_slope_in_delta():
    r = np.abs(np.asarray(P) - np.asarray(T))
    slope = jax.grad(lambda d: jl.huber(P, T, delta=d))(0.4)
    np.testing.assert_allclose(slope, np.mean(np.maximum(r - 0.4, 0)), rtol=1e-5)


def test_log_cosh_far_out_is_the_absolute_error():
    far = T + 50.0
    np.testing.assert_allclose(jl.log_cosh(far, T), jl.absolute_error(far, T) - np.log(2), rtol=1e-6)


def test_root_mean_squared_error_squared():
    np.testing.assert_allclose(jl.root_mean_squared_error(P, T) ** 2, jl.squared_error(P, T), rtol=1e-6)


def test_focal_at_gamma_0_is_cross_entropy():
    same(lambda z: jl.softmax_focal(z, Y, gamma=0.0), lambda z: jl.softmax_cross_entropy(z, Y), Z)
    hard = (T > 0).astype(jnp.float32)
    same(lambda x: jl.sigmoid_focal(x, hard, gamma=0.0), lambda x: jl.sigmoid_cross_entropy(x, hard), P)
    same(lambda x: jl.sigmoid_focal(x, hard, alpha=0.5), lambda x: jl.sigmoid_focal(x, hard) / 2, P)


def test_two_classes_are_one_question():
    logits = jnp.stack([jnp.zeros_like(P), P], -1)
    yes = T > 0
    np.testing.assert_allclose(
        jl.softmax_cross_entropy(logits, yes.astype(int)), jl.sigmoid_cross_entropy(P, yes), rtol=1e-6
    )
    np.testing.assert_allclose(
        jl.binary_cross_entropy(jax.nn.sigmoid(P), yes), jl.sigmoid_cross_entropy(P, yes), rtol=1e-5
    )
    np.testing.assert_allclose(
        jl.softmax_focal(logits, yes.astype(int), gamma=1.5), jl.sigmoid_focal(P, yes, gamma=1.5), rtol=1e-5
    )


def test_labels_are_one_hot_targets():
    same(lambda z: jl.softmax_cross_entropy(z, Y), lambda z: jl.softmax_cross_entropy_with_soft_labels(z, ONE_HOT), Z)
    smooth = 0.9 * ONE_HOT + 0.1 / 6
    same(
        lambda z: jl.softmax_cross_entropy(z, Y, label_smoothing=0.1),
        lambda z: jl.softmax_cross_entropy_with_soft_labels(z, smooth),
        Z,
    )
    same(lambda z: jl.list_softmax(z, ONE_HOT), lambda z: jl.softmax_cross_entropy(z, Y), Z)


def test_class_weights_are_weights():
    c = jnp.asarray(RNG.uniform(0.5, 2.0, 6), jnp.float32)
    same(
        lambda z: jl.softmax_cross_entropy(z, Y, class_weights=c, z_loss=0.1),
        lambda z: jl.softmax_cross_entropy(z, Y, weights=c[Y], z_loss=0.1),
        Z,
    )


def test_kl_and_entropy_make_cross_entropy():
    entropy = -jnp.mean(jnp.sum(Q * jnp.log(Q), -1))
    same(
        lambda z: jl.kl_divergence(jax.nn.log_softmax(z), Q) + entropy,
        lambda z: jl.softmax_cross_entropy_with_soft_labels(z, Q),
        Z,
    )
    log_q = jax.nn.log_softmax(W)
    same(
        lambda z: jl.kl_divergence(jax.nn.log_softmax(z), Q),
        lambda z: jl.kl_divergence_with_log_targets(jax.nn.log_softmax(z), log_q),
        Z,
    )
    np.testing.assert_allclose(
        jl.reverse_kl_divergence(jax.nn.log_softmax(Z), Q),
        jl.kl_divergence(log_q, jax.nn.softmax(Z)),
        rtol=1e-5,
    )


def test_jensen_shannon_is_symmetric_and_bounded():
    np.testing.assert_allclose(jl.jensen_shannon(Z, W), jl.jensen_shannon(W, Z), rtol=1e-6)
    np.testing.assert_allclose(jl.jensen_shannon(Z, W, beta=0.3), jl.jensen_shannon(W, Z, beta=0.7), rtol=1e-5)
    apart = jl.jensen_shannon(jnp.array([[0.0, -jnp.inf]]), jnp.array([[-jnp.inf, 0.0]]))
    np.testing.assert_allclose(apart, np.log(2), rtol=1e-6)
    p, q = jax.nn.softmax(Z), jax.nn.softmax(W)
    m = jnp.log((p + q) / 2)
    halves = (jl.kl_divergence(m, p) + jl.kl_divergence(m, q)) / 2
    np.testing.assert_allclose(jl.jensen_shannon(Z, W), halves, rtol=1e-5)


def test_sparsemax_is_entmax_of_order_2():
    same(lambda z: jl.sparsemax(z, Y), lambda z: jl.entmax(z, Y, alpha=2.0), Z)
    np.testing.assert_allclose(
        jl.entmax(Z, Y, alpha=1.0001), jl.softmax_cross_entropy(Z, Y), rtol=2e-3
    )  # the limit, at what float32 leaves of 1 / (alpha - 1)
    lead = 3 * ONE_HOT
    assert jl.sparsemax(lead, Y) == 0
    assert jl.entmax(lead, Y) == 0


def test_info_nce_is_a_cross_entropy():
    q = Z / jnp.linalg.norm(Z, axis=-1, keepdims=True)
    k = W / jnp.linalg.norm(W, axis=-1, keepdims=True)
    same(
        lambda q: jl.info_nce(q, k, temperature=0.5, similarity="dot"),
        lambda q: jl.softmax_cross_entropy(q @ k.T, jnp.arange(20), temperature=0.5),
        q,
    )
    np.testing.assert_allclose(jl.info_nce(Z, W), jl.info_nce(q, k, similarity="dot"), rtol=1e-5)


def test_a_pair_is_a_binary_question():
    scores = jnp.stack([P, T], -1)
    np.testing.assert_allclose(
        jl.pairwise_logistic(scores, jnp.array([[1.0, 0.0]] * 20)),
        jl.sigmoid_cross_entropy(P - T, jnp.ones(20)),
        rtol=1e-6,
    )


def test_cosine_distance_is_half_the_square_of_unit_vectors_apart():
    u = Z / jnp.linalg.norm(Z, axis=-1, keepdims=True)
    v = W / jnp.linalg.norm(W, axis=-1, keepdims=True)
    np.testing.assert_allclose(jl.cosine_distance(Z, W), 0.5 * 6 * jl.squared_error(u, v), rtol=1e-5)


def test_triplets_of_the_zero_anchor():
    zero = jnp.zeros_like(Z)
    far = jl.triplet_margin(zero, zero, W, margin=100.0, reduction="none")
    np.testing.assert_allclose(far, 100.0 - np.linalg.norm(W, axis=-1), rtol=1e-6)


def test_infinite_logits_are_certainty():
    x = jnp.array([jnp.inf, jnp.inf, -jnp.inf, -jnp.inf, jnp.inf, -jnp.inf])
    t = jnp.array([1.0, 0.0, 0.0, 1.0, 1e-30, 1.0 - 2**-24])
    for options in ({}, {"positive_weight": 2.0}):
        value, pull = jax.vjp(lambda x, o=options: jl.sigmoid_cross_entropy(x, t, reduction="none", **o), x)
        np.testing.assert_array_equal(value, [0, np.inf, 0, np.inf, np.inf, np.inf])
        w = options.get("positive_weight", 1.0)
        np.testing.assert_allclose(pull(jnp.ones(6))[0], [0, 1, 0, -w, 1, -w], rtol=1e-6)


def test_hinge_at_the_margin_does_not_pull():
    scores, signs = jnp.array([1.0, 0.5, -1.0, 3.0]), jnp.array([1.0, 1.0, -1.0, -1.0])
    for k, want in ((0, [0.0, -1.0, 0.0, 1.0]), (1, [0.0, -0.5, 0.0, -3.0])):
        got = jax.grad(lambda *a: jl.hinge(*a, reduction="sum"), k)(scores, signs)
        np.testing.assert_array_equal(got, want)
