"""The truth of a case: NumPy in float64, a few rows at a time, or the largest sizes would need all memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["mean_over_rows", "worst_error"]

_ENTRIES_AT_A_TIME = 2**21


def mean_over_rows(
    formula: Callable[..., tuple[np.ndarray, np.ndarray]],
) -> Callable[[Mapping[str, Any]], Sequence[np.ndarray]]:
    """From a row's loss and its gradient by the first input, both [rows, ...]: the mean's value and gradient."""

    def truth(inputs: Mapping[str, Any]) -> Sequence[np.ndarray]:
        arrays = list(inputs.values())
        rows = len(arrays[0])
        gradient = np.empty(arrays[0].shape, np.float32)  # rounded once, 100 times finer than any tolerance
        total = 0.0
        step = max(1, _ENTRIES_AT_A_TIME * rows // arrays[0].size)
        for start in range(0, rows, step):
            part = [array[start : start + step] for array in arrays]
            losses, slopes = formula(*(_wide(array) for array in part))
            total += losses.sum()
            gradient[start : start + step] = slopes / rows
        return [np.asarray(total / rows), gradient]

    return truth


def worst_error(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest error over the largest entry of the truth; nan where one is not a number."""
    if found.shape != truth.shape:
        raise ValueError(f"the shape is {found.shape}, that of the truth {truth.shape}")
    found, truth = found.reshape(-1), truth.reshape(-1)
    error = scale = 0.0
    for start in range(0, found.size, _ENTRIES_AT_A_TIME):
        a, b = (_wide(array[start : start + _ENTRIES_AT_A_TIME]) for array in (found, truth))
        # np.maximum, unlike max, keeps a nan.
        error, scale = np.maximum(error, np.abs(a - b).max()), np.maximum(scale, np.abs(b).max())
    return float(error / scale) if scale > 0 else float(error)


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array) if array.dtype.kind in "iub" else np.asarray(array).astype(np.float64)
