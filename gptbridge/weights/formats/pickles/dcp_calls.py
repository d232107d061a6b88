"""The classes that the .metadata of a torch distributed checkpoint consists of, as plain data.

Written by torch.distributed.checkpoint (2.1 to 2.13 were read); trainers add the plans that they saved by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gptbridge.weights.formats.pickles import python_calls, torch_calls
from gptbridge.weights.formats.pickles.python_calls import Args
from gptbridge.weights.formats.pickles.values import Attributes, Global, Index, Refused, has_names, kind_of
from gptbridge.weights.formats.tensor import STORAGE_DTYPES

_ROOM = "torch.distributed.checkpoint"
METADATA = f"{_ROOM}.metadata.Metadata"
TENSOR = f"{_ROOM}.metadata.TensorStorageMetadata"
BYTES = f"{_ROOM}.metadata.BytesStorageMetadata"
PROPERTIES = f"{_ROOM}.metadata.TensorProperties"
CHUNK = f"{_ROOM}.metadata.ChunkStorageMetadata"
INDEX = f"{_ROOM}.metadata.MetadataIndex"
STORED = f"{_ROOM}.filesystem._StorageInfo"
LAYOUT = "torch.serialization._get_layout"
MEMORY_FORMAT = f"{_ROOM}.metadata._MEM_FORMAT_ENCODING"
_OBJECTS = (
    *(METADATA, TENSOR, BYTES, PROPERTIES, CHUNK, STORED),
    f"{_ROOM}.metadata.StorageMeta",
    f"{_ROOM}.planner.WriteItem",
    f"{_ROOM}.planner.TensorWriteData",
    f"{_ROOM}.planner.SavePlan",
)
_PROPERTIES = 5  # element type, layout, requires_grad, memory format, pinned


def _index(args: Args) -> Index:
    if args:
        raise Refused(f"makes a {INDEX} with arguments")
    return Index(INDEX)


def _word(name: str) -> Callable[[Args], str]:
    def make(args: Args) -> str:
        match args:
            case (int() | str(),):
                return str(args[0])
            case _:
                raise Refused(f"makes a {name} of something else than a value")

    return make


def build_state(target: object, state: object) -> None:
    """Carry out BUILD: give an object its attributes."""
    match target, state:
        case Attributes(name=name), tuple(values) if name == PROPERTIES and len(values) == _PROPERTIES:
            target.values["dtype"] = values[0]
        case Attributes(values=empty) | Index(values=empty), dict(values) if not empty and has_names(values):
            target.values = values
        case _:
            raise Refused(f"sets the state of a {kind_of(target)} to a {kind_of(state)}")


def _table() -> dict[tuple[str, str], Global]:
    functions: dict[str, Callable[[Args], object] | None] = {
        **{name: python_calls.plain_object(name) for name in _OBJECTS},
        INDEX: _index,
        **{name: _word(name) for name in (LAYOUT, MEMORY_FORMAT, f"{_ROOM}.planner.WriteItemType")},
        "torch.Size": torch_calls.FUNCTIONS["torch.Size"],
        "collections.OrderedDict": python_calls.FUNCTIONS["collections.OrderedDict"],
        **{
            f"{module}.{kind}": python_calls.FUNCTIONS["pathlib.PosixPath"]
            for module in ("pathlib", "pathlib._local")
            for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        },
    }
    entries = [Global(name, call, cost=2) for name, call in functions.items()]
    entries += [Global(f"torch.{dtype}", None, dtype) for dtype in STORAGE_DTYPES]
    return {(module, name): entry for entry in entries for module, _, name in [entry.name.rpartition(".")]}


GLOBALS: Mapping[tuple[str, str], Global] = _table()
