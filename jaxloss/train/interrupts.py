"""Ctrl-C at a moment that loses nothing."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from typing import Any

__all__ = ["Hold", "hold_interrupts"]


class Hold:
    """`with hold:` around what must not be torn apart: Ctrl-C then waits for its end. A second one does not wait.

    A training step takes the old state's memory. An interrupt that arrives while it runs is raised by Python right
    after it, before the new state has a name, and both states are gone.
    """

    def __init__(self) -> None:
        self._inside = False
        self._asked = False

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt

    def interrupt(self, *_: Any) -> None:
        """What the signal calls."""
        if self._inside and not self._asked:
            self._asked = True
            return
        self._asked = False
        raise KeyboardInterrupt


@contextlib.contextmanager
def hold_interrupts() -> Generator[Hold]:
    """A `Hold` that Ctrl-C obeys within this context; without effect where somebody else handles the signal."""
    hold = Hold()
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not ours:
        yield hold
        return
    signal.signal(signal.SIGINT, hold.interrupt)
    try:
        yield hold
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
