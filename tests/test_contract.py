"""Every public loss obeys every law, in every format. A new loss adds one row to `cases.py` and no line here."""

import pytest
from cases import CASES

import jaxloss as jl
from jaxloss.testing import DTYPES, broken_laws


def test_every_public_loss_has_a_case():
    assert {case.name for case in CASES} == {entry.name for entry in jl.catalogue.entries()}


FORMATS = [pytest.param(dtype, marks=pytest.mark.exhaustive if "float16" in dtype else ()) for dtype in DTYPES]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.name}-{'-'.join(case.axes.values())}" for case in CASES])
def test_laws(case, dtype):
    broken = broken_laws(case, dtype)
    assert not broken, "\n".join(broken)
