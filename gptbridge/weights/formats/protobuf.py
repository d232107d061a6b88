"""The protobuf wire format: varints and length-delimited fields, decoded in place and encoded.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from gptbridge.weights.formats.source import SourceFile

VARINT, LENGTH_DELIMITED = 0, 2
_MAX_VARINT_BYTES = 10


def read_varint(source: SourceFile, position: int, end: int) -> tuple[int, int]:
    """Return the varint at `position` and where it ends, at most at `end`."""
    limit = min(end, position + _MAX_VARINT_BYTES)
    value = shift = 0
    for index in range(position, limit):
        byte = source.data[index]
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    else:
        source.refuse(f"holds a number that does not end at byte {position}")
    return value, index + 1


def fields(source: SourceFile, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, begin, end) of each field in a range, the content left in place.

    For a varint the content is the varint itself. Fixed-width fields and groups are refused.
    """
    position = start
    while position < end:
        key, begin = read_varint(source, position, end)
        wire_type = key & 7
        if wire_type == VARINT:
            _, position = read_varint(source, begin, end)
        elif wire_type == LENGTH_DELIMITED:
            nbytes, begin = read_varint(source, begin, end)
            position = begin + nbytes
            if position > end:
                source.refuse(f"claims {nbytes} bytes at byte {begin}, more than there are")
        else:
            source.refuse(f"holds a field of wire type {wire_type} at byte {position}, not a checkpoint's")
        yield key >> 3, wire_type, begin, position


def encode_varint(value: int) -> bytes:
    """Return a whole number of 0 or more as a varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_length(number: int, nbytes: int) -> bytes:
    """Return what stands before the `nbytes` bytes of a length-delimited field."""
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(nbytes)
