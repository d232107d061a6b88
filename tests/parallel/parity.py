"""The tests of a backend's layouts: every one trains as one process does, and what it exchanges is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from gptbridge_specs import RunSpec
from tests.parallel import layouts
from tests.parallel.layouts import CLOSE, PACKED, PLAIN, SGD, TASK, Arrays, run_spec

Ranks = list[Arrays]
Job = Callable[[int], dict[str, Ranks]]

PLAIN_SGD = {"optimizer": SGD, "schedule": {"max_lr": 0.1}}
DROPPED = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


# The first test of a class waits for two jobs, on a machine that may be busy with other tests.
@pytest.mark.timeout(2 * layouts.PATIENCE)
class LayoutTests:
    """Subclass it in a backend's test file. All cases of one number of ranks share a process group."""

    backend: ClassVar[str]
    # What is trained, and how near a layout must be to one process.
    VARIANTS: ClassVar[dict[str, tuple[dict[str, Any], Mapping[str, float]]]] = {
        "adamw": ({}, CLOSE),
        "sgd": (PLAIN_SGD, PLAIN),
        "dropped": ({**PLAIN_SGD, "model": DROPPED, "training": {"recompute": "full"}}, PLAIN),
        "attn-dropped": ({**PLAIN_SGD, "model": DROPPED, "training": {"recompute": "full_attn"}}, PLAIN),
        "adapted": ({"task": TASK}, CLOSE),
        "packed": (
            {**PLAIN_SGD, "model": DROPPED, "task": PACKED, "training": {"recompute": "core_attn"}},
            PLAIN,
        ),
    }
    LAYOUTS: ClassVar[dict[str, tuple[dict[str, Any], tuple[str, ...]]]]  # and what is trained under each
    # What each of these functions does is needed: without it, a layout differs under SGD.
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {}
    READ: ClassVar[frozenset[str] | None] = None  # cases whose model is read in the end; None: all

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give each test its cases."""
        pairs = [(layout, variant) for layout, (_, found) in self.LAYOUTS.items() for variant in found]
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize(("layout", "variant"), pairs)
        if "control" in metafunc.fixturenames:
            metafunc.parametrize("control", list(self.BROKEN))

    @classmethod
    def spec(cls, layout: str, variant: str) -> RunSpec:
        parallel = {} if layout == "alone" else cls.LAYOUTS[layout][0]
        return run_spec(parallel, **cls.VARIANTS[variant][0])

    @classmethod
    def cases(cls, ranks: int) -> dict[str, RunSpec]:
        """Return every case of so many ranks."""
        variants = {name: found for name, (_, found) in cls.LAYOUTS.items()} | {"alone": tuple(cls.VARIANTS)}
        cases = {f"{name}-{v}": cls.spec(name, v) for name, found in variants.items() for v in found}
        cases |= {control: cls.spec(layout, "sgd") for control, (layout, _) in cls.BROKEN.items()}
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
                done[ranks] = layouts.run(cls.backend, cases, folder, broken=broken, read=cls.READ)
            return done[ranks]

        return run

    def differences(self, job: Job, case: str, layout: str, variant: str) -> dict[str, float]:
        spec = self.spec(layout, variant)
        ranks, alone = job(spec.parallel.world_size)[case], job(1)[f"alone-{variant}"][0]
        return layouts.differences(spec, ranks, alone)

    def test_a_layout_trains_as_one_process_does(self, job: Job, layout: str, variant: str) -> None:
        found = self.differences(job, f"{layout}-{variant}", layout, variant)
        bounds = self.VARIANTS[variant][1]
        assert {what: value for what, value in found.items() if value > bounds.get(what, 1e-3)} == {}, found

    def test_the_comparison_sees_what_is_not_exchanged(self, job: Job, control: str) -> None:
        found = self.differences(job, control, self.BROKEN[control][0], "sgd")
        assert any(found[what] > 10 * bound for what, bound in PLAIN.items()), found

    def test_the_comparison_sees_another_dropout(self, job: Job) -> None:
        found = self.differences(job, "alone-dropped", "alone", "sgd")
        assert found["loss"] > 100 * PLAIN["loss"]
