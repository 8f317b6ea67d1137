"""`diagnose`: what one batch does to every layer, and what to try where something is wrong."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from jaxloss.core.numerics import widen
from jaxloss.core.types import Array
from jaxloss.train import views
from jaxloss.train.accumulate import Window, split, unscaled
from jaxloss.train.activations import CUTS_TO_ZERO, SATURATES, Position, Survey, measure, rms, tap
from jaxloss.train.canvas import COLOURS, axes, save
from jaxloss.train.findings import Step, findings
from jaxloss.train.interpreter import Path, walk
from jaxloss.train.nonfinite import nan_terms
from jaxloss.train.origin import first_nonfinite
from jaxloss.train.rows import Activation, Layer, activation_table, layer_table
from jaxloss.train.state import State, check_readable
from jaxloss.train.step import TrainStep

__all__ = ["Activation", "Diagnosis", "Layer", "diagnose"]

# A place behind everything that the program does.
_LAST = (2**62,)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """One look at one batch; `print` it, or `plot` it.

    `layers` and `activations` are in the order in which the program first comes to them, params that it does not use at
    the end; `findings` are sentences, none if nothing is conspicuous.
    """

    step: int
    loss: float
    layers: tuple[Layer, ...]
    activations: tuple[Activation, ...]
    findings: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"step {self.step}, loss {self.loss:.4g}; scales are roots of mean squares", layer_table(self.layers)]
        if self.activations:
            parts.append(activation_table(self.activations))
        lines = self.findings or ("nothing conspicuous",)
        parts.append("\n".join(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ") for line in lines))
        return "\n\n".join(parts)

    def plot(self, path: str | os.PathLike[str] | None = None, ax: Any = None) -> Any:
        """Draw the scales of params, updates, activations and gradients over depth, from the input to the output.

        Of the params only arrays of two axes or more, if there are any: biases have scales of their own.

        Args:
          path: where the picture is written, if anywhere; the ending says how (.png, .pdf, .svg).
          ax: matplotlib axes to draw on; None makes a figure.
        Returns: the matplotlib figure.
        Raises: ImportError where matplotlib is missing.
        """
        used = [layer for layer in self.layers if layer.used]
        layers = [layer for layer in used if len(layer.shape) > 1] or used
        rows = sorted([*layers, *self.activations], key=lambda row: row.order)
        places = {row.order: place for place, row in enumerate(rows)}
        ax = axes(ax, width=min(14.0, max(7.0, 2.5 + 0.28 * len(rows))), height=5)
        series = [
            ("activation", self.activations, "rms", "blue", "o", "-"),
            ("gradient of activation", self.activations, "gradient", "vermilion", "o", "-"),
            ("param", layers, "param", "grey", "s", ":"),
            ("gradient of param", layers, "gradient", "orange", "s", ":"),
            ("update", layers, "update", "green", "s", ":"),
        ]
        for label, own, field, colour, marker, line in series:
            points = [(places[row.order], getattr(row, field)) for row in own]
            points = [(place, scale) for place, scale in points if math.isfinite(scale) and scale > 0]
            if points:
                ax.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[colour],
                    marker=marker,
                    markersize=4,
                    linewidth=1.6,
                    linestyle=line,
                    label=label,
                )
        ax.set(yscale="log", xlabel="from the input to the output", ylabel="root mean square")
        # More names than these would run into each other.
        every = -(-len(rows) // 50)
        ax.set_xticks(range(0, len(rows), every), [row.name for row in rows[::every]], rotation=90, fontsize=7)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        if ax.lines:
            ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        return save(ax, path)


def diagnose(train_step: TrainStep, state: State, batch: Any, *, unit_axis: int = -1) -> Diagnosis:
    """One look at what a step would do: the scales of params, gradients, updates and activations, layer by layer.

        print(diagnose(train_step, state, batch))

    Use when training does not start, stops, or breaks. Nothing is changed or donated. It evaluates the model twice, on
    the whole batch at once whatever `accumulate` is, and compiles that anew in every call.

    Activations are read off the program that `loss_fn` traces to, so any framework will do. Seen are the functions of
    jax.nn, tanh, sigmoid, softmax and maximum(x, 0), also inside of jit, remat and scan (one row an iteration); not
    those inside of cond, while, shard_map and functions with derivatives of their own; nor what a loss of jaxloss or
    optax computes.

    Args:
      train_step: made by `make_train_step`.
      state, batch: as for a step.
      unit_axis: the axis of activations along which the units lie, for counting dead ones: 1 for channels first.
    Returns: a `Diagnosis`.
    Raises: TypeError for what cannot be meant; RuntimeError for a state that was donated.
    """
    _check(train_step, state, unit_axis)
    loss, params, others = _loss_of(train_step), views.trained(state.params), _other_arguments(train_step, state, batch)
    closed = jax.make_jaxpr(loss)(params, *others)
    survey = Survey(closed.jaxpr, len(jax.tree.leaves(params)))
    # What is closed over goes in as an argument: as a constant it would be compiled into the program.
    seen = jax.jit(_program(train_step, closed.jaxpr, survey, unit_axis))(state, batch, list(closed.consts))
    gradient, update = seen.pop("trees")
    seen["layers"] = _layer_figures(params, gradient, update, survey)
    seen = jax.device_get(seen)
    used = partial_eval.dce_jaxpr_consts(closed.jaxpr, [True, False])[2]
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    layers, activations = _rows(seen, survey, names, jax.tree.leaves(params), used, unit_axis)
    in_params = {_joined("params", name): own[5].sum() for name, own in zip(names, seen["layers"], strict=True)}
    broken = {name: int(count) for name, count in (in_params | seen["nonfinite"]).items() if count}
    forward = backward = ()
    if not broken and (not math.isfinite(seen["loss"]) or any(layer.nonfinite for layer in layers)):
        forward = first_nonfinite(loss, params, *others)
        if not forward:
            backward = first_nonfinite(jax.grad(loss, has_aux=True), params, *others)
    step = Step(
        skipped=not seen["ok"] and train_step._nonfinite != "propagate",
        nan_terms=tuple(name for name, is_nan in seen["nan_terms"].items() if is_nan),
        nonfinite=broken,
        forward=forward,
        backward=backward,
        loss_scale=float(seen["scale"]),
    )
    return Diagnosis(
        step=int(seen["step"]),
        loss=float(seen["loss"]),
        layers=layers,
        activations=activations,
        findings=findings(layers, activations, step),
    )


def _loss_of(train_step: TrainStep) -> Callable[..., tuple[Array, Array]]:
    """The loss of the whole batch, as it is differentiated and as it is; a function of the params and of the others."""

    def loss(params: Any, batch: Any, model_state: Any, key: Any, step: Array, scale: Any) -> tuple[Array, Array]:
        window = Window(
            train_step._objective,
            *split(batch, 1),
            parts=1,
            step=step,
            key=key,
            model_state=model_state,
            scale=scale,
        )
        scaled, (plain, _) = window._scaled_part(params, model_state, window.rows, 0)
        return scaled, plain

    return loss


def _program(
    train_step: TrainStep, jaxpr: Any, survey: Survey, unit_axis: int
) -> Callable[[State, Any, list[Any]], dict[str, Any]]:
    """Everything that is measured in one evaluation of the loss, `jaxpr`, its gradient, and one step."""

    def visit(path: Path, equation: Any, inputs: list[Any], outputs: list[Any], sink: Any) -> tuple[list[Any], Any]:
        del equation, inputs
        if path not in survey.sites:
            return outputs, None
        return [tap(outputs[0], sink)], measure(outputs[0], survey.sites[path], unit_axis)

    def look(state: State, batch: Any, consts: list[Any]) -> dict[str, Any]:
        params, scale = views.trained(state.params), train_step._scale(state)
        others = jax.tree.leaves(_other_arguments(train_step, state, batch))

        def tapped(params: Any, sinks: Any) -> tuple[Any, Any]:
            arguments = [*jax.tree.leaves(params), *others]
            (scaled, plain), flows = walk(jaxpr, consts, arguments, visit, enters=survey.enters, fed=sinks)
            return scaled, (plain, flows)

        sinks = {path: jnp.zeros(site.lengths, jnp.float32) for path, site in survey.sites.items()}
        (gradient, slopes), (plain, flows) = jax.grad(tapped, argnums=(0, 1), has_aux=True)(params, sinks)
        after, metrics = train_step.pure(state, batch)
        return {
            "loss": plain,
            "step": state.step,
            "scale": 1.0 if scale is None else scale,
            "ok": metrics.ok,
            "nan_terms": nan_terms(metrics.terms),
            "nonfinite": _nonfinite_entries({"batch": batch, "model_state": state.model_state}),
            "trees": (unscaled(gradient, scale), _difference(views.trained(after.params), params)),
            "flows": flows,
            "slopes": unscaled(slopes, scale),
        }

    return look


def _difference(new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: widen(a) - widen(b), new, old)


def _other_arguments(train_step: TrainStep, state: State, batch: Any) -> tuple[Any, ...]:
    """What the loss depends on beside the params."""
    return batch, state.model_state, state.key, state.step, train_step._scale(state)


def _layer_figures(params: Any, gradient: Any, update: Any, survey: Survey) -> list[tuple[Array, ...]]:
    """rms of each, the gradient's share of zeros, and the nan and inf in it and in the param; of a stack, of each."""
    triples = zip(*(jax.tree.leaves(tree) for tree in (params, gradient, update)), strict=True)
    return [(_figures_of_each if i in survey.stacked else _figures)(*triple) for i, triple in enumerate(triples)]


# No part of the one program, so that layers of one shape share what is compiled.
@jax.jit
def _figures(param: Array, gradient: Array, update: Array) -> tuple[Array, ...]:
    zeros = (gradient == 0).mean()
    return rms(param), rms(gradient), rms(update), zeros, _nonfinite(gradient), _nonfinite(param)


_figures_of_each = jax.jit(jax.vmap(_figures))


def _nonfinite(leaf: Array) -> Array:
    return jnp.count_nonzero(~jnp.isfinite(leaf))


def _nonfinite_entries(trees: dict[str, Any]) -> dict[str, Array]:
    return {
        _joined(root, _name(path)): _nonfinite(leaf)
        for root, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }


def _rows(
    seen: dict[str, Any], survey: Survey, names: list[str], params: list[Any], used: list[bool], unit_axis: int
) -> tuple[tuple[Layer, ...], tuple[Activation, ...]]:
    """Both tables, in the program's order."""
    rows: list[tuple[Position, Layer | Activation]] = []
    for i, param in enumerate(params):
        for index, position in survey.uses(i):
            figures = [float(figure[index]) for figure in seen["layers"][i]]
            row = Layer(
                name=(names[i] or "params") + _subscript(index),
                shape=param.shape[len(index) :],
                dtype=str(param.dtype),
                param=figures[0],
                gradient=figures[1],
                update=figures[2],
                zeros=figures[3],
                nonfinite=int(figures[4]),
                used=used[i],
                order=0,
            )
            rows.append((position if used[i] else (*_LAST, i), row))
    repeated: collections.Counter[tuple[str, str]] = collections.Counter()
    for path, site in survey.sites.items():
        layer = "batch" if site.param is None else _layer_of(names[site.param]) or "params"
        repeated[layer, site.kind] += 1
        count = repeated[layer, site.kind]
        units = site.shape[unit_axis % len(site.shape)] if site.shape else 1
        for index, position in site.iterations():
            flow = jax.tree.map(lambda leaf, index=index: leaf[index].item(), seen["flows"][path])
            row = Activation(
                name=f"{layer}{_subscript(index)}/{site.kind}" + (f"#{count}" if count > 1 else ""),
                kind=site.kind,
                shape=site.shape,
                dtype=str(site.dtype),
                rms=flow.rms,
                mean=flow.mean,
                gradient=float(seen["slopes"][path][index]),
                zeros=flow.zeros,
                dead=int(flow.dead) if site.kind in CUTS_TO_ZERO else None,
                units=units,
                saturated=flow.saturated if site.kind in SATURATES else None,
                nonfinite=int(flow.nonfinite),
                order=0,
            )
            rows.append((position, row))
    rows.sort(key=lambda pair: pair[0])
    ordered = [dataclasses.replace(row, order=order) for order, (_, row) in enumerate(rows)]
    return (
        tuple(row for row in ordered if isinstance(row, Layer)),
        tuple(row for row in ordered if isinstance(row, Activation)),
    )


def _name(path: tuple[Any, ...]) -> str:
    """dense/kernel for ['dense']['kernel']; flax wraps its arrays into objects with a `value`, which names nothing."""
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _joined(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def _layer_of(name: str) -> str:
    return name.rpartition("/")[0] or name


def _subscript(index: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, index))}]" if index else ""


def _check(train_step: Any, state: Any, unit_axis: Any) -> None:
    if not isinstance(train_step, TrainStep):
        raise TypeError(f"`train_step` must be made by make_train_step; got {type(train_step).__name__}")
    check_readable(state, "`diagnose` reads figures")
    if isinstance(unit_axis, bool) or not isinstance(unit_axis, int):
        raise TypeError(f"`unit_axis` must be an integer; got {unit_axis!r}")
