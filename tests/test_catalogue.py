"""The catalogue says what the functions say, refuses a card that lacks a part, and finds by name, peer and words."""

import importlib
import inspect
import re
import types

import pytest
from cases import CASES

import jaxloss.losses as losses
from jaxloss import catalogue, peers
from jaxloss.core.compiled import compiled
from jaxloss.core.reduction import reduce
from jaxloss.core.types import Array, Label, Logit, Mask, Positive, Probability, Real, Reduction, Weights
from jaxloss.peers import Answer

# Not from the catalogue: a card that cannot be read must fail one test, not the collection of all.
NAMES = tuple(dict.fromkeys(case.name for case in CASES))


@compiled
def elastic(
    predictions: Real,
    targets: Real,
    *,
    delta: Positive = 1.0,
    flavour: str | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared error near zero, absolute error beyond `delta`.

        1/2 r^2                  where |r| <= delta

        delta (|r| - 1/2 delta)  elsewhere

    Use when a few targets may be wrong: no outlier
    pulls harder than `delta`.

    A remark that belongs to no part.

    Args:
      predictions, targets: [...] real, one shape.

      delta: > 0.
    Returns: squared target units,
      in [0, inf).
    Gradient: clip(r, -delta, delta); continuous,
    its slope jumps.
    Peers: optax.huber_loss, torch.nn.HuberLoss (delta=1),
      keras.losses.Huber.
    Reference: Huber (1964), Robust estimation of a location parameter,
      Ann. Math. Stat. 35(1).

    >>> 1 + 1
    2
    """
    return reduce(predictions, where=where, weights=weights, reduction=reduction)


def card(name: str, summary: str, use: str, peers: str = "none known.", arguments: type = Real):
    """A function whose docstring is a whole card."""

    def function(logits: Logit, labels: Label) -> None: ...

    def binary(logits: Logit, targets: Probability) -> None: ...

    chosen = function if arguments is Label else binary
    chosen.__name__ = name
    chosen.__doc__ = (
        f"{summary}\n\n    f(x)\n\nUse {use}\n\nArgs:\n  x: any.\nReturns: a number.\nGradient: 1.\n"
        f"Peers: {peers}\nReference: none, it is made up.\n"
    )
    return chosen


# ---------------------------------------------------------------------------------------------------------------------
# Reading a card


def test_a_card_is_read_part_by_part():
    entry = catalogue.read(elastic, family="springs")
    assert entry.name == "elastic"
    assert entry.family == "springs"
    assert entry.summary == "Squared error near zero, absolute error beyond `delta`."
    assert entry.formula.splitlines() == [
        "1/2 r^2                  where |r| <= delta",
        "",
        "delta (|r| - 1/2 delta)  elsewhere",
    ]
    assert entry.use == "Use when a few targets may be wrong: no outlier pulls harder than `delta`."
    assert entry.gradient == "clip(r, -delta, delta); continuous, its slope jumps."
    assert entry.peers == ("optax.huber_loss", "torch.nn.HuberLoss", "keras.losses.Huber")
    assert entry.reference == ("Huber (1964), Robust estimation of a location parameter, Ann. Math. Stat. 35(1).")
    assert list(entry.domains) == ["predictions", "targets", "delta", "where", "weights"]
    assert entry.domains["delta"].text == "(0, inf)"
    assert entry.function is elastic


def test_the_family_is_the_module_unless_given():
    assert catalogue.read(elastic).family == __name__.rpartition(".")[2]


def test_no_peers_is_an_empty_tuple():
    assert catalogue.read(card("lonely", "Alone.", "never.")).peers == ()


def altered(part: str, into: str) -> str:
    whole = inspect.getdoc(elastic) or ""
    changed = re.sub(part, into, whole, count=1, flags=re.DOTALL)
    assert changed != whole
    return changed


def without(part: str) -> str:
    return altered(part, "")


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        (None, "has no `Args:`"),
        (without(r"Args:.*?(?=Returns)"), "has no `Args:`"),
        (without(r"Returns:.*?(?=Gradient)"), "has no `Returns:`"),
        (without(r"Gradient:.*?(?=Peers)"), "has no `Gradient:`"),
        (without(r"Peers:.*?(?=Reference)"), "has no `Peers:`"),
        (without(r"Reference:.*"), "has no `Reference:`"),
        (altered(r"(?<=Gradient:).*?(?=Peers)", "\n"), "has nothing under `Gradient:`"),
        (altered(r"Gradient:", "Returns: twice.\nGradient:"), "has more than one `Returns:`"),
        (
            altered(r"Gradient:.*?(Peers.*?)Reference", r"\1Gradient: 1.\nReference"),
            "in the order Args, Returns, Peers",
        ),
        (without(r"1/2 r.*elsewhere"), "has no indented formula"),
        (without(r"Use when.*?`delta`\."), "has no paragraph that begins with `Use `"),
        (altered(r"Use when", "A remark: Use when"), "has no paragraph that begins with `Use `"),
        (without(r"^Squared.*?`delta`\."), "has no summary line"),
        (altered(r"(?<=beyond `delta`\.\n)", "More.\n"), "has no blank line after"),
        (without(r"optax\.huber.*Huber\."), "has nothing under `Peers:`"),
        (altered(r"optax\.huber.*Huber\.", "many others."), "names no peer"),
    ],
)
def test_a_card_that_lacks_a_part_is_refused_by_name(docstring, complaint):
    def broken() -> None: ...

    broken.__doc__ = docstring
    with pytest.raises(ValueError, match=re.escape(complaint)) as caught:
        catalogue.read(broken)
    assert "docstring of broken" in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Finding, in a family made up for it


SPRINGS = (
    elastic,
    card("softmax_entropy", "One class of several.", "to classify.", "torch.nn.SoftEntropyLoss", Label),
    card("softmax_entropy_with_soft_labels", "A distribution.", "for soft targets.", "optax.soft_entropy"),
    card("sigmoid_entropy", "Yes or no.", "to answer questions about outliers.", "torch.nn.YesNoLoss, torch.nn.Twin"),
    card("yes_no", "Something else.", "like ListNet.", "optax.elastic, optax.Twin"),
)


@pytest.fixture
def springs(monkeypatch):
    found = tuple(catalogue.read(loss) for loss in SPRINGS)
    monkeypatch.setattr(catalogue, "entries", lambda: found)


def names(query: str) -> list[str]:
    return [entry.name for entry in catalogue.find(query)]


@pytest.mark.usefixtures("springs")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("elastic", ["elastic", "yes_no"]),  # a name before another loss's peer
        ("ELASTIC", ["elastic", "yes_no"]),
        ("optax.elastic", ["yes_no", "elastic"]),  # a peer's full name before a name that is its last part
        ("optax.Twin", ["yes_no", "sigmoid_entropy"]),  # and before another library's of the same last part
        ("torch.nn.Twin", ["sigmoid_entropy", "yes_no"]),
        ("torch.nn.HuberLoss", ["elastic"]),
        ("TORCH.NN.huberloss", ["elastic"]),
        ("HuberLoss", ["elastic"]),
        ("huber_loss", ["elastic"]),
        ("torch.nn.functional.huber_loss", ["elastic"]),
        ("haiku.losses.Huber", ["elastic"]),
        ("soft entropy loss", ["softmax_entropy", "softmax_entropy_with_soft_labels"]),
        ("yes no", ["yes_no", "sigmoid_entropy"]),
        ("listnet", ["yes_no"]),
        ("ListNet", ["yes_no"]),
        ("outliers", ["elastic", "sigmoid_entropy"]),
        ("the outlier of an elastic", ["elastic"]),
        ("nothing of the kind", []),
        ("outlier zebra giraffe", []),
        ("", []),
        ("  ", []),
        ("...", []),
        ("the loss", []),
    ],
)
def test_find(query, expected):
    found = names(query)
    assert found[: len(expected)] == expected if expected else found == []


@pytest.mark.usefixtures("springs")
def test_a_known_dotted_name_asks_for_nothing_else():
    assert names("torch.nn.YesNoLoss") == ["sigmoid_entropy", "yes_no"]  # the second by its last part
    assert names("torch.nn.SoftEntropyLoss") == ["softmax_entropy", "softmax_entropy_with_soft_labels"]
    assert "sigmoid_entropy" in names("soft entropy")


@pytest.mark.usefixtures("springs")
def test_words_are_ranked_by_what_they_say():
    # The argument is called `labels`; the longer name holds the word too, among others.
    assert names("entropy labels")[:2] == ["softmax_entropy", "softmax_entropy_with_soft_labels"]
    assert names("entropy soft labels")[0] == "softmax_entropy_with_soft_labels"
    assert names("questions entropy") == ["sigmoid_entropy", "softmax_entropy", "softmax_entropy_with_soft_labels"]


# ---------------------------------------------------------------------------------------------------------------------
# The real losses


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_a_card(name):
    assert catalogue.read(getattr(losses, name)).name == name


def test_entries_are_the_public_losses_of_every_family():
    assert len({entry.name for entry in catalogue.entries()}) == len(catalogue.entries())
    families = list(dict.fromkeys(entry.family for entry in catalogue.entries()))
    assert families == sorted(families)
    assert {"regression", "multiclass"} <= set(families)
    for family in families:
        module = __import__(f"jaxloss.losses.{family}", fromlist=["__all__"])
        assert isinstance(module, types.ModuleType)
        assert [entry.name for entry in catalogue.entries() if entry.family == family] == module.__all__
        assert all(catalogue.entry(name).function is getattr(module, name) for name in module.__all__)


def test_modules_without_losses_are_no_families(monkeypatch, tmp_path):
    for name in ("weighting", "wrappers", "_private"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    assert catalogue.entries.__wrapped__() == catalogue.entries()


def test_entry_by_name():
    assert catalogue.entry("huber").function is losses.huber
    with pytest.raises(KeyError, match="no loss is named 'hubr'; did you mean huber"):
        catalogue.entry("hubr")
    with pytest.raises(KeyError, match=r"no loss is named 'xylophone'\"$"):
        catalogue.entry("xylophone")


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_found_first_by_its_name_and_by_its_peers(name):
    assert names(name)[0] == name
    assert names(name.replace("_", " "))[0] == name
    for peer in catalogue.entry(name).peers:
        sharing = [entry.name for entry in catalogue.entries() if peer in entry.peers]
        assert names(peer)[: len(sharing)] == sharing


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("cross entropy labels", "softmax_cross_entropy"),
        ("cross entropy", "softmax_cross_entropy"),
        ("soft labels", "softmax_cross_entropy_with_soft_labels"),
        ("CrossEntropyLoss", "softmax_cross_entropy"),
        ("BCEWithLogitsLoss", "sigmoid_cross_entropy"),
        ("mean squared error", "squared_error"),
        ("mean absolute error", "absolute_error"),
        ("torch.nn.HuberLoss", "huber"),
        ("support vector machine", "hinge"),
        ("KL divergence", "kl_divergence"),
        ("triplet", "triplet_margin"),
    ],
)
def test_find_among_the_real_losses(query, first):
    assert names(query)[0] == first


@pytest.mark.parametrize(
    ("query", "family"), [("ranking", "ranking"), ("supervised contrastive", "contrastive"), ("listnet", "ranking")]
)
def test_find_leads_into_the_right_family(query, family):
    assert catalogue.find(query)[0].family == family


# ---------------------------------------------------------------------------------------------------------------------
# Other libraries' names


TABLE = (
    Answer(names=("torch.nn.ElasticLoss", "torch.nn.functional.elastic_loss"), loss="elastic", call="a", differs="A."),
    Answer(names=("optax.losses.bouncy",), loss="yes_no", call="b", differs="B."),
    Answer(names=("keras.losses.Elastic",), when="soft", loss="elastic", call="c", differs="C."),
    Answer(names=("keras.losses.Elastic",), when="hard", loss="yes_no", call="d", differs="D."),
    Answer(names=("rlax.wait",), not_yet="It is not built."),
)


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(peers, "answers", lambda: TABLE)


def calls(query):
    return "".join(answer.call or "-" for answer in catalogue.answers(query))


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("torch.nn.ElasticLoss", "a"),  # a full name alone
        (" TORCH.nn.functional.Elastic_loss ", "a"),
        ("keras.losses.Elastic", "cd"),
        ("ElasticLoss", "acd"),  # the last part first, then what is spelt otherwise
        ("elastic loss", "acd"),
        ("elastic", "cda"),
        ("functional.elastic_loss", "acd"),
        ("tf.keras.losses.Elastic", "acd"),  # not known in full: by its last part
        ("bounc", ""),
        ("rlax.wait", "-"),
        ("Wait", "-"),
        ("", ""),
        ("loss", ""),
        ("...", ""),
        ("nothing of the kind", ""),
    ],
)
def test_answers(query, expected):
    assert calls(query) == expected


@pytest.mark.usefixtures("springs", "table")
def test_losses_are_found_by_the_names_that_they_answer_too():
    assert names("optax.losses.bouncy") == ["yes_no"]
    assert names("bouncy_loss") == ["yes_no"]
    assert names("keras.losses.Elastic")[:2] == ["elastic", "yes_no"]
    assert names("optax.elastic") == ["yes_no", "elastic"]  # first the loss that has the name on its card
    assert names("rlax.wait") == []  # known, and not yet: its words are no question


@pytest.mark.usefixtures("springs", "table")
def test_after_one_known_name_come_only_losses_with_all_of_its_words():
    assert names("SoftEntropyLoss") == ["softmax_entropy", "softmax_entropy_with_soft_labels"]
    assert "sigmoid_entropy" in names("soft entropy")  # words ask for more


@pytest.mark.parametrize(
    ("query", "losses_of_it"),
    [
        ("BCEWithLogitsLoss", ["sigmoid_cross_entropy"]),
        ("bcewithlogitsloss", ["sigmoid_cross_entropy"]),
        ("cross_entropy", ["softmax_cross_entropy", "softmax_cross_entropy_with_soft_labels"]),
        ("CrossEntropyLoss", ["softmax_cross_entropy", "softmax_cross_entropy_with_soft_labels"]),
        ("SparseCategoricalCrossentropy", ["softmax_cross_entropy"]),
        ("rax.pairwise_hinge_loss", ["pairwise_hinge"]),
        ("optax.losses.l2_loss", ["half_squared_error"]),
        ("jaxopt.loss.multiclass_logistic_loss", ["softmax_cross_entropy"]),
        ("AdaptiveLogSoftmaxWithLoss", [None]),
    ],
)
def test_answers_of_real_names(query, losses_of_it):
    found = list(dict.fromkeys(answer.loss for answer in catalogue.answers(query)))
    assert found == losses_of_it
    if None not in losses_of_it:
        assert losses_of_it[0] in names(query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("torch.nn.functional.ctc_loss", "target length"),
        ("torch.nn.functional.kl_div", "number of all entries"),
        ("keras.losses.MeanSquaredError", "element count"),
        ("torch.nn.functional.cross_entropy", "`ignore_index` is `where`"),
        ("jaxopt.loss.binary_hinge_loss", "label first"),
        ("rax.softmax_loss", "which items exist"),
        ("rlax.td_learning", "target minus prediction"),
    ],
)
def test_the_convention_is_spelt_out(query, words):
    assert words in " ".join(f"{answer.differs} {answer.not_yet}" for answer in catalogue.answers(query))


def test_drop_ins_are_those_of_the_compatible_modules():
    found = {name for answer in peers.answers() for name in catalogue.drop_ins(answer)}
    for library in ("keras", "optax", "torch"):
        module = importlib.import_module(f"jaxloss.compat.{library}")
        # keras's base class, and its look-up by a string, are no losses.
        expected = {f"{module.__name__}.{name}" for name in module.__all__ if name not in ("Loss", "get")}
        assert {name for name in found if name.startswith(f"{module.__name__}.")} == expected
    (answer,) = catalogue.answers("torch.nn.MSELoss")
    assert catalogue.drop_ins(answer) == ("jaxloss.compat.torch.mse_loss",)
