"""The commands, as a user types them: what they print, and how they refuse."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import jaxloss as jl
from jaxloss import catalogue, cli
from jaxloss.lab.app import app
from jaxloss.lab.data import DATASETS
from jaxloss.lab.optimizers import OPTIMIZERS


def call(*arguments):
    return CliRunner().invoke(app, arguments)


def python(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_version():
    result = call("--version")
    assert (result.exit_code, result.output) == (0, f"jaxloss {jl.__version__}\n")


def test_compare_prints_and_keeps(tmp_path):
    arguments = ["--losses", "entmax:alpha=1.3", "--optimizers", "lion", "--seeds", "2", "--epochs", "2"]
    result = call("compare", "wine", *arguments, "--learning-rates", "0.001,0.01", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    out = result.stdout
    assert "wine: 106 training rows, 2 seeds, 2 epochs" in out
    assert "Ranked by accuracy on the 36 validation rows" in out
    assert "return jl.entmax(scores, y, alpha=1.3, reduction=" in out
    assert "optax.lion(0.0" in out
    assert out.splitlines()[-1].startswith("4 runs of 2 epochs in ")
    assert "[1/1] entmax:alpha=1.3 + lion: validation accuracy" in result.stderr
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["curves.png", "index.html", "leaderboard.csv", "leaderboard.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "no data set is named 'digit'; did you mean digits?; known: digits, wine"),
        (["digits", "--losses", "sofmax_focal"], "did you mean softmax_focal"),
        (["digits", "--losses", ","], "at least one loss must be named"),
        (["digits", "--optimizers", "adm"], "no optimizer is named 'adm'; did you mean adam or adamw?"),
        (["digits", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["digits", "--learning-rates", "a"], "--learning-rates must be numbers with commas between"),
        (["digits", "--learning-rates", "-1"], "learning rates must be numbers > 0, got -1"),
        (["digits", "--out", __file__], "cannot be made a directory: File exists"),
    ],
)
def test_compare_refuses_in_one_sentence(arguments, message):
    result = call("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("jaxloss: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_the_help_names_what_can_be_compared():
    text = call("compare", "--help").output
    for name in [*DATASETS, *OPTIMIZERS]:
        assert name in text


def test_list_has_every_loss_in_one_line():
    lines = call("list").output.splitlines()
    assert [line.split()[:2] for line in lines] == [[entry.name, entry.family] for entry in catalogue.entries()]


def test_list_of_a_family():
    lines = call("list", "--family", "binary").output.splitlines()
    assert [line.split()[0] for line in lines] == [e.name for e in catalogue.entries() if e.family == "binary"]
    result = call("list", "--family", "bianry")
    assert result.exit_code == 2
    assert "no family is named 'bianry'; did you mean binary?; known: alignment, binary," in result.stderr


def test_show_has_the_whole_card():
    text = call("show", "huber").output
    assert text.startswith("huber   regression\nhuber(\n    predictions: Real,\n    targets: Real,\n    *,\n    delta:")
    for line in jl.huber.__doc__.splitlines():
        assert line.strip() in text


@pytest.mark.parametrize("name", ["hubr", "torch.nn.HuberLoss"])
def test_show_refuses_with_what_was_meant(name):
    result = call("show", name)
    assert result.exit_code == 2
    assert result.stderr.strip() == f"jaxloss: no loss is named {name!r}; did you mean huber?"


def test_find_answers_by_a_peers_name_and_by_words():
    assert call("find", "torch.nn.HuberLoss").output.split()[0] == "huber"
    assert "softmax_cross_entropy" in call("find", "cross", "entropy", "labels").output
    result = call("find", "zzzz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing answers 'zzzz'" in result.stderr


def test_find_converts_the_arguments_of_another_library():
    out = call("find", "BCEWithLogitsLoss").output
    lines = out.splitlines()
    assert lines[0].startswith("sigmoid_cross_entropy ")
    at = lines.index("torch.nn.BCEWithLogitsLoss, torch.nn.functional.binary_cross_entropy_with_logits")
    assert lines[at - 1] == ""
    assert lines[at + 1] == (
        "    jl.sigmoid_cross_entropy(input, target, positive_weight=pos_weight, reduction=reduction)"
    )
    assert "its mean divides by their number" in " ".join(out.split())
    assert lines[-1] == "    Drop-in: jaxloss.compat.torch.binary_cross_entropy_with_logits"


def test_find_says_which_of_several_answers_and_why_there_is_none():
    out = call("find", "torch.nn.KLDivLoss").output
    assert "torch.nn.KLDivLoss, torch.nn.functional.kl_div  (log_target=True)\n    jl.kl_divergence_with_log" in out
    result = call("find", "rlax.vtrace")
    assert result.exit_code == 0
    assert result.output.startswith("\nrlax.vtrace, rlax.leaky_vtrace, ")
    assert "\n    Not yet. The reinforcement family is not built yet." in result.output


def test_show_ends_with_what_others_call_it():
    out = call("show", "huber").output
    assert "\nrlax.huber_loss\n    jl.huber(x, jnp.zeros_like(x), delta=delta, reduction=" in out
    assert "jl.smooth_l1" not in out


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "jaxloss.lab.app")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "jaxloss: the command line needs typer: pip install 'jaxloss[lab]'\n"


def test_another_missing_module_is_a_defect_and_stays_one(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxloss.lab.app")
    monkeypatch.setitem(sys.modules, "jaxloss._version", None)
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_a_missing_package_of_the_lab_is_one_sentence_too():
    program = "import sys; sys.modules['sklearn'] = None; sys.argv = ['jaxloss', 'compare', 'digits']"
    result = python(f"{program}; from jaxloss.cli import main; main()")
    assert result.returncode == 2
    assert result.stderr == "jaxloss: the command line needs sklearn: pip install 'jaxloss[lab]'\n"


def test_list_waits_for_nothing_that_it_does_not_need():
    program = (
        "import sys, jaxloss; early = {'typer', 'rich', 'flax', 'sklearn'} & set(sys.modules)\n"
        "sys.argv = ['jaxloss', 'list']\n"
        "from jaxloss.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(early, {'flax', 'sklearn', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules), file=sys.stderr)\n"
    )
    result = python(program)
    assert result.returncode == 0
    assert result.stderr == "set() set()\n"
    assert "huber" in result.stdout
