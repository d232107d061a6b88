"""Pickles made opcode by opcode, in every container."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable

import numpy as np

from tests.weights.formats.containers import legacy, torch_zip

Container = Callable[[bytes], bytes]


def in_name_table(payload: bytes) -> bytes:
    """The payload as the value of Paddle's table of names, after a good array."""
    good = pickle.dumps(np.arange(3.0, dtype="f4"), 4)[2:-1]
    body = payload[2:-1] if payload[:1] == b"\x80" else payload[:-1]
    return (
        b"\x80\x04}(X\x01\x00\x00\x00a"
        + good
        + b"X\x1b\x00\x00\x00StructuredToParameterName@@"
        + body
        + b"u."
    )


CONTAINERS: dict[str, Container] = {
    "pdparams": lambda payload: payload,
    "name table": in_name_table,
    "torch zip": lambda payload: torch_zip(payload),
    "torch legacy": lambda payload: legacy(payload),
    "second pickle": lambda payload: pickle.dumps({}, 4) + payload,
}


def global_opcode(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *args: str) -> bytes:
    arguments = b"(" + b"".join(text(value) for value in args) + b"t"
    return b"\x80\x02" + global_opcode(module, name) + arguments + b"R."
