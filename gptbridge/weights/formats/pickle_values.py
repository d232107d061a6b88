"""What the pickle decoder builds besides Python's own plain data: inert records, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that were left in the file: `nbytes` at `offset`. `text` says that they are UTF-8."""

    offset: int
    nbytes: int
    text: bool


@dataclass(frozen=True, slots=True)
class Latin1Bytes:
    """Bytes that protocol 2 holds as the UTF-8 text of their Latin-1 reading."""

    content: str | Span


@dataclass(slots=True)
class NumpyDType:
    """numpy.dtype('f4'): its code, and '<' or '|' once the pickle has told the byte order."""

    code: str
    order: str = "|"


@dataclass(slots=True)
class NumpyArray:
    """A numpy.ndarray: its bytes in `content`, column-major if `fortran`. Incomplete until it is built."""

    shape: tuple[Any, ...] = ()
    dtype: NumpyDType | None = None
    fortran: bool = False
    content: object = None


@dataclass(frozen=True, slots=True)
class TorchStorage:
    """A torch storage: the element type, the key under which its bytes lie, and how many elements."""

    dtype: str
    key: str
    num_elements: int
    view: tuple[str, int, int] | None = None


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A torch tensor: a storage seen through an offset, a shape and strides, all in elements."""

    storage: TorchStorage
    dtype: str
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


@dataclass(slots=True)
class Attributes:
    """An object of a class that the table knows as plain data: its class name and its attributes."""

    name: str
    values: dict[Any, Any] = field(default_factory=dict)
