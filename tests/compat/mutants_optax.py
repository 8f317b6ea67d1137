"""Single defects in the drop-in names of optax, and in CTC's forward tables, each with the test that must catch it."""

HERE = "jaxloss/compat/optax"
ARRAYS, CLASSES, REGRESSION = f"{HERE}/arrays.py", f"{HERE}/classification.py", f"{HERE}/regression.py"
SEGMENTS, EMBEDDINGS, OTHERS = f"{HERE}/segmentation.py", f"{HERE}/self_supervised.py", f"{HERE}/others.py"
CTC, FORWARD, DIVERGENCE = f"{HERE}/ctc.py", "jaxloss/algorithms/ctc_forward.py", f"{HERE}/divergence.py"


def test(words):
    return f"tests/compat/test_compat_optax.py -k '{words}'"


def beside(name):
    return f"tests/compat/test_compat_optax.py -k 'beside and {name}]'"


PATHS, HOLES = test("sums_over_paths"), test("need_not_be_last")

MUTANTS = [
    (CTC, "optax: padded frames are those at the end", "value = ctc_nll(z, index, frames,", "value = ctc_nll(z, index, -jnp.sort(-frames.astype(int), axis=-1) > 0,", HOLES),
    (CLASSES, "optax: another default", "gamma: ArrayLike = 2.0", "gamma: ArrayLike = 2.5", test("signature and focal")),
    (CLASSES, "optax: alpha and gamma change places", "[gamma] if alpha is None else [gamma, alpha]", "[gamma] if alpha is None else [alpha, gamma]", beside("sigmoid_focal_loss")),
    (CLASSES, "optax: labels of 0 are positive", "as_array(\"labels\", labels) != 0, 1, -1)", "as_array(\"labels\", labels) != 0, -1, 1)", beside("sparsemax_loss")),
    (CLASSES, "optax: poly counts what the label has", "jnp.zeros((), loss.dtype), jnp.ones((), loss.dtype), z.ndim - 1", "jnp.ones((), loss.dtype), jnp.zeros((), loss.dtype), z.ndim - 1", beside("poly_loss_cross_entropy")),
    (CLASSES, "optax: poly sees masked classes", "z, t = jnp.where(valid, z, -jnp.inf), jnp.where(valid, t, 0)", "pass", beside("poly_loss_cross_entropy")),
    (ARRAYS, "optax: an option is one for all", "    for _ in range(every[0].ndim):", "    for _ in range(0):", beside("huber_loss")),
    (ARRAYS, "optax: axes in order, not as given", "tuple(a % ndim - ndim for a in axes)", "tuple(sorted(a % ndim - ndim for a in axes))", beside("softmax_cross_entropy_with_integer_labels")),
    (ARRAYS, "optax: a mask over rows is forgotten", "        return flat(scores, axes), None, mask\n", "        return flat(scores, axes), None, None\n", beside("softmax_cross_entropy")),
    (ARRAYS, "optax: a row without a class exists", "valid, jnp.any(valid, axis=-1)", "valid, None", beside("softmax_cross_entropy_with_integer_labels")),
    (ARRAYS, "optax: one class is repeated", "labels.shape[a] not in (1, scores.shape[a])", "labels.shape[a] < 1", test("difference and Repeated")),
    (REGRESSION, "optax: targets that are absent are ones", "jnp.zeros_like(p) if targets is None", "jnp.ones_like(p) if targets is None", beside("squared_error")),
    (REGRESSION, "optax: the floor is that of the square", "    floor = jnp.sqrt(", "    floor = (", beside("cosine_distance")),
    (REGRESSION, "optax: short vectors lack nothing", "0.5 * (u_lacks + v_lacks)", "0.0 * (u_lacks + v_lacks)", beside("cosine_distance")),
    (REGRESSION, "optax: a short vector is still a unit", "jnp.where(reached, unit(x, -1), x / jnp.where(floor > 0, floor, 1))", "unit(x, -1)", beside("cosine_distance")),
    (ARRAYS, "optax: what where excludes is counted", "(jnp.where(kept, each, fill) for each", "(each for each", beside("kl_divergence_with_log_targets")),
    (DIVERGENCE, "optax: excluded predictions count as mass", "named, dead=(-math.inf, 0.0))", "named, dead=(0.0, 0.0))", beside("generalized_kl_divergence")),
    (SEGMENTS, "optax: one channel must be 1", "legal = (p >= 0) & (p <= 1)", "legal = p == 1", test("difference and channel")),
    (SEGMENTS, "optax: false positives and negatives change places", "a * (p * (1 - t)) + b * ((1 - p) * t)", "b * (p * (1 - t)) + a * ((1 - p) * t)", "tests/compat/test_compat_optax_own_tests.py -k segmentation"),
    (SEGMENTS, "optax: an absent class is averaged in", "    weights = weights * (t.shape[-1] / jnp.sum(weights))\n", "", test("difference and Absent")),
    (SEGMENTS, "optax: no distribution is said inside jit", "return p * jnp.where(legal, 1, jnp.nan).astype(p.dtype)", "return p", test("difference and inside")),
    (EMBEDDINGS, "optax: the mean over rows", "axis_name=(), weights=pairs)", "axis_name=())", beside("ntxent")),
    (EMBEDDINGS, "optax: labels are their own indices", "jl.nt_xent(x, smaller,", "jl.nt_xent(x, index.astype(int),", beside("ntxent")),
    (EMBEDDINGS, "optax: eps is no power", "jnp.power(apart, 1 / degree)", "apart", beside("triplet_margin_loss")),
    (OTHERS, "optax: reduce_fn does not hear of empty lists", "reduce_fn(values, where=lists)", "reduce_fn(values, where=lists | True if lists is not None else None) + (0 if lists is None else 1)", beside("ranking_softmax_loss")),
    (OTHERS, "optax: the mean counts empty lists", "return reduce(values, where=lists, reduction=\"mean\")", "return reduce(values, reduction=\"mean\")", beside("ranking_softmax_loss")),
    (OTHERS, "optax: smoothing counts the mask's own entries", "t, share, kept = aligned(t, share, jnp.asarray(where).astype(bool))", "kept = jnp.asarray(where).astype(bool)", test("difference and Smoothing")),
    (CTC, "optax: the blank is a label", " | (labels == blank)\n", "\n", test("difference and range")),
    (CTC, "optax: log_epsilon is forgotten", "jnp.where(table == -jnp.inf, log_epsilon.astype(table.dtype), table)", "table", test("difference and alignment")),
    (CTC, "optax: padded frames are seen", "jnp.where(frames[..., None], logits, 0)", "logits", test("second_derivatives")),
    (FORWARD, "optax: tables pass between equal labels", "jnp.where(repeats, _NEVER, said)", "said", PATHS),
    (FORWARD, "optax: tables stay in no label", "jnp.logaddexp(free[:, :-1], said) + scores", "free[:, :-1] + scores", PATHS),
    (FORWARD, "optax: tables move in a frame that is none", "jnp.where(exists, after_blank, blanks)", "after_blank", PATHS),
    (FORWARD, "optax: tables end in the blank", "_joined(blanks[-1], said[-1])[None]", "blanks[-1:]", PATHS),
    (FORWARD, "optax: tables of large logits", "z - jnp.where(possible, top, 0)", "z", PATHS),
    (FORWARD, "optax: a class ruled out has the maximum's score", "_NEVER)\n\n    index", "-normalizer)\n\n    index", PATHS),
]  # fmt: skip
