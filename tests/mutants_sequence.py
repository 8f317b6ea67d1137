"""Single defects in the chains, in soft_dtw and in the language family, each with the test that must catch it."""

CHAIN = "jaxloss/algorithms/linear_chain.py"
PARTS = "jaxloss/algorithms/linear_chain_parts.py"
SCALED = "jaxloss/algorithms/linear_chain_scaled.py"
BEST = "jaxloss/algorithms/linear_chain_best.py"
WARP = "jaxloss/algorithms/soft_dtw.py"
SEQUENCE = "jaxloss/losses/sequence.py"
LANGUAGE = "jaxloss/losses/language.py"
FRAMES = "jaxloss/core/frames.py"


def chain(name):
    return f"tests/test_linear_chain.py -k {name}"


def warp(name):
    return f"tests/test_soft_dtw.py -k {name}"


def language(name):
    return f"tests/test_language.py -k {name}"


MUTANTS = [
    (CHAIN, "chains without a path have marginals", "        factor = jnp.where(reachable(chain_of(e, a, exists)), factor, jnp.nan)", "        factor = jnp.where(reachable(chain_of(e, a, exists)), factor, 1)", chain("no_path")),
    (PARTS, "what can be reached goes backwards", "    steps = (~(transitions.T <= FORBIDDEN))", "    steps = (~(transitions <= FORBIDDEN))", chain("no_path")),
    (PARTS, "transitions go from column to row", "    index = before * transitions.shape[0] + labels", "    index = before + transitions.shape[0] * labels", chain("every_path")),
    (SCALED, "what underflowed is trusted", "        return jnp.all(enough & (entry >= limits.message * limits.least_entry))", "        return jnp.all(enough)", chain("lost_late")),
    (SCALED, "no transition is too small", "    return lax.cond(dense, lambda: dense | jnp.any(messages[0][0] < 0), all_kept)", "    return lax.cond(dense | True, lambda: dense | True, all_kept)", chain("lost_late")),
    (SCALED, "a label that underflowed is trusted", "    good = (own >= limits.least_own) & (ratio <= limits.most_unlikely)", "    good = own >= 0", chain("'every_path and 1000'")),
    (CHAIN, "the fallback is never taken", "    return lax.while_loop(lambda carry: ~carry[0], again, (trusted, found))[1]", "    return lax.while_loop(lambda carry: carry[0] & ~carry[0], again, (trusted, found))[1]", chain("'every_path and 1000'")),
    (SCALED, "a sure sequence is a difference", "log1p(ratio)", "jnp.log(1 + ratio)", chain("sure")),
    (CHAIN, "the gradient at the label cancels", "    slopes = jnp.where(here, -others[:, None], joint) * (1 / total)[:, None]", "    slopes = joint * (1 / total)[:, None] - here", chain("sure")),
    (CHAIN, "a forbidden path has a gradient", "jnp.where(there[None, None], slopes, 0)", "slopes", chain("forbidden")),
    (CHAIN, "a forbidden path is finite", "    nll = _unless(trusted, found, lambda *read: log_expectations(*read).nll, chain, labels)\n    return jnp.where(there, nll, jnp.inf)", "    nll = _unless(trusted, found, lambda *read: log_expectations(*read).nll, chain, labels)\n    return nll", chain("forbidden")),
    (CHAIN, "observed transitions are not subtracted", "        tangent = tangent - jnp.sum(", "        tangent = tangent - 0 * jnp.sum(", chain("every_path")),
    (CHAIN, "a message is scaled by the wrong step", "    later = jnp.concatenate([scale[1:], scale[:1]])", "    later = scale", chain("real_size")),
    (SCALED, "nothing leads into a state", "    e = e + jnp.where(chain.before[:, None], into.reshape(shape), 0)\n", "", chain("real_size")),
    (SCALED, "the end is taken from behind the length", "jnp.where(linked[None], product[:-1] * scale[None], limits.message)", "product[:-1] * scale[None]", chain("lengths")),
    (CHAIN, "the end is everywhere the last step", "        last = exists & ~jnp.concatenate([exists[..., 1:], jnp.zeros_like(exists[..., :1])], axis=-1)", "        last = jnp.broadcast_to(jnp.arange(exists.shape[-1]) == exists.shape[-1] - 1, exists.shape)", chain("lengths")),
    (BEST, "viterbi goes on behind the length", "        return jnp.where(linked, _first_largest(before + into), label), label", "        return _first_largest(before + into), label", chain("lengths")),
    (WARP, "no step goes down", "    cells = near, _from_above(near), _from_above(far)", "    cells = near, near, _from_above(far)", warp("every_alignment")),
    (WARP, "the corner is read relative to another diagonal", "before[:-1] - taken[:-1]", "before[:-1]", warp("every_alignment")),
    (WARP, "values are not kept near the path", "        taken = lax.stop_gradient(jnp.min(here, axis=-1, keepdims=True))", "        taken = 0 * lax.stop_gradient(jnp.min(here, axis=-1, keepdims=True))", warp("real_size")),
    (WARP, "the first cell has a choice", "jnp.where(k == 0, 0, jnp.sum(share * choice.entropy, axis=-1))", "jnp.sum(share * choice.entropy, axis=-1)", warp("every_alignment")),
    (WARP, "the end is the corner of the padding", "    return last[..., 0] + here, last[..., 1] + here", "    return 0 * last[..., 0] + here + 4, 0 * last[..., 1] + here + 3", warp("lengths")),
    (SEQUENCE, "an empty series counts", "        return jnp.where(present, found, 0), present", "        return jnp.where(present, found, 0), present | True", warp("lengths")),
    (LANGUAGE, "the label is the token itself", "        labels=_later(label, 0),", "        labels=label,", language("stands_at_the_token")),
    (LANGUAGE, "the last position predicts", "    predicts = jnp.arange(label.shape[-1]) < label.shape[-1] - 1", "    predicts = jnp.arange(label.shape[-1]) < label.shape[-1]", language("stands_at_the_token")),
    (LANGUAGE, "a mask is of the predicting position", "        where=None if mask is None else _later(mask, False),", "        where=mask,", language("where_and_weights")),
    (LANGUAGE, "documents predict each other", "(segment > 0) & (segment == _earlier(segment, 0))", "(segment > 0)", language("packed")),
    (LANGUAGE, "padding is predicted", "(segment > 0) & (segment == _earlier(segment, 0))", "(segment == _earlier(segment, 0))", language("packed")),
    (LANGUAGE, "top_k scales the balance", "jnp.sum(jax.nn.one_hot(chosen, z.shape[-1]), axis=-2) / top_k", "jnp.sum(jax.nn.one_hot(chosen, z.shape[-1]), axis=-2)", language("balance_is_one")),
    (FRAMES, "pooled: devices pool for themselves", "        return lax.psum(total, axis_name) if axis_name else total", "        return total", language("over_devices")),
]  # fmt: skip
