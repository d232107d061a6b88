"""What a pickle decoded to, as a tree of plain data with a TensorRef in each tensor's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gptbridge.weights.formats.pickles.values import (
    Attributes,
    Global,
    JoinedArray,
    Latin1Bytes,
    NumpyArray,
    NumpyDType,
    Refused,
    Span,
    TorchStorage,
    TorchTensor,
    kind_of,
)
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Namespace, TensorRef, Tree

MAX_DEPTH = 64
MAX_NODES = 300_000
MAX_TEXT_BYTES = 32 << 20

Record = NumpyArray | JoinedArray | TorchTensor


class TreeBuilder:
    """Walks a decoded value once for each place where it stands; `add_tensor` gets name and record.

    A tensor's name is the keys that lead to it, joined by dots; a value that is itself a tensor is called
    `tensor`. Depth, number of nodes and amount of text are bounded, so that a pickle of references that
    multiply, or that refers to itself, is refused.
    """

    def __init__(
        self, source: SourceFile, add_tensor: Callable[[str, Record], None], *, paddle: bool = False
    ) -> None:
        self._source = source
        self._add_tensor = add_tensor
        # paddle.save writes a Tensor inside a list or nested dict as (its own name, array).
        self._pairs_are_tensors = paddle
        self._nodes_left = MAX_NODES
        self._text_left = MAX_TEXT_BYTES
        self._trail: list[object] = []

    def build(self, root: object) -> Tree:
        """Return the tree of `root`; BadInput beyond the bounds, or for a value that is no data."""
        try:
            return self._node(root)
        except Refused as problem:
            self._source.refuse(f"its pickle {problem}")

    def _node(self, value: Any) -> Tree:
        match value:
            case None | bool() | int() | float() | complex() | str() | bytes():
                return value
            case NumpyArray() | JoinedArray() | TorchTensor():
                return self._tensor(value)
            case (str() as name, NumpyArray() as array) if self._pairs_are_tensors:
                return self._tensor(array, name)
            case dict():
                return dict(self._children(value.items()))
            case list():
                return [child for _, child in self._children(enumerate(value))]
            case tuple():
                return tuple(child for _, child in self._children(enumerate(value)))
            case set():
                return value
            case Attributes():
                return Namespace(self._children(value.values.items()))
            case TorchStorage():
                return self._tensor(TorchTensor(value, value.dtype, 0, (value.num_elements,), (1,)))
            case _:
                return self._leaf(value)

    def _children(self, items: Iterable[tuple[Any, object]]) -> Iterator[tuple[Any, Tree]]:
        """Yield each key with the tree of its value; the trail holds the keys on the way to it."""
        if len(self._trail) >= MAX_DEPTH:
            raise Refused(f"nests deeper than {MAX_DEPTH} levels")
        for key, value in items:
            self._nodes_left -= 1
            if self._nodes_left < 0:
                raise Refused(f"holds or repeats more than {MAX_NODES} values")
            self._trail.append(key)
            yield key, self._node(value)
            self._trail.pop()

    def _tensor(self, record: Record, default_name: str = "tensor") -> TensorRef:
        name = ".".join(str(key) for key in self._trail) if self._trail else default_name
        self._add_tensor(name, record)
        return TensorRef(name)

    def _leaf(self, value: object) -> Tree:
        match value:
            case Span(text=True):
                return self._text(value)
            case Span():
                return self._bytes(value)
            case Latin1Bytes():
                return self._text(value.content).encode("latin-1")
            case NumpyDType():
                return f"numpy.{value.code}"
            case Global(call=None):
                return value.name
            case _:
                raise Refused(f"holds {kind_of(value)} as a value")

    def _bytes(self, span: Span) -> bytes:
        self._text_left -= span.nbytes
        if self._text_left < 0:
            raise Refused(f"holds more than {MAX_TEXT_BYTES} bytes of text")
        return self._source.bytes_at(span.offset, span.nbytes, "a string")

    def _text(self, span: Span) -> str:
        try:
            return self._bytes(span).decode()
        except UnicodeDecodeError:
            raise Refused("holds text that is not UTF-8") from None
