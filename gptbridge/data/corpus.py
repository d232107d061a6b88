"""The embedded corpus: the source of the Python standard library of this machine, byte-level.

Real text that is always there, so that the first command works offline on a fresh machine.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokens import FlatTokens, TokenDataset, offsets_of
from gptbridge.errors import BadInput

# Installed packages are not the standard library. Tests are two thirds of it, and not all
# distributions ship them: without them the corpus is about the same everywhere.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def embedded_corpus() -> TokenDataset:
    """Return the standard library: one document a .py file, sorted by path, about 11 MB.

    Each document is the file's bytes as ids, then end-of-text. Raises BadInput where this Python
    came without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_bytes() for path in _sources(folder)]
    texts = [text for text in texts if text]
    if not texts:
        raise BadInput(
            "no source of the Python standard library here, so there is no embedded corpus",
            where=folder,
            hint="Name a dataset: -o data.path=PREFIX (gptbridge data prepare makes one)",
        )
    tokenizer = load_tokenizer("byte")
    offsets = offsets_of([len(text) + 1 for text in texts])
    ids = np.empty(int(offsets[-1]), np.uint16)
    for start, stop, text in zip(offsets[:-1], offsets[1:], texts, strict=True):
        ids[start : stop - 1] = np.frombuffer(text, np.uint8)
        ids[stop - 1] = tokenizer.end_of_text
    return TokenDataset(
        "embedded", None, FlatTokens(ids), offsets, tokenizer.identity, tokenizer.vocab_size, "byte"
    )


def _sources(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [Path(parent, name) for name in files if name.endswith(".py")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.as_posix())
