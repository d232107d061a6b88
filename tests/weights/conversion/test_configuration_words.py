"""Each system's own words for a model, against the ModelSpec that they mean and the files that we write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptbridge.errors import BadInput
from gptbridge.weights.configs.model import build_model
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.formats import open_weights
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import converted, random_weights, write_hugging_face

MODEL = ModelSpec(
    vocab_size=61,
    hidden_size=48,
    num_layers=4,
    num_attention_heads=6,
    ffn_hidden_size=96,
    max_position_embeddings=20,
    activation="gelu_tanh",
    layernorm_epsilon=1e-5,
    hidden_dropout_prob=0.25,
    attention_probs_dropout_prob=0.5,
    initializer_range=0.03,
)
HUGGING_FACE = """{
  "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 61, "n_embd": 48, "n_layer": 4,
  "n_head": 6, "n_inner": 96, "n_positions": 20, "activation_function": "gelu_new",
  "layer_norm_epsilon": 1e-05, "resid_pdrop": 0.25, "embd_pdrop": 0.25, "attn_pdrop": 0.5,
  "initializer_range": 0.03, "tie_word_embeddings": true
}"""
PADDLENLP = """{
  "architectures": ["GPTForPretraining"], "model_type": "gpt", "vocab_size": 61, "hidden_size": 48,
  "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 96, "hidden_act": "gelu",
  "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5, "max_position_embeddings": 20,
  "type_vocab_size": 16, "initializer_range": 0.03
}"""
PADDLENLP_BEFORE_2_5 = """{
  "init_args": [{
    "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6,
    "intermediate_size": 96, "hidden_act": "gelu", "hidden_dropout_prob": 0.25,
    "attention_probs_dropout_prob": 0.5, "max_position_embeddings": 20, "type_vocab_size": 16,
    "initializer_range": 0.03, "init_class": "GPTModel"
  }],
  "init_class": "GPTForPretraining"
}"""
FLEETX = """
Model:
  module: GPTModule
  name: GPT
  vocab_size: 61
  hidden_size: 48
  num_layers: 4
  num_attention_heads: 6
  ffn_hidden_size: 96
  hidden_dropout_prob: 0.25
  attention_probs_dropout_prob: 0.5
  max_position_embeddings: 20
  type_vocab_size: 16
  initializer_range: 0.03
  fuse_attn_qkv: True
  scale_qk_by_layer_num: True
Distributed:
  mp_degree: 1
  pp_degree: 1
"""
MINDFORMERS = """
model:
  model_config:
    type: GPT2Config
    vocab_size: 61
    hidden_size: 48
    num_layers: 4
    num_heads: 6
    expand_ratio: 2
    hidden_act: gelu
    hidden_dropout_rate: 0.25
    attention_dropout_rate: 0.5
    max_position_embeddings: 20
    initializer_range: 0.03
  arch:
    type: GPT2LMHeadModel
"""
MODELSCOPE = """{
  "model_type": "gpt3", "vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 4,
  "num_attention_heads": 6, "ffn_hidden_size": 96, "max_position_embeddings": 20, "layernorm_epsilon": 1e-05,
  "hidden_dropout_prob": 0.25, "attention_probs_dropout_prob": 0.5, "init_method_std": 0.03,
  "bias_gelu_fusion": true
}"""
MODELSCOPE_TASK = """{
  "framework": "pytorch", "task": "text-generation", "model": {"type": "gpt3"},
  "pipeline": {"type": "gpt3-generation"},
  "megatron": {
    "world_size": 1, "tensor_model_parallel_size": 1, "checkpoint_tensor_model_parallel_size": 1
  }
}"""
MEGATRON = """{
  "num_layers": 4, "hidden_size": 48, "ffn_hidden_size": 96, "num_attention_heads": 6,
  "max_position_embeddings": 20, "padded_vocab_size": 61, "layernorm_epsilon": 1e-05,
  "hidden_dropout": 0.25, "attention_dropout": 0.5, "init_method_std": 0.03, "bias_gelu_fusion": true,
  "openai_gelu": false, "position_embedding_type": "learned_absolute",
  "untie_embeddings_and_output_weights": false,
  "tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1
}"""
# Words that are read too: of other releases, or of the other systems that the files went through.
OTHER_WORDS = {
    "paddle": """{
      "vocab_size": 61, "n_embd": 48, "n_layer": 4, "n_head": 6, "n_inner": 96, "n_positions": 20,
      "activation_function": "gelu_new", "layernorm_epsilon": 1e-05, "resid_pdrop": 0.25, "attn_pdrop": 0.5,
      "initializer_range": 0.03
    }""",
    "mindspore": """{"model": {"model_config": {
      "vocab_size": 61, "embedding_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6,
      "expand_ratio": 2, "seq_length": 20, "hidden_act": "gelu", "layernorm_epsilon": 1e-05,
      "hidden_dropout_prob": 0.25, "attention_dropout_prob": 0.5, "initializer_range": 0.03
    }}}""",
    "modelscope": """{
      "vocab_size": 61, "hidden_size": 48, "num_layers": 4, "num_attention_heads": 6, "intermediate_size": 96,
      "max_position_embeddings": 20, "layernorm_epsilon": 1e-05, "hidden_dropout": 0.25,
      "attention_dropout": 0.5, "initializer_range": 0.03
    }""",
    "megatron": """{
      "padded_vocab_size": 61, "hidden_size": 48, "encoder_num_layers": 4, "num_attention_heads": 6,
      "ffn_hidden_size": 96, "max_position_embeddings": 20, "norm_epsilon": 1e-05, "hidden_dropout": 0.25,
      "attention_dropout": 0.5, "init_method_std": 0.03, "normalization": "LayerNorm", "swiglu": false,
      "num_experts": null, "group_query_attention": false, "add_bias_linear": true
    }""",
}
# dialect, the file beside the weights that is written, and its content; None: inside the weights' file
FILES = [
    ("torch", "config.json", HUGGING_FACE),
    ("gptbridge", "config.json", HUGGING_FACE),
    ("paddle", "config.json", PADDLENLP),
    ("paddle", "model_config.json", PADDLENLP_BEFORE_2_5),
    ("fleetx", "model.yaml", FLEETX),
    ("mindspore", "model.yaml", MINDFORMERS),
    ("modelscope", "config.json", MODELSCOPE),
    ("megatron", None, MEGATRON),
]


def parsed(text: str, name: str | None) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(text) if name == "model.yaml" else json.loads(text)
    return content


def holds(whole: object, part: object) -> bool:
    """Whether `whole` has every key of `part`, to the depth of its dicts, with the same value."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return whole == part and type(whole) is type(part)


@pytest.mark.parametrize(("dialect", "name", "text"), FILES)
def test_a_systems_own_file_is_understood(dialect: str, name: str | None, text: str, tmp_path: Path) -> None:
    if name is None:
        facts = find_dialect(dialect).config.read(json.loads(text), "args")
    else:
        (tmp_path / name).write_text(text)
        facts = find_dialect(dialect).config.read_file(tmp_path / name)
    assert build_model(facts.fields, "the file") == MODEL


@pytest.mark.parametrize(("dialect", "text"), OTHER_WORDS.items())
def test_its_other_words_are_understood(dialect: str, text: str) -> None:
    facts = find_dialect(dialect).config.read(json.loads(text), "the file")
    assert build_model(facts.fields, "the file") == MODEL


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hugging_face(tmp_path_factory.mktemp("words") / "in", MODEL, random_weights(MODEL))


@pytest.mark.parametrize(
    ("dialect", "name", "text"), [*FILES, ("modelscope", "configuration.json", MODELSCOPE_TASK)]
)
def test_the_file_that_is_written_has_those_words(
    dialect: str, name: str | None, text: str, source: Path, tmp_path: Path
) -> None:
    folder = converted(source, tmp_path / "out", dialect)
    if name is None:
        with open_weights(folder / "release" / "mp_rank_00" / "model_optim_rng.pt") as weights:
            assert isinstance(weights.tree, dict)
            written: object = weights.tree["args"]
    else:
        written = parsed((folder / name).read_text(), name)
    assert holds(written, parsed(text, name)), written


@pytest.mark.parametrize(
    ("dialect", "words", "activation"),
    [
        ("megatron", {}, "gelu_tanh"),
        ("megatron", {"bias_gelu_fusion": True}, "gelu_tanh"),
        ("megatron", {"bias_gelu_fusion": False}, "gelu_erf"),
        ("megatron", {"bias_gelu_fusion": False, "openai_gelu": False}, "gelu_erf"),
        ("megatron", {"bias_gelu_fusion": False, "openai_gelu": True}, "gelu_tanh"),
        ("megatron", {"openai_gelu": False}, "gelu_tanh"),
        ("modelscope", {}, "gelu_tanh"),
        ("modelscope", {"bias_gelu_fusion": True}, "gelu_tanh"),
        ("modelscope", {"bias_gelu_fusion": False}, "gelu_erf"),
        ("paddle", {}, "gelu_tanh"),
        ("paddle", {"hidden_act": "gelu"}, "gelu_tanh"),
        ("fleetx", {"Model": {}}, "gelu_tanh"),
        ("mindspore", {"model": {"model_config": {}}}, "gelu_tanh"),
        ("mindspore", {"model": {"model_config": {"hidden_act": "gelu"}}}, "gelu_tanh"),
        ("mindspore", {"model": {"model_config": {"hidden_act": "fast_gelu"}}}, "quick_gelu"),
    ],
)
def test_the_activation_is_what_the_system_computes(
    dialect: str, words: dict[str, Any], activation: str
) -> None:
    assert find_dialect(dialect).config.read(words, "the file").fields["activation"] == activation


@pytest.mark.parametrize(
    ("dialect", "key", "value"),
    [
        ("megatron", "swiglu", True),
        ("megatron", "normalization", "RMSNorm"),
        ("megatron", "position_embedding_type", "rope"),
        ("megatron", "position_embedding_type", "none"),
        ("megatron", "group_query_attention", True),
        ("megatron", "num_experts", 8),
        ("megatron", "add_bias_linear", False),
        ("megatron", "apply_residual_connection_post_layernorm", True),
        ("modelscope", "apply_residual_connection_post_layernorm", True),
    ],
)
def test_another_architecture_is_refused_by_its_switch(dialect: str, key: str, value: Any) -> None:
    words = json.loads(OTHER_WORDS[dialect])
    with pytest.raises(BadInput, match=rf"^the file: {key} is {value} \(allowed: "):
        find_dialect(dialect).config.read({**words, key: value}, "the file")


def test_what_a_file_holds_is_told_from_what_it_lacks() -> None:
    whole: object = {"a": 1, "b": [{"c": True, "d": 2}]}
    assert holds(whole, {"b": [{"c": True}]})
    parts: list[object] = [{"a": True}, {"z": 1}, {"b": [{"c": False}]}, {"b": []}]
    assert not any(holds(whole, part) for part in parts)
