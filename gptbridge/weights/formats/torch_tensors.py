"""torch tensors inside a pickle: storages found, views checked, each given a TensorBytes."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Any

from gptbridge.weights.formats.pickles.decoder import PickleDecoder
from gptbridge.weights.formats.pickles.globals import GLOBALS, build_state
from gptbridge.weights.formats.pickles.numpy_arrays import NumpyArrays
from gptbridge.weights.formats.pickles.torch_calls import load_torch_storage
from gptbridge.weights.formats.pickles.tree import Record, TreeBuilder
from gptbridge.weights.formats.pickles.values import Refused, TorchStorage, TorchTensor
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import STORAGE_DTYPES, TensorInfo
from gptbridge.weights.formats.tensor_bytes import MappedBytes
from gptbridge.weights.formats.weight_file import Contents


class TorchTensors:
    """The tensors of one torch file: `decoder` for its pickles, then `add_tree` once storages are known.

    `mentioned` holds each storage that the pickle referred to, by key.
    """

    def __init__(self, source: SourceFile, start: int, stop: int) -> None:
        self.mentioned: dict[str, TorchStorage] = {}
        self.decoder = PickleDecoder(
            source, start, stop, table=GLOBALS, build_state=build_state, persistent_load=self._load
        )

    def _load(self, reference: object) -> TorchStorage:
        storage = load_torch_storage(reference)
        known = self.mentioned.setdefault(storage.key, storage)
        if (known.dtype, known.num_elements) != (storage.dtype, storage.num_elements):
            raise Refused("gives one storage two types or sizes")
        return storage

    def add_tree(self, contents: Contents, root: object, storages: dict[str, tuple[int, int]]) -> None:
        """Add every tensor in `root`. `storages` tells where each storage's bytes lie: offset, size."""
        arrays = NumpyArrays(contents)

        def add(name: str, record: Record) -> None:
            if isinstance(record, TorchTensor):
                _add(contents, name, record, storages)
            else:
                arrays.add(name, record)

        contents.tree = TreeBuilder(contents.source, add).build(root)


def storage_nbytes(storage: TorchStorage) -> int:
    """Return how many bytes a storage says that it has."""
    return storage.num_elements * STORAGE_DTYPES[storage.dtype].itemsize


def _add(contents: Contents, name: str, tensor: TorchTensor, storages: dict[str, tuple[int, int]]) -> None:
    source = contents.source
    info = contents.new_tensor(name, tensor.dtype, tensor.shape)
    if tensor.storage.key not in storages:
        source.refuse("its storage is missing", tensor=name)
    offset, nbytes = storages[tensor.storage.key]
    if nbytes != storage_nbytes(tensor.storage):
        problem = f"its storage should take {storage_nbytes(tensor.storage)} bytes, the file gives {nbytes}"
        source.refuse(problem, tensor=name)
    if tensor.storage.view is not None:
        offset, nbytes = _viewed(source, name, tensor.storage, offset, nbytes)
    itemsize = info.storage_dtype.itemsize
    start = tensor.offset * itemsize
    strides = _checked_strides(source, info, tensor.strides)
    span = sum((size - 1) * stride for size, stride in zip(info.shape, strides, strict=True)) + 1
    if info.num_elements and not 0 <= start <= start + span * itemsize <= nbytes:
        source.refuse("its view leaves its storage", tensor=name)
    byte_strides = None if _is_row_major(info, strides) else tuple(itemsize * stride for stride in strides)
    contents.add(info, MappedBytes(source, offset + start, info.nbytes, byte_strides), info.nbytes)


def _viewed(
    source: SourceFile, name: str, storage: TorchStorage, offset: int, nbytes: int
) -> tuple[int, int]:
    """Return the range of a legacy storage view, a part of another storage in elements."""
    _, start, length = storage.view or ("", 0, 0)
    itemsize = STORAGE_DTYPES[storage.dtype].itemsize
    if start < 0 or length < 0 or (start + length) * itemsize > nbytes:
        source.refuse("its storage view leaves the storage", tensor=name)
    return offset + start * itemsize, length * itemsize


def _checked_strides(source: SourceFile, info: TensorInfo, strides: tuple[Any, ...]) -> tuple[int, ...]:
    if len(strides) != len(info.shape):
        source.refuse("it has another number of strides than dimensions", tensor=info.name)
    if not all(type(stride) is int and 0 <= stride < 1 << 59 for stride in strides):
        source.refuse("a stride is negative, huge or not a whole number", tensor=info.name)
    return strides


def _is_row_major(info: TensorInfo, strides: tuple[int, ...]) -> bool:
    """Whether the elements follow one another; the stride of a dimension of size 1 is of no matter."""
    if info.num_elements == 0:
        return True
    expected = list(accumulate(reversed(info.shape[1:]), mul, initial=1))[::-1] if info.shape else []
    return all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(info.shape, strides, expected, strict=True)
    )
