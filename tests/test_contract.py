"""Every public loss obeys every law, in every format. A new loss adds one row to `cases.py` and no line here."""

import pytest
from cases import CASES

import jaxloss as jl
from jaxloss.testing import DTYPES, broken_laws


def test_every_public_loss_has_a_case():
    assert {case.name for case in CASES} == {entry.name for entry in jl.catalogue.entries()}


# The tests of their engines compare in float64 by themselves.
ENGINES = (
    "alignment",
    "contrastive",
    "embedding",
    "geometry",
    "margin",
    "probabilistic",
    "ranking_surrogates",
    "segmentation",
    "sequence",
    "transport",
    "vocabulary",
)


def rows():
    """Left out by default: half formats, and float64 of engines and of a loss's further rows."""
    # Not asked of the catalogue: what is wrong with a card is to fail a test, not to keep the tests from being found.
    seen = {case.name for case in CASES if case.loss.__module__.rpartition(".")[2] in ENGINES}
    for case in CASES:
        name = f"{case.name}-{'-'.join(case.axes.values())}"
        for dtype in DTYPES:
            rare = "float16" in dtype or (dtype == "float64" and case.name in seen)
            yield pytest.param(case, dtype, id=f"{name}-{dtype}", marks=pytest.mark.exhaustive if rare else ())
        seen.add(case.name)


@pytest.mark.parametrize(("case", "dtype"), [*rows()])
def test_laws(case, dtype):
    broken = broken_laws(case, dtype)
    assert not broken, "\n".join(broken)
