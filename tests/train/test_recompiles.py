"""A step that compiles again names what is new; one that does not says nothing (warnings are errors here)."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import reduce
from jaxloss.train import RecompilationWarning, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")


def loss_fn(params, batch):
    return reduce((batch["x"] * params["w"]) ** 2, reduction="partial")


def started(**options):
    step = make_train_step(loss_fn, optax.adam(0.1), **options)
    state, _ = step(step.init({"w": 1.0}), {"x": np.ones((32, 3), np.float32)})
    return step, state


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            {"x": np.ones((6, 3), np.float32)},
            r"\(time 2\): `batch\['x'\]` was float32\[32, 3\], now float32\[6, 3\]\. Pad",
        ),
        ({"x": np.ones((32, 3), np.float16)}, r"`batch\['x'\]` was float32\[32, 3\], now float16\[32, 3\]"),
        ({"x": np.ones((32, 3), np.float32), "id": np.ones(32)}, r"`batch\['id'\]` is new"),
        ({"x": jnp.float32(2.0)}, r"now float32\[\]\."),
        ({"x": 2.0}, r"now float32\[\] \(a Python number\)"),
    ],
)
def test_what_is_new_is_named(batch, words):
    step, state = started()
    with pytest.warns(RecompilationWarning, match=words):
        step(state, batch)


def test_every_time_counts_and_old_shapes_are_free():
    step, state = started()
    for before, rows, time in ((32, 6, 2), (6, 5, 3)):
        words = rf"\(time {time}\).*was float32\[{before}, 3\], now float32\[{rows}, 3\]"
        with pytest.warns(RecompilationWarning, match=words):
            state, _ = step(state, {"x": np.ones((rows, 3), np.float32)})
    for rows in (32, 6, 5, 32):
        state, _ = step(state, {"x": np.ones((rows, 3), np.float32)})


def test_many_changes_are_counted():
    step = make_train_step(lambda p, b: reduce(sum(b) * p["w"], reduction="partial"), optax.sgd(0.1))
    state, _ = step(step.init({"w": 1.0}), [np.ones(3, np.float32)] * 5)
    with pytest.warns(RecompilationWarning, match=r"`batch\[2\]` was float32\[3\], now float32\[4\], and 2 more\."):
        step(state, [np.ones(4, np.float32)] * 5)


def test_a_second_step_function_and_pure_are_not_counted():
    step, _ = started()
    again, state = started()
    state, _ = again.pure(state, {"x": np.ones((6, 3), np.float32)})
    step.evaluate(state, {"x": np.ones((6, 3), np.float32)})


def test_it_can_be_ignored():
    step, state = started()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecompilationWarning)
        step(state, {"x": np.ones((6, 3), np.float32)})
