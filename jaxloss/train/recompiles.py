"""A step should compile once: what would make it compile again is kept away, and otherwise named."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["RecompilationWarning", "load_what_tracing_depends_on", "watched"]


class RecompilationWarning(UserWarning):
    """A train step was compiled once more, because something about its arguments is new."""


def load_what_tracing_depends_on() -> None:
    """Import what changes the settings that a trace depends on, before the first trace.

    Since jax 0.12 importing Pallas does. orbax imports it, and so does what accumulation rewrites programs with: the
    first checkpoint, or the first step itself, would make everything new that was compiled before. Not done with
    `import jaxloss`, because not everybody should wait for it.
    """
    importlib.import_module("jax.extend.core")


def watched(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`step(state, batch)`, to be jitted: warns when it is traced again. A step that does not compile pays nothing."""
    seen: list[dict[str, str]] = []

    @functools.wraps(step)
    def traced(state: Any, batch: Any) -> Any:
        now = _signature(state, batch)
        if seen:
            _warn(len(seen) + 1, seen[-1], now)
        seen.append(now)
        return step(state, batch)

    return traced


def _signature(state: Any, batch: Any) -> dict[str, str]:
    """What a compiled step depends on: shape and dtype of every array, by path."""
    return {
        f"`{name}{jax.tree_util.keystr(path)}`": _described(leaf)
        for name, tree in (("state", state), ("batch", batch))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _described(leaf: Any) -> str:
    weak = " (a Python number)" if getattr(leaf, "weak_type", False) else ""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}{weak}"


def _warn(count: int, before: dict[str, str], now: dict[str, str]) -> None:
    changes = [f"{path} was {before[path]}, now {what}" for path, what in now.items() if before.get(path, what) != what]
    changes += [f"{path} is new" for path in now if path not in before]
    changes += [f"{path} is gone" for path in before if path not in now]
    more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
    cause = "; ".join(changes[:3]) + more if changes else "shapes and dtypes are the same, a setting of jax is not"
    warnings.warn(
        f"the train step is compiled again (time {count}): {cause}. Pad short batches with jaxloss.train.pad_batch and "
        "keep dtypes and structures fixed; where several shapes are meant, ignore RecompilationWarning",
        RecompilationWarning,
        stacklevel=2,
    )
