"""The comparison: its numbers against a hand-written loop, its choices on crafted numbers, its files, its program."""

import contextlib
import csv
import dataclasses
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from rich.console import Console

from jaxloss.lab import compare as comparing
from jaxloss.lab.compare import best_rate, compare, judge, paired_difference, ranked
from jaxloss.lab.contenders import RECIPES, contender
from jaxloss.lab.data import load
from jaxloss.lab.files import write_files
from jaxloss.lab.leaderboard import print_table
from jaxloss.lab.metrics import METRICS, measure
from jaxloss.lab.naming import RequestError
from jaxloss.lab.optimizers import optimizer_named
from jaxloss.lab.program import winner_program
from jaxloss.lab.progress import ProgressBar
from jaxloss.lab.training import Runs
from jaxloss.lab.wording import findings, reading, timing

pytestmark = pytest.mark.usefixtures("quick_compilation")

DECIDING = METRICS["classification"][:2]
EPOCHS, RATES = 3, (1e-3, 1e-2)


class Told:
    """A watcher that remembers."""

    def __init__(self):
        self.pairs, self.epochs, self.ended = [], [], []

    def pair_started(self, number, pairs, loss, optimizer):
        self.pairs.append((number, pairs, loss, optimizer))

    def epoch_ended(self, epoch, best_score):
        self.epochs.append((epoch, best_score))

    def pair_ended(self, standing):
        self.ended.append(standing.name)


@pytest.fixture(scope="module")
def watched():
    told = Told()
    comparison = compare(
        load("digits"),
        ["softmax_cross_entropy", "squared_error"],
        ["adam", "sgd"],
        seeds=2,
        epochs=EPOCHS,
        learning_rates=RATES,
        watcher=told,
    )
    return comparison, told


@pytest.fixture(scope="module")
def comparison(watched):
    return watched[0]


@pytest.fixture(scope="module")
def wild():
    """A regression that diverges at one learning rate for one pair, and at both for the other."""
    data = load("diabetes")
    both = [
        compare(data, [name], ["sgd"], seeds=2, epochs=2, learning_rates=rates)
        for name, rates in (("squared_error", (1e-3, 1e6)), ("log_cosh", (1e20, 1e30)))
    ]
    standings = ranked([each.standings[0] for each in reversed(both)], METRICS["regression"][:2])
    return dataclasses.replace(both[0], standings=standings)


def pair(comparison, loss, optimizer):
    return next(s for s in comparison.standings if (s.contender.name, s.optimizer.name) == (loss, optimizer))


# ---------------------------------------------------------------------------------------------------------------------
# The training


def by_hand(data, loss, optimizer, seed, epochs, batch_size=32):
    """One run without jaxloss: a plain loop over plain batches, the model written out; gives test scores."""
    from jaxloss.lab import MLP

    params = MLP(outputs=10).init(jax.random.key(seed), data.train.x[:1])["params"]

    def scores(params, x):
        hidden = jnp.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None], 0)
        return hidden @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]

    @jax.jit
    def step(params, state, x, y):
        gradient = jax.grad(lambda params: loss(scores(params, x), y))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    n = len(data.train)
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), n))
        for start in range(0, n - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            params, state = step(params, state, data.train.x[rows], data.train.y[rows])
    return np.asarray(scores(params, data.test.x))


def cross_entropy(scores, y):
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()


def brier(scores, y):
    return jnp.mean(jnp.square(jax.nn.softmax(scores) - jax.nn.one_hot(y, 10)))


@pytest.mark.parametrize(
    ("loss", "optimizer", "rate", "seed", "loss_by_hand", "optimizer_by_hand"),
    [
        ("softmax_cross_entropy", "adam", 1, 1, cross_entropy, optax.adam(1e-2)),
        ("squared_error", "sgd", 0, 0, brier, optax.sgd(1e-3, momentum=0.9)),
    ],
)
def test_a_vmapped_run_is_the_plain_loop(comparison, loss, optimizer, rate, seed, loss_by_hand, optimizer_by_hand):
    standing = pair(comparison, loss, optimizer)
    expected = jax.nn.softmax(by_hand(comparison.data, loss_by_hand, optimizer_by_hand, seed, EPOCHS))
    np.testing.assert_allclose(standing.runs.test_predictions[seed, rate], expected, atol=2e-4)
    if standing.best == rate:
        accuracy = (np.asarray(expected).argmax(axis=1) == comparison.data.test.y).mean()
        assert standing.test["accuracy"][seed] == pytest.approx(accuracy, abs=1.5 / 360)
        assert accuracy > 0.9


def test_runs_differ_by_seed_and_by_learning_rate(comparison):
    runs = pair(comparison, "softmax_cross_entropy", "adam").runs
    assert runs.training_loss.shape == runs.validation_score.shape == (2, 2, EPOCHS)
    assert runs.test_predictions.shape == (2, 2, 360, 10)
    assert len({float(loss) for loss in runs.training_loss[..., -1].ravel()}) == 4
    assert (runs.training_loss[..., 0] > runs.training_loss[..., -1]).all()


def test_the_curve_ends_where_the_predictions_are(comparison):
    for standing in comparison.standings:
        guess = standing.runs.validation_predictions.argmax(axis=-1)
        accuracy = (guess == comparison.data.validation.y).mean(axis=-1)
        np.testing.assert_allclose(standing.runs.validation_score[..., -1], accuracy, atol=1e-6)
        np.testing.assert_allclose(standing.validation["accuracy"], accuracy, atol=1e-6)


def test_the_leaderboard_is_what_the_predictions_say(comparison):
    for standing in comparison.standings:
        for seed, predictions in enumerate(standing.runs.test_predictions[:, standing.best]):
            expected = measure(comparison.data, predictions, comparison.data.test.y)
            assert {name: of[seed] for name, of in standing.test.items()} == expected
    means = [standing.validation["accuracy"][:, standing.best].mean() for standing in comparison.standings]
    assert means == sorted(means, reverse=True)
    assert means[0] > 0.9


def test_the_watcher_is_told_everything(watched):
    comparison, told = watched
    assert [each[:2] for each in told.pairs] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [epoch for epoch, _ in told.epochs] == [1, 2, 3] * 4
    assert sorted(told.ended) == sorted(standing.name for standing in comparison.standings)
    first = pair(comparison, *told.pairs[0][2:])
    assert told.epochs[2][1] == pytest.approx(first.runs.validation_score[..., -1].mean(axis=0).max())
    assert 0 < comparison.compile_seconds < comparison.seconds


def test_a_diverged_run_is_counted_and_its_rate_is_never_chosen(wild):
    first, second = wild.standings
    assert (first.contender.name, first.learning_rate, first.diverged) == ("squared_error", 1e-3, 2)
    assert np.isnan(first.validation["rmse"][:, 1]).all()
    assert np.isfinite(first.test["rmse"]).all()
    assert (second.best, second.learning_rate, second.diverged, second.test) == (None, None, 4, {})
    said = " ".join(findings(wild))
    assert "Diverged: runs that met" in said
    assert "Without a result, because every learning rate had a diverged run: log_cosh + sgd." in said


def test_a_regression_is_told_in_target_units(wild):
    runs = wild.standings[0].runs
    y = wild.data.validation.y
    expected = wild.data.target_scale * np.sqrt(np.mean((runs.validation_predictions[:, 0] - y) ** 2, axis=-1))
    np.testing.assert_allclose(runs.validation_score[:, 0, -1], expected, rtol=1e-4)
    np.testing.assert_allclose(wild.standings[0].validation["rmse"][:, 0], expected, rtol=1e-4)


def test_what_cannot_be_meant_is_refused_before_any_training():
    data = load("wine")
    for given, message in [
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rates": [0.1, -1.0]}, "learning rates must be numbers > 0, got 0.1, -1"),
        ({"learning_rates": [float("nan")]}, "learning rates must be numbers > 0"),
        ({"learning_rates": [0.1, 0.1]}, "named twice"),
        ({"losses": ["hinge", "hinge"]}, "the loss hinge is named twice"),
        ({"optimizers": []}, "at least one optimizer must be named"),
        ({"losses": ["huber"]}, "huber is not a loss that classification is compared by"),
        ({"optimizers": ["adm"]}, "did you mean adam"),
    ]:
        with pytest.raises(RequestError, match=message):
            compare(data, **given)


# ---------------------------------------------------------------------------------------------------------------------
# The choices


def chosen(accuracy, brier_score, rates, failed=None):
    accuracy, brier_score = np.array(accuracy), np.array(brier_score)
    failed = np.zeros(accuracy.shape, bool) if failed is None else np.array(failed)
    return best_rate({"accuracy": accuracy, "brier_score": brier_score}, failed, rates, DECIDING)


def test_the_best_rate_has_the_best_mean_over_seeds():
    # Rate 0 has the best single run, rate 1 the best mean.
    assert chosen([[0.99, 0.9, 0.2], [0.7, 0.9, 0.3]], np.zeros((2, 3)), (1.0, 2.0, 3.0)) == 1


def test_equal_accuracies_go_to_the_lower_brier_score_then_to_the_smaller_rate():
    # The sums of the first two differ in their last digit only.
    accuracy = [[0.1, 0.3, 0.0], [0.2, 0.2, 0.0], [0.3, 0.1, 0.0]]
    assert chosen(accuracy, [[0.5, 0.4, 0.0]] * 3, (1.0, 2.0, 3.0)) == 1
    assert chosen(accuracy, [[0.4, 0.5, 0.0]] * 3, (1.0, 2.0, 3.0)) == 0
    assert chosen(accuracy, [[0.4, 0.4, 0.0]] * 3, (2.0, 1.0, 3.0)) == 1


def test_a_rate_with_a_diverged_seed_is_out():
    accuracy, nothing = [[0.99, 0.5], [np.nan, 0.6]], [[0.1, 0.5], [np.nan, 0.4]]
    assert chosen(accuracy, nothing, (1.0, 2.0), [[False, False], [True, False]]) == 1
    assert chosen(accuracy, nothing, (1.0, 2.0), [[False, True], [True, False]]) is None


def runs(validation, test, **changed):
    """Runs on wine whose predictions are certain; given are the labels that they predict, [seeds, rates, rows]."""
    one_hot = np.eye(3)
    given = {
        "loss": "softmax_cross_entropy",
        "optimizer": "adam",
        "learning_rates": (0.1, 0.2, 0.3),
        "training_loss": np.zeros((*np.shape(validation)[:2], 1)),
        "validation_score": np.zeros((*np.shape(validation)[:2], 1)),
        "validation_predictions": one_hot[validation],
        "test_predictions": one_hot[test],
        "compile_seconds": 1.0,
        "training_seconds": 2.0,
    }
    return Runs(**{**given, **changed})


def judged(of):
    return judge(load("wine"), contender("softmax_cross_entropy", "classification"), optimizer_named("adam"), of)


def test_the_validation_rows_choose_and_the_test_rows_do_not():
    data = load("wine")
    right, wrong = data.validation.y, (data.validation.y + 1) % 3
    right_test, wrong_test = data.test.y, (data.test.y + 1) % 3
    # On validation the middle rate is right, on test the others are.
    standing = judged(runs([[wrong, right, wrong]] * 2, [[right_test, wrong_test, right_test]] * 2))
    assert (standing.best, standing.learning_rate, standing.at_edge) == (1, 0.2, False)
    assert standing.test["accuracy"].tolist() == [0, 0]
    assert judged(runs([[wrong, wrong, right]], [[right_test] * 3])).at_edge
    assert judged(runs([[wrong, wrong, right]], [[right_test] * 3])).runs.seconds == 3.0


@pytest.mark.parametrize("where", ["training_loss", "validation_predictions", "test_predictions"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_anything_that_is_not_finite_is_a_failed_run(where, bad):
    data = load("wine")
    good = runs([[data.validation.y] * 3] * 2, [[data.test.y] * 3] * 2)
    values = getattr(good, where).copy()
    values[1, 2].flat[0] = bad
    standing = judged(dataclasses.replace(good, **{where: values}))
    assert standing.runs.failed.tolist() == [[False] * 3, [False, False, True]]
    assert standing.diverged == 1
    assert standing.learning_rate == 0.1


def test_a_paired_difference_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 1, 6)  # what both owe to the seed
    first, second = luck + 0.5 + rng.normal(0, 0.1, 6), luck + rng.normal(0, 0.1, 6)
    ours = paired_difference(first, second)
    interval = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert ours.mean - ours.half_width == pytest.approx(interval.low)
    assert ours.mean + ours.half_width == pytest.approx(interval.high)
    assert ours.is_clear
    assert not paired_difference(np.array([1.0, 2.0]), np.array([2.0, 1.0])).is_clear
    assert not paired_difference(luck, luck).is_clear
    assert paired_difference(luck[:1], luck[:1]) is None


def with_test_accuracies(comparison, first, second):
    standings = [
        dataclasses.replace(standing, test={**standing.test, "accuracy": np.array(accuracy)})
        for standing, accuracy in zip(comparison.standings[:2], (first, second), strict=True)
    ]
    return dataclasses.replace(comparison, standings=tuple(standings))


def test_first_and_second_in_words(comparison):
    a, b = (standing.name for standing in comparison.standings[:2])
    within = findings(with_test_accuracies(comparison, [0.97, 0.95], [0.95, 0.96]))[0]
    assert within.startswith(f"{a} and {b} are not told apart: they differ by 0.5 ± 19.1 points in test accuracy")
    ahead = findings(with_test_accuracies(comparison, [0.972, 0.951], [0.95, 0.93]))[0]
    assert ahead.startswith(f"{a} is ahead of {b} by 2.1 ± 0.6 points")
    other = findings(with_test_accuracies(comparison, [0.95, 0.93], [0.972, 0.951]))[0]
    assert other.startswith(f"{b} is ahead of {a} by 2.1 ± 0.6 points")
    assert other.endswith("though the validation rows rank them the other way: take either.")
    assert "one seed cannot tell" in findings(with_test_accuracies(comparison, [0.95], [0.97]))[0]


# ---------------------------------------------------------------------------------------------------------------------
# The report


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_loses_nothing_at_any_width(comparison, width):
    out = io.StringIO()
    print_table(Console(file=out, width=width), comparison)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for standing in comparison.standings:
        assert standing.contender.name in text
        assert f"{standing.learning_rate:g}*" in text
        accuracy = 100 * standing.test["accuracy"]
        assert f"{accuracy.mean():.1f}" in text
        assert f"±{accuracy.std(ddof=1):.1f}" in text


def test_the_table_of_a_pair_without_a_result(wild):
    out = io.StringIO()
    print_table(Console(file=out, width=160), wild)
    last = next(line for line in out.getvalue().splitlines() if "log_cosh" in line)
    assert last.split() == ["2", "log_cosh", "sgd", "-", "-", "-", "-", "-", "4", "of", "4", last.split()[-1]]


def test_the_sentences_below_the_table(comparison):
    assert reading(comparison).startswith("Ranked by accuracy on the 359 validation rows, which also chose")
    assert any(each.startswith("* the smallest or the largest learning rate") for each in findings(comparison))
    assert timing(comparison, 10.0).startswith("16 runs of 3 epochs in 10 s, of which compiling ")


def test_the_program_trains_the_winner_again(comparison):
    program = winner_program(comparison)
    lines = program.strip().splitlines()
    assert len(lines) == 10
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        exec(compile(program, "winner", "exec"), names)
    accuracy = float(out.getvalue().removeprefix("test accuracy "))
    assert accuracy > 0.9
    # The very run of seed 0 in the comparison; a row that stands on the edge may move.
    winner = comparison.standings[0]
    assert accuracy == pytest.approx(winner.test["accuracy"][0], abs=1.5 / 360)
    scores = names["model"].apply(names["state"].params, comparison.data.test.x)
    in_comparison = winner.runs.test_predictions[0, winner.best]
    np.testing.assert_allclose(winner.contender.predictions(scores), in_comparison, atol=1e-3)


def test_the_program_of_a_regression(wild):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(winner_program(wild), "winner", "exec"), {})
    rmse = float(out.getvalue().removeprefix("RMSE "))
    assert rmse == pytest.approx(wild.standings[0].test["rmse"][0], rel=1e-3)


def test_there_is_no_program_without_a_winner(wild):
    assert winner_program(dataclasses.replace(wild, standings=wild.standings[1:])) is None


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, recipes in RECIPES.items() for name in recipes])
def test_no_program_is_wider_than_a_screen(comparison, wild, task, name):
    whole = comparison if task == "classification" else wild
    winner = dataclasses.replace(whole.standings[0], contender=contender(name, task))
    program = winner_program(dataclasses.replace(whole, standings=(winner,)))
    assert max(map(len, program.splitlines())) <= 120
    assert f"    return jl.{name}(" in program


def test_another_batch_size_is_in_the_program(comparison):
    assert "batch_size=64)" in winner_program(dataclasses.replace(comparison, batch_size=64))


def test_the_files(comparison, tmp_path):
    table, record, curves, page = write_files(comparison, tmp_path / "new" / "folder")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    read = json.loads(record.read_text())
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    for row, kept, standing in zip(rows, read["standings"], comparison.standings, strict=True):
        assert (row["loss"], row["optimizer"]) == (kept["loss"], kept["optimizer"])
        assert float(row["test_macro_f1"]) == pytest.approx(standing.test["macro_f1"].mean())
        assert float(row["test_macro_f1_sd"]) == pytest.approx(standing.test["macro_f1"].std(ddof=1))
        np.testing.assert_allclose(kept["test"]["accuracy"], standing.test["accuracy"], rtol=1e-5)
        np.testing.assert_allclose(np.transpose(kept["validation"]["accuracy"]), standing.validation["accuracy"], 1e-5)
        assert np.shape(kept["validation_score_by_epoch"]) == (2, 2, EPOCHS)
    assert read["settings"] == {"seeds": [0, 1], "epochs": EPOCHS, "batch_size": 32}
    assert {"jaxloss", "jax", "optax", "flax", "scikit-learn"} <= set(read["versions"])
    assert curves.read_bytes().startswith(b"\x89PNG")
    html = page.read_text()
    assert html.count("<tr>") == 1 + len(rows)
    assert "http" not in html  # self-contained
    assert "data:image/png;base64,iVBOR" in html
    assert "jl.make_train_step(loss_fn, " in html


def test_the_files_of_a_comparison_that_diverged(wild, tmp_path):
    _, record, *_ = write_files(wild, tmp_path)
    kept = json.loads(record.read_text())["standings"]
    assert kept[0]["validation"]["rmse"][1] == [None, None]
    assert kept[1]["diverged"] == [[True, True], [True, True]]
    assert kept[1]["learning_rate"] is None


def progress_of(comparison, console):
    with ProgressBar(console, comparison.epochs) as bar:
        for i, standing in enumerate(comparison.standings):
            bar.pair_started(i + 1, len(comparison.standings), standing.contender.name, standing.optimizer.name)
            bar.epoch_ended(1, 0.5)
            bar.epoch_ended(2, float("nan"))
            bar.pair_ended(standing)
    return console.file.getvalue()


def test_without_a_terminal_progress_is_a_line_a_pair(comparison, wild):
    lines = progress_of(comparison, Console(file=io.StringIO(), width=60)).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(f"[1/4] {comparison.standings[0].name}: validation accuracy 9")
    assert "%" in lines[0]
    said = progress_of(wild, Console(file=io.StringIO()))
    assert "log_cosh + sgd: diverged at every learning rate" in said


def test_in_a_terminal_there_is_a_bar(comparison):
    said = progress_of(comparison, Console(file=io.StringIO(), width=160, force_terminal=True))
    assert f"4/4 {comparison.standings[3].name}, epoch 2/3, all diverged" in said


def test_the_page_is_installed_with_the_package():
    assert (Path(comparing.__file__).parent / "page.html.j2").is_file()
