"""Relations between the losses of sequences and vocabularies, and the plain cross-entropies that they contain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_relations import same

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(1)
B, T, V, D = 3, 5, 7, 4
Z = jnp.asarray(RNG.normal(size=(B, T, V)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, V, (B, T)))
HIDDEN, TEACHER = (jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32) for _ in range(2))
KERNEL, HEAD = (jnp.asarray(RNG.normal(size=(D, V)), jnp.float32) for _ in range(2))


def test_all_tokens_are_rows():
    same(lambda z: jl.token_nll(z, TOKENS), lambda z: jl.softmax_cross_entropy(z, TOKENS), Z)
    lengths = jnp.array([5, 2, 0])
    exists = jnp.arange(T)[None] < lengths[:, None]
    same(
        lambda z: jl.token_nll(z, TOKENS, lengths=lengths),
        lambda z: jl.softmax_cross_entropy(z, TOKENS, where=exists),
        Z,
    )


def test_the_next_token_is_a_label():
    same(lambda z: jl.next_token(z, TOKENS), lambda z: jl.softmax_cross_entropy(z[:, :-1], TOKENS[:, 1:]), Z)
    masked = jnp.asarray(RNG.integers(0, 2, (B, T)), bool)
    same(
        lambda z: jl.masked_language(z, TOKENS, masked),
        lambda z: jl.softmax_cross_entropy(z, TOKENS, where=masked),
        Z,
    )


def test_router_z_is_the_z_loss_alone():
    def without(z):
        return jl.softmax_cross_entropy(z, TOKENS, z_loss=1.0) - jl.softmax_cross_entropy(z, TOKENS)

    same(jl.router_z, without, Z)


def test_a_linear_head_makes_logits():
    same(
        lambda h: jl.linear_softmax_cross_entropy(h, KERNEL, TOKENS, label_smoothing=0.2, z_loss=0.1),
        lambda h: jl.softmax_cross_entropy(h @ KERNEL, TOKENS, label_smoothing=0.2, z_loss=0.1),
        HIDDEN,
    )
    log_p = jl.linear_log_probability(HIDDEN, KERNEL, TOKENS)
    np.testing.assert_allclose(-jnp.mean(log_p), jl.softmax_cross_entropy(HIDDEN @ KERNEL, TOKENS), rtol=1e-5)


def test_a_linear_teacher_is_a_target_distribution():
    target = jax.nn.softmax(TEACHER @ HEAD)
    same(
        lambda h: jl.linear_distillation(h, KERNEL, TEACHER, HEAD),
        lambda h: jl.kl_divergence(jax.nn.log_softmax(h @ KERNEL), target),
        HIDDEN,
    )
    same(
        lambda h: jl.linear_distillation(h, KERNEL, TEACHER, HEAD, divergence="reverse"),
        lambda h: jl.reverse_kl_divergence(jax.nn.log_softmax(h @ KERNEL), target),
        HIDDEN,
    )


def test_alignments_of_one_path_are_rows():
    # As many labels as frames, no two alike beside each other: no frame is left for a blank.
    distinct = jnp.array([[1, 2, 3, 4, 5]] * B)
    rows = jl.softmax_cross_entropy(Z, distinct, reduction="none").sum(-1)
    np.testing.assert_allclose(jl.ctc(Z, distinct, reduction="none"), rows, rtol=1e-5)
    # No labels: only blanks, in both kinds of lattice.
    none = jnp.zeros((B, 0), int)
    blanks = jl.softmax_cross_entropy(Z, jnp.zeros((B, T), int), reduction="none").sum(-1)
    np.testing.assert_allclose(jl.ctc(Z, none, reduction="none"), blanks, rtol=1e-5)
    np.testing.assert_allclose(jl.transducer(Z[:, :, None], none, reduction="none"), blanks, rtol=1e-5)


def test_a_chain_without_transitions_is_rows():
    still = jnp.zeros((V, V))
    same(
        lambda z: jl.linear_chain_crf(z, TOKENS, still, reduction="sum"),
        lambda z: jl.softmax_cross_entropy(z, TOKENS, reduction="sum"),
        Z,
    )
    np.testing.assert_array_equal(jl.viterbi(Z, still)[0], jnp.argmax(Z, -1))
    np.testing.assert_allclose(jl.chain_marginals(Z, still), jax.nn.softmax(Z), rtol=1e-5, atol=1e-7)
