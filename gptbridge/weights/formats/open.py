"""open_weights: a weight file, or a set of them by its index or .metadata, of whatever format it is."""

from __future__ import annotations

import os
from pathlib import Path

from gptbridge.weights.formats.dcp import read_dcp, read_dcp_parts
from gptbridge.weights.formats.dcp_metadata import is_metadata
from gptbridge.weights.formats.dcp_safetensors import is_part
from gptbridge.weights.formats.detection import READERS, detect
from gptbridge.weights.formats.json_header import read_object
from gptbridge.weights.formats.numbered_slices import TENSORS, read_slices
from gptbridge.weights.formats.shards import is_index, read_shards
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.weight_file import Contents, WeightFile

_INDEX_LIMIT = 32 << 20  # bytes


def open_weights(path: str | os.PathLike[str], *, verify: bool = True) -> WeightFile:
    """Open a weight file of any format, the index of a sharded one or the .metadata of a distributed one.

    Everything that can be checked without the tensors' bytes is checked here; the CRCs that the format
    declares as well, unless `verify` is False and the caller runs `WeightFile.verify` itself. A file that
    is damaged, malicious or of no known format is BadInput; nothing in it is ever executed.
    """
    weights = WeightFile(Path(path), _contents(Path(path)))
    if verify:
        try:
            weights.verify()
        except BaseException:
            weights.close()
            raise
    return weights


def _contents(path: Path) -> list[Contents]:
    source = SourceFile(path)
    try:
        if is_metadata(source):
            return read_dcp(source)
        if not is_index(source):
            contents = [_read(source)]
            return read_dcp_parts(source) if is_part(contents[0]) else contents
        content = read_object(source, 0, source.size, "the index", limit=_INDEX_LIMIT)
        if TENSORS in content:
            return read_slices(source, content)
        contents = read_shards(source, content, _read)
    except BaseException:
        source.close()
        refuse_shrunk()
        raise
    source.close()
    return contents


def _read(source: SourceFile) -> Contents:
    return READERS[detect(source)](source)
