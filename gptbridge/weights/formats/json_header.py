"""JSON inside weight files: bounded, without duplicate keys or NaN, refused instead of raised."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.formats.source import SourceFile

# Room for some 30,000 tensors; what 4 MiB of brackets decode to stays far below 256 MB.
MAX_JSON_BYTES = 4 << 20


def decode_object(source: SourceFile, offset: int, nbytes: int, what: str) -> dict[str, Any]:
    """Return the JSON object in a range of the file; BadInput names `what` when it is anything else."""
    if nbytes > MAX_JSON_BYTES:
        source.refuse(f"{what} takes {nbytes} bytes", allowed=f"at most {MAX_JSON_BYTES}")
    text = source.bytes_at(offset, nbytes, what)
    try:
        content = json.loads(text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except RecursionError:
        source.refuse(f"{what} nests too deeply")
    except ValueError as error:
        source.refuse(f"{what} is not JSON: {printable(error)}")
    if not isinstance(content, dict):
        source.refuse(f"{what} is not a JSON object")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"{printable(twice)!r} appears twice")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")
