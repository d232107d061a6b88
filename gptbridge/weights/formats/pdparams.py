"""Paddle's .pdparams and .pdopt: one pickle of protocol 2, 3 or 4 with numpy arrays inside.

What paddle.save (3.3.1, framework/io.py) writes: a state dict as {name: array} with a table of internal
names beside it; a nested structure with each Tensor as (internal name, array); a DenseTensor as a call
of eval('data', {'data': array}); under protocols 2 and 3, an array over 1 GiB as slices `NAME@@.0`, ...
listed in `UnpackBigParamInfor@@`. bfloat16 is stored as uint16, and every uint16 is bfloat16.
"""

from __future__ import annotations

from typing import Any

from gptbridge.weights.formats.pickles.decoder import PickleDecoder
from gptbridge.weights.formats.pickles.globals import GLOBALS, build_state
from gptbridge.weights.formats.pickles.numpy_arrays import NumpyArrays
from gptbridge.weights.formats.pickles.tree import Record, TreeBuilder
from gptbridge.weights.formats.pickles.values import JoinedArray, NumpyArray, TorchTensor
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.weight_file import Contents

_SLICES = "UnpackBigParamInfor@@"


def read_pdparams(source: SourceFile) -> Contents:
    """Decode the pickle of a Paddle file and return the arrays that it holds."""
    decoder = PickleDecoder(source, 0, source.size, table=GLOBALS, build_state=build_state)
    root = decoder.decode()
    if decoder.position != source.size:
        source.refuse(f"{source.size - decoder.position} bytes follow its pickle")
    if isinstance(root, dict) and _SLICES in root:
        root = _joined(source, root)
    contents = Contents(source, "pdparams")
    arrays = NumpyArrays(contents, uint16="bfloat16")

    def add(name: str, record: Record) -> None:
        if isinstance(record, TorchTensor):
            source.refuse("is a torch tensor in a Paddle file", tensor=name)
        arrays.add(name, record)

    contents.tree = TreeBuilder(source, add, paddle=True).build(root)
    return contents


def _joined(source: SourceFile, root: dict[Any, Any]) -> dict[Any, Any]:
    """Return the dict with each list of slices replaced by one array under its own name."""
    joined = dict(root)
    table = joined.pop(_SLICES)
    if not isinstance(table, dict):
        source.refuse(f"{_SLICES} is not a table")
    for name, entry in table.items():
        match entry:
            case {"OriginShape": tuple(shape) | list(shape), "slices": list(names)} if names:
                found = [joined.pop(part, None) for part in names if isinstance(part, str)]
            case _:
                source.refuse(f"its entry in {_SLICES} is malformed", tensor=name)
        parts = tuple(part for part in found if isinstance(part, NumpyArray) and not part.fortran)
        if len(parts) != len(names):
            source.refuse("one of its slices is missing or used twice", tensor=name)
        if name in joined:
            source.refuse("appears whole and in slices", tensor=name)
        joined[name] = JoinedArray(parts, tuple(shape))
    return joined
