"""Single defects in the losses of numbers: of logarithms and fractions, quantiles, likelihoods, hinge and distance."""


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


NUMERICS, LOSSES = "jaxloss/core/numerics.py", "jaxloss/losses/"
REGRESSION, ROBUST, PROBABILISTIC = LOSSES + "regression.py", LOSSES + "robust.py", LOSSES + "probabilistic.py"
DIVERGENCE, EMBEDDING = LOSSES + "divergence.py", LOSSES + "embedding.py"
NUMBERS = "tests/test_numbers.py"


def digits(name):
    return f"{NUMBERS} -k 'values_and_gradients and {name}'"


MUTANTS = [
    # --- pieces
    (NUMERICS, "exp(x) - t as it stands", "jnp.where(jnp.abs(x) < 1, inner, jnp.exp(x) - t)", "jnp.exp(x) - t", digits("poisson_nll")),
    (NUMERICS, "the tangent's gap as it stands", "jnp.where(alive & (jnp.abs(d) <= 2), t * expm1_minus(d), far)", "far", digits("generalized")),
    (NUMERICS, "nothing expected and nothing there has an infinite slope", "jnp.where((t == 0) & (x == -jnp.inf), 0, jnp.log(t) - x)", "jnp.log(t) - x", NUMBERS + " -k nothing_expected"),
    (NUMERICS, "a count of 0 meets log 0", "    d = jnp.where(alive, x - jnp.log(jnp.where(alive, t, 1)), 0)", "    d = x - jnp.log(t)", NUMBERS + " -k large_counts"),
    ("jaxloss/core/coefficients.py", "a coefficient of the factorial is off in the sixth digit", "-0.245250862513847", "-0.245260862513847", "tests/test_numerics.py -k program"),
    (NUMERICS, "Stirling's formula without its tail", "(0.5 * LOG_2_PI + inverse * _polynomial(inverse * inverse, STIRLING))", "(0.5 * LOG_2_PI + 0 * inverse)", digits("poisson_nll_full")),
    (NUMERICS, "Stirling's formula below 1", "    return jnp.where(t < 1, small, large)", "    return jnp.where(t < 0, small, large)", NUMBERS + " -k 'large_counts or pieces_keep'"),
    (NUMERICS, "huge differences are not halved", "jnp.where(largest > 1, 0.5,", "jnp.where(largest > 1, 1,", NUMBERS + " -k beyond_the_range"),
    (NUMERICS, "tiny differences are flushed", "jnp.where(largest < low, up, 1)", "jnp.where(largest < low, 1, 1)", digits("percentage")),
    (NUMERICS, "the product of the halves counts once", "- 2 * high * low) - low * low", "- high * low) - low * low", digits("gaussian")),
    # --- errors of logarithms and fractions
    (REGRESSION, "logarithms are taken one by one", "    return jnp.log(one_more) + (x - (one_more - 1)) / one_more", "    return jnp.log1p(jnp.maximum(p, t)) - jnp.log1p(jnp.minimum(p, t))", digits("squared_log")),
    (REGRESSION, "what 1 + x was rounded by is dropped", "jnp.log(one_more) + (x - (one_more - 1)) / one_more", "jnp.log(one_more) + 0 * x", digits("squared_log")),
    (REGRESSION, "the larger number divides", "    x = jnp.abs(p - t) / (1 + jnp.minimum(p, t))", "    x = jnp.abs(p - t) / (1 + t)", laws("squared_log")),
    (REGRESSION, "a logarithm's slope forgets the 1", "    lambda p, t: 2 * _log_ratio(p, t) / (1 + p),", "    lambda p, t: 2 * _log_ratio(p, t) / p,", laws("squared_log")),
    (REGRESSION, "a fraction of the prediction", "scale * (jnp.abs(d) / jnp.abs(t)))", "scale * (jnp.abs(d) / jnp.abs(p)))", laws("percentage")),
    (REGRESSION, "nothing of nothing is nan", "    return jnp.where(p == t, 0, scale * (jnp.abs(d) / jnp.abs(t)))", "    return scale * (jnp.abs(d) / jnp.abs(t))", NUMBERS + " -k target_of_zero"),
    (REGRESSION, "the sign of a difference that was flushed", "jnp.where(p == t, 0, jnp.where(p > t, 1, -1) / jnp.abs(t))", "jnp.where(p == t, 0, jnp.sign(p - t) / jnp.abs(t))", digits("percentage")),
    # --- quantiles and expectiles
    (ROBUST, "quantile: the sides are swapped", "jnp.maximum((2 * level) * half, (2 * (level - 1)) * half)", "jnp.maximum((2 * (1 - level)) * half, (-2 * level) * half)", laws("quantile-N-N")),
    (ROBUST, "quantile: it pulls at equality", "    return jnp.where(p == t, 0, jnp.where(t > p, -level, 1 - level))", "    return jnp.where(t > p, -level, 1 - level)", laws("quantile-N-N")),
    (ROBUST, "quantile: differences overflow", "    half = 0.5 * t - 0.5 * p  # 0.1", "    half = (t - p) / 2  # 0.1", NUMBERS + " -k beyond_the_range"),
    (ROBUST, "quantile: the level has no slope", "    lambda p, t, level: t - p,", "    lambda p, t, level: 0 * p,", laws("quantile-N-N", "float64")),
    (ROBUST, "quantile: levels are summed", "jnp.mean(_quantile(p, t, level), axis=-1)", "jnp.sum(_quantile(p, t, level), axis=-1)", NUMBERS + " -k several_quantiles_are"),
    (ROBUST, "quantile: levels that fit nothing", "    if p.ndim == 0 or p.shape[-1] != level.size:", "    if p.ndim == 0:", NUMBERS + " -k fit_nothing"),
    (ROBUST, "quantile: levels are broadcast before they lie on a mesh", "level.reshape((1,) * (p.ndim - 1) + level.shape) + jnp.zeros_like(p)", "jnp.broadcast_to(level.reshape((1,) * (p.ndim - 1) + level.shape), p.shape)", NUMBERS + " -k sharded_rows"),
    (ROBUST, "expectile: the square overflows first", "    return (_side(p, t, level) * r) * r", "    return _side(p, t, level) * (r * r)", NUMBERS + " -k beyond_the_range"),
    (ROBUST, "expectile: the slope overflows first", "    return (4 * _side(p, t, level)) * (0.5 * p - 0.5 * t)", "    return (2 * _side(p, t, level)) * (p - t)", NUMBERS + " -k beyond_the_range"),
    # --- likelihoods
    (PROBABILISTIC, "gaussian: the error is squared first", "half * (2 * (half / v))", "(half * half) * 2 / v", digits("gaussian")),
    (PROBABILISTIC, "gaussian: the variance's logarithm whole", "    return 0.5 * jnp.log(v) + half", "    return jnp.log(v) + half", laws("gaussian_nll")),
    (PROBABILISTIC, "gaussian: 1 - r^2 / v as it stands", "(0.5 * square_gap(r, v)) / v)", "(0.5 * (1 - r * z)) / v)", digits("gaussian")),
    (PROBABILISTIC, "gaussian: r^2 / v overflows", "    return jnp.where(jnp.isinf(r * z), -(0.5 * z) * z, (0.5 * square_gap(r, v)) / v)", "    return (0.5 * square_gap(r, v)) / v", NUMBERS + " -k beyond_the_range"),
    (PROBABILISTIC, "gaussian: full changes nothing", "found + 0.5 * LOG_2_PI if full else found", "found", laws("gaussian_nll")),
    (PROBABILISTIC, "poisson: the factorial by lgamma", "    lambda x, t: exp_gap(x, t) + stirling_gap(t),", "    lambda x, t: jnp.exp(x) - t * x + lax.lgamma(1 + t),", NUMBERS + " -k large_counts"),
    (PROBABILISTIC, "poisson: full changes nothing", "_full_poisson(log_rate, counts) if full else _poisson", "_poisson(log_rate, counts) if full else _poisson", laws("poisson_nll")),
    (PROBABILISTIC, "poisson: the factorial has no slope", "lax.digamma(1 + t) - x,", "-x,", laws("poisson_nll")),
    (PROBABILISTIC, "categorical: class weights do not divide the mean", "        return share * nll, share", "        return share * nll", laws("categorical_nll")),
    (PROBABILISTIC, "categorical: another class", "take_label(log_probabilities, labels, axis)", "take_label(log_probabilities, labels + 1, axis)", laws("categorical_nll")),
    (DIVERGENCE, "generalized KL: terms that cancel", "        _summed(exp_gap),", "        _summed(lambda x, t: _relative_entropy(x, t) - t + jnp.exp(x)),", digits("generalized")),
    # --- distances
    (EMBEDDING, "hinge_embedding: it pushes at the margin", "jnp.where(distances < margin, margin - distances, 0)", "jnp.where(distances <= margin, margin - distances, 0)", NUMBERS + " -k hinge_embedding_at"),
    (EMBEDDING, "hinge_embedding: signs are swapped", "jnp.where(signs > 0, distances, lacking)", "jnp.where(signs < 0, distances, lacking)", laws("hinge_embedding")),
    (EMBEDDING, "a distance is compiled once and for all", "@traced\ndef triplet_margin_with_distance(", "@compiled\ndef triplet_margin_with_distance(", NUMBERS + " -k changed_in_place"),
    (EMBEDDING, "behind a mask all vectors are equal", "zip(vectors, ((0.5, 0.5), (0.25, 0.5), (0.125, 0.5)), strict=True)", "zip(vectors, ((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)), strict=True)", NUMBERS + " -k behind_a_mask"),
    (EMBEDDING, "behind a mask all vectors are parallel", "jnp.where(index % 2 == 0, even, odd)", "jnp.where(index >= 0, even, odd)", NUMBERS + " -k behind_a_mask"),
    (EMBEDDING, "a distance of any shape", "        demand(chex.assert_shape, found, shape, error=ValueError, message=message)\n        return widen", "        return widen", NUMBERS + " -k none_is_refused"),
    (EMBEDDING, "the swap takes the further negative", "        far = jnp.minimum(far, between(p, n))", "        far = jnp.maximum(far, between(p, n))", NUMBERS + " -k euclidean_distance_makes"),
]  # fmt: skip
