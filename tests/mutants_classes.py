"""Single defects in the losses of scores of classes: hinges, perceptrons, margins, polynomial cross-entropy."""

BINARY, MULTICLASS, MULTILABEL = (f"jaxloss/losses/{family}.py" for family in ("binary", "multiclass", "multilabel"))
NOISY = "jaxloss/losses/noise_tolerant.py"
FORMULAS = "jaxloss/core/formulas.py"


def own(words):
    return f"tests/test_classes.py -k '{words}'"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


MUTANTS = [
    # --- binary
    (
        BINARY,
        "perceptron pulls at 0",
        "jnp.where(signs * scores < zero, -signs, zero)",
        "jnp.where(signs * scores <= zero, -signs, zero)",
        own("at_the_margin"),
    ),
    (
        BINARY,
        "perceptron has a margin",
        "lambda scores, signs: jnp.maximum(-signs * scores, 0),",
        "lambda scores, signs: jnp.maximum(1 - signs * scores, 0),",
        own("range and perceptron"),
    ),
    (
        BINARY,
        "perceptron: the slope in the signs",
        "jnp.where(signs * scores < 0, -scores, 0),",
        "jnp.where(signs * scores < 0, scores, 0),",
        laws("perceptron-N-N", "float64"),
    ),
    (
        BINARY,
        "squared_hinge: a slope of one half",
        "    return -2 * signs * jnp.maximum(one - signs * scores, zero)",
        "    return -signs * jnp.maximum(one - signs * scores, zero)",
        own("range and squared_hinge"),
    ),
    (
        BINARY,
        "squared_hinge is curved at the margin itself",
        "jnp.where(signs * scores < 1, 2 * jnp.square(signs), 0)",
        "jnp.where(signs * scores <= 1, 2 * jnp.square(signs), 0)",
        own("at_the_margin"),
    ),
    (
        BINARY,
        "squared_hinge: the slope in the signs",
        "-2 * scores * _hinge(scores, signs)",
        "-scores * _hinge(scores, signs)",
        laws("squared_hinge-N-N", "float64"),
    ),
    (
        BINARY,
        "logistic as the logarithm of a probability",
        "    lambda scores, signs: softplus(-signs * scores),",
        "    lambda scores, signs: -jnp.log(sigmoid(signs * scores)),",
        own("range and logistic"),
    ),
    (
        BINARY,
        "logistic: the other side's slope",
        "jnp.where(right < -right, one, decay)",
        "jnp.where(right > -right, one, decay)",
        own("range and logistic"),
    ),
    (
        BINARY,
        "logistic: the slope's slope in the signs",
        "sigmoid(-signs * scores) * (signs * scores * sigmoid(signs * scores) - 1)",
        "sigmoid(-signs * scores) * (signs * scores * sigmoid(signs * scores) + 1)",
        laws("logistic-N-N", "float64"),
    ),
    (
        BINARY,
        "sparsemax_binary: the parabola of a squared hinge",
        "-margin, 0.25 * jnp.square(",
        "-margin, 0.5 * jnp.square(",
        own("range and sparsemax"),
    ),
    (
        BINARY,
        "sparsemax_binary: a slope beyond the parabola",
        "jnp.where(margin < -one, one, 0.5 * jnp.maximum(one - margin, zero))",
        "0.5 * jnp.maximum(one - margin, zero)",
        own("range and sparsemax"),
    ),
    (
        BINARY,
        "sparsemax_binary is curved at its end",
        "jnp.where(jnp.abs(scores) < 1, 0.5 * jnp.square(signs), 0)",
        "jnp.where(jnp.abs(scores) <= 1, 0.5 * jnp.square(signs), 0)",
        own("at_the_margin"),
    ),
    # --- margins
    (
        FORMULAS,
        "shortfall: what rounding dropped stays dropped",
        "(0.5 * margin + difference) + dropped",
        "(0.5 * margin + difference) + 0 * dropped",
        own("near_the_margin"),
    ),
    (
        FORMULAS,
        "shortfall: a ruled-out score makes nan",
        "    lowest = -0.5 * float(jnp.finfo(high.dtype).max)",
        "    lowest = -float('inf')",
        own("near_the_margin"),
    ),
    (
        FORMULAS,
        "shortfall pulls at the margin",
        "(_shortfall_value(high, low, margin) > 0)",
        "(_shortfall_value(high, low, margin) >= 0)",
        own("near_the_margin"),
    ),
    # --- multiclass
    (
        MULTICLASS,
        "poly_cross_entropy by 1 - p",
        "expm1_minus(-nll) - (1 + epsilon) * expm1(-nll)",
        "nll + epsilon * (1 - jnp.exp(-nll))",
        own("poly_cross_entropy_keeps"),
    ),
    (
        MULTICLASS,
        "poly_cross_entropy: a slope that cancels",
        "(1 + epsilon) * jnp.exp(-nll) - expm1(-nll)",
        "1 + epsilon * jnp.exp(-nll)",
        own("poly_cross_entropy_keeps"),
    ),
    (
        MULTICLASS,
        "poly_cross_entropy: epsilon has no slope",
        "    lambda nll, epsilon: -expm1(-nll),\n",
        "    lambda nll, epsilon: 0 * nll,\n",
        own("slopes_in_the_options"),
    ),
    (
        MULTICLASS,
        "the label is its own rival",
        "jnp.where(is_label(z, labels, axis), -jnp.inf, z)",
        "jnp.where(is_label(z, labels, axis), z, z)",
        own("equal_rivals"),
    ),
    (
        MULTICLASS,
        "of equal rivals the last",
        "jnp.min(jnp.where(reached, place, z.shape[axis]), axis=axis)",
        "jnp.max(jnp.where(reached, place, -1), axis=axis)",
        own("equal_rivals"),
    ),
    (MULTICLASS, "a tied label is taken for the rival", " & ~is_label(z, labels, axis)", "", own("equal_rivals")),
    (
        MULTICLASS,
        "a rival beyond the margin pulls",
        "    active = (value > 0).astype(value.dtype)",
        "    active = (value >= 0).astype(value.dtype)",
        own("equal_rivals"),
    ),
    (
        MULTICLASS,
        "the best rival: a value without a derivative",
        "    value = _behind_the_rival(z, labels, margin, axis)",
        "    value = lax.stop_gradient(_behind_the_rival(z, labels, margin, axis))",
        own("second_derivatives"),
    ),
    (MULTICLASS, "the best rival: the margin has no slope", "+ active * dm", "+ 0 * dm", own("slopes_in_the_options")),
    (
        MULTICLASS,
        "a ruled-out label costs a finite number",
        "jnp.where(own == -jnp.inf, jnp.inf, shortfall(own, rival, margin))",
        "shortfall(own, rival, margin)",
        own("ruled_out"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: a ruled-out label costs a finite number",
        "    return jnp.where(jnp.squeeze(take_label(z, labels, axis), axis) == -jnp.inf, jnp.inf, total)",
        "    return total",
        own("ruled_out"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: the label itself is counted",
        "    return jnp.where(is_label(z, labels, axis), 0, each)",
        "    return each",
        own("two_classes"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: the slope of a square",
        "slopes = 2 * each if p == 2",
        "slopes = each if p == 2",
        own("two_classes"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: the label is not pulled",
        "jnp.where(is_label(z, labels, axis), -total, slopes)",
        "jnp.where(is_label(z, labels, axis), 0 * total, slopes)",
        own("two_classes"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: the margin has no slope",
        "+ jnp.squeeze(total, axis) * dm",
        "+ 0 * dm",
        own("slopes_in_the_options"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: classes that do not exist divide",
        "z.shape[axis] if valid is None else jnp.sum(valid, axis=axis, dtype=total.dtype)",
        "z.shape[axis]",
        own("do_not_divide"),
    ),
    (
        MULTICLASS,
        "multiclass_margin: one weight for all classes",
        'share = 1 if class_weights is None else jnp.take(class_weights, labels, mode="clip")',
        "share = 1 if class_weights is None else jnp.mean(class_weights)",
        own("losses_of_classes"),
    ),
    (
        MULTICLASS,
        "what is not valid stays a class",
        "    return z if valid is None else jnp.where(valid, z, -jnp.inf)",
        "    return z",
        own("do_not_divide"),
    ),
    # --- multilabel
    (
        MULTILABEL,
        "each pair counts twice",
        "0.5 * jnp.sum(_of_pairs",
        "1.0 * jnp.sum(_of_pairs",
        own("many_labels and 128"),
    ),
    (
        MULTILABEL,
        "pairs pull the wrong way",
        "jnp.sum(-_side(applies, scores) * active",
        "jnp.sum(_side(applies, scores) * active",
        own("many_labels and 128"),
    ),
    (
        MULTILABEL,
        "a class that does not exist makes pairs",
        " & valid[..., :, None] & valid[..., None, :]",
        " & valid[..., :, None]",
        own("many_labels and 128"),
    ),
    (
        MULTILABEL,
        "classes that do not exist divide",
        "jnp.maximum(jnp.sum(v, axis=-1, dtype=s.dtype), 1)",
        "s.shape[-1]",
        own("do_not_divide"),
    ),
    (MULTILABEL, "every class applies", "targets > 0.5", "targets > -0.5", own("do_not_divide")),
    (
        MULTILABEL,
        "many classes are sorted the wrong way round",
        "on.astype(s.dtype), v)",
        "(~on).astype(s.dtype), v)",
        own("many_labels and 129"),
    ),
    # --- noisy labels
    (
        NOISY,
        "generalized cross-entropy as a difference from 1",
        "lambda nll, q: -expm1(-q * nll) / q,",
        "lambda nll, q: (1 - jnp.exp(-q * nll)) / q,",
        own("generalized_cross_entropy_keeps"),
    ),
    (
        NOISY,
        "generalized cross-entropy: the slope of another power",
        "lambda nll, q: jnp.exp(-q * nll),",
        "lambda nll, q: jnp.exp((1 - q) * -nll),",
        own("generalized_cross_entropy_keeps"),
    ),
    (
        NOISY,
        "generalized cross-entropy: the slope in q",
        "    return -gap / jnp.square(q)",
        "    return -gap / q",
        own("generalized_cross_entropy_keeps"),
    ),
]
