"""Every layout of the MindSpore backend trains as one process does. Each compiles graphs: few cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptbridge_specs import RunSpec
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, PLAIN, SGD, Arrays, run_spec

Ranks = list[Arrays]

BOUNDS = {"adamw": CLOSE, "sgd": PLAIN}
# Layouts by their ranks, and the optimizers under which each is compared.
LAYOUTS: dict[int, dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    1: {"alone": ({}, ("adamw", "sgd"))},
    2: {
        "dp2": ({"data": 2}, ("adamw",)),
        "tp2": ({"tensor": 2}, ("sgd",)),
        "tp2-sequence": ({"tensor": 2, "sequence": True}, ("sgd",)),
    },
}
# What each of these Cells does is needed: where tensors pass it unchanged, a layout differs.
BROKEN = {
    "gradients-not-summed": ("dp2", "collectives:AllReduceEach"),
    "inputs-of-columns-not-summed": ("tp2", "collectives:Enter"),
}
CASES = [
    (ranks, name, optimizer)
    for ranks, found in LAYOUTS.items()
    for name, (_, optimizers) in found.items()
    for optimizer in optimizers
]


def case(parallel: dict[str, Any], optimizer: str) -> RunSpec:
    plain: dict[str, Any] = {"optimizer": SGD, "schedule": {"max_lr": 0.1}} if optimizer == "sgd" else {}
    return run_spec(parallel, model={"num_layers": 2}, training={"seq_length": 12}, **plain)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Ranks]]:
    """Return what the ranks of each case hold, of all cases of one number of ranks."""
    done: dict[int, dict[str, Ranks]] = {}

    def run(ranks: int) -> dict[str, Ranks]:
        if ranks not in done:
            layouts_here = LAYOUTS[ranks]
            cases = {
                f"{name}-{optimizer}": case(parallel, optimizer)
                for name, (parallel, optimizers) in layouts_here.items()
                for optimizer in optimizers
            }
            controls = {what: found for what, found in BROKEN.items() if found[0] in layouts_here}
            cases |= {what: case(layouts_here[name][0], "sgd") for what, (name, _) in controls.items()}
            broken = {
                what: f"gptbridge_mindspore.{cell}=tests.parallel.passed:Passed"
                for what, (_, cell) in controls.items()
            }
            folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
            done[ranks] = layouts.run("mindspore", cases, folder, steps=5, broken=broken)
        return done[ranks]

    return run


@pytest.mark.parametrize(("ranks", "name", "optimizer"), [found for found in CASES if found[0] > 1])
def test_a_layout_trains_as_one_process_does(
    job: Callable[[int], dict[str, Ranks]], ranks: int, name: str, optimizer: str
) -> None:
    model, bounds = case({}, optimizer).model, BOUNDS[optimizer]
    found = layouts.differences(model, job(ranks)[f"{name}-{optimizer}"], job(1)[f"alone-{optimizer}"][0])
    assert {what: value for what, value in found.items() if value > bounds.get(what, 1e-3)} == {}, found


@pytest.mark.parametrize("control", BROKEN)
def test_the_comparison_sees_what_is_not_exchanged(
    job: Callable[[int], dict[str, Ranks]], control: str
) -> None:
    (ranks,) = (n for n, found in LAYOUTS.items() if BROKEN[control][0] in found)
    found = layouts.differences(case({}, "sgd").model, job(ranks)[control], job(1)["alone-sgd"][0])
    assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found
