"""Every public loss obeys every law, in every format. A new loss adds one row to `cases.py` and no line here."""

import pytest
from cases import CASES

import jaxloss as jl
from jaxloss.testing import DTYPES, broken_laws


def test_every_public_loss_has_a_case():
    assert {case.name for case in CASES} == {entry.name for entry in jl.catalogue.entries()}


# The tests of their engines, or of the pieces that they are made of, compare in float64 by themselves.
TESTED_IN_PARTS = (
    "alignment",
    "contrastive",
    "divergence",
    "embedding",
    "geometry",
    "language",
    "margin",
    "multiclass",
    "multilabel",
    "noise_tolerant",
    "probabilistic",
    "ranking_surrogates",
    "robust",
    "segmentation",
    "sequence",
    "transport",
    "vocabulary",
)


def rows():
    """Left out by default: half formats, a loss's further rows, and float64 of what is tested in parts."""
    seen = set()
    for case in CASES:
        name = f"{case.name}-{'-'.join(case.axes.values())}"
        # Not asked of the catalogue: what is wrong with a card is to fail a test, not to keep the tests from being
        # found.
        in_parts = case.loss.__module__.rpartition(".")[2] in TESTED_IN_PARTS
        for dtype in DTYPES:
            rare = case.name in seen or "float16" in dtype or (dtype == "float64" and in_parts)
            yield pytest.param(case, dtype, id=f"{name}-{dtype}", marks=pytest.mark.exhaustive if rare else ())
        seen.add(case.name)


@pytest.mark.parametrize(("case", "dtype"), [*rows()])
def test_laws(case, dtype):
    broken = broken_laws(case, dtype)
    assert not broken, "\n".join(broken)
