"""Training a vocabulary: a byte-level BPE by Hugging Face's trainer, or a Chinese one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from gptbridge.data.blocks import Position, Problem, read_blocks
from gptbridge.data.sources import Selection, Source, find_sources
from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols, write_bpe
from gptbridge.data.tokenizers.engines import bpe_merges
from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.errors import BadInput, RunFailed, UsageError

KINDS = {"bpe": 257, "jieba-bpe": 8, "cpm": 16}  # and the smallest: the bytes or special tokens, and a few


class Vocabulary(Protocol):
    """What was trained."""

    @property
    def vocab_size(self) -> int:
        """Tokens in all."""

    @property
    def identity(self) -> str:
        """The hash of all that decides an id."""


_ROOM = "A copy of the text lies beside it during training: make room for it, or give another --output"


def train_tokenizer(
    inputs: list[str],
    vocab_size: int,
    output: Path,
    *,
    kind: str = "bpe",
    json_key: str = "text",
    document_separator: str | None = None,
    selection: Selection | None = None,
    on_progress: Callable[[int, int], None] = lambda consumed, total: None,
    on_problem: Callable[[str], None] = lambda line: None,
) -> Vocabulary:
    """Train on the documents of `inputs` and write the tokenizer's files into the folder `output`.

    A `bpe` has the ids 0..255 for the bytes, then the merges in the order they were found, last end-of-text;
    `jieba-bpe` is ModelScope's kind and `cpm` CPM's. The vocabulary is smaller than `vocab_size` when the
    text has nothing left to merge. UsageError when `output` exists, BadInput for a bad document, RunFailed,
    with nothing left behind, for the disk.
    """
    _require_possible(kind, vocab_size, output)
    found = find_sources(inputs, selection)
    if notice := found.notice():
        on_problem(notice)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            made = Path(folder, "tokenizer")
            texts = _texts(found.sources, json_key, document_separator, on_progress)
            trained = _train(kind, texts, vocab_size, Path(folder, "corpus"), made)
            made.rename(output)
    except OSError as error:
        raise RunFailed(
            f"the tokenizer cannot be written: {error.strerror}",
            where=output,
            hint=_ROOM,
        ) from error
    return trained


def _require_possible(kind: str, vocab_size: int, output: Path) -> None:
    if kind not in KINDS:
        raise UsageError(f"{kind} is no kind of vocabulary", where="--kind", allowed=", ".join(KINDS))
    if vocab_size < KINDS[kind]:
        raise UsageError(f"--vocab-size {vocab_size} is too small", allowed=f"{KINDS[kind]} or more")
    if output.exists():
        raise UsageError("exists already", where=output, hint="Choose another --output")


def _train(kind: str, texts: Iterator[str], vocab_size: int, corpus: Path, folder: Path) -> Vocabulary:
    if kind != "bpe":
        from gptbridge.data.tokenizers.training_chinese import CHINESE

        return CHINESE[kind](texts, vocab_size, folder)
    with corpus.open("wb") as file:
        for text in texts:  # each followed by end-of-text, which no merge crosses
            file.write(text.encode() + END_OF_TEXT.encode())
    with _quiet_library():
        definition = _definition(bpe_merges(corpus, vocab_size))
    write_bpe(definition, folder)
    return definition


def _texts(
    sources: list[Source], json_key: str, separator: str | None, on_progress: Callable[[int, int], None]
) -> Iterator[str]:
    """Yield every document."""
    total = sum(source.size for source in sources)
    for block in read_blocks(sources, Position(), json_key=json_key, separator=separator):
        for line, text in block.payload.documents():
            if isinstance(text, Problem):
                raise BadInput(str(text), where=f"{sources[block.source].path}, line {line}")
            yield text
        on_progress(block.consumed, total)


def _definition(merges: list[tuple[bytes, bytes]]) -> BpeDefinition:
    symbols = byte_symbols()
    spelt = [
        ("".join(symbols[b] for b in left), "".join(symbols[b] for b in right)) for left, right in merges
    ]
    tokens = dict.fromkeys([*symbols, *(left + right for left, right in spelt)])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return BpeDefinition(vocabulary, tuple(spelt), {END_OF_TEXT: len(vocabulary)}, end=END_OF_TEXT)


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Drop what the library prints of its progress: below Python, straight to both descriptors."""
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    try:
        yield
    finally:
        for number, handle in zip((1, 2), kept, strict=True):
            os.dup2(handle, number)
        for handle in (*kept, nowhere):
            os.close(handle)
