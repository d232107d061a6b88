"""Decode a pickle as data: an interpreter of its opcodes that imports nothing and calls nothing.

Opcodes and their arguments: the comments of CPython's Lib/pickletools.py. A class or function that a
pickle names is looked up in an exact table (globals.py); REDUCE, NEWOBJ and BUILD on it run the
table's own code, which checks the arguments and builds plain data or an inert record. Everything else is
refused by name. Long strings stay in the file; time and memory are bounded by the limits below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.formats.pickles.values import Global, Refused, Span, checked_key, kind_of
from gptbridge.weights.formats.source import SourceFile

MAX_OPCODES = 1_000_000
MAX_INLINE_BYTES = 32 << 20
MAX_INTEGER_BYTES = 64
# Longer strings stay in the file as a Span: the bytes of an array are not copied.
INLINE_LENGTH = 1024
_MAX_LINE = 512
# An opcode may take as much memory as this many that push what is there already, or remember it; of those
# there may be a few times as many, for what they take is time.
_LIGHT_PER_OPCODE = 8
_MOST_LIGHT = 3
_SET_COST = 4  # beyond its opcode
_TEXT_PER_OPCODE = 16
_MARK = object()

BuildState = Callable[[object, object], None]
PersistentLoad = Callable[[object], object]


class PickleDecoder:
    """Decodes pickles that stand one after the other in a range of a file.

    `position` is where the next one starts. All of them share one budget of opcodes and text.
    """

    def __init__(
        self,
        source: SourceFile,
        start: int,
        stop: int,
        *,
        table: Mapping[tuple[str, str], Global],
        build_state: BuildState,
        persistent_load: PersistentLoad | None = None,
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        self.position = start
        self._source = source
        self._stop = stop
        self._table = table
        self._build_state = build_state
        self._persistent_load = persistent_load
        self._max_opcodes = max_opcodes
        self._opcodes_left = _MOST_LIGHT * max_opcodes
        self._light_left = _LIGHT_PER_OPCODE * max_opcodes
        self._inline_bytes_left = MAX_INLINE_BYTES
        self._stack: list[Any] = []
        self._memo: list[Any] = []  # numbered without gaps, as pickles do
        self._sparse_memo: dict[int, Any] = {}

    def decode(self) -> object:
        """Return the value of the pickle at `position`; BadInput unless it is plain data to its stop."""
        self._stack = []
        data, stop = self._source.data, self._stop
        start = self.position
        try:
            while True:
                start = self.position
                opcode = data[start] if start < stop else -1
                self.position += 1
                if opcode == _STOP:
                    return self._result()
                step = _OPCODES.get(opcode)
                if step is None:
                    raise Refused(_describe_opcode(opcode))
                self._opcodes_left -= 1
                self._light_left -= 1 if opcode in _LIGHT else _LIGHT_PER_OPCODE
                if self._light_left < 0 or self._opcodes_left < 0:
                    self._spend(0)
                step[0](self, step[1])
        except IndexError:
            self._source.refuse(f"its pickle takes more values than it gave, at byte {start}")
        except Refused as problem:
            self._source.refuse(f"its pickle {problem}, at byte {start}")

    def _result(self) -> object:
        if len(self._stack) != 1:
            raise Refused(f"leaves {len(self._stack)} values instead of one")
        self._memo, self._sparse_memo = [], {}
        return self._pop()

    def _spend(self, opcodes: int) -> None:
        self._light_left -= opcodes * _LIGHT_PER_OPCODE
        if self._light_left < 0 or self._opcodes_left < 0:
            raise Refused(f"has more than {self._max_opcodes} opcodes")

    # What follows an opcode.

    def _take(self, nbytes: int) -> bytes:
        start = self.position
        if start + nbytes > self._stop:
            raise Refused("ends inside a value")
        self.position = start + nbytes
        return bytes(self._source.data[start : self.position])

    def _unsigned(self, nbytes: int) -> int:
        if nbytes == 1 and self.position < self._stop:  # nearly all of them
            self.position += 1
            return self._source.data[self.position - 1]
        return int.from_bytes(self._take(nbytes), "little")

    def _line(self) -> str:
        end = self._source.find(b"\n", self.position, min(self.position + _MAX_LINE, self._stop))
        if end < 0:
            raise Refused("holds a name that does not end")
        return _decoded(self._take(end + 1 - self.position)[:-1])

    def _string(self, length_bytes: int, *, text: bool) -> bytes | Span:
        nbytes = self._unsigned(length_bytes)
        start = self.position
        if nbytes > self._stop - start:
            raise Refused(f"claims a string of {nbytes} bytes, more than there are")
        if nbytes > INLINE_LENGTH:
            self.position = start + nbytes
            return Span(start, nbytes, text)
        self._spend(1)
        self._inline_bytes_left -= nbytes
        if self._inline_bytes_left < 0:
            raise Refused(f"holds more than {MAX_INLINE_BYTES} bytes of short strings")
        return self._take(nbytes)

    # The stack and the memo.

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("takes a mark for a value")
        return value

    def _pop_group(self) -> list[Any]:
        """Remove and return the values above the last mark, and the mark."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise Refused("closes a group that it did not open")

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise Refused(f"treats a {kind_of(value)} as a {kind.__name__}")
        return value

    # Opcodes; each takes the second half of its row in _OPCODES.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _push_new(self, kind: type) -> None:
        self._spend(_SET_COST if kind is set else 1)
        self._stack.append(kind())

    def _push_unsigned(self, nbytes: int) -> None:
        self._stack.append(self._unsigned(nbytes))

    def _push_signed(self, nbytes: int) -> None:
        self._stack.append(int.from_bytes(self._take(nbytes), "little", signed=True))

    def _push_long(self, length_bytes: int) -> None:
        nbytes = self._unsigned(length_bytes)
        if nbytes > MAX_INTEGER_BYTES:
            raise Refused(f"holds a whole number of {nbytes} bytes")
        self._push_signed(nbytes)

    def _push_float(self, _: None) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _push_bytes(self, length_bytes: int) -> None:
        self._stack.append(self._string(length_bytes, text=False))

    def _push_text(self, length_bytes: int) -> None:
        value = self._string(length_bytes, text=True)
        self._stack.append(_decoded(value) if isinstance(value, bytes) else value)

    def _push_python2_string(self, length_bytes: int) -> None:
        # Python 2's str is text in a name and bytes in an array; Latin-1 keeps both.
        value = self._string(length_bytes, text=False)
        self._stack.append(value.decode("latin-1") if isinstance(value, bytes) else value)

    def _push_tuple(self, length: int) -> None:
        values = [self._pop() for _ in range(length)]
        self._stack.append(tuple(reversed(values)))

    def _push_group_as(self, kind: type) -> None:
        values = self._pop_group()
        if kind is set:
            self._spend(_SET_COST)
            values = [checked_key(value) for value in values]
        self._stack.append(kind(values))

    def _drop(self, _: None) -> None:
        self._stack.pop()

    def _drop_group(self, _: None) -> None:
        self._pop_group()

    def _duplicate(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def _append(self, _: None) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _append_group(self, _: None) -> None:
        values = self._pop_group()
        self._top(list).extend(values)

    def _add_group(self, _: None) -> None:
        values = self._pop_group()
        self._top(set).update(checked_key(value) for value in values)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._top(dict)[checked_key(key)] = value

    def _set_group(self, _: None) -> None:
        values = self._pop_group()
        if len(values) % 2:
            raise Refused("gives a key without a value")
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[checked_key(key)] = value

    def _remember(self, index_bytes: int) -> None:
        # MEMOIZE carries no index: it counts.
        dense = len(self._memo)
        index = self._unsigned(index_bytes) if index_bytes else dense + len(self._sparse_memo)
        value = self._stack[-1]
        if value is _MARK:
            raise Refused("remembers a mark")
        if index < dense:
            self._memo[index] = value
        elif index == dense and not self._sparse_memo:
            self._memo.append(value)
        else:
            self._spend(1)
            self._sparse_memo[index] = value

    def _recall(self, index_bytes: int) -> None:
        index = self._unsigned(index_bytes)
        if index < len(self._memo):
            self._stack.append(self._memo[index])
        elif index in self._sparse_memo:
            self._stack.append(self._sparse_memo[index])
        else:
            raise Refused(f"recalls value {index}, which it did not remember")

    def _push_global(self, *, on_stack: bool) -> None:
        if on_stack:
            name, module = self._pop(), self._pop()
        else:
            module, name = self._line(), self._line()
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("names a class by something that is not text")
        entry = self._table.get((module, name))
        if entry is None:
            raise Refused(f"names {printable(module, 80)}.{printable(name, 80)}, which is not weight data")
        self._stack.append(entry)

    def _call(self, _: None) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(function, Global) or function.call is None or type(args) is not tuple:
            raise Refused(f"calls {kind_of(function)} with a {kind_of(args)}")
        made = function.call(args)
        if not any(made is argument for argument in args):
            self._spend(function.cost + sum(_size(argument) for argument in args))
        self._stack.append(made)

    def _build(self, _: None) -> None:
        state = self._pop()
        self._build_state(self._stack[-1], state)

    def _load_persistent(self, _: None) -> None:
        if self._persistent_load is None:
            raise Refused("refers to a storage outside it")
        self._stack.append(self._persistent_load(self._pop()))

    def _check_frame(self, _: None) -> None:
        if self._unsigned(8) > self._stop - self.position:
            raise Refused("claims a frame beyond its end")

    def _check_protocol(self, _: None) -> None:
        protocol = self._unsigned(1)
        if protocol > _LAST_PROTOCOL:
            raise Refused(f"is of protocol {protocol}, which does not exist")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused("holds text that is not UTF-8") from None


def _size(value: object) -> int:
    """Return what copying a value costs, in opcodes: what was made once may be used a million times."""
    if isinstance(value, (str, bytes)):
        return len(value) // _TEXT_PER_OPCODE
    return len(value) if isinstance(value, (list, tuple, dict, set)) else 0


def _describe_opcode(opcode: int) -> str:
    if opcode < 0:
        return "ends without a stop"
    return f"uses opcode {_REFUSED_OPCODES.get(opcode, f'0x{opcode:02x}')}, which weight data does not need"


_LAST_PROTOCOL = 5
_STOP = ord(".")
# What pushes a value that is there already, or a small one, or a mark; what remembers a value or gives it its
# state; calls pay for what they make.
_LIGHT = frozenset(b"N\x88\x89)(Khjqr\x94bR\x81")
# Opcode -> the method that carries it out and its argument. What is not here is refused.
_OPCODES: Mapping[int, tuple[Callable[[PickleDecoder, Any], None], Any]] = {
    0x80: (PickleDecoder._check_protocol, None),
    0x95: (PickleDecoder._check_frame, None),
    ord("N"): (PickleDecoder._push, None),
    0x88: (PickleDecoder._push, True),
    0x89: (PickleDecoder._push, False),
    ord(")"): (PickleDecoder._push, ()),
    ord("("): (PickleDecoder._push, _MARK),
    ord("}"): (PickleDecoder._push_new, dict),
    ord("]"): (PickleDecoder._push_new, list),
    0x8F: (PickleDecoder._push_new, set),
    ord("K"): (PickleDecoder._push_unsigned, 1),
    ord("M"): (PickleDecoder._push_unsigned, 2),
    ord("J"): (PickleDecoder._push_signed, 4),
    0x8A: (PickleDecoder._push_long, 1),
    0x8B: (PickleDecoder._push_long, 4),
    ord("G"): (PickleDecoder._push_float, None),
    ord("C"): (PickleDecoder._push_bytes, 1),
    ord("B"): (PickleDecoder._push_bytes, 4),
    0x8E: (PickleDecoder._push_bytes, 8),
    0x96: (PickleDecoder._push_bytes, 8),
    0x8C: (PickleDecoder._push_text, 1),
    ord("X"): (PickleDecoder._push_text, 4),
    0x8D: (PickleDecoder._push_text, 8),
    ord("U"): (PickleDecoder._push_python2_string, 1),
    ord("T"): (PickleDecoder._push_python2_string, 4),
    0x85: (PickleDecoder._push_tuple, 1),
    0x86: (PickleDecoder._push_tuple, 2),
    0x87: (PickleDecoder._push_tuple, 3),
    ord("t"): (PickleDecoder._push_group_as, tuple),
    0x91: (PickleDecoder._push_group_as, set),
    ord("0"): (PickleDecoder._drop, None),
    ord("1"): (PickleDecoder._drop_group, None),
    ord("2"): (PickleDecoder._duplicate, None),
    ord("a"): (PickleDecoder._append, None),
    ord("e"): (PickleDecoder._append_group, None),
    0x90: (PickleDecoder._add_group, None),
    ord("s"): (PickleDecoder._set_item, None),
    ord("u"): (PickleDecoder._set_group, None),
    ord("q"): (PickleDecoder._remember, 1),
    ord("r"): (PickleDecoder._remember, 4),
    0x94: (PickleDecoder._remember, 0),
    ord("h"): (PickleDecoder._recall, 1),
    ord("j"): (PickleDecoder._recall, 4),
    ord("c"): (lambda decoder, _: decoder._push_global(on_stack=False), None),
    0x93: (lambda decoder, _: decoder._push_global(on_stack=True), None),
    ord("R"): (PickleDecoder._call, None),
    0x81: (PickleDecoder._call, None),
    ord("b"): (PickleDecoder._build, None),
    ord("Q"): (PickleDecoder._load_persistent, None),
}
# Named in the error only.
_REFUSED_OPCODES = {
    ord("i"): "INST",
    ord("o"): "OBJ",
    ord("P"): "PERSID",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x92: "NEWOBJ_EX",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}
