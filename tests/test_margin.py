"""Pairs and class vectors by angle: what the laws do not know of. The truth is mathematics at known angles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")


def at(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def test_small_angles_keep_their_digits():
    angle = 1e-4  # in float32 the cosine is 1
    x, y = at(np.zeros(1)), at(np.full(1, angle))
    value, slope = jax.value_and_grad(jl.cosine_embedding)(x, y, np.ones(1))
    np.testing.assert_allclose(value, 1 - np.cos(angle), rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, -np.sin(angle)]], rtol=1e-6, atol=1e-12)


def test_the_cosine_of_a_zero_vector_is_zero():
    x, y = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    loss = jax.value_and_grad(lambda x: jnp.sum(jl.cosine_embedding(x, y, np.array([1.0, -1.0]), margin=-0.25)))
    np.testing.assert_array_equal(
        jl.cosine_embedding(x, y, np.array([1.0, -1.0]), margin=-0.25, reduction="none"), [1, 0.25]
    )
    assert not np.any(loss(x)[1])


def own_logit(loss, angles, margin, scale=2.0):
    """The label's logit, from the loss of two classes whose vectors are the first axis and the second."""
    labels = np.zeros(len(angles), np.int32)
    nll = loss(at(angles), labels, np.eye(2, dtype=np.float32), margin=margin, scale=scale, reduction="none")
    return np.sin(angles) - np.log(np.expm1(np.asarray(nll, np.float64))) / scale


def test_arc_face_widens_every_angle_and_falls_beyond_the_turn():
    margin, angles = 0.5, np.array([0.0, 0.3, 1.2, 2.0, 2.6, 2.7, 3.1])
    want = np.where(angles <= np.pi - margin, np.cos(angles + margin), np.cos(angles) - margin * np.sin(margin))
    np.testing.assert_allclose(own_logit(jl.arc_face, angles, margin), want, atol=1e-5)
    np.testing.assert_allclose(own_logit(jl.cos_face, angles, 0.2), np.cos(angles) - 0.2, atol=1e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, np.pi / 2, np.pi])
def test_arc_face_has_a_finite_slope_at_every_end(angle):
    margin, scale = 0.5, 4.0
    weights = np.eye(2, dtype=np.float32)

    def loss(x):
        return jl.arc_face(x, np.zeros(1, np.int32), weights, margin=margin, scale=scale)

    slope = jax.grad(loss)(at(np.array([angle])))
    assert np.all(np.isfinite(slope))
    if 0 < angle < 3:
        # Along the circle: the label's logit falls by sin(angle + margin), the other's rises by cos(angle).
        own, other = np.exp(scale * np.cos(angle + margin)), np.exp(scale * np.sin(angle))
        want = other / (own + other) * scale * (np.sin(angle + margin) + np.cos(angle))
        along = np.asarray(slope, np.float64) @ [-np.sin(angle), np.cos(angle)]
        np.testing.assert_allclose(along, [want], rtol=1e-5)


def test_what_does_not_fit_is_refused_in_words():
    x, y, w = jnp.ones((5, 3)), jnp.arange(5) % 2, jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"`class_weights` \[4, 2\] must be \[C, D\] beside `embeddings` \[..., D\]"):
        jl.arc_face(x, y, w[:, :2])
    with pytest.raises(TypeError, match="`class_weights` must be floating"):
        jl.cos_face(x, y, w.astype(int))
    with pytest.raises(ValueError, match=r"`is_same` \[5, 1\] must be `x` \[5, 3\] without its axis -1: \[5\]"):
        jl.contrastive_pair(x, x, jnp.ones((5, 1)))
    with pytest.raises(ValueError, match=r"`x` \[5, 3\] and `y` \[4, 3\] must have one shape"):
        jl.cosine_embedding(x, w, jnp.ones(5))
