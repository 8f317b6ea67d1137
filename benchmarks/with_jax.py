"""Variants in JAX, whatever library wrote the function. The harness compiles; inputs are arguments, never constants."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.case import GRADIENT, RUN, VALUE, Inputs, Prepared, Role, Variant

__all__ = ["limit", "loss", "place", "session"]


def place(inputs: Inputs) -> Inputs:
    return jax.block_until_ready({name: jnp.asarray(array) for name, array in inputs.items()})


def loss(
    function: Callable[..., Any],
    *,
    role: Role = "peer",
    needs: tuple[str, ...] = (),
    wrt: tuple[int, ...] = (0,),
    tolerance: Mapping[str, float] | None = None,
) -> Variant:
    """A function of the inputs, in their order, that returns a scalar; differentiated by the arguments `wrt`."""

    def build(inputs: Inputs, mode: str) -> Prepared:
        wanted = function if mode == VALUE else jax.value_and_grad(function, argnums=wrt)
        return _compiled(wanted, tuple(inputs.values()))

    return Variant(build, "jax", role, needs, (VALUE, GRADIENT), tolerance)


def limit(**functions: Callable[..., Any]) -> Variant:
    """The least that must move or multiply: by mode (`value=`, `gradient=`, `run=`) a function of the inputs."""
    modes = {VALUE: "value", GRADIENT: "gradient", RUN: "run"}
    by_mode = {mode: functions[word] for mode, word in modes.items() if word in functions}

    def build(inputs: Inputs, mode: str) -> Prepared:
        return _compiled(by_mode[mode], tuple(inputs.values()))

    return Variant(build, "jax", "limit", (), tuple(by_mode))


def session(
    build: Callable[[Inputs], tuple[Callable[[], Any], Callable[[], Any]]],
    *,
    role: Role = "peer",
    tolerance: Mapping[str, float] | None = None,
) -> Variant:
    """Work with a state: `build(inputs)` gives what advances it by one step, and what shows it at the checked step."""

    def prepared(inputs: Inputs, mode: str) -> Prepared:
        start = time.perf_counter()
        advance, show = build(inputs)
        jax.block_until_ready(advance())
        compile_s = time.perf_counter() - start
        return Prepared(
            call=lambda: jax.block_until_ready(advance()),
            outputs=lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(show())],
            compile_s=compile_s,
        )

    return Variant(prepared, "jax", role, (), (RUN,), tolerance)


def _compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Prepared:
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    memory = compiled.memory_analysis()

    def call() -> Any:
        return jax.block_until_ready(compiled(*arguments))

    return Prepared(
        call=call,
        outputs=lambda: [np.asarray(leaf) for leaf in jax.tree.leaves(call())],
        compile_s=compile_s,
        temp_bytes=getattr(memory, "temp_size_in_bytes", None),
        output_bytes=getattr(memory, "output_size_in_bytes", None),
    )
