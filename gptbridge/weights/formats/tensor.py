"""What a weight file says about a tensor: name, element type, shape, and where its bytes lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Element type -> the little-endian NumPy type that carries its bits. NumPy has no bfloat16 and no
# float8: those travel as unsigned integers of the same width and keep their name in TensorInfo.dtype.
STORAGE_DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float8_e4m3fn": np.dtype("u1"),
    "float8_e5m2": np.dtype("u1"),
    "float8_e4m3fnuz": np.dtype("u1"),
    "float8_e5m2fnuz": np.dtype("u1"),
    "float8_e8m0fnu": np.dtype("u1"),
    "complex64": np.dtype("<c8"),
    "complex128": np.dtype("<c16"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("<u8"),
    "uint32": np.dtype("<u4"),
    "uint16": np.dtype("<u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

MAX_DIMENSIONS = 32  # NumPy's own limit before 2.0
MAX_NAME_LENGTH = 1024
MAX_TENSORS = 50_000
SLAB_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `dtype` is a key of STORAGE_DTYPES, `shape` is in elements, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """The NumPy type of the arrays that carry this tensor's bits (uint16 for bfloat16)."""
        return STORAGE_DTYPES[self.dtype]

    @property
    def num_elements(self) -> int:
        """How many elements the tensor has; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take, row-major and without gaps."""
        return self.num_elements * self.storage_dtype.itemsize


@dataclass(frozen=True, slots=True)
class Extent:
    """`nbytes` bytes at `offset` of a file."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """The place of a tensor in a tree of plain data; `name` is its key in the file's tensors."""

    name: str


class Namespace(dict[str, "Tree"]):
    """The attributes of an argparse.Namespace, such as a trainer's options, as plain data."""


Key: TypeAlias = "bool | int | str | bytes | tuple[bool | int | str | bytes | None, ...] | None"
Tree: TypeAlias = (
    "bool | int | float | complex | str | bytes | TensorRef | list[Tree] | tuple[Tree, ...]"
    " | set[Key] | dict[Key, Tree] | Namespace | None"
)

# What a writer is given for a tensor: called once, it yields the tensor's bytes in row-major order, in
# arrays of any type; views of the map of another open file at best.
Chunks: TypeAlias = Iterable[NDArray[Any]]
Entry: TypeAlias = tuple[TensorInfo, Callable[[], Chunks]]


def describe_bad_name(name: object) -> str | None:
    """Return what is wrong with a tensor's name, or None: printable text of 1 to 1024 characters."""
    if not isinstance(name, str):
        return f"a tensor's name is a {type(name).__name__}, not text"
    if not name:
        return "a tensor's name is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"a tensor's name has {len(name)} characters, over {MAX_NAME_LENGTH}"
    if not name.isprintable():
        return "a tensor's name holds control characters"
    return None


def describe_bad_shape(shape: Iterable[object]) -> str | None:
    """Return what is wrong with a shape, or None: up to 32 whole numbers whose product fits in a file."""
    dimensions = list(shape)
    if len(dimensions) > MAX_DIMENSIONS:
        return f"it has {len(dimensions)} dimensions, over {MAX_DIMENSIONS}"
    size = 1
    for dimension in dimensions:
        if type(dimension) is not int:
            return f"a dimension is a {type(dimension).__name__}, not a whole number"
        if dimension < 0:
            return f"a dimension is negative: {max(dimension, -(1 << 63))}"
        size *= max(dimension, 1)
        if size >= 1 << 59:
            return "its dimensions multiply to more elements than any file holds"
    return None


def row_major_chunks(array: NDArray[Any], max_bytes: int = SLAB_BYTES) -> Iterator[NDArray[Any]]:
    """Yield `array` as contiguous row-major pieces of at most `max_bytes` (or one element) each.

    Pieces of a contiguous array are views; of a strided one, copies made one at a time.
    """
    if array.nbytes <= max_bytes or array.ndim == 0:
        yield np.ascontiguousarray(array).reshape(-1)
        return
    row_bytes = array.nbytes // array.shape[0]
    if row_bytes > max_bytes:
        for row in array:
            yield from row_major_chunks(row, max_bytes)
        return
    rows = max(1, max_bytes // row_bytes)
    for start in range(0, array.shape[0], rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1)
