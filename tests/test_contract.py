"""Every public loss obeys every law, in every format. A new loss adds one row to `cases.py` and no line here."""

import pytest
from cases import CASES

import jaxloss as jl
from jaxloss.testing import DTYPES, broken_laws


def test_every_public_loss_has_a_case():
    assert {case.name for case in CASES} == {entry.name for entry in jl.catalogue.entries()}


FIRST, FURTHER = slice(0, 1), slice(1, None)


def rows():
    """Left out by default: all formats but float32, a loss's further rows, and further options.

    They say nothing of one version of jax or another, and are asked of one only (`formats`).
    """
    rare_marks = [pytest.mark.exhaustive, pytest.mark.formats]
    seen = set()
    for case in CASES:
        name = f"{case.name}-{'-'.join(case.axes.values())}"
        for dtype in DTYPES:
            marks = rare_marks if case.name in seen or dtype != "float32" else ()
            yield pytest.param(case, dtype, FIRST, id=f"{name}-{dtype}", marks=marks)
            if len(case.options) > 1:
                yield pytest.param(case, dtype, FURTHER, id=f"{name}-{dtype}-options", marks=rare_marks)
        seen.add(case.name)


@pytest.mark.parametrize(("case", "dtype", "only"), [*rows()])
def test_laws(case, dtype, only):
    broken = broken_laws(case, dtype, only=only)
    assert not broken, "\n".join(broken)
