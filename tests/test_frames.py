"""What single frames promise beyond the laws: absence, coupling, shared inputs, halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss.core import frames

pytestmark = pytest.mark.usefixtures("quick_compilation")

S = jnp.array([[2.0, 1.0, 0.0], [1.0, 3.0, 2.0], [0.5, 0.2, 0.1]])
R = jnp.array([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def test_a_list_without_a_pair_is_absent():
    values = jl.pairwise_logistic(S, R, reduction="none")
    assert values[1] == 0
    part = jl.pairwise_logistic(S, R, reduction="partial")
    assert part.weight == 2
    np.testing.assert_allclose(part.value, (values[0] + values[2]) / 2, rtol=1e-6)


def test_a_list_without_a_valid_item_is_absent():
    valid = jnp.array([[True, True, False], [False, False, False], [True, True, True]])
    for loss in (jl.list_softmax, jl.pairwise_logistic):
        part = loss(jnp.where(valid, S, jnp.nan), R, valid=valid, reduction="partial")
        assert part.weight == 2
        slope = jax.grad(lambda s, loss=loss: loss(s, R, valid=valid))(jnp.where(valid, S, jnp.inf))
        assert np.all(np.isfinite(slope))
        assert not np.any(np.where(valid, 0, slope))


def test_valid_and_where_together():
    """A masked row may have no valid class at all; the others keep theirs."""
    where = jnp.array([True, False, True])
    valid = jnp.array([[True, True, False], [False, False, False], [True, False, True]])
    z, y = jnp.where(valid, S, jnp.nan), jnp.array([0, 1, 2])
    value, slope = jax.value_and_grad(lambda z: jl.softmax_cross_entropy(z, y, valid=valid, where=where))(z)
    rows = [jl.softmax_cross_entropy(S[i][valid[i]], label) for i, label in ((0, 0), (2, 1))]
    np.testing.assert_allclose(value, (rows[0] + rows[1]) / 2, rtol=1e-6)
    assert np.all(np.isfinite(slope))
    assert not np.any(np.where(valid & where[:, None], 0, slope))


def test_infinite_scores_that_are_no_pair_do_not_meet():
    scores = S.at[0, 1].set(jnp.inf)
    value = jl.pairwise_logistic(scores, jnp.array([[1.0, 0.0, 0.0], *R[1:]]), valid=scores < jnp.inf, reduction="none")
    assert np.all(np.isfinite(value))


def test_an_absent_row_is_no_negative():
    q = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    k = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    kept = jnp.array([0, 1, 3])
    where = jnp.array([True, True, False, True])
    got = jl.info_nce(q, k.at[2].set(jnp.nan), where=where, reduction="none")
    np.testing.assert_allclose(got[kept], jl.info_nce(q[kept], k[kept], reduction="none"), rtol=1e-5)
    soft = jl.info_nce(q, k, weights=where.astype(jnp.float32), reduction="none")  # a weight of 0 stays a negative
    assert np.all(np.abs(np.asarray(soft)[kept] - np.asarray(got)[kept]) > 1e-6)


def test_shared_inputs_belong_to_no_row():
    def nearest(rows, proxies, *, everyone):
        return jnp.min(jnp.sum(jnp.square(rows[:, None] - proxies[None]), -1), 1)

    rows, proxies = jnp.ones((5, 2)), jnp.zeros((3, 2))
    value = frames.batchwise(nearest, rows=rows, shared={"proxies": proxies}, reduction="none", where=jnp.arange(5) < 4)
    np.testing.assert_array_equal(value, [2, 2, 2, 2, 0])
    with pytest.raises(TypeError, match="`proxies` must be floating"):
        frames.batchwise(nearest, rows=rows, shared={"proxies": proxies.astype(int)})


def test_rows_of_different_number_are_refused():
    with pytest.raises(ValueError, match=r"`queries` \[5, 2\] and `keys` \[4, 2\] must have the same number of rows"):
        jl.info_nce(jnp.ones((5, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"`negatives` \[3, 4\] must be \[M, D\] or \[N, M, D\]"):
        jl.info_nce(jnp.ones((5, 2)), jnp.ones((5, 2)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match=r"`queries` \[5\] must be \[N, D\]"):
        jl.info_nce(jnp.ones(5), jnp.ones(5))


def test_a_token_mean_does_not_depend_on_how_sequences_are_batched():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(4, 6, 5)).astype(np.float32), rng.integers(0, 5, (4, 6))
    lengths = jnp.array([6, 1, 0, 3])
    whole = jl.token_nll(z, y, lengths=lengths, reduction="partial")
    halves = [jl.token_nll(z[i : i + 2], y[i : i + 2], lengths=lengths[i : i + 2], reduction="partial") for i in (0, 2)]
    np.testing.assert_allclose(halves[0].merge(halves[1]).value, whole.value, rtol=1e-6)
    alive = np.arange(6) < np.asarray(lengths)[:, None]
    np.testing.assert_allclose(whole.value, jl.softmax_cross_entropy(z, y, where=alive), rtol=1e-6)


def test_a_statistic_pools_over_the_axes_that_it_is_told():
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    for axis in (None, 0, -1, (0, 2)):
        want = np.sqrt(np.mean((p - t) ** 2, axis=axis))
        got = jl.root_mean_squared_error(p, t, axis=axis, reduction="none")
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_order_of_scalars_is_the_order_given():
    value = frames.pointwise(lambda x, a, b: a * x + b, x=jnp.ones(2), scalars={"a": 3.0, "b": 2.0})
    assert value == 5.0
    absent = frames.pointwise(lambda x, a: x if a is None else a, x=jnp.ones(2), scalars={"a": None})
    assert absent == 1.0
