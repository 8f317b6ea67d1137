"""The house: imports point down, names are unique, every card is complete, importing is cheap and touches no device."""

import ast
import builtins
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import jaxloss as jl
from jaxloss.core.compiled import domains, static_options
from jaxloss.core.types import OBSERVED

ROOT = pathlib.Path(jl.__file__).parent
ENTRIES = jl.catalogue.entries()
every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)

# What each floor may import of the house. A module belongs to the longest prefix that fits it.
FLOORS = {
    "core": {"core"},
    "algorithms": {"core", "algorithms"},
    "losses": {"core", "algorithms", "losses"},
    "metrics": {"core", "algorithms", "metrics"},
    "peers": {"peers"},
    "catalogue": {"core", "losses", "peers", "compat"},
    "checks": {"core", "catalogue"},
    "testing": {"core", "catalogue"},
    "train": {"core", "train"},
    "compat": {"core", "algorithms", "losses", "compat"},
}
# Within core, from the ground up.
CORE = [
    "types",
    "demand",
    "compiled",
    "coefficients",
    "numerics",
    "sharding",
    "reduction",
    "inputs",
    "formulas",
    "frames",
]


def imported(path):
    """The jaxloss modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module and node.module.split(".")[0] == "jaxloss":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from names if node.module in ("jaxloss", "jaxloss.core") else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "jaxloss")


def floor(module):
    return module.split(".")[1] if "." in module else ""


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] not in FLOORS:
            continue  # __init__, cli and lab may import anything
        for module in imported(path):
            assert floor(module) in FLOORS[parts[0]], f"{'/'.join(parts)} imports {module}"
            if parts[0] == "core" and parts[-1] != "__init__":
                below = CORE[: CORE.index(parts[1])]
                assert module.split(".")[2] in below, f"core/{parts[1]} imports {module}"
            if parts[0] == "losses" and parts[-1] != "__init__":
                assert floor(module) != "losses", f"a family imports a family: {parts[1]} imports {module}"


def test_core_is_known():
    assert {m.name for m in pkgutil.iter_modules([str(ROOT / "core")])} == set(CORE)


def test_public_names_are_unique():
    families = [m.name for m in pkgutil.iter_modules([str(ROOT / "losses")])]
    losses = [name for family in families for name in importlib.import_module(f"jaxloss.losses.{family}").__all__]
    others = [*jl.frames.__all__, *(m.name for m in pkgutil.iter_modules([str(ROOT)])), *families]
    taken = [*losses, *others]
    assert len(set(taken)) == len(taken), sorted(name for name in set(taken) if taken.count(name) > 1)
    assert not set(losses) & set(dir(builtins))
    assert set(losses) <= set(dir(jl))
    assert not [name for name in losses if name.endswith("_loss")]


@every_entry
def test_signature(entry):
    parameters = inspect.signature(entry.function).parameters
    model = inspect.signature(jl.squared_error).parameters
    tail = ("where", "weights", "reduction")
    assert tuple(parameters)[-3:] == tail
    assert all(parameters[k] == model[k] for k in tail)  # name, kind, default and annotation
    hints = {*domains(entry.function), *static_options(inspect.unwrap(entry.function))}
    assert set(parameters) == hints, "every argument is annotated, by a domain or by plain types"
    for parameter in parameters.values():
        if parameter.name not in domains(entry.function):
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter
            assert parameter.default is not parameter.empty, parameter


@every_entry
def test_card(entry):
    assert entry.summary.endswith(".") and len(entry.summary) <= 100, entry.summary  # noqa: PT018
    assert entry.use.startswith("Use ")
    assert entry.formula and entry.gradient and entry.reference  # noqa: PT018
    assert re.search(r"\(\d{4}\)", entry.reference), "a reference has a year"
    doc = inspect.getdoc(entry.function)
    described = doc.split("Args:\n")[1].split("\nReturns:")[0]
    named = set(re.findall(r"\w+", " ".join(re.findall(r"^  ([\w, ]+):", described, flags=re.M))))
    assert named == set(inspect.signature(entry.function).parameters), "Args: names every argument and no other"
    assert max(len(line) for line in doc.splitlines()) <= 116


def test_observed_names_are_words_of_the_signatures():
    used = {name for entry in ENTRIES for name in domains(entry.function)}
    assert used & OBSERVED


PROBE = """
import time, sys
import jax, optax
before, start = set(sys.modules), time.process_time()
import jaxloss
spent = time.process_time() - start  # not wall time: other tests run beside this one
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was touched"
roots = {name.split(".")[0] for name in set(sys.modules) - before}
late = {name for name in ("jaxloss.catalogue", "jaxloss.metrics", "jaxloss.train") if name in sys.modules}
assert {"catalogue", "metrics", "train", "Aux", "make_train_step"} <= set(dir(jaxloss))
assert jaxloss.make_train_step is jaxloss.train.make_train_step and jaxloss.Aux is jaxloss.train.Aux
assert jaxloss.catalogue.entries() and jaxloss.metrics.accuracy and not hasattr(jaxloss, "no_such_name")
libraries = {"flax", "sklearn", "pandas", "rich", "typer", "matplotlib", "jinja2", "scipy", "mpmath"}
print(spent, *sorted((roots & libraries) | late))
"""


def test_import_is_cheap_and_touches_nothing():
    # With bytecode, as an installer leaves it and Python by itself keeps it: the first run may have to write it.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    least = float("inf")
    for _ in range(8):  # beside other tests a processor is slower, seldom for ever
        run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, env=environment)
        seconds, *modules = run.stdout.split()
        assert not modules, f"import jaxloss also imports {modules}"
        least = min(least, float(seconds))
        if least <= 0.3:
            break
    assert least <= 0.3, f"import jaxloss costs {least} s on top of jax and optax"


def test_what_measures_rounding_is_compiled_as_a_user_compiles_it():
    for path in pathlib.Path(__file__).parent.rglob("test_*.py"):
        if path != pathlib.Path(__file__) and 'usefixtures("quick_compilation")' in (text := path.read_text()):
            assert "ulps(" not in text, path
