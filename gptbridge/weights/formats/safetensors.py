"""safetensors, read and written: 8 bytes of header length, a JSON header, the tensors' bytes without holes.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gptbridge.weights.formats.json_header import MAX_JSON_BYTES, read_object
from gptbridge.weights.formats.output import new_file
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Entry, TensorInfo
from gptbridge.weights.formats.tensor_bytes import MappedBytes
from gptbridge.weights.formats.weight_file import Contents

_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_ALIGNMENT = 8
# Some software opens a file only when its metadata names a framework.
_DEFAULT_METADATA = {"format": "pt"}


def read_safetensors(source: SourceFile) -> Contents:
    """Check the header of a safetensors file and return what it holds."""
    length = int.from_bytes(source.bytes_at(0, 8, "the header length"), "little")
    if length > min(source.size - 8, MAX_JSON_BYTES):
        source.refuse(f"its header claims {length} bytes", allowed=f"at most {MAX_JSON_BYTES}")
    header = read_object(source, 8, length, "the header")
    contents = Contents(source, "safetensors")
    contents.metadata = _metadata(source, header.pop("__metadata__", {}))
    spans = [_add(contents, name, entry, 8 + length) for name, entry in header.items()]
    end = 8 + length
    for start, stop, name in sorted(spans):
        if start != end:
            source.refuse("its bytes overlap another's or leave a hole", tensor=name)
        end = stop
    if end != source.size:
        source.refuse(f"{source.size - end} bytes follow the last tensor")
    return contents


def _metadata(source: SourceFile, content: object) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        source.refuse("__metadata__ is not a table of texts")
    return content


def _add(contents: Contents, name: str, entry: object, data_start: int) -> tuple[int, int, str]:
    """Add one tensor of the header; return its first byte, its end and its name."""
    source = contents.source
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [start, stop], **rest} if (
            not rest and type(start) is int and type(stop) is int
        ):
            pass
        case _:
            source.refuse("its header entry is malformed", tensor=name)
    if code not in _DTYPES:
        source.refuse(f"element type {code[:40]!r} is not known", tensor=name, allowed=", ".join(_DTYPES))
    info = contents.new_tensor(name, _DTYPES[code], shape)
    if not 0 <= start <= stop <= source.size - data_start:
        source.refuse("its bytes lie outside the file", tensor=name)
    contents.add(info, MappedBytes(source, data_start + start, info.nbytes), stop - start)
    return data_start + start, data_start + stop, name


def write_safetensors(
    path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] = _DEFAULT_METADATA
) -> None:
    """Write a safetensors file, streaming; ValueError for an element type that the format lacks."""
    contents = {info.name: (info, chunks) for info, chunks in entries}
    header, offsets = header_of([info for info, _ in contents.values()], metadata)
    with new_file(path) as output:
        output.write(header)
        for name in offsets:
            info, chunks = contents[name]
            output.write_tensor(info, chunks())


def header_of(
    infos: Iterable[TensorInfo], metadata: Mapping[str, str] = _DEFAULT_METADATA
) -> tuple[bytes, dict[str, int]]:
    """Return how a file of these tensors begins, and the offset of each by name, in the order of the bytes.

    Wider elements come first, so that every tensor is aligned to its element size.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offsets: dict[str, int] = {}
    end = 0
    for info in sorted(infos, key=lambda info: -info.storage_dtype.itemsize):
        if info.dtype not in _CODES:
            raise ValueError(f"{info.name}: safetensors has no element type {info.dtype}")
        span = [end, end + info.nbytes]
        header[info.name] = {"dtype": _CODES[info.dtype], "shape": info.shape, "data_offsets": span}
        offsets[info.name], end = end, end + info.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    begin = len(text).to_bytes(8, "little") + text
    return begin, {name: len(begin) + offset for name, offset in offsets.items()}
