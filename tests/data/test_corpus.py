from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from gptbridge.data.corpus import embedded_corpus
from gptbridge.data.dataset import open_dataset
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BadInput


def test_the_corpus_is_real_text_of_about_eleven_megabytes() -> None:
    corpus = open_dataset(None)
    assert 8e6 < corpus.tokens < 16e6
    assert corpus.documents > 400
    assert (corpus.tokenizer_identity, corpus.vocab_size) == (load_tokenizer("byte").identity, 257)
    assert corpus.digest == embedded_corpus().digest


def test_each_document_is_a_file_and_ends_with_end_of_text() -> None:
    corpus = embedded_corpus()
    wanted = (Path(sysconfig.get_path("stdlib")) / "abc.py").read_bytes()
    offset = next(
        begin
        for begin, length in zip(corpus.offsets, corpus.lengths, strict=False)
        if length == len(wanted) + 1
        and corpus.source.read(begin, begin + length - 1).astype(np.uint8).tobytes() == wanted
    )
    assert corpus.source.read(offset + len(wanted), offset + len(wanted) + 1).tolist() == [256]
    ids = corpus.source.read(0, corpus.tokens)
    assert int((ids == 256).sum()) == corpus.documents
    assert (ids[corpus.offsets[1:] - 1] == 256).all()


def test_installed_packages_and_tests_are_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.py", "a/z.py", "a.py", "site-packages/p.py", "test/t.py", "x/tests/t.py", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.py").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    corpus = embedded_corpus()
    text = corpus.source.read(0, corpus.tokens)
    assert load_tokenizer("byte").decode(text).split("<|endoftext|>") == ["a.py", "a/z.py", "b.py", ""]


def test_a_python_without_its_sources_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(BadInput, match=r"data\.path=PREFIX"):
        open_dataset(None)
