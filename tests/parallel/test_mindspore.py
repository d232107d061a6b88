"""Every layout of the MindSpore backend trains as one process does. Each compiles graphs: few cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gptbridge_specs import RunSpec
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, PACKED, PLAIN, SGD, TASK, Arrays, run_spec

STEPS = 3
Ranks = list[Arrays]
Job = Callable[[int], dict[str, Ranks]]

SHALLOW = {"num_layers": 2}
DROPPED = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
# What is trained, and how near a layout must be to one process.
VARIANTS: dict[str, tuple[dict[str, Any], Mapping[str, float]]] = {
    "sgd": ({"model": SHALLOW, "optimizer": SGD, "schedule": {"max_lr": 0.1}}, PLAIN),
    "dropped": ({"model": SHALLOW | DROPPED, "training": {"recompute": "full"}}, CLOSE),
    "deep": ({"model": DROPPED, "task": PACKED}, CLOSE),
    "adapted": ({"model": SHALLOW, "task": TASK}, CLOSE),
}
# By the number of ranks: a layout, and what is trained under it.
LAYOUTS: dict[int, dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    1: {"alone": ({}, tuple(VARIANTS))},
    2: {
        "dp": ({"data": 2}, ("dropped", "adapted")),
        "tp-sequence": ({"tensor": 2, "sequence": True}, ("dropped",)),
        "pp-virtual": ({"pipeline": 2, "virtual_pipeline": 2}, ("deep",)),
        "sharding-1": ({"sharding": 2, "sharding_stage": 1}, ("dropped",)),
        "sharding-2": ({"sharding": 2, "sharding_stage": 2}, ("sgd",)),
        "sharding-3": ({"sharding": 2, "sharding_stage": 3}, ("dropped",)),
    },
    4: {"pp-tp": ({"pipeline": 2, "tensor": 2, "sequence": True}, ("dropped",))},
}
CASES = [
    (ranks, layout, variant)
    for ranks, found in LAYOUTS.items()
    for layout, (_, variants) in found.items()
    for variant in variants
    if ranks > 1
]
READ = {"dp-dropped", "tp-sequence-dropped", "pp-virtual-deep", "sharding-3-dropped"}
# What each of these does is needed: without it, a layout of 2 ranks under SGD differs.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "gradients": ({"data": 2}, "session:all_reduce_each"),
    "gradients of the stream": ({"tensor": 2, "sequence": True}, "session:summed"),
    "gradients of a tied embedding": ({"pipeline": 2}, "session:summed"),
    "gradients of columns": ({"tensor": 2}, "parts:enter=tests.parallel.passed:Passed"),
}


def spec_of(ranks: int, layout: str, variant: str) -> RunSpec:
    return run_spec(LAYOUTS[ranks][layout][0], **VARIANTS[variant][0])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return what the ranks of each case hold, of all cases of one number of ranks."""
    done: dict[int, dict[str, Ranks]] = {}

    def run(ranks: int) -> dict[str, Ranks]:
        if ranks not in done:
            cases = {
                f"{layout}-{variant}": spec_of(ranks, layout, variant)
                for layout, (_, variants) in LAYOUTS[ranks].items()
                for variant in variants
            }
            broken = BROKEN if ranks == 2 else {}
            plain = VARIANTS["sgd"][0]
            cases |= {control: run_spec(parallel, **plain) for control, (parallel, _) in broken.items()}
            done[ranks] = layouts.run(
                "mindspore",
                cases,
                tmp_path_factory.mktemp(f"ranks-{ranks}"),
                steps=STEPS,
                broken={control: f"gptbridge_mindspore.{place}" for control, (_, place) in broken.items()},
                unread={*cases} - READ - {f"alone-{variant}" for variant in VARIANTS},
            )
        return done[ranks]

    return run


@pytest.mark.parametrize(("ranks", "layout", "variant"), CASES)
def test_a_layout_trains_as_one_process_does(job: Job, ranks: int, layout: str, variant: str) -> None:
    bounds, spec = VARIANTS[variant][1], spec_of(ranks, layout, variant)
    alone = job(1)[f"alone-{variant}"][0]
    found = layouts.differences(spec, job(ranks)[f"{layout}-{variant}"], alone)
    assert {what: value for what, value in found.items() if value > bounds.get(what, 1e-3)} == {}, found


@pytest.mark.parametrize("control", BROKEN)
def test_the_comparison_sees_what_is_not_exchanged(job: Job, control: str) -> None:
    found = layouts.differences(spec_of(1, "alone", "sgd"), job(2)[control], job(1)["alone-sgd"][0])
    assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found
