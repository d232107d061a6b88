"""What the pickle decoder builds besides Python's own plain data: inert records, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Refused(Exception):
    """A pickle's value that is not acceptable, said as a predicate of the pickle; becomes BadInput."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle may name.

    `call` returns the data for NAME(*args) or raises Refused; None when the name is only a value.
    `dtype` is the element type that a torch dtype or storage class stands for. `cost` is the memory of what
    a call makes, beyond copies of its arguments, in opcodes.
    """

    name: str
    call: Callable[[tuple[Any, ...]], object] | None = None
    dtype: str | None = None
    cost: int = 4


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that were left in the file: `nbytes` at `offset`. `text` says that they are UTF-8."""

    offset: int
    nbytes: int
    text: bool


@dataclass(frozen=True, slots=True)
class Latin1Bytes:
    """Bytes that protocol 2 holds as the UTF-8 text of their Latin-1 reading."""

    content: Span


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


@dataclass(slots=True, eq=False)
class Index:
    """Attributes of an object that is the key of a dict: every one is a key of its own."""

    name: str
    values: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JoinedArray:
    """A row-major array that a file holds in several, one after the other."""

    parts: tuple[NumpyArray, ...]
    shape: tuple[Any, ...]


def has_names(state: dict[Any, Any]) -> bool:
    """Tell whether a state is one of named attributes, which an object takes as it is, and only once."""
    return all(isinstance(key, str) for key in state)


_MAX_KEY_PARTS = 8


def checked_key(key: Any) -> Any:
    """Return a key of a dict or member of a set: only kinds whose hash is quick and shallow."""
    for part in key if type(key) is tuple and len(key) <= _MAX_KEY_PARTS else (key,):
        if type(part) is int and part.bit_length() > 63:
            raise Refused("has a key beyond 64 bits")
        if part is not None and type(part) not in (bool, int, str, bytes, Index):
            raise Refused(f"has a {kind_of(part)} as a key")
    return key


def kind_of(value: object) -> str:
    """Return what an error calls a value: its class, or the name that a pickle gave."""
    match value:
        case Global() | Attributes() | Index():
            return value.name
        case Span():
            return f"string of {value.nbytes} bytes"
        case _:
            return type(value).__name__
