"""Single defects in the losses that sort or search, each with the test that must catch it."""


def own(words):
    return f"tests/test_sparse_and_sorted.py -k {words!r}"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


ORDERED, ENSEMBLE, LOVASZ, NEAREST, QUANTILES = (
    f"jaxloss/algorithms/{name}.py" for name in ("ordered", "ensemble", "lovasz", "nearest", "quantiles")
)
LOSSES = "jaxloss/losses/"

MUTANTS = [
    (ORDERED, "negative numbers stand in the reverse order", "return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)", "return bits", own("unequal_samples_by_repetition")),
    ("jaxloss/algorithms/sorted_order.py", "slopes stay in the order of the numbers", ".at[order].set(ordered, unique", ".at[iota(order)].set(ordered, unique", own("every_pair and 500 and False")),
    (ENSEMBLE, "places among differences, which rounding makes equal", "_places(lax.stop_gradient(x)), fair)", "_places(lax.stop_gradient(x - y)), fair)", own("rounding_cannot_tell and 50")),
    (ENSEMBLE, "equal members have one place", "(other < mine) | ((other == mine) & (column < row))", "(other < mine) | ((other == mine) & (column < 0 * row))", own("equal_members and 5")),
    (ENSEMBLE, "the fair score is the plain one", "    others = members - fair\n", "    others = members - 0 * fair\n", own("every_pair and True")),
    (ENSEMBLE, "the target has no slope of its own", "jnp.sum(slopes * (dx - dy), axis=-1)", "jnp.sum(slopes * (dx - 0 * dy), axis=-1)", own("every_pair and 500 and False")),
    (LOVASZ, "the Jaccard loss counts the pixel itself twice", "jnp.maximum(union - 1, 1).astype(dtype)", "jnp.maximum(union, 1).astype(dtype)", laws("lovasz_hinge")),
    (LOVASZ, "nothing inside: no pixel counts", "    of_other = jnp.where(union == 1, 1, of_other)\n", "", own("without_a_pixel_inside")),
    (LOVASZ, "pixels that do not exist are counted among the true ones", "jnp.where(valid, key, jnp.zeros((), integer))", "jnp.where(valid, key, jnp.ones((), integer))", own("classes_of_an_image")),
    (LOVASZ, "the smallest errors first", "(jnp.where(valid, -lax.stop_gradient(errors), 1), packed)", "(jnp.where(valid, lax.stop_gradient(errors), 1), packed)", laws("lovasz_hinge")),
    (NEAREST, "the points of the last step are left out", "steps = (count + missing) // block", "steps, points, exists = count // block, points[..., : count // block * block, :], exists[..., : count // block * block]", own("sets_of_points")),
    (NEAREST, "points that do not exist are near", "closer = (distance < least) & exists[k, ..., None]", "closer = (distance < least) & (exists[k, ..., None] | True)", own("do_not_exist")),
    (NEAREST, "only the first coordinates count", "for i, coordinate in enumerate(each):", "for i, coordinate in enumerate(each[:2]):", own("sets_of_points and 0.0")),
    (QUANTILES, "every piece has the same mass", "(ends - starts).astype(np.float64)", "np.full(len(ends), n * m / len(ends))", own("unequal_samples_by_repetition")),
    (QUANTILES, "the slope's own slope is forgotten", "differentiable(_slope_value, _bent, None)", "differentiable(_slope_value, lambda d, p: 0 * d, None)", own("slopes_and_curvature")),
    (QUANTILES, "equal numbers pull", "        return absolute(d)\n", "        return jnp.abs(d)\n", own("cost_nothing")),
    (LOSSES + "geometry.py", "one direction only", "_one_way(x, in_x, y, in_y) + _one_way(y, in_y, x, in_x), present", "2 * _one_way(x, in_x, y, in_y), present", laws("chamfer")),
    (LOSSES + "geometry.py", "the mean counts points that do not exist", "jnp.maximum(jnp.sum(x_valid, axis=-1), 1)", "jnp.maximum(jnp.sum(x_valid | True, axis=-1), 1)", own("do_not_exist")),
    (LOSSES + "segmentation.py", "1 - p by a difference", "jnp.where(here, others, e) / total", "jnp.where(here, 1 - e / total, e / total)", own("sure_pixel")),
    (LOSSES + "segmentation.py", "absent classes count", 'if classes == "present" else', 'if classes != "present" else', own("classes_of_an_image")),
    (LOSSES + "segmentation.py", "the margin itself pulls", "jnp.where(errors <= 0, 0, errors)", "jnp.where(errors < -1, 0, errors)", laws("lovasz_hinge")),
    (LOSSES + "wrappers.py", "the regularizer is left out", "found if regularizer is None else found + rows(regularizer, y)", "found", own("with_its_regularizer")),
    (LOSSES + "wrappers.py", "compiled: the function's parameters are frozen", "    @traced\n    def loss(", "    @jax.jit\n    def loss(", own("built_loss")),
]  # fmt: skip
