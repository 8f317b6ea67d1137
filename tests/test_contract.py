"""Every public loss obeys every law, in every format. A new loss adds one row to `cases.py` and no line here."""

import pytest
from cases import CASES

import jaxloss as jl
from jaxloss.testing import DTYPES, broken_laws


def test_every_public_loss_has_a_case():
    assert {case.name for case in CASES} == {entry.name for entry in jl.catalogue.entries()}


def rows():
    """Left out by default: all formats but float32, and a loss's further rows."""
    seen = set()
    for case in CASES:
        name = f"{case.name}-{'-'.join(case.axes.values())}"
        for dtype in DTYPES:
            rare = case.name in seen or dtype != "float32"
            yield pytest.param(case, dtype, id=f"{name}-{dtype}", marks=pytest.mark.exhaustive if rare else ())
        seen.add(case.name)


@pytest.mark.parametrize(("case", "dtype"), [*rows()])
def test_laws(case, dtype):
    broken = broken_laws(case, dtype)
    assert not broken, "\n".join(broken)
