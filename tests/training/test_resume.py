"""A resumed run is the uninterrupted one: bit for bit on one backend, to fp32 rounding on another."""

from __future__ import annotations

import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import NO_DROPOUT, TINY, numbers_of, run_jobs

BACKENDS = ("torch", "paddle", "mindspore")
HALF = 4
STOP = f"training.stop_after_steps={HALF}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per backend: whole and half runs, with and without dropout; then every resumed half."""
    folder = tmp_path_factory.mktemp("resume")
    for backend in BACKENDS:
        kinds = [(kind, dropout) for kind in ("whole", "half") for dropout in ((), NO_DROPOUT)]
        run_jobs(folder, backend, [_job(folder, backend, kind, *dropout) for kind, dropout in kinds])
    for backend in BACKENDS:
        jobs = [{"run": str(_copy(folder / f"{backend}-half")), "resume": "auto"}]
        jobs += [
            {"run": str(folder / f"{other}-to-{backend}"), "resume": str(folder / f"{other}-half-smooth")}
            for other in BACKENDS
            if other != backend
        ]
        run_jobs(folder, backend, jobs)
    return folder


def _job(folder: Path, backend: str, kind: str, *dropout: str) -> dict[str, Any]:
    name = f"{backend}-{kind}" + ("-smooth" if dropout else "")
    stop = [STOP] if kind == "half" else []
    return {"run": str(folder / name), "overrides": [*TINY, *dropout, *stop]}


def _copy(run: Path) -> Path:
    return Path(shutil.copytree(run, f"{run}-resumed"))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_backend_is_bitwise_with_dropout(runs: Path, backend: str) -> None:
    whole, resumed = numbers_of(runs / f"{backend}-whole"), numbers_of(runs / f"{backend}-half-resumed")
    assert sorted(resumed) == list(range(1, 9))
    assert resumed == whole
    smooth = numbers_of(runs / f"{backend}-whole-smooth")
    assert smooth[8] != whole[8], "dropout changes nothing: the comparison proves nothing"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("before", "after"), list(permutations(BACKENDS, 2)))
def test_a_run_moves_between_frameworks(runs: Path, before: str, after: str) -> None:
    whole, moved = numbers_of(runs / f"{before}-whole-smooth"), numbers_of(runs / f"{before}-to-{after}")
    assert sorted(moved) == list(range(HALF + 1, 9))
    for step, numbers in moved.items():
        assert numbers == pytest.approx(whole[step], rel=1e-4)
        assert numbers[1] == whole[step][1]
