"""What a mistaken path, a crash or a full disk may do to an output: one clear line, nothing lost or left."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptbridge.errors import BadInput, RunFailed
from gptbridge.weights.conversion import output_folder
from gptbridge.weights.formats import open_weights
from tests.weights.conversion.checkpoints import converted
from tests.weights.conversion.commands import Outcome, names


def test_output_that_would_hurt_the_input_is_refused(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    before = names(source)
    link = tmp_path / "link"
    link.symlink_to(source)
    for output, words in (
        (source, "are the same"),
        (link, "are the same"),
        (tmp_path / "." / "in" / ".." / "in", "are the same"),
        (source / "inner", "lies inside the input"),
        (link / "inner", "lies inside the input"),
        (tmp_path, "holds the input"),
    ):
        code, text = run("convert", source, output, "--to", "torch", "--overwrite")
        assert (code, words in text) == (2, True), text
    assert names(source) == before
    code, text = run("convert", source / "model.safetensors", source, "--to", "torch", "--overwrite")
    assert (code, "holds the input" in text) == (2, True)


def test_only_checkpoints_are_replaced(run: Callable[..., Outcome], source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    for arguments, words in (((), "exists already"), (("--overwrite",), "thesis.tex, which is no part")):
        code, text = run("convert", source, target, "--to", "torch", *arguments)
        assert (code, words in text) == (2, True)
    assert (target / "thesis.tex").read_text() == "years of work"
    file = tmp_path / "file"
    file.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(target)
    for output in (file, link):
        code, text = run("convert", source, output, "--to", "torch", "--overwrite")
        assert (code, "is not a folder" in text) == (2, True)
    assert file.read_text() == "mine"


@pytest.fixture(params=["at once", "one by one"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How two folders exchange their names: by the call of Linux, and without it."""
    if request.param == "one by one":
        monkeypatch.setattr(output_folder, "_renameat2", None)
    return str(request.param)


@pytest.mark.parametrize("dialect", ["torch", "paddle", "mindspore", "fleetx", "modelscope", "megatron"])
def test_what_a_conversion_wrote_is_replaced(
    dialect: str, exchange: str, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    tensor = 1 if dialect in ("torch", "paddle") else 2
    converted(source, output, dialect, tensor, vocab_size=64)
    converted(source, output, "torch", overwrite=True)
    assert names(output) == ["config.json", "model.safetensors", "vocab.json"]
    assert names(tmp_path) == ["in", "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_names_are_exchanged_at_once_where_the_system_can(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment without a folder of the name."""
    output = converted(source, tmp_path / "out", "paddle")
    monkeypatch.delattr(Path, "rename")
    converted(source, output, "torch", overwrite=True)
    assert names(output) == ["config.json", "model.safetensors", "vocab.json"]


def test_an_exchange_that_fails_keeps_what_was_there(
    exchange: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails as the new folder is to take the name; the old one may have been moved aside."""
    output = converted(source, tmp_path / "out", "paddle")
    before = {name: (output / name).read_bytes() for name in names(output)}
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    if exchange == "at once":
        monkeypatch.setattr(output_folder, "_renameat2", lambda *arguments: -1)
    with pytest.raises(RunFailed, match="out: cannot be written: Input/output error"):
        converted(source, output, "torch", overwrite=True)
    assert {name: (output / name).read_bytes() for name in names(output)} == before
    assert names(tmp_path) == ["in", "out"]


def test_a_failed_conversion_keeps_what_was_there(source: Path, tmp_path: Path) -> None:
    damaged = converted(source, tmp_path / "damaged", "modelscope")
    output = converted(source, tmp_path / "out", "torch")
    before = (output / "model.safetensors").read_bytes()
    file = damaged / "model/mp_rank_00_model_states.pt"
    name = "module.language_model.encoder.layers.2.mlp.dense_4h_to_h.weight"
    with open_weights(file) as weights:
        (extent,) = weights.extents(name) or ()
    content = bytearray(file.read_bytes())
    content[extent.offset + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BadInput, match="is damaged: its CRC-32 differs"):
        converted(damaged, output, "torch", overwrite=True)
    assert (output / "model.safetensors").read_bytes() == before
    assert names(tmp_path) == ["damaged", "in", "out"]


@pytest.fixture
def small_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no file of this process grow over 64 KiB: what a full disk looks like to it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_is_one_line(source: Path, tmp_path: Path, small_files: None) -> None:
    for dialect in ("torch", "paddle", "mindspore", "megatron"):
        with pytest.raises(RunFailed, match=r"deep/out: cannot be written: File too large"):
            converted(source, tmp_path / "new" / "deep" / "out", dialect)
    assert names(tmp_path) == ["in"]


def test_a_disk_without_room_is_told_before_it_is_filled(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and Usage(10, 9, 1))
    with pytest.raises(RunFailed, match=r"needs [\d,]+ bytes, but the disk has 1 free"):
        converted(source, tmp_path / "out", "torch")
    assert names(tmp_path) == ["in"]


class Usage(tuple[int, int, int]):
    def __new__(cls, *values: int) -> Usage:
        return super().__new__(cls, values)

    free = 1


def test_a_parent_that_cannot_be_written_is_one_line(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    code, text = run("convert", source, "/proc/gptbridge/deep", "--to", "torch")
    assert (code, text.count("\n")) == (1, 1)
    assert "cannot be made" in text
    code, text = run("convert", source, tmp_path / "in" / "vocab.json" / "deep", "--to", "torch")
    assert (code, text.count("\n")) == (2, 1)


SLOW_CONVERSION = """
import signal, sys, time
from pathlib import Path
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where whoever runs the tests ignores it
def report(done, total, name):
    print("writing", flush=True)
    time.sleep(60)
convert_checkpoint(Conversion(Path(sys.argv[1]), Path(sys.argv[2]), "megatron", overwrite=True), report)
"""


@contextmanager
def slow_conversion(source: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A conversion that sleeps in the middle of its first file; it does not outlive the block."""
    command = [sys.executable, "-c", SLOW_CONVERSION, str(source), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"writing\n"
            yield process
        finally:
            process.kill()


def unfinished(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.endswith(".partial")]


def test_a_conversion_that_runs_is_left_alone_by_others_of_the_name(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with slow_conversion(source, output):
        (own,) = unfinished(tmp_path)
        converted(source, output, "torch")
        converted(source, output, "paddle", overwrite=True)
        assert unfinished(tmp_path) == [own]
        assert names(tmp_path / own) == ["release"]


@pytest.mark.parametrize(("number", "leftovers"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_killed_in_the_middle_leaves_nothing_under_the_name(
    number: signal.Signals, leftovers: int, source: Path, tmp_path: Path
) -> None:
    """Ctrl-C removes the unfinished folder; what SIGKILL leaves, the next conversion to the name removes."""
    output = tmp_path / "out"
    with slow_conversion(source, output) as process:
        assert len(unfinished(tmp_path)) == 1
        process.send_signal(number)
        process.wait(timeout=30)
    assert len(unfinished(tmp_path)) == leftovers
    assert not output.exists()
    converted(source, output, "torch")
    assert names(tmp_path) == ["in", "out"]
