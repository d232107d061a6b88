"""Every layout of the torch backend trains as one process does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_torch.collectives import Cut
from gptbridge_torch.parts import Attention, Recompute
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, MODEL, PLAIN, SGD, Arrays, run_spec

BACKEND = "torch"
STEPS = 6
Ranks = list[Arrays]
Job = Callable[[int], dict[str, Ranks]]

DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
# What is trained, and how near a layout must be to one process.
VARIANTS: dict[str, tuple[dict[str, Any], Mapping[str, float]]] = {
    "adamw": ({}, CLOSE),
    "sgd": ({"optimizer": SGD, "schedule": {"max_lr": 0.1}}, PLAIN),
    "dropped": ({"model": DROPPED, "training": {"recompute": "full"}}, CLOSE),
    "hidden-dropped": (
        {"model": {"hidden_dropout_prob": 0.1}, "training": {"recompute": "full_attn"}},
        CLOSE,
    ),
    "bf16": ({"precision": {"compute": "bf16"}}, {"loss": 5e-3, "grad_norm": 5e-2}),
}
# By the number of ranks: a layout, and what is trained under it.
LAYOUTS: dict[int, dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    1: {"alone": ({}, tuple(VARIANTS))},
    2: {
        "dp": ({"data": 2}, ("adamw", "dropped")),
        "tp": ({"tensor": 2}, ("sgd", "bf16")),
        "tp-sequence": ({"tensor": 2, "sequence": True}, ("adamw", "sgd", "hidden-dropped")),
        "pp": ({"pipeline": 2}, ("sgd", "dropped", "bf16")),
        "pp-gpipe": ({"pipeline": 2, "pipeline_schedule": "gpipe"}, ("adamw",)),
        "pp-virtual": ({"pipeline": 2, "virtual_pipeline": 2}, ("adamw",)),
        "pp-virtual-gpipe": (
            {"pipeline": 2, "virtual_pipeline": 2, "pipeline_schedule": "gpipe"},
            ("dropped",),
        ),
        "sharding-1": ({"sharding": 2, "sharding_stage": 1}, ("adamw",)),
        "sharding-2": ({"sharding": 2, "sharding_stage": 2}, ("adamw", "bf16")),
        "sharding-3": ({"sharding": 2, "sharding_stage": 3}, ("sgd", "dropped")),
    },
    4: {
        "dp-tp": ({"data": 2, "tensor": 2}, ("adamw",)),
        "pp-tp": ({"pipeline": 2, "tensor": 2, "sequence": True}, ("sgd",)),
        "pp-dp": ({"pipeline": 2, "data": 2}, ("dropped",)),
        "sharding-1-dp": ({"sharding": 2, "sharding_stage": 1, "data": 2}, ("sgd",)),
        "sharding-2-pp": ({"sharding": 2, "sharding_stage": 2, "pipeline": 2}, ("adamw",)),
        "sharding-3-tp": ({"sharding": 2, "sharding_stage": 3, "tensor": 2, "sequence": True}, ("adamw",)),
        "tp4": ({"tensor": 4}, ("sgd",)),  # of 6 heads
    },
}
CASES = [
    (ranks, layout, variant)
    for ranks, found in LAYOUTS.items()
    for layout, (_, variants) in found.items()
    for variant in variants
    if ranks > 1
]
# What each of these functions does is needed: without it, a layout of 2 ranks under SGD differs.
BROKEN = {
    "gradients": ("dp", "gptbridge_torch.session:all_reduce_each"),
    "gradients of the stream": ("tp-sequence", "gptbridge_torch.session:all_reduce_each"),
    "sums over the vocabulary": ("tp", "gptbridge_torch.loss:all_reduce"),
    "sums of rows": ("tp", "gptbridge_torch.parts:leave"),
    "gradients of columns": ("tp", "gptbridge_torch.parts:enter"),
    "gradients of a tied embedding": ("pp", "gptbridge_torch.session:all_reduce"),
}


def spec_of(ranks: int, layout: str, variant: str) -> RunSpec:
    return run_spec(LAYOUTS[ranks][layout][0], **VARIANTS[variant][0])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return what the ranks of each case hold, of all cases of one number of ranks: they run once."""
    done: dict[int, dict[str, Ranks] | BaseException] = {}

    def run(ranks: int) -> dict[str, Ranks]:
        cases = {
            f"{layout}-{variant}": spec_of(ranks, layout, variant)
            for layout, (_, variants) in LAYOUTS[ranks].items()
            for variant in variants
        }
        broken = {}
        if ranks == 2:
            for control, (layout, function) in BROKEN.items():
                cases[control], broken[control] = spec_of(2, layout, "sgd"), function
        return layouts.run(
            BACKEND, cases, tmp_path_factory.mktemp(f"ranks-{ranks}"), steps=STEPS, broken=broken
        )

    def once(ranks: int) -> dict[str, Ranks]:
        if ranks not in done:
            try:
                done[ranks] = run(ranks)
            except AssertionError as error:
                done[ranks] = error
        found = done[ranks]
        if isinstance(found, BaseException):
            raise found
        return found

    return once


@pytest.mark.parametrize(("ranks", "layout", "variant"), CASES)
def test_a_layout_trains_as_one_process_does(job: Job, ranks: int, layout: str, variant: str) -> None:
    spec, bounds = spec_of(ranks, layout, variant), VARIANTS[variant][1]
    alone = job(1)[f"alone-{variant}"][0]
    found = layouts.differences(spec.model, job(ranks)[f"{layout}-{variant}"], alone)
    rest = 1e-3 if variant != "bf16" else 0.2
    assert {what: value for what, value in found.items() if value > bounds.get(what, rest)} == {}, found


@pytest.mark.parametrize("control", BROKEN)
def test_the_comparison_sees_what_is_not_exchanged(job: Job, control: str) -> None:
    spec = spec_of(2, BROKEN[control][0], "sgd")
    found = layouts.differences(spec.model, job(2)[control], job(1)["alone-sgd"][0])
    assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found


def test_the_comparison_sees_another_dropout_and_another_precision(job: Job) -> None:
    alone = {variant: job(1)[f"alone-{variant}"][0] for variant in ("adamw", "dropped", "bf16")}
    for variant, least in (("dropped", 1e-3), ("bf16", 1e-6)):
        found = layouts.differences(spec_of(1, "alone", "adamw").model, [alone[variant]], alone["adamw"])
        assert found["loss"] > least


def test_a_tensor_rank_draws_attention_dropout_for_its_heads_alone() -> None:
    model = ModelSpec.model_validate({**MODEL, **DROPPED})
    q, k, v = torch.randn(3, 2, 3, 11, 8).unbind()

    def attended(rank: int, seed: int) -> torch.Tensor:
        part = Attention(model, 1, Recompute("none", random=False), Cut(index=rank, degree=2))
        return part._attend(q, k, v, seed)

    assert torch.equal(attended(0, 5), attended(0, 5))
    assert not torch.equal(attended(0, 5), attended(1, 5))
    assert not torch.equal(attended(0, 5), attended(0, 6))
