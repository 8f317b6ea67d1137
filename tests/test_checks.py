"""`check` and `checked` call the same entry bad, wherever the loss is called, and leave everything else as it was."""

import contextlib
import functools
import inspect
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxloss.losses as losses
from jaxloss.checks import check, checked
from jaxloss.core.compiled import compiled
from jaxloss.core.reduction import reduce
from jaxloss.core.types import (
    Array,
    BinaryLogit,
    Domain,
    Fraction,
    Inclusion,
    Label,
    Lengths,
    Logit,
    LogProbability,
    Mask,
    NonNegative,
    Positive,
    Probability,
    Real,
    Reduction,
    Sign,
    ValidMask,
    Weights,
)
from jaxloss.losses.segmentation import multiclass_dice
from jaxloss.testing import SIZES, Run

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAN, INF = float("nan"), float("inf")
Count = Annotated[Array, Domain("count", low=0.0, low_closed=True, integer=True)]


@compiled
def spring(
    predictions: Real,
    targets: Probability,
    *,
    delta: Positive = 1.0,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    value = delta * jnp.square(jnp.asarray(predictions) - targets)
    return reduce(value, where=where, weights=weights, reduction=reduction)


def plain_spring(predictions: Real, targets: Probability, *, where: Mask = None) -> Array:
    return reduce(jnp.square(jnp.asarray(predictions) - targets), where=where)


def everything(
    real: Real | None = None,
    positive: Positive | None = None,
    nonnegative: NonNegative | None = None,
    probability: Probability | None = None,
    logit: Logit | None = None,
    binary_logit: BinaryLogit | None = None,
    log_probability: LogProbability | None = None,
    sign: Sign | None = None,
    fraction: Fraction | None = None,
    count: Count | None = None,
    mask: Mask = None,
    weights: Weights = None,
) -> Array:
    return jnp.zeros(())


@compiled
def tagger(
    emissions: Logit,
    labels: Label,
    transitions: Real,
    *,
    axis: int = -1,
    class_weights: NonNegative | None = None,
    valid: ValidMask = None,
    lengths: Lengths = None,
    where: Mask = None,
    reduction: Reduction = "mean",
) -> Array:
    return jnp.sum(emissions) + jnp.sum(transitions)


@compiled
def aligner(
    logits: Logit,
    labels: Label,
    *,
    logit_lengths: Lengths = None,
    label_lengths: Lengths = None,
    where: Mask = None,
    weights: Weights = None,
) -> Array:
    return jnp.sum(logits)


def grouped(embeddings: Real, labels: Label) -> Array:
    return jnp.sum(embeddings)


def verdict(loss, *args, **kwargs) -> str | None:
    """What `check` says."""
    try:
        return check(loss, *args, **kwargs)
    except ValueError as error:
        return str(error)


def with_entry(shape, index, value, fill=0.5, dtype=jnp.float32) -> Array:
    return jnp.full(shape, fill, dtype).at[index].set(value)


# ---------------------------------------------------------------------------------------------------------------------
# check: the values


@pytest.mark.parametrize(
    ("argument", "good", "bad", "admissible"),
    [
        ("real", [-1e38, 0, 1e38], [NAN, INF, -INF], "(-inf, inf)"),
        ("positive", [1e-30, 1e38], [0, -1, NAN, INF], "(0, inf)"),
        ("nonnegative", [0, 1e38], [-1e-30, NAN, INF], "[0, inf)"),
        ("probability", [0, 0.5, 1], [-1e-30, 1.0000001, NAN, INF], "[0, 1]"),
        ("logit", [-INF, 0, 1e38], [INF, NAN], "[-inf, inf)"),
        ("binary_logit", [-INF, 0, INF], [NAN], "[-inf, inf]"),
        ("log_probability", [-INF, -1, 0], [1e-30, INF, NAN], "[-inf, 0]"),
        ("sign", [-1, 1], [0, 0.5, NAN, INF], "{-1, 1}"),
        ("fraction", [0, 0.999], [1, -0.5, NAN], "[0, 1)"),
        ("count", [0, 1, 7], [0.5, -1, NAN, INF], "[0, inf) integer"),
        ("weights", [0, 2.5], [-1, NAN, INF], "[0, inf)"),
    ],
)
def test_check_knows_every_domain(argument, good, bad, admissible):
    assert verdict(everything, **{argument: jnp.array(good, jnp.float32)}) is None
    for value in bad:
        said = verdict(everything, **{argument: jnp.array([*good, value], jnp.float32)})
        assert said == f"`{argument}`[{len(good)}] of everything is {np.float32(value)!s}, outside {admissible}"


def test_check_takes_every_dtype_that_a_loss_takes():
    assert verdict(everything, sign=np.array([1, -1], np.int8), probability=np.array([True, False]), count=3) is None
    assert verdict(everything, sign=np.array([1, 0])) == "`sign`[1] of everything is 0, outside {-1, 1}"
    assert verdict(everything, nonnegative=-2) == "`nonnegative` of everything is -2, outside [0, inf)"
    assert verdict(everything, positive=np.array([True, False])) == "`positive`[1] of everything is 0, outside (0, inf)"
    assert verdict(everything, mask=np.array([0, 1, 2])) == "`mask`[2] of everything is 2, outside {False, True}"
    half = jnp.array([0.5, 1.5], jnp.bfloat16)
    assert verdict(everything, probability=half) == "`probability`[1] of everything is 1.5, outside [0, 1]"
    assert verdict(everything, probability=jnp.zeros((0, 3))) is None


def test_check_names_the_first_bad_entry_in_row_major_order():
    targets = jnp.full((4, 3, 2), 0.5).at[2, 0, 1].set(7.0).at[1, 2, 0].set(NAN).at[1, 1, 1].set(-3.0).at[3].set(9.0)
    predictions = jnp.zeros((4, 3, 2))
    assert verdict(spring, predictions, targets) == "`targets`[1, 1, 1] of spring is -3.0, outside [0, 1]"
    # Arguments are tried in the order of the signature.
    said = verdict(spring, predictions.at[3, 2, 1].set(NAN), targets, delta=-1.0)
    assert said == "`predictions`[3, 2, 1] of spring is nan, outside (-inf, inf)"
    assert verdict(spring, predictions, predictions, delta=-1.0) == "`delta` of spring is -1.0, outside (0, inf)"


@pytest.mark.parametrize("loss", [spring, plain_spring, functools.partial(plain_spring)])
def test_check_takes_any_annotated_loss(loss):
    assert verdict(loss, jnp.zeros(3), jnp.zeros(3)) is None
    assert (verdict(loss, jnp.zeros(3), jnp.full(3, 2.0)) or "").endswith("spring is 2.0, outside [0, 1]")


def test_check_of_a_partial_checks_what_it_holds():
    assert verdict(functools.partial(spring, delta=-2.0), jnp.zeros(3), jnp.zeros(3)) == (
        "`delta` of spring is -2.0, outside (0, inf)"
    )
    assert verdict(functools.partial(spring, delta=-2.0), jnp.zeros(3), jnp.zeros(3), delta=1.0) is None


# ---------------------------------------------------------------------------------------------------------------------
# check: labels and lengths


def test_labels_are_counted_along_the_class_axis():
    logits, labels = jnp.zeros((2, 5, 3)), jnp.array([[0, 1, 2, 0, 3], [0, 0, 0, 0, 0]])
    said = "`labels`[0, 4] of softmax_cross_entropy is 3, outside {0, ..., 2}"
    assert verdict(losses.softmax_cross_entropy, logits, labels) == said
    assert verdict(losses.softmax_cross_entropy, jnp.zeros((2, 4, 5)), labels, axis=1) is None
    assert verdict(losses.softmax_cross_entropy, jnp.zeros((2, 3, 5)), labels, axis=1) == said
    said = "`labels`[1, 0] of softmax_cross_entropy is -100, outside {0, ..., 2}"
    ignored = labels.at[0, 4].set(0).at[1, 0].set(-100)
    assert verdict(losses.softmax_cross_entropy, logits, ignored) == said
    assert verdict(losses.softmax_cross_entropy, logits, ignored, where=ignored != -100) is None


def test_labels_of_embeddings_have_no_upper_end():
    assert verdict(grouped, jnp.zeros((3, 2)), jnp.array([5, 0, 999])) is None
    assert verdict(grouped, jnp.zeros((3, 2)), jnp.array([5, -1, 9])) == (
        "`labels`[1] of grouped is -1, outside {0, 1, ...}"
    )
    assert verdict(grouped, jnp.zeros((2, 2)), jnp.array([0.0, 0.5])) == (
        "`labels`[1] of grouped is 0.5, outside {0, 1, ...}"
    )


def test_lengths_count_the_steps_of_what_they_are_named_after():
    logits, labels = jnp.zeros((2, 7, 3)), jnp.zeros((2, 4), jnp.int32)
    full = {"logit_lengths": jnp.array([7, 0]), "label_lengths": jnp.array([4, 0])}
    assert verdict(aligner, logits, labels, **full) is None
    said = verdict(aligner, logits, labels, **{**full, "logit_lengths": jnp.array([7, 8])})
    assert said == "`logit_lengths`[1] of aligner is 8, outside {0, ..., 7}"
    said = verdict(aligner, logits, labels, **{**full, "label_lengths": jnp.array([5, 7])})
    assert said == "`label_lengths`[0] of aligner is 5, outside {0, ..., 4}"
    said = verdict(tagger, logits, jnp.zeros((2, 7), jnp.int32), jnp.zeros((3, 3)), lengths=jnp.array([-1, 7]))
    assert said == "`lengths`[0] of tagger is -1, outside {0, ..., 7}"


# ---------------------------------------------------------------------------------------------------------------------
# check: what does not exist is free


def test_what_where_excludes_is_free():
    targets = with_entry((3, 2), (1, 1), 5.0).at[2, 0].set(6.0)
    predictions = jnp.zeros((3, 2))
    where = jnp.ones((3, 2), bool).at[1, 1].set(False)
    assert verdict(spring, predictions, targets, where=where) == "`targets`[2, 0] of spring is 6.0, outside [0, 1]"
    assert verdict(spring, predictions, targets, where=where.at[2, 0].set(False)) is None
    assert verdict(spring, predictions, targets, where=jnp.array([[True], [False], [False]])) is None
    assert verdict(spring, predictions, targets, where=False) is None
    weights = jnp.array([[1.0], [-1.0], [NAN]])
    assert (
        verdict(spring, predictions, predictions, where=jnp.array([[True], [False], [False]]), weights=weights) is None
    )
    said = "`weights`[2, 0] of spring is nan, outside [0, inf)"
    assert verdict(spring, predictions, predictions, where=jnp.array([[1], [0], [1]], bool), weights=weights) == said
    # A weight of 0 is not a mask.
    assert verdict(spring, predictions, targets, weights=0.0) == "`targets`[1, 1] of spring is 5.0, outside [0, 1]"


def test_no_mask_excuses_a_hyper_parameter():
    x = jnp.zeros(3)
    assert verdict(spring, x, x, delta=-1.0, where=False) == "`delta` of spring is -1.0, outside (0, inf)"
    logits, labels = jnp.zeros((3, 3)), jnp.zeros(3, jnp.int32)
    for where in (False, jnp.array([True, True, False])):  # as many classes as rows: the shapes fit by chance
        said = verdict(
            losses.softmax_cross_entropy, logits, labels, where=where, class_weights=jnp.array([1.0, 1.0, -1.0])
        )
        assert said == "`class_weights`[2] of softmax_cross_entropy is -1.0, outside [0, inf)"
    said = verdict(
        tagger, jnp.zeros((3, 2, 3)), jnp.zeros((3, 2), jnp.int32), with_entry((3, 3), (2, 1), NAN),
        where=jnp.array([True, True, False]), lengths=jnp.array([2, 2, 0]),
    )  # fmt: skip
    assert said == "`transitions`[2, 1] of tagger is nan, outside (-inf, inf)"


def test_a_mask_of_rows_covers_the_axes_that_the_loss_consumes():
    labels, where = jnp.array([0, 7, 2]), jnp.array([True, False, True])
    logits = with_entry((3, 4), (1, 2), NAN)
    assert verdict(losses.softmax_cross_entropy, logits, labels, where=where) is None
    assert verdict(losses.softmax_cross_entropy, logits.T, labels, where=where, axis=0) is None
    bad = with_entry((3, 4), (2, 1), NAN)
    said = "`logits`[2, 1] of softmax_cross_entropy is nan, outside [-inf, inf)"
    assert verdict(losses.softmax_cross_entropy, bad, labels, where=where) == said
    said = "`logits`[1, 2] of softmax_cross_entropy is nan, outside [-inf, inf)"
    assert verdict(losses.softmax_cross_entropy, bad.T, labels, where=where, axis=0) == said
    # Square: only the axis tells rows from classes.
    square = with_entry((3, 3), (1, 0), NAN)
    assert verdict(losses.softmax_cross_entropy, square, labels, where=where) is None
    said = "`logits`[1, 0] of softmax_cross_entropy is nan, outside [-inf, inf)"
    assert verdict(losses.softmax_cross_entropy, square, labels, where=where, axis=0) == said


def test_what_valid_rules_out_is_free():
    scores, relevance = jnp.zeros((2, 3)), with_entry((2, 3), (1, 2), -1.0)
    said = "`relevance`[1, 2] of list_softmax is -1.0, outside [0, inf)"
    assert verdict(losses.list_softmax, scores, relevance) == said
    valid = jnp.ones((2, 3), bool).at[1, 2].set(False)
    assert verdict(losses.list_softmax, scores, relevance, valid=valid) is None
    assert verdict(losses.list_softmax, scores, relevance, valid=~valid) == said


def test_what_lies_behind_a_length_is_free():
    logits, labels = jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), jnp.int32)
    said_by = functools.partial(verdict, tagger, transitions=jnp.zeros((3, 3)), lengths=jnp.array([4, 2]))
    assert said_by(logits.at[1, 2].set(NAN), labels.at[1, 3].set(-1)) is None
    said = "`labels`[1, 1] of tagger is -1, outside {0, ..., 2}"
    assert said_by(logits, labels.at[1, 1:].set(-1)) == said
    said = "`emissions`[0, 2, 0] of tagger is nan, outside [-inf, inf)"
    assert said_by(logits.at[:, 2].set(NAN), labels) == said
    # Each array has its own lengths, also where the sizes agree; an excluded row's length is free itself.
    lengths = {"logit_lengths": jnp.array([4, 2]), "label_lengths": jnp.array([4, 3])}
    assert verdict(aligner, logits.at[1, 2].set(NAN), labels.at[1, 3].set(-1), **lengths) is None
    said = "`labels`[1, 2] of aligner is -1, outside {0, ..., 2}"
    assert verdict(aligner, logits, labels.at[1, 2].set(-1), **lengths) == said
    lengths["label_lengths"] = jnp.array([4, 9])
    assert verdict(aligner, logits, labels, **lengths, where=jnp.array([True, False])) is None


# ---------------------------------------------------------------------------------------------------------------------
# check: what it refuses


def test_what_the_loss_refuses_it_refuses_in_its_own_words():
    with pytest.raises(ValueError, match="must have one shape"):
        check(losses.huber, jnp.zeros(3), jnp.full((3, 1), NAN))
    with pytest.raises(ValueError, match="`reduction`"):
        check(losses.huber, jnp.zeros(3), jnp.full(3, NAN), reduction="average")
    with pytest.raises(TypeError, match="`labels` must be integer"):
        check(losses.softmax_cross_entropy, jnp.zeros((2, 3)), jnp.zeros(2))
    with pytest.raises(TypeError, match="missing a required argument"):
        check(losses.huber, jnp.zeros(3))


def test_check_refuses_what_it_cannot_check():
    with pytest.raises(TypeError, match="annotates no argument with a domain"):
        check(lambda x: x, jnp.zeros(3))
    with pytest.raises(TypeError, match=r"`targets` of spring is traced; inside jit, grad, \.\.\. use `checked`"):
        jax.jit(lambda t: check(spring, CONSTANT, t))(jnp.zeros(3))


def test_check_reads_constants_while_something_else_is_traced():
    def step(x):
        check(spring, CONSTANT, CONSTANT)
        return x

    with pytest.raises(ValueError, match=r"`targets`\[1\] of spring is 2.0"):
        jax.jit(step)(1.0)


CONSTANT = np.array([0.0, 2.0, 0.0], np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# check: every public loss

DRAWN = {f"{case.name}-{'-'.join(case.axes.values())}": case for case in CASES}
# The last of each family alone is looked at by default.
LAST = {case.loss.__module__: case for case in CASES}.values()


def has_bounds(domain):
    """Whether some number, nan for instance, is outside."""
    return not isinstance(domain, Inclusion) and not (isinstance(domain, Domain) and domain.integer)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=() if case in LAST else pytest.mark.exhaustive) for name, case in DRAWN.items()],
)
def test_every_loss_is_checked_entry_by_entry(case):
    run = Run(case, dict(case.options[0]), "float32", first=True)
    arrays = run.cast(run.arrays)
    call = functools.partial(verdict, case.loss, **run.static, **run.traced)
    shape = (*run.tail_shape(run.arrays), *(SIZES[axis] for axis in case.entries))
    everywhere = jnp.ones(shape, bool)  # one program for the three calls
    assert call(**arrays, where=everywhere) is None
    # The case's last array with a bound is spoilt in row 2: found there, and free where that row is excluded.
    name, axes = [(name, axes) for name, axes in case.axes.items() if has_bounds(run.domains[name])][-1]
    spoilt = arrays[name].at[2].set(-100 if jnp.issubdtype(arrays[name].dtype, jnp.integer) else NAN)
    place = ", ".join(["2", *["0"] * (len(axes) - 1)])
    if axes[0] != "N":
        spoilt, place = arrays[name].at[1].set(NAN), "1, 0"
    arrays[name] = spoilt
    found = call(**arrays, where=everywhere) or ""
    # The first of the row that is not excused.
    if "masked" in arrays:
        place = f"2, {int(jnp.argmax(arrays['masked'][2]))}"
    if f"{name}_valid" in arrays:
        place = f"2, {int(jnp.argmax(arrays[f'{name}_valid'][2]))}, 0"
    assert found.startswith(f"`{name}`[{place}] of {case.name} is ")
    excused = call(**arrays, where=everywhere.at[2].set(False))
    assert (excused is None) == (axes[0] == "N"), excused


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_class_that_is_left_out_excuses_no_pixel_an_image_without_classes_does(axis):
    logits = jnp.moveaxis(jnp.zeros((2, 3, 5, 4)).at[1, 0, 0, 2].set(NAN), -1, axis)
    targets = jnp.full(logits.shape, 0.25)
    all_classes = jnp.ones((2, 4), bool)  # not a row for each image
    call = functools.partial(verdict, multiclass_dice, logits, targets, axis=axis)
    place = "1, 0, 0, 2" if axis == -1 else "1, 2, 0, 0"
    for where in (all_classes, all_classes.at[1, 2].set(False), all_classes.at[0].set(False)):
        assert call(where=where).startswith(f"`logits`[{place}] of multiclass_dice is nan")
    assert call(where=all_classes.at[1].set(False)) is None


# One of each family: the way to `checked` is the same for all.
FAMILIES = {inspect.getmodule(case.loss): case for case in CASES}


@pytest.mark.parametrize("case", FAMILIES.values(), ids=lambda case: case.name)
def test_losses_report_inside_a_checked_function(case):
    run = Run(case, dict(case.options[0]), "float32", first=True)

    def use(arrays):
        return case.loss(**arrays, **run.static, **run.traced)

    assert str(jax.make_jaxpr(checked(use))(run.cast(run.arrays))).count("debug_callback[") == 1


# ---------------------------------------------------------------------------------------------------------------------
# checked: in every context

GOOD, BAD = jnp.array([0.1, 0.2, 0.3]), jnp.array([0.1, 1.5, -0.3])
P = jnp.array([0.4, 0.5, 0.6])
SAID = "`targets`[1] of spring is 1.5, outside [0, 1]"
SAID_SCALAR = "`targets` of spring is 1.5, outside [0, 1]"


def loss_fn(params, targets):
    return spring(jnp.tanh(params), targets)


def scan_body(carry, target):
    return carry + spring(carry, target), None


def scanning(params, targets):
    return jax.lax.scan(scan_body, params[0], targets)[0]


checked_loss_fn = checked(loss_fn)
checked_scanning = checked(scanning)


def scanned(loss, params, targets):
    return jax.lax.scan(lambda c, both: (c + loss(*both), None), 0.0, (params, targets))[0]


# How a function of (params, targets) is used: with `loss_fn` or with `checked(loss_fn)`; what is raised; what it says.
USES = {
    "called": (lambda f: f, ValueError, SAID),
    "grad": (jax.grad, ValueError, SAID),
    "value_and_grad": (jax.value_and_grad, ValueError, SAID),
    "vmap": (jax.vmap, ValueError, "in mapped example [1]: " + SAID_SCALAR),
    "jit": (jax.jit, jax.errors.JaxRuntimeError, SAID),
    "jit(grad)": (lambda f: jax.jit(jax.grad(f)), jax.errors.JaxRuntimeError, SAID),
    "grad(jit)": (lambda f: jax.grad(jax.jit(f)), jax.errors.JaxRuntimeError, SAID),
    "jit(vmap(grad))": (
        lambda f: jax.jit(jax.vmap(jax.grad(f))), jax.errors.JaxRuntimeError, "in mapped example [1]: " + SAID_SCALAR
    ),
    "jit(grad(remat))": (lambda f: jax.jit(jax.grad(jax.checkpoint(f))), jax.errors.JaxRuntimeError, SAID),
    "scan": (lambda f: functools.partial(scanned, f), jax.errors.JaxRuntimeError, SAID_SCALAR),
    "jit(grad(scan))": (
        lambda f: jax.jit(jax.grad(functools.partial(scanned, f))), jax.errors.JaxRuntimeError, SAID_SCALAR
    ),
}  # fmt: skip


@contextlib.contextmanager
def raises(kind, said):
    """The error arises inside, at the latest when everything has run; nothing of it is left for the next test."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (looked at below)
        yield
    with contextlib.suppress(Exception):
        jax.effects_barrier()
    assert type(caught.value) is kind or not issubclass(kind, ValueError), repr(caught.value)
    assert isinstance(caught.value, kind)
    assert str(caught.value) == said if kind is ValueError else f"ValueError: {said}" in str(caught.value)


def done(result):
    result = jax.block_until_ready(result)
    jax.effects_barrier()
    return result


@pytest.mark.parametrize("use", USES)
def test_checked_in_every_context(use):
    transform, kind, said = USES[use]
    plain, safe = transform(loss_fn), transform(checked_loss_fn)
    chex.assert_trees_all_close(done(safe(P, GOOD)), done(plain(P, GOOD)), rtol=1e-6)
    with raises(kind, said):
        done(safe(P, BAD))
    # Checks leave no trace behind: the same call without them, and then with good values.
    done(plain(P, BAD))
    chex.assert_trees_all_close(done(safe(P, GOOD)), done(plain(P, GOOD)), rtol=1e-6)


@pytest.mark.parametrize("use", ["called", "grad", "jit", "jit(grad)"])
def test_a_scan_inside_a_checked_function(use):
    transform, kind, _ = USES[use]
    plain, safe = transform(scanning), transform(checked_scanning)
    done(plain(P, BAD))  # the body is in jax's cache, without checks
    with raises(kind, SAID_SCALAR):
        done(safe(P, BAD))
    done(plain(P, BAD))  # and now with them, under another key
    chex.assert_trees_all_close(done(safe(P, GOOD)), done(plain(P, GOOD)), rtol=1e-6)


def test_a_function_jitted_before_neither_hides_checks_nor_keeps_them():
    jitted = jax.jit(loss_fn)

    def outer(params, targets):
        return 2 * jitted(params, targets)

    safe = jax.jit(checked(outer))
    done(outer(P, BAD))  # plain, then checked
    with raises(jax.errors.JaxRuntimeError, SAID):
        done(safe(P, BAD))
    done(outer(P, BAD))  # checked, then plain
    fresh = jax.jit(lambda params, targets: loss_fn(params, targets))
    with raises(ValueError, SAID):
        checked(lambda: fresh(P, BAD))()
    done(fresh(P, BAD))
    assert "callback" not in fresh.lower(P, BAD).as_text()


def test_what_is_traced_may_reach_a_checked_function_by_closure():
    seen = {}
    safe = checked(lambda: loss_fn(seen["params"], seen["targets"]))

    def with_targets(params, targets):
        seen.update(params=params, targets=targets)
        return safe()

    chex.assert_trees_all_close(jax.grad(with_targets)(P, GOOD), jax.grad(loss_fn)(P, GOOD), rtol=1e-6)
    with raises(ValueError, SAID):
        jax.grad(with_targets)(P, BAD)
    with raises(jax.errors.JaxRuntimeError, SAID):
        done(jax.jit(with_targets)(P, BAD))


def test_vmap_inside_a_checked_function():
    with raises(jax.errors.JaxRuntimeError, "`targets` of spring is -0.3, outside [0, 1]"):
        done(jax.jit(checked(jax.vmap(loss_fn)))(P, BAD.at[1].set(1.0)))


def test_one_callback_serves_a_whole_vmap_and_names_the_first_example():
    many = jax.jit(jax.vmap(jax.vmap(checked_loss_fn)))
    targets = jnp.full((5, 4), 0.5).at[2, 3].set(2.0).at[4, 0].set(3.0)
    assert str(jax.make_jaxpr(many)(targets, targets)).count("debug_callback[") == 1
    with raises(jax.errors.JaxRuntimeError, "in mapped example [2, 3]: `targets` of spring is 2.0, outside [0, 1]"):
        done(many(targets, targets))


def test_the_first_failing_check_speaks():
    def two(params, targets):
        return spring(params, targets, delta=targets[2]) + losses.huber(params, targets, delta=targets[2])

    safe = jax.jit(checked(two))
    with raises(jax.errors.JaxRuntimeError, SAID):
        done(safe(P, BAD))
    with raises(jax.errors.JaxRuntimeError, "`delta` of spring is 0.0, outside (0, inf)"):
        done(safe(P, GOOD.at[2].set(0.0)))
    with raises(jax.errors.JaxRuntimeError, "`predictions`[0] of spring is nan, outside (-inf, inf)"):
        done(safe(P.at[0].set(NAN), BAD))


def test_checked_says_what_check_says_of_the_real_losses():
    logits = with_entry((3, 4), (1, 2), NAN)
    labels, where = jnp.array([0, 7, 4]), jnp.array([True, False, True])
    safe = checked(losses.softmax_cross_entropy)  # a loss itself may be checked
    said = "`labels`[2] of softmax_cross_entropy is 4, outside {0, ..., 3}"
    assert verdict(losses.softmax_cross_entropy, logits, labels, where=where) == said
    with raises(jax.errors.JaxRuntimeError, said):
        done(jax.jit(safe)(logits, labels, where=where))
    assert inspect.signature(safe) == inspect.signature(losses.softmax_cross_entropy)
    partial = jax.jit(functools.partial(safe, reduction="partial"))(logits, labels.at[2].set(3), where=where)
    assert partial.weight == 2  # a `Mean` comes through


def test_a_checked_function_inside_a_checked_function_stands_on_its_own():
    def outer(params, targets):
        return checked_loss_fn(params, targets) + losses.huber(params, params, delta=params[0])

    safe = checked(outer)
    with raises(jax.errors.JaxRuntimeError, SAID):
        done(safe(P, BAD))
    with raises(ValueError, "`delta` of huber is -0.4, outside (0, inf)"):
        safe(-P, GOOD)
    # Around a scan's gradient the inner one works, where the outer one alone would lose its checks.
    inner = functools.partial(scanned, checked_loss_fn)
    with raises(jax.errors.JaxRuntimeError, SAID_SCALAR):
        done(jax.jit(checked(jax.grad(inner)))(P, BAD))


def test_checks_that_jax_would_drop_are_refused():
    safe = checked(jax.grad(scanning))
    for _ in range(2):  # the second time the body comes from the cache
        with pytest.raises(ValueError, match=r"jax drops the checks of .*`targets` of spring.*jax.grad\(jl.checked"):
            safe(P, GOOD)
    done(checked_scanning(P, GOOD))


def test_a_jitted_function_is_refused_in_words():
    with pytest.raises(TypeError, match=r"loss_fn is jitted already; put checked inside: jax.jit\(jl.checked\(fn\)\)"):
        checked(jax.jit(loss_fn))


def test_arguments_may_be_anything_and_chex_assertions_work_in_a_direct_call():
    def fn(params, mode, *, scale=1.0):
        chex.assert_tree_all_finite(params)
        return {"loss": scale * spring(params["w"], params["w"]), "mode": len(mode)}

    safe = checked(fn)
    assert done(safe({"w": P}, "train", scale=2.0)) == {"loss": 0.0, "mode": 5}
    with pytest.raises(AssertionError, match="finite"):
        safe({"w": P.at[0].set(NAN)}, "train")
    with pytest.raises(ValueError, match="`reduction`"):  # the user's own errors are left alone
        checked(lambda: spring(P, P, reduction="average"))()


def test_a_function_without_losses_is_left_alone():
    assert checked(lambda x: 2 * x)(3.0) == 6.0
    assert "callback" not in jax.jit(checked(lambda x: 2 * x)).lower(3.0).as_text()


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_checked_on_a_mesh(devices, kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=devices)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        good = jax.device_put(jnp.full((8, 3), 0.5), rows)
        bad = jax.device_put(with_entry((8, 3), (5, 1), 2.0), rows)
        safe = jax.jit(jax.grad(checked_loss_fn))
        done(safe(good, good))
        with raises(jax.errors.JaxRuntimeError, "`targets`[5, 1] of spring is 2.0, outside [0, 1]"):
            done(safe(good, bad))
        with raises(jax.errors.JaxRuntimeError, "in mapped example [5]: `targets`[1] of spring is 2.0, outside [0, 1]"):
            done(jax.jit(jax.vmap(checked_loss_fn))(good, bad))

        @jax.jit
        @functools.partial(jax.shard_map, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
        def local(params, targets):
            return jax.lax.pmean(checked_loss_fn(params, targets), "data")

        done(local(good, good))
        with raises(jax.errors.JaxRuntimeError, "`targets`[1, 1] of spring is 2.0, outside [0, 1]"):
            done(local(good, bad))
        done(local(good, good))  # or the other devices' errors would still be raised by the next barrier
        assert verdict(spring, good, bad) == "`targets`[5, 1] of spring is 2.0, outside [0, 1]"
