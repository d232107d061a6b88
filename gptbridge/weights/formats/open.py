"""open_weights: a weight file, or a set of them by its index or .metadata, of whatever format it is.

The format is told from a file's first bytes; names and suffixes are not asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from gptbridge.weights.formats.ckpt import CRC_MARK, read_ckpt
from gptbridge.weights.formats.dcp import read_dcp, read_dcp_parts
from gptbridge.weights.formats.dcp_metadata import is_metadata
from gptbridge.weights.formats.dcp_safetensors import is_part
from gptbridge.weights.formats.json_header import read_object
from gptbridge.weights.formats.numbered_slices import TENSORS, read_slices
from gptbridge.weights.formats.paddle_tensor import is_paddle_tensor, read_paddle_tensor
from gptbridge.weights.formats.pdparams import read_pdparams
from gptbridge.weights.formats.safetensors import read_safetensors
from gptbridge.weights.formats.shards import is_index, read_shards
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.torch_legacy import MAGIC_BYTES, read_torch_legacy
from gptbridge.weights.formats.torch_zip import read_torch_zip
from gptbridge.weights.formats.weight_file import Contents, WeightFile
from gptbridge.weights.formats.zip_directory import LOCAL_MARK

Reader = Callable[[SourceFile], Contents]
READERS: Mapping[str, Reader] = {
    "safetensors": read_safetensors,
    "torch": read_torch_zip,
    "torch-legacy": read_torch_legacy,
    "pdparams": read_pdparams,
    "paddle-tensor": read_paddle_tensor,
    "ckpt": read_ckpt,
}
_ENCRYPTED = "an encrypted MindSpore checkpoint: save it again without enc_key"
# What people hand in by mistake: where the bytes stand, the bytes, what the file is.
_OTHER_FILES = (
    (0, b"\xd8^:\x7f", _ENCRYPTED),
    (0, b"\xd9^:\x7f", _ENCRYPTED),
    (0, b"\xda^:\x7f", _ENCRYPTED),
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"),
    (0, b"<", "a web page or XML, not weights"),
    (0, b"{", "JSON, not weights"),
    (0, b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (0, b"(\xb5/\xfd", "compressed with zstd: unpack it first"),
    (0, b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy .npy file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (257, b"ustar", "a tar archive, such as torch wrote before 0.1.10"),
)
_HEADER_LENGTH_BYTES = 8
_MAGIC_WITHIN = 32

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
        with closing(source):
            refuse_shrunk()
        raise
    source.close()
    return contents


def _read(source: SourceFile) -> Contents:
    return READERS[_detect(source)](source)


def _detect(source: SourceFile) -> str:
    """Return a name of READERS; BadInput that says what the file is when it is no weight file."""
    name = next((name for name, is_format in _TESTS if is_format(source)), None)
    if name is None:
        for offset, signature, meaning in _OTHER_FILES:
            if source.begins(signature, offset):
                source.refuse(f"is {meaning}")
        source.refuse("is no weight file", allowed=", ".join(READERS))
    return name


def _is_safetensors(source: SourceFile) -> bool:
    # Its first bytes are a length and may be any other format's signature: ask for the brace behind it.
    length = int.from_bytes(source.data[:_HEADER_LENGTH_BYTES], "little")
    return source.begins(b"{", _HEADER_LENGTH_BYTES) and length < source.size


def _is_torch_zip(source: SourceFile) -> bool:
    return source.begins(LOCAL_MARK)


def _is_torch_legacy(source: SourceFile) -> bool:
    # A frame may stand between the protocol and the number.
    return source.find(MAGIC_BYTES, 0, _MAGIC_WITHIN) >= 0


def _is_pickle(source: SourceFile) -> bool:
    return source.begins(b"\x80")


def _is_ckpt(source: SourceFile) -> bool:
    # Without parameters there is only the CRC.
    return source.begins(b"\n") or source.begins(CRC_MARK)


_TESTS: Sequence[tuple[str, Callable[[SourceFile], bool]]] = (
    ("safetensors", _is_safetensors),
    ("torch", _is_torch_zip),
    ("torch-legacy", _is_torch_legacy),
    ("pdparams", _is_pickle),
    ("paddle-tensor", is_paddle_tensor),
    ("ckpt", _is_ckpt),
)
