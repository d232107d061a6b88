"""Every layout of the torch backend trains as one process does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from gptbridge_specs import ModelSpec
from gptbridge_torch import parts
from gptbridge_torch.collectives import Cut
from tests.parallel.layouts import MODEL
from tests.parallel.parity import DROPPED, LayoutTests

BOTH = ("adamw", "sgd")
# Sums of bf16 products in another order: three times what is seen.
LOWER = {
    "loss": 1e-3,
    "grad_norm": 3e-3,
    "logits": 0.03,
    "decoded": 0.03,
    "token_losses": 0.01,
    "weight": 0.05,
}
LOWER |= {"exp_avg": 0.15, "exp_avg_sq": 0.1}


class TestTorch(LayoutTests):
    backend = "torch"
    VARIANTS: ClassVar[dict[str, tuple[dict[str, Any], Mapping[str, float]]]] = {
        **LayoutTests.VARIANTS,
        "bf16": ({"precision": {"compute": "bf16"}}, LOWER),
    }
    LAYOUTS: ClassVar[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
        "dp": ({"data": 2}, ("sgd", "attn-dropped", "adapted")),
        "tp": ({"tensor": 2}, ("sgd", "bf16", "attn-dropped")),
        "tp-sequence": ({"tensor": 2, "sequence": True}, (*BOTH, "dropped")),
        "pp": ({"pipeline": 2}, ("sgd", "bf16", "dropped")),
        "pp-gpipe": ({"pipeline": 2, "pipeline_schedule": "gpipe"}, ("adamw",)),
        "pp-virtual": ({"pipeline": 2, "virtual_pipeline": 2}, ("adamw", "dropped")),
        "pp-virtual-gpipe": (
            {"pipeline": 2, "virtual_pipeline": 2, "pipeline_schedule": "gpipe"},
            ("sgd",),
        ),
        "sharding-1": ({"sharding": 2, "sharding_stage": 1}, BOTH),
        "sharding-2": ({"sharding": 2, "sharding_stage": 2}, ("adamw", "bf16")),
        "sharding-3": ({"sharding": 2, "sharding_stage": 3}, (*BOTH, "attn-dropped")),
        "dp-tp": ({"data": 2, "tensor": 2}, ("adamw",)),
        "dp-pp": ({"data": 2, "pipeline": 2}, ("sgd",)),
        "tp-pp": ({"tensor": 2, "pipeline": 2, "sequence": True}, ("adamw", "dropped", "packed")),
        "dp-sharding-1": ({"data": 2, "sharding": 2, "sharding_stage": 1}, ("adamw",)),
        "pp-sharding-2": ({"pipeline": 2, "sharding": 2, "sharding_stage": 2}, ("adamw",)),
        "tp-sharding-3": ({"tensor": 2, "sequence": True, "sharding": 2, "sharding_stage": 3}, ("adamw",)),
    }
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {
        "gradients": ("dp", "gptbridge_torch.session:all_reduce_each"),
        "gradients of the stream": ("tp-sequence", "gptbridge_torch.session:all_reduce_each"),
        "gradients of a tied embedding": ("pp", "gptbridge_torch.session:all_reduce"),
        "sums over the vocabulary": ("tp", "gptbridge_torch.loss:all_reduce"),
        "sums of rows": ("tp", "gptbridge_torch.parts:leave"),
        "gradients of columns": ("tp", "gptbridge_torch.parts:enter"),
        "the norm": ("pp", "gptbridge_torch.optimizer:all_reduce"),
    }


def test_a_fused_kernel_draws_for_a_rank_s_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSpec.model_validate({**MODEL, **DROPPED})
    sites = []
    monkeypatch.setattr(parts, "sow", lambda device, seed, layer, site: sites.append(site))
    for rank in (0, 1):
        part = parts.Attention(model, 1, parts.Recompute("none", random=False), Cut(index=rank, degree=2))
        q, k, v = torch.empty((3, 2, 3, 11, 8), device="meta").unbind()
        part._attend(q, k, v, 5)
    assert sites == ["attention of rank 0", "attention of rank 1"]
