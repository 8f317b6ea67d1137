"""A first program and the classic optimizers: the step against the papers' formulas, in NumPy and float64."""

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_diabetes

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Real rows. The targets are not centred: the bias would have a gradient of 0, and adam follows its rounding noise.
X, Y = load_diabetes(return_X_y=True)
X = np.float32(X / X.std(0))
Y = np.float32(Y / Y.std())[:, None]
START = np.float32(np.random.default_rng(0).uniform(-1, 1, (10, 1)) / np.sqrt(10))


def loss_fn(params, batch):
    predictions = batch["x"] @ params["w"] + params["b"][None]
    return jl.squared_error(predictions, batch["y"], reduction="partial")


def gradient(w, b):
    """Of mean((x w + b - y)^2), by hand."""
    x, y = X.astype(np.float64), Y.astype(np.float64)
    slope = 2 * (x @ w + b - y) / y.size
    return np.concatenate([x.T @ slope, slope.sum(0, keepdims=True)])


@pytest.mark.parametrize("parts", [1, 13])
def test_linear_mse_one_step_of_sgd(parts):
    """PyTorch's first program: Linear(10, 1), MSELoss, SGD(lr=0.1), one step."""
    bias = np.array([0.3], np.float32)
    step = jl.make_train_step(loss_fn, optax.sgd(0.1), accumulate=parts)
    state, metrics = step(step.init({"w": START, "b": bias}), {"x": X, "y": Y})

    w, b = START.astype(np.float64), bias.astype(np.float64)
    g = gradient(w, b)
    np.testing.assert_allclose(metrics.loss, ((X @ w + b - Y) ** 2).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, np.sqrt((g**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(metrics.update_norm, 0.1 * np.sqrt((g**2).sum()), rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], w - 0.1 * g[:10], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(state.params["b"], b - 0.1 * g[10], rtol=1e-6, atol=1e-7)
    assert int(state.step) == 1


# Each optimizer is a generator: it is sent a gradient and gives what to add to the params. The defaults are optax's.


def sgd(lr):
    change = None
    while True:
        g = yield change
        change = -lr * g


def momentum(lr, mu=0.9):
    """Polyak (1964), in the form of PyTorch and optax: the velocity adds gradients, lr multiplies it afterwards."""
    v, change = 0.0, None
    while True:
        g = yield change
        v = mu * v + g
        change = -lr * v


def nesterov(lr, mu=0.9):
    """Nesterov (1983), in the form of Sutskever et al. (2013) as PyTorch and optax write it."""
    v, change = 0.0, None
    while True:
        g = yield change
        v = mu * v + g
        change = -lr * (g + mu * v)


def rmsprop(lr, decay=0.9, eps=1e-8, outside=False):
    """Tieleman and Hinton (2012). The slide has no eps: optax puts it inside the root, PyTorch outside."""
    v, change = 0.0, None
    while True:
        g = yield change
        v = decay * v + (1 - decay) * g**2
        change = -lr * g / (np.sqrt(v) + eps if outside else np.sqrt(v + eps))


def adagrad(lr, start=0.1, eps=1e-7, outside=False):
    """Duchi, Hazan and Singer (2011). optax starts the sum at 0.1; the paper and PyTorch at 0."""
    s, change = start, None
    while True:
        g = yield change
        s = s + g**2
        change = -lr * g / (np.sqrt(s) + eps if outside else np.sqrt(s + eps))


def adam(lr, b1=0.9, b2=0.999, eps=1e-8):
    """Kingma and Ba (2015), algorithm 1."""
    m, v, t, change = 0.0, 0.0, 0, None
    while True:
        g = yield change
        t += 1
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        change = -lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


# An eps as large as here tells where it stands.
PAIRS = {
    "sgd": (optax.sgd(0.1), sgd(0.1)),
    "momentum": (optax.sgd(0.05, momentum=0.9), momentum(0.05)),
    "nesterov": (optax.sgd(0.05, momentum=0.8, nesterov=True), nesterov(0.05, 0.8)),
    "rmsprop": (optax.rmsprop(0.05), rmsprop(0.05)),
    "rmsprop, eps": (optax.rmsprop(0.05, decay=0.8, eps=0.03), rmsprop(0.05, 0.8, 0.03)),
    "rmsprop as PyTorch's": (
        optax.rmsprop(0.05, decay=0.99, eps=0.03, eps_in_sqrt=False),
        rmsprop(0.05, 0.99, 0.03, outside=True),
    ),
    "adagrad": (optax.adagrad(0.3), adagrad(0.3)),
    "adagrad, eps": (optax.adagrad(0.3, initial_accumulator_value=0.5, eps=0.2), adagrad(0.3, 0.5, 0.2)),
    # PyTorch's eps is 1e-10 outside the root, which a float32 sum does not notice; nor does it notice 0 inside.
    "adagrad as PyTorch's": (
        optax.adagrad(0.3, initial_accumulator_value=0.0, eps=0.0),
        adagrad(0.3, 0.0, 1e-10, outside=True),
    ),
    "adam": (optax.adam(0.1), adam(0.1)),
    "adam, eps": (optax.adam(0.1, b1=0.8, b2=0.99, eps=0.1), adam(0.1, 0.8, 0.99, 0.1)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_the_papers(name):
    tx, formula = PAIRS[name]
    step = jl.make_train_step(loss_fn, tx)

    def one(state, _):
        state, _ = step.pure(state, {"x": X, "y": Y})
        return state, state.params

    start = {"w": START, "b": np.zeros(1, np.float32)}
    _, path = jax.jit(lambda: jax.lax.scan(one, step.init(start), None, length=25))()

    next(formula)
    params, expected = np.concatenate([START, np.zeros((1, 1))]).astype(np.float64), []
    for _ in range(25):
        params = params + formula.send(gradient(params[:10], params[10]))
        expected.append(params)
    found = np.concatenate([path["w"], path["b"][:, None]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
