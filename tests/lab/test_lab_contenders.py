"""Every contender feeds the loss of its name, predicts what it says, and prints as the program that it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss import catalogue
from jaxloss.lab.contenders import DEFAULT_LOSSES, RECIPES, contender
from jaxloss.lab.naming import RequestError
from jaxloss.lab.optimizers import DEFAULT_OPTIMIZERS, OPTIMIZERS, optimizer_named

ROWS, CLASSES = 6, 4
SCORES = np.random.default_rng(0).normal(0, 2, (ROWS, CLASSES)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1, 0], np.int32)
NUMBERS = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
ALL = [(task, name) for task, recipes in RECIPES.items() for name in recipes]
WITH_OPTIONS = [
    ("classification", "softmax_cross_entropy:label_smoothing=0.1:z_loss=0.01"),
    ("classification", "softmax_focal:gamma=0.5"),
    ("classification", "entmax:alpha=1.3"),
    ("classification", "sigmoid_cross_entropy:positive_weight=3"),
    ("classification", "sigmoid_focal:alpha=0.25"),
    ("regression", "huber:delta=0.3"),
    ("regression", "smooth_l1:beta=0.5"),
]


def given(task):
    """Scores and y of a task, and how many outputs that is."""
    return (SCORES, LABELS, CLASSES) if task == "classification" else (SCORES[:, :1], NUMBERS, 1)


@pytest.mark.parametrize(("task", "name"), ALL + WITH_OPTIONS)
def test_the_printed_call_is_the_loss_that_trains(task, name):
    scores, y, outputs = given(task)
    made = contender(name, task)
    printed = eval(made.source("scores", "y", outputs), {"jl": jl, "jax": jax, "scores": jnp.asarray(scores), "y": y})
    trained = made.loss(jnp.asarray(scores), jnp.asarray(y))
    assert isinstance(trained, jl.Mean)
    np.testing.assert_allclose(trained.value, printed.value, rtol=1e-6)


@pytest.mark.parametrize(("task", "name"), WITH_OPTIONS)
def test_options_reach_the_loss(task, name):
    scores, y, _ = given(task)
    plain = contender(name.partition(":")[0], task).loss(jnp.asarray(scores), jnp.asarray(y)).value
    assert abs(contender(name, task).loss(jnp.asarray(scores), jnp.asarray(y)).value - plain) > 1e-3


def bisected(scores, alpha):
    """entmax by its definition: the threshold at which the powers sum to 1, by halving."""
    z = (alpha - 1) * scores.astype(np.float64)
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        tau = (low + high) / 2
        total = (np.maximum(z - tau, 0) ** (1 / (alpha - 1))).sum()
        low, high = (tau, high) if total > 1 else (low, tau)
    return np.maximum(z - tau, 0) ** (1 / (alpha - 1))


def softmax(scores):
    e = np.exp(scores.astype(np.float64))
    return e / e.sum()


def sigmoids(scores):
    s = 1 / (1 + np.exp(-scores.astype(np.float64)))
    return s / s.sum()


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("softmax_cross_entropy", softmax),
        ("softmax_focal", softmax),
        ("squared_error", softmax),
        ("hinge", softmax),
        ("sparsemax", lambda z: bisected(z, 2.0)),
        ("entmax", lambda z: bisected(z, 1.5)),
        ("entmax:alpha=1.3", lambda z: bisected(z, 1.3)),
        ("sigmoid_cross_entropy", sigmoids),
        ("sigmoid_focal", sigmoids),
    ],
)
def test_class_probabilities(name, by_hand):
    probabilities = contender(name, "classification").predictions(jnp.asarray(SCORES))
    np.testing.assert_allclose(probabilities, [by_hand(row) for row in SCORES], atol=1e-6)


def test_a_row_of_nothing_but_noes_still_has_probabilities():
    probabilities = contender("sigmoid_cross_entropy", "classification").predictions(jnp.array([[-200.0, -201.0]]))
    np.testing.assert_allclose(probabilities[0], softmax(np.array([1.0, 0.0])), rtol=1e-5)


def test_a_regression_predicts_its_score():
    assert contender("huber", "regression").predictions(jnp.array([[1.5], [2.5]])).tolist() == [1.5, 2.5]


def test_every_recipe_is_a_loss_of_the_catalogue_with_those_options():
    for _, name in ALL:
        assert catalogue.entry(name).name == name
    for recipes in RECIPES.values():
        for name, recipe in recipes.items():
            assert set(recipe.options) <= set(catalogue.entry(name).domains) | {"alpha"}


def test_the_defaults_are_known():
    for task, names in DEFAULT_LOSSES.items():
        assert len(names) >= 4
        assert set(names) <= set(RECIPES[task])
    assert set(DEFAULT_OPTIMIZERS) <= set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sofmax_focal", r"no classification loss is named 'sofmax_focal'; did you mean softmax_focal"),
        ("huber", r"huber is not a loss that classification is compared by; those are: softmax_cross_entropy,"),
        ("softmax_focal:gama=1", r"softmax_focal has no option 'gama'; did you mean gamma\?; it takes gamma"),
        ("sparsemax:alpha=1", r"sparsemax has no option 'alpha'; it takes none here"),
        ("softmax_focal:gamma=big", r"gamma of softmax_focal must be a number, .*got 'gamma=big'"),
        ("softmax_focal:gamma", r"gamma of softmax_focal must be a number, .*got 'gamma'"),
        ("softmax_focal:gamma=True", r"gamma of softmax_focal must be a number"),
        ("softmax_focal:gamma=-1", r"`gamma` of softmax_focal is -1.0, outside \[0, inf\)"),
        ("entmax:alpha=1", r"`alpha` of entmax must be > 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, message):
    with pytest.raises(RequestError, match=message):
        contender(text, "classification")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_printed_optimizer_is_the_one_that_trains(name):
    import optax

    made = optimizer_named(name)
    assert len(made.learning_rates) == 5
    printed = eval(made.source.format(learning_rate=0.01), {"optax": optax})
    params = {"w": jnp.array([1.0, -2.0])}
    gradient = {"w": jnp.array([0.3, 0.1])}
    steps = []
    for optimizer in (printed, made.make(jnp.float32(0.01))):
        state = optimizer.init(params)
        for _ in range(2):  # the second shows the momentum
            updates, state = optimizer.update(gradient, state, params)
        steps.append(updates["w"])
    np.testing.assert_allclose(steps[0], steps[1], rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(
        RequestError, match=r"no optimizer is named 'adm'; did you mean adam or adamw\?; known: adam, sg"
    ):
        optimizer_named("adm")
