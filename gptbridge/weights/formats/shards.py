"""Weights in several files: the index that names each tensor's file, read and written.

Format: {"metadata": {...}, "weight_map": {TENSOR: FILE}}, beside its shards; the map alone in those
that MindSpore's first releases merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.formats.output import new_file
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Entry, TensorInfo
from gptbridge.weights.formats.weight_file import Contents

SHARD_BYTES = 5_000_000_000
_MAX_SHARDS = 4096
_SUFFIXES = (".safetensors", ".bin", ".pdparams", ".ckpt")


def is_index(source: SourceFile) -> bool:
    """Whether the file is JSON; no weight file starts with a brace."""
    return source.begins(b"{")


def read_shards(
    index: SourceFile, content: Mapping[str, Any], read: Callable[[SourceFile], Contents]
) -> list[Contents]:
    """Open each file that an index, whose JSON is `content`, names beside it; check that it holds just that.

    When one is refused, those that were opened are closed.
    """
    files = _files(index, content)
    opened: list[Contents] = []
    try:
        for name, tensors in files.items():
            source = SourceFile(index.path.with_name(name))
            try:
                contents = read(source)
                _check_tensors(contents, tensors)
            except BaseException:
                source.close()
                raise
            opened.append(contents)
    except BaseException:
        for contents in opened:
            contents.source.close()
        raise
    return opened


def _files(index: SourceFile, content: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the tensors that the index puts into each file, in the order of the index."""
    names = content.values()
    bare = all(isinstance(name, str) and _is_plain(name) for name in names)
    weight_map = content if bare else content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        index.refuse("is JSON without a weight_map: give a weight file, its index or their folder")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain(name):
            problem = f"is said to be in {printable(name, 80)!r}"
            index.refuse(problem, tensor=tensor, allowed="the name of a weight file beside the index")
        files.setdefault(name, set()).add(tensor)
    if len(files) > _MAX_SHARDS:
        index.refuse(f"names {len(files)} files", allowed=f"at most {_MAX_SHARDS}")
    return files


def _is_plain(name: str) -> bool:
    plain = name.isprintable() and not set(name) & set("/\\:") and not name.startswith(".")
    return plain and name.endswith(_SUFFIXES)


def _check_tensors(contents: Contents, expected: set[str]) -> None:
    missing, extra = expected - contents.tensors.keys(), contents.tensors.keys() - expected
    if missing:
        contents.source.refuse("is missing, though the index puts it here", tensor=min(missing))
    if extra:
        contents.source.refuse("is here, though the index does not put it here", tensor=min(extra))


def write_sharded(
    folder: Path,
    stem: str,
    suffix: str,
    entries: Iterable[Entry],
    write: Callable[[Path, list[Entry]], None],
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write entries into `folder` as STEM.SUFFIX, or as shards of at most `shard_bytes` and an index.

    `suffix` is without a dot. Returns the files written, the index last. Each file is complete or absent;
    for the set to be so, write into a folder that is renamed when this returns.
    """
    contents = {entry[0].name: entry for entry in entries}
    files = shard_files(stem, suffix, [info for info, _ in contents.values()], shard_bytes)
    for name, infos in files.items():
        write(folder / name, [contents[info.name] for info in infos])
    return [*(folder / name for name in files), *write_index(folder, stem, suffix, files)]


def shard_files(
    stem: str, suffix: str, infos: Iterable[TensorInfo], shard_bytes: int = SHARD_BYTES
) -> dict[str, list[TensorInfo]]:
    """Return what each file holds: STEM.SUFFIX, or shards of at most `shard_bytes`.

    A larger tensor has a file of its own.
    """
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in infos:
        if shards[-1] and size + info.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += info.nbytes
    if len(shards) == 1:
        return {f"{stem}.{suffix}": shards[0]}
    return {f"{stem}-{n:05d}-of-{len(shards):05d}.{suffix}": shard for n, shard in enumerate(shards, start=1)}


def write_index(
    folder: Path, stem: str, suffix: str, files: Mapping[str, Sequence[TensorInfo]]
) -> list[Path]:
    """Write the index of several files; return its path, or nothing where one file needs none."""
    if len(files) == 1:
        return []
    index = folder / f"{stem}.{suffix}.index.json"
    total = sum(info.nbytes for infos in files.values() for info in infos)
    weight_map = {info.name: name for name, infos in files.items() for info in infos}
    content: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with new_file(index) as output:
        output.write((json.dumps(content, indent=2) + "\n").encode())
    return [index]
