"""Quick cases, tiny: ours, optax's and the plain forms do what the truth says, and the truth is its own derivative.

All cases and peers are too slow to start here; continuous integration has them in `python -m benchmarks --tiny`.
"""

import numpy as np
import pytest

from benchmarks import cases
from benchmarks.__main__ import main
from benchmarks.case import GRADIENT
from benchmarks.measure import Team, measure

NAMES = [case.name for case in cases.select(["elementwise"])]
DIFFERENTIABLE = [name for name, case in cases.by_name().items() if GRADIENT in case.modes]


@pytest.fixture(scope="module")
def team():
    with Team() as team:
        yield team


@pytest.mark.parametrize("name", NAMES)
def test_tiny(name, team):
    case = cases.by_name()[name]
    light = {name for name, variant in case.variants.items() if set(variant.needs) <= {"optax"}}
    points = list(measure(case, team, tiny=True, only=frozenset(light)))
    assert len(points) == len(case.dtypes) * len(case.modes)
    for point in points:
        assert point["refused"] == {}
        assert {"jaxloss", "limit", case.baseline} <= light == point["variants"].keys()
        for found in point["variants"].values():
            assert found["wall_min"] > 0
            assert found["cpu_min"] > 0
            assert found["rounds"] == found["calls"] == 1


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_truth_is_its_own_derivative(name):
    case = cases.by_name()[name]
    inputs = {key: a.astype(float) if a.dtype.kind == "f" else a for key, a in _inputs(case).items()}
    _, *gradients = case.truth(inputs)
    floating = [key for key, a in inputs.items() if a.dtype.kind == "f"]
    rng = np.random.default_rng(1)
    direction = {key: rng.standard_normal(g.shape) for key, g in zip(floating, gradients, strict=False)}
    slope = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True))
    step = 1e-7  # so small that no choice changes, of a rank or of what is mined: there a value may jump
    above, below = (
        case.truth({**inputs, **{key: inputs[key] + s * d for key, d in direction.items()}})[0] for s in (step, -step)
    )
    np.testing.assert_allclose((above - below) / (2 * step), slope, rtol=1e-4)


def test_truth_of_the_cross_entropies_by_hand():
    logits, label = np.array([[0.0, np.log(3.0)]]), np.array([0])
    value, gradient = cases.by_name()["softmax_cross_entropy"].truth({"logits": logits, "labels": label})
    np.testing.assert_allclose(value, np.log(4))
    np.testing.assert_allclose(gradient, [[-0.75, 0.75]], rtol=1e-6)
    binary = {"logits": np.array([np.log(3.0)]), "targets": np.array([0.0])}
    np.testing.assert_allclose(cases.by_name()["sigmoid_cross_entropy"].truth(binary)[0], np.log(4))
    np.testing.assert_allclose(cases.by_name()["sigmoid_focal"].truth(binary)[0], 0.75**2 * np.log(4))
    far = {"predictions": np.array([0.5, 3.0]), "targets": np.zeros(2)}
    np.testing.assert_allclose(cases.by_name()["huber"].truth(far)[0], (0.125 + 2.5) / 2)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_rows_in_parts_are_the_rows_at_once(name, monkeypatch):
    case = cases.by_name()[name]
    inputs = _inputs(case)
    whole = case.truth(inputs)
    monkeypatch.setattr("benchmarks.truth._ENTRIES_AT_A_TIME", 70)
    for a, b in zip(case.truth(inputs), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_cases_are_selected_by_name_and_family():
    assert [case.name for case in cases.select(["huber"])] == ["huber"]
    assert {case.name for case in cases.select(["elementwise"])} == {"sigmoid_cross_entropy", "huber", "sigmoid_focal"}
    assert len(cases.select([])) == len(cases.by_name())


def test_an_unknown_case_is_refused_in_words(capsys):
    assert main(["hubert"]) == 2
    assert "no case or family is named hubert; there are" in capsys.readouterr().err


def _inputs(case):
    return case.inputs(case.tiny, np.random.default_rng(0))
