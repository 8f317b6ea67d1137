"""The range test: what it records, where it stops, what it suggests, and that the caller's state is left alone."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

from jaxloss import reduce, softmax_cross_entropy
from jaxloss.train import Aux, State, make_train_step
from jaxloss.train.learning_rate import LearningRateCurve, find_learning_rate

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
BATCHES = [
    {"x": RNG.normal(size=(8, 3)).astype(np.float32), "y": RNG.normal(size=8).astype(np.float32)} for _ in "1234"
]
PARAMS = np.array([2.0, -1.0, 3.0], np.float32)


def fit(params, batch):
    return reduce((batch["x"] @ params - batch["y"]) ** 2, reduction="partial")


def sgd(rate):
    return make_train_step(fit, optax.sgd(rate))


def maker(loss_fn, optimizer=optax.sgd, **options):
    return lambda rate: make_train_step(loss_fn, optimizer(rate), **options)


def first(make_step=sgd, params=PARAMS, **more):
    return make_step(lambda count: 0.1).init(params, **more)


def by_hand(rates, batches, every=1):
    """SGD on `fit` in float64, the gradients of `every` calls averaged; the loss before each update."""
    w, losses, gradient = PARAMS.astype(np.float64), [], np.zeros(3)
    for i, rate in enumerate(rates):
        x, y = (np.asarray(batches[i % len(batches)][name], np.float64) for name in "xy")
        r = x @ w - y
        losses.append((r**2).mean())
        gradient += 2 * x.T @ r / len(y) / every
        if (i + 1) % every == 0:
            w, gradient = w - rate * gradient, np.zeros(3)
    return np.array(losses)


def test_it_records_the_loss_before_each_update():
    curve = find_learning_rate(sgd, first(), BATCHES, lowest=1e-4, highest=0.3, steps=25)
    assert curve.diverged_at is None
    np.testing.assert_allclose(curve.rates, 1e-4 * 3000 ** (np.arange(25) / 24), rtol=1e-12)
    np.testing.assert_allclose(curve.losses, by_hand(curve.rates, BATCHES), rtol=1e-4)


def test_the_average_is_exponential_and_without_bias():
    curve = find_learning_rate(sgd, first(), BATCHES, lowest=1e-4, highest=0.3, steps=25, smoothing=0.7)
    for i in range(25):
        shares = 0.7 ** np.arange(i, -1, -1)
        np.testing.assert_allclose(curve.smoothed[i], shares @ curve.losses[: i + 1] / shares.sum(), rtol=1e-12)


@pytest.mark.parametrize("every", [2, 3])
def test_the_rate_follows_the_calls_not_the_count_of_the_optimizer(every):
    make_step = maker(fit, lambda rate: optax.MultiSteps(optax.sgd(rate), every))
    curve = find_learning_rate(make_step, first(make_step), BATCHES, lowest=1e-4, highest=0.3, steps=24)
    np.testing.assert_allclose(curve.losses, by_hand(curve.rates, BATCHES, every), rtol=1e-4)


def test_the_state_is_left_alone():
    def loss_fn(params, batch, *, key, model_state):
        noise = 0.01 * jax.random.normal(key, (3,))
        return fit(params + noise, batch), Aux(model_state=model_state + 1)

    make_step = maker(loss_fn, optax.adam)
    step = make_step(0.1)
    state = step.init(PARAMS, key=jax.random.key(3), model_state=jnp.zeros(()))
    state, _ = step(state, BATCHES[0])
    plain = dataclasses.replace(state, key=jax.random.key_data(state.key))
    before = [np.array(leaf) for leaf in jax.tree.leaves(plain)]
    find_learning_rate(make_step, state, BATCHES, steps=15)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    for old, new in zip(before, jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    state, metrics = step(state, BATCHES[1])
    assert int(state.step) == 2
    assert bool(metrics.ok)


def test_it_starts_at_the_given_params_step_and_key_with_a_fresh_optimizer():
    def loss_fn(params, batch, *, key, step, model_state):
        number = jax.random.uniform(key) + step + 100 * model_state + 0.0 * params.sum()
        return number, Aux(model_state=model_state + 1)

    make_step = maker(loss_fn, optax.adam)
    step = make_step(0.1)
    state = step.init(PARAMS, key=jax.random.key(3), model_state=jnp.zeros(()))
    for _ in range(4):
        state, _ = step(state, None)
    curve = find_learning_rate(make_step, state, [None], steps=10)
    for i in (0, 7):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 4 + i), 0)
        np.testing.assert_allclose(curve.losses[i], float(jax.random.uniform(key)) + 101 * (4 + i), rtol=1e-5)


@pytest.mark.parametrize("curvature", [0.15, 3.0, 200.0])  # no rate of the sweep is 1 over one, which ends at 0
def test_suggestion_on_a_quadratic(curvature):
    """Gradient descent is stable below 2 / curvature."""

    def loss_fn(params, batch):
        return 0.5 * curvature * jnp.sum(params**2)

    make_step = maker(loss_fn)
    curve = find_learning_rate(make_step, first(make_step), [None], lowest=1e-6, highest=1e3)
    limit = 2 / curvature
    assert limit / 100 < curve.suggestion < limit < curve.diverged_at
    assert curve.note is None


def digits(size):
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(1)
    picked = [rng.integers(0, len(x), size) for _ in range(100)]
    return [((x[i] / 16).astype(np.float32), y[i].astype(np.int32)) for i in picked]


@pytest.mark.parametrize("optimizer", [optax.sgd, optax.adam])
@pytest.mark.parametrize("size", [16, 64])
def test_suggestion_on_digits(optimizer, size):
    """Training at the suggested rate comes near the best of a grid of rates."""

    def loss_fn(params, batch):
        return softmax_cross_entropy(batch[0] @ params, batch[1], reduction="partial")

    batches = digits(size)
    make_step = maker(loss_fn, optimizer)
    curve = find_learning_rate(make_step, first(make_step, np.zeros((64, 10), np.float32)), batches)
    stacked = jax.tree.map(lambda *leaves: jnp.stack([*leaves, *leaves]), *batches)

    def trained(rate):
        step = make_train_step(loss_fn, optimizer(rate))
        _, metrics = jax.lax.scan(step.pure, step.init(jnp.zeros((64, 10))), stacked)
        return metrics.loss[-20:].mean()

    grid = np.geomspace(1e-4, 10, 16)
    ends = np.asarray(jax.jit(jax.vmap(trained))(jnp.asarray([*grid, curve.suggestion], jnp.float32)))
    best, at_suggestion = ends[:-1].min(), ends[-1]
    assert (at_suggestion - best) / (np.log(10) - best) < 0.1


class Noise:
    """Losses that no update changes; `state.step` says which."""

    def __init__(self, losses):
        self.losses = jnp.asarray(losses, jnp.float32)

    def __call__(self, params, batch, *, step):
        return self.losses[step] + 0.0 * params.sum()

    def curve(self, **options):
        make_step = maker(self)
        return find_learning_rate(make_step, first(make_step), [None], steps=len(self.losses), **options)


def test_noise_is_no_fall_and_no_divergence():
    curves = [Noise(np.random.default_rng(seed).lognormal(0, 0.5, 100)).curve() for seed in range(8)]
    assert all(curve.diverged_at is None and len(curve.losses) == 100 for curve in curves)
    assert sum(curve.suggestion is not None for curve in curves) <= 1
    assert all("never fell" in curve.note for curve in curves if curve.suggestion is None)


def test_one_lucky_batch_is_not_the_suggestion():
    """It is the steepest step, and takes the average below the middle of the fall long before the trend does."""
    at = np.linspace(-7, 1, 100)
    losses = 10 - 2.0 / (1 + np.exp(-4 * (at + 2))) + np.where(np.arange(100) == 20, -6.0, 0.0)
    curve = Noise(losses).curve()
    assert curve.smoothed[20] < 9 < curve.smoothed[30]
    assert 3e-3 < curve.suggestion < 0.1


@pytest.mark.parametrize("shift", [-3.0, -2.15, 0.0])
def test_losses_of_any_sign(shift):
    """A factor over the best loss means nothing at 0 and below."""
    at = np.linspace(-7, 1, 100)
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    curve = Noise(2.3 - 2.1 / (1 + np.exp(-4 * (at + 2))) + noise + shift).curve()
    assert curve.diverged_at is None
    assert 1e-3 < curve.suggestion < 0.1


def test_it_stops_where_the_average_has_left_the_best_behind():
    at = np.linspace(-7, 1, 100)
    losses = 2.3 - 2.0 / (1 + np.exp(-4 * (at + 2))) + np.where(at > 0, 10.0 ** np.maximum(at, 0) * 5, 0)
    curve = Noise(losses).curve()
    stop = len(curve.losses) - 1
    assert curve.rates[stop] == curve.diverged_at
    best = curve.smoothed.min()
    assert curve.smoothed[stop] > max(4 * best, 2.3)
    assert curve.smoothed[stop - 1] <= max(4 * best, losses[:-1][curve.smoothed[:stop].argmin() :: -1].max())
    later = Noise(losses).curve(stop_at=20.0)
    assert later.diverged_at > curve.diverged_at


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_it_stops_where_a_loss_is_not_finite(bad):
    losses = np.linspace(3, 1, 60)
    losses[37:] = bad
    curve = Noise(losses).curve()
    assert len(curve.losses) == 38
    assert curve.diverged_at == curve.rates[37]
    assert curve.suggestion is not None


def test_it_stops_at_a_skipped_step():
    def loss_fn(params, batch, *, step):
        # sqrt has an infinite slope at 0
        return jax.lax.cond(step == 23, lambda p: jnp.sqrt(0.0 * p[0]), lambda p: jnp.sum(p**2), params)

    make_step = maker(loss_fn)
    curve = find_learning_rate(make_step, first(make_step), [None], steps=50)
    assert np.isfinite(curve.losses).all()
    assert len(curve.losses) == 24


def test_a_dynamic_loss_scale_may_look_for_its_place():
    """Its first steps overflow float16 and are skipped; that is no divergence."""
    make_step = maker(fit, compute_dtype=jnp.float16, loss_scale="dynamic")
    state = first(make_step, 30 * PARAMS)
    _, metrics = make_step(0.1)(first(make_step, 30 * PARAMS), BATCHES[0])
    assert not bool(metrics.ok)
    curve = find_learning_rate(make_step, state, BATCHES, lowest=1e-4, highest=1.0)
    assert curve.suggestion is not None
    assert curve.losses.min() < curve.losses[0] / 100


def test_notes_on_the_range():
    too_high = find_learning_rate(sgd, first(), BATCHES, lowest=5.0, highest=10.0, steps=20)
    assert too_high.suggestion is None
    assert "`lowest`" in too_high.note
    too_low = find_learning_rate(sgd, first(), BATCHES[:1], lowest=1e-4, highest=1e-2, steps=60)
    assert "`highest`" in too_low.note
    late = find_learning_rate(sgd, first(), BATCHES[:1], lowest=5e-2, highest=10.0, steps=50)
    assert "`lowest`" in late.note
    broken = find_learning_rate(sgd, first(params=PARAMS * np.nan), BATCHES)
    assert broken.suggestion is None
    assert "diagnose" in broken.note
    assert broken.diverged_at == broken.rates[0]


class Loader:
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(BATCHES)


def test_batches_are_repeated_where_they_can_be():
    options = {"lowest": 1e-4, "highest": 0.1, "steps": 20}
    expected = find_learning_rate(sgd, first(), BATCHES, **options).losses
    loader, starts = Loader(), []

    def from_step(step):
        starts.append(step)
        return BATCHES[:3] if step else BATCHES[3:]

    np.testing.assert_array_equal(find_learning_rate(sgd, first(), loader, **options).losses, expected)
    assert loader.passes == 5
    find_learning_rate(sgd, first(), from_step, **options)
    assert starts == [0, 1, 4, 7, 10, 13, 16, 19]
    once = find_learning_rate(sgd, first(), iter(BATCHES * 3), **options)
    np.testing.assert_array_equal(once.losses, expected[:12])
    assert "12 of 20" in once.note
    with pytest.raises(ValueError, match="no batch"):
        find_learning_rate(sgd, first(), [])


def test_one_trace_and_few_reads(monkeypatch):
    traces, reads, get = [], [], jax.device_get

    def counted(params, batch):
        traces.append(1)
        return fit(params, batch)

    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(1) or get(tree))
    make_step = maker(counted)
    state = first(make_step)
    counts = []
    for steps in (10, 50):
        traces.clear()
        find_learning_rate(make_step, state, BATCHES, lowest=1e-4, highest=1e-1, steps=steps)
        counts.append(len(traces))
    assert counts[0] == counts[1]
    assert len(reads) == 1 + 5


def test_a_state_on_a_mesh(devices):
    mesh = jax.make_mesh((4,), ("rows",))
    state = first(params=jax.device_put(jnp.asarray(PARAMS), jax.NamedSharding(mesh, jax.P())))
    batches = jax.device_put(BATCHES, jax.NamedSharding(mesh, jax.P("rows")))
    curve = find_learning_rate(sgd, state, batches, lowest=1e-4, highest=0.3, steps=25)
    np.testing.assert_allclose(curve.losses, by_hand(curve.rates, BATCHES), rtol=1e-4)
    assert len(state.params.sharding.device_set) == 4


def test_what_is_refused():
    state = first()
    with pytest.raises(TypeError, match=r"`make_step` must be a function of a learning rate.*TrainStep"):
        find_learning_rate(sgd(0.1), state, BATCHES)
    with pytest.raises(TypeError, match=r"must return the train step.*GradientTransformation"):
        find_learning_rate(optax.sgd, state, BATCHES)
    with pytest.raises(ValueError, match="does not use its learning rate"):
        find_learning_rate(lambda rate: sgd(0.1), state, BATCHES)
    with pytest.raises(TypeError, match=r"`state` must be the `State`.*ndarray"):
        find_learning_rate(sgd, PARAMS, BATCHES)
    with pytest.raises(TypeError, match=r"`batches`.*list"):
        find_learning_rate(sgd, state, BATCHES[0])
    for options, match in (
        ({"lowest": 1.0, "highest": 0.1}, "`lowest` < `highest`"),
        ({"lowest": 0.0}, "`lowest`"),
        ({"highest": np.inf}, "`highest`"),
        ({"steps": 9}, "`steps`"),
        ({"steps": 20.0}, "`steps`"),
        ({"smoothing": 1.0}, "`smoothing`"),
        ({"stop_at": 1.0}, "`stop_at`"),
    ):
        with pytest.raises(ValueError, match=match):
            find_learning_rate(sgd, state, BATCHES, **options)
    sgd(0.1)(state, BATCHES[0])
    with pytest.raises(RuntimeError, match="donated"):
        find_learning_rate(sgd, state, BATCHES)
    with pytest.raises(TypeError, match="inside of jit"):
        jax.jit(lambda s: find_learning_rate(sgd, s, BATCHES))(first())
    assert isinstance(state, State)


def test_the_sentence():
    rates = np.geomspace(1e-3, 1e-1, 3)
    curve = LearningRateCurve(rates, rates, rates, suggestion=1e-2, diverged_at=None, note=None)
    assert str(curve) == "suggested learning rate 1.0e-02 (3 rates from 1.0e-03 to 1.0e-01, no divergence)"
    curve = dataclasses.replace(curve, suggestion=None, diverged_at=1e-1, note="why")
    assert str(curve) == "no suggestion (3 rates from 1.0e-03 to 1.0e-01, diverged at 1.0e-01); why"


def test_the_picture(tmp_path, monkeypatch):
    curve = find_learning_rate(sgd, first(), BATCHES[:1], lowest=1e-4, highest=10.0, steps=60)
    assert curve.diverged_at is not None
    figure = curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    dots, smooth, suggestion, diverged = ax.lines
    np.testing.assert_array_equal(dots.get_xydata(), np.column_stack([curve.rates, curve.losses]))
    np.testing.assert_array_equal(smooth.get_xydata(), np.column_stack([curve.rates, curve.smoothed]))
    assert set(suggestion.get_xdata()) == {curve.suggestion}
    assert set(diverged.get_xdata()) == {curve.diverged_at}
    # The fall is in the picture, the divergence leaves it.
    low, high = ax.get_ylim()
    assert low < curve.losses.min()
    assert curve.losses[0] < high < curve.losses.max()
    assert dataclasses.replace(curve, suggestion=None, diverged_at=None).plot(ax=figure.subplots()) is figure
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxloss\[train\]"):
        curve.plot()
