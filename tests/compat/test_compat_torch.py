"""torch.nn.functional's losses on jax arrays, beside torch's own: value and gradient, options, edges, refusals.

torch computes in float64 what is compared with float32, so the difference is ours. Where torch is not installed, what
needs it is skipped, and the rest runs.
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss.compat import torch as F  # noqa: N812

try:
    import torch
except ImportError:
    torch = None

pytestmark = pytest.mark.usefixtures("quick_compilation")
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")
INF = np.inf

REDUCTIONS = ["mean", "sum", "none"]
ANY_SHAPE = [(3, 4), (5,), (), (2, 3, 2, 2)]
CLASS_SHAPES = [(3, 4, 2), (5,), (4, 5), (2, 3, 2, 2)]


# --- The same call in both ----------------------------------------------------------------------------------------


def there(name: str, arrays: dict[str, Any], slopes: list[str], options: dict[str, Any]):
    """torch's value, and its gradient of a weighted sum of that; in float64."""

    def tensor(x):
        if not isinstance(x, np.ndarray):
            return x
        return torch.tensor(x.astype(np.float64) if x.dtype.kind == "f" else x)

    ready = {k: tensor(x) for k, x in {**arrays, **options}.items()}
    for k in slopes:
        ready[k].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kl_div's "mean" warns of itself
        value = getattr(torch.nn.functional, name)(**ready)
    total = (value * torch.tensor(cotangent(value.shape))).sum()
    found = torch.autograd.grad(total, [ready[k] for k in slopes])
    return value.detach().numpy(), {k: g.numpy() for k, g in zip(slopes, found, strict=True)}


def here(name: str, arrays: dict[str, Any], slopes: list[str], options: dict[str, Any]):
    """The same of ours, in float32, compiled."""
    fixed = {k: x for k, x in {**arrays, **options}.items() if not isinstance(x, np.ndarray)}
    rest = {k: x for k, x in {**arrays, **options}.items() if isinstance(x, np.ndarray) and k not in slopes}

    def total(moving, rest):
        value = getattr(F, name)(**moving, **rest, **fixed)
        return jnp.sum(value * cotangent(value.shape).astype("float32")), value

    moving = {k: arrays[k] if k in arrays else options[k] for k in slopes}
    (_, value), found = jax.jit(jax.value_and_grad(total, has_aux=True))(moving, rest)
    return np.asarray(value), {k: np.asarray(g) for k, g in found.items()}


def cotangent(shape) -> np.ndarray:
    return np.cos(1 + np.arange(int(np.prod(shape)))).reshape(tuple(shape)) if len(shape) else np.ones(())


def agree(name: str, arrays: dict[str, Any], slopes: list[str], options: dict[str, Any], rtol: float = 1e-5) -> None:
    (value, found), (want, expected) = (f(name, arrays, slopes, options) for f in (here, there))
    what = f"{name} { ({k: getattr(v, 'shape', v) for k, v in {**arrays, **options}.items()}) }"
    assert value.dtype == np.float32, what
    assert value.shape == want.shape, what
    np.testing.assert_allclose(value, want, rtol=rtol, atol=rtol, err_msg=what)
    for k in slopes:
        size = np.max(np.abs(expected[k]), initial=0)
        np.testing.assert_allclose(found[k], expected[k], rtol=rtol, atol=rtol * size, err_msg=f"{k} of {what}")


# --- Every function over its options ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A function: how to draw its arrays, of which shapes, towards which it has gradients, and its options.

    An option's value that is a function draws an array: of the generator and of the arrays. None is absent.
    """

    name: str
    draw: Callable[..., dict[str, Any]]
    shapes: list
    slopes: list[str]
    options: dict[str, list]


def single(x):
    return np.asarray(x, np.float32)


def normal(rng, shape, scale=1.5):
    return single(scale * rng.standard_normal(shape))


def uniform(rng, shape, low=0.05, high=0.95):
    return single(rng.uniform(low, high, shape))


def signs(rng, shape):
    return single(rng.choice([-1.0, 1.0], shape))


def distribution(rng, shape, axis=-1):
    e = np.exp(rng.standard_normal(shape))
    return single(e / e.sum(axis=axis, keepdims=True))


def log_softmax(x, axis):
    return single(x - np.log(np.sum(np.exp(x.astype(np.float64)), axis=axis, keepdims=True)))


def without_class_axis(shape):
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def numbers(rng, shape):
    return {"input": normal(rng, shape), "target": normal(rng, shape)}


def labelled(rng, shape):
    classes = shape[min(len(shape) - 1, 1)]
    return {"input": normal(rng, shape), "target": np.asarray(rng.integers(0, classes, without_class_axis(shape)))}


def log_labelled(rng, shape):
    drawn = labelled(rng, shape)
    return {**drawn, "input": log_softmax(drawn["input"], min(len(shape) - 1, 1))}


def labelled_or_soft(rng, shape):
    kind, shape = shape
    if kind == "labels":
        return labelled(rng, shape)
    return {"input": normal(rng, shape), "target": distribution(rng, shape, axis=min(len(shape) - 1, 1))}


def layer(rng, shape):
    """Hidden states, the kernel, and labels or probabilities."""
    kind, rows, classes, more = shape
    drawn = {"input": normal(rng, (*rows, 3)), "linear_weight": normal(rng, (classes, *more, 3))}
    if kind == "labels":
        drawn["target"] = np.asarray(rng.integers(0, classes, (*rows, *more)))
    else:
        drawn["target"] = distribution(rng, (*rows, classes, *more), axis=len(rows))
    return drawn


def listed(rng, shape):
    """Class indices, ended by -1, and anything behind."""
    target = np.stack(
        [rng.permutation(shape[-1]) for _ in range(shape[0])] if len(shape) > 1 else [rng.permutation(shape[-1])]
    )
    for row in target:
        row[rng.integers(0, shape[-1])] = -1
    return {"input": normal(rng, shape), "target": target.reshape(shape)}


def frames(rng, shape):
    """Log-probabilities and labels, padded or in a row."""
    kind, batch = shape
    steps, classes, longest = 7, 4, 3
    x = log_softmax(normal(rng, (steps, *batch, classes)), -1)
    lengths = np.asarray(rng.integers(0, longest + 1, batch))
    targets = np.asarray(rng.integers(1, classes - 1, (*batch, longest)))
    if not batch:
        lengths = np.asarray(longest)
    if kind == "row":
        targets = np.concatenate([row[:n] for row, n in zip(targets, lengths, strict=True)])
    # Tuples are read when compiling, as labels in a row need them.
    as_given = tuple(int(n) for n in lengths) if kind == "row" else lengths
    used = rng.integers(5, steps + 1, batch)
    used = tuple(int(n) for n in used) if kind == "row" else np.asarray(used)
    return {"log_probs": x, "targets": targets, "input_lengths": used, "target_lengths": as_given}


def per_class(rng, arrays):
    shape = arrays["input"].shape
    classes = arrays["linear_weight"].shape[0] if "linear_weight" in arrays else shape[min(len(shape) - 1, 1)]
    return uniform(rng, (classes,), 0.2, 2.0)


def per_entry(rng, arrays):
    return uniform(rng, arrays["input"].shape, 0.2, 2.0)


def per_last_axis(rng, arrays):
    return uniform(rng, arrays["input"].shape[-1:], 0.2, 2.0)


def bias(rng, arrays):
    return normal(rng, arrays["linear_weight"].shape[:-1])


def variances(rng, shape):
    kind, shape = shape
    of = {"each": shape, "row": shape[:-1], "kept": (*shape[:-1], 1), "first": (1, *shape[1:]), "number": None}[kind]
    var = 0.3 if of is None else uniform(rng, of, 0.1, 2.0)
    return {**numbers(rng, shape), "var": var}


def cosine_like(x, y):
    return ((x - y) ** 2).sum(-1) / 3


CASES = [
    Case("l1_loss", numbers, ANY_SHAPE, ["input", "target"], {"reduction": REDUCTIONS, "weight": [None, per_entry]}),
    Case("mse_loss", numbers, ANY_SHAPE, ["input", "target"], {"reduction": REDUCTIONS, "weight": [per_entry, None]}),
    Case(
        "smooth_l1_loss",
        numbers,
        ANY_SHAPE,
        ["input", "target"],
        {"reduction": REDUCTIONS, "beta": [0.3, 1.0, 0.0, 2.5]},
    ),
    Case(
        "huber_loss",
        numbers,
        ANY_SHAPE,
        ["input", "target"],
        {"reduction": REDUCTIONS, "delta": [0.3, 1.0, 2.5], "weight": [per_entry, None]},
    ),
    Case(
        "nll_loss",
        log_labelled,
        CLASS_SHAPES,
        ["input"],
        {"reduction": REDUCTIONS, "weight": [per_class, None], "ignore_index": [-100, 0, 2]},
    ),
    Case(
        "cross_entropy",
        labelled_or_soft,
        [("labels", s) for s in CLASS_SHAPES],
        ["input"],
        {
            "reduction": REDUCTIONS,
            "weight": [per_class, None],
            "ignore_index": [1, -100, 0],
            "label_smoothing": [0.1, 0.0, 1.0],
        },
    ),
    Case(
        "cross_entropy",
        labelled_or_soft,
        [("soft", s) for s in CLASS_SHAPES],
        ["input", "target"],
        {"reduction": REDUCTIONS, "weight": [per_class, None], "label_smoothing": [0.1, 0.0, 1.0]},
    ),
    Case(
        "linear_cross_entropy",
        layer,
        [("labels", (4,), 5, ()), ("labels", (), 5, ())],
        ["input", "linear_weight"],
        {
            "reduction": REDUCTIONS,
            "weight": [per_class, None],
            "linear_bias": [bias, None],
            "ignore_index": [None, 1],
            "label_smoothing": [0.0, 0.2],
            "options": [None],
        },
    ),
    Case(
        "linear_cross_entropy",
        layer,
        [("soft", (4,), 5, ()), ("labels", (3,), 4, (2,)), ("soft", (), 5, ()), ("soft", (2,), 3, (2, 2))],
        ["input", "linear_weight"],
        {
            "reduction": REDUCTIONS,
            "weight": [per_class, None],
            "linear_bias": [bias, None],
            "label_smoothing": [0.2, 0.0],
        },
    ),
    Case(
        "poisson_nll_loss",
        lambda rng, shape: {"input": uniform(rng, shape, 0.2, 2.0), "target": single(rng.poisson(2.0, shape))},
        ANY_SHAPE,
        ["input"],
        {"reduction": REDUCTIONS, "log_input": [False, True], "full": [True, False], "eps": [1e-8, 0.1]},
    ),
    Case(
        "gaussian_nll_loss",
        variances,
        [("each", (3, 4)), ("row", (3, 2)), ("kept", (2, 3, 2)), ("first", (2, 3)), ("number", (5,)), ("each", ())],
        ["input", "target"],
        {"reduction": REDUCTIONS, "full": [True, False], "eps": [1e-6, 0.5]},
    ),
    Case(
        "kl_div",
        lambda rng, shape: {"input": single(-uniform(rng, shape, 0.1, 3.0)), "target": uniform(rng, shape)},
        ANY_SHAPE,
        ["input", "target"],
        {"reduction": ["batchmean", *REDUCTIONS], "log_target": [False, True]},
    ),
    Case(
        "binary_cross_entropy",
        lambda rng, shape: {"input": uniform(rng, shape), "target": uniform(rng, shape)},
        ANY_SHAPE,
        ["input", "target"],
        {"reduction": REDUCTIONS, "weight": [per_last_axis, per_entry, None]},
    ),
    Case(
        "binary_cross_entropy_with_logits",
        lambda rng, shape: {"input": normal(rng, shape), "target": uniform(rng, shape)},
        ANY_SHAPE,
        ["input", "target"],
        {
            "reduction": REDUCTIONS,
            "weight": [per_entry, None, per_last_axis],
            "pos_weight": [per_last_axis, None, per_entry],
        },
    ),
    Case(
        "hinge_embedding_loss",
        lambda rng, shape: {"input": uniform(rng, shape, 0.0, 2.0), "target": signs(rng, shape)},
        ANY_SHAPE,
        ["input"],
        {"reduction": REDUCTIONS, "margin": [1.0, 0.4]},
    ),
    Case("multilabel_margin_loss", listed, [(4, 5), (5,)], ["input"], {"reduction": REDUCTIONS}),
    Case(
        "multilabel_soft_margin_loss",
        lambda rng, shape: {"input": normal(rng, shape), "target": single(rng.integers(0, 2, shape))},
        [(3, 4), (5,), (2, 3, 2)],
        ["input"],
        {"reduction": REDUCTIONS, "weight": [per_last_axis, None, per_entry]},
    ),
    Case(
        "soft_margin_loss",
        lambda rng, shape: {"input": normal(rng, shape), "target": signs(rng, shape)},
        ANY_SHAPE,
        ["input"],
        {"reduction": REDUCTIONS},
    ),
    Case(
        "multi_margin_loss",
        labelled,
        [(4, 5), (5,)],
        ["input"],
        {"reduction": REDUCTIONS, "p": [2, 1], "margin": [0.7, 1.0], "weight": [per_class, None]},
    ),
    Case(
        "cosine_embedding_loss",
        lambda rng, shape: {
            "input1": normal(rng, shape),
            "input2": normal(rng, shape),
            "target": signs(rng, shape[:-1]),
        },
        [(5, 3), (3,)],
        ["input1", "input2"],
        {"reduction": REDUCTIONS, "margin": [0, 0.3, -0.2]},
    ),
    Case(
        "margin_ranking_loss",
        lambda rng, shape: {"input1": normal(rng, shape), "input2": normal(rng, shape), "target": signs(rng, shape)},
        ANY_SHAPE,
        ["input1", "input2"],
        {"reduction": REDUCTIONS, "margin": [0.5, 0]},
    ),
    Case(
        "triplet_margin_loss",
        lambda rng, shape: {k: normal(rng, shape) for k in ("anchor", "positive", "negative")},
        [(4, 3), (3,), (2, 3, 2)],
        ["anchor", "positive", "negative"],
        {
            "reduction": REDUCTIONS,
            "margin": [2.0, 1.0],
            "p": [2, 1, 3.5, INF, 0.5],
            "eps": [1e-6, 0.1],
            "swap": [True, False],
        },
    ),
    Case(
        "triplet_margin_with_distance_loss",
        lambda rng, shape: {k: normal(rng, shape) for k in ("anchor", "positive", "negative")},
        [(4, 3), (3,), (2, 3, 2)],
        ["anchor", "positive", "negative"],
        {
            "reduction": REDUCTIONS,
            "distance_function": [None, cosine_like],
            "margin": [2.0, 1.0],
            "swap": [False, True],
        },
    ),
    Case(
        "ctc_loss",
        frames,
        [("padded", (4,)), ("row", (3,)), ("padded", ())],
        ["log_probs"],
        {"reduction": REDUCTIONS, "blank": [0, 3], "zero_infinity": [False, True]},
    ),
]

IDS = [case.name + "-" * i for i, case in enumerate(CASES)]


def rows_of(case: Case, seed: int, count: int) -> list[tuple[Any, dict[str, Any]]]:
    """Shapes and options, such that `count` rows show each value as often as another; the first row the first ones."""
    rng = np.random.default_rng(seed)

    def column(values):
        laps = [values, *(list(rng.permutation(np.arange(len(values)))) for _ in range(count // len(values)))]
        return [*laps[0], *(values[i] for lap in laps[1:] for i in lap)][:count]

    columns = {k: column(values) for k, values in case.options.items()}
    return [(shape, {k: columns[k][i] for k in columns}) for i, shape in enumerate(column(case.shapes))]


def check(case: Case, shape: Any, options: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = case.draw(rng, shape)
    if options.get("log_target"):
        arrays["target"] = single(np.log(arrays["target"]))
    if "ignore_index" in options and arrays["target"].size > 1:
        arrays["target"].flat[0] = -100 if options["ignore_index"] is None else options["ignore_index"]
    ready = {k: v(rng, arrays) if callable(v) and k != "distance_function" else v for k, v in options.items()}
    slopes = [*case.slopes, *(["var"] if isinstance(arrays.get("var"), np.ndarray) else [])]
    slopes += ["linear_bias"] if ready.get("linear_bias") is not None else []
    agree(case.name, arrays, slopes, ready)


@needs_torch
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_beside_torch(case):
    shape, options = rows_of(case, 0, 1)[0]
    check(case, shape, options, 0)


@needs_torch
@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_option_beside_torch(case):
    count = max(len(case.shapes), *map(len, case.options.values())) + 2
    rows = rows_of(case, 1, count)
    for name, values in case.options.items():
        assert len({id(options[name]) for _, options in rows}) == len({id(v) for v in values}), name
    for seed, (shape, options) in enumerate(rows):
        check(case, shape, options, seed)


@needs_torch
def test_names_arguments_and_defaults_are_torchs():
    for name in F.__all__:
        ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (F, torch.nn.functional))
        assert list(ours) == list(theirs), name
        for k, parameter in theirs.items():
            assert ours[k].kind == parameter.kind, (name, k)
            assert ours[k].default == parameter.default, (name, k)
            assert type(ours[k].default) is type(parameter.default), (name, k)


@needs_torch
def test_every_loss_of_torch_is_here():
    theirs = {n for n in dir(torch.nn.functional) if n.endswith("_loss") or n in ("kl_div", "cross_entropy")}
    theirs |= {n for n in dir(torch.nn.functional) if n.endswith("cross_entropy") or "cross_entropy_with" in n}
    assert theirs == set(F.__all__)
    assert {case.name for case in CASES} == theirs
    for case in CASES:
        known = set(inspect.signature(getattr(F, case.name)).parameters) - {"size_average", "reduce"}
        drawn = set(case.draw(np.random.default_rng(0), case.shapes[0]))
        missing = known - drawn - {k for other in CASES if other.name == case.name for k in other.options}
        assert not missing, f"{case.name}: nothing varies {missing}"


# --- Edges: the list of differences, each shown --------------------------------------------------------------------


def both(name: str, *arrays, slopes=(0,), **options):
    """(value, gradients) of ours in float32 and of torch's, of arrays by position."""
    parameters = list(inspect.signature(getattr(F, name)).parameters)
    named = {k: np.asarray(x) for k, x in zip(parameters, arrays, strict=False)}
    named = {k: single(x) if x.dtype.kind == "f" else x for k, x in named.items()}
    which = [parameters[i] for i in slopes]
    ready = {k: np.asarray(v) if isinstance(v, (list, jax.Array)) else v for k, v in options.items()}
    of_ours, of_theirs = (f(name, named, which, ready) for f in (here, there))
    return (*((value, *(found[k] for k in which)) for value, found in (of_ours, of_theirs)),)


@needs_torch
def test_a_mean_over_nothing_is_0():
    nothing = np.asarray([-100, -100])
    x = np.asarray([[1.0, 2.0], [3.0, 4.0]])
    for name, arrays in (
        ("cross_entropy", (x, nothing)),
        ("nll_loss", (-x, nothing)),
        ("linear_cross_entropy", (x, x, nothing)),
        ("mse_loss", (x[:0], x[:0])),
    ):
        (value, slope), (theirs, _) = both(name, *arrays)
        assert value == 0, name
        assert not np.any(slope), name
        assert np.isnan(theirs), name
    (value, slope), (theirs, _) = both("l1_loss", x, 2 * x, weight=np.zeros((2, 2)))
    assert value == 0
    assert not np.any(slope)
    assert np.isnan(theirs)


def test_half_precision_gives_float32():
    logits = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], jnp.bfloat16)
    labels = jnp.asarray([0, 1])
    value, slope = jax.jit(jax.value_and_grad(F.cross_entropy))(logits, labels)
    assert value.dtype == jnp.float32
    assert slope.dtype == jnp.bfloat16
    if torch is not None:
        theirs = torch.nn.functional.cross_entropy(torch.ones(2, 2).bfloat16(), torch.tensor([0, 1]))
        assert theirs.dtype == torch.bfloat16


@needs_torch
def test_confident_rows_keep_their_digits():
    (value, slope), _ = both("cross_entropy", [[0.0, -69.0]], [0])
    assert value == pytest.approx(np.exp(-69.0), rel=1e-6)
    assert slope[0, 0] == pytest.approx(-np.exp(-69.0), rel=1e-6)
    assert torch.nn.functional.cross_entropy(torch.tensor([[0.0, -69.0]]), torch.tensor([0])) == 0
    (value, _), _ = both("binary_cross_entropy_with_logits", [-20.0], [0.0])
    assert value == pytest.approx(np.exp(-20.0), rel=1e-6)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor([-20.0]), torch.tensor([0.0]))
    assert theirs == 0


@needs_torch
def test_infinite_logits():
    (value, slope), (theirs, _) = both("cross_entropy", [[1.0, 2.0, -INF]], [[0.5, 0.5, 0.0]])
    assert value == pytest.approx(np.log1p(np.exp(-1.0)) + 0.5, rel=1e-6)
    assert np.all(np.isfinite(slope))
    assert np.isnan(theirs)
    (value, slope), (theirs, expected) = both("cross_entropy", [[1.0, 2.0, -INF]], [0])
    np.testing.assert_allclose(value, theirs, rtol=1e-6)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-7)
    logits = [INF, -INF, INF, -INF]
    (value, slope), (theirs, _) = both("binary_cross_entropy_with_logits", logits, [1.0, 0, 0, 1], reduction="none")
    assert value.tolist() == [0, 0, INF, INF]
    assert np.all(np.isfinite(slope))
    assert np.isnan(theirs[:2]).all()
    both_classes = both("multilabel_soft_margin_loss", [[INF, -INF]], [[1.0, 0.0]])
    assert both_classes[0][0] == 0
    (value, slope), (theirs, expected) = both("soft_margin_loss", [-800.0, 3.0], [1.0, 1.0], reduction="none")
    assert value[0] == 800
    assert slope[0] == pytest.approx(np.cos(1) * -1)
    assert np.isinf(theirs[0])
    assert np.isnan(expected[0])


@needs_torch
def test_a_logarithm_of_a_probability_is_held_at_minus_100():
    p, t = [0.0, 1.0, 0.0, 1.0, 1e-20], [1.0, 0.0, 0.0, 1.0, 1.0]
    ours, theirs = both("binary_cross_entropy", p, t, reduction="none", slopes=(0, 1))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert ours[0][:2].tolist() == [100, 100]
    scale = cotangent((5,))
    np.testing.assert_allclose(ours[1][:2], theirs[1][:2], rtol=1e-6)
    np.testing.assert_allclose(ours[1] / scale, [-1e12, 1e12, 1, -1, -1e20], rtol=1e-6)
    assert theirs[1][4] / scale[4] == pytest.approx(-1e12)
    assert np.all(np.isfinite(ours[2]))
    masked = F.binary_cross_entropy(jnp.asarray([0.0, 0.5]), jnp.asarray([1.0, 1.0]), weight=jnp.asarray([0.0, 1.0]))
    assert masked == pytest.approx(np.log(2) / 2)
    assert np.isnan(F.binary_cross_entropy(jnp.asarray(1.5), jnp.asarray(1.0)))
    x = np.linspace(-60, 60, 9, dtype="float32")
    slope = jax.jit(jax.grad(lambda x: F.binary_cross_entropy(jax.nn.sigmoid(x), jnp.ones(9), reduction="sum")))(x)
    np.testing.assert_allclose(slope, -1 / (1 + np.exp(x.astype("float64"))), rtol=1e-5, atol=1e-7)


@needs_torch
def test_divergences_at_nothing():
    (value, slope), (theirs, _) = both("kl_div", [-INF, -1.0], [0.0, 0.0], reduction="none")
    assert value.tolist() == [0, 0]
    assert np.all(slope == 0)
    assert np.isnan(theirs[0])
    (value, _), (theirs, _) = both("kl_div", [-INF, -1.0], [-INF, -INF], log_target=True, reduction="none")
    assert value.tolist() == [0, 0]
    assert np.isnan(theirs).all()
    assert F.kl_div(jnp.zeros((0, 3)), jnp.zeros((0, 3)), reduction="batchmean") == 0


@needs_torch
def test_poisson_edges():
    ours, theirs = both(
        "poisson_nll_loss", [0.5, -1.0, 0.2], [0.0, 1.0, 2.0], full=True, reduction="none", slopes=(0, 1)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
    np.testing.assert_allclose(ours[2][1:], theirs[2][1:], rtol=1e-6)
    assert np.isfinite(ours[2][0])
    assert np.isnan(theirs[2][0])
    (value, _), (theirs, _) = both("poisson_nll_loss", [0.0], [0.0], log_input=False, eps=0.0)
    assert value == 0
    assert np.isnan(theirs)
    (value, _), (theirs, _) = both("poisson_nll_loss", [np.log(1e6)], [1e6], full=True)
    assert value == pytest.approx(float(theirs), rel=1e-5)  # beside torch in float64
    x, t = torch.tensor([np.log(1e6)]).float(), torch.tensor([1e6])
    assert abs(float(torch.nn.functional.poisson_nll_loss(x, t, full=True)) - theirs) > 0.1


@needs_torch
def test_the_clamp_of_a_variance_has_no_gradient():
    ours, theirs = both("gaussian_nll_loss", [0.5, 1.0], [0.0, 0.0], [0.0, 1.0], slopes=(0, 2), eps=1e-3)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert ours[2][0] < 0  # not the 0 of a clamp
    value = F.gaussian_nll_loss(jnp.asarray([1e20, 0.0]), jnp.zeros(2), jnp.asarray([1e10, 1.0]))
    assert value == pytest.approx((0.5e30 + 0.5 * np.log(1e10)) / 2, rel=1e-6)
    assert np.isnan(F.gaussian_nll_loss(jnp.zeros(2), jnp.zeros(2), jnp.asarray([-1.0, 1.0])))
    with pytest.raises(ValueError, match="negative"):
        torch.nn.functional.gaussian_nll_loss(torch.zeros(2), torch.zeros(2), torch.tensor([-1.0, 1.0]))


@needs_torch
def test_cosines_of_zero_huge_and_tiny_vectors():
    x = np.asarray([[0.0, 0.0], [1e20, 1e20], [1e-25, 0.0]])
    y = np.asarray([[1.0, 0.5], [1e20, 0.0], [1e-25, 1e-25]])
    (value, slope), (theirs, expected) = both("cosine_embedding_loss", x, y, [1.0, 1.0, 1.0], reduction="none")
    np.testing.assert_allclose(value, [1, 1 - np.sqrt(0.5), 1 - np.sqrt(0.5)], rtol=1e-6)
    assert not np.any(slope[0])
    assert np.max(np.abs(expected[0])) > 1e5
    assert abs(theirs[2] - value[2]) > 0.1  # its epsilon is all there is of a length of 1e-25


@needs_torch
def test_ties():
    """Gradients where a maximum has two sides."""
    ours, theirs = both("margin_ranking_loss", [1.0, 0.5], [1.0, 0.5], [1.0, -1.0], slopes=(0, 1))
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected)
    assert ours[1].tolist() == [-0.5, 0.5]
    triplet = [[0.0, 0.0]], [[3.0, 4.0]], [[6.0, 0.0]]
    for options in ({"eps": 0.0}, {"eps": 0.0, "swap": True}):
        ours, theirs = both("triplet_margin_loss", *triplet, slopes=(0, 1, 2), margin=1.0, **options)
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert np.any(ours[1])
    (_, slope), (_, expected) = both("hinge_embedding_loss", [1.0, 0.5], [-1.0, -1.0])
    assert slope.tolist() == [0, -0.5]
    assert expected.tolist() == [-0.5, -0.5]
    (_, slope), (_, expected) = both("cosine_embedding_loss", [[1.0, 0.0]], [[0.0, 1.0]], [-1.0])
    assert not np.any(slope)
    assert np.any(expected)
    for name, arrays in (
        ("multi_margin_loss", ([[1.0, 0.0, 0.5]], [0])),
        ("multilabel_margin_loss", ([[1.0, 0.0, 0.5]], [[0, -1, 2]])),
        ("l1_loss", ([1.0, 2.0], [1.0, 1.0])),
        ("huber_loss", ([2.0, 1.0], [1.0, 1.0])),
        ("smooth_l1_loss", ([2.0, 1.0], [1.0, 1.0])),
    ):
        (_, slope), (_, expected) = both(name, *arrays)
        np.testing.assert_allclose(slope, expected, err_msg=name)


@needs_torch
def test_equal_vectors_of_a_triplet():
    triplet = [[1.0, 2.0]], [[1.0, 2.0]], [[1.5, 2.0]]
    ours, theirs = both("triplet_margin_loss", *triplet, slopes=(0, 1, 2))
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    triplet = [jnp.asarray(x) for x in triplet]
    for p in (1.0, 3.0):
        slope = jax.jit(jax.grad(lambda a, p_, n, p=p: F.triplet_margin_loss(a, p_, n, p=p, eps=0.0), 1))(*triplet)
        assert slope.tolist() == [[0, 0]]
    far = jnp.asarray([[3e25, 4e25]])
    assert F.triplet_margin_loss(far, -far, far, p=3.0) == pytest.approx(2e25 * (27 + 64) ** (1 / 3), rel=1e-6)


@needs_torch
def test_listed_classes():
    (value, _), (theirs, _) = both("multilabel_margin_loss", [[1.0, 0.5, 0.2]], [[0, 0, -1]])
    assert value == pytest.approx(0.7 / 3, rel=1e-6)
    assert theirs == pytest.approx(2 * 0.7 / 3, rel=1e-6)  # a class that is listed twice
    (value, slope), (theirs, expected) = both("multilabel_margin_loss", [[1.0, 0.5], [0.2, 0.7]], [[-1, 1], [1, 0]])
    assert value == theirs == 0
    assert np.array_equal(slope, expected)
    value, slope = jax.jit(jax.value_and_grad(F.multilabel_margin_loss))(jnp.ones(2), jnp.asarray([0, 5]))
    assert np.isnan(value)
    assert np.isnan(slope).any()
    with pytest.raises(RuntimeError, match="out of range"):
        torch.nn.functional.multilabel_margin_loss(torch.ones(2), torch.tensor([0, 5]))


@needs_torch
def test_a_bad_label_is_nan():
    for name in ("cross_entropy", "nll_loss"):
        value, slope = jax.jit(jax.value_and_grad(getattr(F, name)))(jnp.ones((2, 2)), jnp.asarray([0, 5]))
        assert np.isnan(value), name
        assert np.isnan(slope[1]).any(), name
        with pytest.raises(IndexError):
            getattr(torch.nn.functional, name)(torch.ones(2, 2), torch.tensor([0, 5]))


@needs_torch
def test_other_signs():
    (value, _), (theirs, _) = both("cosine_embedding_loss", [[1.0, 1.0]], [[1.0, 2.0]], [0.0])
    assert theirs == 0
    assert value > 0
    (value, _), (theirs, _) = both("hinge_embedding_loss", [0.3], [0.0])
    assert theirs == pytest.approx(1.0)
    assert value == pytest.approx(0.7)


@needs_torch
@pytest.mark.parametrize("zero_infinity", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_no_alignment(zero_infinity):
    x = log_softmax(normal(np.random.default_rng(0), (2, 2, 3)), -1)
    lengths = {"input_lengths": [2, 2], "target_lengths": [2, 2], "reduction": "none"}
    arrays = x, np.asarray([[1, 1], [1, 2]])
    (value, slope), (theirs, expected) = both("ctc_loss", *arrays, **lengths, zero_infinity=zero_infinity)
    np.testing.assert_allclose(value, theirs, rtol=1e-5)
    assert value[0] == (0 if zero_infinity else INF)
    assert not np.any(slope[:, 0])
    np.testing.assert_allclose(slope[:, 1], expected[:, 1], rtol=1e-5, atol=1e-6)
    assert np.isnan(expected[:, 0]).all() == (not zero_infinity)


@needs_torch
@pytest.mark.exhaustive
def test_alignments_of_what_is_not_normalised():
    """Ours is that of the normalised ones, and so is torch's gradient."""
    x = normal(np.random.default_rng(0), (5, 1, 3))
    lengths = {"input_lengths": [5], "target_lengths": [2], "reduction": "none"}
    ours, theirs = both("ctc_loss", x, np.asarray([[1, 2]]), **lengths)
    normalised, _ = both("ctc_loss", log_softmax(x, -1), np.asarray([[1, 2]]), **lengths)
    np.testing.assert_allclose(ours[0], normalised[0], rtol=1e-5)
    assert abs(ours[0] - theirs[0]) > 0.1


@needs_torch
@pytest.mark.exhaustive
def test_one_sequence():
    """Without a batch, its length as [1]; and without labels."""
    x = log_softmax(normal(np.random.default_rng(0), (4, 3)), -1)
    for targets, count in ((np.asarray([1, 2]), 2), (np.asarray([], np.int64), 0)):
        ours, theirs = both("ctc_loss", x, targets, input_lengths=[4], target_lengths=[count])
        np.testing.assert_allclose(ours[0], np.squeeze(theirs[0]), rtol=1e-5)
    in_a_row = F.ctc_loss(jnp.asarray(x)[:, None], jnp.zeros((0,), int), (4,), (0,))
    np.testing.assert_allclose(in_a_row, ours[0], rtol=1e-5)
    # A blank among the labels, and more frames than there are.
    x = jnp.zeros((4, 3, 3))
    value = F.ctc_loss(x, jnp.asarray([[1], [0], [1]]), (4, 4, 5), (1, 1, 1), reduction="none")
    assert np.isnan(value).tolist() == [False, True, True]


# --- Without torch ------------------------------------------------------------------------------------------------


def test_nothing_here_imports_torch():
    for file in pathlib.Path(inspect.getfile(F)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert "torch" not in [name.split(".")[0] for name in names], file


@pytest.mark.exhaustive
def test_works_where_torch_is_not_installed():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import jax.numpy as jnp\n"
        "from jaxloss.compat import torch as F\n"
        "print(float(F.cross_entropy(jnp.zeros((2, 4)), jnp.asarray([1, -100]))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(np.log(4))


def test_every_function_says_which_loss_it_is():
    package = importlib.import_module("jaxloss.losses")
    for name in F.__all__:
        doc = inspect.getdoc(getattr(F, name))
        spelt = [word.split("(")[0] for word in doc.split("`jl.")[1:]]
        assert spelt, name
        assert all(hasattr(package, word.split("`")[0]) for word in spelt), (name, spelt)
    files = pathlib.Path(inspect.getfile(F)).parent.glob("*.py")
    assert set(F.__all__) == {
        name
        for file in files
        if file.stem not in ("__init__", "arguments")
        for name in importlib.import_module(f"jaxloss.compat.torch.{file.stem}").__all__
    }


def test_a_class_weight_divides_where_torch_divides():
    """By the sum of the weights: cross_entropy, nll_loss, l1_loss, mse_loss; by the count: all others."""
    x, labels, weight = jnp.asarray([[0.0, 1.0], [0.0, 1.0]]), jnp.asarray([1, 0]), jnp.asarray([5.0, 4.0])
    due = np.log1p(np.exp(-1.0)) + 5 / 9
    assert F.cross_entropy(x, labels, weight=weight) == pytest.approx(due, rel=1e-6)
    assert F.linear_cross_entropy(x, jnp.eye(2), labels, weight=weight) == pytest.approx(due, rel=1e-6)
    assert F.multi_margin_loss(x, labels, weight=weight) == pytest.approx((0 * 4 + 5) / 2, rel=1e-6)
    halves = jnp.full((2, 2), 0.5)
    assert F.mse_loss(x, x + 1, weight=halves) == pytest.approx(1)
    assert F.l1_loss(x, x + 1, weight=halves) == pytest.approx(1)
    assert F.huber_loss(x, x + 1, weight=halves) == pytest.approx(0.25)
    assert F.binary_cross_entropy_with_logits(0 * x, x, weight=halves[0]) == pytest.approx(np.log(2) / 2)


def test_small_and_unsigned_labels():
    """-100 as a uint8 is 156, which is a class."""
    labels = jnp.asarray([156, 3], "uint8")
    assert F.nll_loss(jnp.full((2, 200), -2.0), labels, reduction="none").tolist() == [2, 2]


def test_traced_options_and_batches():
    x, labels = jnp.asarray([[0.0, 1.0], [2.0, 1.0]]), jnp.asarray([1, 0])
    value = jax.jit(F.cross_entropy)(x, labels, None, None, 0, None, label_smoothing=0.1)
    assert value == pytest.approx(np.log1p(np.exp(-1.0)) + 0.05, rel=1e-6)
    value = jax.jit(lambda beta: F.smooth_l1_loss(x, x + 3, beta=beta))(2.0)
    assert value == pytest.approx(2)
    value = jax.jit(jax.vmap(F.multilabel_margin_loss))(jnp.stack([x, x]), jnp.asarray([[[1, -1], [0, -1]]] * 2))
    assert value.tolist() == [0, 0]
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((4, 2, 3), "float32"), ((2, 2), "int32"))]
    length = jax.ShapeDtypeStruct((), "int32")
    assert jax.eval_shape(F.ctc_loss, *shapes, (length, length), (length, length)).shape == ()


ONE = jnp.ones((3,))
ROWS = jnp.ones((3, 2))
LABELS = jnp.asarray([0, 1, 0])
REFUSALS = [
    (lambda: F.mse_loss(ROWS, ONE), ValueError, "`input` [3, 2] and `target` [3] must have one shape"),
    (lambda: F.l1_loss(ONE, ONE, weight=jnp.ones((1,))), ValueError, "`weight` [1]"),
    (lambda: F.l1_loss(LABELS, ONE), TypeError, "`input` must be floating, got int32"),
    (lambda: F.mse_loss([1.0], ONE), TypeError, "`input` must be an array"),
    (lambda: F.mse_loss(ONE, 1j * ONE), TypeError, "`target` must be real"),
    (lambda: F.mse_loss(ONE, ONE, reduction="batchmean"), ValueError, "`reduction` must be one of 'none', 'mean', 'su"),
    (lambda: F.l1_loss(ONE, ONE, reduction="partial"), ValueError, "got 'partial'"),
    (lambda: F.cross_entropy(ROWS, LABELS, size_average=True), ValueError, "`size_average` must be None, got True"),
    (lambda: F.nll_loss(ROWS, LABELS, reduce=False), ValueError, "`reduce` must be None, got False"),
    (lambda: F.kl_div(ONE, ONE, reduction="avg"), ValueError, "'batchmean'"),
    (lambda: F.smooth_l1_loss(ONE, ONE, beta=-1.0), ValueError, "`beta` must be greater than 0, got -1.0"),
    (lambda: F.huber_loss(ONE, ONE, delta=0.0), ValueError, "`delta` must be greater than 0"),
    (lambda: F.gaussian_nll_loss(ROWS, ROWS, jnp.ones((1, 1))), ValueError, "`var` [1, 1] must be a number or have"),
    (lambda: F.gaussian_nll_loss(ROWS, ROWS, jnp.ones((2,))), ValueError, "`var` [2]"),
    (lambda: F.cross_entropy(jnp.ones(()), LABELS), ValueError, "`input` [] must have a class axis"),
    (lambda: F.cross_entropy(ROWS, jnp.asarray([0, 1])), ValueError, "`target` [2] must be `input` [3, 2] without"),
    (lambda: F.cross_entropy(ROWS, ONE), TypeError, "`target` must be integer, got float32"),
    (lambda: F.cross_entropy(ROWS, jnp.ones((3, 2), int)), TypeError, "`target` must be floating"),
    (lambda: F.cross_entropy(ROWS, ROWS, ignore_index=1), ValueError, "`ignore_index` 1 is of class indices"),
    (lambda: F.cross_entropy(ROWS, LABELS, label_smoothing=1.5), ValueError, "`label_smoothing` must be in [0, 1]"),
    (lambda: F.cross_entropy(ROWS, LABELS, weight=ONE), ValueError, "`weight` [3] must have one entry for each of th"),
    (lambda: F.multi_margin_loss(ROWS, LABELS, p=3), ValueError, "`p` must be 1 or 2, got 3"),
    (lambda: F.multi_margin_loss(ROWS[None], LABELS), ValueError, "must be [C] or [N, C]"),
    (lambda: F.multilabel_margin_loss(ROWS, LABELS), ValueError, "`target` [3]"),
    (lambda: F.multilabel_soft_margin_loss(ONE[0], ONE[0]), ValueError, "must have a last axis of classes"),
    (lambda: F.binary_cross_entropy(ROWS, ROWS, weight=ONE), ValueError, "`weight` [3] must broadcast to `input`"),
    (lambda: F.binary_cross_entropy(ONE, ONE, weight=ROWS), ValueError, "`weight` [3, 2] must broadcast"),
    (
        lambda: F.binary_cross_entropy_with_logits(ROWS, ROWS, pos_weight=ONE),
        ValueError,
        "`pos_weight` [3] must broadcast to `input` [3, 2]",
    ),
    (lambda: F.linear_cross_entropy(ROWS, ROWS, LABELS, options=object()), ValueError, "`options` must be None"),
    (lambda: F.linear_cross_entropy(ROWS, jnp.ones((4, 3)), LABELS), ValueError, "one last axis, of features"),
    (lambda: F.linear_cross_entropy(ROWS[0], ROWS[None], LABELS), ValueError, "must be [D] and [C, D]"),
    (lambda: F.linear_cross_entropy(ROWS, ROWS, LABELS, linear_bias=ONE[:2]), ValueError, "`linear_bias` [2]"),
    (
        lambda: F.linear_cross_entropy(ROWS, ROWS, jnp.ones((3, 3)), ignore_index=0),
        ValueError,
        "`target` holds probabilities",
    ),
    (lambda: F.cosine_embedding_loss(ROWS, ROWS, ROWS), ValueError, "`target` [3, 2] must be `input1` [3, 2] without"),
    (lambda: F.cosine_embedding_loss(ROWS[None], ROWS[None], ROWS), ValueError, "must be [D] or [N, D]"),
    (lambda: F.margin_ranking_loss(ONE, ONE, ROWS), ValueError, "`target` [3, 2]"),
    (lambda: F.triplet_margin_loss(ROWS, ROWS, ROWS, margin=0.0), ValueError, "`margin` must be greater than 0"),
    (lambda: F.triplet_margin_loss(ROWS, ROWS, ROWS, p=0), ValueError, "`p` must be greater than 0, got 0"),
    (lambda: F.triplet_margin_loss(ROWS, ROWS, ONE), ValueError, "`negative` [3]"),
    (lambda: F.triplet_margin_loss(ONE[0], ONE[0], ONE[0]), ValueError, "must have a last axis of components"),
    (
        lambda: F.triplet_margin_with_distance_loss(ROWS, ROWS, ROWS, margin=-1.0),
        ValueError,
        "`margin` must be greater than 0",
    ),
    (lambda: F.ctc_loss(ONE, LABELS, (3,), (1,)), ValueError, "`log_probs` [3] must be [T, C] or [T, N, C]"),
    (lambda: F.ctc_loss(ROWS, LABELS, 3.0, 1), TypeError, "`input_lengths` must be integer"),
    (lambda: F.ctc_loss(ROWS[:, None], LABELS[None], (3, 3), (1,)), ValueError, "`input_lengths` [2] must be [1]"),
    (lambda: F.ctc_loss(ROWS[:, None], LABELS, (3,), (2,)), ValueError, "`targets` [3] in a row must have as many"),
    (lambda: F.ctc_loss(ROWS, LABELS[None], 3, 1), ValueError, "`targets` [1, 3] must be [S]"),
    (lambda: jax.jit(F.ctc_loss)(ROWS[:, None], LABELS, (3,), jnp.asarray([3])), TypeError, "known when compiling"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal[2][:30].replace("`", ""))
def test_refusals_in_words(refusal):
    call, error, words = refusal
    with pytest.raises(error) as said:
        call()
    assert words in str(said.value)
