"""`gptbridge convert`: no option does nothing, the verdict counts, and the tokenizer goes along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gptbridge.weights.conversion import verifying
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.formats import open_weights
from gptbridge_cli.main import app
from tests.weights.conversion.checkpoints import HEADS, MODEL, converted, facts_of, rewrite_ckpt
from tests.weights.conversion.commands import Outcome
from tests.weights.conversion.test_lora import deltas

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "gpt2-vocab.json",
    "gpt2-merges.txt",
    "vocab.txt",
    "sentencepiece.model",
    "spiece.model",
    "tokenizer.model",
    "generation_config.json",
)


def convert(*arguments: object) -> dict[str, Any]:
    """Run the command, which must succeed; return what it prints with --json."""
    done = CliRunner().invoke(app, ["convert", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.parametrize(
    ("to", "option", "fact", "without", "expected"),
    [
        ("torch", ("--dtype", "float16"), "dtypes", {"float32": 52}, {"float16": 52}),
        ("paddle", ("--dtype", "bf16"), "dtypes", {"float32": 68}, {"bfloat16": 68}),
        ("torch", ("--variant", "GPT2LMHeadModel"), "variant", "GPT2Model", "GPT2LMHeadModel"),
        ("torch", ("--vocab-size", 64), "embedding_rows", 61, 64),
        ("mindspore", ("--tensor-parallel", 2), "tensor_parallel", 1, 2),
        ("megatron", ("--pipeline-parallel", 2), "pipeline_parallel", 1, 2),
    ],
)
def test_an_option_changes_the_result(
    to: str,
    option: tuple[object, ...],
    fact: str,
    without: object,
    expected: object,
    source: Path,
    tmp_path: Path,
) -> None:
    convert(source, tmp_path / "plain", "--to", to)
    convert(source, tmp_path / "other", "--to", to, *option)
    found = [getattr(facts_of(tmp_path / name, HEADS), fact) for name in ("plain", "other")]
    assert found == [without, expected]


def test_model_says_what_the_file_does_not(source: Path, tmp_path: Path) -> None:
    weights = converted(source, tmp_path / "made", "mindspore") / "gpt2.ckpt"
    (tmp_path / "alone").mkdir()
    alone = weights.rename(tmp_path / "alone" / "gpt2.ckpt")
    changes = {"activation": "gelu_erf", "layernorm_epsilon": 1e-6}
    (tmp_path / "erf.yaml").write_text(yaml.safe_dump({**MODEL.model_dump(), **changes}))
    convert(alone, tmp_path / "heads", "--to", "torch", "--num-attention-heads", 4)
    convert(alone, tmp_path / "all", "--to", "torch", "--model", tmp_path / "erf.yaml")
    models = [facts_of(tmp_path / name).model for name in ("heads", "all")]
    assert models[1] == MODEL.model_copy(update=changes)
    assert models[0].activation == "gelu_tanh"


def test_from_names_the_dialect(source: Path, tmp_path: Path) -> None:
    """PaddleNLP's names are FleetX's with split qkv."""
    file = converted(source, tmp_path / "made", "paddle") / "model_state.pdparams"
    found = convert(file, tmp_path / "first", "--to", "torch", "--num-attention-heads", 4)
    said = convert(file, tmp_path / "second", "--to", "torch", "--num-attention-heads", 4, "--from", "fleetx")
    assert (found["from"], said["from"]) == ("paddle", "fleetx")


def test_strategy_names_the_files_that_are_taken(
    run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    ranks = converted(source, tmp_path / "ranks", "mindspore", 2)
    other = converted(source, tmp_path / "stages", "mindspore", 1, 2) / "strategy"
    (ranks / "strategy").rename(tmp_path / "right")
    convert(ranks, tmp_path / "good", "--to", "torch", "--strategy", tmp_path / "right")
    code, text = run("convert", ranks, tmp_path / "bad", "--to", "torch", "--strategy", other)
    assert (code, "strategy" in text) == (5, True)


def test_lora_options(source: Path, tmp_path: Path) -> None:
    folder = converted(source, tmp_path / "lora", "mindspore")
    rewrite_ckpt(folder / "gpt2.ckpt", lambda arrays: arrays.update(deltas()))
    convert(folder, tmp_path / "apart", "--to", "mindspore", "--lora-alpha", 8)
    convert(folder, tmp_path / "merged", "--to", "mindspore", "--lora-alpha", 8, "--merge-lora")
    kept = facts_of(tmp_path / "apart").lora
    assert kept is not None
    assert kept.alpha == 8
    assert facts_of(tmp_path / "merged").lora is None


@pytest.fixture
def no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let even the rounding of an element type count as different."""
    for dtype in ("float32", "float16"):
        monkeypatch.setitem(verifying._TOLERANCE, dtype, 0.0)


def test_logits_that_differ_fail_the_command(
    run: Callable[..., Outcome], source: Path, tmp_path: Path, no_tolerance: None
) -> None:
    half = ("--to", "torch", "--dtype", "float16")
    code, text = run("convert", source, tmp_path / "half", *half, "--quiet")
    assert (code, text.count("\n")) == (1, 1)
    assert text.startswith(f"error: {tmp_path}/half: DIFFERENT LOGITS: max |d logits| ")
    assert run("convert", source, tmp_path / "unverified", *half, "--no-verify", "--quiet") == (0, "")
    assert run("convert", source, tmp_path / "exact", "--to", "paddle", "--quiet") == (0, "")


@pytest.mark.parametrize(
    ("option", "verified"), [((), False), (("--verify",), True), (("--no-verify",), False)]
)
def test_large_models_are_verified_when_asked(
    option: tuple[str, ...], verified: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "SMALL_MODEL", 1000)
    facts = convert(source, tmp_path / "out", "--to", "torch", *option)
    assert (facts["max_logit_difference"] == 0) is verified
    assert (facts["max_logit_difference"] is None) is not verified


def test_quiet_prints_nothing(source: Path, tmp_path: Path) -> None:
    loud = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "loud"), "--to", "torch"])
    quiet = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "q"), "--to", "torch", "--quiet"])
    assert "same logits: max |d logits| 0.00e+00" in loud.output
    assert (loud.exit_code, quiet.exit_code, quiet.output) == (0, 0, "")


@pytest.mark.parametrize(("dialect", "split"), [("paddle", Split()), ("megatron", Split(2, 2))])
def test_progress_goes_up_to_all_bytes(dialect: str, split: Split, source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    request = Conversion(source, tmp_path / "out", dialect, vocab_size=64, split=split)
    done = convert_checkpoint(request, lambda *report: told.append(report))
    stored = 0
    for file in done.files:
        with open_weights(tmp_path / "out" / file) as weights:
            stored += sum(info.nbytes for info in weights.tensors.values())
    counts = [count for count, _, _ in told]
    assert {total for _, total, _ in told} == {done.nbytes} == {stored}
    assert counts == sorted(set(counts))
    assert len(counts) >= 52
    assert counts[0] > 0
    assert counts[-1] == stored
    assert list(dict.fromkeys(name for _, _, name in told)) == list(done.files)


@pytest.mark.parametrize(
    "dialect", ["torch", "gptbridge", "paddle", "fleetx", "mindspore", "modelscope", "megatron"]
)
@pytest.mark.parametrize("file", [".", "model.safetensors"])
def test_the_tokenizer_goes_along(file: str, dialect: str, source: Path, tmp_path: Path) -> None:
    for name in (*TOKENIZER, "training_args.bin.json"):
        (source / name).write_bytes(f"the bytes of {name}\n".encode())
    done = convert_checkpoint(Conversion(source / file, tmp_path / "out", dialect))
    assert set(TOKENIZER) <= set(done.companions)
    for name in TOKENIZER:
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "training_args.bin.json").exists()
    convert_checkpoint(Conversion(source / file, tmp_path / "out", dialect, overwrite=True))
