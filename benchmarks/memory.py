"""Peak memory of short runs against the estimate that `gptbridge train --dry-run` prints.

`python benchmarks/memory.py` prints the table and writes it to benchmarks/results/memory.md; exit code 1
where an estimate is off by more than 15 %. Each run is a whole one, in a process of its own: three steps,
an evaluation, a checkpoint. Its peak is what the kernel has counted (VmHWM).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import reports

from gptbridge.plan.fitting import size
from gptbridge.plan.memory import RECOMPUTE, estimate_training
from gptbridge.plugins.backend import load_plugin
from gptbridge_specs import RunSpec

TOLERANCE = 0.15
BACKENDS = ("torch", "paddle", "mindspore")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and its batch; `micro` samples a pass."""

    layers: int
    hidden: int
    heads: int
    seq: int
    batch: int
    micro: int
    vocab: int
    dropout: float = 0.0

    def spec(self, recompute: str) -> RunSpec:
        model = {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.seq,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
        }
        training = {
            "max_steps": 3,
            "global_batch_size": self.batch,
            "micro_batch_size": self.micro,
            "seq_length": self.seq,
            "recompute": recompute,
            "device": "cpu",
        }
        evaluation = {"interval": 3, "batches": 1}
        return RunSpec.model_validate({"model": model, "training": training, "evaluation": evaluation})

    def __str__(self) -> str:
        words = f"{self.layers} x {self.hidden}, {self.heads} heads, {self.batch} x {self.seq} tokens"
        words += f" in passes of {self.micro}" if self.micro != self.batch else ""
        words += f", dropout {self.dropout}" if self.dropout else ""
        return f"{words}, vocabulary {self.vocab}"


# Deep, of long samples, of a large vocabulary, with dropout, in micro-batches.
SHAPES = (
    Shape(6, 384, 6, 256, 8, 8, 4000),
    Shape(3, 256, 8, 768, 6, 6, 257),
    Shape(2, 640, 10, 192, 6, 6, 40000),
    Shape(4, 320, 5, 384, 6, 6, 1000, dropout=0.1),
    Shape(5, 512, 8, 384, 8, 4, 6000),
)

CHILD = """
import json, sys, tempfile
from pathlib import Path
from gptbridge.training.launch import train
from gptbridge.training.start import RunPlan
from gptbridge_specs import RunSpec

spec = RunSpec.model_validate(json.loads(sys.argv[2]))
with tempfile.TemporaryDirectory() as folder:
    train(RunPlan(spec, Path(folder) / "run"), backend=sys.argv[1], force=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measured_peak(spec: RunSpec, backend: str) -> int:
    """Return the peak in bytes of a process that trains `spec`."""
    content = json.dumps(spec.model_dump(mode="json"))
    command = [sys.executable, "-c", CHILD, backend, content]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tempfile.gettempdir())
    if run.returncode:
        sys.exit(f"{backend} failed:\n{run.stderr[-2000:]}")
    return int(run.stdout.split()[-1]) << 10


def compare(shape: Shape, backend: str, recompute: str) -> tuple[str, float]:
    """Return a row of the table, and by how much the estimate is off."""
    spec = shape.spec(recompute)
    estimate = estimate_training(spec, load_plugin(backend).info.memory["cpu"]).peak
    peak = measured_peak(spec, backend)
    off = estimate / peak - 1
    return f"| {backend} | {shape} | {recompute} | {size(peak)} | {size(estimate)} | {off:+.1%} |", off


def main() -> None:
    parser = reports.options(__doc__, "memory.md", rounds=1)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--shapes", type=int, nargs="+", default=list(range(len(SHAPES))))
    arguments = parser.parse_args()
    rows, worst = [], 0.0
    for backend in arguments.backends:
        for number in arguments.shapes:
            for recompute in RECOMPUTE:
                row, off = compare(SHAPES[number], backend, recompute)
                print(row, file=sys.stderr)
                rows.append(row)
                worst = max(worst, abs(off))
    head = "| | shape | recompute | measured | estimated | off by |\n|---|---|---|---|---|---|"
    what = f"Whole runs of 3 steps on CPU, fp32; the worst estimate is off by {worst:.1%}."
    reports.publish("Memory", what, "\n".join([head, *rows]), arguments.output)
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
