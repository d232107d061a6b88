"""From a path to a token dataset: which files it has, which format they are, several joined."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptbridge.data.corpus import embedded_corpus
from gptbridge.data.readers.megatron import open_megatron
from gptbridge.data.readers.mindrecord import open_mindrecord
from gptbridge.data.readers.nanogpt import may_hold_tokens, open_nanogpt
from gptbridge.data.readers.paddlenlp import open_paddlenlp, open_paddlenlp_npz
from gptbridge.data.tokens import ChainedTokens, TokenDataset, offsets_of
from gptbridge.errors import BadInput
from gptbridge.files import list_folder, nearby

__all__ = ["TokenDataset", "is_dataset", "joined", "open_dataset"]

_ALLOWED = (
    "the PREFIX of .bin and .idx or of _ids.npy and _idx.npz, a .bin, a .mindrecord, or a folder of them"
)
_TEXTS = (".jsonl", ".json", ".txt", ".tsv", ".csv")
_OF_TEXT = (
    "gptbridge data prepare makes one of text; records are for -o task.name=instruction or classification"
)


@dataclass(frozen=True)
class _Format:
    """How a dataset of a format is found: by the name of the one file that it is never without."""

    file: re.Pattern[str]  # group 1 is what `open` takes
    open: Callable[[Path], TokenDataset]
    endings: tuple[str, ...]  # of group 1, in the names that a user may call the dataset


_FORMATS = (
    _Format(re.compile(r"(.+)\.idx"), open_megatron, ("", ".idx", ".bin")),
    _Format(re.compile(r"(.+)_ids\.npy"), open_paddlenlp, ("", "_ids.npy", "_idx.npz")),
    _Format(re.compile(r"(.+)_ids\.npz"), open_paddlenlp_npz, ("", "_ids.npz")),
    _Format(re.compile(r"(.+\.mindrecord\d*)"), open_mindrecord, ("", ".db")),
    _Format(re.compile(r"(.+)\.bin"), open_nanogpt, ("", ".bin")),
)


@dataclass(frozen=True)
class _Found:
    """A dataset that lies in a folder, not opened yet."""

    format: _Format
    file: Path
    stem: Path  # what `format.open` takes

    def is_called(self, name: str) -> bool:
        """Tell whether `name` means this dataset; X and X.mindrecord mean all files X.mindrecord0, ..."""
        names = {self.stem.name + ending for ending in self.format.endings}
        if self.format.open is open_mindrecord:
            whole = self.stem.name.rstrip("0123456789")
            names |= {whole, whole.removesuffix(".mindrecord")}
        return name in names


def open_dataset(path: str | None) -> TokenDataset:
    """Open the token dataset at `path`: a prefix, one of its files, or a folder of datasets.

    A folder's datasets are joined in the order of their names; they must be of one format and one
    tokenizer. None: the embedded corpus. Raises BadInput for whatever is missing, damaged or
    something else. The ids themselves are not looked at: every batch and `data inspect` do that.
    """
    if path is None:
        return embedded_corpus()
    given = Path(path)
    found = _find(given)
    if not found:
        here = os.path.lexists(given)
        problem = "no token dataset here" if here else "no such token dataset"
        hint = _OF_TEXT if given.suffix in _TEXTS else None
        raise BadInput(problem, where=path, allowed=_ALLOWED, hint=hint if here else nearby(given))
    if len({one.format.open for one in found}) > 1:
        names = ", ".join(sorted(one.stem.name for one in found)[:4])
        raise BadInput(
            f"token datasets of several formats here: {names}",
            where=path,
            hint="Name the file of one of them",
        )
    datasets = [one.format.open(one.stem) for one in found]
    dataset = datasets[0] if len(datasets) == 1 else joined(path, datasets)
    if dataset.tokens == 0:
        raise BadInput("holds no token", where=path)
    return dataset


def is_dataset(path: Path) -> bool:
    """Tell whether `path` means token datasets: a prefix, a file of one, or a folder of them.

    Their names say it; of a raw .bin, which may as well hold weights, its first bytes too.
    """
    return any(one.format.open is not open_nanogpt or may_hold_tokens(one.file) for one in _find(path))


def _find(path: Path) -> list[_Found]:
    """Return the datasets that `path` means, sorted by name."""
    if path.is_dir():
        return list(_datasets_in(path))
    return [one for one in _datasets_in(path.parent) if one.is_called(path.name)]


def _datasets_in(folder: Path) -> Iterator[_Found]:
    """Yield the datasets of a folder, sorted by name; a .bin is raw only where no .idx goes with it."""
    names = dict.fromkeys(list_folder(folder) if folder.is_dir() else ())
    for name in names:
        for format_ in _FORMATS:
            match = format_.file.fullmatch(name)
            if match and not (format_.open is open_nanogpt and f"{match[1]}.idx" in names):
                yield _Found(format_, folder / name, folder / match[1])
                break


def joined(path: str, datasets: list[TokenDataset]) -> TokenDataset:
    """Return the documents of all `datasets`, one after the other, as one that is called `path`.

    BadInput where they were made with different tokenizers.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if (other.tokenizer_identity, other.vocab_size) != (first.tokenizer_identity, first.vocab_size):
            raise BadInput(
                f"{first.where} and {other.where} were made with different tokenizers",
                where=path,
                hint="Name one of them, or prepare both with the same tokenizer",
            )
    return TokenDataset(
        first.format,
        path,
        ChainedTokens([dataset.source for dataset in datasets]),
        offsets_of(np.concatenate([dataset.lengths for dataset in datasets])),
        first.tokenizer_identity,
        first.vocab_size,
        first.tokenizer,
        tuple(file for dataset in datasets for file in dataset.files),
    )
