"""MindSpore's .ckpt, read and written: serialized Checkpoint messages, one after the other.

    Checkpoint { repeated Value value = 1 }
    Value { required string tag = 1; oneof { TensorProto tensor = 2; MapTensorProto maptensor = 3 } }
    TensorProto { repeated int64 dims = 1; required string tensor_type = 2;
                  required bytes tensor_content = 3 }

A tensor over 512 MiB is cut into Values of the same tag. A scalar has no dims. With crc_check the file ends
in b"crc_num" and ten bytes: the big-endian CRC-32 of all before. Seen in mindspore 2.10's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from gptbridge.errors import printable
from gptbridge.weights.formats.protobuf import LENGTH_DELIMITED, fields, read_varint
from gptbridge.weights.formats.segments import RawSegment
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import MAX_NAME_LENGTH, MAX_TENSORS
from gptbridge.weights.formats.tensor_bytes import MappedBytes, SlicedBytes, TensorBytes
from gptbridge.weights.formats.weight_file import Checksum, Contents

DTYPES: Mapping[str, str] = {
    "Float64": "float64",
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Complex64": "complex64",
    "Complex128": "complex128",
    "Int64": "int64",
    "Int32": "int32",
    "Int16": "int16",
    "Int8": "int8",
    "UInt64": "uint64",
    "UInt32": "uint32",
    "UInt16": "uint16",
    "UInt8": "uint8",
    "Bool": "bool",
}
_TEXT = "str"
SLICE_BYTES = 512 << 20
CRC_MARK, CRC_BYTES = b"crc_num", 10
_MAX_TEXT_BYTES = 1 << 20
_MAX_DIMS = 64
# Checkpoint.value, Value.tag, Value.tensor, Value.maptensor, TensorProto.dims, .tensor_type, .tensor_content
VALUE, TAG, TENSOR, MAP_TENSOR, DIMS, TYPE, CONTENT = 1, 1, 2, 3, 1, 2, 3


@dataclass(slots=True)
class _Record:
    """One tensor of the file while its slices are gathered."""

    name: str
    type: str
    dims: list[int]
    slices: list[tuple[int, int]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.slices)


def read_ckpt(source: SourceFile) -> Contents:
    """Check every message of a .ckpt file and return the tensors and texts that it holds."""
    contents = Contents(source, "ckpt")
    end = _checked_end(contents)
    for record in _records(source, end):
        if record.type == _TEXT:
            _add_text(contents, record)
        else:
            _add_tensor(contents, record)
    return contents


def _checked_end(contents: Contents) -> int:
    """Return where the messages end, noting the CRC that follows them if there is one."""
    source = contents.source
    end = source.size - len(CRC_MARK) - CRC_BYTES
    if end < 0 or source.data[end : end + len(CRC_MARK)] != CRC_MARK:
        return source.size
    expected = int.from_bytes(source.data[end + len(CRC_MARK) :], "big")
    contents.checksums.append(Checksum("the file", 0, end, expected))
    return end


def _records(source: SourceFile, end: int) -> Iterator[_Record]:
    """Yield each tensor with all its slices, which follow one another."""
    current: _Record | None = None
    count = 0
    for number, wire_type, begin, stop in fields(source, 0, end):
        count += 1
        if (number, wire_type) != (VALUE, LENGTH_DELIMITED) or count > MAX_TENSORS:
            source.refuse(f"is no MindSpore checkpoint of at most {MAX_TENSORS} values")
        part = _value(source, begin, stop)
        if current is not None and current.name == part.name:
            if (current.type, current.dims) != (part.type, part.dims):
                source.refuse("its slices disagree on type or shape", tensor=part.name)
            current.slices += part.slices
            continue
        if current is not None:
            yield current
        current = part
    if current is not None:
        yield current


def _value(source: SourceFile, start: int, end: int) -> _Record:
    found: dict[int, tuple[int, int]] = {}
    for number, wire_type, begin, stop in fields(source, start, end):
        if wire_type != LENGTH_DELIMITED or number not in (TAG, TENSOR, MAP_TENSOR) or number in found:
            source.refuse(f"holds a malformed value at byte {start}")
        found[number] = (begin, stop)
    if TAG not in found:
        source.refuse(f"holds a value without a name at byte {start}")
    name = _text(source, *found[TAG], "a tensor's name")
    if MAP_TENSOR in found:
        source.refuse("is a map tensor, a hash table of embeddings", tensor=name, allowed="plain tensors")
    if TENSOR not in found:
        source.refuse("has no value", tensor=name)
    return _tensor_proto(source, name, *found[TENSOR])


def _tensor_proto(source: SourceFile, name: str, start: int, end: int) -> _Record:
    record = _Record(name, "", [])
    for number, wire_type, begin, stop in fields(source, start, end):
        match number, wire_type:
            case (1, 0) | (1, 2):
                record.dims += islice(_dims(source, name, begin, stop), _MAX_DIMS + 1)
                if len(record.dims) > _MAX_DIMS:
                    source.refuse(f"it has over {_MAX_DIMS} dimensions", tensor=name)
            case (2, 2) if not record.type:
                record.type = _text(source, begin, stop, "an element type")
            case (3, 2) if not record.slices:
                record.slices.append((begin, stop - begin))
            case _:
                source.refuse("its value is malformed", tensor=name)
    if not record.type or not record.slices:
        source.refuse("its value lacks a type or content", tensor=name)
    return record


def _dims(source: SourceFile, name: str, begin: int, stop: int) -> Iterator[int]:
    """Yield the dimensions in one field: a single varint, or several packed."""
    while begin < stop:
        dimension, begin = read_varint(source, begin, stop)
        if dimension >= 1 << 63:
            source.refuse(f"a dimension is negative: {dimension - (1 << 64)}", tensor=name)
        yield dimension


def _text(source: SourceFile, begin: int, stop: int, what: str) -> str:
    if stop - begin > MAX_NAME_LENGTH:
        source.refuse(f"{what} has {stop - begin} bytes, over {MAX_NAME_LENGTH}")
    try:
        return source.bytes_at(begin, stop - begin, what).decode()
    except UnicodeDecodeError:
        source.refuse(f"{what} is not UTF-8 at byte {begin}")


def _add_text(contents: Contents, record: _Record) -> None:
    """Add a text that save_checkpoint's append_dict gave: UTF-32, little-endian."""
    source = contents.source
    if record.nbytes > _MAX_TEXT_BYTES:
        source.refuse(f"is a text of {record.nbytes} bytes", tensor=record.name)
    raw = b"".join(source.bytes_at(offset, nbytes, "a text") for offset, nbytes in record.slices)
    if record.name in contents.metadata:
        source.refuse("appears twice", tensor=record.name)
    try:
        contents.metadata[record.name] = raw.decode("utf-32-le")
    except UnicodeDecodeError:
        source.refuse("is a text that is not UTF-32", tensor=record.name)


def _add_tensor(contents: Contents, record: _Record) -> None:
    source = contents.source
    if record.type not in DTYPES:
        known = ", ".join(DTYPES)
        source.refuse(
            f"element type {printable(record.type, 40)!r} is not known", tensor=record.name, allowed=known
        )
    # mindspore.load_checkpoint takes dims [0] with one element for a scalar.
    dims = [] if record.dims == [0] and record.nbytes else record.dims
    info = contents.new_tensor(record.name, DTYPES[record.type], dims)
    if record.nbytes != info.nbytes:
        source.refuse(
            f"its shape takes {info.nbytes} bytes, the file gives {record.nbytes}", tensor=info.name
        )
    if len(record.slices) == 1:
        block: TensorBytes = MappedBytes(source, *record.slices[0])
    else:
        block = SlicedBytes([RawSegment(source, offset, nbytes) for offset, nbytes in record.slices])
    contents.add(info, block, record.nbytes)
