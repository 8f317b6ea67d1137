"""Hinges, perceptrons, margins and the polynomial cross-entropy: digits, ties, what is ruled out, relations, peers."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from cases_classes import multilabel_margin as all_pairs_by_loops
from exact import log_sum_exp, logistic, partials, softplus, spread, ulps

import jaxloss as jl
from jaxloss.core.formulas import shortfall

mpf = mp.mpf
RNG = np.random.default_rng(0)
X = jnp.asarray(2 * RNG.normal(size=24), jnp.float32)
S = jnp.asarray(RNG.choice([-1.0, 1.0], 24), jnp.float32)
Z = jnp.asarray(2 * RNG.normal(size=(24, 5)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, 5, 24))
ON = jnp.asarray(RNG.random((24, 5)) < 0.4, jnp.float32)
NO = -np.inf


def same(left, right, argument, rtol=1e-6, atol=1e-6):
    """Two functions agree in value and gradient."""
    both = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (left, right)])
    for a, b in zip(*both(argument), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@functools.cache
def _both_modes(loss):
    def f(z, labels, options):
        return loss(z, labels, reduction="sum", **options)

    return jax.jit(lambda *args: (*jax.value_and_grad(f)(*args), jax.jacfwd(f)(*args)))


def row_of(loss, scores, label, **options):
    """Value and gradient of a single row, the gradient in both modes."""
    value, backward, forward = _both_modes(loss)(jnp.asarray([scores], jnp.float32), jnp.array([label]), options)
    np.testing.assert_array_equal(forward, backward)
    return float(value), np.asarray(backward[0]).tolist()


# --- Digits -------------------------------------------------------------------------------------------------------


def sparsemax(x, s):
    m = s * x
    return mpf(0) if m >= 1 else -m if m <= -1 else (1 - m) ** 2 / 4


# name: (loss, value, slope in the score, largest |score|, value bound, slope bound)
SCALARS = {
    "perceptron": (
        jl.perceptron,
        lambda x, s: max(-s * x, mpf(0)),
        lambda x, s: -s if s * x < 0 else mpf(0),
        1e38,
        0.5,
        0.0,
    ),
    "squared_hinge": (
        jl.squared_hinge,
        lambda x, s: max(1 - s * x, mpf(0)) ** 2,
        lambda x, s: -2 * s * max(1 - s * x, mpf(0)),
        1e38,
        2,
        0.5,
    ),
    "logistic": (
        jl.logistic,
        lambda x, s: softplus(-s * x),
        lambda x, s: -s * logistic(-s * x),
        1e4,
        2.5,
        2.5,
    ),
    "sparsemax_binary": (
        jl.sparsemax_binary,
        sparsemax,
        lambda x, s: -s * min(max((1 - s * x) / 2, mpf(0)), mpf(1)),
        1e38,
        2,
        0.5,
    ),
}


@pytest.mark.parametrize("name", SCALARS)
def test_values_and_gradients_over_the_range(name):
    loss, formula, slope_formula, high, value_bound, slope_bound = SCALARS[name]
    x = np.concatenate([spread(160, high=high), np.float32([1, -1]), 1 + np.float32([-3e-7, -1e-4, 1e-4])])
    x, s = np.concatenate([x, x]), np.repeat(np.float32([1, -1]), x.size)
    value = jax.jit(lambda x: loss(x, s, reduction="none"))(x)
    slope = jax.jit(jax.grad(lambda x: loss(x, s, reduction="sum")))(x)
    worst = [0.0, 0.0]
    for a, b, v, g in zip(x, s, np.asarray(value), np.asarray(slope), strict=True):
        a, b = mpf(float(a)), mpf(float(b))
        worst[0] = max(worst[0], ulps(v, formula(a, b)))
        worst[1] = max(worst[1], ulps(g, slope_formula(a, b)))
    print(name, worst)
    assert worst[0] <= value_bound, worst
    assert worst[1] <= slope_bound, worst


def poly(row, label, epsilon):
    nll = log_sum_exp(row) - row[label]
    return nll + mpf(epsilon) * (1 - mp.exp(-nll))


@pytest.mark.parametrize("epsilon", [2.0, 0.0, -0.75, -1.0])
def test_poly_cross_entropy_keeps_its_digits(epsilon):
    """Confident rows down to 1 - p = 1e-30, misses, ties, offsets, classes that are ruled out."""
    z = RNG.normal(size=(10, 5))
    z[:4, 0] += [5, 20, 45, 70]
    z[4, 1] += 60
    z[5] = 1.0
    z[6] += 3e4
    z[7, 2:4] = NO
    z[8] *= 1e-3
    z = z.astype(np.float32)
    loss = functools.partial(jl.poly_cross_entropy, labels=np.zeros(10, int), epsilon=epsilon)
    value = np.asarray(jax.jit(lambda z: loss(z, reduction="none"))(z))
    slope = np.asarray(jax.jit(jax.grad(lambda z: loss(z, reduction="sum")))(z))
    worst = [0.0, 0.0]
    for row, v, g in zip(z, value, slope, strict=True):
        row = [mpf(float(a)) for a in row]
        worst[0] = max(worst[0], ulps(v, poly(row, 0, epsilon)))
        want = partials(lambda r: poly(r, 0, epsilon), row)
        worst[1] = max(worst[1], *(ulps(a, b) for a, b in zip(g, want, strict=True)))
    print(epsilon, worst)
    assert max(worst) <= 3, worst


def test_generalized_cross_entropy_keeps_its_digits():
    """Confident rows down to 1 - p = 1e-30, hopeless ones, and a small q, where the power is next to 1."""
    z = np.float32([[5, 0, 1], [20, 1, 0], [70, 0, 2], [0, 3, 0], [0, 60, 1], [-1e-3, 0, 1e-3], [NO, 0, 1]])
    labels = np.zeros(7, int)
    both = jax.jit(
        lambda z, q: (
            jl.generalized_cross_entropy(z, labels, q=q, reduction="none"),
            jax.grad(lambda z, q: jl.generalized_cross_entropy(z, labels, q=q, reduction="sum"), (0, 1))(z, q),
        )
    )
    for q in (0.7, 1.0, 1e-3):
        value, (slope, in_q) = both(z, q)
        exact = mpf(float(np.float32(q)))

        def of(row, q=exact):
            return (1 - mp.exp(q * (row[0] - log_sum_exp(row)))) / q

        rows = [[mpf(float(a)) for a in row] for row in z]
        assert max(ulps(v, of(row)) for v, row in zip(np.asarray(value), rows, strict=True)) <= 4
        worst = 0.0
        for g, row in zip(np.asarray(slope)[:6], rows[:6], strict=True):
            # exp(-q nll) magnifies what rounding left of its argument.
            size = 1 + float(exact * (log_sum_exp(row) - row[0]))
            worst = max(worst, *(ulps(a, b) / size for a, b in zip(g, partials(of, row), strict=True)))
        assert worst <= 4, worst
        np.testing.assert_array_equal(np.asarray(slope)[6], 0)
        want = sum(mp.diff(functools.partial(of, row), exact) for row in rows[:6])
        np.testing.assert_allclose(in_q, float(want - 1 / exact**2), rtol=2e-5)


def test_generalized_cross_entropy_lies_between_cross_entropy_and_the_probability_missed():
    same(
        lambda z: jl.generalized_cross_entropy(z, Y, q=1.0),
        lambda z: 1 - jnp.mean(jax.nn.softmax(z)[jnp.arange(24), Y]),
        Z,
    )
    same(lambda z: jl.generalized_cross_entropy(z, Y, q=1e-7), lambda z: jl.softmax_cross_entropy(z, Y), Z, rtol=3e-6)


def test_shortfalls_near_the_margin_keep_their_digits():
    """The difference of two scores nearly equals the margin: what its rounding drops is all that is left."""
    high, low = (RNG.normal(size=60) * 10.0 ** RNG.integers(-3, 5, 60) for _ in range(2))
    high[:40] = low[:40] + 1 + 1e-7 * RNG.normal(size=40) * abs(low[:40])
    high[40:44], low[40:44] = [3e38, -3e38, 2e38, -3e38], [-3e38, 3e38, 3e38, NO]
    high, low = np.float32(high), np.float32(low)
    one = np.float32(1)
    value = np.asarray(jax.jit(lambda a, b: shortfall(a, b, one))(high, low))
    # Arguments, not constants: of those jax 0.10's XLA reorders the sum that says what rounding dropped.
    slope = np.asarray(jax.jit(jax.grad(lambda a, b: jnp.sum(shortfall(a, b, one))))(high, low))
    for a, b, v, g in zip(high, low, value, slope, strict=True):
        exact = max(1 - (mpf(float(a)) - mpf(float(b))), mpf(0))
        assert ulps(v, exact) <= 1.5, (a, b, v, mp.nstr(exact, 12))
        assert g == -(exact > 0), (a, b, g)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (jl.multiclass_hinge, lambda d: max(mpf(0), 1 + max(d))),
        (jl.multiclass_perceptron, lambda d: max(mpf(0), *d)),
        (jl.multiclass_margin, lambda d: mp.fsum(max(mpf(0), 1 + a) for a in d) / 4),
        (functools.partial(jl.multiclass_margin, p=2), lambda d: mp.fsum(max(mpf(0), 1 + a) ** 2 for a in d) / 4),
    ],
    ids=["hinge", "perceptron", "margin", "squared_margin"],
)
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_shared_offsets_cost_no_digit(loss, value, offset):
    z = np.float32(RNG.normal(size=(12, 4))) + np.float32(offset)
    y = np.arange(12) % 4
    got = jax.jit(lambda z: loss(z, y, reduction="none"))(z)
    for v, row, label in zip(got, z, y, strict=True):
        own = mpf(float(row[label]))
        assert ulps(v, value([mpf(float(a)) - own for a in np.delete(row, label)])) <= 3


# --- Ties, and what is ruled out ----------------------------------------------------------------------------------


def test_hinges_at_the_margin_do_not_pull():
    x, s = jnp.array([1.0, -1.0, 0.0, 0.0]), jnp.array([1.0, -1.0, 1.0, -1.0])

    def slopes(loss):
        return jax.grad(lambda x: loss(x, s, reduction="sum"))(x)

    np.testing.assert_array_equal(slopes(jl.squared_hinge), [0, 0, -2, 2])
    np.testing.assert_array_equal(slopes(jl.perceptron), [0, 0, 0, 0])
    np.testing.assert_array_equal(slopes(jl.sparsemax_binary), [0, 0, -0.5, 0.5])
    np.testing.assert_allclose(slopes(jl.logistic), [-1 / (1 + np.e), 1 / (1 + np.e), -0.5, 0.5], rtol=1e-6)
    for loss, curve in ((jl.squared_hinge, [0, 0, 2, 2]), (jl.sparsemax_binary, [0, 0, 0.5, 0.5])):
        second = jax.hessian(lambda x, loss=loss: loss(x, s, reduction="sum"))(x)
        np.testing.assert_array_equal(np.diag(second), curve)


def test_of_equal_rivals_the_first_is_pulled():
    third = float(np.float32(1 / 3))
    assert row_of(jl.multiclass_hinge, [2, 0, 2], 1) == (3, [1, -1, 0])
    assert row_of(jl.multiclass_hinge, [0, 0, 0], 0) == (1, [-1, 1, 0])
    assert row_of(jl.multiclass_hinge, [2, 2, 5], 2) == (0, [0, 0, 0])
    assert row_of(jl.multiclass_hinge, [2, 4, 5], 2) == (0, [0, 0, 0])  # at the margin itself
    assert row_of(jl.multiclass_hinge, [2, 4, 5], 2, margin=1.5) == (0.5, [0, 1, -1])
    assert row_of(jl.multiclass_perceptron, [2, 2, 1], 2) == (1, [1, 0, -1])
    assert row_of(jl.multiclass_perceptron, [2, 2, 1], 1) == (0, [0, 0, 0])  # one of the best
    assert row_of(jl.multiclass_margin, [4, 5, 4], 1) == (0, [0, 0, 0])
    assert row_of(jl.multiclass_margin, [5, 5, 4], 1) == (third, [third, -third, 0])
    # Their own difference is 1, the margin; rounded, 1 + 1e-8 against 1e-8 would be too.
    assert row_of(jl.multiclass_hinge, [0, 1], 1, margin=1.0) == (0, [0, 0])
    value, slopes = row_of(jl.multiclass_hinge, [1e-8, 1], 1)
    assert (value, slopes) == (pytest.approx(1e-8, rel=1e-6), [1, -1])


def test_second_derivatives_see_the_value():
    """A function of the loss: its second derivative has the square of the first, whatever the rules hold constant."""
    z, label, on = jnp.array([1.0, 2.5, 0.0]), jnp.array(0), jnp.array([1.0, 0.0, 0.0])
    losses = [
        *(functools.partial(f, labels=label) for f in (jl.multiclass_hinge, jl.multiclass_perceptron)),
        functools.partial(jl.multiclass_margin, labels=label),
        functools.partial(jl.multilabel_margin, targets=on),
    ]

    @jax.jit
    def derivatives(z):
        return [(jax.grad(f)(z), jax.hessian(lambda z, f=f: f(z) ** 2 / 2)(z)) for f in losses]

    for slope, curve in derivatives(z):
        np.testing.assert_allclose(curve, np.outer(slope, slope), rtol=1e-6)


def test_slopes_in_the_options():
    @jax.jit
    def slopes(z):
        return [
            jax.grad(lambda m: jl.multiclass_hinge(z, Y, margin=m))(0.7),
            jax.grad(lambda m: jl.multiclass_margin(z, Y, margin=m))(0.7),
            jax.grad(lambda m: jl.multiclass_margin(z, Y, margin=m, p=2))(0.7),
            jax.grad(lambda e: jl.poly_cross_entropy(z, Y, epsilon=e))(0.7),
        ]

    z, rows = np.float64(Z), np.arange(24)
    short = np.maximum(0, 0.7 + z - z[rows, Y][:, None])
    short[rows, Y] = 0
    p = np.exp(z[rows, Y]) / np.exp(z).sum(1)
    want = [(short.max(1) > 0).mean(), (short > 0).mean(), 2 * short.mean(), (1 - p).mean()]
    np.testing.assert_allclose(slopes(Z), want, rtol=1e-6)


@pytest.mark.parametrize("loss", [jl.multiclass_hinge, jl.multiclass_perceptron, jl.multiclass_margin])
def test_a_single_class_costs_nothing(loss):
    assert row_of(loss, [3.0], 0) == (0, [0])
    assert row_of(loss, [3.0, NO], 0) == (0, [0, 0])
    assert row_of(loss, [3.0, np.nan], 0, valid=np.array([[True, False]])) == (0, [0, 0])


def test_what_is_ruled_out():
    assert row_of(jl.multiclass_hinge, [0, NO, 1], 0) == (2, [-1, 0, 1])
    assert row_of(jl.multiclass_perceptron, [0, NO, 1], 0) == (1, [-1, 0, 1])
    third = float(np.float32(1 / 3))
    assert row_of(jl.multiclass_margin, [0, NO, 1], 0) == (2 * third, [-third, 0, third])
    value, slopes = row_of(jl.poly_cross_entropy, [0, NO, 0], 0)
    assert (value, slopes) == (pytest.approx(np.log(2) + 1), [-1, 0, 1])  # (1 + 2 p) (p - 1), p = 1/2
    for loss in (jl.multiclass_hinge, jl.multiclass_perceptron, jl.multiclass_margin, jl.poly_cross_entropy):
        value, slopes = row_of(loss, [NO, 0, 1], 0)
        assert value == np.inf
        assert np.all(np.isfinite(slopes)), (loss, slopes)
        value, slopes = row_of(loss, [0, 1, 2], 0, valid=np.array([[False, True, True]]))
        assert value == np.inf


def test_classes_that_do_not_exist_do_not_divide():
    z, on = jnp.array([[0.0, 0.5, np.nan]]), jnp.array([[1, 0, 1]])
    valid = jnp.array([[True, True, False]])
    np.testing.assert_allclose(jl.multiclass_margin(z, jnp.array([0]), valid=valid), 1.5 / 2)
    np.testing.assert_allclose(jl.multilabel_margin(z, on, valid=valid), 1.5 / 2)


def test_a_ruled_out_label_alone_is_no_certainty():
    for loss in (jl.multiclass_hinge, jl.multiclass_perceptron, jl.multiclass_margin):
        assert row_of(loss, [NO, NO], 0)[0] == np.inf


def test_a_sharded_class_axis():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    z, y = jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32), jnp.array([0, 3, 7])

    def everything(z, y):
        losses = (jl.multiclass_hinge, jl.multiclass_perceptron, jl.multiclass_margin, jl.poly_cross_entropy)
        return [jax.value_and_grad(loss)(z, y) for loss in losses]

    want = jax.jit(everything)(z, y)
    with jax.set_mesh(mesh):
        spread_out = jax.device_put(z, jax.NamedSharding(mesh, jax.P(None, "data")))
        got = jax.jit(everything)(spread_out, jax.device_put(y, jax.NamedSharding(mesh, jax.P())))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, want)


# --- Relations ----------------------------------------------------------------------------------------------------


def test_binary_losses_are_each_other():
    same(lambda x: jl.logistic(x, S), lambda x: jl.sigmoid_cross_entropy(x, (1 + S) / 2), X)
    same(lambda x: jl.squared_hinge(x, S), lambda x: jnp.mean(jl.hinge(x, S, reduction="none") ** 2), X)
    # A perceptron is a hinge with the margin taken away: scores so large that 1 does not count beside them.
    same(lambda x: jl.perceptron(1e9 * x, S) / 1e9, lambda x: jl.hinge(1e9 * x, S) / 1e9, X)
    # Half of a Huber loss of the distance to the margin.
    short = X * S < 1
    same(
        lambda x: jl.sparsemax_binary(x, S),
        lambda x: jl.huber(jnp.where(short, x, S), S, delta=2.0) / 2,
        X,
    )


@pytest.mark.exhaustive
def test_two_classes_are_one_sign():
    def scores(x):
        return jnp.stack([jnp.zeros_like(x), x], -1)

    labels = ((1 + S) / 2).astype(int)
    same(lambda x: jl.multiclass_hinge(scores(x), labels), lambda x: jl.hinge(x, S), X)
    same(lambda x: jl.multiclass_perceptron(scores(x), labels), lambda x: jl.perceptron(x, S), X)
    same(lambda x: jl.multiclass_margin(scores(x), labels), lambda x: jl.hinge(x, S) / 2, X)
    same(lambda x: jl.multiclass_margin(scores(x), labels, p=2), lambda x: jl.squared_hinge(x, S) / 2, X)
    on = jax.nn.one_hot(labels, 2)
    same(lambda x: jl.multilabel_margin(scores(x), on), lambda x: jl.hinge(x, S) / 2, X)


def test_losses_of_classes_are_each_other():
    same(lambda z: jl.poly_cross_entropy(z, Y, epsilon=0.0), lambda z: jl.softmax_cross_entropy(z, Y), Z)
    same(lambda z: jl.multilabel_margin(z, jax.nn.one_hot(Y, 5)), lambda z: jl.multiclass_margin(z, Y), Z)
    c = jnp.asarray(RNG.uniform(0.5, 2, 5), jnp.float32)
    same(
        lambda z: jl.multiclass_margin(z, Y, class_weights=c),
        lambda z: jnp.mean(c[Y] * jl.multiclass_margin(z, Y, reduction="none")),
        Z,
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("classes", [128, 129])
def test_many_labels_by_pairs_and_by_sorting(classes):
    """Many pairs at the margin itself, many within rounding of it, and no pair; classes that do not exist."""
    z = 2 * RNG.normal(size=(3, classes))
    z = np.float32([np.round(4 * z[0]) / 4, np.round(z[1], 1), z[2]])
    on = np.float32(RNG.random((3, classes)) < 0.2)
    on[2] = 1
    valid = RNG.random((3, classes)) < 0.9

    def total(z):
        each = jl.multilabel_margin(z, on, valid=valid, reduction="none")
        return jnp.sum(each), each

    slope, each = jax.jit(jax.grad(total, has_aux=True))(z)
    for i, (row, yes, exists) in enumerate(zip(np.float64(z), on == 1, valid, strict=True)):
        want = all_pairs_by_loops(row[None, exists], on[i : i + 1, exists])[0]
        np.testing.assert_allclose(each[i], want, rtol=2e-6)
        is_pair = (yes & exists)[:, None] & (~yes & exists)
        active = is_pair & (row[:, None] - row < 1)  # float64 holds the differences of these exactly
        np.testing.assert_allclose(slope[i], (active.sum(0) - active.sum(1)) / exists.sum(), rtol=1e-5, atol=1e-6)


# --- Peers --------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_optax_agrees():
    optax = pytest.importorskip("optax")
    theirs, one_hot = optax.losses, jax.nn.one_hot(Y, 5)
    same(lambda x: jl.perceptron(x, S), lambda x: jnp.mean(theirs.perceptron_loss(x, S)), X)
    yes = (1 + S) / 2
    same(lambda x: jl.sparsemax_binary(x, S), lambda x: jnp.mean(theirs.sparsemax_loss(x, yes > 0)), X)
    same(lambda z: jl.multiclass_hinge(z, Y), lambda z: jnp.mean(theirs.multiclass_hinge_loss(z, Y)), Z)
    same(lambda z: jl.multiclass_perceptron(z, Y), lambda z: jnp.mean(theirs.multiclass_perceptron_loss(z, Y)), Z)
    for epsilon in (2.0, -1.0):
        same(
            lambda z, e=epsilon: jl.poly_cross_entropy(z, Y, epsilon=e),
            lambda z, e=epsilon: jnp.mean(theirs.poly_loss_cross_entropy(z, one_hot, epsilon=e)),
            Z,
        )


@pytest.mark.exhaustive
def test_torch_agrees():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def check(ours, theirs, x):
        y = torch.tensor(np.asarray(x), requires_grad=True)
        value = theirs(y)
        value.backward()
        mine, slope = jax.value_and_grad(ours)(x)
        np.testing.assert_allclose(mine, value.item(), rtol=2e-6)
        np.testing.assert_allclose(slope, y.grad.numpy(), rtol=1e-5, atol=1e-7)

    s, y = torch.tensor(np.asarray(S)), torch.tensor(np.asarray(Y)).long()
    check(lambda x: jl.logistic(x, S), lambda x: functional.soft_margin_loss(x, s), X)
    c = np.float32([0.5, 1.0, 2.0, 0.25, 3.0])
    for p in (1, 2):
        check(
            lambda z, p=p: jl.multiclass_margin(z, Y, p=p, margin=0.7, class_weights=c),
            lambda z, p=p: functional.multi_margin_loss(z, y, p=p, margin=0.7, weight=torch.tensor(c)),
            Z,
        )
    indices = np.full(ON.shape, -1)  # torch's form of the targets: the classes that apply, then -1
    for row, on in zip(indices, np.asarray(ON), strict=True):
        row[: int(on.sum())] = np.flatnonzero(on)
    check(
        lambda z: jl.multilabel_margin(z, ON),
        lambda z: functional.multilabel_margin_loss(z, torch.tensor(indices)),
        Z,
    )


@pytest.mark.exhaustive
def test_keras_agrees(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    same(lambda x: jl.squared_hinge(x, S), lambda x: jnp.mean(keras.losses.squared_hinge(S[:, None], x[:, None])), X)
