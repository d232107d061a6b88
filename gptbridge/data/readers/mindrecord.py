"""MindRecord files with the language model's schema: rows of `input_ids`, read without MindSpore.

Worked out from the files that mindspore.mindrecord.FileWriter 2.10 writes (version 3.0).
X.mindrecord begins with a length (uint64, little-endian) and that much JSON; from `header_size` on
lie pages of `page_size` bytes, and which bytes of which page a row fills is in X.mindrecord.db
(`mindrecord_index`). A row is its length (uint64, little-endian, itself not counted) and the fields
that the schema lists under `blob_fields`, in that order, each after its length (uint64, big-endian);
a single field comes without one. How a field holds integers: `decode_integers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.readers.file_tokens import FileBytes
from gptbridge.data.readers.mindrecord_index import read_index
from gptbridge.data.tokens import Ids, TokenDataset
from gptbridge.errors import BadInput, printable
from gptbridge.weights.formats.json_header import read_object
from gptbridge.weights.formats.source import SourceFile

_IDS, _MASK, _LABELS = "input_ids", "attention_mask", "labels"
_TYPES = ("int32", "int64")
_VERSION = "3.0"
_PART_BYTES = 16 << 20

Span = tuple[NDArray[np.int64], NDArray[np.int64]]  # first byte and end of something, for each row


def open_mindrecord(path: Path) -> TokenDataset:
    """Open one .mindrecord file; each row is a document. BadInput where it is damaged."""
    tokens = _open(path, (_IDS, _MASK))
    return TokenDataset("mindrecord", str(path), tokens, tokens.offsets)


def classified_rows(path: Path) -> Iterator[Mapping[str, NDArray[np.int64]]]:
    """Yield `input_ids`, `attention_mask` and `labels` of each row of one file, those of them that it has."""
    tokens = _open(path, (_IDS, _MASK, _LABELS))
    for row in range(len(tokens.offsets) - 1):
        yield tokens.fields(row)


def _open(path: Path, names: Sequence[str]) -> MindRecordTokens:
    with closing(SourceFile(path)) as source:
        size = int.from_bytes(source.bytes_at(0, 8, "its header"), "little")
        header = read_object(source, 8, size, "its header")
        if header.get("version") != _VERSION:
            source.refuse(f"MindRecord version {printable(header.get('version'))}", allowed=_VERSION)
        fields, dtype = _schema(source, header)
        return MindRecordTokens(source, read_index(source, header), fields, dtype, names)


def _schema(source: SourceFile, header: dict[str, Any]) -> tuple[list[str], str]:
    """Return the names of a row's fields, in order, and the type of input_ids."""
    try:
        (schema,) = header["schema"]
        fields, types = schema["blob_fields"], schema["schema"]
        described = types[_IDS]["type"], types[_IDS]["shape"]
    except (KeyError, TypeError, ValueError):
        source.refuse(
            f"has no schema with {_IDS!r}", allowed=f"one schema, {_IDS} {' or '.join(_TYPES)} [-1]"
        )
    dtype, shape = described
    if _IDS not in fields or dtype not in _TYPES or not isinstance(shape, list) or len(shape) != 1:
        shown = printable(described)
        source.refuse(f"{_IDS} is {shown}", allowed=f"{' or '.join(_TYPES)} of shape [-1]")
    return [str(field) for field in fields], dtype


class MindRecordTokens:
    """The `input_ids` of all rows, back to back; a row is decoded when it is read.

    A row is padded where its `attention_mask` is 0; padding is no text, so such a row is refused.
    """

    def __init__(
        self, source: SourceFile, rows: Span, fields: list[str], dtype: str, names: Sequence[str]
    ) -> None:
        self._path = source.path
        self._file = FileBytes(source)
        self.dtype: np.dtype[np.integer[Any]] = np.dtype(dtype)
        count = len(rows[0])
        self._spans = {
            name: (np.empty(count, np.int64), np.empty(count, np.int64)) for name in names if name in fields
        }
        self.offsets = np.zeros(count + 1, np.int64)
        for part in _parts(rows):
            self._locate(part, (rows[0][part], rows[1][part]), fields)
        np.cumsum(self.offsets, out=self.offsets)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self.offsets[-1])

    def read(self, start: int, stop: int) -> Ids:
        """Return tokens `start` to `stop` (exclusive), decoded; BadInput for a damaged row."""
        first = max(0, int(np.searchsorted(self.offsets, start, side="right")) - 1)
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        rows = [self._row(row) for row in range(first, min(last, len(self.offsets) - 1))]
        begin = int(self.offsets[first])
        tokens: Ids = np.concatenate([np.empty(0, self.dtype), *rows])
        return tokens[start - begin : stop - begin]

    def fields(self, row: int) -> Mapping[str, NDArray[np.int64]]:
        """Return the fields of a row that were asked for."""
        return {name: self._field(row, name) for name in self._spans}

    def _row(self, row: int) -> Ids:
        ids = self._field(row, _IDS)
        if _MASK in self._spans:
            mask = self._field(row, _MASK)
            if mask.shape != ids.shape or not mask.all():
                self._refuse(row, "is padded: its attention_mask is not 1 everywhere")
        return ids.astype(self.dtype)

    def _field(self, row: int, name: str) -> NDArray[np.int64]:
        begins, ends = self._spans[name]
        try:
            begin = int(begins[row])
            return decode_integers(self._file.read(begin, int(ends[row]) - begin, "u1"))
        except ValueError as error:
            self._refuse(row, f"{name}: {error}")

    def _locate(self, part: slice, rows: Span, fields: list[str]) -> None:
        """Note where the fields of some rows lie and how many tokens each row has."""
        first = int(rows[0][0])
        data = self._file.read(first, int(rows[1][-1]) - first, "u1")
        begins, ends = rows[0] - first, rows[1] - first
        at = begins + 8
        self._require(part, (at <= ends) & (_numbers(data, begins, ends, "<u8") == ends - at))
        for name in fields:
            stop = ends
            if len(fields) > 1:
                size = _numbers(data, at, ends, ">u8")
                at = at + 8
                self._require(part, (at <= ends) & (size <= np.maximum(ends - at, 0)))
                stop = at + size
            if name in self._spans:
                self._spans[name][0][part], self._spans[name][1][part] = at + first, stop + first
            if name == _IDS:
                counts = _numbers(data, at, stop, ">u4")
                self._require(part, (stop - at >= 4) & (4 + (counts + 3) // 4 + counts <= stop - at))
                self.offsets[1:][part] = counts
            at = stop
        self._require(part, at == ends)

    def _require(self, part: slice, sound: NDArray[np.bool_]) -> None:
        if not sound.all():
            self._refuse(part.start + int(sound.argmin()), "its lengths do not fit together")

    def _refuse(self, row: int, problem: str) -> NoReturn:
        raise BadInput(f"row {row}: {problem}", where=self._path)


def _parts(rows: Span) -> Iterator[slice]:
    """Cut the rows, which lie one after the other, into parts of few bytes."""
    begins, ends = rows
    start = 0
    while start < len(begins):
        stop = int(np.searchsorted(ends, begins[start] + _PART_BYTES, side="right"))
        yield slice(start, start := max(start + 1, stop))


def _numbers(
    data: NDArray[np.uint8], at: NDArray[np.int64], ends: NDArray[np.int64], dtype: str
) -> NDArray[np.int64]:
    """Return the number at each position; -1 where it is cut off or beyond int64."""
    width = np.dtype(dtype).itemsize
    whole = at + width <= ends
    places = np.where(whole, at, 0)[:, None] + np.arange(width)
    numbers = np.ascontiguousarray(data[places]).view(dtype)[:, 0].astype(np.int64)
    return np.where(whole & (numbers >= 0), numbers, -1)


def decode_integers(field: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the integers of a field; ValueError where it is damaged.

    They are packed: their number (uint32, big-endian); two bits each, the first in the highest bits
    of a byte, for a width of 1, 2, 4 or 8 bytes; then the numbers, signed, little-endian.
    """
    count = int.from_bytes(field[:4].tobytes(), "big")
    begin = 4 + (count + 3) // 4
    if len(field) < begin + count:
        raise ValueError(f"{len(field)} bytes cannot hold {count} integers")
    codes = ((field[4:begin, None] >> np.array([6, 4, 2, 0], "u1")) & 3).ravel()[:count]
    widths = np.left_shift(1, codes, dtype=np.int64)
    ends = np.cumsum(widths) + begin
    if len(field) != (ends[-1] if count else begin):
        raise ValueError(f"{len(field)} bytes do not fit the widths of {count} integers")
    integers = np.empty(count, np.int64)
    for code in np.unique(codes):
        here, width = codes == code, 1 << int(code)
        places = (ends[here] - width)[:, None] + np.arange(width)
        integers[here] = field[places].view(f"<i{width}")[:, 0]
    return integers
