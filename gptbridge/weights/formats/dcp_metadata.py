"""What the .metadata of a torch distributed checkpoint says: of each tensor, its boxes and where they lie.

A pickle of one Metadata: `state_dict_metadata` {name: element type, shape, boxes}, and `storage_data`
{(name, offsets): file, offset, length}, of which a box has one entry. Only what names a tensor is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from gptbridge.errors import printable
from gptbridge.weights.formats.pickles import dcp_calls
from gptbridge.weights.formats.pickles.decoder import PickleDecoder
from gptbridge.weights.formats.pickles.values import Attributes, Global, Index
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import describe_bad_shape

SIGNATURE = b"torch.distributed.checkpoint.metadata"
_WITHIN = 128
MAX_OPCODES = 3_200_000  # what some 90,000 boxes take: more would not fit into 256 MB, if it were crafted
_SUFFIXES = (".distcp", ".safetensors")

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a box of a tensor lies: its first element and its shape, and `nbytes` at `offset` of a file."""

    offsets: Shape
    shape: Shape
    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A tensor of a distributed checkpoint."""

    dtype: str
    shape: Shape
    places: tuple[Place, ...]


def is_metadata(source: SourceFile) -> bool:
    """Tell whether a file is a pickle that begins with the class of a distributed checkpoint's metadata."""
    return source.begins(b"\x80") and source.find(SIGNATURE, 0, _WITHIN) >= 0


def read_metadata(source: SourceFile) -> dict[str, Saved]:
    """Return the tensors of a checkpoint by name; BadInput unless every box lies somewhere.

    What was saved as objects, such as a step or the state of a scheduler, is left out.
    """
    decoder = PickleDecoder(
        source,
        0,
        source.size,
        table=dcp_calls.GLOBALS,
        build_state=dcp_calls.build_state,
        max_opcodes=MAX_OPCODES,
    )
    root = decoder.decode()
    if decoder.position != source.size:
        source.refuse(f"{source.size - decoder.position} bytes follow its pickle")
    match root:
        case Attributes(
            name=dcp_calls.METADATA,
            values={"state_dict_metadata": dict(described), "storage_data": dict(stored)},
        ):
            pass
        case _:
            source.refuse("its pickle is not the Metadata of a distributed checkpoint")
    return dict(_tensors(source, described, dict(_places(source, stored))))


Places = Mapping[tuple[str, Shape], tuple[str, int, int]]


def _places(source: SourceFile, stored: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield ((name, offsets), (file, offset, length)) of every box."""
    for key, value in stored.items():
        match key, value:
            case Index(values={"fqn": str(name), "offset": tuple(offsets)}), Attributes(
                name=dcp_calls.STORED,
                values={"relative_path": str(file), "offset": int(offset), "length": int(length), **rest},
            ) if all(type(each) is int for each in offsets):
                check_file_name(source, name, file)
                if transforms := rest.get("transform_descriptors"):
                    problem = f"is stored through {printable(transforms, 80)}"
                    source.refuse(problem, tensor=name, allowed="tensors as they are")
                yield (name, offsets), (file, offset, length)
            case Index(values={"fqn": str()}), Attributes(name=dcp_calls.STORED):
                pass  # an object
            case _:
                source.refuse("an entry of its storage_data is malformed")


def check_file_name(source: SourceFile, name: str, file: str) -> None:
    """Refuse a tensor that is said to lie in anything but a file beside `source`."""
    plain = file.isprintable() and not set(file) & set("/\\:") and not file.startswith(".")
    if not plain or not file.endswith(_SUFFIXES):
        problem = f"is said to be in {printable(file, 80)!r}"
        allowed = f"the name of a file beside it that ends in {' or '.join(_SUFFIXES)}"
        source.refuse(problem, tensor=name, allowed=allowed)


def _tensors(source: SourceFile, described: Mapping[Any, Any], places: Places) -> Iterator[tuple[str, Saved]]:
    for name, value in described.items():
        match name, value:
            case str(), Attributes(name=dcp_calls.BYTES):
                continue
            case str(), Attributes(
                name=dcp_calls.TENSOR,
                values={
                    "properties": Attributes(values={"dtype": Global(dtype=str(dtype))}),
                    "size": tuple(shape),
                    "chunks": list(chunks),
                },
            ):
                if problem := describe_bad_shape(shape):
                    source.refuse(problem, tensor=name)
                found = (_place(source, name, shape, chunk, places) for chunk in chunks)
                yield name, Saved(dtype, shape, tuple(place for place in found if 0 not in place.shape))
            case _:
                source.refuse("its description is malformed", tensor=name)


def _place(source: SourceFile, name: str, whole: Shape, chunk: object, places: Places) -> Place:
    """Return where a box lies, which is inside its tensor."""

    def refuse(problem: str) -> NoReturn:
        source.refuse(f"its part at {printable(offsets, 60)} {problem}", tensor=name)

    match chunk:
        case Attributes(name=dcp_calls.CHUNK, values={"offsets": tuple(offsets), "sizes": tuple(shape)}) if (
            len(offsets) == len(shape) == len(whole)
        ):
            pass
        case _:
            source.refuse("one of its parts is malformed", tensor=name)
    for start, size, length in zip(offsets, shape, whole, strict=True):
        inside = type(start) is int and type(size) is int and 0 <= start <= start + size <= length
        if not inside:
            refuse(f"of shape {printable(shape, 60)} leaves the tensor of shape {whole}")
    if (name, offsets) not in places:
        refuse("is in no file")
    file, offset, nbytes = places[name, offsets]
    return Place(offsets, shape, file, offset, nbytes)
