"""Batches as a compiled step wants them: all of one size, and finite behind their masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxloss.core.demand import demand
from jaxloss.core.types import ArrayLike

__all__ = ["clean", "pad_batch"]


def pad_batch(batch: Mapping[str, Any], size: int, *, mask: str = "mask") -> dict[str, Any]:
    """A batch of exactly `size` rows, with a mask that says which of them are real.

        loss_fn:  softmax_cross_entropy(logits, batch["y"], where=batch["mask"], reduction="partial")

    Use for the last, shorter batch: it compiles nothing new, and no row is dropped or counted twice. The mask must
    reach the loss (`where=`) and whatever else lets rows see each other, such as a batch normalisation. It travels in
    the batch, so a batch is a dict, in which `loss_fn` finds it by name.

    Args:
      batch: a dict of pytrees of arrays [rows, ...], all with the same rows; scalars stay as they are. NumPy stays
        NumPy, and no device is touched. To spread a batch over a mesh, pad it first: rows that do not divide have no
        sharding.
      size: rows wanted, at least those of `batch`.
      mask: the name of the mask. Absent, it is added: bool [size]. Present, it is your own, bool [rows, ...], and is
        continued with False.
    Returns: a new dict. The padding repeats the first row, because that is legal input, whatever the model does with
      it: zeros need not survive a logarithm, and may be no legal id. A batch of no rows has none to repeat, and gets
      zeros.
    Raises: TypeError where `batch` is no dict or its mask not bool; ValueError where rows differ or exceed `size`.
    """
    _check_arguments(batch, size)
    rows = row_count(batch)
    if rows > size:
        raise ValueError(f"`batch` has {rows} rows, more than `size` = {size}; padding only adds rows")
    others = {name: entry for name, entry in batch.items() if name != mask}
    padded: dict[str, Any] = jax.tree.map(lambda leaf: _repeat_first(leaf, size), others)
    if mask in batch:
        padded[mask] = _continue_with_false(batch[mask], size, mask)
    else:
        on_device = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(others))
        padded[mask] = (jnp if on_device else np).arange(size) < rows
    return padded


def clean(batch: Any, where: ArrayLike) -> Any:
    """0 in every entry that `where` excludes.

        x = clean(batch["x"], batch["mask"])        before the model sees it

    Use where excluded inputs of the *model* may be nan, inf or no legal id. A loss makes its own inputs harmless, but
    behind it the gradient of a matrix is x^T 0, and nan times 0 is nan.

    Args:
      batch: a pytree of arrays whose first axes are those of `where`; scalars stay as they are.
      where: bool, [B], [B, T], ...: False excludes all that an array has there.
    Returns: the same pytree, dtypes and shapes; NumPy for NumPy. Integers become 0 as well, so that an embedding finds
      a legal id, and booleans False: a mask that is read off labels of -100 must be read before.
    Gradient: 0 in excluded entries. Works in jit, grad and vmap.
    Raises: TypeError where `where` is not bool; ValueError where an array's first axes are not those of `where`.
    """
    kept: Any = where if isinstance(where, jax.Array) else np.asarray(where)
    if kept.dtype != np.bool_:
        raise TypeError(f"`where` must be bool, got {kept.dtype}; for labels of -100 it is `labels != -100`")

    def entry(path: Any, leaf: Any) -> Any:
        if np.ndim(leaf) == 0:
            return leaf
        name = f"batch{jax.tree_util.keystr(path)}"
        demand(
            chex.assert_equal_shape_prefix,
            [kept, leaf],
            kept.ndim,
            error=ValueError,
            message=f"`{name}` {list(leaf.shape)} and `where` {list(kept.shape)} must agree in all axes of `where`; "
            "clean what has other axes by itself, with a mask of those",
        )
        xp: Any = jnp if isinstance(leaf, jax.Array) or isinstance(kept, jax.Array) else np
        # Selected, not multiplied: 0 * nan is nan.
        return xp.where(xp.expand_dims(kept, tuple(range(kept.ndim, leaf.ndim))), leaf, xp.zeros((), leaf.dtype))

    return jax.tree_util.tree_map_with_path(entry, batch)


def row_count(batch: Any) -> int:
    """How many rows the arrays of a batch have.

    Raises: ValueError where they differ, or where there is no array.
    """
    sizes = [(path, leaf.shape[0]) for path, leaf in jax.tree_util.tree_leaves_with_path(batch) if np.ndim(leaf)]
    if not sizes:
        raise ValueError("`batch` holds no array with rows; a batch is a pytree of arrays [rows, ...]")
    first, rows = sizes[0]
    for path, other in sizes:
        if other != rows:
            raise ValueError(
                f"`batch{jax.tree_util.keystr(first)}` has {rows} rows and `batch{jax.tree_util.keystr(path)}` "
                f"{other}; every array of a batch has the same rows along its first axis"
            )
    return rows


def _check_arguments(batch: Any, size: Any) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(
            "`batch` must be a dict, in which `loss_fn` finds the mask by its name; "
            f"got {type(batch).__name__}: give {{'x': x, 'y': y}}"
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"`size` must be a whole number of rows, at least 1; got {size!r}")


def _repeat_first(leaf: Any, size: int) -> Any:
    missing = size - leaf.shape[0] if np.ndim(leaf) else 0
    if not missing:
        return leaf
    xp: Any = jnp if isinstance(leaf, jax.Array) else np
    first = leaf[:1] if leaf.shape[0] else xp.zeros((1, *leaf.shape[1:]), leaf.dtype)
    return xp.concatenate([leaf, xp.repeat(first, missing, axis=0)])


def _continue_with_false(mask: Any, size: int, name: str) -> Any:
    if getattr(mask, "dtype", None) != np.bool_ or not np.ndim(mask):
        kind = f"{mask.dtype}{list(mask.shape)}" if hasattr(mask, "dtype") else type(mask).__name__
        raise TypeError(
            f"`batch[{name!r}]` must be bool [rows, ...], True where a row is real; got {kind}. What counts in part "
            "is a weight, and goes by another name than `mask`"
        )
    xp: Any = jnp if isinstance(mask, jax.Array) else np
    return xp.concatenate([mask, xp.zeros((size - mask.shape[0], *mask.shape[1:]), bool)])
