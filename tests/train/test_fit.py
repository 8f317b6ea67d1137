"""`fit` is the plain loop, with exact means, early stopping, checkpoints and a bar; and it waits for nothing."""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import Mean, reduce, softmax_cross_entropy
from jaxloss.train import Aux, State, checkpoints, make_train_step, progress
from jaxloss.train.fit import Fitted, evaluate, fit
from jaxloss.train.tally import AHEAD, Log

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
PARAMS = {"w": np.array([0.3, -0.2, 0.5], np.float32)}
ROWS = {"x": RNG.normal(size=(70, 3)).astype(np.float32), "y": RNG.normal(3, 4, 70).astype(np.float32)}


def cut(rows, size):
    count = len(next(iter(rows.values())))
    return [{name: value[i : i + size] for name, value in rows.items()} for i in range(0, count, size)]


BATCHES = cut({name: value[:64] for name, value in ROWS.items()}, 16)


def loss_fn(params, batch):
    return reduce((batch["x"] @ params["w"] - batch["y"]) ** 2, where=batch.get("mask"), reduction="partial")


def plain_loop(train_step, batches, params=PARAMS):
    """The states after every step, on the host."""
    state, states = train_step.init(params), []
    for batch in batches:
        state, _ = train_step(state, batch)
        states.append(jax.device_get(state))
    return states


@pytest.fixture(scope="module")
def adam():
    return make_train_step(loss_fn, optax.adam(0.1))


@pytest.fixture
def still():
    """Steps that change nothing: the loss of every batch is known."""
    return make_train_step(loss_fn, optax.sgd(0.0))


class Around:
    """A train step that is no `TrainStep`: another one, and what happens before or after its calls."""

    def __init__(self, inner, *, after=lambda step, metrics: None, validations=None):
        self._inner, self._after, self._validations = inner, after, validations
        self.calls = 0

    def __call__(self, state, batch):
        state, metrics = self._inner(state, batch)
        self.calls += 1
        self._after(self.calls, metrics)
        return state, metrics

    def evaluate(self, state, batch):
        if self._validations is None:
            return self._inner.evaluate(state, batch)
        return {name: Mean(jnp.float32(v), jnp.float32(1)) for name, v in self._validations[int(state.step)].items()}


# The loop itself


def test_is_the_plain_loop_on_real_data():
    """Softmax regression on the wines: bit for bit `for batch in batches`, and the truth of a loop in plain jax."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_wine(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    batches = cut({"x": x[order], "y": y[order]}, 89)  # 178 rows

    def wine_loss(params, batch):
        logits = batch["x"] @ params["w"] + params["b"][None]
        return softmax_cross_entropy(logits, batch["y"], reduction="partial")

    params = {"w": np.zeros((13, 3), np.float32), "b": np.zeros(3, np.float32)}
    step = make_train_step(wine_loss, optax.adam(0.05))
    fitted = fit(step, step.init(params), batches, steps=120, validation=batches, patience=100, progress=False)
    by_hand = plain_loop(step, batches * 60, params)[-1]
    chex.assert_trees_all_equal(jax.device_get(fitted.state), by_hand)

    def plain_loss(params, x, y):
        logp = jax.nn.log_softmax(x @ params["w"] + params["b"][None])
        return -jnp.take_along_axis(logp, y[:, None], 1).mean()

    tx, plain = optax.adam(0.05), jax.tree.map(jnp.asarray, params)
    opt_state = tx.init(plain)

    @jax.jit
    def update(plain, opt_state, x, y):
        updates, opt_state = tx.update(jax.grad(plain_loss)(plain, x, y), opt_state)
        return optax.apply_updates(plain, updates), opt_state

    for batch in batches * 60:
        plain, opt_state = update(plain, opt_state, batch["x"], batch["y"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fitted.state.params, plain)
    truth = np.mean([plain_loss(plain, batch["x"], batch["y"]) for batch in batches])  # of equal batches
    np.testing.assert_allclose(fitted.history[-1].validation["loss"], truth, rtol=1e-4)
    assert fitted.reason == "steps"


def test_passes_over_batches(adam):
    states = plain_loop(adam, BATCHES * 3)

    def check(fitted, steps, reason):
        assert (int(fitted.state.step), fitted.reason) == (steps, reason)
        chex.assert_trees_all_equal(jax.device_get(fitted.state), states[steps - 1])

    run = {"progress": False}
    check(fit(adam, adam.init(PARAMS), BATCHES, **run), 4, "exhausted")
    check(fit(adam, adam.init(PARAMS), BATCHES, steps=3, **run), 3, "steps")
    check(fit(adam, adam.init(PARAMS), BATCHES, steps=10, **run), 10, "steps")
    check(fit(adam, adam.init(PARAMS), iter(BATCHES), steps=10, **run), 4, "exhausted")
    check(fit(adam, adam.init(PARAMS), (b for b in BATCHES * 3), steps=10, **run), 10, "steps")


def test_a_generator_gives_no_batch_too_many(adam):
    stream = iter(BATCHES)
    fit(adam, adam.init(PARAMS), stream, steps=2, progress=False)
    assert next(stream) is BATCHES[2]


def test_a_function_is_asked_where_a_pass_begins(adam):
    asked = []

    def from_step(step):
        asked.append(step)
        return BATCHES[step % 4 :]

    fitted = fit(adam, adam.init(PARAMS), from_step, steps=6, progress=False)
    assert asked == [0, 4]
    fitted = fit(adam, fitted.state, from_step, steps=12, progress=False)
    assert asked == [0, 4, 6, 8]
    chex.assert_trees_all_equal(jax.device_get(fitted.state), plain_loop(adam, BATCHES * 3)[-1])
    ended = fit(adam, fitted.state, lambda step: BATCHES[step:], steps=20, progress=False)
    assert (ended.reason, ended.history) == ("exhausted", ())


def test_steps_are_counted_by_the_state(adam):
    first = fit(adam, adam.init(PARAMS), BATCHES, steps=4, progress=False)
    second = fit(adam, first.state, BATCHES, steps=4, validation=BATCHES, progress=False)
    assert (int(second.state.step), second.reason, second.history) == (4, "steps", ())


def test_no_batch_is_an_error(adam):
    for nothing in ([], iter([])):
        with pytest.raises(ValueError, match="`batches` gave no batch"):
            fit(adam, adam.init(PARAMS), nothing, steps=3, progress=False)
    with pytest.raises(ValueError, match="no batch to evaluate"):
        evaluate(adam, adam.init(PARAMS), [])
    with pytest.raises(ValueError, match="no batch to evaluate"):
        fit(adam, adam.init(PARAMS), BATCHES, validation=[], progress=False)


# What is reported


def masked(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.normal(size=(6, 3)).astype(np.float32),
            "y": (rng.normal(size=6) + 3 * n).astype(np.float32),
            "mask": np.arange(6) < n,
        }
        for n in lengths
    ]


def squares(batch):
    """The sum of squares and the number of entries, in float64."""
    keep = batch.get("mask", np.ones(len(batch["y"]), bool))
    r = (np.float64(batch["x"]) @ np.float64(PARAMS["w"]) - batch["y"])[keep]
    return (r**2).sum(), len(r)


def whole(batches):
    total, weight = np.sum([squares(batch) for batch in batches], axis=0)
    return total / weight


def test_a_log_is_the_mean_over_its_entries(still):
    batches = masked([1, 6, 2, 6, 0, 3, 1])
    fitted = fit(still, still.init(PARAMS), batches, log_every=3, progress=False)
    assert [log.step for log in fitted.history] == [3, 6, 7]
    for log, part in zip(fitted.history, (batches[:3], batches[3:6], batches[6:]), strict=True):
        np.testing.assert_allclose(log.training["loss"], whole(part), rtol=1e-6)
        assert log.validation is None
    of_means = np.mean([squares(batch)[0] / squares(batch)[1] for batch in batches[:3]])
    assert abs(of_means - whole(batches[:3])) > 1, "a mean of means would be another number"
    last = fitted.history[0].last
    assert isinstance(last.loss, np.ndarray), "on the host"
    np.testing.assert_allclose(last.terms["loss"].total, squares(batches[2])[0], rtol=1e-6)
    assert fitted.history[0].seconds < fitted.history[2].seconds


def test_terms_and_metrics_by_name():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Largest:
        found: jax.Array

        def merge(self, other):
            return Largest(jnp.maximum(self.found, other.found))

        @property
        def value(self):
            return self.found

    def several(params, batch):
        r = batch["x"] @ params["w"] - batch["y"]
        terms = {"fit": reduce(r**2, reduction="partial"), "empty": Mean(jnp.zeros(()), jnp.zeros(()))}
        by_feature = Mean(batch["x"].sum(0), jnp.full(3, 16.0))
        return terms, Aux(metrics={"worst": Largest(jnp.abs(r).max()), "by_feature": by_feature})

    step = make_train_step(several, optax.sgd(0.0), coefficients={"fit": 7.0})
    fitted = fit(step, step.init(PARAMS), BATCHES, validation=BATCHES, progress=False)
    residuals = np.concatenate([b["x"] @ PARAMS["w"] - b["y"] for b in BATCHES])
    (log,) = fitted.history
    for found in (log.training, log.validation):
        assert set(found) == {"fit", "empty", "worst"}
        np.testing.assert_allclose(found["fit"], (np.float64(residuals) ** 2).mean(), rtol=1e-6)
        np.testing.assert_allclose(found["worst"], np.abs(residuals).max(), rtol=1e-6)
        assert math.isnan(found["empty"]), "nothing was valid, and 0 would look like a perfect score"
    merged = evaluate(step, fitted.state, BATCHES)
    np.testing.assert_allclose(merged["by_feature"].total, np.sum([b["x"].sum(0) for b in BATCHES], 0), rtol=1e-5)


def test_evaluate_is_the_whole_set(still):
    """70 rows in batches of 32: 21.6 is the truth, where a mean of means or a padding without mask say otherwise."""
    batches, state = cut(ROWS, 32), still.init(PARAMS)
    assert [len(batch["y"]) for batch in batches] == [32, 32, 6]
    truth = whole([ROWS])
    of_means = np.mean([squares(batch)[0] / squares(batch)[1] for batch in batches])
    assert abs(of_means - truth) > 0.01
    for mask in (None, "mask"):
        found = evaluate(still, state, batches, mask=mask)["loss"]
        assert float(found.weight) == 70
        np.testing.assert_allclose(found.value, truth, rtol=1e-6)
    assert int(state.step) == 0


def test_an_epoch_is_summed_in_float64(still):
    class Counts(Around):
        def evaluate(self, state, batch):
            del state
            return {"loss": Mean(jnp.float32(batch), jnp.float32(batch))}

    counts = [2.0**20] * 32 + [1.0]
    found = evaluate(Counts(still), still.init(PARAMS), counts)["loss"]
    assert float(found.weight) == float(found.total) == 2**25 + 1  # float32 has no such number
    assert math.isclose(float(found.value), 1.0)


def test_a_short_batch_compiles_nothing_with_a_mask():
    """Padded, the remainder is a batch like the others, and the params those of the same batches unpadded."""
    batches, counts = cut(ROWS, 32), []
    for given in (batches[:2] * 2, batches[:2] * 2, batches):  # the first time helpers are compiled too
        step = make_train_step(loss_fn, optax.adam(0.1))
        before = len(COMPILES)
        fitted = fit(step, step.init(PARAMS), given, mask="mask", validation=given, progress=False)
        counts.append(len(COMPILES) - before)
    assert counts[2] == counts[1], counts
    step = make_train_step(loss_fn, optax.adam(0.1))
    with pytest.warns(UserWarning, match="compiled"):  # without a mask
        state = plain_loop(step, batches)[-1]
    np.testing.assert_allclose(fitted.state.params["w"], state.params["w"], rtol=1e-5)


def test_a_pass_may_begin_with_the_remainder(still):
    found = evaluate(still, still.init(PARAMS), cut(ROWS, 32)[::-1], mask="mask")["loss"]
    np.testing.assert_allclose(found.value, whole([ROWS]), rtol=1e-6)


def test_padding_fits_microbatches():
    step = make_train_step(loss_fn, optax.sgd(0.0), accumulate=4)
    fitted = fit(step, step.init(PARAMS), cut(ROWS, 32), mask="mask", progress=False)
    np.testing.assert_allclose(fitted.history[0].training["loss"], whole([ROWS]), rtol=1e-6)


# Nothing waits


def test_the_host_runs_ahead_but_not_away(adam, monkeypatch):
    """It waits for the step `AHEAD` before, reads an interval when that is past, and nothing else."""
    steps, every = 60, 20
    seen, waited, fetched, elsewhere = [], [], [], []
    fetching = False
    wait, fetch = jax.block_until_ready, jax.device_get
    array = type(jnp.zeros(()))
    value = array._value

    def recorded_wait(tree):
        waited.append((len(seen), next(i for i, ok in enumerate(seen, 1) if tree.finite is ok)))
        return wait(tree)

    def recorded_fetch(tree):
        nonlocal fetching
        fetched.append(len(seen))
        fetching = True
        try:
            return fetch(tree)
        finally:
            fetching = False

    def recorded_value(self):
        if not fetching and 0 < len(seen) < steps:
            elsewhere.append(len(seen))
        return value.__get__(self)

    monkeypatch.setattr(jax, "block_until_ready", recorded_wait)
    monkeypatch.setattr(jax, "device_get", recorded_fetch)
    monkeypatch.setattr(array, "_value", property(recorded_value))
    step = Around(adam, after=lambda _, metrics: seen.append(metrics.ok))
    fit(step, step._inner.init(PARAMS), BATCHES, steps=steps, log_every=every, progress=False)
    assert waited == [(n, n - AHEAD) for n in range(AHEAD + 1, steps + 1)]
    assert fetched == [20 + AHEAD, 40 + AHEAD, 60]
    assert elsewhere == []
    float(jnp.ones(()) + len(seen))
    seen.pop()
    float(jnp.ones(()) + len(seen))
    assert elsewhere == [steps - 1], "this test would have noticed"


def test_callbacks_get_every_log_in_order(adam):
    heard = []

    def listen(log, state):
        heard.append((log, int(state.step)))
        return "a tracker's answer"  # true, but not True

    fitted = fit(
        adam, adam.init(PARAMS), BATCHES, steps=20, log_every=6, validation=BATCHES, validate_every=9,
        callbacks=[listen], progress=False,
    )  # fmt: skip
    assert tuple(log for log, _ in heard) == fitted.history
    assert [log.step for log, _ in heard] == [6, 9, 12, 18, 20]
    assert [at for _, at in heard] == [9, 9, 16, 18, 20], "late by AHEAD, or with the next validation"
    assert [log.validation is not None for log, _ in heard] == [False, True, False, True, True]
    assert fitted.reason == "steps"


def test_every_is_counted_by_the_state(adam):
    first = fit(adam, adam.init(PARAMS), BATCHES, steps=7, progress=False)
    second = fit(
        adam, first.state, BATCHES, steps=20, log_every=5, validation=BATCHES, validate_every=8, progress=False
    )
    assert [log.step for log in second.history] == [8, 10, 15, 16, 20]


def test_a_callback_stops(adam):
    found = fit(
        adam, adam.init(PARAMS), BATCHES, steps=100, log_every=10, validation=BATCHES, validate_every=1000,
        callbacks=[lambda log, state: log.training["loss"] < 1e9], progress=False,
    )  # fmt: skip
    assert (found.reason, int(found.state.step)) == ("callback", 10 + AHEAD)
    assert [log.step for log in found.history] == [10, 14]
    assert found.history[-1].validation is not None, "the end is validated"


# Early stopping


def scripted(adam, values, **options):
    validations = [{"loss": 0.0, "other": 1.0}, *({"loss": v, "other": -v} for v in values)]
    step = Around(adam, validations=validations)
    given = {"steps": len(values), "validate_every": 1, "validation": [0], "patience": 2, "progress": False}
    return fit(step, adam.init(PARAMS), BATCHES, **{**given, **options})


nan = math.nan


@pytest.mark.parametrize(
    ("values", "options", "steps", "best"),
    [
        ([5, 4, 3, 4, 3.5, 1, 0], {}, 5, 3),
        ([5, 4, 4, 4, 1], {}, 4, 2),  # an equal one is no improvement
        ([5, 4, 3, 2], {}, 4, 4),
        ([5, 6, 4, 5, 3], {}, 5, 5),  # the count begins again
        ([nan, nan, 1], {}, 2, None),
        ([5, nan, 4, nan, nan, 1], {}, 5, 3),
        ([math.inf, math.inf, 1], {}, 2, None),
        ([5, 4.9, 4.8, 0], {"min_improvement": 0.5}, 3, 3),  # too little to go on, but lower all the same
        ([5, 4.8, 4.4, 4.2, 4.1, 0], {"min_improvement": 0.5}, 5, 5),
        ([5, 6, 7, 4], {"monitor": "other"}, 4, 3),
        ([5, 6, 7, 4], {"monitor": lambda values: values["other"] - values["loss"]}, 4, 3),
        ([5, 6, 1], {"patience": 1}, 2, 1),
        ([5, 6, 1, 7], {"patience": 99}, 4, 3),
    ],
)  # fmt: skip
def test_patience(adam, values, options, steps, best):
    fitted = scripted(adam, values, **options)
    assert int(fitted.state.step) == steps
    assert fitted.reason == ("patience" if steps < len(values) else fitted.reason)
    assert [log.validation["loss"] for log in fitted.history] == pytest.approx(values[:steps], nan_ok=True)
    if best is None:
        assert fitted.best is None
    else:
        states = plain_loop(adam, (BATCHES * 2)[:steps])
        chex.assert_trees_all_equal(jax.device_get(fitted.best), states[best - 1])
        chex.assert_trees_all_equal(jax.device_get(fitted.state), states[-1])


def test_without_patience_nothing_is_kept(adam):
    fitted = scripted(adam, [5, 6, 7, 8], patience=None)
    assert (fitted.best, fitted.reason) == (None, "steps")


def test_validation_follows_passes(adam):
    asked = []

    def held_out(step):
        asked.append(step)
        return BATCHES

    fitted = fit(adam, adam.init(PARAMS), BATCHES, steps=10, validation=held_out, progress=False)
    assert asked == [0, 4, 8, 10]  # the first is one batch, to see that it works
    assert [log.step for log in fitted.history if log.validation] == [4, 8, 10]


def test_a_wrong_monitor_is_known_before_training(adam):
    step = Around(adam)
    with pytest.raises(ValueError, match="`monitor` = 'accuracy' is not among the values of the validation, 'loss'"):
        fit(step, adam.init(PARAMS), BATCHES, validation=BATCHES, patience=3, monitor="accuracy", progress=False)
    assert step.calls == 0


# Checkpoints and interrupts


def test_a_resumed_run_is_the_unbroken_one(tmp_path, adam, capsys):
    def from_step(step):
        return BATCHES[step % 4 :]

    options = {"steps": 11, "checkpoints": tmp_path, "save_every": 4, "log_every": 5}

    def die(step, metrics):
        if step == 7:
            raise OSError("the machine is gone")

    with pytest.raises(OSError, match="gone"):
        fit(Around(adam, after=die), adam.init(PARAMS), from_step, **options, progress=False)
    assert checkpoints.saved_steps(tmp_path) == [4]  # step 7 took its state with it
    resumed = fit(adam, adam.init(PARAMS), from_step, **options)
    assert f"resumed from step 4 in {tmp_path}" in capsys.readouterr().err
    chex.assert_trees_all_equal(jax.device_get(resumed.state), plain_loop(adam, BATCHES * 3)[10])
    assert checkpoints.saved_steps(tmp_path) == [4, 8, 11]
    assert [log.step for log in resumed.history] == [5, 10, 11]
    done = fit(adam, adam.init(PARAMS), from_step, **options, progress=False)
    assert (int(done.state.step), done.reason, done.history) == (11, "steps", ())


def test_a_state_further_than_the_checkpoint_stays(tmp_path, adam):
    fit(adam, adam.init(PARAMS), BATCHES, steps=2, checkpoints=tmp_path, progress=False)
    other = fit(adam, adam.init({"w": np.zeros(3, np.float32)}), BATCHES, steps=3, progress=False)
    kept = fit(adam, other.state, BATCHES, steps=3, checkpoints=tmp_path, progress=False)
    assert kept.state is other.state


def test_what_was_reached_is_saved_before_an_error(tmp_path, adam):
    def batches():
        yield from BATCHES[:3]
        raise OSError("a corrupt file")

    with pytest.raises(OSError, match="corrupt") as caught:
        fit(adam, adam.init(PARAMS), batches(), steps=9, checkpoints=tmp_path, progress=False)
    assert caught.value.__notes__ == [f"the state of step 3 was saved in {tmp_path}"]
    found = checkpoints.restore(tmp_path, adam.init(PARAMS))
    chex.assert_trees_all_equal(jax.device_get(found), plain_loop(adam, BATCHES)[2])


def test_a_save_that_fails_is_tried_once(tmp_path, adam, monkeypatch):
    attempts = []

    def full(directory, state):
        attempts.append(int(state.step))
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save", full)
    with pytest.raises(OSError, match="no space left"):
        fit(adam, adam.init(PARAMS), BATCHES, steps=9, checkpoints=tmp_path, save_every=2, progress=False)
    assert attempts == [2]


def test_a_missing_orbax_is_known_before_training(tmp_path, adam, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    step = Around(adam)
    with pytest.raises(ImportError, match=r"pip install 'jaxloss\[train\]'"):
        fit(step, adam.init(PARAMS), BATCHES, checkpoints=tmp_path, progress=False)
    assert step.calls == 0


def test_ctrl_c_returns_what_there_is(tmp_path, adam):
    def impatient(log, state):
        raise KeyboardInterrupt

    fitted = fit(
        adam, adam.init(PARAMS), BATCHES, steps=100, log_every=3, callbacks=[impatient], checkpoints=tmp_path,
        validation=BATCHES, validate_every=90, patience=2, progress=False,
    )  # fmt: skip
    assert (fitted.reason, int(fitted.state.step)) == ("interrupted", 3 + AHEAD)
    assert [log.step for log in fitted.history] == [3, 6, 7]
    chex.assert_trees_all_equal(jax.device_get(fitted.state), plain_loop(adam, BATCHES * 2)[6])
    assert checkpoints.saved_steps(tmp_path) == [7]


@pytest.fixture
def hears_ctrl_c():
    """A program that was started in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_in_the_middle_of_a_step_loses_nothing(adam):
    """The old state is donated by then, and the new one has no name yet."""

    def press(step, metrics):
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    try:
        fitted = fit(Around(adam, after=press), adam.init(PARAMS), BATCHES, steps=100, progress=False)
    except KeyboardInterrupt:
        pytest.fail("the interrupt came between the two states")
    assert (fitted.reason, int(fitted.state.step), fitted.history[-1].step) == ("interrupted", 5, 5)
    chex.assert_trees_all_equal(jax.device_get(fitted.state), plain_loop(adam, BATCHES * 2)[4])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_elsewhere_does_not_wait(adam):
    def batches():
        yield from BATCHES[:2]
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    assert fit(adam, adam.init(PARAMS), batches(), steps=9, progress=False).reason == "interrupted"


@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_second_ctrl_c_does_not_wait_either(adam):
    def press(step, metrics):
        if step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(Around(adam, after=press), adam.init(PARAMS), BATCHES, steps=100, progress=False)


def test_a_thread_of_its_own(adam):
    """Only the main thread may handle signals."""
    found = []
    thread = threading.Thread(
        target=lambda: found.append(fit(adam, adam.init(PARAMS), BATCHES, steps=5, progress=False))
    )
    thread.start()
    thread.join()
    assert int(found[0].state.step) == 5


# What is not finite


def test_steps_that_are_not_finite_are_counted(still):
    bad = {**BATCHES[1], "x": np.full_like(BATCHES[1]["x"], np.nan)}
    given = [BATCHES[0], bad, *BATCHES[2:], bad, bad]
    with pytest.warns(UserWarning, match=r"3 of 6 steps were not finite") as caught:
        fitted = fit(still, still.init(PARAMS), given, log_every=4, progress=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [log.not_finite for log in fitted.history] == [1, 2]
    np.testing.assert_allclose(fitted.history[0].training["loss"], whole([BATCHES[0], *BATCHES[2:]]), rtol=1e-6)
    assert math.isnan(fitted.history[1].training["loss"])
    first = fit(still, still.init(PARAMS), BATCHES[:2], log_every=4, progress=False)
    with pytest.warns(UserWarning, match=r"1 of 3 steps"):
        later = fit(still, first.state, [bad, *BATCHES[:2]], steps=5, progress=False)
    np.testing.assert_allclose(later.history[0].training["loss"], whole(BATCHES[:2]), rtol=1e-6)


def test_raise_also_raises_for_the_last_step(tmp_path):
    raising = make_train_step(loss_fn, optax.adam(0.1), nonfinite="raise")
    batches = [*BATCHES[:2], {**BATCHES[2], "y": np.full(16, np.nan, np.float32)}]
    with pytest.raises(FloatingPointError, match="step 2 is not finite") as caught:
        fit(raising, raising.init(PARAMS), batches, checkpoints=tmp_path, progress=False)
    assert "the state of step 3 was saved" in caught.value.__notes__[0]


def test_a_dynamic_loss_scale_overflows_in_silence():
    step = make_train_step(loss_fn, optax.sgd(0.0), loss_scale="dynamic")
    state = step.init(PARAMS)
    huge = dataclasses.replace(
        state, loss_scale=dataclasses.replace(state.loss_scale, value=jnp.full_like(state.loss_scale.value, 1e38))
    )
    fitted = fit(step, huge, BATCHES, progress=False)
    assert fitted.history[0].not_finite > 0


# On a mesh


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    step, rows = make_train_step(loss_fn, optax.adam(0.1)), NamedSharding(mesh, P("data"))
    spread = [jax.device_put(batch, rows) for batch in BATCHES]
    with jax.set_mesh(mesh):
        state = step.init(jax.device_put(PARAMS, NamedSharding(mesh, P())), key=jax.random.key(0))
        before = {leaf.sharding for leaf in jax.tree.leaves(state)}
        fitted = fit(
            step, state, spread, steps=6, validation=spread, patience=9, log_every=2, mask="mask", progress=False
        )
        for found in (fitted.state, fitted.best):
            assert {leaf.sharding for leaf in jax.tree.leaves(found)} == before
    by_hand = plain_loop(make_train_step(loss_fn, optax.adam(0.1)), BATCHES * 2)
    np.testing.assert_allclose(fitted.state.params["w"], by_hand[5].params["w"], rtol=1e-5)
    truth = np.mean([(b["x"] @ by_hand[5].params["w"] - b["y"]) ** 2 for b in BATCHES])
    np.testing.assert_allclose(fitted.history[-1].validation["loss"], truth, rtol=1e-5)


# Progress


def test_silence(adam, capsys):
    fit(adam, adam.init(PARAMS), BATCHES, steps=20, log_every=5, validation=BATCHES, progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_log_file_gets_a_line_now_and_then(still, capsys):
    fit(still, still.init(PARAMS), BATCHES, steps=20, log_every=2, validation=BATCHES, validate_every=12)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split(":")[0] for line in lines] == ["step 2/20", "step 12/20", "step 20/20"]
    loss = f"{whole(BATCHES[2:]):.4g}"  # steps 11 and 12
    assert f"loss {loss}, validation loss {whole(BATCHES):.4g}, " in lines[1]
    assert lines[1].endswith("steps/s")


def test_ten_seconds_later_there_is_another_line(capsys):
    lines = progress.display(None, start=0, total=None)
    with lines:
        for step, seconds in enumerate([1.0, 3.0, 10.9, 11.0, 12.0], 1):
            lines.logged(Log(step, {"loss": 2.0}, None, None, int(step == 2), seconds))
    assert capsys.readouterr().err.splitlines() == [
        "step 1: loss 2",
        "step 4: 1 step NOT FINITE, loss 2, 0.3 steps/s",
        "step 5: 1 step NOT FINITE, loss 2, 0.364 steps/s",
    ]


def test_a_bar_where_it_is_demanded(still, capsys):
    fit(still, still.init(PARAMS), BATCHES, steps=8, log_every=2, validation=BATCHES, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "8/8" in err
    assert f"validation loss {whole(BATCHES):.4g}" in err
    assert "\x1b[?25h" in err, "the cursor is back"


def test_no_bar_is_left_behind(adam, capsys):
    threads = set(threading.enumerate())
    streams = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError):
        fit(adam, adam.init(PARAMS), BATCHES, steps=9, log_every=1, callbacks=[lambda log, state: 1 / 0], progress=True)
    for thread in set(threading.enumerate()) - threads:
        thread.join(2)  # a bar is redrawn by a thread, which is told to end and not waited for
        assert not thread.is_alive()
    assert (sys.stdout, sys.stderr) == streams
    assert capsys.readouterr().err.rindex("\x1b[?25h") > 0


def test_names_are_no_markup(capsys):
    with progress.display(True, start=0, total=None) as bar:
        bar.logged(Log(1, {"[bold]a[/]": 2.0}, None, None, 0, 0.0))
        bar.said("[red]b[/red]")
    err = capsys.readouterr().err
    assert "[bold]a[/] 2" in err
    assert "[red]b[/red]" in err


def test_without_rich(adam, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'jaxloss\[train\]'"):
        fit(adam, adam.init(PARAMS), BATCHES, progress=True)
    fit(adam, adam.init(PARAMS), BATCHES)
    assert capsys.readouterr().err.startswith("step 4/4: loss ")


def test_only_the_first_process_speaks(adam, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    fit(adam, adam.init(PARAMS), BATCHES)
    assert capsys.readouterr().err == ""


# Options


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batches": BATCHES[0]}, TypeError, r"`batches` must give batches, and dict is one: give a list"),
        ({"batches": ROWS["x"]}, TypeError, r"`batches` must give batches, and ndarray is one"),
        ({"batches": 3}, TypeError, r"`batches` must be a list or another iterable.*got int"),
        ({"validation": BATCHES[0]}, TypeError, r"`validation` must give batches, and dict is one"),
        ({"validation": iter(BATCHES)}, TypeError, r"`validation` is passed over many times, and a list_iterator"),
        ({"steps": 0}, ValueError, r"`steps` must be a whole number, at least 1; got 0"),
        ({"log_every": 2.5}, ValueError, r"`log_every` must be a whole number"),
        ({"save_every": True}, ValueError, r"`save_every` must be a whole number"),
        ({"patience": 3}, ValueError, r"`patience` = 3 needs `validation`"),
        ({"validate_every": 3}, ValueError, r"`validate_every` = 3 needs `validation`"),
        ({"monitor": "fit"}, ValueError, r"there is no `patience`"),
        ({"validation": BATCHES, "patience": 0}, ValueError, r"`patience` must be a whole number, at least 1"),
        ({"validation": BATCHES, "patience": 1, "monitor": 3}, TypeError, r"`monitor` must be a name or a function"),
        ({"validation": BATCHES, "patience": 1, "min_improvement": -1}, ValueError, r"`min_improvement` must be"),
        ({"callbacks": print}, TypeError, r"`callbacks` must be a list of functions"),
        ({"callbacks": [3]}, TypeError, r"`callbacks` must be a list of functions"),
        ({"mask": True}, TypeError, r"`mask` must be the name"),
        ({"checkpoints": 3}, TypeError, r"`checkpoints` must be a directory"),
        ({"progress": "bar"}, TypeError, r"`progress` must be None, True or False"),
        ({"batches": [(1, 2)], "mask": "mask"}, TypeError, r"`batch` must be a dict"),
    ],
)
def test_what_cannot_be_meant(adam, options, error, words):
    with pytest.raises(error, match=words):
        fit(adam, adam.init(PARAMS), **{"batches": BATCHES, "progress": False, **options})


def test_what_comes_back(adam):
    fitted = fit(adam, adam.init(PARAMS), BATCHES, progress=False)
    assert isinstance(fitted, Fitted)
    assert isinstance(fitted.state, State)
    assert all(isinstance(log, Log) for log in fitted.history)
    with contextlib.suppress(dataclasses.FrozenInstanceError):
        fitted.reason = "steps"
        pytest.fail("it is frozen")
    assert time.perf_counter() > fitted.history[-1].seconds > 0
