"""Single defects in the drop-in names of torch."""

ARGUMENTS = "jaxloss/compat/torch/arguments.py"
CLASSES = "jaxloss/compat/torch/classification.py"
DISTRIBUTIONS = "jaxloss/compat/torch/distributions.py"
EMBEDDING = "jaxloss/compat/torch/embedding.py"
REGRESSION = "jaxloss/compat/torch/regression.py"
SEQUENCE = "jaxloss/compat/torch/sequence.py"
TESTS = "tests/compat/test_compat_torch.py"
BESIDE = f"{TESTS} -k 'test_beside_torch and "
SWEEP = f"{TESTS} -k 'test_every_option_beside_torch and "

MUTANTS = [
    (ARGUMENTS, "a tie does not pull", "jnp.where(x < 0, 0, jnp.ones_like(x))", "jnp.where(x <= 0, 0, jnp.ones_like(x))", f"{TESTS} -k test_ties"),
    (ARGUMENTS, "deprecated arguments are accepted and ignored", "        if value is not None:\n", "        if False:\n", f"{TESTS} -k 'test_refusals and size_average'"),
    (ARGUMENTS, "a mean of halves gets through", "    if reduction not in words:\n", '    if reduction not in (*words, "partial"):\n', f"{TESTS} -k 'test_refusals and partial'"),
    (ARGUMENTS, "weights broadcast from the first axis", "zip(found.shape, shape[missing:], strict=True)", "zip(found.shape, shape[: found.ndim], strict=True)", f"{BESIDE}multilabel_soft'"),
    (ARGUMENTS, "the class axis is the last one", "    return min(x.ndim - 1, 1)", "    return x.ndim - 1", f"{BESIDE}nll_loss and not poisson and not gaussian'"),
    (ARGUMENTS, "small label dtypes stay as they are", "    return found.astype(jnp.int32) if is_small else found", "    return found", f"{TESTS} -k test_small_and"),
    (REGRESSION, "huber divides by the weights", 'weights=_weights(weight, x), reduction="none")', "weights=_weights(weight, x), reduction=reduction)", f"{TESTS} -k test_a_class_weight_divides"),
    (REGRESSION, "beta = 0 is refused", "np.all(np.asarray(beta) == 0)", "np.all(np.asarray(beta) < 0)", f"{SWEEP}smooth_l1'"),
    (REGRESSION, "a weight of another shape is repeated", "    of_one_shape(input=x, weight=found)\n", "", f"{TESTS} -k 'test_refusals and weight'"),
    (DISTRIBUTIONS, "Stirling for a count of 1", "jnp.where(t > 1, pointwise(", "jnp.where(t >= 1, pointwise(", f"{TESTS} -k test_poisson_edges"),
    (DISTRIBUTIONS, "Stirling without 2 pi", "0.5 * jnp.log(2 * math.pi * t)", "0.5 * jnp.log(t)", f"{BESIDE}poisson'"),
    (DISTRIBUTIONS, "the rate's eps is ignored", "xlogy(t, x + eps)", "xlogy(t, x)", f"{SWEEP}poisson'"),
    (DISTRIBUTIONS, "the clamp of a variance has the gradient 0", "    lambda v, least: jnp.ones_like(v),", "    lambda v, least: jnp.where(v < least, 0, jnp.ones_like(v)),", f"{TESTS} -k test_the_clamp"),
    (DISTRIBUTIONS, "a negative variance is clamped", "jnp.where(v < 0, jnp.nan, jnp.maximum(v, least))", "jnp.maximum(v, least)", f"{TESTS} -k test_the_clamp"),
    (DISTRIBUTIONS, "one variance a vector is taken for one a column", "        v = v[..., None]\n", "        v = v[None]\n", f"{SWEEP}gaussian'"),
    (DISTRIBUTIONS, "batchmean divides by the entries", "max(x.shape[0] if x.ndim else 1, 1)", "max(x.size, 1)", f"{BESIDE}kl_div'"),
    (DISTRIBUTIONS, "log targets are taken for targets", "kl_divergence_with_log_targets if log_target else", "kl_divergence_with_log_targets if not log_target else", f"{BESIDE}kl_div'"),
    (CLASSES, "nll_loss ignores nothing", "class_weights(weight, x.shape[axis]),\n        where=labels != ignore_index,\n", "class_weights(weight, x.shape[axis]),\n", f"{BESIDE}nll_loss and not poisson and not gaussian'"),
    (CLASSES, "the class weights of probabilities are forgotten", "    if of_classes is not None:\n        t = t *", "    if of_classes is None:\n        t = t *", f"{BESIDE}cross_entropy1'"),
    (CLASSES, "smoothing of probabilities divides by the entries", "/ t.shape[axis]", "/ t.size", f"{BESIDE}cross_entropy1'"),
    (CLASSES, "a class weight does not reach the linear layer", "weights=None if share is None else", "weights=None if share is not None else", f"{TESTS} -k test_a_class_weight_divides"),
    (CLASSES, "smoothing is weighed by the label's class", " or (weight is not None and smoothing is not None)", "", f"{SWEEP}linear_cross_entropy0'"),
    (CLASSES, "the classes' axis is put last", ".reshape(logits_shape)\n", ".reshape(logits_shape[:1] + logits_shape[:0:-1]).swapaxes(1, -1)\n", f"{SWEEP}linear_cross_entropy1'"),
    (CLASSES, "a logarithm falls without end", "jnp.maximum(jnp.log(p), _LEAST_LOG)", "jnp.log(p)", f"{TESTS} -k test_a_logarithm"),
    (CLASSES, "small probabilities lose their slope", "jnp.where(x == 0, _NOTHING, x)", "jnp.maximum(x, _NOTHING)", f"{TESTS} -k test_a_logarithm"),
    (CLASSES, "binary_cross_entropy divides by the weights", 'pointwise(_probability_nll, input=x, target=t, weights=of_entries, reduction="none")', "pointwise(_probability_nll, input=x, target=t, weights=of_entries, reduction=reduction)", f"{BESIDE}binary_cross_entropy and not logits'"),
    (CLASSES, "the positive weight is forgotten", "pos_weight=of_yes, weights=of_entries", "pos_weight=jnp.ones_like(of_yes), weights=of_entries", f"{BESIDE}with_logits'"),
    (CLASSES, "the classes of an example are added up", "reduced(jnp.mean(each, axis=-1), reduction)", "reduced(jnp.sum(each, axis=-1), reduction)", f"{BESIDE}multilabel_soft'"),
    (CLASSES, "classes behind the end are listed", "jnp.cumsum(listed == -1, axis=-1) == 0", "listed >= 0", f"{BESIDE}multilabel_margin'"),
    (CLASSES, "an impossible class passes", "(listed < -1) | (listed >= classes)", "listed < -1", f"{TESTS} -k test_listed_classes"),
    (EMBEDDING, "the swap takes the farther distance", "jnp.minimum(far, distance(p, n))", "jnp.maximum(far, distance(p, n))", f"{BESIDE}triplet_margin_loss'"),
    (EMBEDDING, "eps is ignored", "    difference = x - y + eps\n", "    difference = x - y\n", f"{TESTS} -k test_equal_vectors"),
    (EMBEDDING, "a norm without its scale", "    return jnp.squeeze(scale, -1) * root", "    return root", f"{SWEEP}triplet_margin_loss'"),
    (EMBEDDING, "the largest entry is the smallest", "jnp.max(size, axis=-1, initial=0)", "jnp.min(size, axis=-1, initial=math.inf)", f"{SWEEP}triplet_margin_loss'"),
    (EMBEDDING, "any margin is taken", '    demand_positive("margin", margin)\n', "", f"{TESTS} -k 'test_refusals and margin'"),
    (EMBEDDING, "the distance function is ignored", "distance_function if distance_function is not None", "distance_function if distance_function is None", f"{SWEEP}triplet_margin_with'"),
    (SEQUENCE, "the mean does not divide by the labels", "        each = each / jnp.maximum(counts, 1).astype(each.dtype)\n", "        pass\n", f"{BESIDE}ctc'"),
    (SEQUENCE, "labels in a row start one sequence late", "np.cumsum(sizes) - sizes", "np.cumsum(sizes)", f"{SWEEP}ctc'"),
    (SEQUENCE, "zero_infinity is turned round", '"zero" if zero_infinity else "inf"', '"inf" if zero_infinity else "zero"', f"{TESTS} -k 'test_no_alignment and False'"),
]  # fmt: skip
