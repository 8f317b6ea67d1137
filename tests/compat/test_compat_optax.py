"""`jaxloss.compat.optax`: optax's signatures, shapes, values and gradients; and where they differ, who is right."""

import ast
import functools
import inspect
import itertools
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exact import mp  # in 120 digits

import jaxloss as jl
from jaxloss.compat import optax as ours

theirs = optax.losses
PUBLIC = sorted(ours.__all__)
# A later optax may have more names and arguments than these drop-ins.
of_this_optax = pytest.mark.skipif(
    optax.__version__ != "0.2.8", reason="the names and arguments are those of optax 0.2.8"
)


# --- The names and their signatures -------------------------------------------------------------------------------


@of_this_optax
def test_every_name_is_there_and_no_other():
    names = [name for name in dir(theirs) if not name.startswith("_") and inspect.isfunction(getattr(theirs, name))]
    assert sorted(names) == PUBLIC
    assert len(PUBLIC) == 32
    assert all(inspect.isfunction(getattr(ours, name)) for name in PUBLIC)


@of_this_optax
@pytest.mark.parametrize("name", PUBLIC)
def test_signature(name):
    def shape(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    assert shape(ours) == shape(theirs)


def test_optax_itself_is_not_asked():
    for path in pathlib.Path(ours.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [m for m in modules if m.split(".")[0] == "optax"], path.name


def test_every_function_says_how_jaxloss_spells_it():
    for name in PUBLIC:
        spelt = re.findall(r"`jl\.(\w+)", inspect.getdoc(getattr(ours, name)))
        assert spelt, name
        assert all(hasattr(jl, word) for word in spelt), (name, spelt)


# --- Values and gradients beside optax's ---------------------------------------------------------------------------

DRAWS = 3


class Draw:
    """Arguments by their kind, of one random draw after the other."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def real(self, *shape):
        return np.asarray(self.rng.normal(size=(DRAWS, *shape)) * 2, np.float32)

    def distribution(self, *shape):
        return np.asarray(self.rng.dirichlet(np.ones(shape[-1]), (DRAWS, *shape[:-1])), np.float32)

    def log_distribution(self, *shape):
        return np.log(self.distribution(*shape))

    def probability(self, *shape):
        return np.asarray(self.rng.uniform(size=(DRAWS, *shape)), np.float32)

    def binary(self, *shape):
        return np.asarray(self.rng.integers(0, 2, (DRAWS, *shape)), np.float32)

    def sign(self, *shape):
        return 2 * self.binary(*shape) - 1

    def label(self, classes, *shape, low=0):
        return np.asarray(self.rng.integers(low, classes, (DRAWS, *shape)), np.int32)

    def mask(self, *shape, one_along=None):
        """Random, with something left along the axis; and in the first draw a row without anything."""
        mask = self.rng.uniform(size=(DRAWS, *shape)) < 0.6
        if one_along is not None:
            np.put_along_axis(mask, self.rng.integers(0, 2, (DRAWS, *shape[:-1], 1)), True, axis=-1)
        return mask

    def one_hot(self, classes, *shape):
        return np.eye(classes, dtype=np.float32)[self.label(classes, *shape)]

    def paddings(self, length, low, batch):
        lengths = self.rng.integers(low, length + 1, (DRAWS, batch))
        return np.asarray(np.arange(length) >= lengths[..., None], np.float32)


def sum_of_squares(values, where):
    return jnp.sum(jnp.square(values), where=where)


# For each function: arguments (arrays of `DRAWS` draws), keyword arrays, static options, and how many of the first
# arguments are differentiated.
def cases(name):
    d = Draw(sum(map(ord, name)))
    x, y, z = d.real(4, 5), d.real(4, 5), d.real(2, 3, 4)
    row = d.real(5)
    mask, full = d.mask(4, 5), d.mask(2, 3, 4)
    no_first = mask & (np.arange(4) > 0)[:, None]
    elementwise = [((x, y), {}, {}, 2), ((x,), {}, {}, 1)]
    if name in ("squared_error", "l2_loss"):
        return elementwise
    if name == "log_cosh":
        return [*elementwise, ((x, row), {}, {}, 2), ((d.real(4, 1), row), {}, {}, 2)]
    if name == "huber_loss":
        return [
            *elementwise,
            ((x, row), {"delta": d.probability() + 0.5}, {}, 2),
            ((x, y), {"delta": d.probability(4, 1) + 0.5}, {}, 2),
        ]
    if name in ("cosine_similarity", "cosine_distance"):
        return [
            ((x, y), {}, {}, 2),
            ((x, row), {}, {}, 2),
            ((z, d.real(2, 3, 4)), {}, {"axis": (0, 2)}, 2),
            ((z, d.real(2, 3, 4)), {}, {"axis": None, "epsilon": 50.0}, 2),
            ((z, d.real(2, 3, 4)), {"where": d.mask(2, 1, 4)}, {"axis": 1, "epsilon": 1e-6}, 0),
            ((x, y), {"where": d.mask(4, 5, one_along=-1), "epsilon": d.probability(4, 1) * 20}, {}, 2),
        ]
    if name == "sigmoid_binary_cross_entropy":
        return [
            ((x, d.probability(4, 5)), {}, {}, 2),
            ((x, d.binary(5)), {}, {}, 1),
            ((x, d.label(2, 4, 1)), {}, {}, 1),
        ]
    if name == "sigmoid_focal_loss":
        soft = d.probability(4, 5)
        return [
            ((x, soft), {}, {}, 2),
            ((x, soft), {"alpha": d.probability()}, {"gamma": 0.5}, 2),
            ((x, d.binary(4, 5)), {"alpha": d.probability(5), "gamma": d.probability(4, 1) + 0.5}, {}, 1),
        ]
    if name == "hinge_loss":
        return [((x, d.sign(4, 5)), {}, {}, 2), ((x, d.sign(5)), {}, {}, 1), ((x, d.label(2, 4, 1) * 2 - 1), {}, {}, 1)]
    if name == "perceptron_loss":
        return [((x, d.sign(4, 5)), {}, {}, 2)]
    if name == "sparsemax_loss":
        return [((x, d.binary(4, 5)), {}, {}, 1), ((x, d.label(2, 5)), {}, {}, 1)]
    if name == "softmax_cross_entropy":
        t = d.distribution(4, 5)
        return [
            ((x, t), {}, {}, 2),
            ((x, d.distribution(5)), {}, {}, 2),
            ((row, t), {}, {}, 2),
            ((x, d.probability(4, 1)), {}, {}, 2),
            ((z, d.distribution(2, 3, 4)), {}, {"axis": (0, 2)}, 2),
            ((z, d.distribution(2, 3, 4)), {}, {"axis": None}, 2),
            ((x, t), {"where": d.mask(4)}, {}, 1),
            ((x, t), {"where": no_first}, {}, 1),
            ((z, d.distribution(2, 3, 4)), {"where": d.mask(2, 4)}, {"axis": 1}, 1),
        ]
    if name == "safe_softmax_cross_entropy":
        ruled_out = np.where(mask, x, -np.inf).astype(np.float32)
        return [
            ((x, d.distribution(4, 5)), {}, {}, 2),
            ((ruled_out, np.where(mask, d.distribution(4, 5), 0)), {}, {}, 0),
            ((x, d.distribution(5)), {}, {}, 2),
        ]
    if name == "softmax_cross_entropy_with_integer_labels":
        label = d.label(5, 4)
        seen = mask.copy()
        np.put_along_axis(seen, label[..., None], mask[..., :1], axis=-1)  # the label's class, or nothing
        seen &= mask[..., :1]
        return [
            ((x, label), {}, {}, 1),
            ((x, d.label(5, 1)), {}, {}, 1),
            ((d.real(1, 5), label), {}, {}, 1),
            ((x, label), {"where": d.mask(4)}, {}, 1),
            ((x, label), {"where": seen}, {}, 1),
            ((z, d.label(8, 3)), {}, {"axis": (0, 2)}, 1),
            ((z, d.label(8, 3)), {}, {"axis": (2, 0)}, 1),
            ((z, d.label(3, 2, 4)), {"where": d.mask(2, 4)}, {"axis": 1}, 1),
        ]
    if name == "poly_loss_cross_entropy":
        t = d.distribution(4, 5)
        return [
            ((x, t), {}, {}, 2),
            ((x, d.distribution(5)), {"epsilon": d.real()}, {}, 2),
            ((z, d.distribution(2, 3, 4)), {"epsilon": d.real(3)}, {"axis": (0, 2)}, 2),
            ((x, t), {"where": d.mask(4, 5, one_along=-1)}, {"epsilon": -1.0}, 1),
        ]
    if name in ("multiclass_hinge_loss", "multiclass_perceptron_loss"):
        return [((x, d.label(5, 4)), {}, {}, 1), ((row, d.label(5)), {}, {}, 1), ((row, d.label(5, 4)), {}, {}, 1)]
    if name == "multiclass_sparsemax_loss":
        return [((x, d.label(5, 4)), {}, {}, 1)]
    if name == "kl_divergence":
        t = d.distribution(4, 5)
        return [
            ((d.log_distribution(4, 5), t), {}, {}, 2),
            ((d.log_distribution(4, 5), d.distribution(5)), {}, {}, 2),
            ((z, np.exp(d.real(2, 3, 4))), {}, {"axis": (0, 2)}, 2),
            ((z, np.exp(d.real(2, 3, 4))), {"where": full}, {"axis": None}, 2),
            ((d.log_distribution(4, 5), np.where(mask, t, 0)), {"where": d.mask(4, 1)}, {"axis": 0}, 1),
        ]
    if name in ("generalized_kl_divergence", "convex_kl_divergence"):
        return [
            ((x, np.exp(y)), {}, {}, 2),
            ((x, np.exp(row)), {}, {}, 2),
            ((z, np.exp(d.real(2, 3, 4))), {"where": full}, {"axis": (0, 2)}, 2),
            ((x, np.where(mask, np.exp(y), 0)), {}, {"axis": None}, 1),
        ]
    if name == "kl_divergence_with_log_targets":
        return [
            ((d.log_distribution(4, 5), d.log_distribution(4, 5)), {}, {}, 2),
            ((d.log_distribution(4, 5), d.log_distribution(5)), {}, {}, 2),
            ((z, d.real(2, 3, 4)), {"where": full}, {"axis": (0, 2)}, 2),
        ]
    if name in ("ctc_loss", "ctc_loss_with_forward_probs"):
        labels = d.label(3, 3, 3, low=1)  # few classes: many repeats
        return [
            ((d.real(3, 9, 4), d.paddings(9, 6, 3), labels, d.paddings(3, 0, 3)), {}, {}, 1),
            ((d.real(3, 9, 4), d.mask(3, 9) * 0.0, labels - 1, d.paddings(3, 0, 3)), {}, {"blank_id": 3}, 1),
        ]
    if name == "make_fenchel_young_loss":
        return [((x, d.distribution(4, 5)), {}, {}, 2), ((row, d.distribution(4, 5)), {}, {}, 2)]
    if name == "ranking_softmax_loss":
        relevance = np.asarray(d.label(3, 4, 5), np.float32)
        some = {"where": no_first, "weights": d.probability(4, 5)}
        return [
            ((x, relevance), {}, {}, 2),
            ((x, relevance), some, {"reduce_fn": None}, 1),
            ((x, relevance), some, {"reduce_fn": jnp.sum}, 1),
            ((x, relevance), some, {}, 1),
            ((x, relevance), {"where": mask}, {"reduce_fn": sum_of_squares}, 1),
            ((x, relevance), {"where": mask < 0}, {}, 1),
            ((x, d.label(3, 5)), {"weights": d.probability(5)}, {"reduce_fn": None}, 1),
        ]
    if name == "smooth_labels":
        t = d.distribution(2, 3, 4)
        return [
            ((t, d.probability()), {}, {}, 2),
            ((t, d.probability(2, 1, 1)), {}, {"axis": (0, 2)}, 2),
            ((t, d.probability()), {}, {"axis": None}, 2),
            ((t, d.probability()), {"where": d.mask(2, 3, 4, one_along=-1)}, {}, 2),
        ]
    if name == "dice_loss":
        p, t = d.real(2, 3, 4, 3), d.one_hot(3, 2, 3, 4)
        some = {"alpha": d.probability(), "beta": d.probability(), "smooth": d.probability() + 0.1}
        return [
            ((p, t), {}, {}, 2),
            ((p, t), {**some, "class_weights": d.probability(3)}, {"reduction": "sum"}, 2),
            ((p, t), some, {"reduction": "none", "ignore_background": True}, 2),
            ((p, t), {"alpha": d.probability(3), "beta": d.probability(2, 3)}, {"reduction": "none"}, 2),
            ((p, t), some, {"axis": (0, -2), "reduction": "none"}, 2),
            ((p, t), {}, {"axis": 1, "reduction": "none"}, 2),
            ((p[..., :1], d.binary(2, 3, 4)), some, {"ignore_background": True}, 1),
            ((p[..., 0], d.binary(2, 3, 4, 1)), {}, {}, 1),
        ]
    if name == "binary_dice_loss":
        return [
            ((d.real(2, 3, 4), d.binary(2, 3, 4)), {"smooth": d.probability() + 0.1}, {}, 2),
            ((d.real(2, 3, 1), d.binary(2, 3, 1)), {}, {}, 2),
        ]
    if name == "multiclass_generalized_dice_loss":
        # Every class is there, or optax's 1e-7 decides.
        t = d.one_hot(3, 2, 3, 4)
        t[:, 0, 0, :3] = np.eye(3)
        return [((d.real(2, 3, 4, 3), t), {}, {}, 1), ((d.real(2, 3, 4, 3), t), {}, {"ignore_background": True}, 1)]
    if name == "ntxent":
        return [
            ((d.real(6, 3), np.asarray([[0, 0, 0, 1, 1, 2]] * DRAWS)), {"temperature": d.probability() + 0.1}, {}, 1),
            ((d.real(6, 3), np.asarray([[0.5, -0.5, 0.5, 0.5, -0.5, 7.0]] * DRAWS, np.float32)), {}, {}, 1),
        ]
    if name == "triplet_margin_loss":
        a = d.real(4, 5)
        return [
            ((a, x, y), {}, {}, 3),
            ((row, x, y), {"margin": d.probability(), "eps": d.probability()}, {}, 3),
            ((z, d.real(2, 3, 4), d.real(2, 3, 4)), {"margin": d.probability(2, 4)}, {"axis": 1, "norm_degree": 4}, 3),
        ]
    raise AssertionError(f"no case for {name}")


def reachable(function):
    """What no path leads to is -1e5 in our tables; in optax's it is somewhat less, and has a slope."""

    def call(*args, **kwargs):
        loss, *tables = function(*args, **kwargs)
        return loss, *(jnp.where(table < -9e4, -1e5, table) for table in tables)

    return call


def evaluated(module, name):
    """All cases of a function in one program: their outputs and their gradients towards random cotangents."""
    function = getattr(module, name)
    if name == "make_fenchel_young_loss":
        function = function(jax.scipy.special.logsumexp)
    if name == "ctc_loss_with_forward_probs":
        function = reachable(function)

    def one(arguments, keywords, options, differentiated, seed):
        def loss(*first):
            return function(*first, *arguments[differentiated:], **keywords, **options)

        value, pull = jax.vjp(loss, *arguments[:differentiated])
        cotangents = jax.tree.map(lambda v: 0.5 + seed * jnp.reshape(jnp.arange(v.size) % 3, v.shape), value)
        return value, pull(jax.tree.map(lambda c, v: c.astype(v.dtype), cotangents, value))

    table = cases(name)

    def every(arrays, seed):
        return [one(*given, *row[2:], seed) for given, row in zip(arrays, table, strict=True)]

    arrays = [(arguments, keywords) for arguments, keywords, *_ in table]
    with jax.numpy_rank_promotion("allow" if module is theirs else "raise"):
        return jax.jit(jax.vmap(every))(arrays, np.arange(1.0, DRAWS + 1, dtype=np.float32))


# --- Where they differ ---------------------------------------------------------------------------------------------


def f(x, dtype=np.float32):
    return np.asarray(x, dtype)


def both(loss, *arguments):
    """The loss, and its gradient towards the first argument, in one program."""

    @jax.jit
    def run(x):
        value, pull = jax.vjp(lambda x: loss(x, *arguments[1:]), x)
        return value, pull(jnp.ones_like(value))[0]

    return run(arguments[0])


INF, NAN = math.inf, math.nan
NONE, SOFT = f([0, 0.5, 0.5]), f([0.75, 0.25])
ROW = f([1, 2, 3])
PIXELS = f(np.random.default_rng(0).normal(size=(1, 4, 3)))
TWO_OF_THREE = np.eye(3, dtype=np.float32)[[[0, 1, 1, 0]]]


def log_sum_exp(z):
    return mp.log(mp.fsum(mp.exp(mp.mpf(float(x))) for x in z))


def softmax(z):
    return [mp.exp(mp.mpf(float(x)) - log_sum_exp(z)) for x in z]


def cross_entropy_and_gradient(z, label):
    p = softmax(z)
    # 1 - p of the label by the others, though 120 digits would do.
    return log_sum_exp(z) - float(z[label]), [p[j] - (j == label) for j in range(len(z))]


def poly(z, label, epsilon):
    p = softmax(z)
    return -mp.log(p[label]) + epsilon * (1 - p[label])


def sparsemax(z, label):
    """By the definition, over all supports."""
    z = [mp.mpf(float(x)) for x in z]
    for size in range(len(z), 0, -1):
        for support in itertools.combinations(range(len(z)), size):
            threshold = (sum(z[j] for j in support) - 1) / size
            p = [max(x - threshold, 0) for x in z]
            if abs(sum(p) - 1) < mp.mpf(10) ** -50:
                return sum(a * b for a, b in zip(p, z, strict=True)) - z[label] + (1 - sum(a * a for a in p)) / 2
    raise AssertionError


def sigmoid(x):
    return 1 / (1 + mp.exp(-mp.mpf(float(x))))


def dice(z, t):
    p = [sigmoid(x) for x in z]
    met = mp.fsum(a * b for a, b in zip(p, t, strict=True))
    return 1 - 2 * met / (mp.fsum(p) + sum(t))


def dice_of_present():
    """The mean over the two classes that are there, by 1 / pixels^2; they have 2 of 4 pixels each."""
    p = np.asarray([[[float(x) for x in softmax(row)] for row in image] for image in PIXELS], np.float64)
    met = np.sum(p * TWO_OF_THREE, axis=1)
    each = 1 - (met + 1) / (0.5 * (p.sum(1) + TWO_OF_THREE.sum(1)) + 1)
    return float((each[0, 0] + each[0, 1]) / 2)


def pairs(x, labels, temperature):
    x = np.asarray(x, np.float64)
    s = x @ x.T / np.outer(*2 * [np.linalg.norm(x, axis=1)]) / temperature
    each = [
        np.log(np.exp(s[i, j]) + sum(np.exp(s[i, k]) for k in range(len(x)) if labels[k] != labels[i])) - s[i, j]
        for i in range(len(x))
        for j in range(len(x))
        if i != j and labels[i] == labels[j]
    ]
    return np.mean(each)


def cosine(x, y):
    x, y = ([mp.mpf(float(a)) for a in v] for v in (x, y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / mp.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


SHORT = [[1e-5, 2e-5], [2e-5, 1e-5], [1e-5, -1e-5], [1e-5, 1e-5]]
FRAMES, LABEL = f([[[1, 2, -INF], [1, 2, 3]]]), np.array([[1]])
NO_PADDING = {n: f(np.zeros((1, n))) for n in (1, 2)}


def ctc(M, logits, labels, **options):
    return M.ctc_loss(logits, NO_PADDING[logits.shape[1]], labels, NO_PADDING[labels.shape[1]], **options)


def int_labels(M):
    return M.softmax_cross_entropy_with_integer_labels


# By the first words of the docstring's entry: (call, what is right, what optax answers). A pair is value and gradient;
# None is not compared (the value is another at each release, or only its digits are in question).
LOOSE = {"Nearly parallel vectors": 3e-5}  # the unit vectors' rounding over their difference
DIFFERENCES = {
    "Labels out of range": [
        (
            lambda M: both(int_labels(M), ROW, np.int32(-1)),
            (NAN, [NAN] * 3),
            both(theirs.softmax_cross_entropy, ROW, f([0, 0, 1])),
        ),
        (lambda M: both(int_labels(M), ROW, np.int32(3)), (NAN, [NAN] * 3), (NAN, None)),
        (lambda M: both(M.multiclass_hinge_loss, ROW, np.int32(3)), (NAN, [NAN] * 3), (4.0, [0, 0, 1])),
        (lambda M: both(M.multiclass_perceptron_loss, ROW, np.int32(-1)), (NAN, [NAN] * 3), (3.0, [0, 0, 1])),
        (
            lambda M: both(M.multiclass_sparsemax_loss, ROW[None], np.array([-1])),
            ([NAN], [[NAN] * 3]),
            ([0.0], [[0] * 3]),
        ),
        (lambda M: ctc(M, f([[ROW, ROW]]), np.array([[7]])), [NAN], None),
        (lambda M: ctc(M, f([[ROW, ROW]]), np.array([[0]])), [NAN], None),
    ],
    "A label that `where` excludes": [
        (lambda M: int_labels(M)(ROW, np.int32(2), where=np.array([True, True, False])), INF, None),
    ],
    "Classes ruled out": [
        (
            lambda M: both(M.softmax_cross_entropy, f([-INF, 1, 2]), NONE),
            (0.5 + math.log(1 + math.exp(-1)), None),
            (NAN, None),
        ),
        (
            lambda M: jax.jacfwd(M.safe_softmax_cross_entropy)(f([-INF, 1, 2]), NONE),
            [0, -0.23105858, 0.23105858],
            [NAN] * 3,
        ),
        (lambda M: both(M.ranking_softmax_loss, f([1, -INF]), f([1, 0])), (0.0, [0, 0]), (NAN, None)),
        (lambda M: M.make_fenchel_young_loss(jax.scipy.special.logsumexp)(f([1, -INF]), f([1, 0])), 0.0, NAN),
    ],
    "Confident rows": [
        (
            lambda M: both(int_labels(M), f([40, 0, 0]), np.int32(0)),
            cross_entropy_and_gradient([40, 0, 0], 0),
            (0.0, None),
        ),
        (
            lambda M: both(M.softmax_cross_entropy, f([40, 0, 0]), f([1, 0, 0])),
            cross_entropy_and_gradient([40, 0, 0], 0),
            (0.0, None),
        ),
        (lambda M: M.poly_loss_cross_entropy(f([40, 0, 0]), f([1, 0, 0])), poly([40, 0, 0], 0, 2), 0.0),
    ],
    "Offsets": [
        (lambda M: int_labels(M)(f([30000, 30001, 30000]), np.int32(0)), log_sum_exp([0, 1, 0]), None),
        (
            lambda M: M.multiclass_sparsemax_loss(f([[1e4 + 0.1, 1e4, 1e4 + 0.5]]), np.array([0])),
            [sparsemax(f([1e4 + 0.1, 1e4, 1e4 + 0.5]), 0)],
            None,
        ),
    ],
    "Many classes in float16": [
        (lambda M: int_labels(M)(np.zeros(70000, np.float16), np.int32(0)), math.log(70000), INF),
    ],
    "Sparsemax of any shape": [
        (lambda M: M.multiclass_sparsemax_loss(f([[[1, 2, 3]]]), np.array([[2]])), [[0.0]], Exception),
    ],
    "Infinite binary logits": [
        (
            lambda M: both(M.sigmoid_binary_cross_entropy, f([INF, -INF]), f([1, 0])),
            ([0, 0], [0, 0]),
            ([NAN, NAN], None),
        ),
        (lambda M: both(M.sigmoid_focal_loss, f([INF, -INF]), f([1, 0])), ([0, 0], [0, 0]), ([NAN, NAN], None)),
    ],
    "Huge binary logits": [
        (
            lambda M: both(M.sigmoid_focal_loss, f([3e38, -3e38]), f([0, 1])),
            (f([3e38, 3e38]), [1, -1]),
            (None, [NAN, NAN]),
        ),
        (lambda M: both(M.sparsemax_loss, f([3e38, -3e38]), f([0, 1])), (f([3e38, 3e38]), [1, -1]), (None, [NAN, NAN])),
    ],
    "At a kink": [
        (lambda M: both(M.hinge_loss, f(1), f(1)), (0.0, 0.0), (0.0, -0.5)),
        (lambda M: both(M.perceptron_loss, f(0), f(1)), (0.0, 0.0), (0.0, -0.5)),
        (lambda M: both(M.multiclass_hinge_loss, f([1, 0, -1]), np.int32(0)), (0.0, [0, 0, 0]), (0.0, [-0.5, 0.5, 0])),
        (
            lambda M: both(M.multiclass_perceptron_loss, f([1, 1, -1]), np.int32(0)),
            (0.0, [0, 0, 0]),
            (0.0, [-0.5, 0.5, 0]),
        ),
    ],
    "Impossible outcomes": [
        (lambda M: M.kl_divergence(f([-INF, -1, -1]), NONE), 1 - math.log(2), NAN),
        (
            lambda M: both(M.kl_divergence_with_log_targets, f([-1, -1, -1]), f([-INF, -1, -1])),
            (0.0, None),
            (NAN, None),
        ),
        (lambda M: M.generalized_kl_divergence(f([-INF, -1, -1]), NONE), 2 * math.exp(-1) - math.log(2), NAN),
    ],
    "The gradient towards a target of 0": [
        (
            lambda M: jax.grad(lambda t: M.kl_divergence(f([-1, -1, -1]), t))(NONE),
            [-INF, 2 - math.log(2), 2 - math.log(2)],
            [NAN, None, None],
        ),
    ],
    "Generalised divergence of close masses": [
        (
            lambda M: M.generalized_kl_divergence(f([1e-4, 0]), f([1, 1])),
            mp.expm1(float(f(1e-4))) - float(f(1e-4)),
            None,
        ),
    ],
    "Small residuals": [
        (lambda M: both(M.huber_loss, f(1e-9), f(0)), (None, 1e-9), (None, 0.0)),
        (lambda M: both(M.log_cosh, f([1e-4, 1e-9])), ([0.5e-8, 0.5e-18], [1e-4, 1e-9]), ([0.0, 0.0], None)),
    ],
    "Large residuals": [(lambda M: M.l2_loss(f(2.2e19)), float(f(2.2e19)) ** 2 / 2, INF)],
    "Zero vectors": [
        (lambda M: both(M.cosine_distance, f([0, 0]), f([1, 2])), (1.0, [0, 0]), (NAN, [NAN, NAN])),
        (lambda M: both(M.cosine_similarity, f([0, 0]), f([1, 2])), (0.0, [0, 0]), (NAN, [NAN, NAN])),
    ],
    "Long and short vectors": [
        (lambda M: M.cosine_similarity(f([1e20, 1e20]), f([1, 2])), cosine([1, 1], [1, 2]), 0.0),
        (lambda M: M.cosine_similarity(f([1e-25, 1e-25]), f([1, 2])), cosine([1, 1], [1, 2]), INF),
        (lambda M: M.cosine_distance(f([1e20, 1e20]), f([1, 2]), epsilon=1e-6), 1 - cosine([1, 1], [1, 2]), 1.0),
    ],
    "Nearly parallel vectors": [
        (lambda M: M.cosine_distance(f([1, 1]), f([1.01, 1])), 1 - cosine([1, 1], f([1.01, 1])), None),
        (lambda M: M.cosine_distance(f([1, 1]), f([1.01, 1]), epsilon=1e-3), 1 - cosine([1, 1], f([1.01, 1])), None),
    ],
    "A good image": [
        (lambda M: M.dice_loss(f([[[30], [-30]]]), f([[[1], [0]]]), smooth=0.0), [dice([30, -30], [1, 0])], [0.0]),
    ],
    "Nothing to find": [
        (
            lambda M: both(functools.partial(M.dice_loss, smooth=0.0), f([[[-200], [-200]]]), f([[[0], [0]]])),
            ([0.0], [[[0], [0]]]),
            ([NAN], None),
        ),
    ],
    "Probabilities of one channel": [
        (lambda M: M.binary_dice_loss(f([[0.2, 0.7]]), f([[0, 1]]), apply_sigmoid=False), [1 - 1.7 / 1.95], ValueError),
        (lambda M: M.binary_dice_loss(f([[0.2, 1.7]]), f([[0, 1]]), apply_sigmoid=False), ValueError, ValueError),
    ],
    "Probabilities inside jit": [
        (
            lambda M: jax.jit(lambda p: M.dice_loss(p, f([[[0, 1]]] * 2), apply_softmax=False))(
                f([[[0.2, 0.8]], [[0.2, 0.7]]])
            ),
            [(0.1 / 1.1 + 0.1 / 1.9) / 2, NAN],
            jax.errors.TracerBoolConversionError,
        ),
    ],
    "Absent classes": [
        (lambda M: M.multiclass_generalized_dice_loss(PIXELS, TWO_OF_THREE), dice_of_present(), None),
    ],
    "Rows without a positive": [
        (lambda M: both(M.ntxent, f([[1, 2], [2, 1], [1, 1]]), np.arange(3)), (0.0, np.zeros((3, 2))), (NAN, None)),
    ],
    "Short embeddings": [
        (lambda M: M.ntxent(f(SHORT), np.array([0, 0, 1, 1]), 0.5), pairs(SHORT, [0, 0, 1, 1], 0.5), None),
    ],
    "Odd norms": [
        (lambda M: M.triplet_margin_loss(f([0, 0]), f([2, 0]), f([0, 2.5]), norm_degree=1, eps=0.0), 0.5, None),
        (lambda M: M.triplet_margin_loss(f([0, 0]), f([2, 0]), f([0, 2]), norm_degree=3, eps=0.0), 1.0, NAN),
    ],
    "Equal vectors": [
        (
            lambda M: both(functools.partial(M.triplet_margin_loss, eps=0.0), f([1, 2]), f([1, 2]), f([1, 2])),
            (1.0, [0, 0]),
            (1.0, [NAN, NAN]),
        ),
    ],
    "A traced degree": [
        (
            lambda M: jax.jit(lambda k: M.triplet_margin_loss(f([0, 0]), f([2, 0]), f([0, 2]), norm_degree=k))(2),
            TypeError,
            None,
        ),
    ],
    "Negative losses": [
        (lambda M: ctc(M, f([[[0, 30, 0], [30, 0, 0]]]), LABEL) >= 0, [True], [False]),
    ],
    "Labels without an alignment": [
        (
            lambda M: both(lambda z: ctc(M, z, np.array([[1, 2]]), log_epsilon=-1e4), f([[ROW]])),
            ([INF], [[[0, 0, 0]]]),
            None,
        ),
        (
            lambda M: M.ctc_loss_with_forward_probs(
                f([[ROW]]), NO_PADDING[1], np.array([[1, 2]]), NO_PADDING[2], log_epsilon=-1e4
            )[2][0, 0, 1],
            -1e4,
            None,
        ),
    ],
    "Classes ruled out in a frame": [
        (
            lambda M: ctc(M, FRAMES, LABEL),
            [-mp.log(mp.mpf(1) - softmax([1, 2])[0] * softmax(ROW)[0] - softmax(ROW)[2])],
            [NAN],
        ),
    ],
    "Half precision": [
        (lambda M: int_labels(M)(f([1, 2], jnp.bfloat16), np.int32(0)).dtype == np.float32, True, False),
        (
            lambda M: (
                both(M.sigmoid_binary_cross_entropy, f([1], np.float16), f([1], np.float16))[1].dtype == np.float16
            ),
            True,
            True,
        ),
        (
            lambda M: M.triplet_margin_loss(*f([[0, 0], [1e-4, 0], [0, 0]], np.float16), margin=0.0, eps=0.0),
            float(f(1e-4, np.float16)),
            0.0,
        ),
    ],
    "Integer scores": [
        (lambda M: M.hinge_loss(np.array([1, 2]), np.array([1, -1])).dtype == np.float32, True, False),
        (lambda M: M.perceptron_loss(np.array([1, 2]), np.array([1, -1])), [0.0, 2.0], [0, 2]),
        (lambda M: M.multiclass_sparsemax_loss(np.array([[0, 2]]), np.array([1])), [0.0], FutureWarning),
    ],
    "Repeated vectors": [
        (lambda M: M.softmax_cross_entropy(f([[1], [2]]), f([SOFT, SOFT])), ValueError, [0, 0]),
        (lambda M: M.cosine_similarity(f([[1], [2]]), f([[1, 2], [1, 1]])), ValueError, None),
    ],
    "Smoothing over `where`": [
        (
            lambda M: M.smooth_labels(f([[0, 1, 0, 0]]), 0.2, where=np.ones((1, 1), bool)),
            [[0.05, 0.85, 0.05, 0.05]],
            [[0.2, 1, 0.2, 0.2]],
        ),
        (
            lambda M: M.smooth_labels(f([[0, 1, 0, 0]]), 0.2, where=np.zeros((1, 4), bool)),
            [[0, 0.8, 0, 0]],
            [[INF] * 4],
        ),
    ],
    "Arguments of max_fun": [
        (
            lambda M: M.make_fenchel_young_loss(lambda row, b=1.0: b * jnp.max(row))(f([1, 2]), f([1, 0]), b=3.0),
            5.0,
            1.0,
        ),
        (
            lambda M: M.make_fenchel_young_loss(lambda row, b: b * jnp.max(row))(f([1, 2]), f([1, 0]), 3.0),
            5.0,
            TypeError,
        ),
    ],
}


def assert_is(found, due, rtol):
    if due is None:
        return
    if isinstance(due, tuple) or (isinstance(due, list) and None in due):
        for a, b in zip(found, due, strict=True):
            assert_is(a, b, rtol)
    else:
        np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(due, np.float64), rtol=rtol, atol=0)


def check(call, module, due, rtol):
    if isinstance(due, type):
        with pytest.raises(due):
            call(module)
    else:
        assert_is(call(module), due, rtol)


def test_every_difference_is_tested():
    said = re.findall(r"^  - ([^:]+?):", inspect.getdoc(ours), re.MULTILINE)
    assert len(said) == len(set(said))
    assert set(said) == set(DIFFERENCES)


@pytest.mark.parametrize("words", DIFFERENCES)
def test_difference(words):
    for call, right, _ in DIFFERENCES[words]:
        check(call, ours, right, rtol=LOOSE.get(words, 1e-6))


# With the release that the list speaks of; a later one may have learnt.
@pytest.mark.exhaustive
@pytest.mark.skipif(optax.__version__ != "0.2.8", reason="the list is of optax 0.2.8")
@pytest.mark.parametrize("words", DIFFERENCES)
def test_difference_as_optax_has_it(words):
    with jax.numpy_rank_promotion("allow"):
        for call, _, stated in DIFFERENCES[words]:
            check(call, theirs, stated, rtol=1e-5)


# --- What optax's tests and values do not say -----------------------------------------------------------------------


def paths_after_each_frame(p, labels):
    """Sums of probabilities over all class sequences, by what they say: [T, N + 1] and [T, N], the blank being 0."""
    frames, classes, count = *p.shape, len(labels)
    blanks, said = np.zeros((frames, count + 1)), np.zeros((frames, count))
    for t in range(frames):
        for path in itertools.product(range(classes), repeat=t + 1):
            words = [c for c, before in zip(path, (None, *path), strict=False) if c not in (0, before)]
            if words != list(labels[: len(words)]):
                continue
            weight = math.prod(p[i, c] for i, c in enumerate(path))
            if path[-1] == 0:
                blanks[t, len(words)] += weight
            else:
                said[t, len(words) - 1] += weight
    blanks[-1, 1:] += said[-1]  # optax's last row has both ends
    return blanks, said


@pytest.mark.exhaustive
@pytest.mark.parametrize("labels", [[1, 1], [1, 2]])
def test_forward_tables_are_sums_over_paths(labels):
    logits = f(np.random.default_rng(3).normal(size=(1, 5, 3)))
    logits[0, 1, 2] = -INF
    logits[0, 3] = NAN  # padded
    padding = f([[0, 0, 0, 1, 0]])
    loss, *tables = ours.ctc_loss_with_forward_probs(
        logits + f(1e4), padding, np.array([labels]), NO_PADDING[2], log_epsilon=-INF
    )
    p = np.exp((logits[0] + f(1e4)).astype(np.float64) - 1e4)[[0, 1, 2, 4]]
    due = paths_after_each_frame(p / p.sum(-1, keepdims=True), labels)
    for table, sums in zip(tables, due, strict=True):
        np.testing.assert_allclose(np.exp(table[np.array([0, 1, 2, 4]), 0]), sums, rtol=2e-6)
    np.testing.assert_array_equal(tables[0][3], tables[0][2])
    np.testing.assert_allclose(np.exp(-loss), due[0][-1, -1:], rtol=1e-6)


@pytest.mark.exhaustive
def test_padded_frames_need_not_be_last():
    rng = np.random.default_rng(5)
    logits, labels = f(rng.normal(size=(2, 9, 4))), np.array([[1, 1, 2], [3, 1, -1]])
    there = np.array([1, 0, 1, 1, 0, 0, 1, 1, 1], bool)
    with_holes = np.where(there[None, :, None], logits, NAN)
    no_label = f([[0, 0, 0], [0, 0, 1]])

    def mean(z, padding):
        losses, blanks, _ = ours.ctc_loss_with_forward_probs(z, padding, labels, no_label)
        return jnp.mean(losses) + jnp.sum(jnp.exp(blanks[-1]))

    run = jax.jit(jax.value_and_grad(mean))
    value, gradient = run(with_holes, f(np.tile(~there, (2, 1))))
    order = np.argsort(~there, stable=True)
    due, due_gradient = run(with_holes[:, order], f(np.tile(~there[order], (2, 1))))
    np.testing.assert_allclose(value, due, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, order], due_gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[:, ~there], 0)


@pytest.mark.exhaustive
def test_second_derivatives_do_not_see_padded_frames():
    def slope(z):
        return jax.grad(lambda z: ours.ctc_loss(z, f([[0, 1, 0]]), LABEL, NO_PADDING[1])[0])(z)

    z = f([[ROW, [NAN] * 3, ROW]])
    curved = jax.jit(lambda z: jax.jvp(slope, (z,), (jnp.ones_like(z).at[0, 0, 0].set(2),))[1])(z)
    assert np.all(np.isfinite(curved))
    assert np.any(curved != 0)


def test_a_label_behind_the_last_one_is_not_looked_at():
    loss = ours.ctc_loss(f([[ROW, ROW]]), NO_PADDING[2], np.array([[1, -1]]), f([[0, 1]]))
    np.testing.assert_allclose(loss, ours.ctc_loss(f([[ROW, ROW]]), NO_PADDING[2], LABEL, NO_PADDING[1]), rtol=1e-6)
    nothing = ours.ctc_loss(f([[ROW, ROW]]), NO_PADDING[2], np.zeros((1, 0), int), f(np.zeros((1, 0))))
    np.testing.assert_allclose(nothing, [float(-2 * mp.log(softmax(ROW)[0]))], rtol=1e-6)


REFUSED = {
    "squared_error of two shapes": (lambda: ours.squared_error(ROW, ROW[:, None]), ValueError),
    "perceptron of two shapes": (lambda: ours.perceptron_loss(f([ROW]), ROW), ValueError),
    "integer predictions": (lambda: ours.huber_loss(np.arange(3)), TypeError),
    "a list": (lambda: ours.log_cosh([1.0, 2.0]), TypeError),
    "integer targets of a divergence": (lambda: ours.kl_divergence(ROW, np.arange(3)), TypeError),
    "integer soft labels of poly": (lambda: ours.poly_loss_cross_entropy(ROW, np.array([0, 1, 0])), TypeError),
    "real labels": (lambda: ours.softmax_cross_entropy_with_integer_labels(ROW, f(1)), TypeError),
    "no class axis": (lambda: ours.softmax_cross_entropy_with_integer_labels(ROW, np.int32(1), axis=None), ValueError),
    "an axis that is not there": (lambda: ours.softmax_cross_entropy(ROW, ROW, axis=1), ValueError),
    "an axis named twice": (lambda: ours.cosine_distance(f([ROW]), f([ROW]), axis=(1, -1)), ValueError),
    "other classes": (lambda: ours.softmax_cross_entropy(ROW, SOFT), ValueError),
    "another reduction": (lambda: ours.dice_loss(PIXELS, PIXELS, reduction="average"), ValueError),
    "weights of two axes": (lambda: ours.dice_loss(PIXELS, PIXELS, class_weights=PIXELS[0]), ValueError),
    "images of two shapes": (lambda: ours.dice_loss(PIXELS, PIXELS[..., :2]), ValueError),
    "labels of other rows": (lambda: ours.ntxent(PIXELS[0], np.arange(3)), ValueError),
    "paddings of other frames": (lambda: ctc_of(logit_paddings=f([[0, 0, 0]])), ValueError),
    "labels without a batch": (lambda: ctc_of(labels=np.array([1])), ValueError),
    "real labels of CTC": (lambda: ctc_of(labels=f([[1]])), TypeError),
    "a blank that is no class": (lambda: ctc_of(blank_id=-1), ValueError),
}


def ctc_of(logit_paddings=NO_PADDING[2], labels=LABEL, **options):
    return ours.ctc_loss(f([[ROW, ROW]]), logit_paddings, labels, NO_PADDING[1], **options)


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    call, error = REFUSED[what]
    with pytest.raises(error):
        call()


def test_the_deprecated_name_warns_of_its_caller():
    with pytest.warns(DeprecationWarning, match="use generalized_kl_divergence") as seen:
        ours.convex_kl_divergence(ROW, ROW)
    assert seen[0].filename == __file__


@pytest.mark.exhaustive
def test_rows_on_four_devices(devices):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    rows = jax.sharding.PartitionSpec("rows")
    rng = np.random.default_rng(7)
    logits, labels = f(rng.normal(size=(8, 5, 4))), rng.integers(1, 4, (8, 2))
    x, groups = f(rng.normal(size=(16, 3))), np.tile([0, 0, 1, 1], 4)

    def local(logits, labels, x, groups):
        tables = ours.ctc_loss_with_forward_probs(logits, 0 * logits[..., 0], labels, 0.0 * labels)
        return tables[0], *(jnp.moveaxis(table, 1, 0) for table in tables[1:]), ours.ntxent(x, groups)[None]

    split = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=True))
    *found, each = split(logits, labels, x, groups)
    *whole, _ = local(logits, labels, x, groups)
    for a, b in zip(found, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for i in range(4):  # local rows only, as the card says
        np.testing.assert_allclose(each[i], ours.ntxent(x[4 * i : 4 * i + 4], groups[:4]), rtol=1e-5)


# Last: from here on the module is compiled in haste, and what measures digits is not.
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*convex_kl_divergence:DeprecationWarning")
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", PUBLIC)
def test_values_and_gradients_beside_optax(name):
    got, expected = evaluated(ours, name), evaluated(theirs, name)
    for i, (mine, other) in enumerate(zip(got, expected, strict=True)):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
            assert a.shape == b.shape, (name, i)
            assert a.dtype == b.dtype, (name, i)
            np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-6, err_msg=f"{name}, case {i}")
