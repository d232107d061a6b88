"""Write a torch distributed checkpoint as one rank saves it: a file of torch.saves, and .metadata on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptbridge.weights.formats.dcp_metadata import Place
from gptbridge.weights.formats.output import Checksum, new_file
from gptbridge.weights.formats.pickles import dcp_calls, encoder
from gptbridge.weights.formats.tensor import Entry, TensorInfo, TensorRef, Tree
from gptbridge.weights.formats.torch_writer import append_tensor

_DATA_FILE = "__0_0.distcp"
_PROTOCOL = 2

Path_ = tuple[str, ...]  # the keys that lead to a tensor in the state dict


def write_dcp(path: Path, entries: Iterable[Entry], tree: Tree = None) -> None:
    """Write .metadata at `path` and, before that, the .distcp file beside it that it describes, streaming.

    `tree` is the state dict, of dicts alone; None is a dict of the tensors by name. A tensor may stand in
    it more than once, and is written once. ValueError for one that stands nowhere.
    """
    listed = list(entries)
    content = tree if tree is not None else {info.name: TensorRef(info.name) for info, _ in listed}
    names = dict(_names(content, ()))
    if set(names.values()) != {info.name for info, _ in listed}:
        raise ValueError("the state dict and the entries differ")
    places: dict[str, tuple[TensorInfo, Place]] = {}
    with new_file(path.with_name(_DATA_FILE)) as output, Checksum() as checksum:
        for info, chunks in listed:
            start = output.position
            append_tensor(output, checksum, (info, chunks))
            size = output.position - start
            places[info.name] = info, Place((0,) * len(info.shape), info.shape, _DATA_FILE, start, size)
    with new_file(path) as output:
        output.write(_metadata({keys: places[name] for keys, name in names.items()}))


def _names(tree: Any, keys: Path_) -> Iterator[tuple[Path_, str]]:
    """Yield the keys that lead to each tensor, and its name."""
    match tree:
        case TensorRef():
            yield keys, tree.name
        case dict():
            for key, value in tree.items():
                yield from _names(value, (*keys, key))
        case _:
            raise ValueError(f"a {type(tree).__name__} is not written into a state dict")


def _metadata(places: Mapping[Path_, tuple[TensorInfo, Place]]) -> bytes:
    """Return the pickle of torch's Metadata; its names are the keys with dots between."""
    named = [(encoder.text(".".join(keys)), *place) for keys, place in places.items()]
    content = {
        "state_dict_metadata": encoder.mapping((name, _tensor(info)) for name, info, _ in named),
        "planner_data": encoder.mapping(
            (encoder.text(".".join(keys)), encoder.plain(keys)) for keys in places
        ),
        "storage_data": encoder.mapping((_index(name, place), _stored(place)) for name, _, place in named),
        "storage_meta": encoder.NONE,
    }
    return encoder.protocol(_PROTOCOL) + _object(dcp_calls.METADATA, content) + encoder.STOP


def _object(name: str, attributes: Mapping[str, bytes]) -> bytes:
    state = encoder.mapping((encoder.text(key), value) for key, value in attributes.items())
    return encoder.instance(*_split(name), state)


def _size(sizes: Sequence[int]) -> bytes:
    return encoder.call("torch", "Size", encoder.integers(sizes))


def _tensor(info: TensorInfo) -> bytes:
    chunk = {"offsets": _size((0,) * len(info.shape)), "sizes": _size(info.shape)}
    chunks = encoder.sequence([_object(dcp_calls.CHUNK, chunk)])
    content = {"properties": _properties(info), "size": _size(info.shape), "chunks": chunks}
    return _object(dcp_calls.TENSOR, content)


def _properties(info: TensorInfo) -> bytes:
    """Return the element type, and what torch writes of any plain tensor beside it."""
    get_layout = encoder.call(*_split(dcp_calls.LAYOUT), encoder.text("torch.strided"))
    contiguous = encoder.call(*_split(dcp_calls.MEMORY_FORMAT), encoder.integer(0))
    no = encoder.boolean(False)
    parts = (encoder.global_name("torch", info.dtype), get_layout, no, contiguous, no)
    return encoder.instance(*_split(dcp_calls.PROPERTIES), encoder.MARK + b"".join(parts) + encoder.TUPLE)


def _split(name: str) -> tuple[str, str]:
    module, _, kind = name.rpartition(".")
    return module, kind


def _index(name: bytes, place: Place) -> bytes:
    content = {"fqn": name, "offset": _size(place.offsets), "index": encoder.integer(0)}
    return _object(dcp_calls.INDEX, content)


def _stored(place: Place) -> bytes:
    content = {
        "relative_path": encoder.text(place.file),
        "offset": encoder.integer(place.offset),
        "length": encoder.integer(place.nbytes),
    }
    return _object(dcp_calls.STORED, content)
