"""What is said about other libraries' losses is true: every public name is answered, and every conversion evaluated.

A conversion is evaluated as it stands, with the peer's own argument names and defaults, on drawn arguments, and
compared with what the peer returns for them. optax is installed everywhere; what needs another library skips without.
"""

import ast
import builtins
import functools
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss as jl
from jaxloss import catalogue, peers

pytestmark = pytest.mark.usefixtures("quick_compilation")

ANSWERS = peers.answers()
OTHERS = [library for library in peers.LIBRARIES if library != "optax"]


def label(answer):
    return f"{answer.names[0]} {answer.when}".strip()


def library_of(name):
    return name.partition(".")[0]


# ---------------------------------------------------------------------------------------------------------------------
# The tables by themselves


def test_an_answer_says_what_to_write_or_why_there_is_nothing_yet():
    for answer in ANSWERS:
        assert bool(answer.not_yet) != bool(answer.differs), label(answer)
        assert not (answer.not_yet and answer.call), label(answer)
        assert answer.loss is None or f"jl.{answer.loss}(" in answer.call, label(answer)
        assert "\n" not in answer.call
        for text in filter(None, (answer.differs, answer.not_yet)):
            assert text == " ".join(text.split()), label(answer)
            assert text.endswith("."), text


def test_a_name_has_several_answers_only_where_each_says_when():
    whens = {}
    for answer in ANSWERS:
        for name in answer.names:
            whens.setdefault(name, []).append(answer.when)
    for name, each in whens.items():
        assert len(each) == len(set(each)), name
        assert len(each) == 1 or all(each), name


def test_each_table_is_about_its_library():
    for library in peers.LIBRARIES:
        table = importlib.import_module(f"jaxloss.peers.{library}").ANSWERS
        assert table
        assert {library_of(name) for answer in table for name in answer.names} == {library}


@pytest.mark.parametrize("answer", ANSWERS, ids=label)
def test_whatever_is_named_exists_and_takes_these_arguments(answer):
    for path in re.findall(r"\bjl\.([a-z_0-9.]*[a-z_0-9])", f"{answer.call} {answer.differs} {answer.not_yet}"):
        assert callable(functools.reduce(getattr, path.split("."), jl)), path
    for node in ast.walk(ast.parse(answer.call or "0", mode="eval")):
        if isinstance(node, ast.Call) and re.fullmatch(r"jl(\.\w+)+", ast.unparse(node.func)):
            function = functools.reduce(getattr, ast.unparse(node.func).split(".")[1:], jl)
            inspect.signature(function).bind(*node.args, **{k.arg: k.value for k in node.keywords})


def test_every_peer_on_a_card_is_answered():
    answered = {name for answer in ANSWERS for name in answer.names}
    on_cards = {name: entry.name for entry in catalogue.entries() for name in entry.peers}
    missing = {n: e for n, e in on_cards.items() if library_of(n) in peers.LIBRARIES and n not in answered}
    assert not missing


@pytest.mark.parametrize("answer", [a for a in ANSWERS if a.loss], ids=label)
def test_the_loss_of_an_answer_names_it_on_its_card(answer):
    def spelt(name):  # a class and its function are one
        return library_of(name), catalogue._bare(catalogue._last(name))

    card = catalogue.entry(answer.loss)
    assert {spelt(name) for name in answer.names} & {spelt(name) for name in card.peers}, card.peers


def test_the_tables_are_read_when_they_are_asked_for():
    program = "import sys, jaxloss; print(*(m for m in sys.modules if m.startswith('jaxloss.peers.')))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


# ---------------------------------------------------------------------------------------------------------------------
# The walk over what the libraries have


def installed(library):
    """The library, or a skip; some warn when they are imported."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("KERAS_BACKEND", "jax")
        return pytest.importorskip(library)


def public(module, of=inspect.isroutine):
    return [(name, each) for name, each in inspect.getmembers(module, of) if not name.startswith("_")]


def losses_of_optax():
    return [f"optax.losses.{name}" for name, _ in public(installed("optax").losses)]


def losses_of_torch():
    nn = installed("torch").nn
    yield from (f"torch.nn.{name}" for name, _ in public(nn, inspect.isclass) if re.search(r"Loss(\dd)?$", name))
    for name, function in public(nn.functional):
        if "reduction" in signature(function):  # what reduces is a loss
            yield f"torch.nn.functional.{name}"


def losses_of_keras():
    losses = installed("keras").losses
    for name, each in public(losses, inspect.isclass):
        if issubclass(each, losses.Loss) and each is not losses.Loss:
            yield f"keras.losses.{name}"
    for name, each in public(losses):
        if list(inspect.signature(each).parameters)[:2] == ["y_true", "y_pred"]:
            yield f"keras.losses.{name}"


def losses_of_rax():
    return [f"rax.{name}" for name, _ in public(installed("rax")) if name.endswith(("_loss", "_t12n", "_lambdaweight"))]


def losses_of_rlax():
    families = ("losses", "value_learning", "policy_gradients", "vtrace", "mpo_ops")
    for name, each in public(installed("rlax")):
        family = each.__module__.rpartition(".")[2]
        if family in families or re.search("loss|divergence|cross_entropy", name) or name.startswith("transformed_"):
            yield f"rlax.{name}"


def losses_of_jaxopt():
    installed("jaxopt")
    loss = importlib.import_module("jaxopt.loss")
    return [f"jaxopt.loss.{name}" for name, _ in public(loss) if name.endswith("_loss")]


# By library: the version that was counted, how many names it has, and for how many of them there is no loss yet.
COUNTED = {
    "jaxopt": ("0.8.5", 10, 0),
    "keras": ("3.15.1", 44, 0),
    "optax": ("0.2.8", 32, 0),
    "rax": ("0.4.0", 18, 8),
    "rlax": ("0.1.9", 52, 43),
    "torch": ("2.13.0", 46, 1),
}


@pytest.mark.parametrize("library", [pytest.param(n, marks=pytest.mark.exhaustive) for n in OTHERS] + ["optax"])
def test_every_public_loss_is_answered(library):
    names = list(globals()[f"losses_of_{library}"]())
    unanswered = [name for name in names if not any(name in answer.names for answer in catalogue.answers(name))]
    assert not unanswered, f"{library} has losses that no table names: {unanswered}"
    not_yet = [name for name in names if all(answer.not_yet for answer in catalogue.answers(name))]
    print(f"{library}: {len(names) - len(not_yet)} answered, {len(not_yet)} not yet")
    version, losses, open_ones = COUNTED[library]
    if importlib.metadata.version(library).partition("+")[0] == version:
        assert (len(names), len(not_yet)) == (losses, open_ones)


@pytest.mark.parametrize("library", [pytest.param(n, marks=pytest.mark.exhaustive) for n in OTHERS] + ["optax"])
def test_every_name_in_a_table_is_the_library_s(library):
    installed(library)
    for answer in importlib.import_module(f"jaxloss.peers.{library}").ANSWERS:
        for name in answer.names:
            assert callable(peer(name)), name


# ---------------------------------------------------------------------------------------------------------------------
# The conversions


def peer(name):
    """The class or function that a dotted name stands for."""
    thing = installed(library_of(name))
    for part in name.split(".")[1:]:
        if inspect.ismodule(thing) and not hasattr(thing, part):
            importlib.import_module(f"{thing.__name__}.{part}")
        thing = getattr(thing, part)
    return thing


def of_pairs(weigh):
    def sum_over_pairs(
        scores, labels, where=None, gain_fn=None, discount_fn=None, topn=None, weights=None, segments=None
    ):
        rax = installed("rax")
        weigh_normalised = functools.partial(getattr(rax, weigh), normalize=True)
        return rax.pairwise_logistic_loss(
            scores, labels, where=where, lambdaweight_fn=weigh_normalised, reduce_fn=jnp.sum
        )

    return sum_over_pairs


def approximate(metric):
    """rax.approx_t12n of a metric, by its parts: rax 0.4.0 makes it with jax.util, which jax 0.10 has no more."""

    def loss(scores, labels, where=None, metric_fn=None, temperature=1.0):
        rax = installed("rax")
        ranks = functools.partial(rax.utils.approx_ranks, step_fn=lambda x: jax.nn.sigmoid(x / temperature))
        return -getattr(rax, metric)(scores, labels, where=where, rank_fn=ranks)

    return loss


def tversky_as_documented(y_true, y_pred, alpha=0.5, beta=0.5, axis=None):
    """keras.losses.tversky, whose version 3.15.1 gives each weight to the other's errors."""
    if tuple(map(int, importlib.metadata.version("keras").split(".")[:3])) <= (3, 15, 1):
        alpha, beta = beta, alpha
    return installed("keras").losses.tversky(y_true, y_pred, alpha=alpha, beta=beta, axis=axis)


# What a name is compared with, where it is not itself the function of the arguments in the answer.
STAND_INS = {
    "approx_ndcg": approximate("ndcg_metric"),
    "approx_mrr": approximate("mrr_metric"),
    "lambda_rank": of_pairs("dcg_lambdaweight"),
    "tversky": tversky_as_documented,
}


def signature(thing):
    """By name; of a class what makes it. What hands on `*args` has the signature of its base."""
    try:
        found = inspect.signature(thing).parameters
    except ValueError:  # written in C++
        return {}
    if inspect.isclass(thing) and any(each.kind is each.VAR_POSITIONAL for each in found.values()):
        return signature(thing.__mro__[1])
    return {name: each.default for name, each in found.items() if each.kind is not each.VAR_KEYWORD}


def parameters(thing):
    """Arguments and their defaults; of a class those that it is called with, too."""
    found = signature(thing)
    if inspect.isclass(thing):
        call = getattr(thing, "forward", None) or getattr(thing, "call", None) or thing.update_state
        found = {**{name: default for name, default in signature(call).items() if name != "self"}, **found}
    return found


def as_torch(value):
    torch = installed("torch")
    if isinstance(value, jax.Array):
        numbers = torch.tensor(np.asarray(value))
        return numbers if numbers.is_floating_point() else numbers.long()
    return value


def ask(thing, arguments):
    """What the peer itself says."""
    if thing.__module__.startswith("torch"):
        arguments = {name: as_torch(value) for name, value in arguments.items()}
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        if inspect.isclass(thing):
            options = signature(thing)
            made = thing(**{name: value for name, value in arguments.items() if name in options})
            inputs = {name: value for name, value in arguments.items() if name not in options}
            if hasattr(made, "update_state"):
                made.update_state(**inputs)
                return np.asarray(made.result())
            # torch calls the first input of one class like one of its options.
            first = [inputs.pop("input")] if "input" in inputs else []
            result = made(*first, **inputs)
        else:
            result = thing(**arguments)
    return np.asarray(result[0] if isinstance(result, tuple) else result)


def every_argument(answer):
    """The arguments of all its names together, with their defaults."""
    if answer.loss in STAND_INS:
        return parameters(STAND_INS[answer.loss])
    return {name: default for each in answer.names for name, default in parameters(peer(each)).items()}


def by_library(answers):
    return [
        pytest.param(each, id=label(each), marks=[pytest.mark.exhaustive] * (library_of(each.names[0]) != "optax"))
        for each in answers
    ]


# What has nothing to do with the value.
ASIDE = {"size_average", "reduce", "name", "dtype", "device"}
CALLED = [answer for answer in ANSWERS if answer.call]


@pytest.mark.parametrize("answer", by_library(a for a in ANSWERS if not a.not_yet))
def test_every_argument_of_the_peer_is_converted_or_spoken_of(answer):
    tree = ast.parse(answer.call or "0", mode="eval")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"jl", "jnp", "jax", *dir(builtins)}
    if answer.names == ("torch.nn.LinearCrossEntropyLoss",):
        used.remove("linear")  # an attribute of the class
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "input"}
    arguments = set(every_argument(answer))
    assert used <= arguments
    silent = {name for name in arguments - used - ASIDE if not re.search(rf"`{name}\b", answer.differs)}
    assert not silent, f"{label(answer)} says nothing of {silent}"


# Small draws, by the loss and then by what the peers call its arguments.

N, C = 5, 4


class Draws:
    """Arrays of one seed, by kind."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def real(self, *shape, scale=1.5):
        return jnp.asarray(self.rng.normal(size=shape) * scale, jnp.float32)

    def positive(self, *shape):
        return jnp.asarray(self.rng.uniform(0.3, 2, shape), jnp.float32)

    def share(self, *shape):
        return jnp.asarray(self.rng.uniform(0.1, 0.9, shape), jnp.float32)

    def sign(self, *shape):
        return jnp.asarray(self.rng.choice([-1.0, 1.0], shape), jnp.float32)

    def binary(self, *shape):
        return jnp.asarray(self.rng.choice([0.0, 1.0], shape), jnp.float32)

    def whole(self, high, *shape, low=0):
        return jnp.asarray(self.rng.integers(low, high, shape), jnp.int32)

    def distribution(self, *shape):
        return jax.nn.softmax(self.real(*shape), -1)

    def one_hot(self, *shape):
        return jax.nn.one_hot(self.whole(shape[-1], *shape[:-1]), shape[-1])

    def mask(self, *shape):
        return jnp.asarray(self.rng.uniform(size=shape) < 0.7).at[..., 0].set(True)


def regression(d):
    return {"predictions": d.real(N), "targets": d.real(N)}


def torch_regression(d):
    return {"input": d.real(N, C), "target": d.real(N, C)}


def keras_regression(d):
    return {"y_true": d.positive(N, C), "y_pred": d.positive(N, C)}


def keras_binary(d):
    return {"y_true": d.binary(N, C), "y_pred": d.share(N, C)}


def keras_classes(d):
    return {"y_true": d.one_hot(N, C), "y_pred": d.distribution(N, C)}


def image_classes(d, names=("predictions", "targets")):
    return dict(zip(names, (d.real(2, 3, 3, C), d.one_hot(2, 3, 3, C)), strict=True))


def lists(d):
    return {"scores": d.real(N, 6), "labels": d.whole(4, N, 6).astype(jnp.float32).at[:, 0].set(3).at[:, 1].set(0)}


def of_ctc(d):
    paddings = jnp.arange(7)[None] >= jnp.array([[7], [5], [6]])
    label_paddings = jnp.arange(3)[None] >= jnp.array([[3], [1], [2]])
    return {
        "logits": d.real(3, 7, C),
        "logit_paddings": paddings.astype(jnp.float32),
        "labels": d.whole(C, 3, 3, low=1),
        "label_paddings": label_paddings.astype(jnp.float32),
    }


def triplets(d, *names):
    return {name: d.real(N, 3) for name in names}


def one_label(d, scores):
    return {"label": d.whole(C), scores: d.real(C)}


def linear(d):
    return {"input": d.real(N, 3), "target": d.whole(C, N).at[1].set(-100), "label_smoothing": 0.1}


def transition(d):
    return {"p_logits": d.real(N, C), "q_logits": d.real(N, C), "temperature": 2.0}


# By the answer's first name: what is drawn for its required arguments, and for some of its options.
DRAWS = {
    "optax.losses.squared_error": regression,
    "optax.losses.l2_loss": regression,
    "optax.losses.huber_loss": lambda d: regression(d) | {"delta": 0.7},
    "optax.losses.log_cosh": regression,
    "optax.losses.cosine_distance": lambda d: {"predictions": d.real(N, C), "targets": d.real(N, C), "axis": 0},
    "optax.losses.cosine_similarity": lambda d: {"predictions": d.real(N, C), "targets": d.real(N, C), "axis": 0},
    "optax.losses.sigmoid_binary_cross_entropy": lambda d: {"logits": d.real(N), "labels": d.share(N)},
    "optax.losses.hinge_loss": lambda d: {"predictor_outputs": d.real(N), "targets": d.sign(N)},
    "optax.losses.perceptron_loss": lambda d: {"predictor_outputs": d.real(N), "targets": d.sign(N)},
    "optax.losses.sparsemax_loss": lambda d: {"logits": d.real(N), "labels": d.whole(2, N)},
    "optax.losses.sigmoid_focal_loss": lambda d: {
        "logits": d.real(N),
        "labels": d.share(N),
        "alpha": 0.3,
        "gamma": 1.5,
    },
    "optax.losses.softmax_cross_entropy": lambda d: {"logits": d.real(N, C), "labels": d.distribution(N, C)},
    "optax.losses.softmax_cross_entropy_with_integer_labels": lambda d: {
        "logits": d.real(N, C),
        "labels": jnp.zeros(N, int),
        "where": d.mask(N, C),
    },
    "optax.losses.poly_loss_cross_entropy": lambda d: {
        "logits": d.real(N, C),
        "labels": d.one_hot(N, C),
        "epsilon": 0.7,
    },
    "optax.losses.multiclass_hinge_loss": lambda d: {"scores": d.real(N, C), "labels": d.whole(C, N)},
    "optax.losses.multiclass_perceptron_loss": lambda d: {"scores": d.real(N, C), "labels": d.whole(C, N)},
    "optax.losses.multiclass_sparsemax_loss": lambda d: {"scores": d.real(N, C), "labels": d.whole(C, N)},
    "optax.losses.kl_divergence": lambda d: {
        "log_predictions": jnp.log(d.distribution(N, C)),
        "targets": d.distribution(N, C),
        "axis": 0,
    },
    "optax.losses.kl_divergence_with_log_targets": lambda d: {
        "log_predictions": jnp.log(d.distribution(N, C)),
        "log_targets": jnp.log(d.distribution(N, C)),
        "axis": 0,
    },
    "optax.losses.generalized_kl_divergence": lambda d: {
        "log_predictions": d.real(N, C),
        "targets": d.positive(N, C),
        "axis": 0,
    },
    "optax.losses.ctc_loss": of_ctc,
    "optax.losses.ctc_loss_with_forward_probs the first of its three results": of_ctc,
    "optax.losses.ranking_softmax_loss": lambda d: {
        "logits": d.real(N, 6),
        "labels": d.positive(N, 6),
        "where": d.mask(N, 6),
    },
    "optax.losses.ntxent": lambda d: {
        "embeddings": d.real(6, 3),
        "labels": jnp.array([0, 1, 0, 1, 1, 0]),
        "temperature": 0.3,
    },
    "optax.losses.triplet_margin_loss": lambda d: (
        triplets(d, "anchors", "positives", "negatives") | {"margin": 0.7, "eps": 1e-12, "axis": 0}
    ),
    "optax.losses.binary_dice_loss": lambda d: {
        "predictions": d.real(2, 3, 3),
        "targets": d.binary(2, 3, 3),
        "smooth": 0.3,
    },
    "optax.losses.dice_loss alpha = beta = 1/2, its default": lambda d: image_classes(d) | {"smooth": 0.3},
    "optax.losses.dice_loss any alpha and beta": lambda d: (
        image_classes(d) | {"smooth": 0.3, "alpha": 0.3, "beta": 0.8}
    ),
    "optax.losses.multiclass_generalized_dice_loss": lambda d: image_classes(d) | {"smooth": 0.3},
    "torch.nn.MSELoss": lambda d: torch_regression(d) | {"weight": d.positive(N, C)},
    "torch.nn.L1Loss": lambda d: torch_regression(d) | {"weight": d.positive(N, C)},
    "torch.nn.SmoothL1Loss": lambda d: torch_regression(d) | {"beta": 0.6},
    "torch.nn.HuberLoss": lambda d: torch_regression(d) | {"delta": 0.6},
    "torch.nn.GaussianNLLLoss": lambda d: torch_regression(d) | {"var": d.positive(N, C), "full": True},
    "torch.nn.PoissonNLLLoss": lambda d: {"input": d.positive(N), "target": d.positive(N), "log_input": False},
    "torch.nn.BCELoss": lambda d: {"input": d.share(N), "target": d.share(N)},
    "torch.nn.BCEWithLogitsLoss": lambda d: {
        "input": d.real(N),
        "target": d.share(N),
        "pos_weight": jnp.float32(1.7),
    },
    "torch.nn.SoftMarginLoss": lambda d: {"input": d.real(N), "target": d.sign(N)},
    "torch.nn.MultiLabelSoftMarginLoss": lambda d: {"input": d.real(N, C), "target": d.binary(N, C)},
    "torch.nn.HingeEmbeddingLoss": lambda d: {"input": d.positive(N), "target": d.sign(N), "margin": 1.3},
    "torch.nn.CrossEntropyLoss `target` holds class indices": lambda d: {
        "input": d.real(N, C, 2),
        "target": d.whole(C, N, 2).at[0, 1].set(-100),
        "weight": d.positive(C),
        "label_smoothing": 0.2,
    },
    "torch.nn.CrossEntropyLoss `target` holds class probabilities": lambda d: {
        "input": d.real(N, C, 2),
        "target": d.distribution(N, 2, C).swapaxes(1, 2),
        "label_smoothing": 0.2,
    },
    "torch.nn.functional.linear_cross_entropy": lambda d: (
        linear(d) | {"linear_weight": d.real(C, 3), "linear_bias": d.real(C)}
    ),
    "torch.nn.NLLLoss": lambda d: {
        "input": jnp.log(d.share(N, C)),
        "target": d.whole(C, N).at[1].set(-100),
        "weight": d.positive(C),
    },
    "torch.nn.MultiMarginLoss": lambda d: {
        "input": d.real(N, C),
        "target": d.whole(C, N),
        "p": 2,
        "margin": 0.7,
        "weight": d.positive(C),
    },
    "torch.nn.MultiLabelMarginLoss": lambda d: {
        "input": d.real(2, C),
        "target": jnp.array([[2, 0, -1, 1], [3, -1, -1, -1]]),
    },
    "torch.nn.KLDivLoss log_target=False, its default": lambda d: {
        "input": jnp.log(d.distribution(N, C)),
        "target": d.distribution(N, C),
    },
    "torch.nn.KLDivLoss log_target=True": lambda d: {
        "input": jnp.log(d.distribution(N, C)),
        "target": jnp.log(d.distribution(N, C)),
        "log_target": True,
    },
    "torch.nn.CosineEmbeddingLoss": lambda d: triplets(d, "input1", "input2") | {"target": d.sign(N), "margin": 0.2},
    "torch.nn.CosineSimilarity": lambda d: triplets(d, "x1", "x2") | {"dim": 0},
    "torch.nn.MarginRankingLoss": lambda d: {
        "input1": d.real(N),
        "input2": d.real(N),
        "target": d.sign(N),
        "margin": 0.2,
    },
    "torch.nn.TripletMarginLoss": lambda d: (
        triplets(d, "anchor", "positive", "negative") | {"margin": 0.7, "p": 3.0, "swap": True}
    ),
    "torch.nn.TripletMarginWithDistanceLoss": lambda d: (
        triplets(d, "anchor", "positive", "negative")
        | {"distance_function": lambda x, y: abs(x - y).sum(-1), "margin": 0.7, "swap": True}
    ),
    "torch.nn.CTCLoss": lambda d: {
        "log_probs": jax.nn.log_softmax(d.real(7, 3, C)),
        "targets": d.whole(C, 3, 3, low=1),
        "input_lengths": jnp.array([7, 5, 6]),
        "target_lengths": jnp.array([3, 1, 2]),
        "zero_infinity": True,
    },
    "keras.losses.MeanSquaredError": keras_regression,
    "keras.losses.MeanAbsoluteError": keras_regression,
    "keras.losses.MeanAbsolutePercentageError": keras_regression,
    "keras.losses.MeanSquaredLogarithmicError": keras_regression,
    "keras.losses.Huber": lambda d: keras_regression(d) | {"delta": 0.5},
    "keras.losses.LogCosh": keras_regression,
    "keras.losses.Poisson": keras_regression,
    "keras.losses.CosineSimilarity": lambda d: keras_regression(d) | {"axis": 0},
    "keras.metrics.RootMeanSquaredError": keras_regression,
    "keras.losses.BinaryCrossentropy from_logits=True": lambda d: {
        "y_true": d.binary(N, C),
        "y_pred": d.real(N, C),
        "from_logits": True,
        "label_smoothing": 0.2,
    },
    "keras.losses.BinaryCrossentropy from_logits=False, its default": lambda d: (
        keras_binary(d) | {"label_smoothing": 0.2}
    ),
    "keras.losses.BinaryFocalCrossentropy": lambda d: (
        keras_binary(d) | {"apply_class_balancing": True, "gamma": 1.5, "alpha": 0.3, "label_smoothing": 0.2}
    ),
    "keras.losses.Hinge": lambda d: {"y_true": d.binary(N, C), "y_pred": d.real(N, C)},
    "keras.losses.SquaredHinge": lambda d: {"y_true": d.sign(N, C), "y_pred": d.real(N, C)},
    "keras.losses.SparseCategoricalCrossentropy": lambda d: {
        "y_true": d.whole(C, N).at[0].set(2),
        "y_pred": d.distribution(N, C),
        "from_logits": True,
        "ignore_class": 2,
    },
    "keras.losses.CategoricalCrossentropy": lambda d: keras_classes(d) | {"label_smoothing": 0.2},
    "keras.losses.CategoricalFocalCrossentropy": lambda d: keras_classes(d) | {"alpha": 0.4, "gamma": 1.5},
    "keras.losses.CategoricalGeneralizedCrossEntropy": lambda d: {
        "y_true": d.whole(C, N),
        "y_pred": d.distribution(N, C),
        "q": 0.4,
    },
    "keras.losses.CategoricalHinge": lambda d: {"y_true": d.one_hot(N, C), "y_pred": d.real(N, C)},
    "keras.losses.KLDivergence": lambda d: {"y_true": d.distribution(N, C), "y_pred": d.distribution(N, C)},
    "keras.losses.CTC": lambda d: {"y_true": jnp.array([[1, 2, 2], [3, 0, 0]]), "y_pred": d.real(2, 7, C)},
    "keras.losses.Circle": lambda d: {
        "y_true": jnp.array([0, 1, 0, 1, 1, 2]),
        "gamma": 3.0,
        "margin": 0.3,
        "y_pred": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True))(d.real(6, 3)),
    },
    "keras.losses.Dice": lambda d: {"y_true": d.binary(2, 3, 3), "y_pred": d.share(2, 3, 3)},
    "keras.losses.Tversky": lambda d: {
        "y_true": d.binary(2, 3, 3),
        "y_pred": d.share(2, 3, 3),
        "alpha": 0.3,
        "beta": 0.9,
    },
    "rax.softmax_loss": lambda d: lists(d) | {"where": d.mask(N, 6)},
    "rax.poly1_softmax_loss one relevant item a list, of label 1": lambda d: {
        "scores": d.real(N, 6),
        "labels": d.one_hot(N, 6),
        "epsilon": 0.7,
    },
    "rax.listmle_loss": lambda d: {
        "scores": d.real(N, 6),
        "labels": d.rng.permuted(np.tile(np.arange(6.0), (N, 1)), axis=1),
        "where": d.mask(N, 6),
    },
    "rax.pairwise_hinge_loss": lists,
    "rax.pairwise_logistic_loss": lists,
    "rax.pointwise_mse_loss": lambda d: lists(d) | {"where": d.mask(N, 6)},
    "rax.pointwise_sigmoid_loss": lambda d: lists(d) | {"where": d.mask(N, 6)},
    "rax.approx_t12n of rax.ndcg_metric": lambda d: lists(d) | {"temperature": 0.5},
    "rax.approx_t12n of rax.mrr_metric": lambda d: lists(d) | {"temperature": 0.5},
    "rax.dcg_lambdaweight in rax.pairwise_logistic_loss, with normalize=True and reduce_fn=jnp.sum": lists,
    "rax.ndcg_metric": lambda d: lists(d) | {"where": d.mask(N, 6), "topn": 3},
    "rax.mrr_metric": lambda d: lists(d) | {"where": d.mask(N, 6), "topn": 3},
    "rlax.l2_loss": regression,
    "rlax.huber_loss": lambda d: {"x": d.real(N), "delta": 0.6},
    "rlax.log_loss": lambda d: {"predictions": d.share(N), "targets": d.share(N)},
    "rlax.likelihood": lambda d: {"predictions": d.share(N), "targets": d.share(N)},
    "rlax.expectile_loss": lambda d: regression(d) | {"expectile": 0.8},
    "rlax.quantile_regression_loss huber_param=0, its default": lambda d: {
        "dist_src": d.real(C),
        "tau_src": jnp.array([0.1, 0.4, 0.6, 0.9]),
        "dist_target": d.real(N),
    },
    "rlax.categorical_cross_entropy": lambda d: {"labels": d.distribution(N, C), "logits": d.real(N, C)},
    "rlax.categorical_kl_divergence": transition,
    "rlax.multivariate_normal_kl_divergence": lambda d: {
        "mu_0": d.real(N, 3),
        "sigma_0": d.positive(N, 3),
        "mu_1": d.real(N, 3),
        "sigma_1": d.positive(N, 3),
    },
    "jaxopt.loss.huber_loss": lambda d: {"target": d.real(), "pred": d.real(), "delta": 0.5},
    "jaxopt.loss.binary_logistic_loss": lambda d: {"label": d.whole(2), "logit": d.real()},
    "jaxopt.loss.binary_sparsemax_loss": lambda d: {"label": d.whole(2), "logit": d.real()},
    "jaxopt.loss.binary_hinge_loss": lambda d: {"label": d.whole(2), "score": d.real()},
    "jaxopt.loss.binary_perceptron_loss": lambda d: {"label": d.whole(2), "score": d.real()},
    "jaxopt.loss.multiclass_logistic_loss": lambda d: one_label(d, "logits"),
    "jaxopt.loss.multiclass_sparsemax_loss": lambda d: one_label(d, "scores"),
    "jaxopt.loss.multiclass_hinge_loss": lambda d: one_label(d, "scores"),
    "jaxopt.loss.multiclass_perceptron_loss": lambda d: one_label(d, "scores"),
}
# The class of keras and its function take the same.
DRAWS |= {
    label(answer): DRAWS[label(of_class)]
    for answer in CALLED
    for of_class in CALLED
    if answer.names[0].startswith("keras.losses.")
    and label(answer) not in DRAWS
    and label(of_class) in DRAWS
    and (catalogue._bare(answer.names[0]), answer.when) == (catalogue._bare(of_class.names[0]), of_class.when)
}


def test_every_conversion_is_drawn_for():
    # The class that holds a layer is what torch.nn.functional.linear_cross_entropy is with the layer's arrays.
    assert {label(answer) for answer in CALLED} - set(DRAWS) == {"torch.nn.LinearCrossEntropyLoss"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("answer", by_library(a for a in CALLED if label(a) in DRAWS))
@pytest.mark.parametrize("options", ["drawn", pytest.param("default", marks=pytest.mark.exhaustive)])
def test_a_conversion_gives_what_the_peer_gives(answer, options):
    defaults = every_argument(answer)
    drawn = DRAWS[label(answer)](Draws(zlib.crc32(label(answer).encode())))
    if options == "default":
        chosen = ["targets", *re.findall(r"(\w+)=True", answer.when)]
        drawn = {k: v for k, v in drawn.items() if defaults[k] is inspect.Parameter.empty or k in chosen}
    reductions = ("none", "mean", "sum") if "reduction=reduction" in answer.call else (None,)
    compared = False
    for reduction in reductions:
        arguments = drawn if reduction is None else drawn | {"reduction": reduction}
        names = {k: v for k, v in defaults.items() if v is not inspect.Parameter.empty} | arguments
        got = np.asarray(eval(answer.call, {"jl": jl, "jnp": jnp, "jax": jax}, names))
        for name in answer.names if answer.loss not in STAND_INS else (answer.loss,):
            asked = STAND_INS.get(name) or peer(name)
            taken = parameters(asked) or arguments
            if set(arguments) - set(taken) - {"input"}:
                continue  # of a class and its function only one has this option
            expected = ask(asked, arguments)
            compared = True
            np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-6, err_msg=f"{name} {reduction}")
    assert compared
