"""`gptbridge generate` on checkpoints of every dialect and split, with adapters, with a classifier's head."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptbridge import convert
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge_specs.generation import GenerationSpec
from tests.checkpoint.conftest import writer
from tests.generation.test_generate import PROMPTS, SPEC, expected
from tests.training.conftest import ENVIRONMENT, gptbridge
from tests.weights.conversion.checkpoints import rewrite_ckpt, weights_of

NEW = 20
RANK, ALPHA = 2, 16.0

# Continues the same prompts with each job's checkpoint and prints a list of tokens for each prompt of each.
SCRIPT = """
import json, sys
import gptbridge
prompts, new, jobs = json.loads(sys.stdin.read())
print(json.dumps([
    [list(each.tokens) for each in gptbridge.generate(
        job.pop("checkpoint"), prompts, backend="torch", max_new_tokens=new, warn=lambda message: None, **job
    )]
    for job in jobs
]))
"""


def continued(jobs: Sequence[dict[str, Any]]) -> list[list[list[int]]]:
    """Return the tokens of each prompt of each job."""
    request = json.dumps([PROMPTS, NEW, jobs], default=str)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=request,
        capture_output=True,
        text=True,
        timeout=240,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[list[int]]] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    CheckpointStore(folder / "run" / "checkpoints").save(7, writer(SPEC, 7))
    return folder / "run"


@pytest.fixture(scope="module")
def lora(run: Path, folder: Path) -> Path:
    """A MindFormers checkpoint with LoRA beside its weights; nothing says alpha."""
    convert(run, folder / "lora", to="mindspore")
    stream = np.random.default_rng(4)

    def add(arrays: dict[str, NDArray[Any]]) -> None:
        for layer in range(SPEC.model.num_layers):
            for part in (1, 3):
                name = f"backbone.blocks.{layer}.attention.dense{part}.mindpet_delta_lora_"
                for factor, shape in (("a", (RANK, 12)), ("b", (12, RANK))):
                    arrays[name + factor] = stream.normal(size=shape).astype(np.float32)

    rewrite_ckpt(folder / "lora" / "gpt2.ckpt", add)
    return folder / "lora"


def test_every_dialect_and_split_continues_as_the_reference(run: Path, folder: Path) -> None:
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "paddle": ("paddle", {}),
        "fleetx": ("fleetx", {"tensor_parallel": 3, "vocab_size": 258}),
        "mindspore": ("mindspore", {}),
        "ranks": ("mindspore", {"tensor_parallel": 3, "pipeline_parallel": 2, "vocab_size": 258}),
        "modelscope": ("modelscope", {"tensor_parallel": 3, "vocab_size": 258}),
        "megatron": ("megatron", {"tensor_parallel": 3, "pipeline_parallel": 2, "vocab_size": 258}),
        "nanogpt": ("nanogpt", {}),
        "torch": ("torch", {}),
    }
    for name, (to, options) in forms.items():
        convert(run, folder / name, to=to, **options)
    (folder / "alone").mkdir()
    (folder / "mindspore" / "gpt2.ckpt").rename(folder / "alone" / "gpt2.ckpt")
    jobs: list[dict[str, Any]] = [
        {"checkpoint": run},
        {"checkpoint": folder / "paddle" / "model_state.pdparams"},
        {"checkpoint": folder / "alone" / "gpt2.ckpt", "num_attention_heads": 3, "tokenizer": "byte"},
        {"checkpoint": folder / "torch", "dialect": "huggingface", "tokenizer": folder / "paddle"},
    ]
    jobs += [{"checkpoint": folder / name} for name in forms if name not in ("mindspore", "torch")]
    reference = [expected(prompt, GenerationSpec()) for prompt in PROMPTS]
    for job, found in zip(jobs, continued(jobs), strict=True):
        assert found == reference, job
    convert(run, folder / "spoilt", to="torch")
    arrays = weights_of(folder / "spoilt")
    arrays["h.0.attn.c_attn.weight"] = np.roll(arrays["h.0.attn.c_attn.weight"], 12, axis=1)  # v, q, k
    save_file(arrays, folder / "spoilt" / "model.safetensors")
    assert continued([{"checkpoint": folder / "spoilt"}]) != [reference], "it cannot tell q from k"


def test_an_adapter_is_used(run: Path, lora: Path, folder: Path) -> None:
    convert(lora, folder / "apart", to="torch", lora_alpha=ALPHA)
    assert (folder / "apart" / "adapter").is_dir()
    convert(lora, folder / "merged", to="torch", lora_alpha=ALPHA, merge_lora=True)
    base, apart, merged, direct = continued(
        [
            {"checkpoint": run},
            {"checkpoint": folder / "apart"},
            {"checkpoint": folder / "merged"},
            {"checkpoint": lora, "lora_alpha": ALPHA},
        ]
    )
    assert apart == merged == direct
    assert all(one != other for one, other in zip(base, apart, strict=True))
    shown = gptbridge("generate", folder / "apart", "-b", "torch", "-p", "a")
    assert shown.stderr == (
        "note: the LoRA beside the weights is added to them: rank 2, alpha 16, q, v of 2 layers\n"
    )
    asked = gptbridge("generate", lora, "-b", "torch", "-p", "a")
    assert (asked.returncode, "--lora-alpha" in asked.stderr) == (2, True)
    assert len(asked.stderr.splitlines()) == 1


def test_a_run_with_an_adapter_beside_it_is_not_resumed(run: Path, lora: Path, folder: Path) -> None:
    convert(lora, folder / "with-adapter", to="torch", lora_alpha=ALPHA)
    CheckpointStore(folder / "other" / "checkpoints").save(7, writer(SPEC, 7))
    step = folder / "other" / "checkpoints" / "step-00000007"
    (folder / "with-adapter" / "adapter").rename(step / "adapter")
    refused = gptbridge("train", "--resume", folder / "other", "--run", folder / "new", "-b", "torch")
    assert refused.returncode == 2
    assert "step-00000007: an adapter lies beside the weights, and a resumed run" in refused.stderr


@pytest.fixture
def classifier(run: Path, tmp_path: Path) -> Callable[[bool], Path]:
    """A function that makes a classifier, with or without a language head beside its own."""

    def made(language_head: bool) -> Path:
        path = tmp_path / f"classifier-{language_head}"
        convert(run, path, to="torch")
        arrays = weights_of(path)
        arrays["score.weight"] = np.ones((3, 12), np.float32)
        if language_head:
            arrays["lm_head.weight"] = arrays["wte.weight"]
        save_file(arrays, path / "model.safetensors", {"format": "pt"})
        config = json.loads((path / "config.json").read_text())
        names = {str(number): f"LABEL_{number}" for number in range(3)}
        (path / "config.json").write_text(json.dumps({**config, "id2label": names}))
        return path

    return made


def test_a_classifier_is_refused_by_name(classifier: Callable[[bool], Path], tmp_path: Path) -> None:
    path = classifier(False)
    for words in (("generate", path, "-p", "a"), ("train", "--resume", path, "--run", tmp_path / "run")):
        refused = gptbridge(*words, "-b", "torch")
        assert refused.returncode == 5
        assert "is a classifier with 3 classes (score.weight): it has no language head" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert "num labels         3" in gptbridge("inspect", path).stdout


def test_a_language_head_beside_a_classifiers_is_used(classifier: Callable[[bool], Path]) -> None:
    done = gptbridge("generate", classifier(True), "-b", "torch", "-p", "a")
    assert done.returncode == 0
    assert done.stderr == "note: score.weight, a classifier's head of 3 classes, is not used\n"


def test_no_tokenizer_is_one_line(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "out", to="paddle")
    (tmp_path / "bare").mkdir()
    weights = (tmp_path / "out" / "model_state.pdparams").rename(tmp_path / "bare" / "model_state.pdparams")
    words = ("generate", weights, "-b", "torch", "-p", "a", "--num-attention-heads", "3")
    refused = gptbridge(*words)
    assert refused.returncode == 5
    assert "bare: no tokenizer here" in refused.stderr
    assert refused.stderr.endswith("Name another: --tokenizer FOLDER, or --tokenizer byte\n")
    for name in ("byte", tmp_path / "out"):
        assert gptbridge(*words, "--tokenizer", name).returncode == 0
