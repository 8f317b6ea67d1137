"""Bad input, case by case as users write it: each has an error in words, or a documented value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")

B = 5
P = jnp.linspace(-1.0, 1.0, B)
T = jnp.linspace(0.0, 1.0, B)
Z = jnp.asarray(np.random.default_rng(0).normal(size=(B, 3)), jnp.float32)
Y = jnp.array([0, 1, 2, 1, 0])


def refused(error, *words):
    return pytest.raises(error, match=".*".join(words))


def test_a_column_against_a_row():
    with refused(ValueError, r"`predictions` \[5\]", r"`targets` \[5, 1\]", "one shape; broadcast explicitly"):
        jl.huber(P, T[:, None])
    with refused(ValueError, r"`logits` \[5, 1\]", r"`targets` \[5\]"):
        jl.sigmoid_cross_entropy(P[:, None], T)


def test_errors_speak_in_our_words_alone():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        jl.huber(jnp.ones(12), jnp.ones((12, 1)))
    said = str(caught.value).split("\n")[0]
    assert said == "`predictions` [12] and `targets` [12, 1] must have one shape; broadcast explicitly"


def test_a_row_mask_on_a_square_value():
    square = jnp.ones((B, B))
    with refused(ValueError, r"`where` \[5\]", r"\[5, 5\]", r"did you mean where\[:, None\]\?"):
        jl.squared_error(square, square, where=T > 0)
    assert jl.squared_error(square, 0 * square, where=(T > 0)[:, None]) == 1.0


def test_integers_where_a_model_should_speak():
    with refused(TypeError, "`predictions` must be floating, got int32", "astype"):
        jl.squared_error(Y, T)
    with refused(TypeError, "`logits` must be floating, got complex64"):
        jl.softmax_cross_entropy(Z.astype(complex), Y)


def test_integer_and_bool_targets_are_numbers():
    hits = jnp.array([0, 1, 1, 0, 1])
    want = jl.sigmoid_cross_entropy(P, hits.astype(jnp.float32))
    for dtype in (jnp.int8, jnp.uint8, jnp.int32, bool):
        assert jl.sigmoid_cross_entropy(P, hits.astype(dtype)) == want, dtype
        assert jl.squared_error(P.astype(jnp.bfloat16), hits.astype(dtype)).dtype == jnp.float32
    assert jl.hinge(P, (2 * hits - 1).astype(jnp.int8)) == jl.hinge(P, 2.0 * hits - 1)  # uint8 cannot hold -1


def test_float_labels_and_masks():
    with refused(TypeError, "`labels` must be integer class indices, got float32"):
        jl.softmax_cross_entropy(Z, Y.astype(jnp.float32))
    with refused(TypeError, "`where` must be bool, got float32", "weights"):
        jl.huber(P, T, where=T)
    with refused(TypeError, "`weights` must be numbers, got bool", "where"):
        jl.huber(P, T, weights=T > 0)


def test_masks_and_weights_larger_than_the_value():
    for tail in ({"where": jnp.ones((B, B), bool)}, {"weights": jnp.ones((2, B))}):
        with refused(ValueError, "must be a scalar or fit the unreduced value", r"\[5\]"):
            jl.huber(P, T, **tail)
    with refused(ValueError, r"`where` \[5, 3\]", r"\[5\]"):  # classes are not entries: that is `valid`
        jl.softmax_cross_entropy(Z, Y, where=jnp.ones((B, 3), bool))


@pytest.mark.parametrize("label", [-1, -100, 3, 7])
def test_labels_out_of_range_never_wrap(label):
    labels = Y.at[2].set(label)
    value, slope = jax.value_and_grad(jl.softmax_cross_entropy)(Z, labels)
    assert jnp.isnan(value)
    assert jnp.all(jnp.isnan(slope[2]))  # a select would have left the gradient finite
    kept = jl.softmax_cross_entropy(Z, labels, where=labels == Y)
    assert jnp.isfinite(kept)


def test_the_ignored_index_of_pytorch():
    labels = jnp.array([0, -100, 2, -100, 0])
    value, slope = jax.value_and_grad(jl.softmax_cross_entropy)(Z.at[1].set(jnp.nan), labels, where=labels != -100)
    kept = jnp.array([0, 2, 4])
    np.testing.assert_allclose(value, jl.softmax_cross_entropy(Z[kept], labels[kept]), rtol=1e-6)
    assert not np.any(slope[jnp.array([1, 3])])


def test_wrong_axes_and_shapes_of_labels():
    with refused(ValueError, r"`labels` \[5\] must be `logits` \[5, 3\] without its class axis 0: \[3\]"):
        jl.softmax_cross_entropy(Z, Y, axis=0)
    with refused(ValueError, r"`axis` 2 is out of range for `logits` \[5, 3\], which has 2 axes"):
        jl.softmax_cross_entropy(Z, Y, axis=2)
    with refused(ValueError, r"`labels` \[5, 1\]"):
        jl.softmax_cross_entropy(Z, Y[:, None])
    with refused(ValueError, "no class along axis"):
        jl.softmax_cross_entropy(jnp.zeros((B, 0)), Y)
    with refused(ValueError, r"`class_weights` \[2\] must be a scalar or have one entry for each of the 3 classes"):
        jl.softmax_cross_entropy(Z, Y, class_weights=jnp.ones(2))


def test_a_hyper_parameter_is_one_number():
    with refused(ValueError, r"`delta` must be a scalar, got \[5\]", "must be an input of the loss"):
        jl.huber(P, T, delta=T)


def test_sequences_of_the_wrong_length():
    z, y = jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), int)
    with refused(ValueError, "`logits`", r"\[2, 4, 3\]", "`labels`", r"\[2, 5\]", "number of steps: 4 is not 5"):
        jl.token_nll(z, jnp.zeros((2, 5), int))
    with refused(ValueError, r"`lengths` \[3\] must have one length for each sequence of the batch \[2\]"):
        jl.token_nll(z, y, lengths=jnp.array([1, 2, 3]))
    with refused(TypeError, "`lengths` must be integer, got float32"):
        jl.token_nll(z, y, lengths=jnp.array([1.0, 2.0]))
    with refused(ValueError, "one batch"):
        jl.token_nll(z, y[:1])
    assert jnp.isnan(jl.token_nll(z, y, lengths=jnp.array([4, 5])))
    assert jnp.isnan(jl.token_nll(z, y.at[0, 1].set(3)))


def test_what_is_no_array():
    for wrong in ([1.0] * B, None, {"a": P}):
        with pytest.raises(TypeError, match="`predictions` must be an array, got"):
            jl.huber(wrong, T)
    with refused(TypeError, "`delta` must be an array, got str"):
        jl.frames.pointwise(lambda p, d: p * d, p=P, scalars={"delta": "wide"})


def test_empty_arrays_and_scalars():
    value, slope = jax.value_and_grad(jl.huber)(P[:0], T[:0])
    assert (value, slope.shape) == (0.0, (0,))
    assert jl.huber(1.0, 3.0) == 1.5
    assert jl.softmax_cross_entropy(Z[0], 1).shape == ()


def test_a_formula_of_the_wrong_shape_is_named():
    with refused(ValueError, r"the formula returned \[\] where one value for each of \[5\] was due"):
        jl.frames.pointwise(lambda p, t: jnp.sum(p - t), predictions=P, targets=T)


def test_weights_are_differentiable():
    weights = jnp.array([1.0, 2.0, 0.0, 0.5, 3.0])
    slope = jax.grad(lambda w: jl.squared_error(P, T, weights=w))(weights)
    values = (np.asarray(P) - np.asarray(T)) ** 2
    want = (values - np.sum(values * weights) / np.sum(weights)) / np.sum(weights)
    np.testing.assert_allclose(slope, want, rtol=1e-5)


def test_no_float32_copy_of_half_precision_logits():
    z = jax.ShapeDtypeStruct((256, 4096), jnp.bfloat16)
    y = jax.ShapeDtypeStruct((256,), jnp.int32)
    compiled = jax.jit(jl.softmax_cross_entropy).lower(z, y).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 256 * 4096 * 4 / 8
