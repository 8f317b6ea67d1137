"""Single defects in the losses of regions: dice and tversky."""

OVERLAP, LOSSES = "jaxloss/algorithms/overlap.py", "jaxloss/losses/segmentation.py"


def own(words):
    return f"tests/test_regions.py -k {words!r}"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


MUTANTS = [
    (OVERLAP, "false and missed pixels change their prices", "alpha * (p * (1 - t)) + beta * (q * t)", "beta * (p * (1 - t)) + alpha * (q * t)", own("same_of_classes and options1")),
    (OVERLAP, "the slope of the ratio as a difference", "    lambda missed, met: _ratio(_ratio(met, met + missed), met + missed),\n", "    lambda missed, met: _ratio(1, met + missed) - _ratio(_ratio(missed, met + missed), met + missed),\n", own("digit_of_sure_images and 0.0-dice")),
    (OVERLAP, "nothing of nothing is not a number", "    return jnp.where(empty, 0, part / jnp.where(empty, 1, whole))\n", "    return part / whole\n", own("nothing_predicted")),
    (OVERLAP, "second slopes of tiny sums leave float32", "scale = scale_exponent(missed + met, ())", "scale = 1.0", own("every_mode and 0.0")),
    (OVERLAP, "1 - p of an inner pixel by a difference", "p, q = _inside(z), _inside(-z)", "p, q = _inside(z), 1 - _inside(z)", own("perfect_image_has")),
    (OVERLAP, "1 - p of a sure class by a difference", "jnp.where(_is_sure(p), rest, 1 - p)", "1 - p", own("sure_classes and 1.0")),
    (OVERLAP, "the slope of a sure class by a difference", "dp = unsure * dz - unsure * jnp.real(both) + own * jnp.imag(both)", "dp = pulls - p * jnp.real(both)", own("sure_classes and 1.0")),
    (OVERLAP, "what a sure class leaves has no slope", "(dp, -dp, of_unsure - rest * mean)", "(dp, -dp, 0 * mean)", own("curvature_of_sure_classes")),
    (OVERLAP, "pixels that do not exist are missed", "        missed, met = jnp.where(valid, missed, 0), jnp.where(valid, met, 0)\n", "        missed, met = missed * 1, jnp.where(valid, met, 0)\n", own("pixels_that_do_not_exist")),
    (OVERLAP, "absent classes weigh as much as the smallest", "jnp.where(there, 1 / jnp.square(", "jnp.where(there | some, 1 / jnp.square(", own("absent_class")),
    (OVERLAP, "the sum of the weights is 1", "each * (count / jnp.where(some, total, 1))", "each / jnp.where(some, total, 1)", own("mean_one")),
    (LOSSES, "jaccard for dice", "half = jnp.full_like(smooth, 0.5)", "half = jnp.full_like(smooth, 1.0)", own("same_of_one_region")),
    (LOSSES, "images without a pixel count", "return value if valid is None else (value, jnp.any(valid, axis=axis))", "return value", own("pixels_that_do_not_exist")),
    (LOSSES, "an image of which a class is excluded is hidden", "None if mask is None else jnp.any(mask, axis=-1)", "None if mask is None else jnp.all(mask, axis=-1)", own("excluded_class")),
    (LOSSES, "the class axis stays where it was", "return jnp.moveaxis(x, self.axis - sum(i < self.axis for i in self.pixels), -1)", "return x", own("stand_anywhere")),
    (LOSSES, "two roundings of the targets' gradient", "    maps = dataclasses.replace(maps, targets=widen(maps.targets))", "    maps = dataclasses.replace(maps)", laws("generalized_dice", "bfloat16")),
]  # fmt: skip
