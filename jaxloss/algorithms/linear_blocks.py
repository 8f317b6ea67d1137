"""How rows and classes of hidden [N, D] times kernel are cut into pieces that fit, and stay where a mesh has put them.

Both are cut with a stride: a chunk takes every K-th row, a block the same part of each lane of classes. So a piece
holds as much of every device as of any other, and to cut moves nothing, where contiguous pieces would gather all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxloss.core.types import Array, AxisName

__all__ = [
    "Blocks",
    "bits",
    "class_pieces",
    "dot",
    "in_auto_mode",
    "kernel_slope",
    "mesh_size",
    "nothing",
    "numbers",
    "planned",
    "repeat",
    "row_chunks",
    "row_pieces",
    "rows_in_order",
    "vocabulary_offset",
]

T = TypeVar("T")

_SMALL = 2**18  # logits that are not worth a loop
_TILE = 2**20 * 3 // 4  # entries of a block of logits that stay in a CPU's cache
_TILE_AGAIN = 2**20 * 4 // 5  # the same where half-precision logits are made twice, and none are held
_LONGEST = 2048  # rows of a chunk: more make the products no faster


def bits(x: Array) -> Array:
    """Half-precision numbers as their bits; wider ones as they are."""
    # XLA's CPU has no half-precision slices: it would hold a float32 copy of the whole kernel. Bits are sliced as is.
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def numbers(x: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `bits`."""
    return lax.bitcast_convert_type(x, dtype) if x.dtype != dtype and x.dtype == jnp.uint16 else x


def dot(a: Array, b: Array, over: tuple[int, int]) -> Array:
    """The matrix product over one axis of each, summed and returned in float32 (or float64)."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), preferred_element_type=wide)


def kernel_slope(transposed: bool, x: Array, turned: Array, g: Array) -> Array:
    """The slope of a kernel [D, V] or [V, D]: rows x [N, D], also given `turned`, times slopes of logits g [N, V]."""
    if not transposed:
        # XLA's CPU has a fast half-precision product for rows times columns only, and takes `turned` for such because
        # it comes from outside the loop.
        return dot(turned, g, (1, 0))
    if x.dtype.itemsize > 2:
        return dot(g, x, (0, 0))
    return lax.optimization_barrier(dot(turned, g, (1, 0))).T


def repeat(count: int, body: Callable[[Any, T], T], start: T) -> T:
    """`fori_loop`, but a single round is no loop: jax 0.10 fails at half-precision products in one of length 1."""
    return body(0, start) if count == 1 else lax.fori_loop(0, count, body, start)


def nothing(tree: Any) -> Array:
    """Zero, float32, that varies over every manual mesh axis over which an array of `tree` does: a carry's start."""
    total = jnp.zeros((), jnp.float32)
    for x in jax.tree.leaves(tree):
        total = total + jnp.sum(jnp.zeros_like(x[(slice(0, 1),) * x.ndim]), dtype=jnp.float32)
    return total


def mesh_size(arrays: Sequence[Array]) -> int:
    """Over how many devices an axis of these may be spread, as far as jax can know while tracing; 1 without a mesh."""
    sizes = [1]
    for x in arrays:
        mesh = jax.typeof(x).sharding.mesh
        if not mesh.empty:
            kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
            sizes.append(math.prod(mesh.shape[name] for name, kind in kinds if kind != AxisType.Manual))
    return max(sizes)


def in_auto_mode(function: Callable[..., Array], arrays: Sequence[Array], rows: Array | None) -> Callable[..., Array]:
    """`function`, with the compiler to choose how its products are spread where the caller's mesh is explicit.

    It returns one number, or one for each of `rows` without the last axis, and then lies as these do.
    """
    for x in arrays:
        mesh = jax.typeof(x).sharding.mesh
        explicit = tuple(
            name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit
        )
        if not mesh.empty and explicit:
            spec = PartitionSpec()
            if rows is not None and not jax.typeof(rows).sharding.mesh.empty:
                spec = PartitionSpec(*tuple(jax.typeof(rows).sharding.spec)[:-1])
            automatic: Any = jax.sharding.auto_axes(function, axes=explicit, out_sharding=NamedSharding(mesh, spec))
            return automatic
    return function


def row_chunks(x: Array, chunks: int) -> Array:
    """[N, ...] -> [chunks, rows, ...] bits, every chunks-th row together; what is missing at the end is zeros."""
    rows = -(-x.shape[0] // chunks)
    if rows * chunks != x.shape[0]:
        x = jnp.pad(x, [(0, rows * chunks - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
    return bits(x).reshape(rows, chunks, *x.shape[1:]).swapaxes(0, 1)


def rows_in_order(chunks: Array, count: int) -> Array:
    """The inverse of `row_chunks`, for numbers."""
    return chunks.swapaxes(0, 1).reshape(-1, *chunks.shape[2:])[:count]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Classes in blocks: block j holds the entries [start(j), start(j) + width) of each of `lanes` equal lanes."""

    classes: int
    lanes: int
    width: int

    @property
    def lane(self) -> int:
        """How many classes a lane has."""
        return self.classes // self.lanes

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return -(-self.lane // self.width)

    @property
    def size(self) -> int:
        """How many classes a block has."""
        return self.lanes * self.width

    @property
    def overlap(self) -> bool:
        """Whether the last block begins early, and holds classes that the one before it held too."""
        return self.count * self.width != self.lane

    def start(self, j: Any) -> Any:
        """Where block j begins in each lane."""
        return jnp.minimum(j * self.width, self.lane - self.width) if self.overlap else j * self.width

    def index(self, j: Any) -> Array:
        """The class of each entry of block j, [1, size]."""
        first = jnp.arange(self.lanes, dtype=jnp.int32)[:, None] * self.lane
        return (first + jnp.arange(self.width, dtype=jnp.int32)[None]).reshape(1, -1) + self.start(j)

    def fresh(self, j: Any) -> Array | None:
        """Which entries of block j no block before it had, [1, size]; None: all."""
        if not self.overlap:
            return None
        return jnp.tile(self.start(j) + jnp.arange(self.width) >= j * self.width, self.lanes)[None]

    def split(self, x: Array, axis: int) -> Array:
        """`x` with its class `axis` as [lanes, lane]: so are taken from and put into. One lane is no axis."""
        if self.lanes == 1:
            return x
        return x.reshape(*x.shape[:axis], self.lanes, -1, *x.shape[axis + 1 :])

    def merged(self, x: Array, axis: int) -> Array:
        """The inverse of `split`."""
        return x if self.lanes == 1 else x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def take(self, split: Array, j: Any, axis: int) -> Array:
        """Block j of a split array along `axis`, merged."""
        if self.count == 1:
            return self.merged(split, axis)
        part = lax.dynamic_slice_in_dim(bits(split), self.start(j), self.width, axis + (self.lanes > 1))
        return self.merged(numbers(part, split.dtype), axis)

    def put(self, split: Array, block: Array, j: Any, axis: int) -> Array:
        """A split array with `block` in the place of its block j along `axis`."""
        part = self.split(block, axis)
        if self.count == 1:
            return part
        return lax.dynamic_update_slice_in_dim(split, part, self.start(j), axis + (self.lanes > 1))


def planned(
    rows: int,
    features: int,
    classes: int,
    half: bool,
    *,
    low: bool,
    devices: int,
    chunk_rows: int | None,
    chunk_classes: int | None,
) -> tuple[int, Blocks, bool]:
    """Into how many chunks the rows are cut, how the classes are, and whether each block's logits are made twice.

    Materialised, a class takes 4 bytes a row for its logit, 4 for its softmax and 2 for that in half precision. A third
    of it may be held: one chunk's logits in float32, and the sum of the kernel's gradient where the kernel is half
    precision. A CPU makes half-precision logits again as fast as it reads them: there, such rows take no chunks until
    there are many, and need no sum.
    """
    lanes = math.gcd(classes, devices)
    lane = classes // lanes
    on_cpu = jax.default_backend() == "cpu"
    tiny = rows * classes <= _SMALL
    again = low or (half and on_cpu and rows <= _LONGEST and not tiny and chunk_rows is None)
    if chunk_rows is not None:
        chunks = max(1, -(-rows // max(chunk_rows, 1)))
    elif tiny:
        chunks = 1
    else:
        held = int((10 if half else 8) * rows * 0.92 / 3) - (4 * features if half else 0)  # bytes a class
        # Each chunk adds to the whole gradient of the kernel: fewer rows than this take less time than that.
        least = max(64, features // 8)
        longest = 1024 if again else max(held // 4, rows // 4, least)
        chunks = _parts(rows, max(1, min(longest, _LONGEST, rows)), devices)
    longest = max(1, -(-rows // chunks))
    if chunk_classes is not None:
        width = min(max(1, chunk_classes // lanes), lane)
    elif tiny:
        width = lane
    else:
        # A CPU has a cache to stay in; elsewhere each block costs the launch of its kernels.
        small = max(rows * classes // (16 if again else 32), 2**16)
        if again:
            tile = min(_TILE_AGAIN, small) if half and on_cpu else small
        else:
            tile = min(_TILE, small) if on_cpu else longest * classes
        wanted = min(max(tile // longest, 256), 4096 if again else classes)
        width = -(-lane // _parts(lane, max(1, wanted // lanes), 1))
    return chunks, Blocks(classes, lanes, width), again


def row_pieces(rows: int, features: int, classes: int, *, devices: int, chunk_rows: int | None) -> int:
    """Into how many chunks the rows are cut where each holds its logits several times over, and is made twice."""
    if chunk_rows is not None:
        return max(1, -(-rows // max(chunk_rows, 1)))
    if rows * classes <= _SMALL:
        return 1
    # Each chunk adds to the whole gradient of the kernel, as above.
    return _parts(rows, min(max(rows // 16, 64, features // 8), _LONGEST, rows), devices)


def class_pieces(rows: int, classes: int, *, devices: int) -> Blocks:
    """How the classes are cut in the product that gives a kernel's slope, which is added to what there is."""
    lanes = math.gcd(classes, devices)
    lane = classes // lanes
    if rows * classes <= _SMALL:
        return Blocks(classes, lanes, lane)
    return Blocks(classes, lanes, -(-lane // _parts(lane, max(1, 8192 // lanes), 1)))


def _parts(whole: int, longest: int, devices: int) -> int:
    """Into how many parts, none longer than `longest`: such that all are equal, if not many more are needed for it."""
    least = max(1, -(-whole // longest))
    for parts in range(least, 2 * least + 1):
        if whole % (parts * devices) == 0:
            return parts
    return next((parts for parts in range(least, 2 * least + 1) if whole % parts == 0), least)


def vocabulary_offset(classes: int, axis_name: AxisName) -> Array | int:
    """The first class that this device holds, where the classes are spread over `axis_name`."""
    return classes * lax.axis_index(axis_name) if axis_name else 0
