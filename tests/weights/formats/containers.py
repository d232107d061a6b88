"""Containers of the formats, built by hand around any content."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence

from gptbridge.weights.formats.torch_legacy import MAGIC_NUMBER, VERSION


def torch_zip(content: bytes, storages: Mapping[str, bytes] | None = None, root: str = "archive") -> bytes:
    """A torch zip with any pickle and storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", content)
        archive.writestr(f"{root}/byteorder", "little")
        for key, raw in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", raw)
        archive.writestr(f"{root}/version", "3\n")
    return buffer.getvalue()


def legacy(content: bytes, storages: Mapping[str, tuple[int, bytes]] | None = None) -> bytes:
    """A legacy torch file with any object pickle; each storage gives its count and its bytes."""
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC_NUMBER, VERSION, {"little_endian": True}))
    listed = storages or {}
    tail = b"".join(struct.pack("<q", count) + raw for count, raw in listed.values())
    return head + content + pickle.dumps(list(listed), 2) + tail


def tensor_pickle(
    *,
    name: str = "w",
    storage: str = "FloatStorage",
    key: str = "0",
    count: int = 12,
    offset: int = 0,
    shape: Sequence[object] = (3, 4),
    strides: Sequence[object] = (4, 1),
    metadata: Mapping[str, bool] | None = None,
) -> bytes:
    """The pickle {name: tensor} as torch writes it, with nothing checked."""

    def value(content: object) -> bytes:
        return pickle.dumps(content, 2)[2:-1]

    head = b"\x80\x02}" + value(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
    reference = b"(" + value("storage") + b"ctorch\n" + storage.encode() + b"\n"
    reference += value(key) + value("cpu") + value(count) + b"tQ"
    rest = value(offset) + value(tuple(shape)) + value(tuple(strides)) + b"\x89}"
    return head + reference + rest + (value(metadata) if metadata else b"") + b"tRs."
