"""Passes over batches: what may be given as batches, where a pass begins, and how its batches get one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxloss.train.batches import pad_batch, row_count

__all__ = ["Batches", "Padding", "check_batches", "is_function", "one_pass"]

# A function is given the number of steps done, and returns the pass that begins there.
Batches = Iterable[Any] | Callable[[int], Iterable[Any]]


def one_pass(batches: Any, step: int) -> Iterator[Any]:
    """The batches from `step` on."""
    return iter(batches(step) if is_function(batches) else batches)


def is_function(batches: Any) -> bool:
    """Whether `batches` has to be called. A loader may be callable too, and mean something else by it."""
    return callable(batches) and not _is_iterable(batches)


def check_batches(name: str, batches: Any) -> None:
    """Raises: TypeError for what gives no batches."""
    if isinstance(batches, Mapping) or hasattr(batches, "shape"):
        raise TypeError(f"`{name}` must give batches, and {type(batches).__name__} is one: give a list of them")
    if not (_is_iterable(batches) or callable(batches)):
        raise TypeError(
            f"`{name}` must be a list or another iterable of batches, or a function of the step that returns one; "
            f"got {type(batches).__name__}"
        )


class Padding:
    """Pads to the largest batch so far. Not to the first: a resumed pass may begin with the remainder."""

    def __init__(self, mask: str | None) -> None:
        self._mask, self._size = mask, 1

    def __call__(self, batch: Any) -> Any:
        """`batch` with its mask; as it is where there is no name for one."""
        if self._mask is None:
            return batch
        if isinstance(batch, Mapping):  # else `pad_batch` says why it must be
            self._size = max(self._size, row_count(batch))
        return pad_batch(batch, self._size, mask=self._mask)


def _is_iterable(batches: Any) -> bool:
    return hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
