"""WeightFile: the one interface to every weight format, lazy and bounded in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from gptbridge.errors import printable
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import (
    MAX_TENSORS,
    Chunks,
    Extent,
    TensorInfo,
    TensorRef,
    Tree,
    describe_bad_name,
    describe_bad_shape,
)
from gptbridge.weights.formats.tensor_bytes import Part, TensorBytes

# Tensors may share bytes (tied weights, an expanded buffer), but a small file may not fill a disk.
MAX_EXPANSION = 16
FREE_EXPANSION = 1 << 20


@dataclass(frozen=True, slots=True)
class Checksum:
    """The CRC-32 that a file declares for one of its ranges; `what` names the range in an error."""

    what: str
    offset: int
    nbytes: int
    expected: int


@dataclass(slots=True)
class Contents:
    """What a format's reader found in one file. `add` is the only way in, and checks."""

    source: SourceFile
    format: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    blocks: dict[str, TensorBytes] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    tree: Tree = None
    checksums: list[Checksum] = field(default_factory=list)
    total_bytes: int = 0
    bytes_beside: int = 0  # of further files that the tensors lie in

    def new_tensor(self, name: object, dtype: str, shape: Sequence[Any]) -> TensorInfo:
        """Return the TensorInfo after checking its name, which must be new, and its shape."""
        problem = describe_bad_name(name) or describe_bad_shape(shape)
        if problem:
            self.source.refuse(problem, tensor=name)
        if name in self.tensors:
            self.source.refuse("appears twice", tensor=name)
        if len(self.tensors) >= MAX_TENSORS:
            self.source.refuse(f"holds more than {MAX_TENSORS} tensors")
        return TensorInfo(str(name), dtype, tuple(shape))

    def add(self, info: TensorInfo, block: TensorBytes, nbytes: int) -> None:
        """Add a tensor that `new_tensor` described, to whose elements the file gives `nbytes` bytes."""
        if nbytes != info.nbytes:
            self.source.refuse(
                f"its shape takes {info.nbytes} bytes, the file gives {nbytes}", tensor=info.name
            )
        self.total_bytes += info.nbytes
        held = self.source.size + self.bytes_beside
        if self.total_bytes > MAX_EXPANSION * held + FREE_EXPANSION:
            self.source.refuse(f"its tensors claim over {MAX_EXPANSION} times the bytes in the file")
        self.tensors[info.name] = info
        self.blocks[info.name] = block

    def verify(self) -> None:
        """Check every CRC-32 that the file declares; BadInput names the damaged part."""
        for check in self.checksums:
            if self.source.crc32(check.offset, check.nbytes) != check.expected:
                self.source.refuse(f"{printable(check.what)} is damaged: its CRC-32 differs")


Change = Callable[[Contents, TensorInfo, TensorBytes], Iterable[tuple[TensorInfo, TensorBytes]]]


class WeightFile:
    """An open weight file, or the shards of an index: what it holds, and tensors when asked for.

    `format` is a name of open.READERS. `tensors` lists every tensor in the file's order. `metadata`
    is the text that the file carries beside them. `tree` is the file's structure as plain data with a
    TensorRef in each tensor's place: nested for a file that nests (`args`, `iteration`, ...),
    else one dict. A context manager; arrays that were read stay valid after it closes.
    """

    def __init__(self, path: Path, contents: Sequence[Contents]) -> None:
        self.path = path
        self.format = contents[0].format
        self.metadata: Mapping[str, str] = contents[0].metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._contents = contents
        self._blocks: dict[str, TensorBytes] = {}
        for part in contents:
            self.tensors.update(part.tensors)
            self._blocks.update(part.blocks)
        flat: dict[Any, Tree] = {name: TensorRef(name) for name in self.tensors}
        self.tree: Tree = contents[0].tree if len(contents) == 1 and contents[0].tree is not None else flat

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor as an array of its storage type: a read-only view of the file where it can be."""
        return self._blocks[name].read(self.tensors[name])

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop) along the first axis; copies no more than those rows."""
        return self._blocks[name].rows(self.tensors[name], start, stop)

    def extents(self, name: str) -> tuple[Extent, ...] | None:
        """Return the file ranges that, one after the other, are the tensor's row-major bytes.

        None when the file holds them in another order or encoded.
        """
        return self._blocks[name].extents()

    def parts(self, name: str) -> tuple[Part, ...]:
        """Return the boxes of a tensor that the files hold apart, or the whole; BadInput if one is amiss."""
        return self._blocks[name].parts(self.tensors[name])

    def chunks(self, name: str) -> Chunks:
        """Yield the tensor's row-major bytes for a writer, in arrays of bounded size."""
        return self._blocks[name].chunks(self.tensors[name])

    def retyped(self, dtypes: Mapping[str, str]) -> WeightFile:
        """Return the file with elements taken for those of another type, as wide; close this one."""
        if not any(info.dtype in dtypes for info in self.tensors.values()):
            return self
        changed = [
            replace(
                part,
                tensors={
                    name: replace(info, dtype=dtypes.get(info.dtype, info.dtype))
                    for name, info in part.tensors.items()
                },
            )
            for part in self._contents
        ]
        return WeightFile(self.path, changed)

    def mapped(self, change: Change) -> WeightFile:
        """Return the file with what `change` makes of each tensor in its place; this one is to be closed."""
        first, *rest = self._contents
        changed = replace(first, tensors={}, blocks={}, total_bytes=0)
        for name, info in first.tensors.items():
            for new, block in change(changed, info, first.blocks[name]):
                changed.add(new, block, new.nbytes)
        return WeightFile(self.path, [changed, *rest])

    def verify(self) -> None:
        """Check every CRC-32 that the file declares; BadInput names the damaged part.

        Reads the whole file once in constant memory; may run in another thread while tensors are read.
        """
        for part in self._contents:
            part.verify()
        for block in self._blocks.values():
            block.verify()

    def close(self) -> None:
        """Close every file that this one opened."""
        for part in self._contents:
            part.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
