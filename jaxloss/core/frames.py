"""Frames: check the inputs, take away what a mask excludes, apply a formula, reduce.

A loss is a formula in a frame. The formula is the only part in which two losses of one frame differ, so it is the only
part that a loss spells out. A frame takes every array by its public name, so that an error can say it, and calls

    formula(*arrays, *scalars)                     and, by keyword, `axis=` and `valid=` where the frame has them

with arrays that are checked, of one shape, and harmless wherever `where` excludes them. The formula returns the
unreduced value, or `(value, present)` where an entry may be absent (a list without a pair) or counts for other than 1
in the mean's denominator (a sequence counts its tokens): see `jaxloss.reduce`.

    pointwise     one value an entry                          [...], [...] -> [...]
    eventwise     one value a vector; `axis` is consumed      [..., D], [..., D] -> [...]
    labelled      class scores and an integer label           [..., C], int [...] -> [...]
    listwise      one value a list of items, some not valid   [..., L], [..., L] -> [...]
    pairwise      one value a list, from its ordered pairs    [..., L], [..., L] -> [...]
    batchwise     one value a row, and rows see each other    [N, ...], [N, ...] -> [N]
    statistic     one number a group of pooled entries        [...], [...] -> [...] without `axis`
    pooled        one number a group of pooled vectors        [..., D] -> [...] without `axis`
    sequencewise  one value a padded sequence                 [..., T, ...], lengths [...] -> [...]
    summed        one value a row, asked for as a total       [..., D], [...] -> [...]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import chex
import jax.numpy as jnp
from jax import lax

from jaxloss.core import inputs, sharding
from jaxloss.core.demand import demand
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import admit_mask, admit_weights, reduce, reduce_total
from jaxloss.core.types import INDICES, Array, ArrayLike, AxisName, Mask, Reduction, Weights

__all__ = [
    "Everyone",
    "batchwise",
    "eventwise",
    "labelled",
    "listwise",
    "pairwise",
    "pointwise",
    "pooled",
    "sequencewise",
    "statistic",
    "summed",
]

Formula: TypeAlias = Callable[..., Any]  # -> Array, or (Array, present)
Scalars: TypeAlias = Mapping[str, ArrayLike | None] | None


def pointwise(
    formula: Formula,
    *,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per entry: arrays of one shape [...] -> [...]. The formula sees float32 (or float64), never less."""
    named = inputs.admitted(arrays)
    shape = inputs.assert_one_shape(named)
    dtype = inputs.wide_dtype(named.values())
    mask = admit_mask("where", where, shape)
    ready = [inputs.neutralised(x, mask).astype(dtype) for x in named.values()]
    value = formula(*ready, *inputs.as_scalars(scalars, dtype))
    return _reduced(value, shape, mask, weights, reduction)


def eventwise(
    formula: Formula,
    *,
    axis: int | tuple[int, ...] = -1,
    valid: ArrayLike | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per vector along `axis`: arrays of one shape [..., D] -> [...].

    The formula gets the inputs' own dtype and `axis=` (non-negative), and widens inside its reductions. With `valid`
    (bool, of the arrays' rank) it also gets `valid=`, and the arrays are harmless where that is False.
    """
    named = inputs.admitted(arrays)
    full = inputs.assert_one_shape(named)
    axes = inputs.canonical_axes(axis, full, next(iter(named)))
    shape = inputs.without_axes(full, axes)
    mask = admit_mask("where", where, shape)
    kept = admit_mask("valid", valid, full)
    ready, kept = _visible(named, mask, kept, axes)
    options: dict[str, Any] = {"axis": axes[0] if isinstance(axis, int) else axes}
    if kept is not None:
        options["valid"] = kept
    value = formula(*ready, *inputs.as_scalars(scalars, inputs.wide_dtype(named.values())), **options)
    return _reduced(value, shape, mask, weights, reduction)


def labelled(
    formula: Formula,
    *,
    labels: ArrayLike,
    axis: int = -1,
    valid: ArrayLike | None = None,
    per_class: Mapping[str, ArrayLike | None] | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per example from class scores and its label: [..., C], integer [...] -> [...].

    The formula gets the scores, the labels (in range, whatever came in), `per_class` vectors [C] and scalars, then
    `axis=`; with `valid` (bool, of the scores' rank: which classes exist) also `valid=`. A label outside [0, C) never
    wraps: it multiplies its row by nan, so that neither the value nor the gradient can go unnoticed. PyTorch's -100 is
    spelled `where=labels != -100`.
    """
    named = inputs.admitted(arrays)
    index = inputs.admitted({"labels": labels})["labels"]
    full = inputs.assert_one_shape(named)
    scores = next(iter(named))
    (class_axis,) = inputs.canonical_axes(axis, full, scores)
    shape = inputs.without_axes(full, (class_axis,))
    classes = full[class_axis]
    if classes == 0:
        raise ValueError(f"`{scores}` {list(full)} has no class along axis {axis}")
    message = (
        f"`labels` {list(index.shape)} must be `{scores}` {list(full)} without its class axis {axis}: {list(shape)}"
    )
    demand(chex.assert_shape, index, shape, error=ValueError, message=message)
    mask = admit_mask("where", where, shape)
    kept = admit_mask("valid", valid, full)
    ready, kept = _visible(named, mask, kept, (class_axis,))
    index = inputs.neutralised(index, mask)
    in_range = (index >= 0) & (index < classes)
    dtype = inputs.wide_dtype(named.values())
    options: dict[str, Any] = {"axis": class_axis}
    if kept is not None:
        options["valid"] = kept
    value = formula(
        *ready,
        jnp.clip(index, 0, classes - 1),
        *inputs.as_class_vectors(per_class, classes, dtype),
        *inputs.as_scalars(scalars, dtype),
        **options,
    )
    return _reduced(_times(value, jnp.where(in_range, 1, jnp.nan)), shape, mask, weights, reduction)


def listwise(
    formula: Formula,
    *,
    axis: int = -1,
    valid: ArrayLike | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per list along `axis`: arrays of one shape [..., L] -> [...].

    `valid` says which items of a list exist; the formula always gets it, as `valid=`, beside `axis=`. A list of which
    nothing exists is absent.
    """
    named = inputs.admitted(arrays)
    full = inputs.assert_one_shape(named)
    (item_axis,) = inputs.canonical_axes(axis, full, next(iter(named)))
    shape = inputs.without_axes(full, (item_axis,))
    mask = admit_mask("where", where, shape)
    kept = admit_mask("valid", valid if valid is not None else True, full)
    assert kept is not None
    filled = jnp.any(kept, axis=item_axis)
    mask = filled if mask is None else mask & filled
    ready, kept = _visible(named, mask, kept, (item_axis,))
    scalar = inputs.as_scalars(scalars, inputs.wide_dtype(named.values()))
    value = formula(*ready, *scalar, axis=item_axis, valid=kept)
    return _reduced(value, shape, mask, weights, reduction)


def pairwise(
    formula: Formula,
    *,
    scores: ArrayLike,
    relevance: ArrayLike,
    axis: int = -1,
    valid: ArrayLike | None = None,
    pairs: Literal["mean", "sum"] = "mean",
    beyond: tuple[int, Formula] | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """One value per list, from its ordered pairs: [..., L], [..., L] -> [...].

    A pair is two valid items of different relevance; `formula(s_i - s_j, *scalars)` is its value, item i being the
    more relevant one. `pairs` says whether a list's value is the mean or the sum over its pairs; a list without a
    pair is absent. Memory is quadratic in L, unless `beyond` holds a length and an engine for longer lists:
    `engine(scores, relevance, valid, *scalars)` returns the sum of each list's pair values and the number of its pairs.
    """

    def value(scores: Array, relevance: Array, *scalar: Array, axis: int, valid: Array) -> tuple[Array, Array]:
        s, r, v = (jnp.moveaxis(x, axis, -1) for x in (scores, relevance, valid))
        s = widen(s)
        if beyond is not None and s.shape[-1] > beyond[0]:
            total, count = beyond[1](s, r, v, *scalar)
        else:
            is_pair = (r[..., :, None] > r[..., None, :]) & v[..., :, None] & v[..., None, :]
            # A pair that is none gets the difference 0, so that two infinite scores never meet.
            left, right = (jnp.where(is_pair, x, 0) for x in (s[..., :, None], s[..., None, :]))
            each = jnp.where(is_pair, formula(left - right, *scalar), 0)
            total, count = jnp.sum(each, axis=(-2, -1)), jnp.sum(is_pair, axis=(-2, -1), dtype=s.dtype)
        return total / jnp.maximum(count, 1) if pairs == "mean" else total, count > 0

    return listwise(
        value,
        scores=scores,
        relevance=relevance,
        axis=axis,
        valid=valid,
        scalars=scalars,
        where=where,
        weights=weights,
        reduction=reduction,
    )


@dataclasses.dataclass(frozen=True)
class Everyone:
    """What a row sees of its batch: every row's arrays, which rows exist, and where the caller's own rows stand."""

    arrays: tuple[Array, ...]  # [N, ...] each, in the order of the frame's inputs
    present: Array  # [N] bool: an absent row is no negative either
    own: Array  # [n] int: where the caller's row i stands in the batch of all devices
    index: Array  # [N] int: where these stand there
    here: Array  # [n] bool: which of the caller's rows exist


def batchwise(
    formula: Formula,
    *,
    axis_name: AxisName = None,
    ring: bool = False,
    alike: tuple[str, ...] = (),
    shared: Mapping[str, ArrayLike] | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per row, each row seeing all others: arrays [N, ...] of one N -> [N].

    `alike` names the inputs that must agree in their whole shape. The formula gets the local rows, the `shared` arrays
    (what belongs to no row: class proxies, a queue of negatives), the scalars, and `everyone=`, an `Everyone`. Inside
    `shard_map` the rows of the other devices are gathered along `axis_name`; without it the frame refuses, and
    `axis_name=()` means local rows only, on purpose. With `ring` nothing is gathered: `everyone` holds the local rows,
    and the formula itself sends them round. `where` removes a row altogether; a weight scales the row's own term and
    the denominator only.
    """
    sharding.refuse_hidden_rows(axis_name)
    named = inputs.admitted(arrays)
    (first, reference), *rest = named.items()
    for name, x in named.items():
        if x.ndim == 0:
            raise ValueError(f"`{name}` [] must have a first axis of rows")
    for name, x in rest:
        message = f"`{first}` {list(reference.shape)} and `{name}` {list(x.shape)} must have the same number of rows"
        demand(chex.assert_equal_shape_prefix, [reference, x], 1, error=ValueError, message=message)
    if alike:
        inputs.assert_one_shape({name: named[name] for name in alike})
    rows = reference.shape[0]
    mask = admit_mask("where", where, (rows,))
    present = jnp.ones((rows,), bool) if mask is None else mask
    ready = [inputs.neutralised(x, mask, tuple(range(1, x.ndim))) for x in named.values()]
    own = sharding.own_rows(rows, axis_name)
    if ring and axis_name:
        everyone = Everyone(arrays=tuple(ready), present=present, own=own, index=own, here=present)
    else:
        all_present = sharding.all_rows(present, axis_name)
        everyone = Everyone(
            arrays=tuple(sharding.all_rows(x, axis_name) for x in ready),
            present=all_present,
            own=own,
            index=jnp.arange(all_present.shape[0]),
            here=present,
        )
    common = inputs.admitted(shared or {})
    scalar = inputs.as_scalars(scalars, inputs.wide_dtype([*named.values(), *common.values()]))
    value = formula(*ready, *common.values(), *scalar, everyone=everyone)
    return _reduced(value, (rows,), mask, weights, reduction, coupled=True)


def statistic(
    formula: Formula,
    *,
    axis: int | tuple[int, ...] | None = None,
    instead: str,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One number per group of pooled entries: arrays of one shape [...] -> [...] without `axis` (None: all axes).

    `where` and `weights` have the shape of the entries. The formula gets float32 arrays (or float64), the scalars,
    `weight=` (each entry's weight, 0 where masked) and `axis=`. A group without weight is absent; the others count
    alike. A statistic does not come in halves, so "partial" is refused; `instead` says which pair to use.
    """
    _refuse_halves(reduction, instead)
    named = inputs.admitted(arrays)
    full = inputs.assert_one_shape(named)
    every = tuple(range(len(full)))
    axes = every if axis is None else inputs.canonical_axes(axis, full, next(iter(named)))
    dtype = inputs.wide_dtype(named.values())
    mask, weight = _share_of_each(where, weights, full, dtype)
    ready = [inputs.neutralised(x, mask).astype(dtype) for x in named.values()]
    value = formula(*ready, *inputs.as_scalars(scalars, dtype), weight=weight, axis=axes)
    shape = inputs.without_axes(full, axes)
    return _reduced((value, jnp.sum(weight, axis=axes) > 0), shape, None, None, reduction)


def pooled(
    formula: Formula,
    *,
    axis: int | tuple[int, ...] | None = None,
    axis_name: AxisName = None,
    instead: str,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One number per group of pooled vectors: arrays of one shape [..., D] -> [...] without `axis` (None: all but D).

    `where` and `weights` have the shape [...] of the vectors. The formula gets the arrays in their own dtype, the
    scalars, and `average=`, a function from something of each vector, [..., D], to its weighted mean over the group,
    [..., D] without `axis`: over the devices of `axis_name` too, inside `shard_map`. Without `axis_name` the frame
    refuses to run there; `axis_name=()` means local vectors only, on purpose. A group without weight is absent. A
    function of means does not come in halves, so "partial" is refused; `instead` says what to do.
    """
    _refuse_halves(reduction, instead)
    sharding.refuse_hidden_rows(axis_name)
    named = inputs.admitted(arrays)
    full = inputs.assert_one_shape(named)
    first = next(iter(named))
    if len(full) == 0:
        raise ValueError(f"`{first}` [] must have a last axis, of vectors")
    every = tuple(range(len(full) - 1))
    axes = every if axis is None else inputs.canonical_axes(axis, full, first)
    if len(full) - 1 in axes:
        raise ValueError(f"`axis` {axis} of `{first}` {list(full)} must leave the last axis, that of the vectors")
    shape, dtype = full[:-1], inputs.wide_dtype(named.values())
    mask, weight = _share_of_each(where, weights, shape, dtype)

    def over_group(x: Array) -> Array:
        total = jnp.sum(x, axis=axes)
        return lax.psum(total, axis_name) if axis_name else total

    count = over_group(weight)

    def average(x: Array) -> Array:
        total = over_group(widen(x) * jnp.expand_dims(weight, -1))
        return total / jnp.expand_dims(jnp.where(count > 0, count, 1), -1)

    ready = [inputs.neutralised(x, mask, (len(shape),)) for x in named.values()]
    value = formula(*ready, *inputs.as_scalars(scalars, dtype), average=average)
    return _reduced((value, count > 0), inputs.without_axes(shape, axes), None, None, reduction)


def sequencewise(
    formula: Formula,
    *,
    steps: Mapping[str, int],
    lengths: Mapping[str, tuple[ArrayLike | None, tuple[str, ...]]],
    classes: str | None = None,
    bare: tuple[str, ...] = (),
    shared: Mapping[str, ArrayLike | None] | None = None,
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per padded sequence: arrays [..., T, ...] -> [...].

    Args:
      steps: for each array, how many of its last axes belong to one sequence: {"logits": 2, "labels": 1} for
        [..., T, V] and [..., T]. What stands before them is the batch, the same for all; the first of them is time.
      lengths: for each argument that holds lengths, its value (integer [...], or None: all steps exist) and the
        arrays that it governs: {"lengths": (lengths, ("logits", "labels"))}. What lies behind may be nan or -1.
      classes: the array whose last axis counts the classes; labels that exist must be below, or they multiply the
        sequence by nan.
      bare: the arrays that the formula gets as they came, because it looks at them only where they are alive: putting
        something harmless elsewhere may cost a second array of that size.
      shared: what belongs to no sequence (transitions of a model), as it came; what is None stays None.

    The formula gets the arrays, the shared, the scalars and `alive=`, a tuple with one bool [..., T] for each entry of
    `lengths`; beside a bare array nothing is alive in a sequence that `where` excludes.
    """
    named = inputs.admitted(arrays)
    shape = _batch_of(named, steps, "one batch")
    mask = admit_mask("where", where, shape)
    alive: list[Array] = []
    bad = jnp.zeros(shape, bool)
    for name, x in named.items():
        if name not in bare:
            named[name] = inputs.neutralised(x, mask, tuple(range(len(shape), x.ndim)))
    for name, (value, governed) in lengths.items():
        times = {array: named[array].shape[len(shape)] for array in governed}
        total = times[governed[0]]
        for array, found in times.items():
            message = (
                f"`{governed[0]}` {list(named[governed[0]].shape)} and `{array}` {list(named[array].shape)} must have "
                f"the same number of steps: {total} is not {found}"
            )
            demand(chex.assert_equal, found, total, error=ValueError, message=message)
        exists, impossible = _alive(name, value, shape, total, mask)
        bad = bad | impossible
        alive.append(exists if mask is None or not bare else exists & jnp.expand_dims(mask, -1))
        for array in governed:
            if array in bare:
                continue
            x = named[array]
            named[array] = inputs.neutralised(x, exists, tuple(range(len(shape) + 1, x.ndim)))
    for name, x in named.items():
        if name in INDICES and classes is not None:
            count = named[classes].shape[-1]
            wrong = (x < 0) | (x >= count)
            bad = bad | jnp.any(wrong, axis=tuple(range(len(shape), x.ndim)))
            named[name] = jnp.clip(x, 0, count - 1)
    common = inputs.admitted({name: x for name, x in (shared or {}).items() if x is not None})
    dtype = inputs.wide_dtype([*named.values(), *common.values()])
    others = (common.get(name) for name in shared or {})
    value = formula(*named.values(), *others, *inputs.as_scalars(scalars, dtype), alive=tuple(alive))
    return _reduced(_times(value, jnp.where(bad, jnp.nan, 1)), shape, mask, weights, reduction)


def summed(
    formula: Formula,
    *,
    trailing: Mapping[str, int],
    classes: int,
    shared: Mapping[str, ArrayLike | None],
    scalars: Scalars = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
    **arrays: ArrayLike,
) -> Array:
    """One value per row, from a formula that adds them up itself, because it knows the total's gradient cheaply.

    Args:
      trailing: for each array, how many of its last axes belong to one row: {"hidden": 1, "labels": 0} for [..., D]
        and [...]. What stands before them is the batch, the same for all.
      classes: labels must be below, or they multiply their row by nan.
      shared: what belongs to no row (kernels), as it came; what is None stays None.

    The formula gets the arrays (0 where `where` excludes a row), the shared, the scalars and `coefficients=`: [...],
    and it returns sum_i c_i v_i; or None, and it returns the rows [...].
    """
    named = inputs.admitted(arrays)
    shape = _batch_of(named, trailing, "the same rows")
    mask = admit_mask("where", where, shape)
    common = {name: inputs.as_array(name, x) for name, x in shared.items() if x is not None}
    dtype = inputs.wide_dtype([*named.values(), *common.values()])
    bad = jnp.zeros(shape, bool)
    for name, x in named.items():
        inner = tuple(range(len(shape), x.ndim))
        if mask is not None:
            # Not 0.5: a row of zeros times a kernel is finite whatever the kernel holds.
            named[name] = x = jnp.where(jnp.expand_dims(mask, inner), x, jnp.zeros((), x.dtype))
        if name in INDICES:
            bad = bad | jnp.any((x < 0) | (x >= classes), axis=inner)
            named[name] = jnp.clip(x, 0, classes - 1)
    factor = jnp.where(bad, jnp.nan, 1).astype(dtype)
    others = [common.get(name) for name in shared]
    scalar = inputs.as_scalars(scalars, dtype)

    def value(coefficients: Array | None) -> Array:
        if coefficients is None:
            return formula(*named.values(), *others, *scalar, coefficients=None) * factor
        return formula(*named.values(), *others, *scalar, coefficients=coefficients * factor)

    return reduce_total(value, shape, dtype, where=mask, weights=weights, reduction=reduction)


def _batch_of(named: Mapping[str, Array], trailing: Mapping[str, int], what: str) -> tuple[int, ...]:
    """What stands before the `trailing` last axes of each array, the same for all; `what` an error calls it."""
    for name, x in named.items():
        if x.ndim < trailing[name]:
            raise ValueError(f"`{name}` {list(x.shape)} must have at least {trailing[name]} axes")
    batch = {name: x.shape[: x.ndim - trailing[name]] for name, x in named.items()}
    first, shape = next(iter(batch.items()))
    for name, found in batch.items():
        message = (
            f"`{first}` {list(named[first].shape)} and `{name}` {list(named[name].shape)} must have {what}: "
            f"{list(shape)} is not {list(found)}"
        )
        demand(chex.assert_equal, found, shape, error=ValueError, message=message)
    return shape


def _refuse_halves(reduction: Reduction, instead: str) -> None:
    if reduction == "partial":
        raise ValueError(f"`reduction` 'partial' does not exist for one number a group, which has no halves; {instead}")


def _share_of_each(
    where: Mask, weights: Weights, shape: tuple[int, ...], dtype: jnp.dtype
) -> tuple[Array | None, Array]:
    """The mask, and what each entry weighs in its group: 0 behind the mask."""
    mask = admit_mask("where", where, shape)
    weight = admit_weights("weights", weights, shape, dtype)
    if weight is None:
        weight = jnp.ones(shape, dtype)
    return mask, weight if mask is None else jnp.where(mask, weight, 0)


def _alive(
    name: str, lengths: ArrayLike | None, shape: tuple[int, ...], steps: int, mask: Array | None
) -> tuple[Array, Array]:
    """Which steps exist, [..., T], and which sequences have an impossible length."""
    if lengths is None:
        return jnp.ones((*shape, steps), bool), jnp.zeros(shape, bool)
    count = inputs.as_array(name, lengths)
    message = f"`{name}` must be integer, got {count.dtype}"
    demand(chex.assert_type, count, jnp.integer, error=TypeError, message=message)
    message = f"`{name}` {list(count.shape)} must have one length for each sequence of the batch {list(shape)}"
    demand(chex.assert_shape, count, shape, error=ValueError, message=message)
    count = inputs.neutralised(count, mask)
    time = jnp.arange(steps).reshape((1,) * count.ndim + (steps,))
    return time < jnp.expand_dims(count, -1), (count < 0) | (count > steps)


def _visible(
    named: Mapping[str, Array], mask: Array | None, kept: Array | None, axes: tuple[int, ...]
) -> tuple[list[Array], Array | None]:
    """The inputs, harmless behind `mask` and where `kept` is False along `axes`; and what exists for the formula.

    In a masked row that is everything: a softmax over nothing would be nan, gradient and all.
    """
    ready = [inputs.neutralised(inputs.neutralised(x, mask, axes), kept) for x in named.values()]
    return ready, kept if kept is None or mask is None else kept | ~jnp.expand_dims(mask, axes)


def _times(value: Any, factor: Array) -> Any:
    """The formula's value times `factor`: a select would leave the gradient finite, and training would go on."""
    if isinstance(value, tuple):
        return value[0] * factor.astype(value[0].dtype), value[1]
    return value * factor.astype(value.dtype)


def _reduced(
    value: Any,
    shape: tuple[int, ...],
    mask: Array | None,
    weights: Weights,
    reduction: Reduction,
    *,
    coupled: bool = False,
) -> Array:
    value, present = value if isinstance(value, tuple) else (value, None)
    message = f"the formula returned {list(jnp.shape(value))} where one value for each of {list(shape)} was due"
    demand(chex.assert_shape, value, shape, error=ValueError, message=message)
    return reduce(value, where=mask, weights=weights, reduction=reduction, present=present, coupled=coupled)
