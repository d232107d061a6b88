"""The members of a zip archive that stores its members as they are, checked header by header.

Format: PKWARE's APPNOTE.TXT 4.3. Only what torch writes is taken: one disk, no compression, no encryption,
no comment, nothing before the first member or after the end record. Every range is inside the file and
overlaps no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gptbridge.errors import printable
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import MAX_NAME_LENGTH, MAX_TENSORS

# Signature and fields of each record, little-endian; names and extra fields follow.
END = struct.Struct("<4sHHHHIIH")
END64 = struct.Struct("<4sQHHIIQQQQ")
END64_LOCATOR = struct.Struct("<4sIQI")
CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
LOCAL = struct.Struct("<4sHHHHHIIIHH")
END_MARK, END64_MARK, LOCATOR_MARK = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
CENTRAL_MARK, LOCAL_MARK = b"PK\x01\x02", b"PK\x03\x04"
MAX_16, MAX_32 = 0xFFFF, 0xFFFFFFFF
ZIP64_FIELD = 1
_ENCRYPTED, _SIZES_FOLLOW = 1 << 0, 1 << 3
# Of the end record's six numbers; in the zip64 end record, where its own length starts to count.
_FIELDS_OF_16_BITS, _LENGTH_STARTS = 4, 12
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_MEMBERS = MAX_TENSORS + 100


@dataclass(frozen=True, slots=True)
class Member:
    """A stored member: its bytes are `nbytes` at `offset`, and their CRC-32 should be `crc32`."""

    name: str
    header_offset: int
    offset: int
    nbytes: int
    crc32: int


def read_members(source: SourceFile) -> dict[str, Member]:
    """Return the members by name, in the order of the directory; BadInput when one header lies."""
    start, size, count = _directory(source)
    members: dict[str, Member] = {}
    folded: set[str] = set()
    position = start
    for _ in range(count):
        member, position = _member(source, position, start + size)
        if member.name.casefold() in folded:
            source.refuse(f"member {printable(member.name)!r} appears twice")
        folded.add(member.name.casefold())
        members[member.name] = member
    if position != start + size:
        source.refuse("its zip directory is longer than its members")
    _check_layout(source, members, start)
    return members


def _directory(source: SourceFile) -> tuple[int, int, int]:
    """Return where the central directory starts, its bytes and its number of entries."""
    end = source.size - END.size
    mark, *short, comment = END.unpack(source.bytes_at(end, END.size, "the zip end record"))
    if mark != END_MARK or comment:
        source.refuse("does not end in a zip end record: it is cut, or bytes follow the archive")
    told = tuple(short)
    locator = end - END64_LOCATOR.size
    if source.data[max(locator, 0) : end][:4] == LOCATOR_MARK:
        end, told = _end64(source, locator, told)
    disk, first_disk, entries_here, entries, size, start = told
    if disk or first_disk or entries_here != entries or start + size != end:
        source.refuse("its zip directory is not where the end record says")
    if entries > min(_MAX_MEMBERS, size // CENTRAL.size) or size > _MAX_DIRECTORY_BYTES:
        source.refuse(f"claims {entries} zip members in {size} bytes of directory")
    return start, size, entries


def _end64(source: SourceFile, locator: int, short: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return where the zip64 end record stands and what it tells instead of the `short` record."""
    _, _, end, _ = END64_LOCATOR.unpack(source.bytes_at(locator, END64_LOCATOR.size, "the zip64 locator"))
    mark, length, _, _, *told = END64.unpack(source.bytes_at(end, END64.size, "the zip64 end record"))
    agree = all(
        narrow in (wide, MAX_16 if index < _FIELDS_OF_16_BITS else MAX_32)
        for index, (narrow, wide) in enumerate(zip(short, told, strict=True))
    )
    if mark != END64_MARK or not agree or end + _LENGTH_STARTS + length != locator:
        source.refuse("its zip64 end record is malformed")
    return end, tuple(told)


def _member(source: SourceFile, position: int, end: int) -> tuple[Member, int]:
    """Return the member of the directory entry at `position` and where the entry ends."""
    entry = CENTRAL.unpack(source.bytes_at(position, CENTRAL.size, "the zip directory"))
    mark, _, _, flags, method, _, _, crc32, *told, name_length, extra_length, comment_length = entry[:13]
    disk, header = entry[13], entry[16]
    name_start = position + CENTRAL.size
    extra_start = name_start + name_length
    stop = extra_start + extra_length + comment_length
    if mark != CENTRAL_MARK or stop > end or disk not in (0, MAX_16):
        source.refuse("its zip directory is malformed")
    raw_name = bytes(source.data[name_start:extra_start])
    name = _checked_name(source, raw_name)
    shown = printable(name)
    if flags & _ENCRYPTED:
        source.refuse(f"member {shown!r} is encrypted")
    if method:
        source.refuse(f"member {shown!r} is compressed", allowed="stored members, as torch.save writes them")
    told = [*reversed(told), header]
    wide = _wide_fields(bytes(source.data[extra_start:stop]), told.count(MAX_32))
    if wide is None:
        source.refuse(f"member {shown!r} lacks its zip64 sizes")
    nbytes, packed, header = (wide.pop(0) if value == MAX_32 else value for value in told)
    if packed != nbytes:
        source.refuse(f"member {shown!r} has two sizes, {packed} and {nbytes}")
    offset = _data_offset(source, raw_name, header, flags, (crc32, nbytes))
    return Member(name, header, offset, nbytes, crc32), stop


def _checked_name(source: SourceFile, raw: bytes) -> str:
    name = raw.decode("utf-8", errors="replace")
    parts = name.split("/")
    if len(name) > MAX_NAME_LENGTH or not name.isprintable() or "\\" in name or "\ufffd" in name:
        source.refuse(f"has a zip member with an unusable name, {printable(name, 80)!r}")
    if any(part in ("", ".", "..") for part in parts):
        source.refuse(f"has a zip member outside its folder, {printable(name, 80)!r}")
    return name


def _wide_fields(extra: bytes, count: int) -> list[int] | None:
    """Return the first `count` 64-bit values in the zip64 extra field; None if it lacks them."""
    position = 0
    while count and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        content = extra[position + 4 : position + 4 + length]
        if kind == ZIP64_FIELD and len(content) >= 8 * count:
            return list(struct.unpack_from(f"<{count}Q", content))
        position += 4 + length
    return None if count else []


def _data_offset(
    source: SourceFile, raw_name: bytes, position: int, flags: int, crc32_and_size: tuple[int, int]
) -> int:
    """Return where a member's bytes start, after checking its local header against the directory."""
    header = LOCAL.unpack(source.bytes_at(position, LOCAL.size, "a zip member's header"))
    mark, _, own_flags, method, _, _, *told, name_length, extra_length = header
    name_end: int = position + LOCAL.size + name_length
    crc32, size = crc32_and_size
    later = bool(flags & own_flags & _SIZES_FOLLOW)
    agree = all(
        value in (true, MAX_32) or (later and value == 0)
        for value, true in zip(told, (crc32, size, size), strict=True)
    )
    name = source.bytes_at(position + LOCAL.size, name_length, "a zip member's header")
    if not agree or (mark, method, name) != (LOCAL_MARK, 0, raw_name) or own_flags & _ENCRYPTED:
        shown = printable(raw_name.decode("utf-8", errors="replace"))
        source.refuse(f"member {shown!r} has a header that disagrees with the directory")
    return name_end + int(extra_length)


def _check_layout(source: SourceFile, members: dict[str, Member], directory: int) -> None:
    """Refuse junk before the first member, overlapping members, and members that reach the directory."""
    end = 0
    for member in sorted(members.values(), key=lambda member: member.header_offset):
        if member.header_offset < end or (end == 0 and member.header_offset != 0):
            source.refuse(f"member {printable(member.name)!r} overlaps another or follows junk")
        end = member.offset + member.nbytes
        if end > directory:
            source.refuse(f"member {printable(member.name)!r} reaches beyond its archive")
