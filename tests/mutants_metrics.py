"""Single defects in the metrics, each with the test that must catch it."""


def of_rows(words):
    return f"tests/test_metrics.py -k {words!r}"


def of_lists(words):
    return f"tests/test_ranking_metrics.py -k {words!r}"


CLASSES, CURVES, BINS, NUMBERS, LISTS, TALLIES, ORDER = (
    f"jaxloss/metrics/{name}.py"
    for name in ("classification", "curves", "calibration", "regression", "ranking", "tallies", "sorted_counts")
)

MUTANTS = [
    (CLASSES, "of equal scores the last class ranks first", "(z == own) & earlier", "(z == own) & ~earlier", of_rows("lower_index")),
    (CLASSES, "the confusion matrix is transposed", "flat.reshape(classes, classes)", "flat.reshape(classes, classes).T", of_rows("counts_once and all")),
    (CLASSES, "a bad label is counted as another class", "jnp.any(unknown & (count != 0)), jnp.nan, 0", "jnp.any(unknown & (count != 0)), 0, 0", of_rows("bad_label and confusion")),
    (CLASSES, "beta is not squared", "self._score(average, beta * beta, 1.0, zero_division)", "self._score(average, beta, 1.0, zero_division)", of_rows("f_beta")),
    (CLASSES, "classes that never occur count in the mean", "else occurs.astype(each.dtype)", "else jnp.ones_like(each)", of_rows("f_beta and macro")),
    (CLASSES, "a nan has no part in a mean", "labels + predictions != 0  #", "labels + predictions > 0  #", of_rows("nan_passes")),
    (CLASSES, "the threshold itself is a yes", "(x > limit).astype", "(x >= limit).astype", of_rows("counts_once and all")),
    (BINS, "an edge belongs to the bin above", "(p <= steps / bins) & (steps > 0)", "(p < steps / bins) & (steps > 0)", of_rows("edges_belong")),
    (BINS, "the gap is of the outcome alone", "total(count * (outcome - probability))", "total(count * outcome)", of_rows("reliability")),
    (CURVES, "a tie counts as a win", "(at.positives_before + at.positives_through)", "(2 * at.positives_through)", of_rows("counts_once and all")),
    (CURVES, "the bits of negative scores keep their order", "jnp.where(raw < 0, raw ^ jnp.int32(0x7FFFFFFF), raw)", "raw", of_rows("margin and 16")),
    (CURVES, "-0 is below 0", "jnp.where(s == 0, 0, s).astype", "s.astype", of_rows("minus_zero")),
    (CURVES, "devices compare their own scores only", "on_every_device(x, axis_name) for x in", "on_every_device(x) for x in", of_rows("inside_shard_map and few")),
    (CURVES, "an area without a negative is 0", "jnp.where(condition, x, jnp.nan)", "jnp.where(condition, x, 0)", of_rows("not_defined")),
    (NUMBERS, "the distance of two means is lost", "jnp.square(apart) * before * share", "0 * jnp.square(apart) * before * share", of_rows("cancel")),
    (NUMBERS, "the mean is one float", "        Total.of(origin).merge(Total.of(offset)),", "        Total.of(origin + offset),", of_rows("cancel")),
    (NUMBERS, "the origin is 0", "jnp.where(weight == 0, 0, origin)", "jnp.where(weight == 0, 0, 0 * origin)", of_rows("equal_targets")),
    (LISTS, "ties stand as the sort left them", "discount * _mean_of_ties(by_score, tie_starts(key))", "discount * by_score", of_lists("ndcg_is and None")),
    ("jaxloss/algorithms/smooth_ranks.py", "large grades overflow", "-jnp.exp2(settled - top) * expm1(-LN2 * settled)", "expm1(LN2 * settled)", of_lists("overflow")),
    (LISTS, "a score of -inf ties with what does not exist", "sorted_counts(jnp.where(valid, scores, jnp.nan), signed)", "sorted_counts(jnp.where(valid, scores, -jnp.inf), signed)", of_lists("not_valid")),
    (LISTS, "ndcg ties -inf with what does not exist", "key = jnp.where(valid, -scores, jnp.nan)", "key = jnp.where(valid, -scores, jnp.inf)", of_lists("not_valid and ndcg")),
    (LISTS, "ties at place k are cut in one order", "before.astype(scores.dtype) + share *", "before.astype(scores.dtype) + 1 *", of_lists("counted_out and 1")),
    (LISTS, "an unknown list is absent", "return jnp.where(unknown, jnp.nan, result), present | unknown", "return result, present & ~unknown", of_lists("cannot_be_judged and ndcg")),
    (ORDER, "equal scores are retrieved one by one", "return lax.cummin(jnp.where(end, sums, whole), axis=last, reverse=True)", "return sums + 0 * whole", of_lists("that_of_scikit")),
    (TALLIES, "what rounding dropped is dropped", "return Total(whole, jnp.where(jnp.isfinite(whole), low - (whole - high), 0))", "return Total(whole, 0 * low)", of_rows("beyond_float32")),
    (TALLIES, "other bins are merged", "if jnp.shape(mine) != jnp.shape(theirs):", "if False:", of_rows("what_is_refused")),
    (TALLIES, "long sums are rounded", "    if size <= _LANES:\n        return jnp.sum(x, axis=-1)\n", "    if size:\n        return lax.scan(lambda a, b: (a + b, None), jnp.zeros(x.shape[:-1]), jnp.moveaxis(x, -1, 0))[0]\n", of_rows("not_rounded")),
    (TALLIES, "one device speaks for all", "parts = [jax.tree.map(lambda x: x[i], stacked) for i in range(size)]", "parts = [jax.tree.map(lambda x: x[i], stacked) for i in range(1)]", of_rows("inside_shard_map and few")),
]  # fmt: skip
