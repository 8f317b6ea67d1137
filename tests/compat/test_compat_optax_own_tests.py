"""optax's own tests of its losses, which lie in its wheel, run against `jaxloss.compat.optax`.

Each test module is loaded afresh while the modules that it tests are replaced by ones that answer with our function
where we have one; its decorators and its tests see no other. Afterwards everything is as it was.
"""

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import pathlib
import types
import unittest
import warnings

import jax
import numpy as np
import optax
import pytest

from jaxloss.compat import optax as ours

FOLDER = pathlib.Path(optax.losses.__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("*_test.py"))

# Tests that demand what is wrong, by name, each with its reason. None does.
DESELECTED: dict[str, str] = {}


def counted(name, calls):
    """Our function, which says that it was asked."""
    function = getattr(ours, name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    return call


def proxy(original, answers):
    """A module that answers with our functions first, and with the original's for the rest."""
    module = types.ModuleType(original.__name__, original.__doc__)
    own = {name: value for name, value in vars(original).items() if not name.startswith("__")}
    vars(module).update(own | {name: answers[name] for name in answers if name in own})
    return module


@contextlib.contextmanager
def replaced(calls):
    """optax with our losses: its private modules, as its tests import them, and its public names."""
    answers = {name: counted(name, calls) for name in ours.__all__}
    with pytest.MonkeyPatch.context() as patch:
        for name in FILES:
            private = name.removesuffix("_test.py")
            original = importlib.import_module(f"optax.losses.{private}")
            patch.setattr(optax.losses, private, proxy(original, answers))
        for package in (optax.losses, optax):
            for name, answer in answers.items():
                if hasattr(package, name):
                    patch.setattr(package, name, answer)
        yield


def loaded(name):
    """The test module, executed anew and registered nowhere."""
    spec = importlib.util.spec_from_file_location(f"of_optax_{name.removesuffix('.py')}", FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each_case(suite):
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from each_case(part)
        else:
            yield part


def functions_of(name):
    """The test functions that the file defines, read from its text."""
    return {
        f"{node.name}.{part.name}"
        for node in ast.parse((FOLDER / name).read_text()).body
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test")
    }


def function_of(case, known):
    """Which of them a case belongs to: parameters append a number to the name, a doctest is its module's."""
    found = case.id().split(".", 1)[1]
    return max((name for name in known if found.startswith(name)), key=len, default=found)


@functools.cache
def outcome(name):
    """What was called, which functions ran, and the result of all of a file's tests."""
    calls, known = [], functions_of(name)
    with replaced(calls), jax.numpy_rank_promotion("allow"):
        cases = [
            case
            for case in each_case(unittest.defaultTestLoader.loadTestsFromModule(loaded(name)))
            if function_of(case, known) not in DESELECTED
        ]
        ran = {function_of(case, known) for case in cases}
        np.random.seed(0)  # theirs are not seeded
        report = io.StringIO()
        with warnings.catch_warnings():
            # To watch for a warning unittest looks into every module there is, and some warn of that.
            warnings.simplefilter("ignore")
            result = unittest.TextTestRunner(report, warnings="ignore").run(unittest.TestSuite(cases))
    return frozenset(calls), ran, len(cases), result, report.getvalue()


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", FILES)
def test_of_optax(name):
    calls, ran, cases, result, report = outcome(name)
    assert result.wasSuccessful(), report
    assert not result.skipped
    assert result.testsRun == cases
    assert functions_of(name) - set(DESELECTED) == {function for function in ran if not function.startswith("losses.")}
    original = importlib.import_module(f"optax.losses.{name.removesuffix('_test.py')}")
    mine = {each for each in ours.__all__ if hasattr(original, each)}
    assert mine <= calls, f"not asked: {mine - calls}"


def test_they_are_all_here():
    assert len(FILES) >= 7
    assert sum(len(functions_of(name)) for name in FILES) >= 119, "of optax 0.2.8; a later one has no fewer"
    assert all(reason for reason in DESELECTED.values())


def test_nothing_of_ours_stays_in_optax():
    with replaced([]):
        assert optax.losses.huber_loss is optax.huber_loss is not ours.huber_loss
        assert inspect.unwrap(optax.huber_loss) is ours.huber_loss
    for package in (optax, optax.losses, optax.losses._regression):
        assert package.huber_loss.__module__ == "optax.losses._regression"
