"""`compiled`: one program for all values, options in words, and a function like any other."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl

P, T = jnp.array([0.3, -2.0, 5.0]), jnp.array([0.0, 1.0, 2.0])
Z, Y = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]), jnp.array([0, 2])


def count_compilations(f):
    """How many programs XLA builds while `f` runs."""
    seen = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        f()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


def test_a_new_number_does_not_recompile():
    deltas = [jnp.float32(d) for d in (0.5, 0.7, 0.9)]
    jl.huber(P, T, delta=deltas[0])
    assert count_compilations(lambda: [jl.huber(P, T, delta=d) for d in deltas]) == 0
    assert count_compilations(lambda: jl.huber(P[:2], T[:2], delta=deltas[0])) > 0


def test_static_options_have_one_spelling():
    base = jl.softmax_cross_entropy(Z, Y, axis=-1)
    compiled = count_compilations(lambda: jl.softmax_cross_entropy(Z, Y, axis=np.int64(-1)))
    assert compiled == 0
    assert jl.softmax_cross_entropy(Z, Y, axis=1) == base
    both = jl.root_mean_squared_error(Z, Z + 1, axis=[0, 1])  # a list is a tuple
    assert both == 1.0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jl.huber(P, T, reduction="avg"), ValueError, "'mean', 'sum', 'none' or 'partial', got 'avg'"),
        (lambda: jl.softmax_cross_entropy(Z, Y, axis=1.5), TypeError, "`axis` of softmax_cross_entropy .* integer"),
        (lambda: jl.softmax_cross_entropy(Z, Y, axis=True), TypeError, "`axis`"),
        (
            lambda: jl.triplet_margin(Z, Z, Z, swap=1),
            TypeError,
            "`swap` of triplet_margin must be True or False, got 1",
        ),
        (lambda: jl.triplet_margin(Z, Z, Z, p=0.5), ValueError, "`p` of triplet_margin"),
        (lambda: jl.entmax(Z, Y, alpha=1.0), ValueError, "softmax_cross_entropy"),
        (lambda: jl.info_nce(Z, Z, similarity="l2"), ValueError, "'cosine' or 'dot'"),
        (lambda: jl.pairwise_logistic(Z, Z, pairs="all"), ValueError, "'mean' or 'sum'"),
        (lambda: jax.jit(lambda a: jl.softmax_cross_entropy(Z, Y, axis=a))(1), TypeError, "`axis`.*traced"),
        (lambda: jl.root_mean_squared_error(Z, Z, axis=(0, 0)), ValueError, "twice"),
    ],
)
def test_options_are_refused_in_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_program_carries_the_name_and_no_option_costs_unasked():
    text = jax.jit(jl.huber).lower(P, T).as_text(debug_info=True)
    assert "huber" in text
    plain = jax.jit(lambda z, y: jl.softmax_cross_entropy(z, y)).lower(Z, Y).compile().as_text()
    smoothed = jax.jit(lambda z, y: jl.softmax_cross_entropy(z, y, label_smoothing=0.1)).lower(Z, Y).compile().as_text()
    assert smoothed.count("\n") > plain.count("\n")


def test_it_is_a_function():
    assert pickle.loads(pickle.dumps(jl.huber)) is jl.huber
    assert jl.huber.__name__ == "huber"
    assert "parabola" in jl.huber.__doc__
    assert jax.eval_shape(jl.huber, P, T).shape == ()


def test_a_loss_of_ones_own_may_have_any_option():
    @jl.compiled
    def quartic(
        predictions: jl.types.Real,
        targets: jl.types.Real,
        *,
        power: int = 4,
        where: jl.types.Mask = None,
        weights: jl.types.Weights = None,
        reduction: jl.types.Reduction = "mean",
    ) -> jax.Array:
        return jl.frames.pointwise(
            lambda p, t: (p - t) ** power,
            predictions=predictions,
            targets=targets,
            where=where,
            weights=weights,
            reduction=reduction,
        )

    np.testing.assert_allclose(quartic(P, T), np.mean((np.asarray(P) - np.asarray(T)) ** 4), rtol=1e-6)
    assert quartic(P, T, power=2) == jl.squared_error(P, T)
    with pytest.raises(TypeError, match=r"`power` of quartic must be an integer, got 2\.5"):
        quartic(P, T, power=2.5)
