"""JSON inside weight files: bounded, plain, and refused in the name of its file."""

from __future__ import annotations

from typing import Any

from gptbridge.errors import printable
from gptbridge.files import decode_object
from gptbridge.weights.formats.source import SourceFile

# Room for some 30,000 tensors; what 4 MiB of brackets decode to stays far below 256 MB.
MAX_JSON_BYTES = 4 << 20


def read_object(
    source: SourceFile, offset: int, nbytes: int, what: str, *, limit: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Return the JSON object in a range of the file; BadInput names `what` when it is anything else."""
    if nbytes > limit:
        source.refuse(f"{what} takes {nbytes} bytes", allowed=f"at most {limit}")
    try:
        return decode_object(source.bytes_at(offset, nbytes, what))
    except ValueError as error:
        source.refuse(f"{what} is not JSON: {printable(error)}")
