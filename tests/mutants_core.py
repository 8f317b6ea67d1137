"""Single defects in core, algorithms and losses, each with the test that must catch it."""


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


CORE = "jaxloss/core/"
REDUCTION, FRAMES, INPUTS = CORE + "reduction.py", CORE + "frames.py", CORE + "inputs.py"
NUMERICS, FORMULAS, COMPILED, SHARDING = (
    CORE + "numerics.py", CORE + "formulas.py", CORE + "compiled.py", CORE + "sharding.py",
)  # fmt: skip
ENTMAX = "jaxloss/algorithms/entmax.py"
LOSSES = "jaxloss/losses/"
BY_HAND = "tests/test_reduction.py"
BAD_INPUT = "tests/test_inputs.py"
EXACT = "tests/test_exactness.py"
PIECES = "tests/test_numerics.py"
RELATIONS = "tests/test_relations.py"
OPTIONS = "tests/test_compiled.py"
HOUSE = "tests/test_house.py"

MUTANTS = [
    # --- the import
    ("jaxloss/__init__.py", "importing jaxloss imports train", "import importlib\nfrom typing", "import importlib\nimport jaxloss.train\nfrom typing", HOUSE + " -k import_is_cheap"),
    ("jaxloss/__init__.py", "a name of train is not found", "_OF_TRAIN = (\"Aux\", \"make_train_step\")", "_OF_TRAIN = (\"make_train_step\",)", HOUSE + " -k import_is_cheap"),
    # --- reduction
    (REDUCTION, "a mask does not reach the values", "values = jnp.where(mask, values, 0)", "values = values + 0", BY_HAND),
    (REDUCTION, "a weight behind a mask is looked at", "None if weight is None else jnp.where(mask, weight, 0)", "weight", BY_HAND),
    (REDUCTION, "nothing valid is 0 / 0", "    return jnp.where(empty, 0, total / jnp.where(empty, 1, weight))", "    return total / weight", BY_HAND),
    (REDUCTION, "a single select: the gradient of nothing is nan", "total / jnp.where(empty, 1, weight))", "total / weight)", BY_HAND),
    (REDUCTION, "half precision counts in half precision", "values = widen(jnp.asarray(values))", "values = jnp.asarray(values)", BY_HAND),
    (REDUCTION, "the mean divides by the size", "        return jnp.sum(mask, dtype=values.dtype)", "        return jnp.asarray(values.size, values.dtype)", BY_HAND),
    (REDUCTION, "none forgets the weights", "    if reduction == \"none\":\n        return values", "    if reduction == \"none\":\n        return values if weight is None else values / weight", BY_HAND),
    (REDUCTION, "shares are forgotten", "        each = each * share.astype(values.dtype)", "        each = each * 1.0", BY_HAND),
    (REDUCTION, "float masks are let through", "    if mask.dtype != jnp.bool_:", "    if False:", BY_HAND),
    (REDUCTION, "bool weights are let through", "    if weights.dtype == jnp.bool_:", "    if False:", BY_HAND),
    (REDUCTION, "a mask of lower rank broadcasts", "    fits = small.ndim == 0 or (", "    fits = small.ndim < len(shape) or (", BY_HAND),
    (REDUCTION, "merge forgets the coupling", "self.coupled or other.coupled", "self.coupled", BY_HAND),
    (REDUCTION, "a factor scales the weight too", "return Mean(self.total * factor, self.weight, self.coupled)", "return Mean(self.total * factor, self.weight * factor, self.coupled)", BY_HAND),
    # --- frames
    (FRAMES, "pointwise: inputs stay behind the mask", "    ready = [inputs.neutralised(x, mask).astype(dtype) for x in named.values()]\n    value = formula(*ready, *inputs.as_scalars(scalars, dtype))\n    return _reduced(value, shape", "    ready = [x.astype(dtype) for x in named.values()]\n    value = formula(*ready, *inputs.as_scalars(scalars, dtype))\n    return _reduced(value, shape", laws("log_cosh")),
    (FRAMES, "labelled: a bad label is selected, not multiplied", "_times(value, jnp.where(in_range, 1, jnp.nan))", "jnp.where(in_range, value[0] if isinstance(value, tuple) else value, jnp.nan)", BAD_INPUT),
    (FRAMES, "labelled: bad labels are clipped in silence", "    in_range = (index >= 0) & (index < classes)", "    in_range = index == index", BAD_INPUT),
    (FRAMES, "labelled: labels of another shape", "    demand(chex.assert_shape, index, shape, error=ValueError, message=message)\n    mask", "    mask", BAD_INPUT),
    (FRAMES, "beside a mask invalid classes stay", "    return ready, kept if kept is None or mask is None else kept | ~jnp.expand_dims(mask, axes)", "    return ready, kept if kept is None or mask is None else kept | True", "tests/test_frames.py"),
    (FRAMES, "listwise: an empty list counts", "    mask = filled if mask is None else mask & filled\n", "    mask = mask\n", "tests/test_frames.py"),
    (FRAMES, "pairwise: equal relevance makes a pair", "r[..., :, None] > r[..., None, :]", "r[..., :, None] >= r[..., None, :]", laws("pairwise")),
    (FRAMES, "pairwise: a list without a pair counts", "if pairs == \"mean\" else total, count > 0", "if pairs == \"mean\" else total, count > -1", "tests/test_frames.py"),
    (FRAMES, "batchwise: absent rows stay present", "    present = jnp.ones((rows,), bool) if mask is None else mask", "    present = jnp.ones((rows,), bool)", laws("info_nce-ND-ND")),
    (FRAMES, "batchwise: not marked as coupled", "return _reduced(value, (rows,), mask, weights, reduction, coupled=True)", "return _reduced(value, (rows,), mask, weights, reduction)", laws("info_nce-ND-ND")),
    (FRAMES, "statistic: partial is let through", "    if reduction == \"partial\":\n        raise", "    if False:\n        raise", laws("root_mean")),
    (FRAMES, "statistic: weights are forgotten", "    if weight is None:\n        weight = jnp.ones(shape, dtype)", "    weight = jnp.ones(shape, dtype)", laws("root_mean")),
    (FRAMES, "sequencewise: one step too many", "    return time < jnp.expand_dims(count, -1)", "    return time <= jnp.expand_dims(count, -1)", laws("token_nll-NTV-NT-N")),
    (FRAMES, "sequencewise: what lies behind stays", "            named[array] = inputs.neutralised(x, exists, tuple(range(len(shape) + 1, x.ndim)))", "            named[array] = x", laws("token_nll-NTV-NT-N")),
    (FRAMES, "a formula of the wrong shape is broadcast", "    demand(chex.assert_shape, value, shape, error=ValueError, message=message)\n    return reduce", "    value = jnp.broadcast_to(value, shape)\n    return reduce", BAD_INPUT),
    # --- inputs
    (INPUTS, "one shape is not asked for", "        demand(chex.assert_equal_shape, [reference, x], error=ValueError, message=message)", "        pass", BAD_INPUT),
    (INPUTS, "integer predictions are let through", "            _assert_dtype(x, jnp.floating, f\"`{name}` must be floating, got {x.dtype}{cure}\")", "            pass", BAD_INPUT),
    (INPUTS, "float labels are let through", "            _assert_dtype(x, jnp.integer, f\"`{name}` must be integer class indices, got {x.dtype}\")", "            pass", BAD_INPUT),
    (INPUTS, "vectors are taken as scalars", "        demand(chex.assert_shape, x, (), error=ValueError, message=message)", "        pass", BAD_INPUT),
    (INPUTS, "an axis may be out of range", "    if any(not -ndim <= a < ndim for a in axes):", "    if False:", BAD_INPUT),
    (INPUTS, "nothing is put behind the mask", "NEUTRAL = 0.5", "NEUTRAL = float('nan')", laws("huber")),
    (CORE + "demand.py", "what fails is let through", "        raise error(message) from None", "        return", BAD_INPUT),
    # --- compiled
    (COMPILED, "every argument is static", "for name, hint in _hints(function).items() if _domain(hint) is None}", "for name, hint in _hints(function).items() if _domain(hint) is None or name == 'delta'}", OPTIONS),
    (COMPILED, "unknown words are let through", "        return next((word for word in get_args(part) if type(word) is type(value) and word == value), _NOTHING)", "        return value", OPTIONS),
    (COMPILED, "options keep their spelling", "            return operator.index(value)", "            return value if operator.index(value) else value", OPTIONS),
    (COMPILED, "a checked trace is hidden by jit's cache", "        if observer is None:\n            if inner", "        if True:\n            if inner", "tests/test_checks.py -k 'a_scan_inside or neither_hides'"),
    # --- sharding
    (SHARDING, "hidden rows are not refused", "    if axis_name is None and manual:", "    if False:", "tests/test_sharding.py -k refuse"),
    (SHARDING, "local rows take the first device's keys", "return local + count * lax.axis_index(axis_name) if axis_name else local", "return local", "tests/test_sharding.py -k 'shard_map and info_nce-ND-ND or refuse'"),
    (SHARDING, "a sharded class axis is gathered", "    if is_sharded(scores, axis):", "    if False:", "tests/test_sharding.py -k class_axis"),
    # --- numerics
    (NUMERICS, "a slope multiplies tangents that are zero", "if slope is not None and not isinstance(tangent, SymbolicZero)", "if slope is not None", PIECES + " -k differentiable_skips"),
    (NUMERICS, "log1p by XLA", "    if x.dtype == jnp.float64:\n        return jnp.log1p(x)\n    # x - s", "    if True:\n        return jnp.log1p(x)\n    # x - s", PIECES + " -k log1p"),
    (NUMERICS, "expm1 by XLA", "    if x.dtype == jnp.float64:\n        return jnp.expm1(x)", "    if True:\n        return jnp.expm1(x)", PIECES + " -k expm1"),
    (NUMERICS, "log cosh by its definition", "    return inner + (beyond + log1p_near(_BEYOND_ONE * jnp.exp(-2 * beyond) - _BEYOND_ONE))", "    return jnp.log(jnp.cosh(x))", PIECES + " -k log_cosh"),
    (CORE + "coefficients.py", "a coefficient is off in the seventh digit", "0.3333333366026371", "0.3333334366026371", PIECES + " -k coefficients_are_those"),
    (NUMERICS, "|x| has slope 1 at 0", "lambda x: jnp.sign(lax.stop_gradient(x))", "lambda x: jnp.where(x < 0, -1.0, 1.0)", laws("absolute_error")),
    (NUMERICS, "vectors are not scaled before squaring", "    scaled = x / scale_exponent(x, axis)", "    scaled = x", PIECES + " -k huge_and_tiny"),
    (NUMERICS, "the zero vector's direction is nan", "    return jnp.where(alive, scaled / jnp.sqrt(jnp.where(alive, square, 1)), 0)", "    return scaled / jnp.sqrt(square)", PIECES + " -k unit_of_the_zero_vector"),
    (NUMERICS, "what rounding left is dropped", "    return difference, (x - (difference - back)) - (y + back)", "    return difference, 0 * back", EXACT + " -k 'softmax_cross_entropy_rows'"),
    # --- formulas
    (FORMULAS, "others as a difference: confident rows are 0", "gap + log1p(jnp.where(gap == 0, others, (others - 1) + at_label))", "gap + jnp.log(others + at_label)", EXACT + " -k 'softmax_cross_entropy_rows'"),
    (FORMULAS, "p - 1 at the label", "    gradient = jnp.where(is_label(z, labels, axis), -others, e) / (others + at_label)", "    gradient = e / (others + at_label) - is_label(z, labels, axis)", EXACT + " -k 'softmax_cross_entropy_rows'"),
    (FORMULAS, "the grouped sum forgets the label's group", "    return rest + jnp.sum(jnp.where", "    return 0 * rest + jnp.sum(jnp.where", PIECES + " -k grouped_classes"),
    (FORMULAS, "exp without a shift whatever the range", "lax.cond(jnp.all((m >= low) & (m <= high)), unshifted", "lax.cond(jnp.all(m >= low), unshifted", PIECES + " -k 'every_offset'"),
    (FORMULAS, "one row decides for all", "lax.cond(jnp.all((m >= low) & (m <= high)), unshifted", "lax.cond(jnp.any((m >= low) & (m <= high)), unshifted", PIECES + " -k 'out_of_range'"),
    (FORMULAS, "the sum without a shift is not scaled", "        return sum_over(jnp.exp, x, labels, axis) * jnp.exp(-m)", "        return sum_over(jnp.exp, x, labels, axis)", PIECES + " -k 'every_offset'"),
    (FORMULAS, "the label's neighbours are left out too", "jnp.minimum(steps_away, 1)", "jnp.minimum(0.5 * steps_away, 1)", PIECES + " -k 'plain_sum and 64'"),
    (FORMULAS, "second derivatives take the parts for constants", "    parts = _label_parts(z, labels, axis)\n", "    parts = lax.stop_gradient(_label_parts(z, labels, axis))\n", PIECES + " -k without_a_shift_have_hessians"),
    (FORMULAS, "a target of 0 meets an infinite logit", "jnp.sum(most * t + (lacking * t) * largest, axis=axis))", "jnp.sum(from_max * t, axis=axis))", laws("softmax_cross_entropy_with_soft_labels")),
    (FORMULAS, "the one maximum by a difference", "    return jnp.where(is_label(z, top, axis) & sure, at_top, scale * e - t)", "    return scale * e - t", EXACT + " -k soft_label"),
    (FORMULAS, "what the others hold by a difference", "    return jnp.sum(t * jnp.minimum(steps - 0.125, 0.0625), axis=axis)", "    return (jnp.sum(t, axis=axis) - jnp.squeeze(take_label(t, top, axis), axis)) / 16", EXACT + " -k soft_target_leaves"),
    (FORMULAS, "the maximum's own exponential has no slope", "    normalizer = _at_top(z, top, axis) + rest", "    normalizer = 1 + rest", "tests/test_numerics.py -k softmax_pieces"),
    (FORMULAS, "a row without targets is nan where it has no class", "    moved = jnp.where(mass == 0, 0, jnp.sum(", "    moved = jnp.where(mass < 0, 0, jnp.sum(", laws("softmax_cross_entropy_with_soft_labels")),
    (FORMULAS, "softplus's slope by exp(-|x|): its Hessian at 0 is wrong", "log1p_near(_decay(x)), sigmoid)", "log1p_near(_decay(x)), lambda x: jnp.where(x > 0, 1, _decay(x)) / (1 + _decay(x)))", PIECES + " -k softplus"),
    (FORMULAS, "log1p(exp(-|x|)) by the plain logarithm", "_wrong_side_part(x, t, 1 - t) + log1p_near(_decay(x))", "_wrong_side_part(x, t, 1 - t) + jnp.log(1 + _decay(x))", EXACT + " -k 'scalar and sigmoid'"),
    (FORMULAS, "the focal factor by 1 - exp", "    return -expm1(-nll)", "    return 1 - jnp.exp(-nll)", EXACT + " -k softmax_focal"),
    (FORMULAS, "an infinite logit that is right is inf * 0", "    finite = jnp.minimum(jnp.abs(x), largest)", "    finite = jnp.abs(x)", RELATIONS + " -k infinite_logits"),
    (FORMULAS, "an infinite logit that is wrong costs a finite number", "    return most * weight + (lacking * weight) * largest", "    return most * weight", RELATIONS + " -k infinite_logits"),
    (NUMERICS, "a slope shares its arrays with the value", "cpu=lax.optimization_barrier, default=_as_it_is", "cpu=_as_it_is, default=_as_it_is", PIECES + " -k one_pass"),
    (LOSSES + "binary.py", "hinge pulls at the margin itself", "jnp.where(signs * scores < one, -signs, zero)", "jnp.where(signs * scores <= one, -signs, zero)", RELATIONS + " -k hinge_at_the_margin"),
    (FORMULAS, "an infinite slope of the focal power", "    gone = (q == 0) & (gamma < 1)", "    gone = q < 0", laws("sigmoid_focal")),
    (FORMULAS, "the sign of the soft-label slope in its targets", "        each = jnp.expand_dims(log_sum_exp(z, axis), axis) - widen(z)", "        each = widen(z) - jnp.expand_dims(log_sum_exp(z, axis), axis)", laws("softmax_cross_entropy_with_soft_labels")),
    # --- algorithms
    (ENTMAX, "Newton stops after one step", "return jnp.any(moved) & (count < _STEPS)", "return jnp.any(moved) & (count < 1)", laws("entmax")),
    (ENTMAX, "p_label - 1 by a difference of p", "jnp.sum(jnp.where(here, -o, p) * dz, axis=axis)", "jnp.sum(jnp.where(here, o, p) * dz, axis=axis)", laws("sparsemax")),
    (ENTMAX, "a label below the threshold costs nothing more", "alpha * jnp.maximum(-above, 0)", "0 * above", laws("entmax")),
    (ENTMAX, "the Jacobian forgets the mean", "    return p, s * (dz - mean)", "    return p, s * dz + 0 * mean", laws("entmax", "float64")),
    # --- losses
    (LOSSES + "regression.py", "huber: half is dropped", "return q * (jnp.abs(r) - 0.5 * q)  # both", "return q * (jnp.abs(r) - q)  # both", laws("huber")),
    (LOSSES + "regression.py", "huber: delta is not differentiated", "    lambda r, delta: jnp.maximum(jnp.abs(r) - delta, 0),\n", "    lambda r, delta: 0 * delta,\n", "tests/test_relations.py"),
    (LOSSES + "regression.py", "smooth_l1: slope of huber", "    lambda r, beta: jnp.clip(r / beta, -1, 1),", "    lambda r, beta: jnp.clip(r, -beta, beta),", laws("smooth_l1")),
    (LOSSES + "regression.py", "cosine distance as 1 - <u, v>", "0.5 * jnp.sum(jnp.square(_over_length(p, of_p, axis) - _over_length(t, of_t, axis)), axis=axis)", "1 - jnp.sum(_over_length(p, of_p, axis) * _over_length(t, of_t, axis), axis=axis)", EXACT + " -k cosine"),
    (LOSSES + "regression.py", "RMSE: slope at a perfect prediction", "jnp.where(alive, jnp.sqrt(jnp.where(alive, mean, 1)), 0)", "jnp.sqrt(mean)", laws("root_mean")),
    (LOSSES + "binary.py", "positive_weight on the no side", "weighted_binary_nll(x, t, positive_weight)", "weighted_binary_nll(-x, 1 - t, positive_weight)", laws("sigmoid_cross_entropy")),
    (LOSSES + "binary.py", "hinge pulls at the margin", "jnp.where(signs * scores < one, -signs, zero)", "jnp.where(signs * scores < 2 * one, -signs, zero)", laws("hinge")),
    (LOSSES + "multiclass.py", "smoothing over one class less", "            even = exists / jnp.sum(exists, axis=axis, keepdims=True)", "            even = exists / (jnp.sum(exists, axis=axis, keepdims=True) - 1)", laws("softmax_cross_entropy-NC-N", "float32-options")),
    (LOSSES + "multiclass.py", "class weights do not divide the mean", "        return loss if share is None else (loss, share)", "        return loss", laws("softmax_cross_entropy-NC-N", "float32-options")),
    (LOSSES + "divergence.py", "Jensen-Shannon: the other share", "gap = beta * xlogx_gap((1 - beta) * ratio)", "gap = (1 - beta) * xlogx_gap((1 - beta) * ratio)", laws("jensen")),
    (LOSSES + "divergence.py", "Gaussian KL by its definition", "square + expm1_minus(growth)", "square + jnp.exp(growth) - 1 - growth", EXACT + " -k gaussian"),
    (LOSSES + "embedding.py", "triplets: swap does nothing", "            far = jnp.minimum(far, ", "            far = jnp.maximum(far, ", laws("triplet")),
    (LOSSES + "ranking.py", "pairs are turned round", "        return softplus(-difference)", "        return softplus(difference)", laws("pairwise")),
    (LOSSES + "sequence.py", "the mean is per sequence", "        return jnp.sum(each, axis=-1), jnp.sum(exists, axis=-1, dtype=each.dtype)", "        return jnp.sum(each, axis=-1)", laws("token_nll-NTV-NT-N")),
    # --- the house
    (LOSSES + "ranking.py", "an option that is positional", "def list_softmax(\n    scores: Real,\n    relevance: NonNegative,\n    *,\n    axis: int = -1,", "def list_softmax(\n    scores: Real,\n    relevance: NonNegative,\n    axis: int = -1,\n    *,", HOUSE),
    (LOSSES + "ranking.py", "a card without its gradient", "    Gradient: sum(relevance) softmax(scores) - relevance.\n", "", "tests/test_contract.py -k every_public_loss"),
    (LOSSES + "ranking.py", "a family imports a family", "from jaxloss.core.frames import listwise, pairwise, pointwise", "from jaxloss.core.frames import listwise, pairwise, pointwise\nfrom jaxloss.losses.regression import huber", HOUSE),
]  # fmt: skip
