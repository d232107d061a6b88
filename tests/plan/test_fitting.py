"""What cannot fit is refused before a framework is loaded, with what would fit; --force overrules."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.errors import UsageError
from gptbridge.plan import fitting, machine
from gptbridge.plan.fitting import plan_memory, require_room, require_room_to_open
from gptbridge.plugins.backend import load_plugin
from gptbridge.session import Device
from gptbridge_specs import load_run
from tests.command import COMMAND
from tests.training.conftest import TINY

GIB = 1 << 30
INFO = load_plugin("torch").info
LARGE = ["model=gpt2-small", "training.seq_length=256", "training.device=cpu"]


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four GiB and no swap."""
    monkeypatch.setattr(fitting, "memory_of", lambda kind: 4 * GIB)
    monkeypatch.setattr(fitting, "swap", lambda: 0)
    return monkeypatch


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        ([], "-o training.micro_batch_size="),
        ([], "-o training.recompute=full needs"),
        (["training.global_batch_size=64"], "-o training.micro_batch_size="),
        (["training.seq_length=1024", "training.global_batch_size=512"], "micro_batch_size="),
        (["model=gpt2-xl"], "Take a smaller model, such as -o model="),
        (["model=gpt2-xl", "optimizer.name=sgd"], "smaller model"),
    ],
)
def test_a_run_that_cannot_fit_names_what_would(
    at_hand: pytest.MonkeyPatch, overrides: list[str], advice: str
) -> None:
    spec = load_run("gpt2-tiny", [*LARGE, *overrides])
    with pytest.raises(UsageError) as refused:
        require_room(spec, INFO)
    assert advice in str(refused.value)
    assert "--force" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "each"),
    [
        ([], True),
        (["training.global_batch_size=512"], True),
        (["model=gpt2-medium", "training.global_batch_size=512", "training.seq_length=1024"], False),
        (["model=gpt2-xl"], False),
    ],
)
def test_what_is_advised_fits(at_hand: pytest.MonkeyPatch, overrides: list[str], each: bool) -> None:
    """Each change alone where they are alternatives, else all of them together."""
    with pytest.raises(UsageError) as refused:
        require_room(load_run("gpt2-tiny", [*LARGE, *overrides]), INFO)
    advice = re.findall(r"-o (\S+=\S+)", str(refused.value))
    for changes in [[one] for one in advice] if each else [advice]:
        require_room(load_run("gpt2-tiny", [*LARGE, *overrides, *changes]), INFO)


def test_a_run_that_fits_is_let_through(at_hand: pytest.MonkeyPatch) -> None:
    require_room(load_run("gpt2-tiny"), INFO)


def test_the_device_that_a_framework_found_decides(at_hand: pytest.MonkeyPatch) -> None:
    spec = load_run("gpt2-tiny", LARGE)
    require_room(spec, INFO, Device("gpu", "a large one", None, 80 * GIB))
    with pytest.raises(UsageError, match=r"1\.0 GiB are at hand"):
        require_room(spec, INFO, Device("gpu", "a small one", None, GIB))
    at_hand.setattr(fitting, "memory_of", lambda kind: None)
    require_room(spec, INFO, Device("ascend", "one that does not say", None))


def test_auto_is_a_gpu_where_its_driver_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = load_run("gpt2-tiny")
    monkeypatch.setattr(fitting, "gpu_memory", lambda: 80 * GIB)
    assert plan_memory(spec, INFO).device == "gpu"
    assert plan_memory(spec, load_plugin("mindspore").info).device == "cpu"
    monkeypatch.setattr(fitting, "gpu_memory", lambda: None)
    assert plan_memory(spec, INFO).device == "cpu"


def test_a_gpu_is_asked_through_its_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 81000\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.gpu_memory() == 81000 << 20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpu_memory() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    assert machine.gpu_memory() is None


def test_containers_and_limits_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    inner = group / "a" / "b"
    (proc / "self").mkdir(parents=True)
    inner.mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemAvailable: {30 * GIB >> 10} kB\nSwapFree: 12 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    monkeypatch.setattr(machine, "PROC", proc)
    monkeypatch.setattr(machine, "CGROUP", group)
    assert (machine.host_memory(), machine.swap()) == (30 * GIB, 12 << 10)
    for folder, limit in ((inner, "max"), (group / "a", str(8 * GIB))):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{3 * GIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert machine.host_memory() == 6 * GIB  # what is only a cache can go
    older = group / "memory" / "x"
    older.mkdir(parents=True)
    (proc / "self/cgroup").write_text("3:cpu,memory:/x\n0::/\n")
    (older / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (older / "memory.usage_in_bytes").write_text(str(GIB))
    (older / "memory.stat").write_text("total_inactive_file 0\n")
    assert machine.host_memory() == GIB
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB // 2, GIB))
    assert machine.host_memory() == GIB // 2


def test_a_model_beyond_memory_and_swap_is_not_opened(at_hand: pytest.MonkeyPatch) -> None:
    spec = load_run("gpt2-tiny", ["model=gpt2-xl", "training.device=cpu"])
    with pytest.raises(UsageError, match="the model needs at least 6"):
        require_room_to_open(spec, INFO)
    at_hand.setattr(fitting, "swap", lambda: 4 * GIB)
    require_room_to_open(spec, INFO)
    at_hand.setattr(fitting, "swap", lambda: 0)
    require_room_to_open(load_run("gpt2-tiny", ["model=gpt2-xl", "precision.compute=bf16"]), INFO)


def limited(*words: object, gib: float = 2) -> subprocess.CompletedProcess[str]:
    """Run the command with so much address space: too little for any framework."""
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({int(gib * GIB)},) * 2); {COMMAND[-1]}"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("backend", ["torch", "paddle", "mindspore"])
@pytest.mark.parametrize("spec", ["gpt2-medium", "fleetx-175b", "modelscope-gpt3-30b"])
def test_large_presets_are_refused_on_every_backend(backend: str, spec: str, tmp_path: Path) -> None:
    result = limited("train", spec, "-b", backend, "--run", tmp_path / "run")
    assert result.returncode == 2, result.stderr
    assert "the run needs about" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_and_refuses_nothing() -> None:
    result = limited("train", "gpt2-xl", "--dry-run", "-b", "torch")
    assert result.returncode == 0
    assert "does not fit and would be refused" in result.stdout
    facts = json.loads(limited("train", "gpt2-xl", "--dry-run", "--json").stdout)
    assert facts["fits"] is False


def test_force_overrules(tmp_path: Path, at_hand: pytest.MonkeyPatch) -> None:
    from gptbridge.training.launch import train
    from gptbridge.training.start import RunPlan

    at_hand.setattr(fitting, "memory_of", lambda kind: 1 << 20)
    spec = load_run("gpt2-tiny", [*TINY, "training.max_steps=1"])
    with pytest.raises(UsageError, match="the run needs about"):
        train(RunPlan(spec, tmp_path / "run"), backend="torch")
    assert train(RunPlan(spec, tmp_path / "run"), backend="torch", force=True).step == 1
