"""A checkpoint is whole or absent, comes back bit for bit, and refuses a state that it does not fit."""

import asyncio
import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import checkpoint_worker as worker
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiles import COMPILES
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from optax import contrib

from jaxloss.train import State, make_train_step
from jaxloss.train.checkpoints import restore, save, saved_steps

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices")


def state_of(params=None, *, at=0, **fields):
    """A state after `at` steps, with whatever is to be saved in it."""
    number = jnp.asarray(at, jnp.int32)
    fields = {"opt_state": (), "model_state": None, "key": None, **fields}
    return State(params={} if params is None else params, step=number, skipped=number, **fields)


def small(at, value=None):
    return state_of({"w": jnp.full(3, float(at if value is None else value))}, at=at)


def shapes_of(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), other
    )
    one, two = worker.contents(state), worker.contents(other)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What comes back


@pytest.mark.parametrize("typed", [True, False], ids=["typed key", "raw key"])
def test_a_restored_run_is_the_unbroken_one(tmp_path, typed):
    step, init = worker.init_state(typed)
    broken, unbroken = init(), init()
    for batch in worker.BATCHES[:3]:
        broken, _ = step(broken, batch)
    save(tmp_path, broken)
    broken = restore(tmp_path, jax.eval_shape(init))
    for batch in worker.BATCHES[3:]:
        broken, _ = step(broken, batch)
    for batch in worker.BATCHES:
        unbroken, _ = step(unbroken, batch)
    assert_same(broken, unbroken)
    assert broken.step == 6


def test_another_process_resumes_bit_for_bit(tmp_path):
    step, init = worker.init_state()
    state = init()
    for batch in worker.BATCHES[:3]:
        state, _ = step(state, batch)
    save(tmp_path / "run", state)
    for batch in worker.BATCHES[3:]:
        state, _ = step(state, batch)
    command = [sys.executable, worker.__file__, "resume", str(tmp_path / "run"), str(tmp_path / "result.npz")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # not a word of orbax's or absl's either
    result, expected = np.load(tmp_path / "result.npz"), worker.contents(state)
    assert set(result.files) == set(expected)
    for name, data in expected.items():
        np.testing.assert_array_equal(result[name], data, err_msg=name)


Pair = collections.namedtuple("Pair", ["first", "second"])


def every_type():
    odd = {name: jnp.asarray(i) for i, name in enumerate(["a/b", "a.b", "a['b']", "a'", "ü %\n", "", ".", "..", "0"])}
    return state_of(
        {
            "float32": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42, 1 / 3]),
            **{name: jnp.asarray(np.arange(-3, 4), name) for name in ("bfloat16", "float16", "int8", "complex64")},
            **{name: jnp.arange(4).astype(name) for name in ("float8_e4m3fn", "int4", "uint32", "uint8")},
            "bool": jnp.array([[True], [False]]),
            "scalar": jnp.asarray(1.5, jnp.bfloat16),
            "empty": jnp.zeros((0, 3), jnp.bfloat16),
            "numpy": np.arange(3, dtype=np.float32),
        },
        opt_state=(Pair(jnp.ones(2), None), optax.EmptyState(), None, [jnp.zeros(1)], {}),
        model_state={
            "odd names": {**odd, "a": {**odd, "b": odd}},
            "numbers": {1: jnp.ones(1), 10: jnp.zeros(1)},
            "keys": [jax.random.split(jax.random.key(1), 3), jax.random.key(2, impl="rbg"), jax.random.PRNGKey(3)],
        },
        key=jax.random.key(0),
        at=12,
    )


def test_every_type_of_leaf_and_node(tmp_path):
    state = every_type()
    path = save(tmp_path, state)
    assert path == tmp_path / "step_00000012"
    for like in (state, shapes_of(state)):
        found = restore(tmp_path, like)
        assert_same(found, state)
        assert isinstance(found.opt_state[0], Pair)
        for leaf in jax.tree.leaves(found):
            assert isinstance(leaf, jax.Array)
            assert leaf.committed
            assert not getattr(leaf, "weak_type", False)
            assert leaf.devices() == {jax.devices()[0]}
    drawn = [jax.random.bits(one.model_state["keys"][1]) for one in (state, found)]
    assert drawn[0] == drawn[1]


def test_nothing_compiles_when_a_restored_state_meets_a_compiled_step(tmp_path):
    step, init = worker.init_state()
    state, _ = step(init(), worker.BATCHES[0])
    save(tmp_path, state)
    for like in (state, jax.eval_shape(init)):
        found = restore(tmp_path, like)
        before = len(COMPILES)
        found, _ = step(found, worker.BATCHES[1])
        assert len(COMPILES) == before
        assert found.step == 2


def test_a_donated_state_still_tells_its_structure(tmp_path):
    step, init = worker.init_state()
    state, _ = step(init(), worker.BATCHES[0])
    save(tmp_path, state)
    after, _ = step(state, worker.BATCHES[1])
    assert state.step.is_deleted()
    again, _ = step(restore(tmp_path, state), worker.BATCHES[1])
    assert_same(after, again)
    with pytest.raises(RuntimeError, match="was donated to a train step, and is deleted: save the state that the"):
        save(tmp_path, state)


def test_the_default_device_is_where_arrays_go(tmp_path):
    save(tmp_path, small(1))
    with jax.default_device(jax.devices()[2]):
        found = restore(tmp_path, shapes_of(small(1)))
    assert all(leaf.devices() == {jax.devices()[2]} for leaf in jax.tree.leaves(found))


# Meshes


def mesh_of(shape, axes, kind=AxisType.Auto):
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))


def adam_on(mesh, spec):
    params = {"w": jnp.arange(32.0).reshape(8, 4), "b": jnp.arange(4.0)}
    places = {"w": spec, "b": P()}
    params = {name: jax.device_put(leaf, NamedSharding(mesh, places[name])) for name, leaf in params.items()}

    def loss_fn(params, batch, *, key):
        return jnp.sum((batch @ params["w"] + params["b"][None] + jax.random.normal(key, ())) ** 2)

    step = make_train_step(loss_fn, optax.adam(0.1))
    return step, lambda: step.init(params, key=jax.random.key(0))


ROWS = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)


def layout(state):
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def test_from_one_mesh_onto_another_without_a_compilation(tmp_path):
    first, first_init = adam_on(mesh_of((4,), ("x",)), P("x"))
    state, _ = first(first_init(), ROWS)
    save(tmp_path, state)

    second, second_init = adam_on(mesh_of((2, 2), ("a", "b")), P("a", "b"))
    like, _ = second(second_init(), ROWS)
    found = restore(tmp_path, like)
    assert_same(found, state)
    assert layout(found) == layout(like)
    assert found.params["w"].sharding.spec == P("a", "b")
    before = len(COMPILES)
    second(found, ROWS)
    assert len(COMPILES) == before

    home = restore(tmp_path, state)  # and back to where it was
    assert layout(home) == layout(state)
    before = len(COMPILES)
    first(home, ROWS)
    assert len(COMPILES) == before


def test_from_a_mesh_onto_one_device_and_back(tmp_path):
    _, init = adam_on(mesh_of((4,), ("x",)), P("x"))
    state = init()
    save(tmp_path, state)
    one = restore(tmp_path, shapes_of(state))
    assert_same(one, state)
    assert {leaf.sharding for leaf in jax.tree.leaves(one)} == {SingleDeviceSharding(jax.devices()[0])}
    save(tmp_path, one)
    back = restore(tmp_path, state)
    assert_same(back, state)
    assert layout(back) == layout(state)


def test_shapes_with_shardings_and_what_follows_the_params(tmp_path):
    mesh = mesh_of((2, 2), ("a", "b"))
    state = adam_on(mesh, P("a"))[1]()
    save(tmp_path, state)
    like = shapes_of(state)
    w = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=NamedSharding(mesh, P("b")))
    like = dataclasses.replace(like, params={**like.params, "w": w})
    found = restore(tmp_path, like)
    assert_same(found, state)
    assert found.params["w"].sharding == NamedSharding(mesh, P("b"))
    others = [leaf for leaf in jax.tree.leaves(found) if leaf is not found.params["w"]]
    assert {leaf.sharding for leaf in others} == {NamedSharding(mesh, P())}


def test_an_explicit_mesh(tmp_path):
    """There, jax.eval_shape keeps the axes of some shardings, but not the devices."""
    mesh = mesh_of((4,), ("x",), AxisType.Explicit)
    _, init = adam_on(mesh, P("x", None))
    state = init()
    save(tmp_path, state)
    like = jax.eval_shape(init)
    with pytest.raises(ValueError, match=r"`like.params\['b'\]` has a sharding without devices.*jax.set_mesh\(mesh\)"):
        restore(tmp_path, like)
    with jax.set_mesh(mesh):
        found = restore(tmp_path, like)
    assert_same(found, state)
    assert layout(found).params == layout(state).params
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(found))
    assert layout(restore(tmp_path, state)) == layout(state)
    key = jax.device_put(jax.random.split(jax.random.key(0), 4), NamedSharding(mesh, P("x")))
    keyed = dataclasses.replace(state, model_state=key)
    save(tmp_path, keyed)
    assert restore(tmp_path, keyed).model_state.sharding == key.sharding


# What does not fit


def refused(tmp_path, like):
    with pytest.raises(ValueError, match="does not fit `like`, which must be a state of the model") as caught:
        restore(tmp_path, like)
    return str(caught.value).splitlines()[1:]


def test_what_differs_is_listed(tmp_path):
    save(tmp_path, state_of({"w": jnp.ones((3, 1)), "old": jnp.ones(2), "h": jnp.ones(2), "same": jnp.ones(1)}))
    like = state_of({"w": jnp.ones((4, 1)), "new": jnp.ones(()), "h": jnp.ones(2, jnp.bfloat16), "same": jnp.ones(1)})
    for wanted in (like, shapes_of(like)):
        assert sorted(refused(tmp_path, wanted)) == [
            "  params['h']: float32[2] in the checkpoint, bfloat16[2] in `like`",
            "  params['new']: absent in the checkpoint, float32[] in `like`",
            "  params['old']: float32[2] in the checkpoint, absent in `like`",
            "  params['w']: float32[3, 1] in the checkpoint, float32[4, 1] in `like`",
        ]


def test_a_difference_in_an_empty_array_counts(tmp_path):
    save(tmp_path, state_of({"w": jnp.ones((0, 3))}))
    assert refused(tmp_path, state_of({"w": jnp.ones((0, 4))})) == [
        "  params['w']: float32[0, 3] in the checkpoint, float32[0, 4] in `like`"
    ]


def test_a_long_list_is_cut_and_counted(tmp_path):
    save(tmp_path, state_of([jnp.ones(1)] * 13))
    lines = refused(tmp_path, state_of([jnp.ones(2)] * 13))
    assert len(lines) == 11
    assert lines[0] == "  params[0]: float32[1] in the checkpoint, float32[2] in `like`"
    assert lines[-1] == "  ... and 3 more"


def test_keys_of_another_kind(tmp_path):
    kinds = {
        "key<fry>[]": jax.random.key(0),
        "key<rbg>[]": jax.random.key(0, impl="rbg"),
        "uint32[2]": jax.random.PRNGKey(0),
        "absent": None,
    }
    for saved, key in kinds.items():
        save(tmp_path, state_of(key=key))
        for wanted, other in kinds.items():
            if wanted != saved:
                line = f"  key: {saved} in the checkpoint, {wanted} in `like`"
                assert refused(tmp_path, state_of(key=other)) == [line]


def test_another_optimizer(tmp_path):
    params = {"w": jnp.ones(2)}
    save(tmp_path, state_of(params, opt_state=optax.adam(0.1).init(params)))
    # The same fields and shapes, of another meaning: only the name of the tuple tells.
    assert refused(tmp_path, state_of(params, opt_state=optax.adabelief(0.1).init(params))) == [
        "  opt_state[0]: ScaleByAdamState in the checkpoint, ScaleByBeliefState in `like`"
    ]
    assert refused(tmp_path, state_of(params, opt_state=(optax.EmptyState(), *optax.adam(0.1).init(params))))[:2] == [
        "  opt_state[1]: absent in the checkpoint, ScaleByAdamState in `like`",
        "  opt_state[1].count: absent in the checkpoint, int32[] in `like`",
    ]
    inside = contrib.schedule_free(optax.adam(0.1), 0.1).init(params)
    save(tmp_path, state_of(params, opt_state=inside))
    other = inside._replace(base_optimizer_state=optax.adabelief(0.1).init(params))
    assert refused(tmp_path, state_of(params, opt_state=other)) == [
        "  opt_state.base_optimizer_state[0]: ScaleByAdamState in the checkpoint, ScaleByBeliefState in `like`"
    ]


def test_what_holds_no_array_cannot_differ(tmp_path):
    params = {"w": jnp.ones(2)}
    save(tmp_path, state_of(params, opt_state=(optax.EmptyState(), jnp.ones(1)), model_state={}))
    found = restore(tmp_path, state_of(params, opt_state=(None, jnp.ones(1)), model_state=None))
    assert found.opt_state[0] is None
    assert found.model_state is None


# Which checkpoint


def test_the_newest_or_the_one_that_is_asked_for(tmp_path):
    assert saved_steps(tmp_path) == []
    for at in (7, 100, 9, 200_000_000):
        save(tmp_path, small(at), keep=None)
    assert saved_steps(tmp_path) == [7, 9, 100, 200_000_000]
    assert restore(tmp_path, small(0)).params["w"][0] == 200_000_000
    for at in (7, 9, 100):
        assert restore(tmp_path, small(0), step=at).params["w"][0] == at


def test_no_checkpoint(tmp_path):
    absent = tmp_path / "absent"
    assert saved_steps(absent) == []
    for folder, words in ((tmp_path, "it is empty"), (absent, "there is no such folder")):
        with pytest.raises(FileNotFoundError, match=f"^no complete checkpoint in {re.escape(str(folder))}: {words}$"):
            restore(folder, small(0))
    assert not absent.exists()
    for at in (3, 1):
        save(tmp_path, small(at))
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint of step 2 in .*: it holds steps 1, 3$"):
        restore(tmp_path, small(0), step=2)


def test_only_complete_checkpoints_count_and_the_rest_goes_at_the_next_save(tmp_path):
    save(tmp_path, small(1))
    for left in ("step_00000002.incomplete", "step_00000003.incomplete.orbax-checkpoint-tmp", "step_00000001.obsolete"):
        shutil.copytree(tmp_path / "step_00000001", tmp_path / left)
    (tmp_path / "step_00000004").write_text("a file")
    theirs = ["step_9_mine", "notes", "step_00000005.txt", "my step_00000006.incomplete"]
    for name in theirs:
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [1]
    assert restore(tmp_path, small(0)).step == 1
    save(tmp_path, small(2))
    assert saved_steps(tmp_path) == [1, 2]
    assert names(tmp_path) == sorted(["step_00000001", "step_00000002", "step_00000004", *theirs])


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_keep(tmp_path, keep, left):
    for at in range(1, 6):
        save(tmp_path, small(at), keep=keep)
    assert saved_steps(tmp_path) == left
    assert names(tmp_path) == [f"step_{at:08d}" for at in left]


def test_three_are_kept_unless_told_otherwise(tmp_path):
    for at in range(1, 6):
        save(tmp_path, small(at))
    assert saved_steps(tmp_path) == [3, 4, 5]


def test_what_was_just_written_stays_though_others_are_newer(tmp_path):
    for at in (7, 8, 9):
        save(tmp_path, small(at))
    save(tmp_path, small(2), keep=3)
    assert saved_steps(tmp_path) == [2, 8, 9]
    save(tmp_path, small(3), keep=1)
    assert saved_steps(tmp_path) == [3]


def test_a_step_saved_again_is_replaced(tmp_path):
    for value in (10, 11, 12):
        path = save(tmp_path, small(5, value), keep=None)
        assert names(tmp_path) == [path.name]
        assert saved_steps(tmp_path) == [5]
        assert restore(tmp_path, small(0)).params["w"][0] == value
        assert restore(tmp_path, small(0), step=5).params["w"][0] == value
    # The tenth repetition is newer than the second.
    shutil.copytree(path, tmp_path / "step_00000005.10")
    assert save(tmp_path, small(5, 13)).name == "step_00000005.11"
    second = shutil.copytree(path.with_name("step_00000005.11"), tmp_path / "kept")
    save(tmp_path, small(5, 14))
    second.rename(path)
    assert restore(tmp_path, small(0)).params["w"][0] == 14


# Whenever the process dies


class Watch:
    """Copies a folder whenever Python is about to change a file system: what a process that dies there leaves."""

    def __init__(self, folder, into):
        self.folder, self.into, self.events, self.active = str(folder), into, [], False
        sys.addaudithook(self)  # for good: there is no removing one

    def __call__(self, event, arguments):
        if self.active and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            self.active = False
            if event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
                with contextlib.suppress(shutil.Error):  # tensorstore's threads go on meanwhile
                    shutil.copytree(self.folder, self.into / str(len(self.events)))
                self.events.append((event, str(arguments[0])))
            self.active = True

    @contextlib.contextmanager
    def watching(self):
        self.active = True
        try:
            yield
        finally:
            self.active = False


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("new", "stages"),
    [
        (small(4), [("1", "2", "3"), ("1", "2", "3", "4"), ("2", "3", "4"), ("3", "4")]),
        (small(3, 4), [("1", "2", "3"), ("1", "2", "3", "3.1"), ("2", "3", "3.1"), ("2", "3.1")]),
    ],
    ids=["a new step", "the same step again"],
)
@pytest.mark.exhaustive
def test_whatever_moment_the_process_dies_at(tmp_path, new, stages):
    """At every moment there is a newest checkpoint, it is the old or the new one, and nothing half is called whole."""
    folder = tmp_path / "run"
    for at in (1, 2, 3):
        save(folder, small(at))
    whole = [files(path) for path in folder.iterdir()]
    watch = Watch(folder, tmp_path)
    with watch.watching():
        save(folder, new, keep=2)
    whole += [files(path) for path in folder.iterdir()]
    seen = {}
    for i, event in enumerate(watch.events):
        complete = [name for name in names(tmp_path / str(i)) if re.fullmatch(r"step_\d{8}(\.\d+)?", name)]
        assert all(files(tmp_path / str(i) / name) in whole for name in complete), event
        seen.setdefault(tuple(complete), tmp_path / str(i))
    assert [tuple(name.removeprefix("step_0000000") for name in stage) for stage in seen] == stages
    newest = [float(restore(then, small(0)).params["w"][0]) for then in seen.values()]
    assert newest == [3, 4, 4, 4]
    for then in seen.values():  # and training goes on from there
        save(then, small(5), keep=2)
        assert restore(then, small(0)).params["w"][0] == 5
        assert len(names(then)) == 2


@pytest.mark.exhaustive
def test_kill_9_loses_at_most_the_save_that_it_hits(tmp_path):
    rng, runs = np.random.default_rng(int.from_bytes(os.urandom(4))), []
    try:
        for i in range(4):
            folder, said = tmp_path / f"run {i}", tmp_path / f"said {i}"
            with said.open("w") as out:
                process = subprocess.Popen(
                    [sys.executable, worker.__file__, "save", str(folder)], stdout=out, stderr=subprocess.STDOUT
                )
            runs.append((process, folder, said))
        for process, _, said in runs:
            until = time.monotonic() + 120
            while not said.read_text().count("\n"):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < until
                time.sleep(0.01)
        for process, _, _ in runs:
            time.sleep(rng.uniform(0.05, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
    finally:
        for process, *_ in runs:
            process.kill()
            process.wait(timeout=60)
    interrupted = 0
    for _, folder, said in runs:
        announced = int(said.read_text().rpartition("\n")[0].split("\n")[-1])
        held = saved_steps(folder)
        assert announced in held
        assert held[-1] in (announced, announced + 1)
        interrupted += len(names(folder)) > len(held)
        for at in held:
            assert_same(restore(folder, worker.filled(0), step=at), worker.filled(at))
        save(folder, worker.filled(held[-1] + 1), keep=1)
        assert names(folder) == [f"step_{held[-1] + 1:08d}"]
        assert restore(folder, worker.filled(0)).step == held[-1] + 1
    assert interrupted  # else nothing was tried


def test_everything_is_flushed_before_it_is_named_and_named_before_others_go(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "run"
    happened = []
    flush, rename, remove = os.fsync, pathlib.Path.rename, shutil.rmtree

    def fsync(descriptor):
        flush(descriptor)
        happened.append(("flush", os.fstat(descriptor).st_ino))

    def renamed(path, target):
        result = rename(path, target)
        happened.append(("rename", pathlib.Path(target).name))
        return result

    def removed(path, *arguments, **options):
        happened.append(("remove", pathlib.Path(path).name))
        return remove(path, *arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(pathlib.Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    save(folder, every_type())
    flushed = {inode for kind, inode in happened if kind == "flush"}
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "new")} <= flushed  # the folders it made
    happened.clear()
    path = save(folder, small(13), keep=1)
    named = happened.index(("rename", path.name))
    before = {inode for kind, inode in happened[:named] if kind == "flush"}
    everything = [path, *path.rglob("*")]
    assert len(everything) > 10
    assert {one.stat().st_ino for one in everything} <= before
    assert happened[named + 1] == ("flush", folder.stat().st_ino)
    assert happened[named + 2 :] == [
        ("rename", "step_00000012.obsolete"),
        ("remove", "step_00000012.obsolete"),
    ]


# Where it runs


def test_inside_a_running_event_loop_as_in_a_notebook(tmp_path):
    state = every_type()

    async def cell():
        save(tmp_path, state)
        await asyncio.sleep(0)
        return restore(tmp_path, shapes_of(state))

    assert_same(asyncio.run(cell()), state)
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()  # nothing is left running, or patched to look so
    assert "nest" not in asyncio.run.__module__


def test_no_word_and_no_thread_remains(tmp_path, capfd, caplog):
    save(tmp_path, small(0))  # what is made once
    before = threading.active_count()
    for at in range(5):
        save(tmp_path, small(at))
        restore(tmp_path, small(0))
    until = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert save("run", small(1)) == tmp_path / "run" / "step_00000001"
    assert saved_steps("run") == [1]
    assert restore(pathlib.Path("run"), small(0)).step == 1


# What is refused


def test_what_is_no_state_is_refused(tmp_path):
    for wrong in ({"w": jnp.ones(1)}, None, (1, 2)):
        with pytest.raises(TypeError, match=f"`state` must be a State.*got {type(wrong).__name__}"):
            save(tmp_path, wrong)
        with pytest.raises(TypeError, match=f"`like` must be a State.*got {type(wrong).__name__}"):
            restore(tmp_path, wrong)
    with pytest.raises(TypeError, match=r"`state.params\['w'\]` is ShapeDtypeStruct, not an array with values"):
        save(tmp_path, shapes_of(small(0)))
    with pytest.raises(TypeError, match=r"`state.params\['w'\]` is .*Tracer, not an array with values"):
        jax.jit(lambda state: save(tmp_path, state))(small(0))
    with pytest.raises(TypeError, match=r"`state.params\[0\]` is str, not an array"):
        save(tmp_path, state_of(["a"]))
    with pytest.raises(TypeError, match=r"`like.params\[0\]` is str, neither an array nor a jax.ShapeDtypeStruct"):
        restore(tmp_path, state_of(["a"]))
    assert names(tmp_path) == []


def test_several_runs_in_one_state_are_refused(tmp_path):
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), small(1), small(2))
    with pytest.raises(ValueError, match=r"`state.step` must be one number; got \[2\] of them"):
        save(tmp_path, several)
    for i in range(2):
        save(tmp_path / str(i), jax.tree.map(lambda leaf, i=i: leaf[i], several))
        assert_same(restore(tmp_path / str(i), small(0)), small(i + 1))


def test_options_and_places(tmp_path):
    for keep in (0, -1, True, 1.5, "3"):
        with pytest.raises(ValueError, match=f"`keep` must be a whole number of checkpoints.*got {keep!r}"):
            save(tmp_path, small(0), keep=keep)
    uses = (lambda at: save(at, small(0)), lambda at: restore(at, small(0)), saved_steps)
    for act in uses:
        with pytest.raises(ValueError, match="`directory` must be a folder of a file system"):
            act("gs://bucket/run")


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    def __init__(self, one, two):
        self.both = one, two

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("same"), leaf) for leaf in self.both], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_two_leaves_of_one_name_are_refused(tmp_path):
    twins = state_of(Twins(jnp.ones(1), jnp.zeros(1)))
    with pytest.raises(ValueError, match=r"`params.same` is the path of two leaves"):
        save(tmp_path, twins)


def test_without_orbax(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert saved_steps(tmp_path) == []
    for act in (lambda: save(tmp_path, small(0)), lambda: restore(tmp_path, small(0))):
        with pytest.raises(ImportError, match=r"pip install 'jaxloss\[train\]'"):
            act()
