"""nanoGPT's raw .bin: uint16 tokens, with llm.c's header before them or without. A file is one document."""

from __future__ import annotations

import re
import struct
from contextlib import closing
from pathlib import Path

import numpy as np

from gptbridge.data.readers.file_tokens import open_ids
from gptbridge.data.tokens import Ids, TokenDataset
from gptbridge.errors import BadInput
from gptbridge.weights.formats.source import SourceFile

# A raw file has no mark of its own, so it must not bear another's: four bytes or more, which is
# more than chance puts at the begin of a text.
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"MMIDIDX": "a Megatron index",
    b"SQLite format 3": "an SQLite database",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"version https://": "a Git LFS pointer",
    b"<!DOCTYPE": "HTML",
    b"<!doctype": "HTML",
    b"<html": "HTML",
    (20240326).to_bytes(4, "little"): "weights of llm.c",
    (20240327).to_bytes(4, "little"): "what llm.c compares its weights with",
    (20240328).to_bytes(4, "little"): "a tokenizer of llm.c",
}
# How a pickle begins: a long number, a dict, a frame, a class; and safetensors: a length, then JSON.
_FORMS = {
    re.compile(rb"\x80[\2-\5](?:\x8a\x0a|\}q|\x95.{6}\0\0|ccoll)", re.DOTALL): "a pickle",
    re.compile(rb".{4}\0{4}\{[\s\"]", re.DOTALL): "a safetensors file",
}

# Weights that are damaged bear no mark either, but a name.
_WEIGHTS = re.compile(
    r"(\w+_)?model(\.\w+)?(-\d+-of-\d+)?|(optimizer|scheduler|training_args|rng_state|random_states)\w*"
)

# llm.c's files: 256 numbers (int32) before the tokens: a magic that tells their type, a version, their count.
_LLM_C = {20240520: "<u2", 20240801: "<u4"}
_LLM_C_HEADER = struct.Struct("<iii")
_LLM_C_BYTES = 1024

# Halves of uint32 ids alternate: the high ones are this small up to a vocabulary of a million.
_HIGH_HALVES = 16
_SAMPLE = 1 << 16  # tokens; fewer than _FEW tell nothing
_FEW = 16


def open_nanogpt(prefix: Path) -> TokenDataset:
    """Open PREFIX.bin as uint16 tokens, or what llm.c's header says; BadInput for visibly something else."""
    path = prefix.with_name(f"{prefix.name}.bin")
    with closing(SourceFile(path)) as source:
        dtype, offset, count = _llm_c(source)
        other = _other(path, source.bytes_at(0, min(32, source.size), "its begin"))
    if other:
        raise BadInput(f"is {other}, not raw uint16 tokens", where=path)
    ids = open_ids(path, dtype, offset)
    if count not in (None, len(ids)):
        raise BadInput(f"its header counts {count} tokens, {len(ids)} follow", where=path)
    if count is None and (problem := _implausible(ids.read(0, _SAMPLE))):
        raise BadInput(
            problem,
            where=path,
            allowed="raw uint16 tokens",
            hint="Wider ids belong into a Megatron dataset, which tells its type: gptbridge data prepare",
        )
    if prefix.with_name(f"{prefix.name}.tokenizer").exists():
        raise BadInput(
            "is missing, and `gptbridge data prepare` wrote one",
            where=prefix.with_name(f"{prefix.name}.idx"),
            hint="Copy it from where the dataset was prepared, or prepare the text again",
        )
    return TokenDataset("nanogpt", str(path), ids, np.array([0, len(ids)], np.int64), files=(path,))


def may_hold_tokens(path: Path) -> bool:
    """Tell whether `path` bears no other format's mark and no weights' name; False where it can't be read."""
    try:
        with closing(SourceFile(path)) as source:
            return _other(path, bytes(source.data[:32])) is None
    except BadInput:
        return False


def _llm_c(source: SourceFile) -> tuple[str, int, int | None]:
    """Return the type of the tokens, where they begin, and how many a header says that they are."""
    if source.size >= _LLM_C_BYTES:
        magic, version, count = _LLM_C_HEADER.unpack(source.bytes_at(0, _LLM_C_HEADER.size, "its header"))
        if magic in _LLM_C:
            if version != 1:
                source.refuse(f"version {version} of llm.c's header", allowed="1")
            return _LLM_C[magic], _LLM_C_BYTES, count
    return "<u2", 0, None


def _implausible(ids: Ids) -> str | None:
    """Return what the first ids of a file without a header are instead of 16-bit tokens."""
    if len(ids) < _FEW:
        return None
    low, high = ids[0::2], int(ids[1::2].max())
    if not high and not low.any():
        return "holds nothing but zeros"
    common = np.count_nonzero(low) > len(low) // 3  # else it is a text of one token, not halves of ids
    if common and (not high or (high < _HIGH_HALVES and low.max() >= 256)):
        return (
            f"looks like wider ids: of every two tokens the second is at most {high}, as halves of uint32 are"
        )
    if common and not ids[2::4].any() and not ids[3::4].any():
        return "looks like wider ids: of every four tokens two are 0, as in ids of 64 bits"
    return None


def _other(path: Path, start: bytes) -> str | None:
    """Return what a file that begins with `start` visibly is instead of raw tokens."""
    if _WEIGHTS.fullmatch(path.name.removesuffix(".bin")):
        return "a weight file by its name"
    named = (name for magic, name in _OTHERS.items() if start.startswith(magic))
    return next(named, next((name for form, name in _FORMS.items() if form.match(start)), None))
