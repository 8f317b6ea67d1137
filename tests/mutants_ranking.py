"""Single defects in the losses of lists and their engine, each with the test that must catch it."""


def of_pairs(words):
    return f"tests/test_sorted_pairs.py -k {words!r}"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


ENGINE, ORDER, SUMS = (f"jaxloss/algorithms/sorted_{name}.py" for name in ("pairs", "order", "sums"))
RANKING, FRAMES = "jaxloss/losses/ranking.py", "jaxloss/core/frames.py"

MUTANTS = [
    (ENGINE, "a pair at the margin itself is active", "active = (ahead < limit) |", "active = (ahead <= limit) |", of_pairs("every_pair and hinge and tied and binary")),
    (ENGINE, "what rounding dropped decides nothing", "(ahead == limit) & (dropped < 0)", "(ahead == limit) & (dropped != dropped)", of_pairs("long_list")),
    (SUMS, "the way back to a lower group overflows", "jnp.where(first[..., 1:], 0, x[..., 1:] - x[..., :-1])", "x[..., 1:] - x[..., :-1]", of_pairs("every_pair and logistic and tails and graded")),
    (ENGINE, "the bisection forgets its last step", "    steps = x.shape[-1].bit_length()\n    return way * lax.fori_loop(0, steps,", "    steps = x.shape[-1].bit_length()\n    return way * lax.fori_loop(0, steps - 1,", of_pairs("every_pair and hinge and normal and binary")),
    (ENGINE, "pairs reach into other groups", "    room = jnp.where(level.upper, here - room_down, room_up - here)", "    room = jnp.where(level.upper, here, x.shape[-1] - 1 - here) + 0 * (room_up - room_down)", of_pairs("every_pair and hinge and normal and graded")),
    (ENGINE, "what lies between the edge and the margin is dropped", "value, size = distance + rest * count, count", "value, size = distance, count", of_pairs("every_pair and hinge and normal and binary")),
    (ENGINE, "the square's middle term counts once", "rest * (2 * distance + rest * count)", "rest * (distance + rest * count)", of_pairs("every_pair and squared_hinge and normal and binary")),
    (ENGINE, "groups of the next bit are not formed", "lax.cond(jnp.any(above > 0), lambda c: _regrouped(c, bit), _same, carry)", "lax.cond(jnp.any(above < 0), lambda c: _regrouped(c, bit), _same, carry)", of_pairs("every_pair and hinge and normal and graded")),
    (ENGINE, "invalid items make pairs", "carry.real & upper, carry.real & ~upper", "upper, ~upper", of_pairs("every_pair and hinge and normal and binary")),
    (ENGINE, "wrongly ordered pairs pull like the right ones", "of_upper = -(above[0][0][1] - high[1] + low[1])", "of_upper = -(high[1] + low[1])", of_pairs("every_pair and logistic and normal and binary")),
    (ENGINE, "the Hessian is halved", "(scores, margin), (ds, dm))", "(scores, margin), (0.5 * ds, dm))", of_pairs("every_derivative and squared")),
    (ENGINE, "slopes stay in the order of the scores", "taken(done.slope, inverse(taken(order, done.place)))", "taken(done.slope, inverse(done.place))", of_pairs("every_pair and hinge and normal and binary")),
    (ENGINE, "an unknown relevance is the highest", "valid & ~jnp.isnan(relevance) &", "valid &", of_pairs("unknown_relevance")),
    (ORDER, "the partition is not stable", "start + jnp.where(bit > 0, zeros + (iota(bit) - start) - zeros_before, zeros_before)", "start + jnp.where(bit > 0, zeros + (iota(bit) - start) - zeros_before, zeros - 1 - zeros_before)", of_pairs("every_pair and hinge and normal and graded")),
    (ORDER, "invalid items count as pairs", "highs * jnp.sum(valid & ~upper, axis=-1)", "highs * jnp.sum(~upper, axis=-1)", of_pairs("every_pair and hinge and normal and binary")),
    (SUMS, "sums go on into the next group", "    kept = jnp.where(right.anew, 0, jnp.ones_like(right.length))", "    kept = jnp.where(right.anew, 1, jnp.ones_like(right.length))", of_pairs("every_pair and logistic and normal and graded")),
    (SUMS, "long arrays are summed along their first axis", "        total = total + coefficient * part\n    return total", "        total = total + coefficient * part\n    row = jnp.asarray(table[sums.dtype == jnp.float64], sums.dtype)\n    return jnp.sum(sums * row.reshape(row.shape + (1,) * (sums.ndim - 1)), axis=0)", of_pairs("compiled_for_use")),
    (SUMS, "a coefficient is off in the seventh digit", "0.1967811725740179", "0.1967812725740179", of_pairs("polynomials")),
    (FRAMES, "long lists are all pairs", "if beyond is not None and s.shape[-1] > beyond[0]:", "if beyond is not None and s.shape[-1] > 10**9 + beyond[0]:", of_pairs("memory_is_linear")),
    (RANKING, "the first draw is left out", "jnp.sum(jnp.where(contested, softplus(gap), 0), axis=-1)", "jnp.sum(jnp.where(contested, softplus(gap), 0)[..., 1:], axis=-1)", laws("list_mle")),
    (RANKING, "the order of rising relevance", "    key = jnp.where(v, -lax.stop_gradient(r), jnp.inf)", "    key = jnp.where(v, lax.stop_gradient(r), jnp.inf)", laws("list_mle")),
    (RANKING, "the margin is not differentiated", "    lambda difference, margin: (margin - difference > 0).astype(difference.dtype),\n", "    None,\n", laws("pairwise_hinge", "float64")),
    (RANKING, "the sign of a pair is forgotten", "        return _hinge(signs * (a - b), margin)", "        return _hinge(a - b, margin)", laws("margin_ranking")),
    (RANKING, "the drawn item is preferred", "        return softplus(negative - positive)", "        return softplus(positive - negative)", laws("bayesian")),
]  # fmt: skip
