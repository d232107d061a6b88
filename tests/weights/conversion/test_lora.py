"""LoRA of MindFormers and of PEFT: kept apart both ways, or merged; never dropped without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.conversion.facts import LoraFacts
from gptbridge.weights.conversion.verifying import verify
from gptbridge.weights.formats import open_weights
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    HEADS,
    MODEL,
    assert_identical,
    converted,
    digest_of,
    facts_of,
    rewrite_ckpt,
    weights_of,
)

RANK, ALPHA = 3, 12.0
HIDDEN = MODEL.hidden_size
Arrays = dict[str, NDArray[Any]]


def delta_name(layer: int, part: int, factor: str) -> str:
    return f"backbone.blocks.{layer}.attention.dense{part + 1}.mindpet_delta_lora_{factor}"


def deltas(seed: int = 5) -> Arrays:
    """Factors for q and v of three of the four layers, B not zero as it is after training."""
    stream = np.random.default_rng(seed)
    arrays = {}
    for layer in (0, 2, 3):
        for part in (0, 2):
            arrays[delta_name(layer, part, "a")] = stream.normal(size=(RANK, HIDDEN))
            arrays[delta_name(layer, part, "b")] = stream.normal(size=(HIDDEN, RANK))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def mindformers(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MindFormers checkpoint with LoRA beside its weights, whose YAML says alpha."""
    folder = converted(original, tmp_path_factory.mktemp("lora") / "mindformers", "mindspore")
    rewrite_ckpt(folder / "gpt2.ckpt", lambda arrays: arrays.update(deltas()))
    settings = yaml.safe_load((folder / "model.yaml").read_text())
    settings["model"]["model_config"]["pet_config"] = {"pet_type": "lora", "lora_alpha": ALPHA}
    (folder / "model.yaml").write_text(yaml.safe_dump(settings))
    return folder


def merged_by_hand(original: Path, factors: Arrays, alpha: float = ALPHA) -> Arrays:
    """Hugging Face weights with W += alpha / rank * B A, as MindFormers computes it."""
    weights = weights_of(original)
    for layer in range(MODEL.num_layers):
        matrix = weights[f"h.{layer}.attn.c_attn.weight"].astype(np.float64)
        for part in range(3):
            if (name := delta_name(layer, part, "a")) in factors:
                a, b = (factors[n].astype(np.float64) for n in (name, delta_name(layer, part, "b")))
                matrix[:, part * HIDDEN : (part + 1) * HIDDEN] += (b @ a).T * alpha / len(a)
        weights[f"h.{layer}.attn.c_attn.weight"] = matrix.astype(np.float32)
    return weights


def assert_close(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("c_attn.weight"):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-5)
        else:
            assert np.array_equal(found[name], value), name


def test_merging_adds_b_a_scaled(mindformers: Path, original: Path, tmp_path: Path) -> None:
    output = converted(mindformers, tmp_path / "out", "torch", merge_lora=True)
    assert not (output / "adapter").exists()
    weights = weights_of(output)
    assert_close(weights, merged_by_hand(original, deltas()))
    untouched = "h.1.attn.c_attn.weight"
    exact = weights_of(original)
    assert np.array_equal(weights[untouched], exact[untouched])
    keys = slice(HIDDEN, 2 * HIDDEN)
    assert np.array_equal(
        weights["h.0.attn.c_attn.weight"][:, keys], exact["h.0.attn.c_attn.weight"][:, keys]
    )
    assert verify(mindformers, output).passed
    assert not verify(mindformers, original).passed


@pytest.mark.parametrize(("dialect", "tensor", "pipeline"), [("paddle", 1, 1), ("megatron", 2, 2)])
def test_merging_for_any_layout_and_split(
    dialect: str, tensor: int, pipeline: int, mindformers: Path, original: Path, tmp_path: Path
) -> None:
    output = converted(
        mindformers, tmp_path / "out", dialect, tensor, pipeline, merge_lora=True, vocab_size=64
    )
    back = converted(output, tmp_path / "back", "torch", vocab_size=MODEL.vocab_size)
    assert_close(weights_of(back), merged_by_hand(original, deltas()))


def test_kept_apart_as_a_peft_adapter(mindformers: Path, original: Path, tmp_path: Path) -> None:
    output = converted(mindformers, tmp_path / "out", "torch")
    base = weights_of(output)
    assert_identical(base, weights_of(original))
    config = json.loads((output / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (2 * RANK, 2 * ALPHA, True)
    factors = load_file(output / "adapter" / "adapter_model.safetensors")
    assert len(factors) == 6
    for layer in (0, 2, 3):
        prefix = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        name = f"h.{layer}.attn.c_attn.weight"
        # What PEFT adds to a Conv1D: transpose(B @ A) * lora_alpha / r.
        a, b = factors[f"{prefix}.lora_A.weight"], factors[f"{prefix}.lora_B.weight"]
        base[name] = base[name] + (b @ a).T * np.float32(config["lora_alpha"] / config["r"])
    assert_close(base, merged_by_hand(original, deltas()))
    assert verify(mindformers, output).passed


def test_way_back_gives_the_same_deltas(mindformers: Path, tmp_path: Path) -> None:
    folder = converted(mindformers, tmp_path / "torch", "torch")
    back = converted(folder, tmp_path / "back", "mindspore")
    with open_weights(mindformers / "gpt2.ckpt") as first, open_weights(back / "gpt2.ckpt") as second:
        assert set(first.tensors) == set(second.tensors)
        assert all(np.array_equal(first.read(name), second.read(name)) for name in first.tensors)
    settings = yaml.safe_load((back / "model.yaml").read_text())["model"]["model_config"]["pet_config"]
    assert settings == {
        "pet_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ".*dense1|.*dense3",
    }
    assert digest_of(back) == digest_of(mindformers)


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (4, 2)])
def test_apart_in_rank_folders(tensor: int, pipeline: int, mindformers: Path, tmp_path: Path) -> None:
    split = converted(mindformers, tmp_path / "ranks", "mindspore", tensor, pipeline)
    assert digest_of(split) == digest_of(mindformers)
    assert facts_of(split).lora == LoraFacts(RANK, ALPHA, layers=3, parts=["q", "v"])


def test_digest_covers_lora(mindformers: Path, original: Path, tmp_path: Path) -> None:
    other = converted(mindformers, tmp_path / "other", "mindspore")
    rewrite_ckpt(other / "gpt2.ckpt", lambda arrays: arrays.update(deltas(6)))
    assert len({digest_of(folder) for folder in (other, mindformers, original)}) == 3


def write_peft(folder: Path, change: Callable[[dict[str, Any], Arrays], None] | None = None) -> Arrays:
    """Write an adapter as PEFT does: one pair of factors for q, k and v together."""
    stream = np.random.default_rng(3)
    prefix = "base_model.model.transformer.h.1.attn.c_attn"
    factors: Arrays = {
        f"{prefix}.lora_A.weight": stream.normal(size=(RANK, HIDDEN)).astype(np.float32),
        f"{prefix}.lora_B.weight": stream.normal(size=(3 * HIDDEN, RANK)).astype(np.float32),
    }
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["c_attn"], "bias": "none"}
    if change:
        change(config, factors)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    return factors


@pytest.mark.parametrize("place", [".", "adapter"])
def test_an_adapter_of_pefts_own_is_read(place: str, original: Path, tmp_path: Path) -> None:
    base = converted(original, tmp_path / "base", "torch")
    a, b = write_peft(base / place).values()
    expected: Arrays = {}
    for part, rows in enumerate(np.split(b, 3)):
        expected |= {delta_name(1, part, "a"): a, delta_name(1, part, "b"): rows}
    output = converted(base, tmp_path / "out", "mindspore")
    with open_weights(output / "gpt2.ckpt") as weights:
        assert all(np.array_equal(weights.read(name), value) for name, value in expected.items())
    merged = converted(output, tmp_path / "merged", "torch", merge_lora=True)
    assert_close(weights_of(merged), merged_by_hand(original, expected, 6))


@pytest.mark.parametrize("dialect", ["paddle", "fleetx", "modelscope", "megatron"])
def test_a_dialect_without_a_place_for_lora_is_refused(
    dialect: str, mindformers: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"has no place for it.*--merge-lora"):
        converted(mindformers, tmp_path / "out", dialect)
    assert not (tmp_path / "out").exists()


def test_alpha_that_no_file_says_is_asked_for(mindformers: Path, original: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "gpt2.ckpt").write_bytes((mindformers / "gpt2.ckpt").read_bytes())
    for merge in (False, True):
        with pytest.raises(UsageError, match=r"no file beside the LoRA .* --lora-alpha A"):
            converted(lone, tmp_path / "out", "torch", hints=HEADS, merge_lora=merge)
    hints = Hints(model=HEADS.model, lora_alpha=ALPHA)
    output = converted(lone, tmp_path / "out", "torch", hints=hints, merge_lora=True)
    assert_close(weights_of(output), merged_by_hand(original, deltas()))


def test_merging_where_there_is_no_lora_is_refused(original: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no LoRA to merge"):
        converted(original, tmp_path / "out", "torch", merge_lora=True)


def test_half_a_pair_is_refused(mindformers: Path, tmp_path: Path) -> None:
    folder = converted(mindformers, tmp_path / "half", "mindspore")
    rewrite_ckpt(folder / "gpt2.ckpt", lambda arrays: arrays.pop(delta_name(2, 2, "b")))
    with pytest.raises(BadInput, match=r"h\.2\.attn\.v\.lora_a has no matching h\.2\.attn\.v\.lora_b"):
        facts_of(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda config, _: config.update(use_dora=True), "use_dora is True"),
        (lambda config, _: config.update(peft_type="IA3"), "peft_type is IA3"),
        (
            lambda config, _: config.update(rank_pattern={"c_attn": 4}),
            "attn.c_attn of layer 1 has rank 3, not 4",
        ),
        (lambda config, _: config.update(alpha_pattern={"h.*": 4}), "alpha_pattern is"),
        (lambda config, _: config.update(lora_alpha="6"), "lora_alpha is 6"),
        (lambda config, _: config.update(lora_alpha=None), "lora_alpha is None"),
        (
            lambda _, factors: factors.update({"x.mlp.lora_A.weight": np.ones(3)}),
            "x.mlp.lora_A.weight is left",
        ),
        (lambda _, factors: factors.pop(next(iter(factors))), "half a pair"),
        (lambda _, factors: factors.clear(), "holds no LoRA"),
        (
            lambda _, factors: factors.update({next(iter(factors)): np.ones((RANK, 7), np.float32)}),
            r"lora_A.weight is float32 \(3, 7\), not \(3, 48\)",
        ),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(
    change: Callable[[dict[str, Any], Arrays], None], problem: str, original: Path, tmp_path: Path
) -> None:
    base = converted(original, tmp_path / "base", "torch")
    write_peft(base / "adapter", change)
    with pytest.raises(BadInput, match=problem):
        facts_of(base)
