"""Decode a pickle as data: an interpreter of its opcodes that imports nothing and calls nothing.

Opcodes and their arguments: the comments of CPython's Lib/pickletools.py. A class or function that a
pickle names is looked up in an exact table (pickle_globals.py); REDUCE, NEWOBJ and BUILD on it run the
table's own code, which checks its arguments and builds plain data or an inert record. Everything else is
refused by name. Long byte strings stay in the file; time and memory are bounded by the limits below.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gptbridge.errors import printable
from gptbridge.weights.formats.pickle_values import Span
from gptbridge.weights.formats.source import SourceFile

MAX_OPCODES = 1_000_000
MAX_TEXT_BYTES = 16 << 20
MAX_INTEGER_BYTES = 64
# Longer strings stay in the file as a Span; an array's bytes are never copied.
INLINE_BYTES = 4096
_MAX_LINE = 1024
_MARK = object()


class Refused(Exception):
    """What a table's function says of arguments that it does not accept; becomes BadInput."""


class Global(Protocol):
    """An entry of the table of globals: a name that a pickle may mention."""

    def call(self, args: tuple[Any, ...]) -> object:
        """Return the data for NAME(*args), or raise Refused."""


Globals = Mapping[tuple[str, str], Global]
Build = Callable[[object, object], None]
PersistentLoad = Callable[[object], object]


class PickleDecoder:
    """Decodes the pickles that stand one after the other in a range of a file.

    `position` is where the next one starts. One decoder has one budget of opcodes and text for all.
    """

    def __init__(
        self,
        source: SourceFile,
        start: int,
        stop: int,
        *,
        table: Globals,
        build: Build,
        persistent_load: PersistentLoad | None = None,
    ) -> None:
        self.position = start
        self._source = source
        self._data = source.data
        self._stop = stop
        self._table = table
        self._build = build
        self._persistent_load = persistent_load
        self._opcodes_left = MAX_OPCODES
        self._text_left = MAX_TEXT_BYTES
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def decode(self) -> object:
        """Return the value of the pickle at `position`; BadInput for anything that is not plain data."""
        self._stack = []
        self._memo = {}
        try:
            while True:
                opcode = self._data[self.position] if self.position < self._stop else -1
                self.position += 1
                if opcode == _STOP:
                    return self._result()
                self._spend(1)
                _OPCODES.get(opcode, _unknown_opcode(opcode))(self)
        except IndexError:
            self._source.refuse(f"its pickle takes more values than it gave, at byte {self.position}")
        except Refused as problem:
            self._source.refuse(f"its pickle {problem}, at byte {self.position}")

    def _result(self) -> object:
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise Refused(f"leaves {len(self._stack)} values instead of one")
        return self._stack.pop()

    def _spend(self, opcodes: int) -> None:
        self._opcodes_left -= opcodes
        if self._opcodes_left < 0:
            raise Refused(f"has more than {MAX_OPCODES} opcodes")

    # Reading arguments.

    def _take(self, nbytes: int) -> bytes:
        start = self.position
        if start + nbytes > self._stop:
            raise Refused("ends inside a value")
        self.position = start + nbytes
        return self._data[start : start + nbytes]

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self._take(nbytes), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position, min(self.position + _MAX_LINE, self._stop))
        if end < 0:
            raise Refused("holds a line that does not end")
        line = self._take(end - self.position + 1)[:-1]
        return _decoded(line, "ascii")

    def _string(self, length_bytes: int, *, text: bool) -> object:
        """Read a counted string: short ones as bytes or str, long ones as a Span."""
        nbytes = self._number(length_bytes)
        start = self.position
        if start + nbytes > self._stop:
            raise Refused(f"claims a string of {nbytes} bytes beyond its end")
        if nbytes > INLINE_BYTES:
            self.position = start + nbytes
            return Span(start, nbytes, text)
        self._text_left -= nbytes
        if self._text_left < 0:
            raise Refused(f"holds more than {MAX_TEXT_BYTES} bytes of short strings")
        raw = self._take(nbytes)
        return _decoded(raw, "utf-8") if text else raw

    def _python2_string(self, length_bytes: int) -> None:
        # Python 2's str is text in a name and bytes in an array; Latin-1 keeps both.
        value = self._string(length_bytes, text=False)
        self._stack.append(value.decode("latin-1") if isinstance(value, bytes) else value)

    # The stack.

    def _pop_mark(self) -> list[Any]:
        """Remove and return the values above the last mark, and the mark."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                values = self._stack[index + 1 :]
                del self._stack[index:]
                return values
        raise Refused("closes a group that it did not open")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise Refused("takes a mark for a value")
        return value

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if type(value) is not kind:
            raise Refused(f"treats a {_kind(value)} as a {kind.__name__}")
        return value

    def _remember(self, index: int) -> None:
        if self._stack[-1] is _MARK:
            raise Refused("remembers a mark")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise Refused(f"recalls value {index}, which it did not remember")
        self._stack.append(self._memo[index])

    # Building.

    def _set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise Refused("gives a key without a value")
        target = self._top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_checked_key(key)] = value

    def _named(self, module: object, name: object) -> None:
        entry = self._table.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if entry is None:
            raise Refused(f"names {printable(module, 80)}.{printable(name, 80)}, which is not weight data")
        self._stack.append(entry)

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if not isinstance(args, tuple):
            raise Refused(f"calls with a {_kind(args)}")
        if not hasattr(function, "call"):
            raise Refused(f"calls a {_kind(function)}")
        self._spend(4)
        self._stack.append(function.call(args))

    def _build_state(self) -> None:
        state = self._pop()
        self._build(self._stack[-1], state)

    def _persistent(self) -> None:
        if self._persistent_load is None:
            raise Refused("refers to a storage outside it")
        self._stack.append(self._persistent_load(self._pop()))

    def _frame(self) -> None:
        if self._number(8) > self._stop - self.position:
            raise Refused("claims a frame beyond its end")

    def _protocol(self) -> None:
        version = self._number(1)
        if version > 5:
            raise Refused(f"is of protocol {version}, which does not exist")
