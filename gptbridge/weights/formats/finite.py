"""NaN and infinity among the numbers of a tensor, in any of the element types that weights have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.formats.tensor import STORAGE_DTYPES
from gptbridge.weights.formats.weight_file import WeightFile

# Signed and unsigned integers as wide as a number, and the bits of +infinity: what lies above is NaN.
_BITS: Mapping[str, tuple[type[np.signedinteger[Any]], type[np.unsignedinteger[Any]], int]] = {
    "float64": (np.int64, np.uint64, 0x7FF << 52),
    "float32": (np.int32, np.uint32, 0x7F8 << 20),
    "bfloat16": (np.int16, np.uint16, 0x7F80),
    "float16": (np.int16, np.uint16, 0x7C00),
}
NO_WEIGHTS = "Such weights compute nothing: take a checkpoint from before, or from another copy"


def all_finite(array: NDArray[Any], dtype: str) -> bool:
    """Tell whether no number of `array`, which carries the element type `dtype`, is NaN or infinite.

    As signed integers the positive numbers are the largest, as unsigned ones the negative: two passes that
    need no memory, at a third of np.isfinite's cost on a file's own bytes.
    """
    signed, unsigned, infinity = _BITS[dtype]
    positive, negative = array.view(signed).max(initial=0), array.view(unsigned).max(initial=0)
    return int(positive) < infinity and int(negative) < infinity + (1 << 8 * array.itemsize - 1)


def finite_chunks(file: WeightFile, name: str) -> Iterator[NDArray[Any]]:
    """Yield the chunks of a tensor; BadInput, naming it, after one that ends a number that is none.

    Then whoever took a chunk has brought it from memory to the cache, which is most of what looking costs.
    """
    dtype = file.tensors[name].dtype
    storage = STORAGE_DTYPES[dtype]
    rest = np.empty(0, np.uint8)
    for chunk in file.chunks(name):
        yield chunk
        raw = chunk.reshape(-1).view(np.uint8)
        whole = np.concatenate([rest, raw]) if len(rest) else raw
        end = len(whole) - len(whole) % storage.itemsize
        if not all_finite(whole[:end].view(storage), dtype):
            raise BadInput(f"{printable(name)} holds NaN or infinity", where=file.path, hint=NO_WEIGHTS)
        rest = whole[end:]
        refuse_shrunk()
