"""Single defects in the chains, in soft_dtw and in the language family, each with the test that must catch it."""

CHAIN = "jaxloss/algorithms/linear_chain.py"
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
    (CHAIN, "transitions go from column to row", "    return _taken(transitions.reshape(-1), before * transitions.shape[0] + labels)", "    return _taken(transitions.T.reshape(-1), before * transitions.shape[0] + labels)", chain("every_path")),
    (CHAIN, "what underflowed is trusted", "    return jnp.minimum(entry / (limits.message * limits.least_entry), total / limits.least_sum)", "    return total / limits.least_sum", chain("lost_late")),
    (CHAIN, "the fallback is never taken", "    return lax.while_loop(lambda carry: ~carry[0], again, (trusted, found))[1]", "    return lax.while_loop(lambda carry: carry[0] & ~carry[0], again, (trusted, found))[1]", chain("'every_path and 1000'")),
    (CHAIN, "a sure sequence is a difference", "    return jnp.where(likely, log1p(others / jnp.where(likely, own, 1)), far), arrived", "    return far, arrived", chain("sure")),
    (CHAIN, "the gradient at the label cancels", "jnp.where(here, -others, states) * d_chain.emissions", "(states - here) * d_chain.emissions", chain("sure")),
    (CHAIN, "a forbidden path has a gradient", "    states, pairs = jnp.where(possible[..., None], states, 0), jnp.where(possible[..., None, None], pairs, 0)\n", "", chain("forbidden")),
    (CHAIN, "a forbidden path is finite", "    return jnp.where(_possible(chain, labels), nll, jnp.inf)", "    return nll", chain("forbidden")),
    (CHAIN, "observed transitions are not subtracted", "precision=\"highest\") - jnp.sum(observed, axis=0)", "precision=\"highest\")", chain("every_path")),
    (CHAIN, "nothing leads into a state", "    rest = _with_shift(chain.before, backward.entries, into)\n", "    rest = backward.entries\n", chain("real_size")),
    (CHAIN, "the end is everywhere the last step", "        last = exists & ~jnp.concatenate([exists[..., 1:], jnp.zeros_like(exists[..., :1])], axis=-1)", "        last = jnp.broadcast_to(jnp.arange(exists.shape[-1]) == exists.shape[-1] - 1, exists.shape)", chain("lengths")),
    (CHAIN, "viterbi goes on behind the length", "        return jnp.where(linked, _first_largest(before + into), label), label", "        return _first_largest(before + into), label", chain("lengths")),
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
