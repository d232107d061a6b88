"""One canonical weight of an open checkpoint: the pieces it lies in, read as any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.conversion.casting import cast
from gptbridge.weights.formats import STORAGE_DTYPES, Chunks, WeightFile
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Box, Piece, gather
from gptbridge.weights.layouts.rules import canonical_axes

_WIDER = "Convert with --dtype bfloat16 or float32, which reach further than float16"


class Delta(Protocol):
    """What is added to a weight."""

    def __call__(self, box: Box, order: Axes) -> NDArray[np.float32]:
        """Return the part of it that lies in `box`, stored as `order`."""


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A tensor of some file that is just this box."""

    box: Box
    axes: Axes
    file: WeightFile
    tensor: str


@dataclass(frozen=True, slots=True)
class CanonicalWeight:
    """Where the parts of one weight are, their element type, and what is added to them, if anything."""

    name: str
    dtype: str
    pieces: tuple[Piece, ...]
    stored: tuple[StoredBox, ...] = ()
    delta: Delta | None = None

    def read(self, box: Box, axes: Axes, dtype: str | None = None) -> NDArray[Any]:
        """Return `box` stored as `axes`, in `dtype` or the weight's own; zeros where no piece lies.

        BadInput where a number is beyond `dtype`.
        """
        array = gather(box, axes, self.pieces, STORAGE_DTYPES[self.dtype])
        source = self.dtype
        try:
            if self.delta is not None:
                source = "float64" if source == "float64" else "float32"
                array = cast(array, self.dtype, source) + self.delta(box, axes)
            return cast(array, source, dtype or self.dtype)
        except OverflowError as error:
            where = self.stored[0].file.path if self.stored else None
            raise BadInput(f"{printable(self.name)} {error}", where=where, hint=_WIDER) from error

    def unchanged(self, box: Box, axes: Axes, dtype: str) -> Chunks | None:
        """Return the bytes of `box` as some file holds them, or None when none holds just those."""
        if self.dtype != dtype or self.delta is not None:
            return None
        for stored in self.stored:
            if stored.box == box and stored.axes.letters == axes.letters:
                return stored.file.chunks(stored.tensor)
        return None

    def whole(self, sizes: Mapping[str, int]) -> Box:
        """Return the box of the whole weight."""
        return {letter: (0, sizes[letter]) for letter in canonical_axes(self.name).letters}
