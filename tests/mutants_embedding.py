"""Single defects in the losses of pairs, triplets and class vectors, each with the test that must catch it."""


def mined(words):
    return f"tests/test_mined_triplet.py -k {words!r}"


def laws(name, dtype="float32"):
    return f"tests/test_contract.py -k 'test_laws and {name} and {dtype}'"


MINED, DISTANCES = "jaxloss/algorithms/mined_triplets.py", "jaxloss/algorithms/distances.py"
EMBEDDING, MARGIN = "jaxloss/losses/embedding.py", "jaxloss/losses/margin.py"
TESTING = "jaxloss/testing.py"

MUTANTS = [
    (DISTANCES, "distances from products", "    return jnp.sqrt(_products(rows, columns, rows, columns))", "    square = jnp.sum(rows**2, 1)[:, None] + jnp.sum(columns**2, 1)[None] - 2 * rows @ columns.T\n    return jnp.sqrt(jnp.maximum(square, 0))", mined("neighbours and all")),
    (DISTANCES, "an infinite slope between equal rows", "    inverse = jnp.where(apart, 1 / jnp.where(apart, length, 1), 0)", "    inverse = 1 / length + 0 * apart", mined("equal_rows and all")),
    (DISTANCES, "all differences are held for the gradient", "lax.scan(jax.checkpoint(step, prevent_cse=False), start,", "lax.scan(step, start,", mined("2048")),
    (DISTANCES, "the last features are left out", "    parts = -(-x.shape[1] // width)\n    padded = jnp.pad(x, [(0, 0), (0, parts * width - x.shape[1])])\n", "    parts = max(x.shape[1] // width - (x.shape[1] > 90), 1)\n    padded = x[:, : parts * width]\n", mined("neighbours and all")),
    (MINED, "squares overflow", "        scale = scale_exponent(columns, (0, 1))", "        scale = 1 + 0 * scale_exponent(columns, (0, 1))", mined("squares")),
    (MINED, "what fills up the last chunk is cut at the wrong end", "        return rows_in_order(found, rows.shape[0])", "        return jnp.roll(rows_in_order(found, rows.shape[0] + 1), 1, axis=0)[: rows.shape[0]]", mined("chunks_of_anchors and all")),
    (MINED, "a triplet at the margin itself is active", "    return (ahead < margin) |", "    return (ahead <= margin) |", mined("ties and all")),
    (MINED, "what lies between the edge and the margin is dropped", "taken(beyond, passed) + pushes * (margin - (length - edge))", "taken(beyond, passed)", mined("chunks_of_anchors and all")),
    (MINED, "what is beyond all positives is added up", "    gap = jnp.where((place > 0) & (place < count),", "    gap = jnp.where((place > 0) & (place <= count),", mined("chunks_of_anchors and all")),
    (MINED, "an unknown distance is infinitely far", "    return 0 * jnp.sum(jnp.where(kept, length, 0), axis=1)", "    return jnp.zeros_like(length[:, 0])", mined("unknown")),
    (MINED, "the margin has no slope", "jnp.sum(slopes * d_length, axis=1) + active * d_margin", "jnp.sum(slopes * d_length, axis=1) + 0 * active * d_margin", laws("mined_triplet", "float64")),
    (MINED, "the mean is over all triplets, always", "_over(total, active if average == \"active\" else count)", "_over(total, count)", mined("ties and all")),
    (MINED, "a soft positive pulls like the one before it", "place = _leading(positives, lambda positive: positive < length, near)", "place = _leading(positives, lambda positive: positive < length, near) - 1", mined("ways_to_one_number and 1000")),
    (MINED, "the soft form bends half", "    return (total, slopes), (jnp.sum(slopes * tangents[0], axis=1), moved)", "    return (total, slopes), (jnp.sum(slopes * tangents[0], axis=1), 0.5 * moved)", mined("soft_form_bends")),
    (MINED, "a negative as far as the positive is semi-hard", "lambda negative: negative <= length, far)", "lambda negative: negative < length, far)", mined("that_are_mined")),
    (MINED, "without a semi-hard negative the nearest is taken", "    farthest = jnp.argmax(jnp.where(far, length, -jnp.inf),", "    farthest = jnp.argmin(jnp.where(far, length, jnp.inf),", mined("that_are_mined")),
    (MINED, "of equal semi-hard negatives the last", "jnp.full_like(index, size).at[jnp.where(kept, place, size)].min(index,", "jnp.full_like(index, 0).at[jnp.where(kept, place, size)].max(index,", mined("that_are_mined")),
    (MINED, "an anchor without a negative counts", "            present = jnp.any(near, axis=1) & jnp.any(far, axis=1)", "            present = jnp.any(near, axis=1)", mined("without_a_triplet")),
    (EMBEDDING, "contrastive_pair: the double", "        together = 0.5 * jnp.sum(", "        together = jnp.sum(", laws("contrastive_pair")),
    (EMBEDDING, "cosine_embedding: a zero vector is at no distance", "jnp.where(alive, 0.5 * jnp.sum(jnp.square(u - v), axis=axis), 1)", "0.5 * jnp.sum(jnp.square(u - v), axis=axis)", "tests/test_margin.py -k zero_vector"),
    (EMBEDDING, "cosine_embedding: a small angle has no digit", "0.5 * jnp.sum(jnp.square(u - v), axis=axis)", "1 - jnp.sum(u * v, axis=axis)", "tests/test_margin.py -k small_angles"),
    (EMBEDDING, "multi_similarity: the pull is not divided", "-alpha * (s - base), -jnp.inf))) / alpha", "-alpha * (s - base), -jnp.inf)))", laws("multi_similarity")),
    (EMBEDDING, "multi_similarity: pairs are mined the other way round", "near & ((c < most + epsilon)", "near & ((c > most + epsilon)", laws("multi_similarity")),
    (MARGIN, "every class loses the margin", "        return cosine - margin\n", "        return cosine\n", laws("cos_face")),
    (MARGIN, "arc_face: the sine from the cosine", "        sine = jnp.squeeze(0.5 * norm(row - mine, -1) * norm(row + mine, -1), -1)", "        sine = jnp.sqrt(1 - jnp.square(cosine))", "tests/test_margin.py -k 'finite'"),
    (MARGIN, "arc_face: the wide angle turns back", "jnp.where(cosine >= -jnp.cos(margin), wider, cosine - margin * jnp.sin(margin))", "wider", "tests/test_margin.py -k 'every_angle'"),
    (EMBEDDING, "circle: the factors have slopes", "    c = jax.lax.stop_gradient(s)\n    pull", "    c = s\n    pull", laws("circle")),
    (EMBEDDING, "circle: positives are to exceed the margin", "* (s - (1 - margin))", "* (s - margin)", laws("circle")),
    (EMBEDDING, "circle: a row without a positive counts", "    both = jnp.any(near, axis=1) & jnp.any(far, axis=1)\n    c", "    both = jnp.any(far, axis=1)\n    c", laws("circle")),
    (MARGIN, "proxy_anchor: a pull is divided by all classes", "jnp.maximum(count * jnp.sum(count > 0), 1)", "jnp.maximum(count * classes, 1)", laws("proxy_anchor")),
    (MARGIN, "proxy_anchor: excluded rows push", "jnp.where(present & ~own, scale", "jnp.where(~own, scale", laws("proxy_anchor")),
    (TESTING, "what is held is not held for the reference", "        fixed = {} if held is None or not self.case.held else {\"held\": held}", "        fixed = {}", laws("circle")),
    (TESTING, "the curvature beside held parts is not compared", "    _close(found, want, \"curvature along a direction\", rtol=1e-5, atol=1e-7)\n", "", "tests/test_testing.py -k gradient_holds"),
]  # fmt: skip
