"""Single defects in the transducer's lattice, its edges and its tiles, each with the test that must catch it."""

ENGINE, LOSSES, FRAMES = "jaxloss/algorithms/transducer.py", "jaxloss/losses/alignment.py", "jaxloss/core/frames.py"
COMPILED = "jaxloss/core/compiled.py"


def test(name):
    return f"tests/test_transducer.py -k {name}"


MUTANTS = [
    (ENGINE, "a label goes on to the next frame as well", "extended.shifted(move, 1, -1)", "extended.shifted(move, 0, -1)", test("test_every_path")),
    (ENGINE, "backwards a label comes from the same node", "    both = beta, extended.shifted(beta, -1, -1)", "    both = beta, beta", test("test_every_path")),
    (ENGINE, "a finished lattice does not wait", "jnp.where(waits, 0, -jnp.inf)", "-jnp.inf", test("behind_the_lengths")),
    (ENGINE, "labels behind the length are written", "exists & (u < symbols)", "exists & (u < width)", test("behind_the_lengths")),
    (ENGINE, "waiting counts as a blank", "jnp.where(edges.exists, stay.mantissa, 0)", "stay.mantissa", test("behind_the_lengths")),
    (ENGINE, "what is no number reaches the gradient", "    return jnp.where(p == p, p, 0)", "    return p", test("behind_the_lengths")),
    (ENGINE, "no frame is no obstacle", "(u == 0) & (frames > 0)", "(u == 0) & (frames > -1)", test("no_alignment_gives")),
    (ENGINE, "a certainty is below zero", "jnp.maximum(-extended.to_log(total), 0)", "-extended.to_log(total)", test("certain_sequence")),
    (ENGINE, "a nan is lost in the bits", "jnp.where(broken, jnp.nan, ", "jnp.where(broken, 0, ", test("what_is_wrong")),
    (ENGINE, "the shares of the impossible have a slope", "    possible = jnp.isfinite(value)[..., None, None]", "    possible = jnp.isfinite(value)[..., None, None] | True", test("no_alignment_gives")),
    (ENGINE, "the curvature forgets the softmax", "    return p, p * (dz - jnp.sum(p * dz, axis=-1, keepdims=True))", "    return p, p * dz", test("second_derivatives_are")),
    (ENGINE, "half precision is copied to float32", "widen(lax.optimization_barrier(z))", "widen(z)", test("'only_array and bfloat16'")),
    (ENGINE, "the last tile is filled with zeros", "jnp.take(encoder, index, axis=-2)", "jnp.where((jnp.arange(count * tile) < frames)[:, None], jnp.take(encoder, index, axis=-2), 0)", test("'tiles_are_the_whole and 2'")),
    (ENGINE, "all tiles are kept for the gradient", "    @functools.partial(jax.checkpoint, prevent_cse=False)\n    def of_tile", "    def of_tile", test("six_gigabytes")),
    (ENGINE, "the predictor's gradient is summed in half precision", "    wide = widen(predictor)\n", "    wide = predictor\n", test("half_precision")),
    (LOSSES, "a blank may be a label", "        return _of_legal_labels(found, labels == blank, alive[1], infeasible)", "        return _of_legal_labels(found, labels == -1, alive[1], infeasible)", test("what_is_wrong")),
    (LOSSES, "what the predictor knows behind the labels reaches the joiner", "        predictor = neutralised(predictor, nodes, (predictor.ndim - 1,))\n", "", test("tiles_are_the_whole")),
    (LOSSES, "the logits are masked by a copy", "        bare=(\"logits\",),\n", "", test("only_array")),
    (FRAMES, "beside a bare array masked sequences are alive", "alive.append(exists if mask is None or not bare else exists & jnp.expand_dims(mask, -1))", "alive.append(exists)", test("what_is_wrong")),
    (COMPILED, "a traced loss is not observed", "    if observer is not None:\n        arguments", "    if False:\n        arguments", test("options_and_values_checked")),
]  # fmt: skip
