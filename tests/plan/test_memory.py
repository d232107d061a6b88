"""Estimates of memory: what they are made of, how they follow the spec, and what a process really takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.hookspecs import MemoryUse
from gptbridge.plan.memory import Estimate, estimate_training, peaks_by_recompute
from gptbridge.plugins.backend import load_plugin
from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import RunSpec, load_run

SHAPE = [
    "model.num_layers=6",
    "model.hidden_size=256",
    "model.vocab_size=3000",
    "training.seq_length=192",
    "training.device=cpu",
    "training.max_steps=3",
    "evaluation.interval=3",
    "evaluation.batches=1",
]
BACKENDS = ("torch", "paddle", "mindspore")
CHILD = """
import json, sys
from pathlib import Path
from gptbridge.training.launch import train
from gptbridge.training.start import RunPlan
from gptbridge_specs import RunSpec

spec = RunSpec.model_validate(json.loads(sys.argv[2]))
train(RunPlan(spec, Path(sys.argv[3])), backend=sys.argv[1])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def estimated(*overrides: str) -> Estimate:
    return estimate_training(load_run("gpt2-tiny", [*SHAPE, *overrides]), MemoryUse())


def test_weights_gradients_and_moments_are_the_tables() -> None:
    spec = load_run("gpt2-tiny", SHAPE)
    estimate = estimate_training(spec, MemoryUse())
    assert estimate.weights == estimate.gradients == 4 * count_parameters(spec.model)
    assert estimate.moments == 2 * estimate.weights
    assert estimated("optimizer.name=sgd").moments == 0
    assert estimated("precision.compute=bf16").weights == estimate.weights * 3 // 2  # a copy to compute with


def test_only_what_lora_trains_has_gradients_and_moments() -> None:
    estimate = estimated("task.lora.rank=2", "task.name=language_modeling")
    assert estimate.gradients < estimate.weights / 20
    assert estimate.moments == 2 * estimate.gradients


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_level_of_recompute_takes_less(backend: str) -> None:
    spec = load_run("gpt2-tiny", [*SHAPE, "training.seq_length=256", "training.global_batch_size=32"])
    peaks = list(peaks_by_recompute(spec, load_plugin(backend).info.memory["cpu"]).values())
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0]


def test_activations_follow_the_micro_batch_and_not_the_batch() -> None:
    whole = estimated("training.global_batch_size=8")
    parts = estimated("training.global_batch_size=8", "training.micro_batch_size=2")
    more = estimated("training.global_batch_size=16", "training.micro_batch_size=2")
    assert parts.activations < whole.activations / 2
    assert more == parts


def test_devices_share() -> None:
    alone = estimated()
    cut = estimated("parallel.tensor=4")
    assert alone.weights / 4 < cut.weights < alone.weights / 3.5  # norms and positions are whole on each
    assert estimated("parallel.pipeline=3", "training.micro_batch_size=2").weights < alone.weights / 1.5
    stages = ("parallel.pipeline=2", "training.micro_batch_size=1", "training.global_batch_size=8")
    kept = [
        estimated(*stages, f"parallel.pipeline_schedule={name}").activations for name in ("1f1b", "gpipe")
    ]
    assert 2 * kept[0] < kept[1] < 4 * kept[0]
    sharded = estimated("parallel.sharding=4", "parallel.sharding_stage=2")
    assert (sharded.weights, sharded.moments) == (alone.weights, alone.moments // 4)
    assert sharded.gradients == alone.gradients // 4


def test_a_model_of_thousands_of_layers_is_estimated_at_once() -> None:
    spec = load_run("gpt2-tiny", ["model.num_layers=4096", "model.hidden_size=65536"])
    assert estimate_training(spec, MemoryUse()).peak > 1 << 50


def measured_peak(backend: str, spec: RunSpec, run: Path) -> int:
    content = json.dumps(spec.model_dump(mode="json"))
    command = [sys.executable, "-c", CHILD, backend, content, str(run)]
    threads = {
        name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"
    }  # as users have
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=run.parent, check=True, env=threads
    )
    return int(done.stdout.split()[-1]) << 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("backend", "recompute", "batch"),
    [("torch", "none", 8), ("torch", "full", 8), ("paddle", "none", 8), ("mindspore", "full", 16)],
)
def test_a_run_takes_what_was_estimated(backend: str, recompute: str, batch: int, tmp_path: Path) -> None:
    fields = [f"training.recompute={recompute}", f"training.global_batch_size={batch}"]
    spec = load_run("gpt2-tiny", [*SHAPE, *fields])
    estimate = estimate_training(spec, load_plugin(backend).info.memory["cpu"])
    peak = measured_peak(backend, spec, tmp_path / "run")
    assert max(estimate.peak, estimate.saving) == pytest.approx(peak, rel=0.15)
    # the control: what the process takes by itself would not have done
    assert estimate.process < 0.85 * peak
