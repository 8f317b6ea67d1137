"""The harness itself, with workers in this process and cases made up for the purpose."""

import dataclasses
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__, cases, measure, results, with_command, with_jax, with_torch, worker
from benchmarks.case import GRADIENT, RUN, VALUE, Case, Prepared
from benchmarks.truth import mean_over_rows, worst_error

pytestmark = pytest.mark.exhaustive

LOG = []  # (request, variant)


class InProcess:
    """A worker without a process, behind the same JSON."""

    def __init__(self, library):
        self.library = library

    def ask(self, do, **request):
        LOG.append((do, request.get("variant")))
        if request.get("variant") == "killer":
            raise measure.WorkerDiedError("the process ended with exit code -9")
        if not hasattr(self, "worker"):
            self.worker = worker.Worker(self.library)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "Worker", lambda library: self.worker)
            replies = io.StringIO()
            worker.main(self.library, io.StringIO(json.dumps({"do": do, **request}) + "\n"), replies)
        return json.loads(replies.getvalue())

    def stop(self):
        pass


def squares(p, t):
    return ((p - t) ** 2).mean()


def zero_with_a_slope(p):
    return (p - jax.lax.stop_gradient(p)).sum()


def made_up(**variants):
    return Case(
        name="made_up",
        sizes=((40,), (400,), (4000,)),
        tiny=(4,),
        inputs=lambda size, rng: {name: rng.standard_normal(size, np.float32) for name in ("p", "t")},
        truth=mean_over_rows(lambda p, t: ((p - t) ** 2, 2 * (p - t))),
        variants={
            "jaxloss": with_jax.loss(squares, role="ours"),
            "optax": with_jax.loss(squares),
            **variants,
            "limit": with_jax.limit(gradient=lambda p, t: p * t),
        },
        limit="reads and writes",
    )


@pytest.fixture
def run(monkeypatch):
    def run(case, **options):
        monkeypatch.setattr(cases, "by_name", lambda: {case.name: case})
        LOG.clear()
        with measure.Team(InProcess) as team:
            return {(tuple(p["size"]), p["mode"]): p for p in measure.measure(case, team, **options)}

    return run


def test_a_record_holds_what_the_method_promises(run):
    points = run(made_up(), rounds=4)
    assert list(points) == [((n,), mode) for n in (40, 400, 4000) for mode in (VALUE, GRADIENT)]
    assert "limit" not in points[(40,), VALUE]["variants"]  # it was declared for the gradient only
    found = points[(4000,), GRADIENT]["variants"]["jaxloss"]
    assert found["rounds"] == 4
    assert found["calls"] > 1  # a few microseconds are called until they are milliseconds
    assert found["wall_min"] <= found["wall_median"]
    assert found["cpu_min"] <= found["cpu_median"]
    assert found["error"] < 1e-5
    assert found["output_bytes"] >= 4 * 4000
    assert found["compile_s"] > 0


def test_variants_take_turns_and_each_comes_first(run):
    run(made_up(), rounds=3, smallest=True)
    timed = [name for do, name in LOG if do == "time"]
    assert timed[:6] == ["jaxloss", "optax", "optax", "jaxloss", "jaxloss", "optax"]
    assert timed[6:] == ["jaxloss", "optax", "limit", "optax", "limit", "jaxloss", "limit", "jaxloss", "optax"]


def test_all_are_checked_before_the_first_is_timed(run):
    run(made_up(), rounds=1, smallest=True)
    verbs = [do for do, _ in LOG if do in ("prepare", "time")]
    assert verbs == ["prepare"] * 2 + ["time"] * 2 + ["prepare"] * 3 + ["time"] * 3


def test_one_that_is_wrong_is_refused_and_never_timed(run):
    wrong = {
        "no half": with_jax.loss(lambda p, t: 2 * squares(p, t)),
        "nan": with_jax.loss(lambda p, t: squares(p, t) + jnp.nan),
        "right value, wrong gradient": with_jax.loss(lambda p, t: squares(p, t) + zero_with_a_slope(p)),
        "wrong shape": with_jax.loss(lambda p, t: squares(p, t), wrt=(0, 1)),
    }
    points = run(made_up(**wrong), rounds=1, smallest=True)
    assert points[(40,), VALUE]["refused"].keys() == {"no half", "nan"}
    assert points[(40,), GRADIENT]["refused"].keys() == set(wrong)
    assert "off by" in points[(40,), GRADIENT]["refused"]["no half"]
    assert not [name for do, name in LOG if do == "time" and name in ("no half", "nan")]


def test_what_raises_is_reported_by_name(run):
    def broken(p, t):
        raise RuntimeError("no such kernel")

    point = run(made_up(broken=with_jax.loss(broken)), rounds=1, smallest=True)[(40,), VALUE]
    assert point["refused"] == {"broken": "RuntimeError: no such kernel"}
    assert {"jaxloss", "optax"} <= point["variants"].keys()


def test_a_missing_package_is_skipped_and_said(run):
    def missing(p, t):
        import no_such_package  # noqa: F401

    late = with_jax.loss(missing)
    early = with_jax.loss(missing, needs=("no_such_package",))
    point = run(made_up(late=late, early=early), tiny=True)[(4,), VALUE]
    assert point["skipped"] == {"early": "no_such_package not installed"}
    assert point["refused"] == {"late": "No module named 'no_such_package'"}


def test_a_death_takes_only_the_one_that_died(run):
    killer = with_jax.loss(squares)
    point = run(made_up(killer=killer), rounds=2, smallest=True)[(40,), GRADIENT]
    assert point["refused"] == {"killer": "the process ended with exit code -9"}
    assert point["variants"].keys() == {"jaxloss", "optax", "limit"}
    assert point["variants"]["jaxloss"]["rounds"] == 2


def test_only_some_variants(run):
    point = run(made_up(), tiny=True, only=frozenset({"jaxloss", "limit"}))[(4,), GRADIENT]
    assert point["variants"].keys() == {"jaxloss", "limit"}


def test_torch_without_the_accelerator_is_skipped(monkeypatch):
    class Machine:
        def ask(self, library, do):
            return {"platform": "cpu"}

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    variant = with_torch.loss(lambda p, t: p)
    assert measure._why_not(variant, "gpu", Machine()) == "this torch has no support for the gpu"
    assert measure._why_not(variant, "cpu", Machine()) is None


def test_a_size_is_halved_until_it_fits():
    assert measure._fitting((8192, 32000), 1e12) == (8192, 32000)
    assert measure._fitting((8192, 32000), 8e9) == (4096, 32000)
    assert measure._fitting((), 1e9) == ()
    assert measure._fitting((8192, 1000, 1000), 8e9, lambda size: size[0] * 2000) == (8192, 1000, 1000)
    assert measure._fitting((8192, 1000, 1000), 8e8, lambda size: size[0] * 2000) == (4096, 1000, 1000)


def test_inputs_are_arguments_and_keep_their_dtype_and_order(run):
    seen = []

    def loss(p, t):
        seen.append((type(p).__name__, p.dtype.name, t.dtype.name))
        return jnp.mean((p.astype(jnp.float32) - t) ** 2)

    case = made_up()
    case = dataclasses.replace(
        case, dtypes=("bfloat16",), variants={"jaxloss": with_jax.loss(loss, role="ours"), "optax": with_jax.loss(loss)}
    )
    points = run(case, tiny=True)
    assert points[(4,), GRADIENT]["refused"] == {}
    assert {(p, t) for _, p, t in seen} == {("bfloat16", "bfloat16")}
    assert all("Tracer" in name for name, _, _ in seen)


def test_time_is_that_of_one_call(monkeypatch):
    calls = []
    held = worker.Worker("command")
    held.prepared["one"] = Prepared(call=lambda: calls.append(1), outputs=list)
    clock = iter((0.0, 6.0))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(clock))
    assert held.time("one", 3)["wall"] == pytest.approx(2.0)
    assert len(calls) == 3 + 1  # the first wakes the threads, before the clock


def test_worst_error_is_relative_to_the_largest_entry_and_keeps_nan():
    truth = np.array([0.0, -2.0])
    assert worst_error(np.array([0.1, -2.0]), truth) == pytest.approx(0.05)
    assert np.isnan(worst_error(np.array([np.nan, -2.0]), truth))
    with pytest.raises(ValueError, match="shape"):
        worst_error(np.zeros(3), truth)


@pytest.mark.parametrize(
    ("who", "arguments", "code"), [("ours", ["--rounds=1"], 1), ("peer", ["--rounds=1"], 0), ("peer", ["--tiny"], 1)]
)
def test_exit_code_when_one_is_wrong(who, arguments, code, monkeypatch, capsys):
    twice = with_jax.loss(lambda p, t: 2 * squares(p, t), role=who)
    case = dataclasses.replace(made_up(**{"jaxloss" if who == "ours" else "other": twice}), sizes=((40,),))
    monkeypatch.setattr(cases, "by_name", lambda: {case.name: case})
    monkeypatch.setattr(__main__, "Team", lambda: measure.Team(InProcess))
    assert __main__.main(arguments) == code
    assert ("value: jaxloss refused: off by" in capsys.readouterr().err) == (who == "ours")


def test_the_command_writes_merges_and_gates(monkeypatch, capsys, tmp_path):
    case = dataclasses.replace(made_up(), sizes=((40,),))
    monkeypatch.setattr(cases, "by_name", lambda: {case.name: case})
    monkeypatch.setattr(__main__, "Team", lambda: measure.Team(InProcess))
    monkeypatch.setattr(results, "LEAST_SECONDS", 0)
    path = tmp_path / "here.json"
    assert __main__.main(["made_up", "--rounds=1", f"--json={path}"]) == 0
    kept = json.loads(path.read_text())
    assert [point["mode"] for point in kept["points"]] == [VALUE, GRADIENT]
    for point in kept["points"]:
        point["variants"]["optax"]["cpu_min"] = 1e6 * point["variants"]["jaxloss"]["cpu_min"]
    path.write_text(json.dumps(kept))
    capsys.readouterr()
    assert __main__.main(["made_up", "--rounds=1", f"--gate={path}"]) == 1
    said = capsys.readouterr()
    assert said.err.count("stored is 0.00.") == 2
    assert "limit" not in said.out  # ours and the baseline are enough
    path.write_text(json.dumps({**kept, "versions": {}}))
    assert __main__.main(["made_up", "--rounds=1", f"--json={path}"]) == 2
    assert "other versions" in capsys.readouterr().err
    assert __main__.main(["made_up", "--rounds=1", f"--gate={tmp_path / 'none.json'}"]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_program_is_measured_from_outside():
    variant = with_command.program(lambda inputs: ["-c", "print(sum(range(10**6)) % 7)"], float)
    prepared = variant.build({}, RUN)
    before = worker._cpu_seconds()
    assert prepared.outputs() == [sum(range(10**6)) % 7]
    assert worker._cpu_seconds() > before
    assert prepared.peak_bytes() > 2**20
    failing = with_command.program(lambda inputs: ["-c", "raise SystemExit('out of luck')"], float).build({}, RUN)
    with pytest.raises(RuntimeError, match="out of luck"):
        failing.call()


@pytest.mark.parametrize(("slow_looks", "code"), [(1, 0), (2, 0), (3, 1)])
def test_a_ratio_must_be_bad_three_times(slow_looks, code, monkeypatch, capsys):
    case = dataclasses.replace(made_up(), sizes=((40,),), modes=(VALUE,))
    looks = []

    def busy_at_first(case, team, **settings):
        looks.append(case.name)
        for point in measure.measure(case, team, **settings):
            each = point["variants"]
            each["jaxloss"]["cpu_min"] = each["optax"]["cpu_min"] * (9 if len(looks) <= slow_looks else 1)
            yield point

    monkeypatch.setattr(cases, "by_name", lambda: {case.name: case})
    monkeypatch.setattr(__main__, "Team", lambda: measure.Team(InProcess))
    monkeypatch.setattr(__main__, "measure", busy_at_first)
    monkeypatch.setattr(results, "LEAST_SECONDS", 0)
    assert __main__.main(["--rounds=1", "--gate"]) == code
    assert len(looks) == min(slow_looks + 1, 3)
    # Times are kept with a few digits, so that nine times as much may read 8.99.
    said = re.search(r"took (\S+) of the time of optax", capsys.readouterr().err)
    assert bool(said) == bool(code)
    assert said is None or abs(float(said[1]) - 9) < 0.05


def test_what_has_no_baseline_is_not_measured_for_the_gate(monkeypatch, capsys):
    case = dataclasses.replace(made_up(), sizes=((40,),), baseline="nobody")
    monkeypatch.setattr(cases, "by_name", lambda: {case.name: case})
    monkeypatch.setattr(__main__, "Team", lambda: measure.Team(InProcess))
    assert __main__.main(["--rounds=1", "--gate"]) == 0
    assert "made_up" not in capsys.readouterr().out


def test_a_processor_is_told_by_its_family_and_model(monkeypatch):
    text = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 9\n"
    monkeypatch.setattr(worker.pathlib.Path, "read_text", lambda path: text)
    assert worker._processor() == "AMD EPYC, family 26, model 2"
