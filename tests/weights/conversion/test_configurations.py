"""What a dialect's configuration says, what its software takes for granted, and what it has no word for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import save_file

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.conversion.verifying import verify
from gptbridge.weights.formats import TensorRef, write_torch
from gptbridge.weights.opening import Hints
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import (
    HEADS,
    MODEL,
    arrays_in,
    assert_identical,
    converted,
    entries_of,
    facts_of,
    random_weights,
    weights_of,
    write_hugging_face,
)

ERF = MODEL.model_copy(update={"activation": "gelu_erf"})


def written(folder: Path, **changes: Any) -> Path:
    model = ModelSpec.model_validate({**MODEL.model_dump(), **changes})
    return write_hugging_face(folder, model, random_weights(model))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A checkpoint in the form of ModelScope's base and large sizes."""
    return converted(
        written(tmp_path / "erf", activation="gelu_erf"), tmp_path / "base", "modelscope", variant="base"
    )


def test_modelscope_base_survives_both_ways(base: Path, tmp_path: Path) -> None:
    back = converted(base, tmp_path / "back", "torch")
    assert_identical(weights_of(back), random_weights(MODEL))
    assert json.loads((back / "config.json").read_text())["activation_function"] == "gelu"


@pytest.mark.parametrize("fused", [True, None])
def test_modelscope_base_computes_erf_whatever_its_file_says(fused: bool | None, base: Path) -> None:
    content = json.loads((base / "config.json").read_text())
    del content["bias_gelu_fusion"]
    (base / "config.json").write_text(json.dumps({**content, "bias_gelu_fusion": fused}))
    assert facts_of(base).model == ERF


def test_modelscope_chooses_its_model_class_by_the_megatron_section(base: Path, tmp_path: Path) -> None:
    large = converted(tmp_path / "erf", tmp_path / "large", "modelscope")
    contents = [json.loads((folder / "configuration.json").read_text()) for folder in (base, large)]
    assert ["megatron" in content for content in contents] == [False, True]


@pytest.mark.parametrize(
    ("dialect", "variant", "activation"),
    [
        ("modelscope", "base", "gelu_tanh"),
        ("modelscope", "base", "quick_gelu"),
        ("modelscope", "large", "quick_gelu"),
        ("megatron", "version-3", "quick_gelu"),
        ("megatron", "core", "quick_gelu"),
    ],
)
def test_an_activation_that_the_target_would_not_compute_is_refused(
    dialect: str, variant: str, activation: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "in", activation=activation)
    with pytest.raises(UsageError, match=f"the model computes {activation}, which {dialect}"):
        converted(source, tmp_path / "out", dialect, variant=variant)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dialect", ["paddle", "fleetx", "mindspore"])
def test_an_epsilon_that_the_target_would_not_compute_is_told_and_kept(dialect: str, tmp_path: Path) -> None:
    source = written(tmp_path / "in", layernorm_epsilon=1e-3)
    done = convert_checkpoint(Conversion(source, tmp_path / "out", dialect))
    assert done.notes == (
        f"{dialect} itself always computes layernorm_epsilon=1e-05, and this model has 0.001",
    )
    assert verify(source, tmp_path / "out").passed
    assert facts_of(tmp_path / "out").model.layernorm_epsilon == 1e-3
    assert convert_checkpoint(Conversion(written(tmp_path / "usual"), tmp_path / "more", dialect)).notes == ()


def test_what_is_taken_for_granted_without_a_configuration_is_told(tmp_path: Path) -> None:
    source = written(tmp_path / "in")
    (source / "config.json").unlink()
    (note,) = convert_checkpoint(Conversion(source, tmp_path / "out", "torch", HEADS)).notes
    assert "activation=gelu_tanh and layernorm_epsilon=1e-05 taken" in note
    whole = Hints(model=ConfigFacts(MODEL.model_dump()))
    assert convert_checkpoint(Conversion(source, tmp_path / "more", "torch", whole)).notes == ()


def test_an_activation_that_the_layout_fixes_is_not_said_to_be_taken(base: Path, tmp_path: Path) -> None:
    for name in ("config.json", "configuration.json"):
        (base / name).unlink(missing_ok=True)
    (note,) = convert_checkpoint(Conversion(base, tmp_path / "out", "torch", HEADS)).notes
    assert "weights: layernorm_epsilon=1e-12 taken" in note


def test_paddlenlp_is_read_in_hugging_faces_words(tmp_path: Path) -> None:
    folder = converted(written(tmp_path / "in", activation="gelu_erf"), tmp_path / "out", "paddle")
    (folder / "model_config.json").unlink()
    words = {"n_embd": 48, "n_layer": 4, "n_head": 4, "n_inner": 96, "n_positions": 20, "vocab_size": 61}
    rates = {"resid_pdrop": 0.25, "attn_pdrop": 0.5, "activation_function": "gelu_erf"}
    (folder / "config.json").write_text(json.dumps({**words, **rates}))
    model = facts_of(folder).model
    assert (model.activation, model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (
        "gelu_erf",
        0.25,
        0.5,
    )
    (folder / "config.json").write_text(json.dumps({**words, **rates, "activation_function": "relu"}))
    with pytest.raises(BadInput, match="activation_function is 'relu'"):
        facts_of(folder)


def test_modelscope_takes_its_own_epsilon_where_the_file_says_none(tmp_path: Path) -> None:
    folder = converted(written(tmp_path / "in"), tmp_path / "large", "modelscope")
    content = json.loads((folder / "config.json").read_text())
    assert content.pop("layernorm_epsilon") == facts_of(folder).model.layernorm_epsilon == 1e-5
    (folder / "config.json").write_text(json.dumps(content))
    assert facts_of(folder).model.layernorm_epsilon == 1e-12


@pytest.mark.parametrize(
    ("dialect", "variant", "epsilon"),
    [
        ("modelscope", "large", 1e-12),
        ("modelscope", "base", 1e-12),
        ("paddle", None, 1e-5),
        ("fleetx", None, 1e-5),
        ("mindspore", None, 1e-5),
    ],
)
def test_without_a_configuration_the_systems_own_epsilon_is_taken(
    dialect: str, variant: str | None, epsilon: float, tmp_path: Path
) -> None:
    source = written(tmp_path / "in", activation="gelu_erf")
    folder = converted(source, tmp_path / "out", dialect, variant=variant)
    for name in ("config.json", "model_config.json", "configuration.json", "model.yaml"):
        (folder / name).unlink(missing_ok=True)
    facts = facts_of(folder, HEADS)
    assert facts.configuration is None
    assert facts.model.layernorm_epsilon == epsilon


@pytest.mark.parametrize(("variant", "fused"), [("fused", True), ("split", False)])
def test_fleetx_is_told_which_qkv_it_gets(variant: str, fused: bool, original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "out", "fleetx", variant=variant)
    assert yaml.safe_load((folder / "model.yaml").read_text())["Model"]["fuse_attn_qkv"] is fused


@pytest.mark.parametrize(("variant", "pipeline"), [("split", 2), ("fused", 2), ("pipeline", 1)])
def test_fleetx_stages_have_one_layout(variant: str, pipeline: int, original: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--variant {variant} with --pipeline-parallel {pipeline}"):
        converted(original, tmp_path / "out", "fleetx", 1, pipeline, variant=variant)


def test_mindformers_has_whole_ratios_only(tmp_path: Path) -> None:
    source = written(tmp_path / "in", ffn_hidden_size=100)
    with pytest.raises(UsageError, match="ffn_hidden_size is 100"):
        converted(source, tmp_path / "out", "mindspore")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_is_cut_is_told_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    source = written(tmp_path / "in")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "eos_token_id": 50}))
    done = convert_checkpoint(Conversion(source, tmp_path / "out", "paddle", vocab_size=51))
    assert done.notes == ("the embedding keeps 51 of its 61 rows",)
    with pytest.raises(UsageError, match="--vocab-size 50 cuts eos_token_id=50 off"):
        convert_checkpoint(Conversion(source, tmp_path / "more", "paddle", vocab_size=50))


def test_fused_qkv_of_paddlenlp_is_read_with_its_own_configuration(original: Path, tmp_path: Path) -> None:
    fused = converted(original, tmp_path / "fused", "fleetx")
    (fused / "model.yaml").unlink()
    paddle = converted(original, tmp_path / "paddle", "paddle")
    (paddle / "config.json").rename(fused / "config.json")
    assert facts_of(fused).model == facts_of(original).model


def test_one_rank_alone_is_refused_with_a_hint(original: Path, tmp_path: Path) -> None:
    for dialect, rank in (
        ("megatron", "release/mp_rank_00"),
        ("fleetx", "mp_01_sharding_00_pp_00"),
        ("modelscope", "model/mp_rank_01_model_states.pt"),
    ):
        folder = converted(original, tmp_path / dialect, dialect, 2, vocab_size=64)
        with pytest.raises(BadInput, match="If this is one of several ranks, give the folder of them all"):
            facts_of(folder / rank, HEADS)


def test_modelscope_is_found_from_the_folder_of_its_ranks(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "out", "modelscope", 2, vocab_size=64)
    model = facts_of(folder).model
    assert facts_of(folder / "model").model == model
    assert model.num_attention_heads == MODEL.num_attention_heads


def test_heads_that_file_and_user_say_differently_are_refused(original: Path, tmp_path: Path) -> None:
    other = Hints(model=ConfigFacts({"num_attention_heads": 6}, "--num-attention-heads"))
    with pytest.raises(BadInput, match=r"config\.json says num_attention_heads=4, but .* says 6"):
        convert_checkpoint(Conversion(original, tmp_path / "out", "torch", other))
    assert not (tmp_path / "out").exists()


def test_what_the_user_overrules_is_told(original: Path, tmp_path: Path) -> None:
    other = Hints(model=ConfigFacts({"activation": "gelu_erf"}, "--model m.yaml"))
    (note,) = convert_checkpoint(Conversion(original, tmp_path / "out", "torch", other)).notes
    assert "config.json means activation=gelu_tanh: --model m.yaml's gelu_erf is taken" in note


@pytest.mark.parametrize(("dialect", "told"), [("fleetx", True), ("megatron", True), ("paddle", False)])
def test_special_tokens_that_find_no_place_are_told(dialect: str, told: bool, tmp_path: Path) -> None:
    source = written(tmp_path / "in")
    config = json.loads((source / "config.json").read_text()) | {"eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(config))
    notes = convert_checkpoint(Conversion(source, tmp_path / "out", dialect)).notes
    assert any("no place for" in note and "eos_token_id=7" in note for note in notes) == told


@pytest.mark.parametrize("dialect", ["torch", "megatron"])
def test_a_number_beyond_the_type_asked_for_is_refused(dialect: str, original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "in")
    weights = weights_of(original)
    weights["h.1.mlp.c_fc.weight"][3, 5] = 1e6
    save_file(weights, tmp_path / "in" / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"h\.1\.mlp\.c_fc\.weight holds 1e\+06, which is beyond float16"):
        convert_checkpoint(Conversion(tmp_path / "in", tmp_path / "out", dialect, dtype="float16"))
    assert not (tmp_path / "out").exists()
    convert_checkpoint(Conversion(tmp_path / "in", tmp_path / "out", dialect, dtype="bfloat16"))


def test_modelscope_base_in_both_wrappers(base: Path, tmp_path: Path) -> None:
    digest = facts_of(base, HEADS).digest
    file = base / "pytorch_model.bin"
    arrays = {f"model.{name}": array for name, array in arrays_in(file).items()}
    tree: Any = {"state_dict": {name: TensorRef(name) for name in arrays}}
    write_torch(file, entries_of(arrays), tree)
    assert facts_of(base, HEADS).digest == digest
