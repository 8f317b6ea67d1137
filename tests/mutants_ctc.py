"""Single defects in extended-range arithmetic, CTC and its alignment, each with the test that must catch it."""

EXTENDED, CTC, LOSS = "jaxloss/algorithms/extended.py", "jaxloss/algorithms/ctc.py", "jaxloss/losses/alignment.py"


def test(name):
    return f"tests/test_ctc.py -k '{name}'"


ALL_PATHS = test("those_of_all_alignments")
LONG = test("long_sequences")
LOGARITHM, ARITHMETIC, ZERO = test("logarithm_is_undone"), test("far_beyond_floats"), test("neutral_and_absorbs")

MUTANTS = [
    (EXTENDED, "ln 2 in one part", "rest = (rest - small * second) - k * third", "rest = rest - k * 0", LOGARITHM),
    (EXTENDED, "what rounding dropped is dropped", "rest if low is None else rest + low", "rest", LOGARITHM),
    (EXTENDED, "a sum is aligned to the smaller", "    exponent = jnp.maximum(a.exponent, b.exponent)", "    exponent = jnp.minimum(a.exponent, b.exponent)", ARITHMETIC),
    (EXTENDED, "zero keeps any exponent", "jnp.where(exists, exponent, ZERO_EXPONENT)", "exponent", ZERO),
    (EXTENDED, "a share of nothing", "    return jnp.where((z.mantissa > 0) & (a.mantissa > 0), found, 0)", "    return found + a.mantissa / z.mantissa", ZERO),
    (CTC, "a repeat needs no blank", "    differs = labels[..., 1:] != labels[..., :-1]", "    differs = labels[..., 1:] >= 0", ALL_PATHS),
    (CTC, "the way back starts at the last label", "count - label_lengths])", "0 * label_lengths])", ALL_PATHS),
    (CTC, "frames that do not exist go on", "jnp.where(exists, packed(normalised(multiply(unpacked(into), unpacked(weight)))), old)", "packed(normalised(multiply(unpacked(into), unpacked(weight))))", ALL_PATHS),
    (CTC, "the second half is not turned round", "    return _States(blanks[..., ::-1], jnp.concatenate([labels[..., :1], labels[..., :0:-1]], axis=-1))", "    return _States(blanks, labels)", ALL_PATHS),
    (CTC, "the way back goes on like the way there", "    if onwards:\n        leaving", "    if True:\n        leaving", ALL_PATHS),
    (CTC, "weights of a rounded difference", "from_log(*subtract(widen(scores), frames.top))", "from_log(subtract(widen(scores), frames.top)[0].astype(jnp.bfloat16).astype(jnp.float32))", LONG),
    (CTC, "weights made again are another frame's", "_weights(frame) if kept is None else kept, states, entered)\n        return (states, ", "_weights(jax.tree.map(lambda x: x[::-1], frame)) if kept is None else kept, states, entered)\n        return (states, ", test("made_again")),
    (CTC, "the value reads weights that were never made", "_weights(frame) if kept is None else kept, states, entered), None", "_weights(jax.tree.map(lambda x: 0 * x, frame)) if kept is None else kept, states, entered), None", test("made_again")),
    (EXTENDED, "the inverse keeps the exponent", "jnp.where(exists, -a.exponent, 0)", "jnp.where(exists, a.exponent, 0)", ARITHMETIC),
    (EXTENDED, "a float forgets the exponent", "return a.mantissa * _power_of_two(a.exponent, a.mantissa.dtype)", "return a.mantissa", ALL_PATHS),
    (CTC, "a confident sequence may be negative", "jnp.where(exists, jnp.maximum(normalizer - log_total, 0), jnp.inf)", "jnp.where(exists, normalizer - log_total - 2.0**-24, jnp.inf)", test("confident")),
    (CTC, "the gradient of the infeasible", "jnp.where(frames[..., None] & exists[..., None, None], p - held, 0)", "jnp.where(frames[..., None], p - held, 0)", test("without_alignment")),
    (CTC, "equal labels do not gather", "_product(shares, order == first[..., None])", "shares", test("many_classes")),
    (CTC, "second derivatives go to a skipped blank", "jnp.logaddexp(labels, jnp.where(differs, into_blank[..., :-1], blanks[..., :-1]))", "jnp.logaddexp(labels, into_blank[..., :-1])", test("second_derivatives")),
    (CTC, "Viterbi always passes the blank", "skipping = jnp.where(may_skip, delayed(best, 2), -jnp.inf)", "skipping = jnp.full_like(best, -jnp.inf)", test("best_path")),
    (CTC, "Viterbi ends in the blank", "jnp.where(in_label > in_blank, last, ends)", "ends", test("best_path")),
    (LOSS, "the blank is a label like any", "logits.shape[-1]))\n        return _of_legal_labels(found, labels == blank", "logits.shape[-1]))\n        return _of_legal_labels(found, labels < 0", test("blank_is_no_label")),
    (LOSS, "zero for the infeasible is forgotten", 'if infeasible == "zero" else value', 'if infeasible == "nothing" else value', test("without_alignment")),
]  # fmt: skip
