"""Write a torch distributed checkpoint as one rank saves it: a file of torch.saves, and .metadata on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptbridge.weights.formats.dcp_metadata import Place, Saved
from gptbridge.weights.formats.output import Checksum, new_file
from gptbridge.weights.formats.pickles import dcp_calls, encoder
from gptbridge.weights.formats.tensor import Entry, TensorRef, Tree
from gptbridge.weights.formats.torch_writer import append_tensor

_DATA_FILE = "__0_0.distcp"
_PROTOCOL = 2

Keys = tuple[str, ...]  # those that lead to a tensor in the state dict


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
    saved: dict[str, Saved] = {}
    with new_file(path.with_name(_DATA_FILE)) as output, Checksum() as checksum:
        for info, chunks in listed:
            start = output.position
            append_tensor(output, checksum, (info, chunks))
            place = Place((0,) * len(info.shape), info.shape, _DATA_FILE, start, output.position - start)
            saved[info.name] = Saved(info.dtype, info.shape, (place,))
    with new_file(path) as output:
        output.write(encode_metadata({keys: saved[name] for keys, name in names.items()}))


def _names(tree: Any, keys: Keys) -> Iterator[tuple[Keys, str]]:
    """Yield the keys that lead to each tensor, and its name."""
    match tree:
        case TensorRef():
            yield keys, tree.name
        case dict():
            for key, value in tree.items():
                yield from _names(value, (*keys, key))
        case _:
            raise ValueError(f"a {type(tree).__name__} is not written into a state dict")


def encode_metadata(tensors: Mapping[Keys, Saved]) -> bytes:
    """Return the pickle of torch's Metadata; a tensor's name is its keys with dots between."""
    named = [(encoder.text(".".join(keys)), tensor) for keys, tensor in tensors.items()]
    paths = ((encoder.text(".".join(keys)), encoder.plain(keys)) for keys in tensors)
    places = ((name, number, place) for name, tensor in named for number, place in enumerate(tensor.places))
    content = {
        "state_dict_metadata": encoder.mapping((name, _tensor(tensor)) for name, tensor in named),
        "planner_data": encoder.mapping(paths),
        "storage_data": encoder.mapping((_index(*place), _stored(place[2])) for place in places),
        "storage_meta": encoder.NONE,
    }
    return encoder.protocol(_PROTOCOL) + _object(dcp_calls.METADATA, content) + encoder.STOP


def _name(name: str) -> tuple[str, str]:
    module, _, kind = name.rpartition(".")
    return module, kind


def _object(name: str, attributes: Mapping[str, bytes]) -> bytes:
    state = encoder.mapping((encoder.text(key), value) for key, value in attributes.items())
    return encoder.instance(*_name(name), state)


def _size(sizes: Sequence[int]) -> bytes:
    return encoder.call("torch", "Size", encoder.integers(sizes))


def _tensor(tensor: Saved) -> bytes:
    chunks = [{"offsets": _size(place.offsets), "sizes": _size(place.shape)} for place in tensor.places]
    content = {
        "properties": _properties(tensor.dtype),
        "size": _size(tensor.shape),
        "chunks": encoder.sequence(_object(dcp_calls.CHUNK, chunk) for chunk in chunks),
    }
    return _object(dcp_calls.TENSOR, content)


def _properties(dtype: str) -> bytes:
    """Return the element type, and what torch writes of any plain tensor beside it."""
    layout = encoder.call(*_name(dcp_calls.LAYOUT), encoder.text("torch.strided"))
    contiguous = encoder.call(*_name(dcp_calls.MEMORY_FORMAT), encoder.integer(0))
    no = encoder.boolean(False)
    parts = (encoder.global_name("torch", dtype), layout, no, contiguous, no)
    state = encoder.MARK + b"".join(parts) + encoder.TUPLE
    return encoder.instance(*_name(dcp_calls.PROPERTIES), state)


def _index(name: bytes, number: int, place: Place) -> bytes:
    content = {"fqn": name, "offset": _size(place.offsets), "index": encoder.integer(number)}
    return _object(dcp_calls.INDEX, content)


def _stored(place: Place) -> bytes:
    content = {
        "relative_path": encoder.text(place.file),
        "offset": encoder.integer(place.offset),
        "length": encoder.integer(place.nbytes),
    }
    return _object(dcp_calls.STORED, content)
