"""torch distributed checkpoints: .metadata, and the tensors' boxes that it lists in .distcp files beside it.

Each box is a torch.save of its own, a zip at an offset of the file; or one tensor of a safetensors file.
Boxes are looked into when a tensor is asked for: most of a checkpoint is the optimizer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.dcp_metadata import Place, Saved, read_metadata
from gptbridge.weights.formats.dcp_safetensors import read_parts
from gptbridge.weights.formats.safetensors import read_safetensors
from gptbridge.weights.formats.source import SourceFile, allow_open_files
from gptbridge.weights.formats.tensor import SLAB_BYTES, Chunks, TensorInfo, TensorRef, row_major_chunks
from gptbridge.weights.formats.tensor_bytes import Part, TensorBytes
from gptbridge.weights.formats.torch_zip import read_torch_zip
from gptbridge.weights.formats.weight_file import Contents, WeightFile
from gptbridge.weights.formats.zip_directory import LOCAL_MARK

FORMAT, METADATA_FILE = "dcp", ".metadata"
_MAX_FILES = 1 << 16
_MAX_CELLS = 1 << 20  # of the grid that the boxes of one tensor make


def read_dcp(metadata: SourceFile) -> list[Contents]:
    """Return what .metadata describes, and the files that it names, open."""
    return contents_in_boxes(metadata, read_metadata(metadata), FORMAT)


def read_dcp_parts(first: SourceFile) -> list[Contents]:
    """Return what the safetensors files of all ranks hold together, `first` being one of them."""
    return contents_in_boxes(first, read_parts(first), FORMAT)


def contents_in_boxes(metadata: SourceFile, saved: Mapping[str, Saved], of_format: str) -> list[Contents]:
    """Return tensors that `metadata` puts into the files beside it, and those files, open."""
    files = dict.fromkeys(place.file for tensor in saved.values() for place in tensor.places)
    if len(files) > _MAX_FILES:
        metadata.refuse(f"names {len(files)} files", allowed=f"at most {_MAX_FILES}")
    allow_open_files(2 * len(files))
    with ExitStack() as opened:
        sources = {}
        for name in files:
            sources[name] = SourceFile(metadata.path.with_name(name))
            opened.callback(sources[name].close)
        contents = Contents(metadata, of_format, bytes_beside=sum(file.size for file in sources.values()))
        stores = {name: _Store(source) for name, source in sources.items()}
        for name, tensor in saved.items():
            info = contents.new_tensor(name, tensor.dtype, tensor.shape)
            contents.add(info, _block(metadata, info, tensor, stores), info.nbytes)
        opened.pop_all()
    return [contents, *(Contents(source, of_format) for source in sources.values())]


def _block(metadata: SourceFile, info: TensorInfo, tensor: Saved, stores: Mapping[str, _Store]) -> BoxedBytes:
    boxes = []
    for place in tensor.places:
        source = stores[place.file].source
        if not 0 <= place.offset <= place.offset + place.nbytes <= source.size:
            end = place.offset + place.nbytes
            source.refuse(f"ends at byte {source.size}, but its part at {end}", tensor=info.name)
        boxes.append(_Box(stores[place.file], info, place))
    return BoxedBytes(metadata, boxes)


class _Store:
    """A file of boxes."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self._whole: Contents | None = None  # of a safetensors file

    def open(self, name: str, place: Place) -> tuple[TensorInfo, Contents]:
        """Return the tensor that a box is, and what it lies in."""
        if self.source.begins(LOCAL_MARK, place.offset):
            contents = read_torch_zip(self.source.part(place.offset, place.nbytes))
            if not isinstance(contents.tree, TensorRef):
                self.source.refuse("its part is no tensor", tensor=name)
            self.source.drop(place.offset, place.nbytes)
            return contents.tensors[contents.tree.name], contents
        if self._whole is None and self.source.begins(b"{", 8):
            self._whole = read_safetensors(self.source)
        if self._whole is None:
            self.source.refuse(f"has no torch.save at byte {place.offset}", tensor=name)
        if name not in self._whole.tensors:
            self.source.refuse("is said to be here, and is not", tensor=name)
        return self._whole.tensors[name], self._whole


@dataclass(slots=True)
class _Box:
    """A box of the tensor `info`, not looked into yet."""

    store: _Store
    info: TensorInfo
    place: Place
    _part: Part | None = None
    _verified: bool = False

    def part(self) -> Part:
        """Return the box as a tensor; BadInput unless it is of the type and shape that is said."""
        if self._part is None:
            found, contents = self.store.open(self.info.name, self.place)
            expected = TensorInfo(self.info.name, self.info.dtype, self.place.shape)
            if (found.dtype, found.shape) != (expected.dtype, expected.shape):
                self.store.source.refuse(
                    f"its part at {self.place.offsets} is {found.dtype} {found.shape}, "
                    f"said to be {expected.dtype} {expected.shape}",
                    tensor=self.info.name,
                )
            self._part = Part(self.place.offsets, expected, contents.blocks[found.name])
        return self._part

    def verify(self) -> None:
        """Check the CRC-32s of its bytes, once."""
        if not self._verified:
            self._verified = True
            self.store.open(self.info.name, self.place)[1].verify()


class _InBoxes(TensorBytes):
    """A tensor in the boxes that `parts` returns."""

    def _whole(self, info: TensorInfo) -> Part | None:
        parts = self.parts(info)
        return parts[0] if len(parts) == 1 else None

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return those rows: a view where one box holds the tensor, else a copy."""
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        stop = max(start, stop)
        if (whole := self._whole(info)) is not None:
            return whole.rows(start, stop)
        result = np.empty((stop - start, *info.shape[1:]), info.storage_dtype)
        for part in self.parts(info):
            first, *others = part.offsets
            low, high = max(start, first), min(stop, first + part.info.shape[0])
            if low < high:
                rest = (slice(o, o + n) for o, n in zip(others, part.info.shape[1:], strict=True))
                result[(slice(low - start, high - start), *rest)] = part.rows(low - first, high - first)
        return result

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return a view where one box holds the tensor, else a copy."""
        if (whole := self._whole(info)) is not None:
            return whole.content.read(whole.info)
        return self.rows(info, 0, info.shape[0])

    def extents(self) -> None:
        """Return None: the bytes lie in several places."""
        return

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield views where one box holds the tensor, else copies of a few rows each."""
        if (whole := self._whole(info)) is not None:
            return whole.content.chunks(whole.info)
        step = max(1, SLAB_BYTES * info.shape[0] // max(info.nbytes, 1))
        return (self.rows(info, low, low + step).reshape(-1) for low in range(0, info.shape[0], step))


class BoxedBytes(_InBoxes):
    """A tensor in boxes that lie in several files or places."""

    def __init__(self, metadata: SourceFile, boxes: Sequence[_Box]) -> None:
        self._metadata = metadata
        self._boxes = boxes
        self._parts: tuple[Part, ...] | None = None

    def parts(self, info: TensorInfo) -> tuple[Part, ...]:
        """Return the boxes; BadInput unless they are all of the tensor, and none is in another."""
        if self._parts is None:
            _check_grid(self._metadata, info, [box.place for box in self._boxes])
            self._parts = tuple(box.part() for box in self._boxes)
        return self._parts

    def verify(self) -> None:
        """Check the CRC-32s of all boxes."""
        for box in self._boxes:
            box.verify()


class _Layer(_InBoxes):
    """What a tensor of several layers holds of one, the number `number`."""

    def __init__(self, stack: BoxedBytes, info: TensorInfo, number: int) -> None:
        self._stack = stack
        self._info = info
        self._number = number

    def parts(self, info: TensorInfo) -> tuple[Part, ...]:
        """Return the boxes of the layer."""
        return tuple(self._parts(info.name))

    def _parts(self, name: str) -> Iterator[Part]:
        for part in self._stack.parts(self._info):
            entry = self._number - part.offsets[0]
            if 0 <= entry < part.info.shape[0]:
                info = TensorInfo(name, part.info.dtype, part.info.shape[1:])
                yield Part(part.offsets[1:], info, _Entry(part, entry))

    def verify(self) -> None:
        """Check the CRC-32s of the boxes of all layers."""
        self._stack.verify()


class _Entry(TensorBytes):
    """One entry of the first axis of a part."""

    def __init__(self, part: Part, entry: int) -> None:
        self._part = part
        self._entry = entry

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return what the part gives for it."""
        entry: NDArray[Any] = self._part.rows(self._entry, self._entry + 1)[0]
        return entry

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return rows of it."""
        rows: NDArray[Any] = self.read(info)[start:stop]
        return rows

    def drop(self) -> None:
        """Give back the memory of the part."""
        self._part.content.drop()

    def extents(self) -> None:
        """Return None: only the part knows."""
        return

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield its rows, a few at a time."""
        return row_major_chunks(self.read(info))


def split_layers(weights: WeightFile, name_of_layers: Callable[[str], str | None]) -> WeightFile:
    """Return a distributed checkpoint with each tensor of several layers as a tensor of each.

    `name_of_layers` returns a name with {} for the number of a layer, None for a tensor to keep. Other
    files are returned as they are. BadInput for more layers than a file may have tensors.
    """
    return weights if weights.format != FORMAT else weights.mapped(partial(_split, name_of_layers))


def _split(
    name_of_layers: Callable[[str], str | None], contents: Contents, info: TensorInfo, block: TensorBytes
) -> Iterator[tuple[TensorInfo, TensorBytes]]:
    name = name_of_layers(info.name)
    if name is None or not isinstance(block, BoxedBytes) or not info.shape:
        yield info, block
        return
    for number in range(info.shape[0]):
        layer = contents.new_tensor(name.format(number), info.dtype, info.shape[1:])
        yield layer, _Layer(block, info, number)


def _check_grid(metadata: SourceFile, info: TensorInfo, places: Sequence[Place]) -> None:
    """Refuse boxes that overlap or leave a hole, on the grid that their edges make."""
    edges = [
        sorted({0, size, *(p.offsets[d] for p in places), *(p.offsets[d] + p.shape[d] for p in places)})
        for d, size in enumerate(info.shape)
    ]
    numbers = [{edge: number for number, edge in enumerate(along)} for along in edges]
    cells = [len(along) - 1 for along in edges]
    if math.prod(cells) > _MAX_CELLS:
        metadata.refuse("is cut into too many parts", tensor=info.name)
    held = np.zeros(cells, bool)
    for place in places:
        ends = [offset + size for offset, size in zip(place.offsets, place.shape, strict=True)]
        inside = tuple(
            slice(along[low], along[high])
            for along, low, high in zip(numbers, place.offsets, ends, strict=True)
        )
        if held[inside].any():
            metadata.refuse(f"its part at {place.offsets} overlaps another", tensor=info.name)
        held[inside] = True
    if not held.all():
        hole = np.argwhere(~held)[0]
        where = tuple(along[number] for along, number in zip(edges, hole, strict=True))
        metadata.refuse(f"no part holds what is at {where}", tensor=info.name)
