"""Files, ratios, the gate, the table and the plots, on results made up by hand."""

import json

import numpy as np
import pytest

from benchmarks import plots, results, table
from benchmarks.gate import TOLERANCE, complaints

DEVICE = {"kind": "AMD EPYC (R) 9", "platform": "cpu", "count": 2}


def variant(role, cpu, **more):
    clocks = {"wall_min": cpu / 2, "wall_median": cpu, "cpu_min": cpu, "cpu_median": 2 * cpu}
    return {"role": role, "rounds": 5, "calls": 1, **clocks, **more}


def point(ours=3.0, optax=2.0, size=(10**6,), mode="value and gradient", case="huber", **more):
    variants = {
        "jaxloss": variant("ours", ours, temp_bytes=3 * 2**20, peak_bytes=5 * 2**20, compile_s=0.25),
        "optax": variant("peer", optax, peak_bytes=7 * 2**20),
        "torch": variant("peer", 1.5),
        "limit": variant("limit", 1.0),
    }
    found = {"case": case, "dtype": "float32", "size": list(size), "mode": mode, "baseline": "optax"}
    return {**found, "variants": variants, "refused": {}, "skipped": {"rax": "rax not installed"}, **more}


def document(*points, **device):
    return results.document(points, {**DEVICE, **device, "versions": {"jax": "0.10.2"}, "memory": 1})


def test_json_round_trip(tmp_path):
    found = document(point(), point(size=(10**7,)))
    path = tmp_path / "results" / "one.json"
    results.save(found, path)
    assert results.load(path) == found
    assert len(path.read_text().splitlines()) < 30  # a line a point
    assert results.load(path)["points"][0]["variants"]["jaxloss"]["temp_bytes"] == 3 * 2**20


def test_a_document_tells_the_kind_of_device_and_nothing_of_the_host():
    found = document()
    assert found["device"]["name"] == "cpu-amd-epyc-r-9-2-cores"
    assert "memory" not in json.dumps(found)
    gpu = document(kind="NVIDIA H200", platform="gpu", count=1)
    assert results.path_for(gpu).name == "gpu-nvidia-h200.json"
    assert document(kind="NVIDIA H200", platform="gpu", count=8)["device"]["name"] == "gpu-nvidia-h200-x8"


def test_numbers_are_short_and_finite():
    found = document(point(ours=1.23456789))
    assert found["points"][0]["variants"]["jaxloss"]["cpu_min"] == 1.235
    with pytest.raises(ValueError, match="finite"):
        document(point(ours=float("nan")))


def test_merge_replaces_the_same_points_and_keeps_the_others():
    old = document(point(), point(size=(10**7,)))
    merged = results.merge(old, document(point(ours=9.0)))
    assert [p["variants"]["jaxloss"]["cpu_min"] for p in merged["points"]] == [9.0, 3.0]
    with pytest.raises(ValueError, match="another device or other versions"):
        results.merge(old, document(point(), count=4))
    reduced = document(point(size=(10,), asked=[10**7]))
    assert len(results.merge(old, reduced)["points"]) == 2  # a size that was reduced is still the one that was asked


def test_ratios():
    assert results.ratios(point(), "cpu_min") == {"baseline": 1.5, "best peer": 2.0, "limit": 3.0}
    alone = point()
    alone["variants"] = {"jaxloss": alone["variants"]["jaxloss"]}
    assert results.ratios(alone, "cpu_min") == {"baseline": None, "best peer": None, "limit": None}


def test_a_cpu_is_judged_by_cpu_time_and_an_accelerator_by_the_wall():
    assert results.clock(document()) == "cpu_min"
    assert results.clock(document(platform="gpu")) == "wall_min"


def test_series_need_three_sizes_that_differ_in_the_first_number():
    points = [point(size=(n, 1000)) for n in (400, 100, 200)] + [point(size=(8, 32000)), point(size=())]
    ((name, members),) = results.series(points).items()
    assert name == ("huber", "float32", "value and gradient", (1000,))
    assert [p["size"][0] for p in members] == [100, 200, 400]


def test_gate_compares_ratios_never_times():
    stored = document(point(ours=3.0, optax=2.0))
    ten_times_slower = document(point(ours=30.0, optax=20.0))
    assert complaints(ten_times_slower, stored) == {}
    assert complaints(document(point(ours=3.0 * (TOLERANCE - 0.01))), stored) == {}
    ((key, sentence),) = complaints(document(point(ours=3.0 * (TOLERANCE + 0.01))), stored).items()
    assert key == ("huber", "float32", (10**6,), "value and gradient")
    assert sentence.startswith("huber, float32, 1e6, value and gradient: jaxloss took 2.27 of the time of optax")
    assert sentence.endswith("stored is 1.50.")


@pytest.mark.parametrize("stored", [None, document(point(ours=9.0), count=64), document(point(size=(7,)))])
def test_gate_without_a_stored_ratio_takes_the_bound_of_the_case(stored):
    assert complaints(document(point(ours=4.9, optax=2.0)), stored) == {}
    (sentence,) = complaints(document(point(ours=5.1, optax=2.0)), stored).values()
    assert "at most 2.5 is allowed where nothing is stored" in sentence


def test_gate_says_nothing_without_a_baseline():
    alone = point()
    del alone["variants"]["optax"]
    assert complaints(document(alone), document(point())) == {}


def test_gate_leaves_out_what_is_over_at_once():
    long, short = (
        document(point(ours=9 * t, optax=t)) for t in (1.01 * results.LEAST_SECONDS, 0.99 * results.LEAST_SECONDS)
    )
    assert len(complaints(long, None)) == 1
    assert complaints(short, None) == {}


def test_of_two_measurements_the_better_ratio_is_kept():
    old = document(point(ours=4.0), point(size=(7,), ours=4.0))
    for ours, kept in ((3.0, 3.0), (5.0, 4.0)):
        found = results.better(old, document(point(ours=ours)))
        assert [p["variants"]["jaxloss"]["cpu_min"] for p in found["points"]] == [kept, 4.0]
    slow = document(point(ours=40.0, optax=80.0))  # a slower machine, and a better ratio
    assert results.better(old, slow)["points"][0]["variants"]["jaxloss"]["cpu_min"] == 40.0


def test_table_shows_times_ratios_and_what_is_left_out():
    bad = point(size=(10**5,), ours=8.0, refused={"keras": "off by 1; 0.1 is allowed"}, asked=[10**6])
    page = table.render([document(point(), bad)], {})
    row = next(line for line in page.splitlines() if line.startswith("| huber | float32 | 1e6 |"))
    assert row.endswith("| 3000 (1500) | 2000 (1000) | 1500 (750) | 1000 (500) | 1.50 | 2.00 | 3.00 |")
    assert "1e5 (of 1e6)" in page
    assert "- 4.00 x optax: huber, float32, 1e5 (of 1e6), value and gradient" in page.splitlines()
    assert "- huber: rax: rax not installed" in page
    assert "keras refused: off by 1" in page
    assert "jax 0.10.2" in page
    assert "| 5 (3) | 7 |" in page  # memory in MiB
    assert "| 0.25 |" in page  # compilation
    assert "by hand" not in page.split("## AMD")[1]  # no column for what was not there


def test_table_fits_the_slope():
    points = [point(size=(n,), ours=(n / 1e5) ** 1.5, optax=n / 1e5) for n in (10**5, 10**6, 10**7)]
    page = table.render([document(*points)], {})
    row = next(line for line in page.splitlines() if "1e5 to 1e7" in line)
    assert row.startswith("| huber | float32 | 1e5 to 1e7 | value and gradient | 1.50 | 1.00 |")


def test_plots_are_drawn_for_series_only(tmp_path):
    from matplotlib.image import imread

    sizes = (10**5, 10**6, 10**7)
    found = document(*(point(size=(n,)) for n in sizes), *(point(size=(n,), mode="value") for n in sizes))
    drawn = plots.draw(found, tmp_path)
    assert list(drawn) == ["huber"]
    assert drawn["huber"].name == "cpu-amd-epyc-r-9-2-cores-huber.png"
    assert np.ptp(imread(drawn["huber"])) > 0.5
    assert plots.draw(document(point()), tmp_path) == {}
    text = drawn["huber"].read_bytes()
    assert plots.draw(found, tmp_path)["huber"].read_bytes() == text  # the same results, the same image
