"""Single defects in the contrastive losses and their tiles, each with the test that must catch it."""

TILES, ROWS, VISITS = (f"jaxloss/algorithms/{name}.py" for name in ("tiled_contrast", "contrast", "visits"))
LOSSES, FRAMES = "jaxloss/losses/contrastive.py", "jaxloss/core/frames.py"


def test(name):
    return f"tests/test_tiled_contrast.py -k '{name}'"


TEXTBOOK = "value_slope_and_curvature and "


MUTANTS = [
    (TILES, "an absent row is a negative", "    return row.present[:, None] & column.present[None, :]", "    return row.present[:, None] | column.present[None, :]", test("behind_a_mask and clip")),
    (TILES, "a row's own column is among the others", "    return _present(row, column) & ~own(row, column)\n", "    return _present(row, column)\n", test("confident and clip")),
    (TILES, "a column's earlier tiles keep their shift", "total * jnp.exp(before - top) + ", "total + ", test(TEXTBOOK + "clip and 20")),
    (TILES, "the columns' slope is that of the rows", "jnp.exp(s - column_sums[None]) * ds", "jnp.exp(s - row_sums[:, None]) * ds", test(TEXTBOOK + "clip and 20")),
    (TILES, "only the last tile gives the columns a slope", "else total + by_column), (by_row", "else by_column), (by_row", test(TEXTBOOK + "clip and 20")),
    (TILES, "the own score has no slope", "        mine = jnp.sum(jnp.where(own(marks, column_marks), ds, 0), axis=1)", "        mine = jnp.sum(jnp.where(own(marks, column_marks), 0 * ds, 0), axis=1)", test(TEXTBOOK + "info_nce")),
    (TILES, "tiles of sums are kept for the gradient", "each = tile if plan.chunks == 1 else jax.checkpoint(tile, prevent_cse=False)\n        by_row, mine", "each = tile\n        by_row, mine", test("32768 and clip")),
    (TILES, "tiles of rows are kept for the gradient", "each = tile if plan.chunks == 1 else jax.checkpoint(tile, prevent_cse=False)\n        return None", "each = tile\n        return None", test("32768 and siglip")),
    (TILES, "strided rows come back in the order of their chunks", "        x = x.swapaxes(0, 1) if plan.strided else x\n", "", test("sharded_rows and clip")),
    (TILES, "what fills up the last tile is cut at the wrong end", "x.reshape(-1, *x.shape[2:])[:count]", "x.reshape(-1, *x.shape[2:])[-count:]", test(TEXTBOOK + "info_nce")),
    (ROWS, "the images of a text are forgotten", "0.5 * (softplus(across - score) + softplus(down - score))", "softplus(across - score)", test(TEXTBOOK + "clip and 20")),
    (ROWS, "a positive is a negative of the others", "        far = log_sum(jnp.where(unlike(marks, column), s, -jnp.inf))\n    near", "        far = log_sum(jnp.where(others(marks, column), s, -jnp.inf))\n    near", test(TEXTBOOK + "nt_xent")),
    (ROWS, "the mean of the positives has no slope", "    slope = jnp.exp(kept - log_sum(kept)[:, None]) - near / _counted(s, near)[:, None]", "    slope = jnp.exp(kept - log_sum(kept)[:, None])", test(TEXTBOOK + "supervised")),
    (ROWS, "an anchor without a positive counts", "lax.stop_gradient(found[:, 1]) > 0", "lax.stop_gradient(found[:, 1]) >= 0", test("anchor_without and nt_xent")),
    (ROWS, "every pair belongs together", "jnp.where(own(row, column), -z, z)", "-z", test(TEXTBOOK + "siglip")),
    (VISITS, "what was found of a guest goes on instead of home", "_sent(axis_name, back, devices, -shift)", "_sent(axis_name, back, devices, shift)", test("four_devices and clip and ring")),
    (LOSSES, "info_nce: temperature squared", "_all(everyone, 1), more, own, 1 / temperature)", "_all(everyone, 1), more, own, 1 / temperature**2)", test(TEXTBOOK + "info_nce")),
    (LOSSES, "hard negatives of excluded rows remain", "_nobodys(everyone.arrays[2], everyone.present)", "_nobodys(everyone.arrays[2])", test("behind_a_mask and in_batch")),
    (FRAMES, "a ring that gathers", "    if ring and axis_name:\n", "    if False:\n", test("gathers_nothing and siglip")),
]  # fmt: skip
