"""Single defects in the surrogates of ranking metrics and their engines, each with the test that must catch it."""


def of_ranks(words):
    return f"tests/test_smooth_ranks.py -k {words!r}"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


RANKS, SIGMOIDS, SWAPS, PAIRS = (
    f"jaxloss/algorithms/{name}.py" for name in ("smooth_ranks", "sorted_sigmoids", "swapped_pairs", "sorted_pairs")
)
LOSSES = "jaxloss/losses/ranking_surrogates.py"

MUTANTS = [
    (RANKS, "those behind push down", "return behind.sigmoids() - before.sigmoids(), pulled", "return behind.sigmoids() + before.sigmoids(), pulled", of_ranks("dcg_gap and order-normal")),
    (RANKS, "an item's own rank does not move it", "before.slopes() + behind.slopes() - rise * steep", "before.slopes() + behind.slopes() - 0 * rise * steep", of_ranks("dcg_gap and order-normal")),
    (RANKS, "equal gains stand as they come", "    _, best = lax.sort((-lax.stop_gradient(g), item), dimension=last, num_keys=1)", "    _, best = lax.sort((-lax.stop_gradient(g), -item), dimension=last, num_keys=2)\n    best = -best", of_ranks("dcg_gap and pairs-in and good")),
    (RANKS, "what is close is subtracted", "    near = jnp.abs(part) < 0.5", "    near = jnp.abs(part) < 0", of_ranks("keeps_its_digits")),
    (RANKS, "invalid items are ranked", "lax.sort((jnp.where(valid, -scores, nowhere), gains, item)", "lax.sort((-scores, gains, item)", of_ranks("dcg_gap and pairs-normal")),
    (RANKS, "slopes stay in the order of the scores", "    each = (taken(a, back) for a in (slope, lost, counted))", "    each = (taken(a, order) for a in (slope, lost, counted))", of_ranks("dcg_gap and pairs-normal")),
    (RANKS, "the Hessian is halved", "jax.jvp(slopes, (scores, gains), tuple(tangents[:2]))", "jax.jvp(slopes, (scores, gains), (0.5 * tangents[0], tangents[1]))", of_ranks("every_derivative and smooth")),
    (RANKS, "short lists are sorted into all pairs, and long ones too", "_gap(scores.shape[-1] <= short,", "_gap(scores.shape[-1] <= 10**9 + short,", of_ranks("compiled_for_use")),
    (SIGMOIDS, "the falls forget what the powers lose", "moved = decay[:-1] * (left.falls - expm1(-far) * left.powers[1:])", "moved = decay[:-1] * left.falls", of_ranks("dcg_gap and order-normal")),
    (SIGMOIDS, "the last step to an item is left out", "total = total + coefficient * power * (self.falls[k] + self.rest * self.powers[k + 1])", "total = total + coefficient * power * self.falls[k]", of_ranks("dcg_gap and order-normal")),
    (SIGMOIDS, "a coefficient is off in the sixth digit", "2.999843949972297", "2.999853949972297", "tests/test_sorted_pairs.py -k 'polynomials and SQUARED'"),
    (SWAPS, "the highest of all groups bounds every group", "taken(highest, ends(level.first))", "highest[..., -1:]", of_ranks("swapped_pairs and order-normal")),
    (SWAPS, "discounts change only within a step", "decay * (left.raised + y[None] * left.decayed) + right.raised", "decay * left.raised + right.raised", of_ranks("swapped_pairs and order-normal")),
    (SWAPS, "a wrong order pulls like a right one", "with_lower(above.y - above.sigmoid)", "with_lower(above.sigmoid)", of_ranks("swapped_pairs and order-normal")),
    (SWAPS, "the last of equal scores is ranked first", "        (jnp.flip(lax.stop_gradient(scores), -1), jnp.flip(item, -1)), dimension", "        (lax.stop_gradient(scores), item), dimension", of_ranks("equal_scores_are_ranked")),
    (SWAPS, "invalid items take ranks", "    worth = discount(taken(_ranks(taken(valid, order))", "    worth = discount(taken(_ranks(taken(valid, order) | True)", of_ranks("swapped_pairs and pairs-normal")),
    (SWAPS, "the Hessian of the swaps is halved", "jax.jvp(lambda scores: _swept(scores, *primals[1:])[1], primals[:1], tangents[:1])", "jax.jvp(lambda scores: _swept(scores, *primals[1:])[1], primals[:1], (0.5 * tangents[0],))", of_ranks("every_derivative and swapped")),
    (RANKS, "gains are exponents", "-jnp.exp2(settled - top) * expm1(-LN2 * settled)", "jnp.exp2(settled - top)", laws("approx_ndcg")),
    (LOSSES, "the temperature is ignored", "dcg_gap(s / temperature,", "dcg_gap(s + 0 * temperature,", laws("approx_ndcg")),
    (LOSSES, "every item is relevant", "valid & (relevance >= 1)", "valid & (relevance >= 0)", laws("approx_mrr")),
    (LOSSES, "the item itself is ahead of itself", "jnp.where(valid & ~first, sigmoid", "jnp.where(valid, sigmoid", laws("approx_mrr")),
    (LOSSES, "a list of one grade counts", "~(high <= low)", "high >= low", of_ranks("say_nothing_are_absent")),
    (LOSSES, "the origin matters", "jnp.where(valid, s - lax.stop_gradient(jnp.sum(jnp.where(valid, s, 0), axis=axis, keepdims=True) / size), 0)", "jnp.where(valid, s - 0 * size, 0)", of_ranks("common_offset")),
    (LOSSES, "negatives are not spread", "mean(jnp.square(s - a), share) + mean(jnp.square(s - b), other)", "mean(jnp.square(s - a), share)", laws("auc_margin")),
]  # fmt: skip
