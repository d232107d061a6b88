"""What a stranger's folder, a crash or a full disk may do: one clear line, and nothing lost or left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptbridge.errors import BadInput, RunFailed
from gptbridge.weights.conversion.inspecting import inspect_checkpoint
from gptbridge.weights.formats import open_weights
from gptbridge_cli.main import main
from tests.weights.conversion.checkpoints import MODEL, converted, random_weights, write_hugging_face

Outcome = tuple[int, str]


BLOCK = [name.removeprefix("h.1.") for name in random_weights(MODEL) if name.startswith("h.1.")]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line; return its exit code and what it wrote to stderr."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["gptbridge", *map(str, arguments)])
        start = time.process_time()
        with pytest.raises(SystemExit) as caught:
            main()
        assert time.process_time() - start < 10
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hugging_face(tmp_path / "in", MODEL, random_weights(MODEL))


def assert_refused(outcome: Outcome, code: int, words: str, folder: Path) -> None:
    """One line with these words, the exit code, and no trace of an output."""
    found, text = outcome
    assert (found, text.count("\n")) == (code, 1), text
    assert text.startswith("error: ")
    assert words in text
    assert text.strip().isprintable()
    assert not [name for name in names(folder) if "out" in name]


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 10**9}, "n_head: Input should be less than or equal to 4096"),
        ({"n_head": -4}, "n_head: Input should be greater"),
        ({"n_head": 5}, "does not divide"),
        ({"n_head": True}, "n_head: Input should be a valid integer"),
        ({"n_head": "4"}, "n_head: Input should be a valid integer"),
        ({"n_layer": 10**12}, "n_layer: Input should be less"),
        ({"n_layer": 3}, "says num_layers=3, but the tensors say 4"),
        ({"n_embd": 10**18}, "n_embd: Input should be less"),
        ({"n_embd": 96}, "says hidden_size=96, but the tensors say 48"),
        ({"vocab_size": 62}, "says vocab_size=62, but the embedding has 61 rows"),
        ({"layer_norm_epsilon": 1e308}, "layer_norm_epsilon: Input should be less"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"id2label": 3, "num_labels": 10**30}, "whole number"),
    ],
)
def test_absurd_configurations_are_refused(
    changes: dict[str, Any], words: str, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    rewrite_config(source, **changes)
    outcome = run("convert", source, tmp_path / "out", "--to", "paddle")
    assert "config.json" in outcome[1]
    assert_refused(outcome, 5, words, tmp_path)


def test_other_dialects_configurations_are_as_strict(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    folder = converted(source, tmp_path / "mindspore", "mindspore")
    text = (folder / "model.yaml").read_text()
    for old, new, words in (
        ("num_heads: 4", "num_heads: 1000000000", "num_attention_heads"),
        ("num_heads: 4", "num_heads: 4.5", "num_attention_heads"),
        ("num_layers: 4", "num_layers: 1000000000000", "says num_layers="),
        ("expand_ratio: 2", "expand_ratio: " + "9" * 4000, "whole number"),
        ("hidden_act: gelu", "hidden_act: [gelu]", "hidden_act is"),
        ("hidden_act: gelu", "hidden_act: &a [*a]", "alias"),
        ("model:", "model: &a [*b]\nmore:", "model.yaml"),
    ):
        (folder / "model.yaml").write_text(text.replace(old, new))
        assert_refused(run("convert", folder, tmp_path / "out", "--to", "torch"), 5, words, tmp_path)


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("absent")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("make", [make_fifo, make_loop, make_dangling, make_folder, make_device, make_huge])
def test_files_that_are_no_files_are_refused_at_once(
    make: Callable[[Path], None], name: str, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    make(source / name)
    assert_refused(run("convert", source, tmp_path / "out", "--to", "paddle"), 5, name, tmp_path)


def test_a_link_to_a_checkpoint_is_followed(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for file in source.iterdir():
        file.rename(cache / f"blob-{file.name}")
        file.symlink_to(cache / f"blob-{file.name}")
    link = tmp_path / "link"
    link.symlink_to(source)
    assert inspect_checkpoint(link)["dialect"] == "torch"


def test_a_crowded_folder_is_read_quickly(source: Path) -> None:
    for number in range(20_000):
        os.close(os.open(source / f"rank-{number}", os.O_CREAT | os.O_WRONLY))
    start = time.process_time()
    assert inspect_checkpoint(source)["dialect"] == "torch"
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: [w.pop(f"h.1.{n}") for n in BLOCK], "h.1.ln_1.weight and 11 more is missing"),
        (
            lambda w: w.update({"h.9.ln_1.weight": w["h.1.ln_1.weight"]}),
            "h.4.ln_1.weight and 70 more is missing",
        ),
        (lambda w: w.update({"h.123456.ln_1.weight": w["ln_f.bias"]}), "h.123456.ln_1.weight is left over"),
        (lambda w: w.update({"h.00.ln_1.weight": w["ln_f.bias"]}), "h.00.ln_1.weight is left over"),
        (lambda w: w.update({"wpe.weight": w["wpe.weight"].T.copy()}), "wpe.weight has shape"),
        (lambda w: w.update({"wte.weight": np.zeros((61, 0), np.float32)}), "wte.weight"),
        (lambda w: w.update({"ln_f.bias": w["ln_f.bias"].astype(np.int32)}), "ln_f.bias is int32"),
        (
            lambda w: w.update({"h.1.mlp.c_fc.weight": np.ones((48, 97), np.float32)}),
            "h.1.mlp.c_fc.weight has shape",
        ),
    ],
)
def test_tensors_that_are_no_gpt_are_named(
    change: Callable[[dict[str, Any]], object],
    words: str,
    run: Callable[..., Outcome],
    source: Path,
    tmp_path: Path,
) -> None:
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors")
    assert_refused(run("convert", source, tmp_path / "out", "--to", "paddle"), 5, words, tmp_path)


def test_fifty_thousand_layers_are_refused_in_time(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    weights = load_file(source / "model.safetensors")
    small = np.zeros(48, np.float32)
    weights.update({f"h.{number}.ln_1.weight": small for number in range(4, 9000)})
    save_file(weights, source / "model.safetensors")
    assert_refused(run("convert", source, tmp_path / "out", "--to", "paddle"), 5, "is missing", tmp_path)


def test_ranks_of_different_types_are_named(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    first = converted(source, tmp_path / "first", "megatron", 2, vocab_size=64)
    second = converted(source, tmp_path / "second", "megatron", 2, vocab_size=64, dtype="float16")
    name = Path("release", "mp_rank_01", "model_optim_rng.pt")
    (first / name).write_bytes((second / name).read_bytes())
    outcome = run("convert", first, tmp_path / "out", "--to", "torch")
    assert_refused(outcome, 5, "is float16", tmp_path)
    (first / name).unlink()
    assert_refused(
        run("convert", first, tmp_path / "out", "--to", "torch"), 5, "holds no model_optim", tmp_path
    )
    (first / name).parent.rmdir()
    assert_refused(run("convert", first, tmp_path / "out", "--to", "torch"), 5, "args says", tmp_path)


def test_names_from_files_cannot_move_the_cursor(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    folder = converted(source, tmp_path / "mindspore", "mindspore")
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").unlink()
    (folder / "evil\x1b[2J.yaml").write_text(text.replace("num_layers: 4", "num_layers: 5"))
    assert_refused(
        run("convert", folder, tmp_path / "out", "--to", "torch"), 5, "says num_layers=5", tmp_path
    )


# --- the output


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


@pytest.mark.parametrize("dialect", ["torch", "paddle", "mindspore", "fleetx", "modelscope", "megatron"])
def test_what_a_conversion_wrote_is_replaced(dialect: str, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    tensor = 1 if dialect in ("torch", "paddle") else 2
    converted(source, output, dialect, tensor, vocab_size=64)
    converted(source, output, "torch", overwrite=True)
    assert names(output) == ["config.json", "model.safetensors", "vocab.json"]
    assert names(tmp_path) == ["in", "out"]


def test_a_failed_conversion_keeps_what_was_there(source: Path, tmp_path: Path) -> None:
    damaged = converted(source, tmp_path / "damaged", "modelscope", variant="base")
    output = converted(source, tmp_path / "out", "torch")
    before = (output / "model.safetensors").read_bytes()
    file = damaged / "pytorch_model.bin"
    with open_weights(file) as weights:
        (extent,) = weights.extents("language_model.transformer.layers.2.mlp.dense_4h_to_h.weight") or ()
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


def test_killed_in_the_middle_leaves_nothing_under_the_name(source: Path, tmp_path: Path) -> None:
    """Ctrl-C removes the unfinished folder; what SIGKILL leaves, the next conversion to the name removes."""
    script = """
import sys, time
from pathlib import Path
from gptbridge.weights.conversion.convert import Request, convert_checkpoint
def report(done, total, name):
    print("writing", flush=True)
    time.sleep(60)
convert_checkpoint(Request(Path(sys.argv[1]), Path(sys.argv[2]), "megatron", overwrite=True), report)
"""
    output = tmp_path / "out"
    for number, leftovers in ((signal.SIGINT, 0), (signal.SIGKILL, 1)):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(source), str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"writing\n"
            if number == signal.SIGINT:  # one that runs is left alone
                converted(source, output, "torch")
                converted(source, output, "paddle", overwrite=True)
                (output / "model_state.pdparams").unlink()
            process.send_signal(number)
        assert len([name for name in names(tmp_path) if name.endswith(".partial")]) == leftovers
    converted(source, output, "torch", overwrite=True)
    assert names(tmp_path) == ["in", "out"]


def test_errors_have_no_traceback_and_usage_is_exit_2(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    for arguments, words in (
        (("--to", "tensorflow"), "there is no dialect 'tensorflow'"),
        (("--to", "torch", "--from", "padle"), "Did you mean paddle?"),
        (("--to", "torch", "--variant", "x"), "torch has no variant 'x'"),
        (("--to", "torch", "--dtype", "int8"), "no element type 'int8'"),
        (("--to", "torch", "--tensor-parallel", "2"), "never split"),
        (("--to", "fleetx", "--tensor-parallel", "3"), "does not divide 4 (attention heads)"),
        (("--to", "fleetx", "--tensor-parallel", "2"), "Pad it: --vocab-size 256"),
        (("--to", "megatron", "--pipeline-parallel", "3"), "does not divide 4 layers"),
        (("--to", "megatron", "--pipeline-parallel", "1000000007"), "does not divide 4 layers"),
        (("--to", "torch", "--vocab-size", "999999999999"), "--vocab-size 999999999999"),
        (("--to", "torch", "--merge-lora", "--lora-alpha", "nan"), "no LoRA to merge"),
    ):
        assert_refused(run("convert", source, tmp_path / "out", *arguments), 2, words, tmp_path)
    assert_refused(
        run("convert", tmp_path / "absent", tmp_path / "out", "--to", "torch"), 5, "absent", tmp_path
    )
