"""Linear chains against every path at tiny size and a float64 dynamic programme at real size."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss.algorithms.linear_chain import chain_marginals, viterbi
from jaxloss.algorithms.linear_chain_parts import chain_of, possible
from jaxloss.algorithms.linear_chain_scaled import scaled_label_nll, scaled_messages

pytestmark = pytest.mark.usefixtures("quick_compilation")


def every_path(e, a):
    """-log p of each path by its labels, marginals, expected transitions, the best path and its score."""
    steps, states = e.shape
    scores = {
        path: sum(e[t, path[t]] for t in range(steps)) + sum(a[i, j] for i, j in itertools.pairwise(path))
        for path in itertools.product(range(states), repeat=steps)
    }
    top = max(scores.values())
    log_z = top + np.log(sum(np.exp(s - top) for s in scores.values()))
    marginals, pairs = np.zeros_like(e), np.zeros_like(a)
    for path, score in scores.items():
        for t in range(steps):
            marginals[t, path[t]] += np.exp(score - log_z)
        for i, j in itertools.pairwise(path):
            pairs[i, j] += np.exp(score - log_z)
    best = max(scores, key=scores.get)
    return {path: log_z - s for path, s in scores.items()}, marginals, pairs, best, scores[best]


def log_sum(x, axis):
    top = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


def programme(e, a, labels):
    """-log p(labels) of one chain, and its gradients, by the textbook recursions in float64."""
    steps = len(e)
    alpha, beta = np.zeros_like(e), np.zeros_like(e)
    alpha[0] = e[0]
    for t in range(1, steps):
        alpha[t] = e[t] + log_sum(alpha[t - 1][:, None] + a, 0)
    for t in reversed(range(steps - 1)):
        beta[t] = log_sum(a + e[t + 1] + beta[t + 1], 1)
    log_z = log_sum(alpha[-1], 0)
    slopes, pairs = np.exp(alpha + beta - log_z), np.zeros_like(a)
    for t in range(1, steps):
        pairs += np.exp(alpha[t - 1][:, None] + a + e[t] + beta[t] - log_z)
        pairs[labels[t - 1], labels[t]] -= 1
    slopes[np.arange(steps), labels] -= 1
    score = e[np.arange(steps), labels].sum() + a[labels[:-1], labels[1:]].sum()
    return log_z - score, slopes, pairs


@jax.jit
def in_the_linear_domain(e, a, labels):
    """-log p(labels), the marginals up to a factor, and whether both can be trusted; time and states first."""
    chain = chain_of(e, a, jnp.ones(e.shape[:-1], bool))
    labels = jnp.moveaxis(labels, -1, 0)
    messages, trusted = scaled_messages(chain)
    found, good = scaled_label_nll(chain, labels, possible(chain, labels), messages)
    return found, messages.forward * messages.backward, trusted & good


def draw(seed, batch, steps, states, scale=1.0):
    rng = np.random.default_rng(seed)
    e = (scale * rng.normal(size=(batch, steps, states))).astype(np.float32)
    a = (scale * rng.normal(size=(states, states))).astype(np.float32)
    return e, a, rng.integers(0, states, (batch, steps))


def nll(e, a, labels, **options):
    return jl.linear_chain_crf(e, labels, a, reduction="none", **options)


def value_and_slopes(e, a, labels):
    value = nll(e, a, labels)
    return value, *jax.grad(lambda e, a: nll(e, a, labels).sum(), (0, 1))(jnp.asarray(e), jnp.asarray(a))


# 30 and 1000: potentials that no linear domain of float32 holds.
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("steps", "states"), [(4, 3), (1, 3), (3, 1)])
def test_every_path(steps, states, scale):
    e, a, labels = draw(steps, 3, steps, states, scale)
    value, slopes, edges = value_and_slopes(e, a, labels)
    decoded, score = viterbi(jnp.asarray(e), jnp.asarray(a))
    marginals = chain_marginals(jnp.asarray(e), jnp.asarray(a))
    pairs = np.zeros_like(a, float)
    for i in range(3):
        by_path, expected, counts, best, top = every_path(e[i].astype(float), a.astype(float))
        np.testing.assert_allclose(value[i], by_path[tuple(labels[i])], rtol=3e-6, atol=3e-6 * scale)
        # A potential of 1000 is itself known to 6e-5, and so is what is exponentiated.
        np.testing.assert_allclose(marginals[i], expected, atol=1e-6 * scale)
        np.testing.assert_allclose(slopes[i], expected - np.eye(states)[labels[i]], atol=1e-6 * scale)
        np.add.at(counts, (labels[i][:-1], labels[i][1:]), -1)
        pairs += counts
        assert tuple(decoded[i].tolist()) == best
        np.testing.assert_allclose(score[i], top, rtol=3e-6)
    np.testing.assert_allclose(edges, pairs, atol=3e-6 * scale)


@pytest.mark.parametrize(("scale", "linear"), [(1.0, True), (60.0, False)])
def test_real_size(scale, linear):
    e, a, labels = draw(1, 4, 150, 20, scale)
    assert bool(in_the_linear_domain(e, a, labels)[2]) == linear
    value, slopes, edges = value_and_slopes(e, a, labels)
    want = [programme(e[i].astype(float), a.astype(float), labels[i]) for i in range(4)]
    np.testing.assert_allclose(value, [w[0] for w in want], rtol=2e-6)
    np.testing.assert_allclose(slopes, [w[1] for w in want], atol=2e-6 if linear else 1e-4)
    np.testing.assert_allclose(edges, sum(w[2] for w in want), atol=3e-5 if linear else 1e-3)


def test_nothing_is_lost_between_the_two_domains():
    # Few states and wide potentials: the linear domain loses some of these chains, and has to notice which.
    trusted = []
    for scale in (8.0, 16.0, 24.0, 40.0):
        e, a, labels = draw(int(scale), 16, 12, 3, scale)
        for i in range(16):
            found, states, good = in_the_linear_domain(e[i], a, labels[i])
            trusted.append(bool(good))
            if good:
                want, slopes, _ = programme(e[i].astype(float), a.astype(float), labels[i])
                np.testing.assert_allclose(found, want, rtol=3e-6)
                states = states / np.sum(states, axis=1, keepdims=True)
                np.testing.assert_allclose(states - np.eye(3)[labels[i]], slopes, atol=2e-5)
    assert 10 < sum(trusted) < 56


def test_what_is_lost_late_may_matter_early():
    # Two states that never change. The last step takes 140 nats from the first one, which is then 0 in the linear
    # domain; each step before takes 25 from the second one, so that in the end the first is the likelier by 85.
    e = np.array([*[[0.0, -25.0]] * 9, [-140.0, 0.0]], np.float32)
    a = np.array([[0.0, -np.inf], [-np.inf, 0.0]], np.float32)
    np.testing.assert_allclose(nll(e, a, np.ones(10, int)), 85, rtol=1e-6)
    np.testing.assert_allclose(nll(e, a, np.zeros(10, int)), np.exp(-85.0), rtol=1e-4)


def test_one_impossible_step_leaves_the_others_in_the_linear_domain_right():
    # Only the state that is 200 nats behind leads on: the linear domain sees 0.
    e, a, labels = draw(2, 2, 6, 3)
    e[1, 2] = [0.0, -200.0, 0.0]
    a[[0, 2], 2] = -300.0
    a[1, 2] = 0.0
    e[1, 3] = [-500.0, -500.0, 0.0]
    labels[1] = [0, 1, 1, 2, 0, 1]
    value, slopes, _ = value_and_slopes(e, a, labels)
    for i in range(2):
        want, expected, _ = programme(e[i].astype(float), a.astype(float), labels[i])
        np.testing.assert_allclose(value[i], want, rtol=2e-6)
        np.testing.assert_allclose(slopes[i], expected, atol=2e-5)


def test_a_sure_sequence_keeps_its_digits():
    e = np.zeros((1, 5, 3), np.float32)
    labels = np.array([[0, 2, 1, 1, 0]])
    np.put_along_axis(e, labels[..., None], 40.0, axis=-1)
    a = np.zeros((3, 3), np.float32)
    value, slopes, _ = value_and_slopes(e, a, labels)
    each = 2 * np.exp(-40.0)
    np.testing.assert_allclose(value, 5 * each, rtol=1e-5)  # a difference of two sums of 200 would be 0 or 2e-5
    np.testing.assert_allclose(np.take_along_axis(np.asarray(slopes), labels[..., None], -1), -each, rtol=1e-5)


def test_what_is_forbidden():
    e, a, _ = draw(3, 3, 4, 3)
    a[0, 1] = -np.inf
    e[:, 2, 2] = -np.inf
    labels = np.array([[0, 0, 1, 2], [2, 2, 0, 0], [1, 2, 2, 0]])  # by a transition; allowed; by an emission
    value, slopes, edges = value_and_slopes(e, a, labels)
    by_path, expected, counts, best, _ = every_path(e[1].astype(float), a.astype(float))
    assert np.array_equal(np.isinf(value), [True, False, True])
    np.testing.assert_allclose(value[1], by_path[tuple(labels[1])], rtol=1e-6)
    assert not np.any(slopes[0])
    assert not np.any(slopes[2])
    np.testing.assert_allclose(slopes[1], expected - np.eye(3)[labels[1]], atol=1e-6)
    np.add.at(counts, (labels[1][:-1], labels[1][1:]), -1)
    np.testing.assert_allclose(edges, counts, atol=1e-6)
    assert tuple(viterbi(jnp.asarray(e), jnp.asarray(a))[0][1].tolist()) == best
    # No path at all: the labels are forbidden, and so is everything.
    nothing = jnp.full((3, 3), -jnp.inf)
    assert np.all(np.isinf(nll(e, nothing, labels)))
    assert np.all(viterbi(jnp.asarray(e), nothing)[1] == -np.inf)
    slope = jax.grad(lambda e: nll(e, nothing, labels).sum())(jnp.asarray(e))
    assert not np.any(slope)


def test_lengths_and_ends():
    e, a, labels = draw(4, 4, 5, 3)
    rng = np.random.default_rng(0)
    start, end = (rng.normal(size=3).astype(np.float32) for _ in range(2))
    lengths = np.array([5, 2, 1, 0])
    behind = np.arange(5) >= lengths[:, None]
    dirty = np.where(behind[..., None], np.nan, e).astype(np.float32)
    options = {"start": jnp.asarray(start), "end": jnp.asarray(end), "lengths": jnp.asarray(lengths)}
    value = nll(dirty, a, np.where(behind, -1, labels), **options)
    marginals = chain_marginals(jnp.asarray(dirty), jnp.asarray(a), **options)
    decoded, score = viterbi(jnp.asarray(dirty), jnp.asarray(a), **options)
    for i, n in enumerate(lengths[:3]):
        row = e[i, :n].astype(float)
        row[0] += start
        row[-1] += end
        by_path, expected, _, best, top = every_path(row, a.astype(float))
        np.testing.assert_allclose(value[i], by_path[tuple(labels[i, :n])], rtol=2e-6)
        np.testing.assert_allclose(marginals[i, :n], expected, atol=1e-6)
        assert tuple(decoded[i].tolist()) == (*best, *[-1] * (5 - n))
        np.testing.assert_allclose(score[i], top, rtol=2e-6)
    assert value[3] == 0
    assert score[3] == 0
    assert not np.any(np.where(behind[..., None], marginals, 0))
    assert nll(e[:, :0], a, labels[:, :0]).tolist() == [0, 0, 0, 0]
    assert viterbi(jnp.asarray(e[:, :0]), jnp.asarray(a))[0].shape == (4, 0)
    assert np.isnan(viterbi(jnp.asarray(e), jnp.asarray(a), lengths=jnp.asarray([6, 5, 5, 5]))[1][0])


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_second_derivatives_and_vmap(scale):
    with jax.enable_x64(True):
        e, a, labels = (x.astype(float) if x.dtype == np.float32 else x for x in draw(5, 2, 4, 3, scale))
        e, a = jnp.asarray(e), jnp.asarray(a)

        def f(e, a):
            return nll(e, a, labels).sum()

        rng = np.random.default_rng(1)
        de, da = jnp.asarray(rng.normal(size=e.shape)), jnp.asarray(rng.normal(size=a.shape))
        gradient = jax.jit(jax.grad(f, (0, 1)))
        forward = jax.jvp(gradient, (e, a), (de, da))[1]
        inner = jax.grad(lambda e, a: jnp.vdot(gradient(e, a)[0], de) + jnp.vdot(gradient(e, a)[1], da), (0, 1))
        sides = [gradient(e + s * 1e-4 * de, a + s * 1e-4 * da) for s in (-2, -1, 1, 2)]
        want = [(p - 8 * q + 8 * r - s) / 12e-4 for p, q, r, s in zip(*sides, strict=True)]
        for got, again, difference in zip(forward, inner(e, a), want, strict=True):
            np.testing.assert_allclose(got, difference, atol=1e-8)
            np.testing.assert_allclose(again, got, atol=1e-12)
        each = jax.vmap(lambda e, labels: jax.value_and_grad(lambda e: nll(e, a, labels))(e))(e, jnp.asarray(labels))
        np.testing.assert_allclose(each[0], nll(e, a, labels), rtol=1e-12)
        np.testing.assert_allclose(each[1], gradient(e, a)[0], atol=1e-12)


def test_the_score_of_the_best_path_counts_what_it_passes():
    e, a, _ = draw(6, 1, 4, 3)
    labels, _ = viterbi(jnp.asarray(e), jnp.asarray(a))
    slopes = jax.grad(lambda e, a: viterbi(e, a)[1].sum(), (0, 1))(jnp.asarray(e), jnp.asarray(a))
    counts = np.zeros((3, 3))
    np.add.at(counts, (labels[0, :-1], labels[0, 1:]), 1)
    assert np.array_equal(slopes[0][0], np.eye(3)[labels[0]])
    assert np.array_equal(slopes[1], counts)


def test_refused_in_words():
    e, a, labels = draw(7, 2, 4, 3)
    for call in (lambda **x: nll(e, a, labels, **x), lambda **x: viterbi(e, a, **x)):
        with pytest.raises(ValueError, match=r"`start` \[2\] must be \[3\] beside `emissions`"):
            call(start=jnp.zeros(2))
        with pytest.raises(TypeError, match="`lengths` must be integer"):
            call(lengths=jnp.ones(2))
    with pytest.raises(ValueError, match=r"`transitions` \[3\] must be \[3, 3\]"):
        nll(e, a[0], labels)
    with pytest.raises(ValueError, match=r"`lengths` \[3\] must have one length"):
        viterbi(e, a, lengths=jnp.ones(3, int))
    with pytest.raises(ValueError, match="at least 2 axes"):
        viterbi(e[0, 0], a)


def test_marginals_of_no_path_are_nan():
    e, a, _ = draw(7, 3, 4, 3)
    e[0, 1] = -np.inf  # a step without a state; the second chain ends before its own
    e[1, 2] = -np.inf
    lengths = jnp.array([4, 2, 4])
    found = np.asarray(chain_marginals(e, a, lengths=lengths))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:].sum(-1), [[1, 1, 0, 0], [1, 1, 1, 1]], rtol=1e-6)
    turns = np.where(np.eye(3), -np.inf, 0.0)
    turns[2] = -np.inf  # nothing leads on from the last state, and the others change
    e[2, 1, :2] = -np.inf
    found = np.asarray(chain_marginals(e[[2, 2, 2]], turns, lengths=jnp.array([2, 3, 4])))
    np.testing.assert_allclose(found[0].sum(-1), [1, 1, 0, 0], rtol=1e-6)
    assert np.isnan(found[1, :3]).all()
    assert np.isnan(found[2]).all()
