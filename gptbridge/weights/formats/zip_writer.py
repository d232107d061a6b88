"""Write a zip archive of stored members, streaming, as torch lays it out: bytes aligned for mapping."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from gptbridge.weights.formats.output import Checksum, OutputFile
from gptbridge.weights.formats.tensor import Chunks, TensorInfo
from gptbridge.weights.formats.zip_directory import (
    CENTRAL,
    CENTRAL_MARK,
    END,
    END64,
    END64_LOCATOR,
    END64_MARK,
    END_MARK,
    LOCAL,
    LOCAL_MARK,
    LOCATOR_MARK,
    MAX_16,
    MAX_32,
    ZIP64_FIELD,
)

# torch maps storages at this alignment; an extra field of this kind fills the local header up to it.
_ALIGNMENT, _PADDING_FIELD = 64, 0x4246
_UTF8_NAME = 1 << 11
_FIRST_OF_1980 = 1 << 5 | 1
_VERSION, _VERSION64 = 20, 45
_CRC_AT = 14  # in the local header
_END64_COUNTED = END64.size - 12


@dataclass(frozen=True, slots=True)
class _Written:
    name: bytes
    header: int
    nbytes: int
    crc32: int


class ZipWriter:
    """Appends members to `output`, which may hold something before; `finish` writes the directory."""

    def __init__(self, output: OutputFile, checksum: Checksum) -> None:
        self._output = output
        self._start = output.position
        self._checksum = checksum
        self._members: list[_Written] = []

    def add_bytes(self, name: str, content: bytes) -> None:
        """Append a member that is in memory."""
        info = TensorInfo(name, "uint8", (len(content),))
        self.add(name, info, [np.frombuffer(content, np.uint8)])

    def add(self, name: str, info: TensorInfo, chunks: Chunks) -> None:
        """Append a tensor's bytes as a member; the CRC is put into its header afterwards."""
        header = self._output.position - self._start
        self._output.write(_local_header(name.encode(), header, info.nbytes))
        self._output.write_tensor(info, chunks, self._checksum)
        crc32 = self._checksum.take()
        self._output.patch(self._start + header + _CRC_AT, struct.pack("<I", crc32))
        self._members.append(_Written(name.encode(), header, info.nbytes, crc32))

    def finish(self) -> None:
        """Write the central directory and the end records."""
        start = self._output.position - self._start
        for member in self._members:
            self._output.write(_central_header(member))
        end = self._output.position - self._start
        size, count = end - start, len(self._members)
        if end >= MAX_32 or count >= MAX_16:
            version = _VERSION64
            self._output.write(
                END64.pack(END64_MARK, _END64_COUNTED, version, version, 0, 0, count, count, size, start)
            )
            self._output.write(END64_LOCATOR.pack(LOCATOR_MARK, 0, end, 1))
        short = min(count, MAX_16)
        self._output.write(END.pack(END_MARK, 0, 0, short, short, min(size, MAX_32), min(start, MAX_32), 0))


def _local_header(name: bytes, position: int, nbytes: int) -> bytes:
    """Return a header, its CRC still 0, after which the member's bytes are aligned."""
    wide = nbytes >= MAX_32
    extra = struct.pack("<HHQQ", ZIP64_FIELD, 16, nbytes, nbytes) if wide else b""
    unpadded = position + LOCAL.size + len(name) + len(extra) + 4
    padding = -unpadded % _ALIGNMENT
    extra += struct.pack("<HH", _PADDING_FIELD, padding) + b"Z" * padding
    shown = min(nbytes, MAX_32)
    version = _VERSION64 if wide else _VERSION
    header = LOCAL.pack(
        LOCAL_MARK, version, _UTF8_NAME, 0, 0, _FIRST_OF_1980, 0, shown, shown, len(name), len(extra)
    )
    return header + name + extra


def _central_header(member: _Written) -> bytes:
    wide = [value for value in (member.nbytes, member.nbytes, member.header) if value >= MAX_32]
    extra = struct.pack(f"<HH{len(wide)}Q", ZIP64_FIELD, 8 * len(wide), *wide) if wide else b""
    version = _VERSION64 if wide else _VERSION
    size, header = min(member.nbytes, MAX_32), min(member.header, MAX_32)
    fixed = CENTRAL.pack(
        CENTRAL_MARK, version, version, _UTF8_NAME, 0, 0, _FIRST_OF_1980, member.crc32, size, size,
        len(member.name), len(extra), 0, 0, 0, 0, header,
    )  # fmt: skip
    return fixed + member.name + extra
