"""`reduce` and `Mean`: the meaning of the tail, with numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl


def test_numbers_by_hand():
    values = jnp.array([1.0, 2.0, 4.0, jnp.nan])
    tail = {"where": jnp.array([True, True, True, False]), "weights": jnp.array([2.0, 0.5, 0.0, jnp.nan])}
    assert jl.reduce(values, **tail) == 3.0 / 2.5
    assert jl.reduce(values, **tail, reduction="sum") == 3.0
    np.testing.assert_array_equal(jl.reduce(values, **tail, reduction="none"), [2.0, 1.0, 0.0, 0.0])
    part = jl.reduce(values, **tail, reduction="partial")
    assert (part.total, part.weight, part.coupled) == (3.0, 2.5, False)


def test_nothing_valid_is_zero_with_zero_gradient():
    def mean(values, weights, where):
        return jl.reduce(values, weights=weights, where=where)

    for values, weights, where in (
        (jnp.full(3, jnp.nan), jnp.full(3, jnp.nan), jnp.zeros(3, bool)),
        (jnp.ones(3), jnp.zeros(3), jnp.ones(3, bool)),
        (jnp.zeros(0), jnp.zeros(0), jnp.zeros(0, bool)),
    ):
        value, (slope, _) = jax.value_and_grad(mean, argnums=(0, 1))(values, weights, where)
        assert value == 0
        assert not np.any(slope)


def test_half_precision_is_counted_in_float32():
    values = jnp.ones(5000, jnp.bfloat16)  # in bfloat16 the count would stop at 256
    assert jl.reduce(values, reduction="sum") == 5000
    assert jl.reduce(values, reduction="partial").weight == 5000
    assert jl.reduce(values, where=jnp.ones(5000, bool), reduction="partial").weight == 5000
    assert jl.reduce(values).dtype == jnp.float32


def test_present_takes_away_and_shares():
    values = jnp.array([6.0, 2.0, jnp.inf])
    absent = jnp.array([True, True, False])
    assert jl.reduce(values, present=absent) == 4.0
    share = jnp.array([3.0, 1.0, 0.0])
    assert jl.reduce(values, present=share, where=absent) == 2.0
    weights = jnp.array([1.0, 2.0, 5.0])
    assert jl.reduce(values, present=share, where=absent, weights=weights) == (6.0 + 4.0) / (3.0 + 2.0)


def test_masks_and_weights_of_the_wrong_kind_are_refused():
    values = jnp.ones((4, 3))
    for tail, error, words in (
        ({"where": jnp.ones((4, 3))}, TypeError, "`where` must be bool"),
        ({"where": jnp.ones(4, bool)}, ValueError, r"where\[:, None\]"),
        ({"weights": jnp.ones(3)}, ValueError, r"weights\[None, :\]"),
        ({"where": jnp.ones((4, 4), bool)}, ValueError, r"`where` \[4, 4\].*\[4, 3\]"),
        ({"where": jnp.ones((2, 4, 3), bool)}, ValueError, r"`where` \[2, 4, 3\]"),
        ({"weights": jnp.ones((4, 3), bool)}, TypeError, "`weights` must be numbers, got bool"),
        ({"weights": jnp.ones((4, 3), complex)}, TypeError, "`weights` must be real"),
        ({"reduction": "avg"}, ValueError, "`reduction` must be 'mean', 'sum', 'none' or 'partial', got 'avg'"),
    ):
        with pytest.raises(error, match=words):
            jl.reduce(values, **tail)
    for tail in ({"where": True}, {"weights": 2}, {"where": jnp.ones((4, 1), bool)}, {"weights": jnp.ones((1, 3))}):
        assert jl.reduce(values, **tail) == 1.0


def test_mean_merges_scales_and_refuses_to_be_added():
    left, right = jl.Mean(jnp.array(6.0), jnp.array(2.0)), jl.Mean(jnp.array(1.0), jnp.array(5.0), coupled=True)
    whole = left.merge(right)
    assert (whole.total, whole.weight, whole.coupled, whole.value) == (7.0, 7.0, True, 1.0)
    assert (3 * left).value == 9.0
    assert (left * 3).weight == 2.0
    nothing = jl.Mean.zeros_like(right)
    assert (nothing.value, nothing.coupled) == (0.0, True)
    assert right.merge(nothing).value == right.value
    for wrong in (lambda: left + right, lambda: sum([left, right]), lambda: left + 1.0):
        with pytest.raises(TypeError, match="merge joins shards of one loss"):
            wrong()
    with pytest.raises(TypeError, match=r"multiply their `\.value`"):
        left * right


def test_mean_is_a_pytree():
    part = jl.Mean(jnp.arange(3.0), jnp.ones(3), coupled=True)
    doubled = jax.jit(lambda m: jax.tree.map(lambda x: 2 * x, m))(part)
    assert doubled.coupled
    np.testing.assert_array_equal(doubled.total, [0.0, 2.0, 4.0])
    total = jax.lax.scan(lambda carry, m: (carry.merge(m), None), jl.Mean.zeros_like(jax.tree.map(jnp.sum, part)), part)
    assert total[0].value == 1.0
