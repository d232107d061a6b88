"""Streaming takes the same memory whatever the size of a tensor: 64 MB for one of 96 MB."""

from __future__ import annotations

import os
import pickle
import resource
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gptbridge.weights.formats import (
    WRITERS,
    TensorInfo,
    ckpt_writer,
    open_weights,
    write_ckpt,
    write_safetensors,
)
from tests.weights.formats.containers import tensor_pickle, torch_zip

ROWS, COLUMNS = 6144, 4096
LIMIT = 64 << 20
INFO = TensorInfo("w", "float32", (ROWS, COLUMNS))


def in_limited_child(work: Callable[[], None]) -> None:
    """Run `work` in a child that may have 64 MB more private memory than it starts with."""
    child = os.fork()
    if child == 0:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        limit = 1024 * int(fields["VmData"].split()[0]) + LIMIT
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def row_blocks() -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    block = np.arange(1024 * COLUMNS, dtype=np.float32).reshape(1024, COLUMNS)
    return [block] * (ROWS // 1024)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "weights.safetensors"
    write_safetensors(path, [(INFO, row_blocks)])
    return path


def convert(source: Path, target: Path, kind: str) -> None:
    with open_weights(source) as weights:
        entries = [(info, partial(weights.chunks, name)) for name, info in weights.tensors.items()]
        WRITERS[kind](target, entries)
    open_weights(target).close()


def test_the_limit_bites(source: Path) -> None:
    def load_all() -> None:
        with open_weights(source) as weights:
            held = [np.array(weights.read("w")) for _ in range(8)]  # more than earlier tests left free
            assert len(held) == 8

    with pytest.raises(AssertionError):
        in_limited_child(load_all)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_writer_streams(kind: str, source: Path, tmp_path: Path) -> None:
    in_limited_child(lambda: convert(source, tmp_path / "out", kind))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > INFO.nbytes


def test_slices_are_gathered_in_parts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckpt_writer, "SLICE_BYTES", 50_000_000)
    with open_weights(source) as weights:
        write_ckpt(tmp_path / "sliced", [(INFO, partial(weights.chunks, "w"))], crc=True)

    def read() -> None:
        with open_weights(tmp_path / "sliced") as weights:
            for start in range(0, ROWS, 1024):
                assert np.array_equal(weights.rows("w", start, start + 1024), row_blocks()[0])

    in_limited_child(read)


def test_protocol_2_text_is_decoded_in_parts(tmp_path: Path) -> None:
    values = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    with (tmp_path / "text").open("wb") as file:
        pickle.dump({"w": values}, file, 2)

    def read() -> None:
        with open_weights(tmp_path / "text") as weights:
            assert np.array_equal(weights.rows("w", 4000, 4010), values[4000:4010])
        convert(tmp_path / "text", tmp_path / "out", "safetensors")

    in_limited_child(read)
    with open_weights(tmp_path / "out") as weights:
        assert np.array_equal(weights.read("w"), values)


def test_transposed_views_are_copied_in_parts(tmp_path: Path) -> None:
    """A torch file whose tensor is the transposed view of its storage."""
    storage = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    view = tensor_pickle(count=storage.size, shape=(COLUMNS, ROWS), strides=(1, COLUMNS))
    (tmp_path / "view").write_bytes(torch_zip(view, {"0": storage.tobytes()}))
    in_limited_child(lambda: convert(tmp_path / "view", tmp_path / "out", "safetensors"))
    with open_weights(tmp_path / "out") as weights:
        assert np.array_equal(weights.read("w"), storage.T)
