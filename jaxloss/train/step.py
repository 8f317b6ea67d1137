"""`make_train_step`: a loss and an optimizer become one compiled step."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast, get_args

import chex
import jax
import jax.numpy as jnp
import optax

from jaxloss.core.demand import demand
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import Mean
from jaxloss.core.types import Array
from jaxloss.train import nonfinite as finiteness
from jaxloss.train import views
from jaxloss.train.accumulate import Evaluated, Window, split, warn_of_a_second_forward
from jaxloss.train.examples import evaluate_examples, mean_of_examples
from jaxloss.train.extras import Optimizer, UpdateArgs, UpdateContext, extra_arguments
from jaxloss.train.manual_axes import refuse_means_of_parts
from jaxloss.train.objective import Coefficient, Objective, keep_types
from jaxloss.train.precision import ComputeDtype, DynamicLossScale, ScaleOption, masters, scale_option
from jaxloss.train.recompiles import load_what_tracing_depends_on, watched
from jaxloss.train.state import Metrics, State, first_state, is_traced

__all__ = ["TrainStep", "make_train_step"]

Nonfinite = Literal["skip", "propagate", "raise"]


def make_train_step(
    loss_fn: Callable[..., Any],
    optimizer: Optimizer,
    *,
    accumulate: int = 1,
    coefficients: Mapping[str, Coefficient] | None = None,
    nonfinite: Nonfinite = "skip",
    compute_dtype: ComputeDtype | None = None,
    loss_scale: float | Literal["dynamic"] | DynamicLossScale | None = None,
    per_example_gradients: bool = False,
    update_args: UpdateArgs | Literal["auto"] = "auto",
    allow_coupled: bool = False,
    donate: bool = True,
) -> TrainStep:
    """Join a loss and an optimizer into one training step.

        loss = sum_k c_k total_k / weight_k        over the terms k that `loss_fn` returns

    total and weight are sums over the whole batch, at every `accumulate`; the weights are held constant.

    Args:
      loss_fn: `loss_fn(params, batch)` returns a `Mean` (`reduction="partial"`), a dict of them by name, or either
        with an `Aux`. It may name the keyword-only arguments `key` (a fresh random key), `model_state`, `step` and
        `training` (True here, False in `evaluate`), and then gets them. A bare scalar is accepted with accumulate=1.
      optimizer: any optax optimizer.
      accumulate: how many microbatches the batch is cut into, one after the other in memory; the result is that of
        the whole batch. It must divide the rows.
      coefficients: by name of term, a number or a function of the step; 1 where a name is missing.
      nonfinite: what happens where the gradient is not finite or a term is nan. "skip": params, optimizer state and
        model state stay as they were, and the step is counted in `state.skipped`. "raise": the same, and the next
        call, `evaluate` included, raises and names the cause; the state at hand is still good. "propagate": nothing.
      compute_dtype: what the model computes in, such as jnp.bfloat16: params and the batch's floating arrays are cast
        to it for `loss_fn`, while the state's params stay (or become) float32 and gradients come back in it. Or a
        function of path and array, `lambda path, leaf: None if "norm" in path else jnp.bfloat16`, with paths such as
        "params/dense/kernel" and "batch/x"; None leaves an array as it is.
      loss_scale: the loss is multiplied by it before it is differentiated, and the gradient divided by it, so that
        small float16 gradients are not rounded to 0. A number, "dynamic", or a `DynamicLossScale`; bfloat16 needs none.
      per_example_gradients: give the optimizer the gradient of every row along a new first axis, as optax's
        differentially private ones want it: that of the row's own sum_k c_k total_k. `loss_fn` sees one row at a time.
      update_args: "auto" gives the optimizer what it takes of value, grad, value_fn, obj_fn, grad_fn. A function of
        the `UpdateContext` returns the keyword arguments itself.
      allow_coupled: accept a batch-coupled loss (contrastive, ...) with accumulate > 1, though its rows then see
        their own microbatch only.
      donate: let a call reuse the memory of the state that it is given, which is gone afterwards.
    Returns: a `TrainStep`.
    Raises: TypeError and ValueError for what cannot be meant, at once or when the step is first traced.
    """
    _check_options(optimizer, accumulate, coefficients, nonfinite, update_args)
    scale = scale_option(loss_scale)
    if isinstance(scale, DynamicLossScale) and nonfinite != "skip":
        raise ValueError(
            f"a dynamic loss scale looks for the largest one by overflowing now and then, and needs nonfinite='skip'; "
            f"got {nonfinite!r}"
        )
    return TrainStep(
        Objective(loss_fn, coefficients=coefficients, allow_coupled=allow_coupled, compute_dtype=compute_dtype),
        optimizer,
        accumulate=accumulate,
        nonfinite=nonfinite,
        keep_masters=compute_dtype is not None,
        loss_scale=scale,
        per_example_gradients=per_example_gradients,
        update_args=update_args,
        donate=donate,
    )


class TrainStep:
    """One step of training; made by `make_train_step`.

        state = train_step.init(params, key=key)
        state, metrics = train_step(state, batch)

    `pure` is the same step without compilation, to be used inside other transformations.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: Optimizer,
        *,
        accumulate: int,
        nonfinite: Nonfinite,
        keep_masters: bool,
        loss_scale: ScaleOption,
        per_example_gradients: bool,
        update_args: UpdateArgs | Literal["auto"],
        donate: bool,
    ) -> None:
        self._objective = objective
        self._optimizer = optimizer
        load_what_tracing_depends_on()
        self._accumulate = accumulate
        self._nonfinite: Nonfinite = nonfinite
        self._keep_masters = keep_masters
        self._loss_scale: ScaleOption = loss_scale
        self._per_example = per_example_gradients
        self._update_args: UpdateArgs | Literal["auto"] = update_args
        self._donate = donate
        # One compiled step for each layout of the state, because the output is pinned to it.
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._current: Callable[..., Any] | None = None
        # The state that was returned last: if it comes back, its layout is known, and no leaf must be looked at.
        self._last: weakref.ref[State] | None = None
        self._compiled_evaluate: dict[Any, Callable[..., Any]] = {}
        self._pending: finiteness.Report | None = None
        self._warned = False

    def init(self, params: Any, *, model_state: Any = None, key: Array | None = None, copy: bool = True) -> State:
        """The state before the first step.

        Args:
          params: a pytree of arrays. On a mesh, everything else is put onto that mesh, replicated. For optax.lookahead,
            optax.LookaheadParams.init_synced(params); `loss_fn` still gets one set.
          model_state: what `loss_fn` carries from step to step without gradients, such as running means.
          key: a random key, jax.random.key(0) or the older jax.random.PRNGKey(0); needed if `loss_fn` names `key`.
          copy: copy every array, so that yours outlive the first step. False hands them over and saves the memory.
            (What you put back into a model later, `nnx.update(model, state.params)`, is the state's own: copy it, or
            train no further.)
        Returns: a `State`.
        Raises: ValueError where `loss_fn` asks for a key or a model state and there is none; TypeError for a leaf
          that is no array, and for a param that has no gradient.
        """
        if key is None:
            if "key" in self._objective.asks:
                raise ValueError("`loss_fn` asks for `key`; give init(params, key=jax.random.key(0))")
        else:
            _check_key(key)
        if model_state is None and "model_state" in self._objective.needs:
            raise ValueError("`loss_fn` asks for `model_state`; give init(params, model_state=...)")
        return first_state(
            masters(params) if self._keep_masters else params,
            opt_init=self._optimizer.init,
            model_state=model_state,
            key=key,
            loss_scale=self._loss_scale.first() if isinstance(self._loss_scale, DynamicLossScale) else None,
            copy=copy,
        )

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]:
        """One step: the next state, and what was seen on the way. The given state is donated, unless donate=False."""
        self.raise_pending()
        run = self._current
        if run is None or self._last is None or self._last() is not state:
            if any(is_traced(leaf) for leaf in jax.tree.leaves(state)):
                return self.pure(state, batch)  # compiled by the transformation around it
            run = self._current = self._compiled_for(state, batch)
        state, metrics, self._pending = run(state, batch)
        self._last = weakref.ref(state)
        return state, metrics

    def evaluate(self, state: State, batch: Any) -> dict[str, Mean]:
        """The terms, and the metrics of `Aux`, of a whole batch, with training=False and without coefficients.

        Merge those of several batches name by name: `total = total.merge(more)`, then `total.value`. Evaluated are the
        `evaluation_params`.
        """
        self.raise_pending()
        # Not the whole state: the rest of the optimizer's has no part in it.
        average = views.averaging(state.opt_state)
        everywhere = _everywhere(state)
        if everywhere not in self._compiled_evaluate:
            self._compiled_evaluate[everywhere] = jax.jit(self._evaluate, out_shardings=everywhere)
        run = self._compiled_evaluate[everywhere]
        return run(state.params, average, state.model_state, state.key, state.step, batch)

    def evaluation_params(self, state: State) -> Any:
        """The params to evaluate, save and ship: those of the state, but for optimizers that keep two sets.

        Of a schedule-free optimizer its average x, wherever it stands in a chain; of optax.lookahead the slow params.
        """
        return views.evaluated(state.params, views.averaging(state.opt_state))

    def pure(self, state: State, batch: Any) -> tuple[State, Metrics]:
        """The step as a plain function of arrays: for jit, scan, vmap and eval_shape of your own.

        Nothing is donated or compiled, and the host is not asked: nonfinite="raise" skips here, see `metrics.ok`.
        """
        state, metrics, _ = self._step(state, batch)
        return state, metrics

    def raise_pending(self) -> None:
        """With nonfinite="raise": raise what the last step found, and wait for it. The next call does so by itself.

        A step late, so that the host need not wait for the device in each; call this after the last one.
        """
        report, self._pending = self._pending, None
        if report is not None and not report.ok:
            raise FloatingPointError(report.message())

    def _step(self, state: State, batch: Any) -> tuple[State, Metrics, finiteness.Report | None]:
        window = Window(
            self._objective,
            *split(batch, self._accumulate),
            parts=self._accumulate,
            step=state.step,
            key=state.key,
            model_state=state.model_state,
            scale=self._scale(state),
        )
        seen = self._seen(window, views.trained(state.params), state.opt_state, batch)
        refuse_means_of_parts(seen.terms, views.trained(state.params))
        whole = mean_of_examples(seen.gradient) if self._per_example else seen.gradient
        grad_norm = _norm(whole)
        finite, defined = finiteness.all_finite(seen.gradient, grad_norm), finiteness.all_defined(seen.terms)
        ok = finite & defined

        # The optimizer may try other params: on the same batch, with the same keys, over the same denominators.
        window = dataclasses.replace(window, weights={name: term.weight for name, term in seen.terms.items()})
        context = UpdateContext(
            params=state.params,
            value=seen.loss,
            grad=seen.gradient,
            value_fn=lambda params: window.value(views.trained(params)),
            grad_fn=lambda params: window.evaluate(views.trained(params)).gradient,
            step=state.step,
            batch=batch,
        )
        extras = extra_arguments(self._optimizer, state.opt_state, context, self._update_args)

        def update(old: tuple[Any, Any, Any, Array]) -> tuple[Any, Any, Any, Array]:
            updates, opt_state = self._optimizer.update(seen.gradient, old[1], old[0], **extras)
            opt_state = keep_types("the optimizer returned a state", "the one it was given", opt_state, old[1])
            updates = keep_types("the optimizer returned updates", "params", updates, old[0], dtypes=False)
            params = keep_types("updates make params", "before", optax.apply_updates(old[0], updates), old[0])
            return params, opt_state, seen.model_state, _norm(updates).astype(grad_norm.dtype)

        before = (state.params, state.opt_state, state.model_state, jnp.zeros_like(grad_norm))
        if self._nonfinite == "propagate":
            (params, opt_state, model_state, update_norm), skipped = update(before), state.skipped
        else:
            params, opt_state, model_state, update_norm = finiteness.update_if(ok, update, before)
            skipped = state.skipped + ~ok
        loss_scale = state.loss_scale
        if loss_scale is not None and isinstance(self._loss_scale, DynamicLossScale):
            # A term that is nan by itself is no fault of the scale.
            loss_scale = self._loss_scale.advance(loss_scale, ~finite & defined)
        after = State(params, opt_state, model_state, state.step + 1, state.key, skipped, loss_scale)
        metrics = Metrics(
            loss=seen.loss,
            terms=seen.terms,
            grad_norm=grad_norm,
            update_norm=update_norm,
            ok=ok,
            infinite=finiteness.count_infinite(seen.terms),
            aux=seen.metrics,
        )
        report = None
        if self._nonfinite == "raise":
            report = finiteness.report(ok, state.step, seen.gradient, seen.terms)
        return after, metrics, report

    def _scale(self, state: State) -> Array | float | None:
        dynamic = isinstance(self._loss_scale, DynamicLossScale)
        if dynamic != (state.loss_scale is not None):
            has, needs = ("no", "a") if dynamic else ("a", "no")
            raise ValueError(f"this state has {has} dynamic loss scale and this step needs {needs}: use its own `init`")
        return state.loss_scale.value if state.loss_scale is not None else cast("float | None", self._loss_scale)

    def _seen(self, window: Window, params: Any, opt_state: Any, batch: Any) -> Evaluated:
        if self._per_example:
            return evaluate_examples(
                self._objective,
                params,
                batch,
                parts=self._accumulate,
                step=window.step,
                key=window.key,
                model_state=window.model_state,
                scale=window.scale,
            )
        if views.wants_examples(opt_state):
            raise TypeError(
                "this optimizer needs the gradient of every example: make_train_step(..., per_example_gradients=True)"
            )
        if self._accumulate > 1:
            weights, looked_at_params = window.denominators(params)
            if looked_at_params and not self._warned:
                self._warned = True
                warn_of_a_second_forward()
            window = dataclasses.replace(window, weights=weights)
        return window.evaluate(params)

    def _evaluate(
        self, params: Any, average: Any, model_state: Any, key: Array | None, step: Array, batch: Any
    ) -> dict[str, Any]:
        params = views.evaluated(params, average)
        key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, step), 0)
        out = self._objective(params, batch, model_state=model_state, key=key, step=step, training=False)
        return {**out.terms, **out.metrics}

    def _compiled_for(self, state: State, batch: Any) -> Callable[..., Any]:
        if state.step.is_deleted():
            raise RuntimeError(
                "this state was donated to an earlier call, and its arrays are deleted: go on with the state that the "
                "call returned, or use make_train_step(..., donate=False)"
            )
        leaves, treedef = jax.tree.flatten(state)
        shardings = [leaf.sharding for leaf in leaves]
        devices = shardings[0].device_set
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if isinstance(leaf, jax.Array) and not is_traced(leaf) and leaf.committed:
                elsewhere = leaf.sharding.device_set
                if elsewhere != devices:
                    cure = (
                        "put the params onto the batch's mesh before init, "
                        "jax.device_put(params, jax.NamedSharding(mesh, jax.P()))"
                        if len(devices) == 1
                        else "put the batch onto the state's mesh, "
                        "jax.device_put(batch, jax.NamedSharding(mesh, jax.P(axis)))"
                    )
                    raise ValueError(
                        f"`batch{jax.tree_util.keystr(path)}` lies on {_count(elsewhere)} and the state on "
                        f"{_count(devices)}: {cure}"
                    )
        # On one device there is nothing to pin. On a mesh XLA may choose another layout for an output, and each new
        # one would compile again.
        layout = None if len(devices) == 1 else (treedef, *map(_layout, shardings))
        if layout not in self._compiled:
            everywhere = _everywhere(state)
            pinned = None if layout is None else (jax.tree.unflatten(treedef, shardings), everywhere, everywhere)
            donated = (0,) if self._donate else ()
            self._compiled[layout] = jax.jit(watched(self._step), donate_argnums=donated, out_shardings=pinned)
        return self._compiled[layout]


def _check_options(optimizer: Any, accumulate: Any, coefficients: Any, nonfinite: Any, update_args: Any) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"`optimizer` must be an optax optimizer such as optax.adam(1e-3); got {type(optimizer).__name__}"
        )
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"`accumulate` must be a whole number of microbatches, at least 1; got {accumulate!r}")
    if coefficients is not None and not isinstance(coefficients, Mapping):
        raise TypeError(f"`coefficients` must be a dict by name of term; got {type(coefficients).__name__}")
    if nonfinite not in get_args(Nonfinite):
        raise ValueError(f"`nonfinite` must be 'skip', 'propagate' or 'raise'; got {nonfinite!r}")
    if update_args != "auto" and not callable(update_args):
        raise ValueError(f"`update_args` must be 'auto' or a function of the UpdateContext; got {update_args!r}")


def _check_key(key: Any) -> None:
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = not typed and getattr(key, "dtype", None) == jnp.uint32
    if not (typed or raw):
        raise TypeError(f"`key` must be a random key such as jax.random.key(0); got {type(key).__name__}")
    message = f"`key` must be one key; got an array of them, {list(key.shape)}"
    demand(chex.assert_rank, key, 0 if typed else 1, error=ValueError, message=message)


def _norm(tree: Any) -> Array:
    """The Euclidean length of all entries together, in float32 or wider."""
    squares = [jnp.sum(jnp.square(jnp.abs(widen(leaf)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def _everywhere(state: State) -> Any:
    """Where numbers that are reported go: whole onto every device of a mesh, as the step counter.

    A process can read nothing of which a part lies on other processes' devices, such as a metric by class where the
    classes are sharded.
    """
    sharding = None if is_traced(state.step) else state.step.sharding
    return sharding if isinstance(sharding, jax.NamedSharding) else None


def _layout(sharding: Any) -> Any:
    # P("data") and P("data", None) say the same, and are not equal.
    if not isinstance(sharding, jax.NamedSharding):
        return sharding
    axes = tuple(sharding.spec)
    while axes and axes[-1] is None:
        axes = axes[:-1]
    return sharding.mesh, axes, sharding.memory_kind


def _count(devices: set[Any]) -> str:
    return "one device" if len(devices) == 1 else f"{len(devices)} devices"
