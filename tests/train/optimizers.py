"""Every configuration of optax's optimizers that a train step is held to, and how each is driven by hand.

A row: what makes the optimizer, and the keyword arguments that its update wants beside gradient, state and params.
"""

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

RATE = 0.02
SEARCH = ("value", "grad", "value_fn")


@dataclasses.dataclass(frozen=True)
class Row:
    make: Callable[[], Any]
    wants: tuple[str, ...] = ()
    # How params and gradients are given: "one" set, lookahead's "pair", or gradients of all "examples".
    shape: str = "one"


def _alias(module: Any, name: str, *wants: str, **options: Any) -> Row:
    make = getattr(module, name)
    rate = inspect.signature(make).parameters.get("learning_rate")
    arguments = (RATE,) if rate is not None and rate.default is rate.empty else ()
    return Row(lambda: _deprecated(make, *arguments, **options), wants)


def _deprecated(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what optax will drop must work until then
        return make(*arguments, **options)


def sam(**options: Any) -> Any:
    return contrib.sam(optax.sgd(RATE), optax.chain(contrib.normalize(), optax.sgd(0.05)), **options)


def halves(one: str, other: str) -> dict[str, str]:
    return {"w": one, "b": other}


ONLY_W = {"w": True, "b": False}
PLAIN = (  # noqa: SIM905
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lion nadam "
    "nadamw novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd "
    "sign_sgd signum sm3 yogi"
).split()
CONTRIB = (  # noqa: SIM905
    "acprop ademamix adopt dadapt_adamw galore madgrad muon prodigy schedule_free_adamw schedule_free_sgd "
    "simplified_ademamix cocob dog dowg"
).split()

ROWS = {
    **{name: _alias(optax, name) for name in PLAIN},
    "lbfgs": _alias(optax, "lbfgs", *SEARCH),
    "lbfgs(linesearch=None)": Row(lambda: optax.lbfgs(0.1, linesearch=None)),
    "noisy_sgd": Row(lambda: optax.noisy_sgd(RATE, key=jax.random.key(0))),
    "polyak_sgd": _alias(optax, "polyak_sgd", "value"),
    "sgd+backtracking": Row(
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)), SEARCH
    ),
    "sgd+backtracking(store_grad)": Row(
        lambda: optax.chain(
            optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15, store_grad=True)
        ),
        SEARCH,
    ),
    "sgd+zoom": Row(
        lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(max_linesearch_steps=15)), SEARCH
    ),
    "lookahead(sgd)": Row(lambda: optax.lookahead(optax.sgd(RATE), 2, 0.5), shape="pair"),
    "apply_if_finite(adam)": Row(lambda: optax.apply_if_finite(optax.adam(RATE), 3)),
    "apply_if_finite(lbfgs)": Row(lambda: optax.apply_if_finite(optax.lbfgs(), 3), SEARCH),
    "apply_if_finite(polyak)": Row(lambda: optax.apply_if_finite(optax.polyak_sgd(), 3), ("value",)),
    "apply_if_finite(sophia)": Row(lambda: optax.apply_if_finite(contrib.sophia(RATE), 3), ("obj_fn",)),
    "MultiSteps(adam)": Row(lambda: optax.MultiSteps(optax.adam(RATE), 2)),
    "MultiSteps(adam).gradient_transformation": Row(
        lambda: optax.MultiSteps(optax.adam(RATE), 2).gradient_transformation()
    ),
    "MultiSteps(polyak)": Row(lambda: optax.MultiSteps(optax.polyak_sgd(), 2), ("value",)),
    "MultiSteps(polyak).gradient_transformation": Row(
        lambda: optax.MultiSteps(optax.polyak_sgd(), 2).gradient_transformation(), ("value",)
    ),
    "MultiSteps(lbfgs)": Row(lambda: optax.MultiSteps(optax.lbfgs(), 2), SEARCH),
    "masked(adam)": Row(lambda: optax.masked(optax.adam(RATE), ONLY_W)),
    "masked(momo)": Row(lambda: optax.masked(contrib.momo(), ONLY_W), ("value",)),
    "partition(adam,sgd)": Row(
        lambda: optax.partition({"a": optax.adam(RATE), "s": optax.sgd(RATE)}, halves("a", "s"))
    ),
    "partition(adam,set_to_zero)": Row(
        lambda: optax.partition({"a": optax.adam(RATE), "s": optax.set_to_zero()}, halves("a", "s"))
    ),
    "inject_hyperparams(adam)": Row(lambda: optax.inject_hyperparams(optax.adam)(learning_rate=RATE)),
    "flatten(adam)": Row(lambda: optax.flatten(optax.adam(RATE))),
    "chain(agc,adam)": Row(lambda: optax.chain(optax.adaptive_grad_clip(0.01), optax.adam(RATE))),
    "chain(clip_by_global_norm,adamw)": Row(lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE))),
    "chain(adam,keep_params_nonneg)": Row(lambda: optax.chain(optax.adam(RATE), optax.keep_params_nonnegative())),
    "chain(adam,ema)": Row(lambda: optax.chain(optax.adam(RATE), optax.ema(0.9))),
    "chain(adam,reduce_on_plateau)": Row(
        lambda: optax.chain(optax.adam(RATE), contrib.reduce_on_plateau(patience=5)), ("value",)
    ),
    "chain(snapshot,adam)": Row(
        lambda: optax.chain(optax.snapshot("norm", lambda updates: optax.tree.norm(updates)), optax.adam(RATE))
    ),
    "distance_over_gradients": Row(lambda: optax.chain(optax.scale_by_distance_over_gradients(), optax.scale(-1.0))),
    **{name: _alias(contrib, name) for name in CONTRIB},
    "momo": _alias(contrib, "momo", "value"),
    "momo_adam": _alias(contrib, "momo_adam", "value"),
    "chain(clip,momo)": Row(lambda: optax.chain(optax.clip(10.0), contrib.momo()), ("value",)),
    "sophia": _alias(contrib, "sophia", "obj_fn"),
    "sophia(update_interval=2)": Row(lambda: contrib.sophia(RATE, update_interval=2), ("obj_fn",)),
    "sam(transparent)": Row(sam),
    "sam(opaque)": Row(lambda: sam(opaque_mode=True), ("grad_fn",)),
    "chain(clip,sam(transparent))": Row(lambda: optax.chain(optax.clip(10.0), sam())),
    "mechanize(sgd)": Row(lambda: contrib.mechanize(optax.sgd(RATE))),
    "mechanize(lbfgs)": Row(lambda: contrib.mechanize(optax.lbfgs()), SEARCH),
    "schedule_free(adam)": Row(lambda: contrib.schedule_free(optax.adam(RATE, b1=0.0), RATE)),
    "schedule_free(polyak)": Row(lambda: contrib.schedule_free(optax.polyak_sgd(), RATE), ("value",)),
    "split_real_and_imaginary(adam)": Row(lambda: contrib.split_real_and_imaginary(optax.adam(RATE))),
    "dpsgd": Row(lambda: _deprecated(contrib.dpsgd, RATE, 1.0, 0.1, 0), shape="examples"),
}

# What no caller can drive, and a piece of what the step says about it.
IMPOSSIBLE = {
    "masked(lbfgs)": (lambda: optax.masked(optax.lbfgs(), ONLY_W), "pruned tree"),
    "partition(lbfgs,sgd)": (
        lambda: optax.partition({"a": optax.lbfgs(), "s": optax.sgd(RATE)}, halves("a", "s")),
        "pruned tree",
    ),
    "inject_hyperparams(lbfgs)": (lambda: optax.inject_hyperparams(optax.lbfgs)(learning_rate=1.0), "static_args"),
    "chain(clip,MultiSteps(polyak).gradient_transformation)": (
        lambda: optax.chain(optax.clip(1.0), optax.MultiSteps(optax.polyak_sgd(), 2).gradient_transformation()),
        "drops what the inner optimizer needs",
    ),
}
