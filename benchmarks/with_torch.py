"""Variants in PyTorch, eager or compiled. torch is imported in the worker that needs it, nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.case import VALUE, Inputs, Outputs, Prepared, Variant

__all__ = ["loss", "place"]


def place(inputs: Inputs) -> Inputs:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: _tensor(array).to(device) for name, array in inputs.items()}


def loss(
    function: Callable[..., Any], *, compiled: bool = False, tolerance: Mapping[str, float] | None = None
) -> Variant:
    """A function of the tensors, in the order of the inputs, that returns a scalar; differentiated by the first."""

    def build(inputs: Inputs, mode: str) -> Prepared:
        import torch

        first, *others = inputs.values()
        run = torch.compile(function, dynamic=False) if compiled else function
        synchronize = torch.cuda.synchronize if first.is_cuda else _nothing

        def call() -> Any:
            if mode == VALUE:
                with torch.no_grad():
                    found = (run(first, *others),)
            else:
                leaf = first.detach().requires_grad_()
                value = run(leaf, *others)
                found = (value.detach(), *torch.autograd.grad(value, leaf))
            synchronize()
            return found

        def outputs() -> Outputs:
            return [_array(tensor) for tensor in call()]

        compile_s = None
        if compiled:
            torch.compiler.reset()  # or the other sizes count as recompilations, and the eighth is not compiled
            start = time.perf_counter()
            call()
            compile_s = time.perf_counter() - start
        return Prepared(call=call, outputs=outputs, compile_s=compile_s)

    return Variant(build, "torch", needs=("torch",), tolerance=tolerance)


def _nothing() -> None:
    pass


def _tensor(array: np.ndarray) -> Any:
    import torch

    if array.dtype.name == "bfloat16":  # which NumPy itself does not know
        return torch.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    # Class labels are int64 in torch, and would be converted in every call otherwise.
    return torch.from_numpy(np.array(array, np.int64 if array.dtype.kind == "i" else array.dtype))


def _array(tensor: Any) -> np.ndarray:
    import torch

    return tensor.cpu().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.cpu().numpy()
