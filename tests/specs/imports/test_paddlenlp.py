"""Configurations of PaddleNLP, in the words of its own files, become specs that lose nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.specs.imports.reading import Files, differing, refusal, value
from tests.specs.imports.texts import PADDLENLP, changed


def test_paddlenlp_s_command_is_the_preset(files: Files) -> None:
    imported = files.read("run.sh", PADDLENLP)
    assert differing(imported, "paddlenlp-gpt2-en") == {"training.device"}
    assert imported.options == ("--run output/gpt",)


@pytest.mark.parametrize(
    ("flag", "field", "on", "alone"),
    [("use_amp", "precision.compute", "fp16", "fp32"),
     ("use_recompute", "training.recompute", "full", "none"),
     ("check_accuracy", "model.hidden_dropout_prob", 0.0, 0.1)],
)  # fmt: skip
def test_paddlenlp_switches(files: Files, flag: str, field: str, on: Any, alone: Any) -> None:
    """A switch without a value is off: so its parser has it."""
    for words, expected in (
        (f"--{flag} true", on),
        (f"--{flag} y", on),
        (f"--{flag} no", alone),
        (f"--{flag}", alone),
    ):
        imported = files.read("run.sh", PADDLENLP.replace("--logging_freq 1", f"--logging_freq 1 {words}"))
        assert value(imported.spec, field) == expected
    assert any("without a value means false" in line.text for line in imported.lines)


def test_paddlenlp_s_arguments_in_json(files: Files) -> None:
    words = {"model_type": "gpt", "model_name_or_path": "gpt2-en", "input_dir": "data", "use_amp": True,
             "use_recompute": False, "max_lr": 3e-4, "output_dir": "out"}  # fmt: skip
    spec = files.read("args.json", json.dumps(words)).spec
    assert (spec.precision.compute, spec.training.recompute, spec.schedule.max_lr) == ("fp16", "none", 3e-4)


def test_paddlenlp_shards_only_where_it_is_switched_on(files: Files) -> None:
    text = changed(PADDLENLP, ("--logging_freq 1", "--sharding_degree 4"), ("--global_batch_size 4", ""))
    assert files.read("run.sh", text).spec.parallel.world_size == 1
    spec = files.read("run.sh", text.replace("degree 4", "degree 4 --use_sharding true")).spec
    assert (spec.parallel.sharding, spec.parallel.sharding_stage, spec.training.global_batch_size) == (
        4,
        1,
        16,
    )


def test_paddlenlp_s_own_defaults_are_written(files: Files) -> None:
    """They are not ours: decay and clipping are off, and AdamW's second beta is 0.999."""
    imported = files.read("args.txt", "--model_type gpt\n--model_name_or_path gpt2-en  # the small one\n")
    spec = imported.spec
    assert (spec.optimizer.weight_decay, spec.optimizer.clip_grad_norm, spec.optimizer.beta2) == (
        0.0,
        None,
        0.999,
    )
    assert (spec.schedule.max_lr, spec.training.global_batch_size, spec.training.seq_length) == (
        1e-4,
        8,
        1024,
    )
    assert any("an older release's is 1e-5" in line.text for line in imported.lines)


def test_paddlenlp_s_model_of_its_own(files: Files) -> None:
    inner = {"vocab_size": 67, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
             "intermediate_size": 192, "max_position_embeddings": 40, "type_vocab_size": 16,
             "hidden_act": "gelu"}  # fmt: skip
    nested = json.dumps(
        {"init_args": [{**inner, "init_class": "GPTModel"}], "init_class": "GPTForPretraining"}
    )
    spec = files.read("model_config.json", nested).spec
    assert (spec.model.num_layers, spec.model.ffn_size, spec.training.seq_length) == (3, 192, 40)
    text = PADDLENLP.replace("gpt2-en", str(files.folder)).replace("--device", "--max_seq_len 40 --device")
    imported = files.read("run.sh", text)
    assert imported.spec.model.model_copy(update={"hidden_dropout_prob": 0.1}) == spec.model
    assert f"--init-from {files.folder}" in imported.options
    newer = json.dumps(
        {**inner, "model_type": "gpt", "architectures": ["GPTForPretraining"], "eos_token_id": 7}
    )
    assert files.read("config.json", newer).spec.model == spec.model
    theirs = newer.replace('"gpt"', '"gpt2"')
    assert "gptbridge train --init-from FOLDER" in refusal(files.read, "config.json", theirs)
    bad = nested.replace('"gelu"', '"relu"')
    assert "not one of gelu" in refusal(files.read, "model_config.json", bad)
