"""What a rank of each layout holds, beside the arithmetic, and what tokens cost: 2 ranks against 1.

`python benchmarks/parallel.py` prints the table and writes it to benchmarks/results/parallel.md; exit code 1
where bytes are off by more than 10 %. Parameters, gradients and moments are what the backend's tensors hold.
What is kept for backward passes is what torch's tensors hold at the most, and what Paddle has allocated when
the first one begins; MindSpore counts no bytes on a CPU. Torch tells besides what all its tensors take after
a step. The bare loop is the framework's own, over a model of its layers (parallel_bare.py).
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import reports

from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import load_backend
from gptbridge.process.place import Place
from gptbridge.weights.architecture import shapes, weight_axes
from gptbridge.weights.held import held_names
from gptbridge_specs import RunSpec

TOLERANCE = 0.1
BACKENDS = ("torch", "paddle", "mindspore")
BARE = "data 2, bare loop"
LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "data 2": {"data": 2},
    "tensor 2": {"tensor": 2},
    "tensor 2, sequence": {"tensor": 2, "sequence": True},
    "pipeline 2": {"pipeline": 2},
    "sharding 2, stage 1": {"sharding": 2, "sharding_stage": 1},
    "sharding 2, stage 2": {"sharding": 2, "sharding_stage": 2},
    "sharding 2, stage 3": {"sharding": 2, "sharding_stage": 3},
}
MODEL = {
    "vocab_size": 8003,
    "hidden_size": 256,
    "num_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TRAINING = {"global_batch_size": 8, "micro_batch_size": 2, "seq_length": 256, "device": "cpu"}
WEIGHTS_FROM = {"torch": 1, "paddle": 3, "mindspore": 3}  # the stage from which weights are stored in parts
# Kept for a backward pass, in the width of the stream, of each layer: between the regions that tensor ranks
# share, as they enter them, and within them.
STREAM, ENTERED, SHARED = 2, 2, 4 + 2 * 4
KEEPS_SCORES = {"paddle"}  # of attention, where torch's kernel on a CPU computes them again


def spec_of(layout: dict[str, Any]) -> RunSpec:
    return RunSpec.model_validate({"model": MODEL, "training": TRAINING, "parallel": layout})


def run(backend: str, names: list[str], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what each rank of the layouts wrote, all in one process group."""
    specs = {name: spec_of(LAYOUTS[name]) for name in names}
    (ranks,) = {spec.parallel.world_size for spec in specs.values()}
    layouts = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
    job = folder / "job.json"
    job.write_text(json.dumps({"backend": backend, "layouts": layouts, "bare": BARE}))
    command = [sys.executable, str(Path(__file__).with_name("parallel_rank.py")), str(job)]
    if ranks > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
        launch = Launch(processes=ranks, logs=folder / "logs", port=port)
        command = load_backend(backend).launch_command(launch, command)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    if finished.returncode:
        sys.exit(f"{backend}, {', '.join(names)}:\n{(finished.stdout + finished.stderr)[-3000:]}")
    return {
        name: [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]
        for name in [*names, *([BARE] if ranks > 1 else [])]
    }


def weights(spec: RunSpec, place: Place, *, sharded: bool) -> float:
    """Return the bytes of a rank's weights: those of its stage, less what other ranks have of them."""
    sizes, total = shapes(spec.model), 0.0
    for name in held_names(spec.model, place):
        total += 4 * math.prod(sizes[name]) / (spec.parallel.tensor if weight_axes(name).cut else 1)
    return total / (spec.parallel.sharding if sharded else 1)


def activations(backend: str, spec: RunSpec, place: Place) -> float:
    """Return the bytes that are kept at once: of all micro-batches that a stage has under way."""
    parallel, model = spec.parallel, spec.model
    width = 4 * spec.micro_batch_size * spec.training.seq_length * model.hidden_size
    cut = parallel.tensor if parallel.sequence else 1
    layer = width * (STREAM / cut + ENTERED + SHARED / parallel.tensor)
    if backend in KEEPS_SCORES:
        scores = spec.micro_batch_size * model.num_attention_heads * spec.training.seq_length**2
        layer += 4 * scores / parallel.tensor
    under_way = parallel.pipeline - place.index("pipeline")
    held = under_way * layer * sum(map(len, place.layers(model.num_layers)))
    if place.last:  # what the loss makes of the last hidden states, and of the projection
        held += 2 * width + 4 * model.vocab_size * model.hidden_size / parallel.tensor
    return held


def rows(backend: str, found: dict[str, list[dict[str, Any]]]) -> tuple[list[str], bool]:
    """Return a table's rows, and whether all bytes are as the arithmetic has them."""
    lines, right = [], True
    tokens = TRAINING["global_batch_size"] * TRAINING["seq_length"]  # type: ignore[operator]
    for name, ranks in found.items():
        spec = spec_of(LAYOUTS.get(name, LAYOUTS["data 2"]))
        speed = tokens / sum(figures["cpu"] for figures in ranks)
        for rank, figures in enumerate(ranks):
            place = Place(spec.parallel, rank)
            stage = spec.parallel.sharding_stage
            part = weights(spec, place, sharded=stage > 0)
            expected: dict[str, float] = {
                "parameters": weights(spec, place, sharded=stage >= WEIGHTS_FROM[backend]),
                "gradients": part,
                "moments": 2 * part,
                "in all": 4 * part,
                "activations": activations(backend, spec, place),
            }
            cells = []
            for kind, bytes_ in expected.items():
                if figures.get(kind) is None:
                    cells.append("-")
                    continue
                right = right and abs(figures[kind] / bytes_ - 1) <= TOLERANCE
                cells.append(f"{figures[kind] / 2**20:.2f} / {bytes_ / 2**20:.2f}")
            cost = f"{speed:.0f}" if rank == 0 else ""
            lines.append(f"| {backend} | {name} | {rank} | {' | '.join(cells)} | {cost} |")
    return lines, right


def main() -> int:
    parser = reports.options(__doc__, "parallel.md")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    lines = [
        "| backend | layout | rank | parameters | gradients | moments | in all | activations | tokens/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    all_right = True
    for backend in options.backends:
        with tempfile.TemporaryDirectory() as folder:
            one, *several = LAYOUTS
            found = run(backend, [one], Path(folder)) | run(backend, several, Path(folder))
        more, right = rows(backend, found)
        lines += more
        all_right = all_right and right
    what = (
        "MiB that a rank holds, measured / by arithmetic: 4 layers of 256, a vocabulary of 8003, 4 micro-"
        "batches of 2 x 256 tokens, fp32, one thread a rank; tokens of all ranks by the CPU seconds of all."
    )
    reports.publish("Layouts", what, "\n".join(lines), options.output)
    return 0 if all_right else 1


if __name__ == "__main__":
    sys.exit(main())
