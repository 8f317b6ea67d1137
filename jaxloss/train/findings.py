"""What the figures of a diagnosis mean, in sentences: which layer, which figure, what to try."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxloss.train.origin import Origin
from jaxloss.train.rows import Activation, Layer

__all__ = ["Step", "findings"]

# Between the first and the last layer. Measured at initialisation, on digits and on noise, 64 and 256 units: relu (He)
# and tanh (Glorot) of 5 to 30 layers keep the norm of the gradient within a factor of 5 and the rms of the signal
# within 6; 12 sigmoid layers (Glorot) lose a factor of 8e6, 5 layers 3e2, which adam still trains.
DEPTH = 1e3

# Share of units that are 0 in every row. Measured on 128 rows, relu nets of 30 layers begin with up to 0.42 of them,
# because far from the input all rows look alike. In fewer rows than these a healthy unit may be 0 by chance.
DEAD = 0.5
DEAD_ROWS = 16

# Share of entries at the flat ends: gates and outputs may be there on purpose, but where most are, little gets through.
SATURATED = 0.5

# Update over param, for arrays of two axes or more; usual is 1e-3 (Karpathy, CS231n notes, "Ratio of weights:updates").
# A tenth in one step forgets in ten; a millionth needs a million steps.
UPDATE_HIGH, UPDATE_LOW = 1e-1, 1e-6

# The smallest normal number of float16: below, digits are lost, and below 6e-8 everything.
FLOAT16 = 2.0**-14

# What usually helps where an equation makes nan or inf.
_CURES = {
    "log": "keep its argument above 0, or take a loss that works on logits",
    "exp": "its argument is too large: subtract the largest, or take a loss that works on logits",
    "div": "its divisor is 0",
    "sqrt": "its argument is negative, or its slope at 0 infinite",
    "rsqrt": "its argument is 0 or negative: add an epsilon",
    "dot_general": "the signal has grown out of range: normalize it, or start from smaller weights",
}


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known of the step as a whole; `nonfinite` counts the nan and inf entries of its inputs by name."""

    skipped: bool
    nan_terms: tuple[str, ...]
    nonfinite: dict[str, int]
    forward: tuple[Origin, ...]
    backward: tuple[Origin, ...]
    loss_scale: float


def findings(layers: Sequence[Layer], activations: Sequence[Activation], step: Step) -> tuple[str, ...]:
    """Every sentence that there is reason for, the worst first."""
    through_depth = _through_depth(layers, activations)
    return (
        *_nonfinite(layers, activations, step),
        *through_depth,
        *_signal(activations),
        *_units(activations),
        *_without_gradient(layers),
        # Where gradients vanish updates are small, and no learning rate mends that.
        *_updates(layers, step, even_small_ones=not through_depth),
        *_underflow(activations, step),
    )


def _nonfinite(layers: Sequence[Layer], activations: Sequence[Activation], step: Step) -> list[str]:
    found: list[str] = []
    for name, count in step.nonfinite.items():
        cure = "go back to a checkpoint" if name.startswith("params") else "mend it, or mask it and `clean` it"
        found.append(f"{name} has {count} entries that are nan or inf before anything is computed: {cure}")
    origins = step.forward or step.backward
    if origins:
        *earlier, last = origins
        text = f"the first {last.kind} is made by {last}"
        if not step.forward:
            text = f"the loss is finite and its gradient is not: {text}, in the backward pass"
        text += "".join(f", out of the inf that {origin} made" for origin in earlier)
        cure = _CURES.get(origins[0].what)
        if not step.forward:
            cure = (
                "a slope is infinite there (a root or a norm at 0, a branch that `where` leaves out): mend its argument"
            )
        found.append(text + ("" if cure is None else f"; {cure}"))
    sick = next((each for each in activations if each.nonfinite), None)
    if sick is not None:
        found.append(f"{sick.name} is the first activation with nan or inf, in {sick.nonfinite} entries")
    if step.skipped:
        why = [f"the term {name!r} is nan" for name in step.nan_terms]
        broken = [layer.name for layer in layers if layer.nonfinite]
        if broken or not why:
            why.append("the gradient" + (f" of {_listed(broken)}" if broken else "") + " is not finite")
        found.append(f"this step is skipped, because {' and '.join(why)}")
    return found


def _through_depth(layers: Sequence[Layer], activations: Sequence[Activation]) -> list[str]:
    """From the output back to the input. The gradients of activations tell it better than those of weights.

    Where weights are large, signals grow as gradients shrink, and the gradient of a weight, their product, shows
    nothing.
    """
    chain = [(each.name, each.strength, each.kind) for each in activations if each.kind != "softmax"]
    if len(chain) < 2:
        chain = [(each.name, each.gradient, "") for each in layers if each.used and len(each.shape) > 1]
    chain = [link for link in chain if math.isfinite(link[1]) and link[1] > 0]
    if len(chain) < 2:
        return []
    (first, at_first, _), (last, at_last, _) = chain[0], chain[-1]
    factor = at_last / at_first
    per_layer = max(factor, 1 / factor) ** (1 / (len(chain) - 1))
    way = f"from {at_last:.1e} at {last} to {at_first:.1e} at {first}, {per_layer:.1f} times a layer"
    if factor > DEPTH:
        flat = {"sigmoid", "tanh"} & {kind for _, _, kind in chain}
        instead = f"relu or gelu instead of {_listed(sorted(flat))}, " if flat else ""
        return [
            f"the gradient vanishes: its norm falls {way}; try {instead}residual connections, normalization, or larger "
            "initial weights (He, Glorot)"
        ]
    if factor < 1 / DEPTH:
        return [
            f"the gradient explodes: its norm grows {way}; try smaller initial weights (He, Glorot), normalization, or "
            "clipping (optax.clip_by_global_norm)"
        ]
    return []


def _signal(activations: Sequence[Activation]) -> list[str]:
    """From the input on to the output; sigmoids and softmaxes have a scale of their own."""
    chain = [x for x in activations if x.kind not in ("sigmoid", "softmax") and math.isfinite(x.rms) and x.rms > 0]
    if len(chain) < 2:
        return []
    first, last = chain[0], chain[-1]
    way = f"from {first.rms:.1e} at {first.name} to {last.rms:.1e} at {last.name}"
    if last.rms > DEPTH * first.rms:
        return [f"the signal explodes: its rms grows {way}; try smaller initial weights (He, Glorot), or normalization"]
    if last.rms * DEPTH < first.rms:
        return [f"the signal dies away: its rms falls {way}; try larger initial weights (He, Glorot), or normalization"]
    return []


def _units(activations: Sequence[Activation]) -> list[str]:
    found: list[str] = []
    dead = [x for x in activations if x.dead is not None and x.dead > DEAD * x.units and x.rows >= DEAD_ROWS]
    if dead:
        named = _listed([f"{each.name} ({each.dead} of {each.units})" for each in dead])
        found.append(
            f"dead units in {named}: they are 0 in every row of this batch, and learn nothing from it; try a smaller "
            "learning rate, biases that start at 0, or leaky_relu or gelu"
        )
    for softmax in (False, True):
        flat = [
            each
            for each in activations
            if each.saturated is not None and each.saturated > SATURATED and (each.kind == "softmax") == softmax
        ]
        named = _listed([f"{each.name} ({each.saturated:.0%})" for each in flat])
        if flat and softmax:
            found.append(
                f"one entry takes all in {named}: hardly any gradient passes a softmax there; try to scale its "
                "argument down (in attention by the root of the key's size), or to normalize queries and keys"
            )
        elif flat:
            found.append(
                f"saturated units in {named}: hardly any gradient passes there; try smaller initial weights, "
                "normalization before the nonlinearity, or inputs scaled to about 1"
            )
    return found


def _without_gradient(layers: Sequence[Layer]) -> list[str]:
    found: list[str] = []
    unused = [layer.name for layer in layers if not layer.used]
    if unused:
        found.append(f"the loss does not depend on {_listed(unused)}: does the model use them?")
    silent = [layer.name for layer in layers if layer.used and layer.gradient == 0]
    if silent:
        found.append(
            f"no gradient at all for {_listed(silent)}: cut off by stop_gradient, by dead units, or by later weights "
            "that are all 0, or too small for its dtype"
        )
    return found


def _updates(layers: Sequence[Layer], step: Step, *, even_small_ones: bool) -> list[str]:
    moving = [layer for layer in layers if layer.used and layer.gradient > 0]
    if step.skipped or not moving:
        return []
    if all(layer.update == 0 for layer in moving):
        return ["the optimizer changes nothing in this step: a schedule at 0, or a wrapper that waits for more steps"]
    found: list[str] = []
    still = [layer.name for layer in moving if layer.update == 0]
    if still:
        found.append(
            f"the optimizer does not change {_listed(still)}, though there is a gradient: frozen on purpose, or lost "
            "in rounding; try a larger learning rate, or params in float32 with compute_dtype for the rest"
        )
    kinds: list[tuple[str, Callable[[float], bool], str]] = [
        ("large", lambda ratio: ratio > UPDATE_HIGH, "try a smaller learning rate, a warmup, or clipping"),
        ("small", lambda ratio: even_small_ones and 0 < ratio < UPDATE_LOW, "try a larger learning rate"),
    ]
    for word, is_so, cure in kinds:
        named = [f"{x.name} ({x.ratio:.0e})" for x in moving if len(x.shape) > 1 and is_so(x.ratio)]
        if named:
            found.append(f"updates are {word} beside their params in {_listed(named)}, usual is 1e-03; {cure}")
    return found


def _underflow(activations: Sequence[Activation], step: Step) -> list[str]:
    small = [each.name for each in activations if each.dtype == "float16" and each.gradient * step.loss_scale < FLOAT16]
    if not small:
        return []
    return [
        f"gradients in float16 lie below its smallest normal number, 6e-05, at {_listed(small)}, where digits are "
        'lost: try loss_scale="dynamic", or bfloat16'
    ]


def _listed(names: Sequence[str], shown: int = 3) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
