"""Every loss on four devices gives what it gives on one: Auto mesh, Explicit mesh, and inside shard_map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl
from jaxloss.testing import SIZES, Run

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = {**SIZES, "N": 8}


def mesh(kind):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


def inputs(case):
    run = Run(case, dict(case.options[0]), "float32", first=True)
    arrays = run.cast(run.draw(ROWS, seed=3))
    shape = run.tail_shape(arrays)
    where = jnp.asarray(np.resize([True, False, True, True, True, True, False, True], shape[::-1]).T)
    weights = jnp.asarray(np.resize(np.linspace(0.5, 2.0, 8), shape[::-1]).T, jnp.float32)
    return run, arrays, where, weights


def spec(case, name, axis="data"):
    return P(axis) if case.axes[name].startswith("N") else P()


def value_and_slopes(run, arrays, where, weights, **tail):
    floats = {k: v for k, v in arrays.items() if k in run.floats}
    others = {k: v for k, v in arrays.items() if k not in run.floats}
    return jax.value_and_grad(lambda x: run.call({**x, **others}, where=where, weights=weights, **tail))(floats)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


def rows():
    """By default one loss of each family."""
    seen = set()
    for case in CASES:
        family = case.loss.__module__
        marks = pytest.mark.exhaustive if family in seen else ()
        yield pytest.param(case, id=f"{case.name}-{'-'.join(case.axes.values())}", marks=marks)
        seen.add(family)


every_case = pytest.mark.parametrize("case", [*rows()])


# By default only the stricter kind of mesh: it refuses what the other would move between devices by itself.
@pytest.mark.parametrize(
    "kind",
    [pytest.param(AxisType.Auto, marks=pytest.mark.exhaustive), AxisType.Explicit],
    ids=["auto", "explicit"],
)
@every_case
def test_sharded_rows_under_jit(case, kind):
    run, arrays, where, weights = inputs(case)
    step = functools.partial(value_and_slopes, run)
    want = jax.jit(step)(arrays, where, weights)
    where_it_goes = mesh(kind)
    put = functools.partial(jax.device_put)
    with jax.set_mesh(where_it_goes):
        shardings = {k: NamedSharding(where_it_goes, spec(case, k)) for k in arrays}
        rows = NamedSharding(where_it_goes, P("data"))
        arrays = {k: put(x, shardings[k]) for k, x in arrays.items()}
        got = jax.jit(step)(arrays, put(where, rows), put(weights, rows))
    for k, slope in got[1].items():
        assert slope.sharding.is_equivalent_to(shardings[k], slope.ndim) or kind == AxisType.Auto, slope.sharding
    close(got, want)


@pytest.mark.exhaustive
@every_case
def test_inside_shard_map(case):
    run, arrays, where, weights = inputs(case)
    want_value, want_slopes = jax.jit(functools.partial(value_and_slopes, run))(arrays, where, weights)
    tail = {"axis_name": "data"} if case.kind == "coupled" else {}

    def total(arrays, where, weights):
        # The halves are summed over the devices; only then they are divided.
        if case.kind == "statistic":
            each = run.call(arrays, where=where, weights=weights, reduction="sum")
            groups = jnp.sum(jnp.any(where, axis=1))
            return jax.lax.psum(each, "data") / jax.lax.psum(groups, "data")
        part = run.call(arrays, where=where, weights=weights, reduction="partial", **tail)
        return jl.Mean(jax.lax.psum(part.total, "data"), jax.lax.psum(part.weight, "data")).value

    specs = ({k: spec(case, k) for k in arrays}, P("data"), P("data"))
    mapped = jax.shard_map(total, mesh=mesh(AxisType.Auto), in_specs=specs, out_specs=P(), check_vma=True)

    def step(arrays):
        floats = {k: v for k, v in arrays.items() if k in run.floats}
        others = {k: v for k, v in arrays.items() if k not in run.floats}
        return jax.value_and_grad(lambda x: mapped({**x, **others}, where, weights))(floats)

    value, slopes = jax.jit(step)(arrays)
    close(value, want_value)
    close(slopes, want_slopes)


def test_rows_that_see_each_other_refuse_to_be_hidden():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    where_it_goes = mesh(AxisType.Auto)

    def local(axis_name):
        def f(q, k):
            return jl.info_nce(q, k, axis_name=axis_name, reduction="none")

        return jax.shard_map(f, mesh=where_it_goes, in_specs=(P("data"), P("data")), out_specs=P("data"))

    with pytest.raises(ValueError, match=r"axis_name='data'.*axis_name=\(\)"):
        local(None)(rows, 2 * rows)
    pairs = [jl.info_nce(rows[i : i + 2], rows[::-1][i : i + 2], reduction="none") for i in range(0, 8, 2)]
    close(local(())(rows, rows[::-1]), jnp.concatenate(pairs))
    close(local("data")(rows, rows[::-1]), jl.info_nce(rows, rows[::-1], reduction="none"))


def test_a_sharded_class_axis_needs_no_gather():
    where_it_goes = mesh(AxisType.Explicit)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)), jnp.float32)
    y = jnp.arange(6)
    want = jax.value_and_grad(jl.softmax_cross_entropy)(z, y)
    with jax.set_mesh(where_it_goes):
        sharded = jax.device_put(z, NamedSharding(where_it_goes, P(None, "data")))
        replicated = jax.device_put(y, NamedSharding(where_it_goes, P()))
        got = jax.jit(jax.value_and_grad(jl.softmax_cross_entropy))(sharded, replicated)
    close(got, want)
