"""Looking up what a person has typed, and refusing it in words that help."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["RequestError", "look_up", "suggestion"]

T = TypeVar("T")


class RequestError(ValueError):
    """Something that a user asked for cannot be had; the message says why and what can. Not a defect: no traceback."""


def look_up(kind: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`, or a `RequestError` with the nearest names and all of them."""
    if name in known:
        return known[name]
    raise RequestError(f"no {kind} is named {name!r}{suggestion(name, list(known))}; known: {', '.join(known)}")


def suggestion(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(name.lower(), known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
