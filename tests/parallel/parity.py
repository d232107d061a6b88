"""The tests of a backend's layouts: every one trains as one process does, and what it exchanges is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from gptbridge_specs import RunSpec
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, PLAIN, SGD, Arrays, run_spec

Ranks = list[Arrays]
Job = Callable[[int], dict[str, Ranks]]

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def plain(**parts: Any) -> RunSpec:
    """Return a run under SGD without clipping, which no rounding grows in."""
    return run_spec(parts.pop("parallel"), optimizer=SGD, schedule={"max_lr": 0.1}, **parts)


class LayoutTests:
    """Subclass it in a backend's test file. All cases of one number of ranks share a process group."""

    backend: ClassVar[str]
    steps: ClassVar[int] = layouts.STEPS
    # Layouts by name. Each is compared under AdamW and under SGD; those of DROPPED with dropout as well.
    LAYOUTS: ClassVar[dict[str, dict[str, Any]]]
    DROPPED: ClassVar[dict[str, dict[str, Any]]] = {}  # further parts of the spec
    # What each of these functions does is needed: without it, a layout differs.
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give each test the names of its cases."""
        for argument, names in (
            ("layout", self.LAYOUTS),
            ("dropped", self.DROPPED),
            ("control", self.BROKEN),
        ):
            if argument in metafunc.fixturenames:
                metafunc.parametrize(argument, list(names))

    @classmethod
    def cases(cls, ranks: int) -> dict[str, RunSpec]:
        """Return every case of so many ranks."""
        found = {"alone": {}} if ranks == 1 else cls.LAYOUTS
        cases: dict[str, RunSpec] = {}
        for name, parallel in found.items():
            cases |= {f"{name}-adamw": run_spec(parallel), f"{name}-sgd": plain(parallel=parallel)}
        if ranks == 1:
            cases["alone-dropped"] = plain(parallel={}, model=DROPOUT)
        for name, training in cls.DROPPED.items():
            cases[f"{name}-dropped"] = plain(parallel=cls.LAYOUTS[name], model=DROPOUT, training=training)
        for control, (name, _) in cls.BROKEN.items():
            cases[control] = cases.get(f"{name}-sgd") or plain(parallel=cls.LAYOUTS[name])
        return {name: spec for name, spec in cases.items() if spec.parallel.world_size == ranks}

    @pytest.fixture(scope="class")
    @classmethod
    def job(cls, tmp_path_factory: pytest.TempPathFactory) -> Job:
        """Return what the ranks of each case hold, of all cases of one number of ranks."""
        done: dict[int, dict[str, Ranks]] = {}

        def run(ranks: int) -> dict[str, Ranks]:
            if ranks not in done:
                cases = cls.cases(ranks)
                broken = {control: place for control, (_, place) in cls.BROKEN.items() if control in cases}
                folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
                done[ranks] = layouts.run(cls.backend, cases, folder, steps=cls.steps, broken=broken)
            return done[ranks]

        return run

    def differences(self, job: Job, case: str, parallel: dict[str, Any], alone: str) -> dict[str, float]:
        spec = run_spec(parallel)
        return layouts.differences(spec.model, job(spec.parallel.world_size)[case], job(1)[alone][0])

    @pytest.mark.parametrize(("optimizer", "bounds"), [("adamw", CLOSE), ("sgd", PLAIN)])
    def test_a_layout_trains_as_one_process_does(
        self, job: Job, layout: str, optimizer: str, bounds: dict[str, float]
    ) -> None:
        found = self.differences(job, f"{layout}-{optimizer}", self.LAYOUTS[layout], f"alone-{optimizer}")
        assert {what: value for what, value in found.items() if value > bounds.get(what, 1e-3)} == {}, found

    def test_a_layout_drops_what_one_process_does(self, job: Job, dropped: str) -> None:
        found = self.differences(job, f"{dropped}-dropped", self.LAYOUTS[dropped], "alone-dropped")
        assert {what: value for what, value in found.items() if value > PLAIN.get(what, 1e-3)} == {}, found
        kept = self.differences(job, f"{dropped}-sgd", self.LAYOUTS[dropped], "alone-dropped")
        assert kept["loss"] > 100 * PLAIN["loss"], kept

    def test_the_comparison_sees_what_is_not_exchanged(self, job: Job, control: str) -> None:
        found = self.differences(job, control, self.LAYOUTS[self.BROKEN[control][0]], "alone-sgd")
        assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found
