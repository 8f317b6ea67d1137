"""The cases, a file a family. An engine adds a file here, or a `Case` to the `CASES` of one: nothing else to register.

A family module holds `TITLE`, a line for the table, and `CASES`, a list of `benchmarks.case.Case`. The smallest one:

    def truth(predictions, targets):                      # NumPy float64: each row's loss, and its gradient
        r = predictions - targets
        return r * r, 2 * r

    CASES = [
        Case(
            name="squared_error",
            sizes=((10**5,), (10**6,), (10**7,)),
            tiny=(1000,),
            inputs=lambda size, rng: {name: rng.standard_normal(size, np.float32) for name in ("p", "t")},
            truth=mean_over_rows(truth),
            variants={
                "jaxloss": with_jax.loss(lambda p, t: jl.squared_error(p, t), role="ours"),
                "optax": with_jax.loss(lambda p, t: optax.squared_error(p, t).mean(), needs=("optax",)),
                "limit": with_jax.limit(value=lambda p, t: (p * t).sum(), gradient=lambda p, t: p * t),
            },
            limit="reads both inputs, writes one array",
        )
    ]

What only some have (torch, rax, ...) is imported inside the function and named in `needs`. A fused engine takes as its
limit the matrix products alone; a loss with several gradients says `wrt=(0, 1)` and has as many in its truth.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from types import ModuleType

from benchmarks.case import Case

__all__ = ["by_name", "families", "select"]


@functools.cache
def families() -> dict[str, ModuleType]:
    return {m.name: importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)}


@functools.cache
def by_name() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for family, module in families().items():
        for case in module.CASES:
            if case.name in found:
                raise ValueError(f"two cases are named {case.name}, one of them in {family}.py")
            found[case.name] = case
    return found


def select(names: list[str]) -> list[Case]:
    """The cases of these names, of cases or of families; all of them for no name."""
    unknown = set(names) - set(by_name()) - set(families())
    if unknown:
        known = ", ".join([*families(), *by_name()])
        raise ValueError(f"no case or family is named {', '.join(sorted(unknown))}; there are {known}")
    wanted = {case.name for name in names if name in families() for case in families()[name].CASES} | set(names)
    return [case for case in by_name().values() if not names or case.name in wanted]
