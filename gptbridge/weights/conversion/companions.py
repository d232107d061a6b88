"""The files that go along with converted weights: configuration, tokenizer, pointers."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import yaml

from gptbridge.files import read_limited, write_json, write_synced
from gptbridge.weights.conversion.target import Target, TargetFile, holds_lora
from gptbridge.weights.opening import Opened

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "gpt2-vocab.json",
    "gpt2-merges.txt",
    "vocab.txt",
    "sentencepiece.model",
    "spiece.model",
    "tokenizer.model",
)
COPIED = (*TOKENIZER_FILES, "generation_config.json")
_MAX_TOKENIZER_BYTES = 64 << 20


def write_companions(source: Opened, target: Target, files: Sequence[TargetFile], folder: Path) -> list[str]:
    """Write the configuration and copy the source's tokenizer; return the names of the files.

    `files` are the weight files in `folder` that they accompany.
    """
    written = []
    for name, content in target.dialect.companions(target, files).items():
        _write(folder / name, content)
        written.append(name)
    adapters = target.dialect.adapters
    if target.lora is not None and adapters is not None and not holds_lora(target.layout):
        written += adapters.write(target.lora, target.model, target.dtypes, folder)
    for name in COPIED:
        if name not in written and _is_plain(source.folder / name):
            content = read_limited(source.folder / name, _MAX_TOKENIZER_BYTES, "a tokenizer")
            write_synced(folder / name, content)
            written.append(name)
    return written


def _write(path: Path, content: object) -> None:
    """Write bytes and text as they are, data as JSON or YAML, whichever the name ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        write_synced(path, content)
    elif isinstance(content, str):
        write_synced(path, content.encode())
    elif path.suffix == ".json":
        write_json(path, content)
    else:
        write_synced(path, yaml.safe_dump(content, sort_keys=False).encode())


def _is_plain(path: Path) -> bool:
    """Tell whether `path` is a regular file of a size that a tokenizer may have."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and 0 < status.st_size <= _MAX_TOKENIZER_BYTES
