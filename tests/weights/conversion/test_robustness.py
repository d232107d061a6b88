"""What a stranger's folder may hold, and what he may ask for: one clear line, and nothing left."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.weights.conversion.checkpoints import MODEL, converted, facts_of, random_weights, weights_of
from tests.weights.conversion.commands import Outcome, assert_refused
from tests.weights.formats.conftest import assert_refused as assert_refused_within_limits
from tests.weights.formats.conftest import judge

BLOCK = [name.removeprefix("h.1.") for name in random_weights(MODEL) if name.startswith("h.1.")]


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
        ({"model_type": "llama"}, "model_type is llama"),
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
    assert facts_of(link).dialect == "torch"


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file of Linux")
def test_a_tokenizer_that_may_never_end_is_left_behind(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    """All sizes in /proc are 0, and reading some of it (kmsg) waits for what may come."""
    assert run("convert", source, tmp_path / "control", "--to", "paddle")[0] == 0
    assert (tmp_path / "control" / "vocab.json").exists()
    (source / "vocab.json").unlink()
    (source / "vocab.json").symlink_to("/proc/self/environ")
    assert run("convert", source, tmp_path / "out", "--to", "paddle")[0] == 0
    assert not (tmp_path / "out" / "vocab.json").exists()


def test_a_crowded_folder_is_read_quickly(source: Path) -> None:
    for number in range(20_000):
        os.close(os.open(source / f"rank-{number}", os.O_CREAT | os.O_WRONLY))
    start = time.process_time()
    assert facts_of(source).dialect == "torch"
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
    weights = weights_of(source)
    change(weights)
    save_file(weights, source / "model.safetensors")
    assert_refused(run("convert", source, tmp_path / "out", "--to", "paddle"), 5, words, tmp_path)


def ten_thousand_layers(source: Path) -> None:
    weights = weights_of(source)
    weights.update({f"h.{number}.ln_1.weight": np.zeros(48, np.float32) for number in range(4, 9990)})
    save_file(weights, source / "model.safetensors")


def a_far_rank(source: Path) -> None:
    (source / "mp_rank_99999_99999").mkdir()
    (source / "model.safetensors").rename(source / "mp_rank_99999_99999" / "model_optim_rng.pt")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: make_huge(folder / "config.json"), "8589934592 bytes of JSON"),
        (lambda folder: make_huge(folder / "model.safetensors"), "model.safetensors"),
        (ten_thousand_layers, "is missing for torch"),
        (a_far_rank, "the file of tensor rank 0, pipeline rank 0 is missing"),
    ],
)
def test_folders_are_refused_in_time_and_memory(
    spoil: Callable[[Path], None], reason: str, source: Path
) -> None:
    assert judge(source, facts_of).outcome == "opened"
    spoil(source)
    assert_refused_within_limits(source, reason, facts_of)


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
