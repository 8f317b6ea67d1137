"""Checkpoints of a training state: whole or absent, on the disk when `save` returns, compared before `restore` reads.

    directory/step_00000012/                 complete: the name alone says so
    directory/step_00000012.1/               step 12 saved once more; it stands in for the one before
    directory/step_00000012.incomplete...    being written, or left by a process that died; the next save removes it
    directory/step_00000012.obsolete         being removed; likewise

orbax writes the arrays. It flushes them to the disk, but neither its own descriptions of them nor the renaming that
makes a checkpoint visible, so that happens here.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, Sharding

from jaxloss.train.state import State, is_traced

__all__ = ["load_orbax", "restore", "save", "saved_steps"]

_COMPLETE = re.compile(r"step_(\d+)(?:\.(\d+))?")
_LEFTOVER = re.compile(r"step_\d+(?:\.\d+)?\.(?:incomplete|obsolete).*")
_LINES = 10


def save(directory: str | os.PathLike[str], state: State, *, keep: int | None = 3) -> pathlib.Path:
    """Write a checkpoint of `state`, named by its step; it is complete and on the disk when this returns.

    A process that dies meanwhile loses this checkpoint and no other. A step that was saved before is replaced: the old
    one goes when the new one is complete. Of several processes every one calls this, with one shared folder.

    Args:
      directory: the folder of one run's checkpoints, made if absent, on a file system (not an address of an object
        store).
      state: what a train step returned, or `init`; on any mesh.
      keep: how many steps to keep: this one, and the highest of the others. None keeps all.
    Returns: the folder of the new checkpoint.
    Raises: TypeError where `state` is no `State` of arrays; RuntimeError where it was donated.
    """
    ocp = load_orbax()
    folder = _folder(directory)
    _check_keep(keep)
    _check_state("state", state)
    arrays = _by_path(state)
    _check_arrays(arrays)
    step = int(state.step)
    incomplete = folder / f"{_Saved(step, 0).name}.incomplete"
    first_process = jax.process_index() == 0
    if first_process:
        _make_folder(folder)
        _remove_leftovers(folder)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:  # waits for every process first
        items = ocp.args.Composite(
            arrays=ocp.args.StandardSave({name: leaf for name, leaf in arrays.items() if leaf.size}),
            structure=ocp.args.JsonSave(_describe(state)),
        )
        checkpointer.save(incomplete, args=items)
    new = _Saved(step, 0)
    if first_process:
        found = _complete(folder)
        new = _Saved(step, 1 + max((old.repeat for old in found if old.step == step), default=-1))
        for path in _below(incomplete):
            _flush(path)
        incomplete.rename(folder / new.name)
        _flush(folder)
        # Only now: until the new name is on the disk, the old ones are all there is.
        for old in _obsolete(found, new, keep):
            _remove(folder / old.name)
    return folder / _agreed(new).name


def restore(directory: str | os.PathLike[str], like: State, *, step: int | None = None) -> State:
    """The state of the newest complete checkpoint, bit for bit, as if it had never left the device.

    What an interrupted `save` left is ignored. Of several processes every one calls this.

    Args:
      directory: the folder that was given to `save`.
      like: a state of the same model and optimizer, for its structure, shapes, dtypes and shardings; its values are
        not looked at. `jax.eval_shape(lambda: train_step.init(params, key=key))` makes one without memory, but on a
        mesh forgets where most arrays lie: give a state that `init` made there. An array goes onto the sharding that
        its counterpart has, which need not be the one it was saved from; where that has none, onto the mesh of the
        params, replicated, or else onto the default device.
      step: restore the checkpoint of this step instead of the highest.
    Returns: a `State`; every array is committed to its place.
    Raises: FileNotFoundError where there is no such checkpoint; ValueError that lists what differs where the
      checkpoint does not fit `like`.
    """
    ocp = load_orbax()
    folder = _folder(directory)
    _check_state("like", like)
    wanted = _by_path(like)
    for name, leaf in wanted.items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise TypeError(f"`like.{name}` is {type(leaf).__name__}, neither an array nor a jax.ShapeDtypeStruct")
    description, shardings = _describe(like), _shardings(wanted)
    path = folder / _choose(folder, step).name
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        structure = checkpointer.restore(path, args=ocp.args.Composite(structure=ocp.args.JsonRestore())).structure
        _check_structure(path, structure, description)
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name])
            for name, leaf in wanted.items()
            if leaf.size
        }
        items = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
        arrays = checkpointer.restore(path, args=items).arrays
    for name, leaf in wanted.items():
        if not leaf.size:  # which orbax refuses to write, and which its shape says all about
            arrays[name] = jax.device_put(np.zeros(leaf.shape, leaf.dtype), shardings[name])
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])


def saved_steps(directory: str | os.PathLike[str]) -> list[int]:
    """The steps that have a complete checkpoint in `directory`, ascending."""
    return sorted({saved.step for saved in _complete(_folder(directory))})


class _Saved(NamedTuple):
    """A complete checkpoint: a step, and how many times it had been saved before."""

    step: int
    repeat: int

    @property
    def name(self) -> str:
        return f"step_{self.step:08d}" + (f".{self.repeat}" if self.repeat else "")


def load_orbax() -> Any:
    """orbax, or what to install."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints are written by orbax: pip install 'jaxloss[train]'") from error
    return ocp


def _folder(directory: str | os.PathLike[str]) -> pathlib.Path:
    if "://" in str(directory):
        raise ValueError(
            f"`directory` must be a folder of a file system, because a checkpoint becomes visible by being renamed, "
            f"which an object store cannot do at once; got {str(directory)!r}"
        )
    return pathlib.Path(directory).absolute()


def _complete(folder: pathlib.Path) -> list[_Saved]:
    """Ascending, so that of one step the last one counts."""
    if not folder.is_dir():
        return []
    names = [_COMPLETE.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(_Saved(int(name[1]), int(name[2] or 0)) for name in names if name)


def _choose(folder: pathlib.Path, step: int | None) -> _Saved:
    found = _complete(folder)
    chosen = [saved for saved in found if step is None or saved.step == step]
    # A shared folder may look different elsewhere for a while, and every process must read the same checkpoint.
    agreed = _agreed(chosen[-1] if chosen else _Saved(-1, 0))
    if agreed.step < 0:
        which = "checkpoint" if step is None else f"checkpoint of step {step}"
        others = ", ".join(map(str, saved_steps(folder)))
        held = f"it holds steps {others}" if others else "it is empty" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"no complete {which} in {folder}: {held}")
    return agreed


def _agreed(saved: _Saved) -> _Saved:
    """What the first process says, once every process has asked."""
    return _Saved(*(int(number) for number in multihost_utils.broadcast_one_to_all(np.array(saved, np.int32))))


def _obsolete(found: list[_Saved], new: _Saved, keep: int | None) -> list[_Saved]:
    """What goes when `new` is there: the same step's older ones, and the lowest steps beyond `keep`."""
    others = sorted({saved.step for saved in found} - {new.step})
    # One place is for the new one, whatever its step: a run that went back to an earlier one keeps what it saves.
    kept = others if keep is None else others[max(0, len(others) - (keep - 1)) :]
    last = {saved.step: saved for saved in found}
    return [saved for saved in found if saved.step not in kept or saved != last[saved.step]]


def _make_folder(folder: pathlib.Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush(path.parent)


def _remove_leftovers(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def _remove(path: pathlib.Path) -> None:
    # Under another name first: half of a checkpoint must not go by the name of a whole one.
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.obsolete")))


def _below(path: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from (pathlib.Path(where, name) for where, _, names in os.walk(path) for name in (*names, ""))


def _flush(path: pathlib.Path) -> None:
    """Have a file, or the names in a folder, on the disk, not only in the system's memory."""
    if os.name == "nt":
        return  # Windows flushes only what is open for writing, and no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _by_path(state: State) -> dict[str, Any]:
    """Every leaf by its path, such as params['w']."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = _name(path)
        if name in leaves:
            raise ValueError(f"`{name}` is the path of two leaves of the state; its node must give them different keys")
        leaves[name] = leaf
    return leaves


def _describe(state: State) -> dict[str, str]:
    """What stands where, in words that are compared and shown: arrays, and which tuples hold them."""
    arrays = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _by_path(state).items()}
    return dict(_tuples(state, ())) | arrays


def _tuples(tree: Any, above: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """The named tuples that hold arrays: two optimizers' states may have the same fields and mean different things."""
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_named_tuple):
        if _is_named_tuple(node) and jax.tree.leaves(node):
            here = (*above, *path)
            yield _name(here), type(node).__name__
            for field, value in zip(node._fields, node, strict=True):
                yield from _tuples(value, (*here, jax.tree_util.GetAttrKey(field)))


def _is_named_tuple(node: object) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path).removeprefix(".")


def _shardings(leaves: dict[str, Any]) -> dict[str, Sharding]:
    given = {name: _concrete(name, getattr(leaf, "sharding", None)) for name, leaf in leaves.items()}
    # The params come first, and the rest follows them, as in `init`.
    mesh = next((sharding.mesh for sharding in given.values() if isinstance(sharding, NamedSharding)), None)
    elsewhere = jax.device_put(0).sharding if mesh is None else NamedSharding(mesh, PartitionSpec())
    return {name: sharding or elsewhere for name, sharding in given.items()}


def _concrete(name: str, sharding: Sharding | None) -> Sharding | None:
    """`sharding` on devices: of an Explicit mesh, jax.eval_shape keeps the axes alone."""
    if not (isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh)):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.shape_tuple != sharding.mesh.shape_tuple:
        raise ValueError(
            f"`like.{name}` has a sharding without devices, over the axes {dict(sharding.mesh.shape)}: call restore "
            "inside `with jax.set_mesh(mesh)`, with the mesh that the params shall lie on"
        )
    return NamedSharding(mesh, sharding.spec)


def _check_keep(keep: Any) -> None:
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError(f"`keep` must be a whole number of checkpoints, at least 1, or None for all; got {keep!r}")


def _check_state(name: str, state: Any) -> None:
    if not isinstance(state, State):
        raise TypeError(
            f"`{name}` must be a State, as `init` and the train step return it; got {type(state).__name__}. Params "
            "alone, or other things beside, are orbax's own business"
        )


def _check_arrays(arrays: dict[str, Any]) -> None:
    for name, leaf in arrays.items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or is_traced(leaf):
            raise TypeError(f"`state.{name}` is {type(leaf).__name__}, not an array with values that could be saved")
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise RuntimeError(
                f"`state.{name}` was donated to a train step, and is deleted: save the state that the step returned"
            )
    shape = list(arrays["step"].shape)
    if shape:
        raise ValueError(
            f"`state.step` must be one number; got {shape} of them: save several runs one by one, each to its own "
            "folder, jax.tree.map(lambda x: x[i], state)"
        )


def _check_structure(path: pathlib.Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    differing = [name for name in wanted | saved if saved.get(name) != wanted.get(name)]
    if not differing:
        return
    lines = [
        f"  {name}: {saved.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} in `like`"
        for name in differing[:_LINES]
    ]
    if len(differing) > _LINES:
        lines.append(f"  ... and {len(differing) - _LINES} more")
    raise ValueError(
        f"the checkpoint {path} does not fit `like`, which must be a state of the model, the optimizer and the options "
        "that it was saved with:\n" + "\n".join(lines)
    )
