"""Calls with which a pickle rebuilds NumPy's arrays, dtypes and scalars, as inert records."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from gptbridge.errors import printable
from gptbridge.weights.formats.pickles.python_calls import Args, encode_latin1
from gptbridge.weights.formats.pickles.values import Global, NumpyArray, NumpyDType, Refused
from gptbridge.weights.formats.tensor import STORAGE_DTYPES

# NumPy's codes of the element types that weights have; object, text and date types are none of them.
NUMPY_CODES: Mapping[str, str] = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "c8": "complex64",
    "c16": "complex128",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u8": "uint64",
    "u4": "uint32",
    "u2": "uint16",
    "u1": "uint8",
    "b1": "bool",
}


def _reconstruct(args: Args) -> NumpyArray:
    match args:
        case (Global(name="numpy.ndarray"), (0,), b"b" | "b"):
            return NumpyArray()
        case _:
            raise Refused("reconstructs something else than a plain numpy array")


def _dtype(args: Args) -> NumpyDType:
    match args:
        case (str(code), *flags) if len(flags) <= 2 and code in NUMPY_CODES:
            return NumpyDType(code)
        case (str(code), *_):
            raise Refused(f"holds numpy elements of type {printable(code, 20)}, which weights do not have")
        case _:
            raise Refused("holds a malformed numpy dtype")


def _scalar(args: Args) -> object:
    match args:
        case (NumpyDType() as dtype, bytes() | str() as raw):
            content = raw if isinstance(raw, bytes) else encode_latin1((raw, "latin1"))
            kind = STORAGE_DTYPES[NUMPY_CODES[dtype.code]]
            if not isinstance(content, bytes) or len(content) != kind.itemsize or dtype.order == ">":
                raise Refused("holds a malformed numpy scalar")
            return np.frombuffer(content, kind)[0].item()
        case _:
            raise Refused("holds a malformed numpy scalar")


def _from_buffer(args: Args) -> NumpyArray:
    match args:
        case (content, NumpyDType() as dtype, tuple(shape), "C" | "F" as order):
            return NumpyArray(shape, dtype, order == "F", content)
        case _:
            raise Refused("holds a malformed numpy array")


# NumPy's module names before and after 2.0.
FUNCTIONS: Mapping[str, Callable[[Args], object] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}
