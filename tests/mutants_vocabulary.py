"""Single defects in the losses from hidden states and a kernel, each with the test that must catch it."""

ENGINE, BLOCKS = "jaxloss/algorithms/linear_cross_entropy.py", "jaxloss/algorithms/linear_blocks.py"
ROWS, SLOPES = "jaxloss/algorithms/linear_rows.py", "jaxloss/algorithms/linear_slopes.py"
TOTALS, DIVERGENCES = "jaxloss/algorithms/linear_totals.py", "jaxloss/algorithms/linear_divergences.py"
REDUCTION, FRAMES = "jaxloss/core/reduction.py", "jaxloss/core/frames.py"
DISTILLATION, LOSSES = "jaxloss/algorithms/linear_distillation.py", "jaxloss/losses/vocabulary.py"
TESTS = "tests/test_linear_cross_entropy.py"


def of(name):
    return f"{TESTS} -k '{name}'"


def distilling(name):
    return f"tests/test_linear_distillation.py -k '{name}'"


MUTANTS = [
    (ROWS, "what the last block holds twice counts twice", "jnp.where(here if fresh is None else here | ~fresh, -jnp.inf, z)", "jnp.where(here, -jnp.inf, z)", of("every_derivative and fast-False-chunks1")),
    (SLOPES, "the label's slope is p - 1", "    own = -sigmoid(ends.behind)\n", "    own = jnp.exp(row.own - ends.normalizer) - 1\n", of("confident")),
    (ROWS, "the label's loss is a difference", "Ends(behind, softplus(behind),", "Ends(behind, jnp.logaddexp(others, row.own) - row.own,", of("confident")),
    (SLOPES, "z-loss does not pull", "        stretch = 2 * head.z_loss * ends.normalizer\n", "        stretch = 0 * head.z_loss * ends.normalizer\n", of("every_derivative and chunks2")),
    (SLOPES, "the cap does not flatten the label's slope", "capped = own if head.soft_cap is None else", "capped = own if True else", of("every_derivative and chunks2")),
    (SLOPES, "smoothing is spread over absent classes too", "jnp.where(counts, pull.even[:, None], 0)", "pull.even[:, None]", of("ruled_out")),
    (ROWS, "an absent class' kernel is looked at", "return existing(block, self.valid(j), self.plan.class_axis)", "return block", of("ruled_out")),
    (TOTALS, "slopes in half precision are not scaled", "    return jnp.where(size == 0, 1, size)\n", "    return jnp.ones_like(size)\n", of("underflow")),
    (TOTALS, "the others' directions are not added", "            spread = engine.axis_name and name in (\"kernel\", \"bias\")\n", "            spread = False\n", of("inside_shard_map and fast")),
    (ROWS, "each device takes its own maximum", "    top = lax.pmax(lax.stop_gradient(row.top), axis_name)\n", "    top = row.top\n", of("inside_shard_map and fast")),
    (TOTALS, "the sum of products is flattened, and gathered", "jnp.sum(widen(g) * d.astype(widen(g).dtype))", "jnp.vdot(widen(g), d.astype(widen(g).dtype))", of("not_gathered and low")),
    (TOTALS, "what is not asked for is computed", "needed = tuple(x is not None and not isinstance(x, SymbolicZero) for x in d_head)", "needed = tuple(x is not None for x in head)", of("asked_for")),
    (SLOPES, "blocks written before are lost", "            part = jnp.where(fresh, part, blocks.take(whole, j, axis))\n", "            part = jnp.where(fresh, part, 0)\n", of("every_derivative and low-False")),
    (BLOCKS, "classes are cut in one piece from a mesh", "    lanes = math.gcd(classes, devices)\n    lane = classes // lanes\n    on_cpu", "    lanes = 1\n    lane = classes // lanes\n    on_cpu", of("not_gathered and low")),
    (BLOCKS, "too much is held", "        longest = 1024 if again else max(held // 4, rows // 4, least)\n", "        longest = rows\n", of("test_memory and fast")),
    (REDUCTION, "a mean of a total is a sum", "        return value(_divide(each, count))\n", "        return value(each)\n", of("reductions and mean")),
    (FRAMES, "summed: what is masked stays", "jnp.where(jnp.expand_dims(mask, inner), x, jnp.zeros((), x.dtype))", "x", of("reductions and mean")),
    (ENGINE, "half-precision rows have no gradient", "row_chunks(widen(head.hidden), plan.chunks)", "pieces.hidden", distilling("half_precision")),
    (TOTALS, "the z-loss apart pulls", "weighted_total(*lax.stop_gradient((coefficients, rows.z)))", "weighted_total(coefficients, rows.whole)", distilling("z_loss_apart")),
    (BLOCKS, "all rows' logits are held", "min(max(rows // 16, 64, features // 8), _LONGEST, rows)", "rows", distilling("memory and teacher")),
    (DISTILLATION, "the teacher learns", "jax.tree.map(lax.stop_gradient, teacher)", "teacher", distilling("no_gradient_to_the_teacher")),
    (DISTILLATION, "no square of the temperature", " * jnp.square(temperature)", "", distilling("every_derivative and forward")),
    (DIVERGENCES, "near distributions cancel", "jnp.where(x <= 1, p * expm1_minus(jnp.minimum(x, 1)), q - p * (1 + jnp.maximum(x, 1)))", "q - p * (1 + x)", distilling("equal_models")),
    (DIVERGENCES, "reverse is forward", "reverse = _from_slopes(_divergence)", "reverse = forward", distilling("every_derivative and reverse")),
    (DIVERGENCES, "what both rule out is nan", "    absent = (a == -jnp.inf) & (b == -jnp.inf)\n", "    absent = jnp.zeros_like(a, bool)\n", distilling("ruled_out")),
    (DIVERGENCES, "the middle's slope is none at equality", "    jax.nn.sigmoid,\n", "    lambda x: jnp.where(x > 0, jax.nn.sigmoid(x), 0),\n", distilling("every_derivative and jensen")),
    (DIVERGENCES, "the bucket holds the K too", "student.at[rows, labels].set(-jnp.inf)", "student", distilling("up_to_the_whole")),
    (DIVERGENCES, "a bucket below nothing", "jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1)), -jnp.inf)", "jnp.log(left)", distilling("empty_buckets")),
    (DIVERGENCES, "a slope is not centred", "(_times(p, x) + p * value[:, None])", "_times(p, x)", distilling("every_derivative and reverse")),
    (DIVERGENCES, "the temperature does not reach the teacher", "        for slope, d in zip(slopes, tangents, strict=True):\n", "        for slope, d in zip(slopes[:1], tangents[:1], strict=True):\n", distilling("every_derivative and jensen")),
    (DISTILLATION, "rows that do not count pull", "g = jnp.where((weight == 0)[:, None], 0, g)", "g = g + 0", distilling("ruled_out")),
    (DISTILLATION, "what the last block holds twice counts twice", "part = part if fresh is None else", "part = part if True else", distilling("cut_unequally")),
    (DISTILLATION, "slopes of the total are unscaled in half precision", "if dtype.itemsize == 2 else jnp.ones((), wide)", "if False else jnp.ones((), wide)", distilling("underflow")),
    (DISTILLATION, "the total is made of the rows", "        return total(engine, flat, coefficients.reshape(-1), fixed).whole\n", "        return jnp.sum(coefficients.reshape(-1) * engine.plain(flat, fixed))\n", distilling("made_once")),
    (LOSSES, "the teacher has other classes", "    if head.classes != given.classes:\n", "    if False:\n", distilling("errors_in_words")),
]  # fmt: skip
