"""Single defects in the losses from hidden states and a kernel, each with the test that must catch it."""

ENGINE, BLOCKS = "jaxloss/algorithms/linear_cross_entropy.py", "jaxloss/algorithms/linear_blocks.py"
REDUCTION, FRAMES = "jaxloss/core/reduction.py", "jaxloss/core/frames.py"
DISTILLATION, LOSSES = "jaxloss/algorithms/linear_distillation.py", "jaxloss/losses/vocabulary.py"
TESTS = "tests/test_linear_cross_entropy.py"


def of(name):
    return f"{TESTS} -k '{name}'"


def distilling(name):
    return f"tests/test_linear_distillation.py -k '{name}'"


MUTANTS = [
    (ENGINE, "what the last block holds twice counts twice", "jnp.where(here if fresh is None else here | ~fresh, -jnp.inf, z)", "jnp.where(here, -jnp.inf, z)", of("every_derivative and fast-False-chunks1")),
    (ENGINE, "the label's slope is p - 1", "    own = -sigmoid(ends.behind)\n", "    own = jnp.exp(row.own - ends.normalizer) - 1\n", of("confident")),
    (ENGINE, "the label's loss is a difference", "_Ends(behind, softplus(behind),", "_Ends(behind, jnp.logaddexp(others, row.own) - row.own,", of("confident")),
    (ENGINE, "z-loss does not pull", "        stretch = 2 * head.z_loss * ends.normalizer\n", "        stretch = 0 * head.z_loss * ends.normalizer\n", of("every_derivative and chunks2")),
    (ENGINE, "the cap does not flatten the label's slope", "capped = own if head.soft_cap is None else", "capped = own if True else", of("every_derivative and chunks2")),
    (ENGINE, "smoothing is spread over absent classes too", "jnp.where(counts, pull.even[:, None], 0)", "pull.even[:, None]", of("ruled_out")),
    (ENGINE, "an absent class' kernel is looked at", "return _existing(block, self.valid(j), self.plan.class_axis)", "return block", of("ruled_out")),
    (ENGINE, "slopes in half precision are not scaled", "    size = None if size is None else jnp.where(size == 0, 1, size)\n", "    size = None if size is None else jnp.ones_like(size)\n", of("underflow")),
    (ENGINE, "the others' directions are not added", "            spread = plan.options.axis_name and name in (\"kernel\", \"bias\")\n", "            spread = False\n", of("inside_shard_map and fast")),
    (ENGINE, "each device takes its own maximum", "    top = lax.pmax(lax.stop_gradient(row.top), axis_name)\n", "    top = row.top\n", of("inside_shard_map and fast")),
    (ENGINE, "the sum of products is flattened, and gathered", "jnp.sum(widen(g) * d.astype(widen(g).dtype))", "jnp.vdot(widen(g), d.astype(widen(g).dtype))", of("not_gathered and low")),
    (ENGINE, "what is not asked for is computed", "needed = tuple(x is not None and not isinstance(x, SymbolicZero) for x in d_head)", "needed = tuple(x is not None for x in head)", of("asked_for")),
    (ENGINE, "blocks written before are lost", "            part = jnp.where(fresh, part, blocks.take(whole, j, axis))\n", "            part = jnp.where(fresh, part, 0)\n", of("every_derivative and low-False")),
    (BLOCKS, "classes are cut in one piece from a mesh", "    lanes = math.gcd(classes, devices)\n", "    lanes = 1\n", of("not_gathered and low")),
    (BLOCKS, "too much is held", "        longest = 1024 if again else max(held // 4, rows // 4, least)\n", "        longest = rows\n", of("test_memory and fast")),
    (REDUCTION, "a mean of a total is a sum", "        return value(_divide(each, count))\n", "        return value(each)\n", of("reductions and mean")),
    (FRAMES, "summed: what is masked stays", "jnp.where(jnp.expand_dims(mask, inner), x, jnp.zeros((), x.dtype))", "x", of("reductions and mean")),
    (ENGINE, "half-precision rows have no gradient", "row_chunks(widen(head.hidden), plan.chunks)", "pieces.hidden", distilling("half_precision")),
    (ENGINE, "the z-loss apart pulls", "weighted_total(*lax.stop_gradient((coefficients, rows.z)))", "weighted_total(coefficients, rows.whole)", distilling("z_loss_apart")),
    (BLOCKS, "all rows' logits are held", "min(max(rows // 16, 64, features // 8), _LONGEST, rows)", "rows", distilling("memory and teacher")),
    (DISTILLATION, "the teacher learns", "jax.tree.map(lax.stop_gradient, teacher)", "teacher", distilling("no_gradient_to_the_teacher")),
    (DISTILLATION, "no square of the temperature", "found * jnp.square(temperature)", "found", distilling("every_derivative and forward")),
    (DISTILLATION, "near distributions cancel", "jnp.where(x <= 1, p * expm1_minus(jnp.minimum(x, 1)), q - p * (1 + jnp.maximum(x, 1)))", "q - p * (1 + x)", distilling("equal_models")),
    (DISTILLATION, "reverse is forward", "return _forward(teacher, student)", "return _forward(student, teacher)", distilling("every_derivative and reverse")),
    (DISTILLATION, "what both rule out is nan", "    absent = (a == -jnp.inf) & (b == -jnp.inf)\n", "    absent = jnp.zeros_like(a, bool)\n", distilling("ruled_out")),
    (DISTILLATION, "the middle's slope is none at equality", "    jax.nn.sigmoid,\n", "    lambda x: jnp.where(x > 0, jax.nn.sigmoid(x), 0),\n", distilling("every_derivative and jensen")),
    (DISTILLATION, "the bucket holds the K too", "student.at[rows, labels].set(-jnp.inf)", "student", distilling("up_to_the_whole")),
    (DISTILLATION, "a bucket below nothing", "jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)", "jnp.log(left)", distilling("empty_buckets")),
    (LOSSES, "the teacher has other classes", "    if head.classes != given.classes:\n", "    if False:\n", distilling("errors_in_words")),
]  # fmt: skip
