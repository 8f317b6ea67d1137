"""Language losses against naive loops, and what the laws do not ask: shifts, packing, balance over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_language import token_value
from jax.sharding import PartitionSpec as P

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")


def draw(seed, *shape, vocabulary=7):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*shape, vocabulary)).astype(np.float32), rng.integers(0, vocabulary, shape)


def test_the_value_of_a_token_stands_at_the_token():
    z, tokens = draw(0, 2, 5)
    value = jl.next_token(z, tokens, reduction="none")
    for i in range(2):
        want = [0, *(token_value(z[i, t - 1].astype(float), tokens[i, t], 0, 0) for t in range(1, 5))]
        np.testing.assert_allclose(value[i], want, rtol=2e-6)
    np.testing.assert_allclose(jl.next_token(z, tokens), np.asarray(value)[:, 1:].mean(), rtol=1e-6)
    np.testing.assert_allclose(jl.next_token(z[0], tokens[0]), np.asarray(value)[0, 1:].mean(), rtol=1e-6)


def test_where_and_weights_are_of_the_predicted_token():
    z, tokens = draw(1, 2, 6)
    each = np.asarray(jl.next_token(z, tokens, reduction="none"))
    answer = np.arange(6) >= np.array([[2], [4]])  # a prompt of 2 and of 4 tokens
    # The prediction of what is excluded may be anything, the token too; the last prompt position predicts the answer.
    dirty, unknown = z.copy(), np.where(answer, tokens, -100)
    dirty[0, 0] = dirty[1, :3] = np.nan
    dirty[:, -1] = 0
    got = jl.next_token(dirty, unknown, where=answer, reduction="none")
    np.testing.assert_allclose(got, np.where(answer, each, 0), rtol=1e-6)
    np.testing.assert_allclose(jl.next_token(dirty, unknown, where=answer), each[answer].mean(), rtol=1e-6)
    weights = np.linspace(0.5, 2, 12).reshape(2, 6)
    want = (weights * each)[:, 1:].sum() / weights[:, 1:].sum()
    np.testing.assert_allclose(jl.next_token(z, tokens, weights=weights), want, rtol=1e-6)
    slope = jax.grad(lambda z: jl.next_token(z, tokens))(jnp.asarray(z))
    assert not np.any(slope[:, -1])
    assert np.all(np.any(slope[:, :-1], axis=-1))


def test_packed_documents_are_the_documents_alone():
    z, tokens = draw(2, 1, 9)
    segments = np.array([[0, 1, 1, 1, 2, 3, 3, 0, 0]])
    got = jl.next_token(z, tokens, segments=segments, reduction="partial")
    parts = [jl.next_token(z[:, a:b], tokens[:, a:b], reduction="partial") for a, b in ((1, 4), (4, 5), (5, 7))]
    np.testing.assert_allclose(got.total, sum(part.total for part in parts), rtol=1e-6)
    assert got.weight == sum(part.weight for part in parts) == 3
    clean = jnp.where(segments[..., None] > 0, z, jnp.nan)
    slope = jax.grad(lambda z: jl.next_token(z, tokens, segments=segments))(clean)
    assert np.array_equal(np.any(slope[0], axis=-1), [0, 1, 1, 0, 0, 1, 0, 0, 0])
    # The same number again is not the same document.
    again = jl.next_token(z, tokens, segments=np.array([[1, 1, 1, 2, 2, 1, 1, 1, 1]]), reduction="partial")
    assert again.weight == 6


def test_masked_language_is_cross_entropy_of_the_masked():
    z, tokens = draw(3, 3, 4)
    masked = np.random.default_rng(0).random((3, 4)) < 0.5
    got = jl.masked_language(np.where(masked[..., None], z, np.nan), np.where(masked, tokens, -100), masked)
    want = [token_value(z[i].astype(float), tokens[i], 0, 0) for i in zip(*np.nonzero(masked), strict=True)]
    np.testing.assert_allclose(got, np.mean(want), rtol=2e-6)
    assert jl.masked_language(z, tokens, np.zeros((3, 4), bool)) == 0


def test_balance_is_one_and_collapse_is_experts_over_top_k():
    experts = np.eye(4, dtype=np.float32)
    for top_k in (1, 2, 4):
        collapsed = 60 * np.where(np.arange(4) < top_k, 1, 0) * np.ones((5, 1), np.float32)
        np.testing.assert_allclose(jl.load_balance(collapsed, top_k=top_k), 4 / top_k, rtol=1e-6)
        even = 3 * (experts + np.roll(experts, 1, axis=1)) + 1e-3 * experts
        np.testing.assert_allclose(jl.load_balance(even, top_k=top_k), 1, rtol=1e-5)
    assert jl.load_balance(np.zeros((6, 4), np.float32)) == 1
    z, _ = draw(4, 2, 5)
    each = [jl.load_balance(z[i], top_k=2) for i in range(2)]
    np.testing.assert_allclose(jl.load_balance(z, top_k=2, axis=1, reduction="none"), each, rtol=1e-6)
    padded = np.concatenate([z, np.full_like(z, np.nan)], axis=1)
    where = np.arange(10) < 5
    np.testing.assert_allclose(jl.load_balance(padded, where=where[None]), jl.load_balance(z), rtol=1e-6)


@pytest.mark.exhaustive
def test_balance_over_devices_is_of_all_their_tokens():
    z, _ = draw(5, 8, 3)
    weights = jnp.linspace(0.5, 2, 24).reshape(8, 3)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def on_devices(axis_name):
        def f(z, weights):
            return jl.load_balance(z, weights=weights, axis_name=axis_name)[None]

        out = P() if axis_name else P("data")
        return jax.shard_map(f, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=out)

    want = jl.load_balance(z, weights=weights)
    np.testing.assert_allclose(on_devices("data")(z, weights)[0], want, rtol=1e-6)
    slope = jax.grad(lambda z: on_devices("data")(z, weights)[0])(jnp.asarray(z))
    alone = jax.grad(lambda z: jl.load_balance(z, weights=weights))(jnp.asarray(z))
    np.testing.assert_allclose(slope, alone, atol=1e-7)
    local = [jl.load_balance(z[i : i + 2], weights=weights[i : i + 2]) for i in range(0, 8, 2)]
    np.testing.assert_allclose(on_devices(())(z, weights), local, rtol=1e-6)
    with pytest.raises(ValueError, match="axis_name='data'"):
        on_devices(None)(z, weights)


def test_router_z_is_zero_for_a_distribution():
    log_p = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32))
    np.testing.assert_allclose(jl.router_z(log_p, reduction="none"), 0, atol=1e-13)
    np.testing.assert_allclose(jl.router_z(log_p + 3), 9, rtol=1e-6)


def test_refused_in_words():
    z, tokens = draw(6, 2, 4)
    with pytest.raises(ValueError, match=r"`tokens` \[2, 3\] must be \[2, 4\] beside `logits`"):
        jl.next_token(z, tokens[:, 1:])
    with pytest.raises(TypeError, match="`segments` must be integer"):
        jl.next_token(z, tokens, segments=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`where` \[2, 3\]"):
        jl.next_token(z, tokens, where=jnp.ones((2, 3), bool))
    with pytest.raises(TypeError, match="`masked` must be bool"):
        jl.masked_language(z, tokens, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`top_k` of load_balance must be in \[1, 7\]"):
        jl.load_balance(z, top_k=8)
    with pytest.raises(ValueError, match="must leave the last axis"):
        jl.load_balance(z, axis=-1)
    with pytest.raises(ValueError, match="'partial' does not exist"):
        jl.load_balance(z, reduction="partial")
