"""Write plain data as a pickle of protocol 2 or 4, opcode by opcode; tensors are the caller's.

Nothing is memoized: a value that stands twice is written twice, and a reader gets two equal values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from gptbridge.weights.formats.tensor import Entry, Namespace, TensorRef, Tree

STOP = b"."
MARK, TUPLE, EMPTY_TUPLE, NONE = b"(", b"t", b")", b"N"
REDUCE, BUILD, PERSISTENT_ID = b"R", b"b", b"Q"
_NEW_OBJECT, _FLOAT = b"\x81", b"G"
_EMPTY_DICT, _SET_ITEMS, _EMPTY_LIST, _APPENDS = b"}", b"u", b"]", b"e"
_BOOLEANS = {False: b"\x89", True: b"\x88"}
_TEXT, _TUPLE1 = b"X", b"\x85"


def protocol(version: int) -> bytes:
    """Return the first opcode of a pickle."""
    return b"\x80" + bytes([version])


def text(value: str) -> bytes:
    """Return the opcode that pushes a text of less than 4 GiB."""
    raw = value.encode()
    return _TEXT + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """Return the opcode that pushes a whole number of up to 255 bytes."""
    if 0 <= value < 1 << 8:
        return b"K" + bytes([value])
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def integers(values: Iterable[int]) -> bytes:
    """Return the opcodes that push a tuple of whole numbers."""
    return MARK + b"".join(integer(value) for value in values) + TUPLE


def boolean(value: bool) -> bytes:
    """Return the opcode that pushes True or False."""
    return _BOOLEANS[value]


def global_name(module: str, name: str) -> bytes:
    """Return the opcode that pushes a class or function by its name."""
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, argument: bytes) -> bytes:
    """Return the opcodes that push NAME(argument)."""
    return global_name(module, name) + argument + _TUPLE1 + REDUCE


def instance(module: str, name: str, state: bytes) -> bytes:
    """Return the opcodes that push an object of a class, made without arguments and given its state."""
    return global_name(module, name) + EMPTY_TUPLE + _NEW_OBJECT + state + BUILD


def mapping(items: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the opcodes that push a dict of what these opcodes push."""
    return _EMPTY_DICT + MARK + b"".join(key + value for key, value in items) + _SET_ITEMS


def sequence(items: Iterable[bytes]) -> bytes:
    """Return the opcodes that push a list of what these opcodes push."""
    return _EMPTY_LIST + MARK + b"".join(items) + _APPENDS


def opcodes(value: Tree) -> Iterator[bytes | TensorRef]:
    """Yield the opcodes that push a tree, and in each tensor's place its TensorRef.

    ValueError for a value that is no text, number, None, list, tuple, dict, Namespace or TensorRef.
    """
    match value:
        case TensorRef():
            yield value
        case list():
            yield _EMPTY_LIST + MARK
            for child in value:
                yield from opcodes(child)
            yield _APPENDS
        case tuple():
            yield MARK
            for child in value:
                yield from opcodes(child)
            yield TUPLE
        case Namespace():
            yield global_name("argparse", "Namespace") + EMPTY_TUPLE + _NEW_OBJECT
            yield from _dict(value.items())
            yield BUILD
        case dict():
            yield from _dict(value.items())
        case _:
            yield _scalar(value)


def plain(value: Tree) -> bytes:
    """Return the opcodes that push a tree without tensors."""
    return b"".join(piece for piece in opcodes(value) if isinstance(piece, bytes))


def _dict(items: Iterable[tuple[object, Tree]]) -> Iterator[bytes | TensorRef]:
    yield _EMPTY_DICT + MARK
    for key, child in items:
        yield _scalar(key)
        yield from opcodes(child)
    yield _SET_ITEMS


def _scalar(value: object) -> bytes:
    match value:
        case None:
            return NONE
        case bool():
            return boolean(value)
        case int():
            return integer(value)
        case float():
            return _FLOAT + struct.pack(">d", value)
        case str():
            return text(value)
        case _:
            raise ValueError(f"a {type(value).__name__} is not written into pickles")


def with_tensors(entries: Iterable[Entry], value: Tree) -> list[bytes | TensorRef]:
    """Return the opcodes of a file's tree, a dict of all entries where it is None.

    ValueError unless the tree's TensorRefs are the entries' names, each entry's name being its own.
    """
    names = [info.name for info, _ in entries]
    content: Tree = value if value is not None else {name: TensorRef(name) for name in names}
    found = list(opcodes(content))
    referred = {piece.name for piece in found if isinstance(piece, TensorRef)}
    if len(set(names)) != len(names) or referred != set(names):
        different = sorted(referred.symmetric_difference(names))[:3]
        raise ValueError(f"the tree and the entries differ, or an entry appears twice: {different}")
    return found
