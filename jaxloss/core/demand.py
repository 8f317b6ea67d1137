"""A chex assertion that speaks in our words alone.

chex puts its own account before a custom message ("[Chex] Assertion assert_equal_shape failed: ..."); what a user needs
is the argument's name, both shapes and the cure, in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["demand"]


def demand(assertion: Callable[..., None], *args: Any, error: type[Exception], message: str) -> None:
    """Make the assertion, at trace time; where it fails raise `error(message)`."""
    try:
        assertion(*args)
    except AssertionError:
        raise error(message) from None
