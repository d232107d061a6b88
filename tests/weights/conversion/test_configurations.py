"""What a dialect's configuration says, what its software takes for granted, and what it has no word for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from gptbridge.errors import UsageError
from gptbridge.weights.conversion.inspecting import inspect_checkpoint
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import MODEL, converted, random_weights, write_hugging_face

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
    weights, exact = load_file(back / "model.safetensors"), random_weights(MODEL)
    assert weights.keys() == exact.keys()
    assert all(np.array_equal(weights[name], exact[name]) for name in exact)
    assert json.loads((back / "config.json").read_text())["activation_function"] == "gelu"


@pytest.mark.parametrize("fused", [True, None])
def test_modelscope_base_computes_erf_whatever_its_file_says(fused: bool | None, base: Path) -> None:
    content = json.loads((base / "config.json").read_text())
    del content["bias_gelu_fusion"]
    (base / "config.json").write_text(json.dumps({**content, "bias_gelu_fusion": fused}))
    assert inspect_checkpoint(base)["model"] == ERF.model_dump()


def test_modelscope_chooses_its_model_class_by_the_megatron_section(base: Path, tmp_path: Path) -> None:
    large = converted(tmp_path / "erf", tmp_path / "large", "modelscope")
    contents = [json.loads((folder / "configuration.json").read_text()) for folder in (base, large)]
    assert ["megatron" in content for content in contents] == [False, True]


@pytest.mark.parametrize(
    ("variant", "activation"), [("base", "gelu_tanh"), ("base", "quick_gelu"), ("large", "quick_gelu")]
)
def test_modelscope_refuses_an_activation_that_it_would_not_compute(
    variant: str, activation: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "in", activation=activation)
    with pytest.raises(UsageError, match=f"the model computes {activation}, which modelscope"):
        converted(source, tmp_path / "out", "modelscope", variant=variant)
    assert not (tmp_path / "out").exists()


def test_modelscope_takes_its_own_epsilon_where_the_file_says_none(tmp_path: Path) -> None:
    folder = converted(written(tmp_path / "in"), tmp_path / "large", "modelscope")
    content = json.loads((folder / "config.json").read_text())
    assert (
        content.pop("layernorm_epsilon") == inspect_checkpoint(folder)["model"]["layernorm_epsilon"] == 1e-5
    )
    (folder / "config.json").write_text(json.dumps(content))
    assert inspect_checkpoint(folder)["model"]["layernorm_epsilon"] == 1e-12


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
