"""Shared by the format tests: tensors of every kind, entries for the writers, a judge of hostile files."""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.errors import BadInput
from gptbridge.weights.formats import STORAGE_DTYPES, WRITERS, Entry, TensorInfo, WeightFile, open_weights

# What a refusal may take: the limits that hostile files are held to.
MAX_SECONDS = 10
MAX_BYTES = 256 << 20
_HANG_SECONDS = 60

Check = Callable[[bytes, str], None]

_NO_UNSIGNED = tuple(
    name for name in STORAGE_DTYPES if "float8" not in name and name not in ("uint16", "uint32", "uint64")
)
ONE_FILE = sorted(WRITERS.keys() - {"dcp"})  # what lies in two has tests of its own
# Which element types each writer takes.
ONE_FILE = sorted(WRITERS.keys() - {"dcp"})  # formats of which a checkpoint is one file
WRITABLE: Mapping[str, tuple[str, ...]] = {
    "safetensors": tuple(name for name in STORAGE_DTYPES if name != "complex128"),
    "torch": tuple(STORAGE_DTYPES),
    "torch-legacy": tuple(
        n for n in STORAGE_DTYPES if "float8" not in n and n not in ("uint16", "uint32", "uint64")
    ),
    "pdparams": tuple(
        n for n in STORAGE_DTYPES if "float8" not in n and n not in ("uint16", "uint32", "uint64")
    ),
    "ckpt": tuple(n for n in STORAGE_DTYPES if "float8" not in n and "complex" not in n),
}


@dataclass(frozen=True)
class Verdict:
    """What became of opening a file: `outcome` is opened, refused, or the name of another exception."""

    outcome: str
    message: str
    seconds: float
    grown_bytes: int


def make_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Random bits of an element type; booleans are 0 and 1."""
    storage = STORAGE_DTYPES[dtype]
    generator = np.random.default_rng(seed)
    size = int(np.prod(shape, dtype=np.int64))
    if dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    return np.frombuffer(generator.bytes(size * storage.itemsize), storage).reshape(shape)


def entry(name: str, dtype: str, array: NDArray[Any]) -> Entry:
    return TensorInfo(name, dtype, array.shape), lambda: [array]


def read_all(weights: WeightFile) -> dict[str, bytes]:
    """Every tensor's bytes, read whole; also in rows and in chunks, which must give the same."""
    content = {}
    for name, info in weights.tensors.items():
        array = weights.read(name)
        assert array.shape == info.shape
        assert array.dtype == info.storage_dtype
        content[name] = array.tobytes()
        assert len(content[name]) == info.nbytes
        assert b"".join(chunk_bytes(chunk) for chunk in weights.chunks(name)) == content[name]
        if info.shape:
            middle = info.shape[0] // 2
            rows = (
                weights.rows(name, 0, middle).tobytes() + weights.rows(name, middle, info.shape[0]).tobytes()
            )
            assert rows == content[name]
    return content


def chunk_bytes(chunk: Any) -> bytes:
    return (
        chunk.tobytes() if isinstance(chunk, np.ndarray) else os.pread(chunk.fd, chunk.nbytes, chunk.offset)
    )


def read_file(path: Path) -> None:
    with open_weights(path) as weights:
        read_all(weights)


def judge(path: Path, read: Callable[[Path], object] = read_file) -> Verdict:
    """Open and read `path` in a child that may grow by 256 MB and compute for 10 s."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _judge_in_child(path, read, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        report = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return Verdict(signal.Signals(os.WTERMSIG(status)).name, "killed", usage.ru_utime, 0)
    return Verdict(**json.loads(report))


def _judge_in_child(path: Path, read: Callable[[Path], object], writer: int) -> None:
    """Never returns: the child leaves without pytest's own clean-up."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS + 1, MAX_SECONDS + 1))
    signal.alarm(_HANG_SECONDS)
    try:
        read(path)
        outcome, message = "opened", ""
    except BadInput as error:
        outcome, message = "refused", str(error)
    except BaseException as error:
        outcome, message = type(error).__name__, "".join(traceback.format_exception(error)[-3:])
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = 1024 * (after.ru_maxrss - before.ru_maxrss)
    os.write(writer, json.dumps(Verdict(outcome, message, seconds, grown).__dict__).encode())
    os._exit(0)


def assert_refused(path: Path, reason: str, read: Callable[[Path], object] = read_file) -> None:
    """`path` must be refused within the limits, in one clear line that holds `reason`."""
    verdict = judge(path, read)
    assert verdict.outcome == "refused", verdict
    assert reason in verdict.message, verdict
    assert str(path.name) in verdict.message
    assert verdict.message.isprintable()
    assert len(verdict.message) < 1200
    assert verdict.seconds < MAX_SECONDS, verdict
    assert verdict.grown_bytes < MAX_BYTES, verdict


def assert_opens(path: Path) -> None:
    verdict = judge(path)
    assert verdict.outcome == "opened", verdict


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Write bytes to a file and assert that it is refused with a reason, leaving nothing else behind."""
    monkeypatch.chdir(tmp_path)

    def check(content: bytes, reason: str) -> None:
        path = tmp_path / "hostile.bin"
        path.write_bytes(content)
        assert_refused(path, reason)
        assert [child.name for child in tmp_path.iterdir()] == ["hostile.bin"]

    return check


def entries_of(arrays: Mapping[str, tuple[str, NDArray[Any]]]) -> Iterable[Entry]:
    return [entry(name, dtype, array) for name, (dtype, array) in arrays.items()]
