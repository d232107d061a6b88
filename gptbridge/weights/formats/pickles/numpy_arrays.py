"""Numpy arrays inside a pickle, checked and given a TensorBytes."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Any

from gptbridge.weights.formats.encoded import EncodedBytes, Unpacked
from gptbridge.weights.formats.pickles.numpy_calls import NUMPY_CODES
from gptbridge.weights.formats.pickles.values import JoinedArray, Latin1Bytes, NumpyArray, Span
from gptbridge.weights.formats.segments import Latin1Segment, MemorySegment, RawSegment, Segment
from gptbridge.weights.formats.tensor import TensorInfo
from gptbridge.weights.formats.tensor_bytes import MappedBytes, SlicedBytes, TensorBytes
from gptbridge.weights.formats.weight_file import Contents


class NumpyArrays:
    """Adds the arrays of one pickle to `contents`.

    `uint16` is what 16-bit unsigned elements are: Paddle has no such type and means bfloat16 by them.
    """

    def __init__(self, contents: Contents, *, uint16: str = "uint16") -> None:
        self._contents = contents
        self._source = contents.source
        self._uint16 = uint16
        # Text that several arrays use is checked once: a file may refer to it a million times.
        self._texts: dict[Span, Latin1Segment] = {}
        self._unpacked = Unpacked()

    def add(self, name: str, record: NumpyArray | JoinedArray) -> None:
        """Check an array's type and size against its bytes and add it under `name`."""
        parts = record.parts if isinstance(record, JoinedArray) else (record,)
        kinds = {self._dtype(name, part) for part in parts}
        if len(kinds) != 1:
            self._source.refuse("its slices are of different types", tensor=name)
        info = self._contents.new_tensor(name, kinds.pop(), record.shape)
        segments = [self._segment(name, part.content) for part in parts]
        nbytes = sum(segment.nbytes for segment in segments)
        self._contents.add(info, self._block(info, record, segments), nbytes)

    def _dtype(self, name: str, array: NumpyArray) -> str:
        if array.dtype is None:
            self._source.refuse("is an array that was never filled", tensor=name)
        if array.dtype.order == ">":
            self._source.refuse("is big-endian", tensor=name, allowed="little-endian")
        dtype = NUMPY_CODES[array.dtype.code]
        return self._uint16 if dtype == "uint16" else dtype

    def _segment(self, name: str, content: Any) -> Segment:
        segment: Segment
        match content:
            case bytes():
                segment = MemorySegment(content)
            case str() if all(ord(character) < 256 for character in content):
                segment = MemorySegment(content.encode("latin-1"))
            case Span(text=False):
                segment = RawSegment(self._source, content.offset, content.nbytes)
            case Latin1Bytes(content=span):
                segment = self._text(name, span)
            case _:
                self._source.refuse(f"its elements are a {type(content).__name__}, not bytes", tensor=name)
        return segment

    def _text(self, name: str, span: Span) -> Latin1Segment:
        if span not in self._texts:
            try:
                self._texts[span] = Latin1Segment(self._source, span.offset, span.nbytes)
            except ValueError as error:
                self._source.refuse(f"its bytes are {error}", tensor=name)
        return self._texts[span]

    def _block(
        self, info: TensorInfo, record: NumpyArray | JoinedArray, segments: list[Segment]
    ) -> TensorBytes:
        fortran = isinstance(record, NumpyArray) and record.fortran
        raw = [segment for segment in segments if isinstance(segment, RawSegment)]
        if len(raw) < len(segments):
            return EncodedBytes(segments, self._unpacked, fortran=fortran)
        if len(raw) == 1:
            strides = _fortran_strides(info) if fortran else None
            return MappedBytes(self._source, raw[0].extent.offset, info.nbytes, strides)
        return SlicedBytes(raw)


def _fortran_strides(info: TensorInfo) -> tuple[int, ...]:
    return tuple(accumulate((info.storage_dtype.itemsize, *info.shape[:-1]), mul))[: len(info.shape)]
