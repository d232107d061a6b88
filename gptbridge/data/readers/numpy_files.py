"""One-dimensional integer arrays in .npy and .npz files; nothing in them is evaluated.

.npy: magic, version (2 bytes), header length (uint16; version 2: uint32), a header in Python's
spelling, then the numbers. Source: numpy.lib.format. .npz: a zip of them.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib

import numpy as np

from gptbridge.data.readers.file_tokens import tokens_at
from gptbridge.data.tokens import FlatTokens, TokenSource
from gptbridge.errors import printable
from gptbridge.weights.formats.source import SourceFile

_MAGIC = b"\x93NUMPY"
_HEADER_LIMIT = 4096
_UNPACKED_LIMIT = 64 << 20
_DIRECTORY_LIMIT = 1 << 16  # bytes of names in a .npz: two or three are expected

# All that is accepted, and all that numpy writes for such an array (Python 2 added the L).
_HEADER = re.compile(
    rb"\{'descr': '([<>|])([iu])([1248])', 'fortran_order': (?:False|True), "
    rb"'shape': \(([0-9]{1,18})L?,\), \}\s*"
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_END_RECORD = struct.Struct("<4s8xLL2x")


def open_npy(source: SourceFile) -> TokenSource:
    """Return the array of a .npy file."""
    return _array_in(source, 0, source.size)


def open_npz(source: SourceFile, names: tuple[str, ...]) -> dict[str, TokenSource]:
    """Return those arrays of a .npz file that are named and there.

    A stored array stays in the file; a compressed one is unpacked, up to 64 MiB.
    """
    wanted = {f"{name}.npy": name for name in names}
    arrays: dict[str, TokenSource] = {}
    _check_directory(source)
    try:
        with zipfile.ZipFile(source.path) as archive:
            for member in archive.infolist():
                name = wanted.get(member.filename)
                if name is None:
                    continue
                if name in arrays:
                    source.refuse(f"holds {name!r} twice")
                arrays[name] = _member(source, archive, member)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, zlib.error) as error:
        source.refuse(f"not a sound .npz: {printable(error)}")
    return arrays


def _check_directory(source: SourceFile) -> None:
    """Refuse an archive with a huge directory before it is read; numpy writes no comment at its end."""
    end = source.bytes_at(max(0, source.size - _END_RECORD.size), _END_RECORD.size, "its end record")
    magic, size, _ = _END_RECORD.unpack(end)
    if magic != b"PK\x05\x06":
        source.refuse("not a .npz: no end record of a zip")
    if size > _DIRECTORY_LIMIT:
        source.refuse(f"its directory takes {size} bytes", allowed=f"at most {_DIRECTORY_LIMIT}")


def _member(source: SourceFile, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> TokenSource:
    what = f"{printable(member.filename)!r}"
    if member.flag_bits & 1:
        source.refuse(f"{what} is encrypted")
    if member.compress_type == zipfile.ZIP_STORED:
        local = source.bytes_at(member.header_offset, _LOCAL_HEADER.size, what)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(local)
        if magic != b"PK\x03\x04" or member.file_size != member.compress_size:
            source.refuse(f"{what} is not where the directory says")
        start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        return _array_in(source, start, start + member.file_size)
    if member.file_size > _UNPACKED_LIMIT:
        source.refuse(
            f"{what} unpacks to {member.file_size} bytes",
            allowed=f"at most {_UNPACKED_LIMIT}, or any size when stored (np.savez)",
        )
    content = archive.read(member)
    start, dtype, count = _parse_header(source, content[: _HEADER_LIMIT + 12])
    if len(content) != start + count * np.dtype(dtype).itemsize:
        source.refuse(f"{what} holds {len(content)} bytes, not {count} of {dtype}")
    return FlatTokens(np.frombuffer(content, dtype, count, start))


def _array_in(source: SourceFile, start: int, stop: int) -> TokenSource:
    """Return the array of the .npy that fills bytes `start` to `stop` of the file."""
    if not 0 <= start <= stop <= source.size:
        source.refuse("ends inside an array")
    head = source.bytes_at(start, min(stop - start, _HEADER_LIMIT + 12), "the header")
    header, dtype, count = _parse_header(source, head)
    if header + count * np.dtype(dtype).itemsize != stop - start:
        source.refuse(f"{count} numbers of {dtype} do not fill {stop - start - header} bytes")
    return tokens_at(source, start + header, count, dtype, "the array")


def _parse_header(source: SourceFile, head: bytes) -> tuple[int, str, int]:
    """Return the bytes before the numbers, their type and how many they are."""
    sizes = {b"\x01\x00": "<H", b"\x02\x00": "<L"}
    size = sizes.get(head[6:8])
    if not head.startswith(_MAGIC) or size is None or len(head) < 12:
        source.refuse(f"begins with {head[:8]!r}", allowed="a .npy array of version 1.0 or 2.0")
    begin = 8 + struct.calcsize(size)
    (length,) = struct.unpack(size, head[8:begin])
    match = _HEADER.fullmatch(head[begin : begin + length])
    if match is None or length > _HEADER_LIMIT:
        shown = printable(head[begin : begin + min(length, 100)])
        source.refuse(f"array header {shown}", allowed="one dimension, integers of 1 to 8 bytes")
    order, kind, width, count = (group.decode() for group in match.groups())
    return begin + length, f"{order}{kind}{width}", int(count)
