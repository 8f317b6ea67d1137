"""What the documents show is run: every Python block of the README, and both set-up commands are there."""

import contextlib
import io
import json
import pathlib
import re

import jax
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_of_the_readme_run(block):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):  # a user's default
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    if "metrics.loss" in block:
        assert float(printed.getvalue()) < 2.3  # below log(10), where it began
    if "jl.check(" in block:
        assert printed.getvalue().startswith("`targets`[0, 0] of sigmoid_cross_entropy is 1.5")


def test_the_first_screen_has_the_example_and_two_commands():
    first = README[: README.index("\n## ")]
    assert len(re.findall(r"^python3 -m venv", first, flags=re.M)) == 2
    assert "jaxloss compare digits" in first
    example = BLOCKS[0]
    assert README.index(example) < README.index("python3 -m venv")


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert (ROOT / target).exists(), target


def test_notebooks_have_a_badge_and_a_guarded_install():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        text = ["".join(cell["source"]) for cell in cells]
        assert "colab" in text[0], f"{path.name}: the first cell has the Colab badge"
        install = next(source for source in text if "pip install" in source)
        assert "except ImportError" in install, f"{path.name}: installs only what is missing"
        assert "-U" not in install.split(), f"{path.name}: never upgrades jax under a running kernel"
