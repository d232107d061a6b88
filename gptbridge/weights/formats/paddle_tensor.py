"""paddle.save(tensor, path, use_binary_format=True): one tensor without a name, in Paddle's own bytes.

Layout (little-endian, seen in paddle 3.3.1's files): u32 version 0; u64 number of LoD levels; u32 tensor
version 0; i32 length of a protobuf message {data_type = 1; repeated int64 dims = 2}; that; the elements.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from gptbridge.weights.formats.protobuf import VARINT, fields, read_varint
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import MAX_DIMENSIONS
from gptbridge.weights.formats.tensor_bytes import MappedBytes
from gptbridge.weights.formats.weight_file import Contents

TENSOR_NAME = "tensor"
_HEAD = struct.Struct("<IQII")
_PLAIN = (0, 0, 0)  # the only versions that exist, and no LoD
_DATA_TYPE, _DIMS = 1, 2
# Paddle's framework.proto, VarType.Type.
_DTYPES: Mapping[int, str] = {
    0: "bool",
    1: "int16",
    2: "int32",
    3: "int64",
    4: "float16",
    5: "float32",
    6: "float64",
    20: "uint8",
    21: "int8",
    22: "bfloat16",
    23: "complex64",
    24: "complex128",
}


def is_paddle_tensor(source: SourceFile) -> bool:
    """Whether the file starts with the versions, no LoD, and a message whose first field is data_type."""
    head = source.data[: _HEAD.size + 1]
    return len(head) > _HEAD.size and _HEAD.unpack(head[:-1])[:3] == _PLAIN and head[-1] == _DATA_TYPE << 3


def read_paddle_tensor(source: SourceFile) -> Contents:
    """Return the one tensor of the file, under the name `tensor`."""
    *_, length = _HEAD.unpack(source.bytes_at(0, _HEAD.size, "its header"))
    data = _HEAD.size + length
    if data > source.size:
        source.refuse("ends inside its header")
    code = -1
    dims: list[int] = []
    for number, wire_type, begin, stop in fields(source, _HEAD.size, data):
        if wire_type != VARINT or number not in (_DATA_TYPE, _DIMS) or len(dims) > MAX_DIMENSIONS:
            source.refuse("its tensor header is malformed")
        value, _ = read_varint(source, begin, stop)
        if number == _DATA_TYPE:
            code = value
        else:
            dims.append(value)
    if code not in _DTYPES:
        source.refuse(f"element type {code} is not known")
    contents = Contents(source, "paddle-tensor")
    info = contents.new_tensor(TENSOR_NAME, _DTYPES[code], dims)
    contents.add(info, MappedBytes(source, data, info.nbytes), source.size - data)
    return contents
