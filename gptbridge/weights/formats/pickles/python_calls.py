"""Calls that a pickle makes on Python's own classes, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gptbridge.weights.formats.pickles.values import (
    Attributes,
    Global,
    Latin1Bytes,
    NumpyArray,
    Refused,
    Span,
    checked_key,
)

Args = tuple[Any, ...]


def _dict(args: Args) -> dict[Any, Any]:
    """OrderedDict(), Counter({...}), or OrderedDict([[key, value], ...]) as Python 2 wrote it."""
    match args:
        case ():
            return {}
        case (dict(content),):
            return dict(content)
        case (list(pairs),) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            return {checked_key(key): value for key, value in pairs}
        case _:
            raise Refused("makes a dict of something else than pairs")


def _default_dict(args: Args) -> dict[Any, Any]:
    match args:
        case () | (None | Global(),):
            return {}
        case _:
            raise Refused("makes a defaultdict of something else than a type")


def _sequence(kind: type) -> Callable[[Args], object]:
    def make(args: Args) -> object:
        match args:
            case ():
                return kind()
            case (list(values) | tuple(values),):
                return kind(checked_key(value) for value in values) if kind is set else kind(values)
            case _:
                raise Refused(f"makes a {kind.__name__} of something else than a list")

    return make


def _bytes(args: Args) -> object:
    """bytes(), bytearray(b'...') or bytearray('...', 'latin-1'); never bytearray(length)."""
    match args:
        case ():
            return b""
        case (bytes() | Span(text=False) | Latin1Bytes(),):
            return args[0]
        case (str() | Span(), "latin-1" | "latin1"):
            return encode_latin1(args)
        case _:
            raise Refused("makes bytes of something else than bytes")


def encode_latin1(args: Args) -> object:
    """_codecs.encode(text, 'latin1'): how protocol 2 writes bytes."""
    match args:
        case (str(text), "latin1" | "latin-1") if text.isascii() or all(ord(c) < 256 for c in text):
            return text.encode("latin-1")
        case (Span(text=True) as span, "latin1" | "latin-1"):
            return Latin1Bytes(span)
        case _:
            raise Refused("encodes something else than Latin-1 text")


def _complex(args: Args) -> complex:
    match args:
        case (float(real), float(imaginary)):
            return complex(real, imaginary)
        case _:
            raise Refused("makes a complex number of something else than two numbers")


def plain_object(name: str) -> Callable[[Args], Attributes]:
    """Return the call that makes an object of a class whose attributes, or whose opaque state, follow."""

    def make(args: Args) -> Attributes:
        if args:
            raise Refused(f"makes a {name} with arguments")
        return Attributes(name)

    return make


def _path(args: Args) -> str:
    if not all(isinstance(part, str) for part in args) or len(args) > 64:
        raise Refused("makes a path of something else than text")
    return "/".join(args).replace("//", "/")


def _paddle_dense_tensor(args: Args) -> NumpyArray:
    """paddle.save writes a DenseTensor as eval('data', {'data': array}): that very call, and no other."""
    match args:
        case ("data", {"data": NumpyArray() as array, **rest}) if not rest:
            return array
        case _:
            raise Refused("names builtins.eval, which is not weight data")


# Python 3's and Python 2's names of the same classes. `eval` is in it for one exact call of paddle.save.
_BUILTINS: Mapping[str, Callable[[Args], object] | None] = {
    "dict": _dict,
    "list": _sequence(list),
    "tuple": _sequence(tuple),
    "set": _sequence(set),
    "frozenset": _sequence(set),
    "bytes": _bytes,
    "bytearray": _bytes,
    "complex": _complex,
    "eval": _paddle_dense_tensor,
    "int": None,
    "float": None,
    "str": None,
    "bool": None,
}
_PLAIN_CLASSES = ("argparse.Namespace", "types.SimpleNamespace", "_io.BytesIO", "io.BytesIO")
FUNCTIONS: Mapping[str, Callable[[Args], object] | None] = {
    **{
        f"{module}.{name}": call for module in ("builtins", "__builtin__") for name, call in _BUILTINS.items()
    },
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _default_dict,
    **{name: plain_object(name) for name in _PLAIN_CLASSES},
    "pathlib.PosixPath": _path,
    "pathlib.PurePosixPath": _path,
    "_codecs.encode": encode_latin1,
}
