"""What the formats' own writers write is read as it was meant."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge.data.dataset import TokenDataset, open_dataset
from gptbridge.data.prepare import prepare
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokens import Ids
from gptbridge.errors import BadInput
from tests.data.token_files import MEGATRON_CODES, write_megatron, write_paddlenlp

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6, 7, 8, 9, 10], [11, 12]]

# some documents, at least one of them with a token
TOKENS = st.lists(st.lists(st.integers(0, 127), max_size=12), min_size=1, max_size=12).filter(any)


def documents_of(dataset: TokenDataset) -> list[list[int]]:
    return [dataset.source.read(begin, end).tolist() for begin, end in pairwise(dataset.offsets.tolist())]


@given(TOKENS, st.sampled_from(sorted(MEGATRON_CODES)), st.booleans())
@settings(deadline=None, max_examples=50)
def test_megatron(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: str, modes: bool
) -> None:
    prefix = tmp_path_factory.mktemp("megatron") / "set"
    write_megatron(prefix, documents, dtype, modes=modes)
    dataset = open_dataset(str(prefix))
    assert documents_of(dataset) == documents
    assert dataset.source.dtype == np.dtype(dtype)
    assert (dataset.format, dataset.documents) == ("megatron", len(documents))
    assert (dataset.tokenizer_identity, dataset.vocab_size) == (None, None)


def test_megatron_documents_of_several_sequences(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS, documents=[0, 2, 2, 5])
    assert documents_of(open_dataset(str(tmp_path / "set"))) == [
        [1, 2, 3, 4],
        [],
        [5, 6, 7, 8, 9, 10, 11, 12],
    ]


def test_what_data_prepare_writes_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    prepare([str(tmp_path / "a.txt")], "byte", tmp_path / "set")
    dataset = open_dataset(str(tmp_path / "set"))
    byte = load_tokenizer("byte")
    assert [byte.decode(document) for document in documents_of(dataset)] == ["one\n\ntwo\n"]
    assert (dataset.tokenizer_identity, dataset.vocab_size) == (byte.identity, 257)
    assert dataset.tokenizer is not None
    assert load_tokenizer(dataset.tokenizer).identity == byte.identity


@given(TOKENS, st.sampled_from(["uint16", "int32", "int64", ">u2"]), st.booleans())
@settings(deadline=None, max_examples=50)
def test_paddlenlp(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: str, compressed: bool
) -> None:
    prefix = tmp_path_factory.mktemp("paddlenlp") / "set"
    write_paddlenlp(prefix, documents, dtype)
    if compressed:
        lengths = np.array([len(document) for document in documents], np.int32)
        np.savez_compressed(f"{prefix}_idx.npz", lens=lengths, sents=np.zeros(3, np.int64))
    assert documents_of(open_dataset(str(prefix))) == documents


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_older_single_npz(tmp_path: Path, save: object) -> None:
    assert callable(save)
    lengths = np.array([len(document) for document in DOCUMENTS])
    save(tmp_path / "set_ids.npz", ids=np.arange(1, 13, dtype=np.uint16), lens=lengths)
    assert documents_of(open_dataset(str(tmp_path / "set"))) == DOCUMENTS


def test_nanogpt_is_one_document_a_file(tmp_path: Path) -> None:
    np.array([5, 6, 65535], np.uint16).tofile(tmp_path / "train.bin")
    np.array([7, 8], np.uint16).tofile(tmp_path / "val.bin")
    (tmp_path / "meta.pkl").write_bytes(b"never opened")
    assert documents_of(open_dataset(str(tmp_path / "train.bin"))) == [[5, 6, 65535]]
    assert documents_of(open_dataset(str(tmp_path))) == [[5, 6, 65535], [7, 8]]


@pytest.mark.parametrize("name", ["set", "set.idx", "set.bin"])
def test_a_dataset_answers_to_its_prefix_and_to_its_files(tmp_path: Path, name: str) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    write_megatron(tmp_path / "set2", [[9]])
    dataset = open_dataset(str(tmp_path / name))
    assert (dataset.format, documents_of(dataset)) == ("megatron", DOCUMENTS)


def test_a_prefix_may_have_dots_and_lie_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_megatron(tmp_path / "wiki.v1.2", DOCUMENTS)
    monkeypatch.chdir(tmp_path)
    assert documents_of(open_dataset("wiki.v1.2")) == DOCUMENTS


def test_links_are_followed(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    for ending in ("bin", "idx"):
        (tmp_path / f"link.{ending}").symlink_to(tmp_path / f"set.{ending}")
    assert documents_of(open_dataset(str(tmp_path / "link"))) == DOCUMENTS


def test_a_folder_is_joined_in_the_order_of_names(tmp_path: Path) -> None:
    write_megatron(tmp_path / "b", DOCUMENTS[2:], "int32")
    write_megatron(tmp_path / "a", DOCUMENTS[:2])
    (tmp_path / "notes.txt").touch()
    dataset = open_dataset(str(tmp_path))
    assert documents_of(dataset) == DOCUMENTS
    assert dataset.source.read(2, 9).tolist() == [3, 4, 5, 6, 7, 8, 9]  # over the seam
    assert dataset.source.read(0, 12).tolist() == list(range(1, 13))


@given(st.lists(TOKENS, min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=40)
def test_any_range_of_a_joined_dataset_is_the_range_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[int]]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for i, documents in enumerate(parts):
        write_megatron(folder / f"part{i}", documents)
    flat = [token for documents in parts for document in documents for token in document]
    dataset = open_dataset(str(folder))
    start = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(start, len(flat)))
    assert dataset.source.read(start, stop).tolist() == flat[start:stop]
    if start < len(flat):
        lengths = [len(document) for documents in parts for document in documents]
        owners = [i for i, length in enumerate(lengths) for _ in range(length)]
        assert dataset.document_at(start) == owners[start]


def test_a_folder_of_two_formats_is_refused(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", DOCUMENTS)
    write_paddlenlp(tmp_path / "b", DOCUMENTS)
    with pytest.raises(BadInput, match="several formats here: a, b"):
        open_dataset(str(tmp_path))


def test_a_folder_of_two_tokenizers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    prepare([str(tmp_path / "text.txt")], "byte", tmp_path / "a")
    write_megatron(tmp_path / "b", DOCUMENTS)
    with pytest.raises(BadInput, match="different tokenizers"):
        open_dataset(str(tmp_path))


def test_the_digest_is_of_the_content_whatever_the_format(tmp_path: Path) -> None:
    write_megatron(tmp_path / "m", DOCUMENTS, "int32")
    write_paddlenlp(tmp_path / "p", DOCUMENTS)
    digest = open_dataset(str(tmp_path / "m")).digest
    assert open_dataset(str(tmp_path / "p")).digest == digest
    for i, other in enumerate(([*DOCUMENTS[:4], [11, 13]], [*DOCUMENTS[:4], [11], [12]])):
        write_megatron(tmp_path / f"other{i}", other)
        assert open_dataset(str(tmp_path / f"other{i}")).digest != digest


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    ids = np.arange(1, 200_001, dtype=np.uint16)
    ids.tofile(tmp_path / "n.bin")
    write_megatron(tmp_path / "m", [ids.tolist()])
    write_paddlenlp(tmp_path / "p", [ids.tolist()])
    for name, file in (("n.bin", "n.bin"), ("m", "m.bin"), ("p", "p_ids.npy")):
        dataset = open_dataset(str(tmp_path / name))
        assert dataset.source.read(150_000, 150_002).tolist() == ids[150_000:150_002].tolist()
        with (tmp_path / file).open("r+b") as opened:
            opened.truncate(4096)
        with pytest.raises(BadInput, match=rf"{file}: became shorter while it was read"):
            dataset.source.read(150_000, 150_002)


def llm_c(tokens: Ids, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + tokens.tobytes()


@pytest.mark.parametrize(("magic", "dtype"), [(20240520, "<u2"), (20240801, "<u4")])
def test_the_header_of_llm_c_is_no_text(tmp_path: Path, magic: int, dtype: str) -> None:
    tokens = np.arange(5000).astype(dtype)
    (tmp_path / "train_000001.bin").write_bytes(llm_c(tokens, magic))
    dataset = open_dataset(str(tmp_path / "train_000001.bin"))
    assert dataset.source.dtype == np.dtype(dtype)
    assert dataset.source.read(0, dataset.tokens).tolist() == tokens.tolist()


def test_a_wrong_header_of_llm_c_is_refused(tmp_path: Path) -> None:
    tokens = np.arange(5000, dtype="<u2")
    for i, (content, said) in enumerate(
        (
            (llm_c(tokens, version=2), "version 2"),
            (llm_c(tokens, count=4999), "counts 4999 tokens, 5000 follow"),
            (llm_c(tokens)[:-1], "no whole number"),
        )
    ):
        (tmp_path / f"{i}.bin").write_bytes(content)
        with pytest.raises(BadInput, match=rf"{i}\.bin: .*{said}"):
            open_dataset(str(tmp_path / f"{i}.bin"))


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8"])
@pytest.mark.parametrize("largest", [9, 250, 60_000, 128_000, 256_000, 900_000])
def test_wider_ids_never_pass_for_16_bits(tmp_path: Path, dtype: str, largest: int) -> None:
    ids = np.random.default_rng(1).integers(0, largest, 5000)
    ids.astype(dtype).tofile(tmp_path / "x.bin")
    with pytest.raises(BadInput, match=r"x\.bin: looks like wider ids"):
        open_dataset(str(tmp_path / "x.bin"))
    if largest <= 60_000:
        ids.astype("<u2").tofile(tmp_path / "x.bin")
        assert open_dataset(str(tmp_path / "x.bin")).source.read(0, 5000).tolist() == ids.tolist()


def test_wide_numbers_of_64_bits_are_no_tokens(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 1 << 31, 5000)
    numbers.astype("<i8").tofile(tmp_path / "x.bin")
    with pytest.raises(BadInput, match=r"x\.bin: looks like wider ids: of every four"):
        open_dataset(str(tmp_path / "x.bin"))


@pytest.mark.parametrize("name", ["pytorch_model", "model-00001-of-00002", "adapter_model", "optimizer", "x"])
def test_zeros_and_damaged_weights_are_no_tokens(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.bin").write_bytes(bytes(4096))
    with pytest.raises(BadInput, match=rf"{name}\.bin"):
        open_dataset(str(tmp_path / f"{name}.bin"))
