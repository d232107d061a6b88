"""A run moves between layouts and frameworks as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import NO_DROPOUT, TINY, gptbridge, numbers_of, options, run_jobs

SPEC = [*TINY, *NO_DROPOUT, "evaluation.interval=0", "training.micro_batch_size=1", "training.max_steps=8"]
# The layout of each two steps, set field by field on top of the one before.
JOURNEY = [
    ("torch", ["parallel.tensor=2"]),
    ("paddle", ["parallel.tensor=1", "parallel.pipeline=2"]),
    ("mindspore", ["parallel.pipeline=1", "parallel.sharding=2", "parallel.sharding_stage=3"]),
    ("torch", ["parallel.sharding=1", "parallel.sharding_stage=0"]),
]


@pytest.mark.timeout(600)
def test_a_run_goes_from_layout_to_layout(tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "alone"
    for number, (backend, layout) in enumerate(JOURNEY, start=1):
        more = [*layout, *(SPEC if number == 1 else []), f"training.stop_after_steps={2 * number}"]
        words = ["train", "-b", backend, "--run", str(run), "--resume", "auto", "--quiet", *options(more)]
        done = gptbridge(*words, timeout=240)
        assert (done.returncode, done.stderr) == (0, ""), (backend, done.stderr)
    run_jobs(tmp_path, "torch", [{"run": str(alone), "overrides": SPEC}])
    for step, numbers in numbers_of(alone).items():
        assert numbers_of(run)[step] == pytest.approx(numbers, rel=1e-4), step
    assert numbers_of(alone)[8] != pytest.approx(numbers_of(alone)[7], rel=1e-4)  # steps are told apart
