"""config.json to a ModelSpec and back; what is no GPT-2 is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbridge.errors import BadInput
from gptbridge.weights.dialects.huggingface import CONFIG, config_of, read_model
from gptbridge_specs import ModelSpec


def model_of(content: dict[str, Any]) -> ModelSpec:
    return CONFIG.model(content, "config.json")


MODELS = st.builds(
    ModelSpec,
    vocab_size=st.integers(1, 60000),
    hidden_size=st.integers(1, 64).map(lambda n: 12 * n),
    num_layers=st.integers(1, 100),
    num_attention_heads=st.sampled_from([1, 2, 3, 4, 6, 12]),
    ffn_hidden_size=st.none() | st.integers(1, 4096),
    max_position_embeddings=st.integers(1, 4096),
    activation=st.sampled_from(["gelu_tanh", "gelu_erf", "quick_gelu"]),
    layernorm_epsilon=st.floats(1e-12, 0.1),
    hidden_dropout_prob=st.floats(0, 0.9),
    attention_probs_dropout_prob=st.floats(0, 0.9),
    tie_word_embeddings=st.booleans(),
)


@given(MODELS)
def test_both_ways(model: ModelSpec) -> None:
    assert model_of(json.loads(json.dumps(config_of(model)))) == model


def test_what_transformers_leaves_out_is_its_default() -> None:
    model = model_of({"model_type": "gpt2"})
    assert (model.vocab_size, model.hidden_size, model.num_layers) == (50257, 768, 12)
    assert model.max_position_embeddings == 1024
    assert model_of({"n_ctx": 77}).max_position_embeddings == 77


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"activation_function": "relu"}, "relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"n_embd": "768"}, "n_embd"),
        ({"n_embd": True}, "n_embd"),
        ({"n_layer": -1}, "n_layer"),
        ({"n_layer": 10**30}, "n_layer"),
        ({"n_head": 7}, "num_attention_heads=7"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon"),
        ({"activation_function": ["gelu"]}, "activation_function"),
    ],
)
def test_anything_else_is_refused_by_name(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        model_of({**config_of(ModelSpec()), **changed})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"n_embd": NaN}',
        b'{"n_embd": 1, "n_embd": 2}',
        b"[" * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b" " * (2 << 20),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
