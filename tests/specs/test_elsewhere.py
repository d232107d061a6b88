"""What people bring from other systems is recognised and answered with what to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptbridge_specs import SpecError, load_model, load_run
from gptbridge_specs.elsewhere import _TYPED, preset_instead
from gptbridge_specs.loading import recipe_of
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.presets import preset_names

FILES = {
    "PaddleFleetX": "_base_: ./pretrain_gpt_base.yaml\nModel:\n  module: GPTModule\nEngine: {max_steps: 5}\n",
    "MindFormers": "seed: 0\nrun_mode: 'train'\ntrainer: {type: X}\nmodel: {arch: 1}\noptimizer: 1\n",
    "ModelScope": json.dumps({"framework": "pytorch", "task": "x", "model": {}, "train": {}}),
    "PaddleNLP": json.dumps({"model_type": "gpt", "input_dir": "./data", "max_lr": 1e-4}),
    "Hugging Face": json.dumps({"architectures": ["GPT2LMHeadModel"], "n_embd": 768, "model_type": "gpt2"}),
}


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as refused:
        load_run(name, overrides)
    return str(refused.value)


ALONE = {  # what holds the model and nothing else
    "PaddleFleetX": "Model: {vocab_size: 61, hidden_size: 48}\n",
    "MindFormers": "model: {model_config: {type: GPT2Config}, arch: {type: GPT2LMHeadModel}}\n",
    "PaddleNLP": json.dumps({"init_class": "GPTForPretraining", "init_args": []}),
}


@pytest.mark.parametrize("system", [*FILES, *(f"{system} alone" for system in ALONE)])
@pytest.mark.parametrize("load", [load_run, load_model])
def test_a_configuration_of_another_system_is_named(tmp_path: Path, system: str, load: object) -> None:
    path = tmp_path / "config.json"
    system, _, alone = system.partition(" alone") if system.endswith(" alone") else (system, "", None)
    path.write_text(FILES[system] if alone is None else ALONE[system])
    assert callable(load)
    with pytest.raises(SpecError) as refused:
        load(str(path))
    (line,) = refused.value.problems
    assert line.startswith(f"{path}: ")
    assert f"configuration of {system}" in line
    typed = "gptbridge train --init-from" if system == "Hugging Face" else f"gptbridge spec import {path} "
    assert typed in line


@pytest.mark.parametrize(
    ("kind", "system"), [("gpt", "PaddleNLP"), ("gpt3", "ModelScope"), ("gpt2", "Hugging Face")]
)
def test_the_kind_of_a_model_says_whose_its_configuration_is(tmp_path: Path, kind: str, system: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["X"], "model_type": kind, "hidden_act": "gelu"}))
    assert f"configuration of {system}" in refusal(str(path))


def test_our_own_files_are_nobody_elses(tmp_path: Path) -> None:
    for text in ("model: {num_layers: 2}", "optimizer: {beta1: 0.9}\ntask: {}\ndata: {}\n"):
        (tmp_path / "spec.yaml").write_text(text)
        load_run(str(tmp_path / "spec.yaml"))


@pytest.mark.parametrize("typed", sorted({typed for typed in _TYPED.values() if typed.startswith("-o ")}))
def test_what_is_to_be_typed_can_be_typed(typed: str) -> None:
    apply_overrides({}, [typed.removeprefix("-o ")])
    load_run("gpt2-tiny", [typed.removeprefix("-o "), "model.hidden_size=768", "model.num_attention_heads=12",
                           "model.max_position_embeddings=1024"])  # fmt: skip


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lr=1e-4", "Did you mean -o schedule.max_lr=1e-4?"),
        ("training.learning_rate=1", "Did you mean -o schedule.max_lr=1?"),
        ("run_mode=train", "gptbridge train, generate or convert"),
        ("batch_size=8", "training.global_batch_size"),
        ("training.device=cuda", "Did you mean gpu?"),
        ("training.device=cuda:0", "Did you mean gpu?"),
        ("training.device=GPU", "Did you mean gpu?"),
        ("training.device=npu", "Did you mean ascend?"),
        ("precision.compute=float16", "Did you mean fp16?"),
        ("schedule.name=CosineAnnealing", "Did you mean cosine?"),
        ("device_target=Ascend", "Did you mean -o training.device=ascend?"),
        ("model.activation=gelu", "Did you mean gelu_erf?"),
        ("schedule.name=cosin", "Did you mean cosine?"),
        ("generation.temperature=0", "generation.strategy=greedy"),
        ("temperature=0", "Did you mean -o generation.strategy=greedy?"),
        ("temperature=0.5", "Did you mean generation.temperature?"),
        ("device=cuda", "Did you mean -o training.device=gpu?"),
        ("precision=fp16", "is not a section of fields; precision has: compute, loss_scale"),
    ],
)
def test_other_words_are_answered(override: str, said: str) -> None:
    assert said in refusal("gpt2-tiny", override)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpt2", "gpt2-small"),
        ("openai/gpt2", "gpt2-small"),
        ("gpt-2", "gpt2-small"),
        ("gpt2-345M", "gpt2-medium"),
        ("gpt2-en", "paddlenlp-gpt2-en"),
        ("gpt2-medium-en", "fleetx-345m"),
        ("gpt3-1.3B-en", "fleetx-1.3b"),
        ("fleetx-345m-singl-card", "fleetx-345m-single-card"),
        ("gpt3-1.3b-poetry", "modelscope-gpt3-1.3b-poetry"),
        ("gpt3-1.3b", "modelscope-gpt3-1.3b"),
        ("GPT2_small", "gpt2-small"),
        ("fleetx-345M", "fleetx-345m"),
        ("lr=1e-4", "-o schedule.max_lr=1e-4"),
        ("training.max_steps=5", "-o training.max_steps=5"),
    ],
)
def test_models_by_other_names(name: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in refusal(name)


def test_a_name_like_nothing_suggests_nothing() -> None:
    assert preset_instead("zzz", preset_names("runs")) is None


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("preset: gpt2-tiny\nmodel:\n  num_layers: 0\ntraining:\n  max_step: 3\n  seed: 1\n")
    problems = refusal(str(path)).splitlines()
    assert [line.split(": ")[:2] for line in problems] == [
        [f"{path}:3", "model.num_layers"],
        [f"{path}:5", "training.max_step"],
    ]
    path.write_text("training: {seq_length: 512}\n")
    assert refusal(str(path)).startswith(f"{path}: training.seq_length=512 exceeds")
    assert (
        refusal(str(path), "training.seed=x", "training.seq_length=8")
        == "training.seed: 'x' is not a whole number"
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "{}", "null", "~"])
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    assert "is empty" in refusal(str(tmp_path / "spec.yaml"))


def test_which_recipe_a_name_means(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("preset: paddlenlp-gpt2-en\n")
    assert recipe_of(str(tmp_path / "spec.yaml")) == "paddlenlp-gpt2-en"
    assert recipe_of("paddlenlp-gpt2-en") == "paddlenlp-gpt2-en"
    assert recipe_of("gpt2-tiny") is None
    assert recipe_of("gpt2-small") is None
