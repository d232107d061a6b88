"""Every layout of the torch backend trains as one process does."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_torch import parts
from gptbridge_torch.collectives import Cut
from tests.parallel.layouts import MODEL, run_spec
from tests.parallel.parity import DROPOUT, Job, LayoutTests

FULL = {"recompute": "full"}
LOWER = {"loss": 5e-3, "grad_norm": 5e-2}  # a sum of bf16 products in another order


class TestTorch(LayoutTests):
    backend = "torch"
    steps = 3
    LAYOUTS: ClassVar[dict[str, dict[str, Any]]] = {
        "dp2": {"data": 2},
        "tp2": {"tensor": 2},
        "tp2-sequence": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2},
        "pp2-gpipe": {"pipeline": 2, "pipeline_schedule": "gpipe"},
        "pp2-virtual": {"pipeline": 2, "virtual_pipeline": 2},
        "pp2-virtual-gpipe": {"pipeline": 2, "virtual_pipeline": 2, "pipeline_schedule": "gpipe"},
        "sharding1": {"sharding": 2, "sharding_stage": 1},
        "sharding2": {"sharding": 2, "sharding_stage": 2},
        "sharding3": {"sharding": 2, "sharding_stage": 3},
        "dp2-tp2": {"data": 2, "tensor": 2},
        "tp2-pp2": {"tensor": 2, "pipeline": 2, "sequence": True},
        "dp2-pp2": {"data": 2, "pipeline": 2},
        "dp2-sharding1": {"data": 2, "sharding": 2, "sharding_stage": 1},
        "pp2-sharding2": {"pipeline": 2, "sharding": 2, "sharding_stage": 2},
        "tp2-sharding3": {"tensor": 2, "sequence": True, "sharding": 2, "sharding_stage": 3},
    }
    DROPPED: ClassVar[dict[str, dict[str, Any]]] = {
        "dp2": {},
        "tp2": {"recompute": "core_attn"},
        "tp2-sequence": FULL,
        "pp2": FULL,
        "pp2-virtual": {},
        "sharding3": {"recompute": "full_attn"},
        "tp2-pp2": FULL,
    }
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {
        "gradients-not-summed": ("dp2", "gptbridge_torch.session:all_reduce_each"),
        "stream-not-summed": ("tp2-sequence", "gptbridge_torch.session:all_reduce_each"),
        "ends-not-summed": ("pp2", "gptbridge_torch.session:all_reduce"),
        "loss-not-summed": ("tp2", "gptbridge_torch.loss:all_reduce"),
        "rows-not-summed": ("tp2", "gptbridge_torch.parts:leave"),
        "columns-not-summed": ("tp2", "gptbridge_torch.parts:enter"),
        "norm-not-summed": ("pp2", "gptbridge_torch.optimizer:all_reduce"),
    }

    @classmethod
    def cases(cls, ranks: int) -> dict[str, RunSpec]:
        """Return every case of so many ranks, some in bf16 as well."""
        found = super().cases(ranks)
        for name in ("alone", "tp2", "pp2", "sharding2"):
            if f"{name}-adamw" in found:
                parallel = cls.LAYOUTS.get(name, {})
                found[f"{name}-bf16"] = run_spec(parallel, precision={"compute": "bf16"})
        return found

    @pytest.mark.parametrize("lower", ["tp2", "pp2", "sharding2"])
    def test_lower_precision_is_as_near(self, job: Job, lower: str) -> None:
        found = self.differences(job, f"{lower}-bf16", self.LAYOUTS[lower], "alone-bf16")
        assert all(found[what] < bound for what, bound in LOWER.items()), found
        exact = self.differences(job, f"{lower}-adamw", self.LAYOUTS[lower], "alone-bf16")
        assert exact["loss"] > 1e-6


def test_a_fused_kernel_draws_for_a_rank_s_heads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSpec.model_validate({**MODEL, **DROPOUT})
    sites = []
    monkeypatch.setattr(parts, "sow", lambda device, seed, layer, site: sites.append(site))
    for rank in (0, 1):
        part = parts.Attention(model, 1, parts.Recompute("none", random=False), Cut(index=rank, degree=2))
        q, k, v = torch.empty((3, 2, 3, 11, 8), device="meta").unbind()
        part._attend(q, k, v, 5)
    assert sites == ["attention of rank 0", "attention of rank 1"]
