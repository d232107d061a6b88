"""Adapters against PEFT itself: what it saves is read, what is written opens in it, with the same logits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptbridge
from tests.weights.conversion.checkpoints import MODEL

peft = pytest.importorskip("peft")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LORA: dict[str, dict[str, Any]] = {
    "every linear layer": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ["c_attn", "attn.c_proj"],
        "rank_pattern": {"attn.c_proj": 2},
        "alpha_pattern": {"attn.c_proj": 6, "h.1.attn.c_attn": 24},
    },
    "rslora in one layer": {
        "r": 4,
        "lora_alpha": 16,
        "use_rslora": True,
        "layers_to_transform": [1],
        "target_modules": ["c_attn", "c_fc"],
    },
}


def base_in(folder: Path) -> Any:
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def logits(model: Any) -> Any:
    tokens = torch.tensor(np.random.default_rng(0).integers(0, MODEL.vocab_size, (2, 17)))
    with torch.no_grad():
        return model(tokens).logits.numpy()


@pytest.mark.parametrize("kind", LORA)
def test_pefts_adapters_are_read_and_ours_open_in_peft(kind: str, original: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(base_in(original), peft.LoraConfig(task_type="CAUSAL_LM", **LORA[kind]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    theirs = shutil.copytree(original, tmp_path / "theirs")
    model.eval().save_pretrained(theirs / "adapter")
    right = logits(model)
    assert np.abs(right - logits(base_in(original))).max() > 0.1
    merged, ours = tmp_path / "merged", tmp_path / "ours"
    gptbridge.convert(theirs, merged, to="torch", merge_lora=True)
    np.testing.assert_allclose(logits(base_in(merged)), right, atol=1e-5)
    gptbridge.convert(theirs, ours, to="torch")
    opened = peft.PeftModel.from_pretrained(base_in(original), ours / "adapter").eval()
    np.testing.assert_allclose(logits(opened), right, atol=1e-5)
    shutil.rmtree(ours / "adapter")
    opened.save_pretrained(ours / "adapter")  # which drops the note of what the blocks are
    gptbridge.convert(ours, tmp_path / "again", to="torch", merge_lora=True)
    np.testing.assert_allclose(logits(base_in(tmp_path / "again")), right, atol=1e-5)
