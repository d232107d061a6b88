"""MindSpore messages and Paddle's single tensors that lie."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.protobuf import encode_length, encode_varint
from tests.weights.formats.conftest import Check, assert_opens


def field(number: int, content: bytes) -> bytes:
    return encode_length(number, len(content)) + content


def number(of: int, value: int) -> bytes:
    return encode_varint(of << 3) + encode_varint(value % (1 << 64))


def tensor(dims: tuple[int, ...] = (2,), kind: bytes = b"Float32", content: bytes = bytes(8)) -> bytes:
    return b"".join(number(1, size) for size in dims) + field(2, kind) + field(3, content)


def value(name: bytes = b"w", content: bytes | None = None) -> bytes:
    return field(1, field(1, name) + field(2, tensor() if content is None else content))


def with_crc(messages: bytes, crc: int | None = None) -> bytes:
    return messages + b"crc_num" + (zlib.crc32(messages) if crc is None else crc).to_bytes(10, "big")


TEXT = tensor((0,), b"str", b"a\0\0\0")
HUGE = b"\xff" * 9 + b"\x01"
MESSAGES: dict[str, tuple[bytes, str]] = {
    "an endless varint": (b"\n" + b"\xff" * 20, "does not end"),
    "a varint cut": (b"\n\xff", "does not end"),
    "a length of 2 ** 64": (b"\n" + HUGE, "more than there are"),
    "a length beyond the file": (b"\n\x7f" + bytes(10), "more than there are"),
    "a length beyond its message": (field(1, b"\n\x7fw"), "more than there are"),
    "a group": (value() + b"\x0b" * 100_000, "wire type 3"),
    "fixed width": (value() + b"\x09" + bytes(8), "wire type 1"),
    "another field": (value() + field(2, b"x"), "no MindSpore checkpoint"),
    "a number for a value": (b"\n\x02\x08\x01", "malformed value"),
    "no name": (field(1, field(2, tensor())), "without a name"),
    "no tensor": (field(1, field(1, b"w")), "has no value"),
    "two names": (field(1, field(1, b"w") + field(1, b"v") + field(2, tensor())), "malformed value"),
    "two tensors": (field(1, field(1, b"w") + field(2, tensor()) * 2), "malformed value"),
    "a map tensor": (field(1, field(1, b"w") + field(3, b"")), "map tensor"),
    "no type": (value(content=number(1, 2) + field(3, bytes(8))), "lacks a type"),
    "no content": (value(content=number(1, 2) + field(2, b"Float32")), "lacks a type or content"),
    "two contents": (value(content=tensor() + field(3, b"")), "is malformed"),
    "text content twice": (value(content=tensor() + field(2, b"Int8")), "is malformed"),
    "an unknown type": (value(content=tensor(kind=b'__import__("os")')), "is not known"),
    "a type of 1 MB": (value(content=tensor(kind=b"F" * (1 << 20))), "1048576 bytes"),
    "a negative dimension": (value(content=tensor((-5,))), "negative: -5"),
    "an overflow": (value(content=tensor((1 << 40, 1 << 40))), "more elements than any file"),
    "1000 dimensions": (value(content=tensor((1,) * 1000)), "dimensions"),
    "a million packed dimensions": (
        value(content=field(1, b"\x01" * 1_000_000) + field(2, b"Int8") + field(3, b"\0")),
        "dimensions",
    ),
    "short": (value(content=tensor(content=bytes(3))), "takes 8 bytes, the file gives 3"),
    "long": (value(content=tensor(content=bytes(12))), "takes 8 bytes, the file gives 12"),
    "slices that disagree on shape": (value() + value(content=tensor((4,))), "slices disagree"),
    "slices that disagree on type": (value() + value(content=tensor(kind=b"Int32")), "slices disagree"),
    "a missing slice": (value(content=tensor((4,))), "takes 16 bytes, the file gives 8"),
    "a slice too many": (value() * 2, "takes 8 bytes, the file gives 16"),
    "a tensor twice": (value() + value(b"v") + value(), "'w': appears twice"),
    "an empty name": (value(b""), "name is empty"),
    "a name of 1 MB": (value(b"n" * (1 << 20)), "1048576 bytes"),
    "a name that is not UTF-8": (value(b"\xff"), "not UTF-8"),
    "NUL in a name": (value(b"a\0b"), "control characters"),
    "a bad text": (value(content=tensor((0,), b"str", b"\xff\xff\xff\xff")), "not UTF-32"),
    "a text twice": (
        value(b"s", tensor((0,), b"str", b"a\0\0\0"))
        + value()
        + value(b"s", tensor((0,), b"str", b"a\0\0\0")),
        "appears twice",
    ),
    "60,000 tiny values": (
        b"".join(value(b"%x" % n, tensor((), b"Int8", b"\0")) for n in range(60_000)),
        "50000",
    ),
    "a wrong CRC": (with_crc(value(), 12345), "its CRC-32 differs"),
    "a flipped bit": (with_crc(value()).replace(bytes(8), b"\0\0\0\1\0\0\0\0", 1), "its CRC-32 differs"),
    "a CRC of 80 bits": (with_crc(value(), 1 << 79), "its CRC-32 differs"),
    "half a CRC": (with_crc(value())[:-3], "wire type"),
    "a pickle": (b"\n\x80\x04}.", "more than there are"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str, hostile: Check) -> None:
    hostile(*MESSAGES[name])


GOOD = {
    "plain": value(),
    "with a CRC": with_crc(value()),
    "in two slices": value(content=tensor((4,))) * 2,
    "packed dims": value(content=field(1, b"\x01\x02") + field(2, b"Float32") + field(3, bytes(8))),
    "a scalar": value(content=tensor((), content=bytes(4))),
    "a scalar of dims 0": value(content=tensor((0,), content=bytes(4))),
    "an empty tensor": value(content=tensor((0,), content=b"")),
    "fields in another order": field(1, field(2, tensor()) + field(1, b"w")),
    "nothing but a CRC": with_crc(b""),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_neighbours_open(name: str, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(GOOD[name])
    assert_opens(tmp_path / "good")


def test_texts_are_metadata(tmp_path: Path) -> None:
    text = value(b"note", tensor((0,), b"str", "h\u00e9".encode("utf-32-le")))
    (tmp_path / "good").write_bytes(value() + text)
    with open_weights(tmp_path / "good") as weights:
        assert (weights.metadata, list(weights.tensors)) == ({"note": "h\u00e9"}, ["w"])


def paddle_tensor(
    message: bytes = b"\x08\x05\x10\x02", content: bytes = bytes(8), length: int | None = None
) -> bytes:
    return bytes(16) + struct.pack("<I", len(message) if length is None else length) + message + content


PADDLE: dict[str, tuple[bytes, str]] = {
    "a header beyond the file": (paddle_tensor(length=1 << 30), "ends inside its header"),
    "short": (paddle_tensor(content=bytes(7)), "takes 8 bytes, the file gives 7"),
    "a second tensor": (paddle_tensor() * 2, "takes 8 bytes, the file gives 40"),
    "an unknown type": (paddle_tensor(b"\x08\x07\x10\x02"), "element type 7"),
    "no type": (paddle_tensor(b"\x08" + b"\xff" * 9 + b"\x01\x10\x02"), "element type"),
    "another field": (paddle_tensor(b"\x08\x05\x18\x02"), "malformed"),
    "negative": (paddle_tensor(b"\x08\x05\x10" + b"\xff" * 9 + b"\x01"), "more elements than any file"),
}


@pytest.mark.parametrize("name", PADDLE)
def test_paddle_tensors(name: str, hostile: Check) -> None:
    hostile(*PADDLE[name])


def test_a_good_paddle_tensor(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(paddle_tensor())
    assert_opens(tmp_path / "good")
