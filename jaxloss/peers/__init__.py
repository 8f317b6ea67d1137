"""What other libraries' losses are called here: tables of data, one file a library, read by `jaxloss.catalogue`.

A row answers for one or more full dotted names that take the same arguments. Its `call` is evaluated by the tests on
drawn arguments, and compared with what the library itself returns.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib

__all__ = ["LIBRARIES", "Answer", "answers"]

LIBRARIES = ("jaxopt", "keras", "optax", "rax", "rlax", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What to write here for a loss of another library.

    Attributes:
      names: its full dotted names: those of several functions or classes that take the same arguments.
      when: which of several answers to one name this is; empty where there is one.
      loss: the loss of jaxloss that it is; None where there is none yet, or where the name stands for no loss.
      call: a Python expression in the arguments of the peer that gives its result; `jl`, `jnp` and `jax` are imported.
        With `reduction` in it, the expression is true for every reduction of the peer, without for the default one.
        Optional arguments that were not given are left out.
      differs: where the convention is another one, and what the expression does not cover.
      not_yet: why there is no loss, where there is none.
    """

    names: tuple[str, ...]
    when: str = ""
    loss: str | None = None
    call: str = ""
    differs: str = ""
    not_yet: str = ""


@functools.cache
def answers() -> tuple[Answer, ...]:
    """Every row, library by library; the tables are imported by the first call."""
    modules = (importlib.import_module(f"{__name__}.{library}") for library in LIBRARIES)
    return tuple(answer for module in modules for answer in module.ANSWERS)
