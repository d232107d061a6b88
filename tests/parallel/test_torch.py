"""Every layout of the torch backend trains as one process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gptbridge_specs import RunSpec
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, PLAIN, SGD, Arrays, run_spec

BACKEND = "torch"
Ranks = list[Arrays]

# Layouts by their ranks. Each is compared under AdamW, and under SGD where rounding does not grow.
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "dp2": {"data": 2},
        "tp2": {"tensor": 2},
        "tp2-sequence": {"tensor": 2, "sequence": True},
    },
    4: {
        "dp4": {"data": 4},
        "dp2-tp2": {"data": 2, "tensor": 2, "sequence": True},
        "tp4-heads": {"tensor": 4, "sequence": True},
    },
}
# What each of these functions does is needed: without it, a layout differs.
BROKEN: dict[int, dict[str, tuple[str, str]]] = {
    2: {
        "gradients-not-summed": ("dp2", "gptbridge_torch.session:all_reduce_each"),
        "stream-not-summed": ("tp2-sequence", "gptbridge_torch.session:all_reduce_each"),
        "loss-not-summed": ("tp2", "gptbridge_torch.loss:all_reduce"),
        "rows-not-summed": ("tp2", "gptbridge_torch.parts:leave"),
        "columns-not-summed": ("tp2", "gptbridge_torch.parts:enter"),
    },
}
NAMES = [(ranks, name) for ranks, found in LAYOUTS.items() for name in found]


def specs(parallel: dict[str, Any], name: str) -> dict[str, RunSpec]:
    return {
        f"{name}-adamw": run_spec(parallel),
        f"{name}-sgd": run_spec(parallel, optimizer=SGD, schedule={"max_lr": 0.1}),
    }


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Ranks]]:
    """Return what the ranks of each case hold, of all cases of one number of ranks."""
    done: dict[int, dict[str, Ranks]] = {}

    def run(ranks: int) -> dict[str, Ranks]:
        if ranks not in done:
            found = LAYOUTS.get(ranks, {"alone": {}})
            cases = {case: spec for name, given in found.items() for case, spec in specs(given, name).items()}
            broken = {}
            for control, (name, function) in BROKEN.get(ranks, {}).items():
                cases[control] = specs(found[name], name)[f"{name}-sgd"]
                broken[control] = function
            folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
            done[ranks] = layouts.run(BACKEND, cases, folder, broken=broken)
        return done[ranks]

    return run


@pytest.mark.parametrize(("optimizer", "bounds"), [("adamw", CLOSE), ("sgd", PLAIN)])
@pytest.mark.parametrize(("ranks", "name"), NAMES)
def test_a_layout_trains_as_one_process_does(
    job: Callable[[int], dict[str, Ranks]], ranks: int, name: str, optimizer: str, bounds: dict[str, float]
) -> None:
    spec = run_spec(LAYOUTS[ranks][name])
    alone = job(1)[f"alone-{optimizer}"][0]
    found = layouts.differences(spec.model, job(ranks)[f"{name}-{optimizer}"], alone)
    assert {what: value for what, value in found.items() if value > bounds.get(what, 1e-3)} == {}, found


@pytest.mark.parametrize(("ranks", "control"), [(n, name) for n, found in BROKEN.items() for name in found])
def test_the_comparison_sees_what_is_not_exchanged(
    job: Callable[[int], dict[str, Ranks]], ranks: int, control: str
) -> None:
    spec = run_spec(LAYOUTS[ranks][BROKEN[ranks][control][0]])
    found = layouts.differences(spec.model, job(ranks)[control], job(1)["alone-sgd"][0])
    assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found
