"""What a save costs the steps beside it: `saving.py [BACKEND] [ROUNDS]`.

Trains a model whose checkpoint is large beside its steps, in this process, and prints the seconds of steps
that nothing is saved beside, of those beside a save, and of the copy that a save begins with.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gptbridge.api import train
from gptbridge.checkpoint.saving import Saver

SPEC = {
    "model.hidden_size": 384,
    "model.num_layers": 4,
    "model.num_attention_heads": 8,
    "model.vocab_size": 8192,
    "model.hidden_dropout_prob": 0.0,
    "model.attention_probs_dropout_prob": 0.0,
    "training.seq_length": 64,
    "training.global_batch_size": 8,
    "training.device": "cpu",
    "evaluation.interval": 0,
}
INTERVAL = 20


def main(backend: str = "torch", rounds: str = "3") -> None:
    copies: list[float] = []
    begin = Saver.begin

    def timed(*words: object) -> object:
        started = time.perf_counter()
        try:
            return begin(*words)  # type: ignore[arg-type]
        finally:
            copies.append(time.perf_counter() - started)

    Saver.begin = timed  # type: ignore[assignment, method-assign]
    events: list[Any] = []
    steps = INTERVAL * int(rounds) + INTERVAL // 2
    overrides = {**SPEC, "training.max_steps": steps, "checkpoint.interval": INTERVAL}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        train("gpt2-tiny", backend=backend, run=run, overrides=overrides, observers=[events.append])
        size = sum(path.stat().st_size for path in (run / f"checkpoints/step-{steps:08d}").iterdir())
    saves = [(e["time"] - e["seconds"], e["time"]) for e in events if e["event"] == "checkpoint"]
    apart: list[float] = []
    beside: list[float] = []
    for event in events:
        if event["event"] == "step" and event["step"] > 2:
            began, ended = event["time"] - event["step_seconds"], event["time"]
            overlaps = any(began < last and first < ended for first, last in saves)
            (beside if overlaps else apart).append(event["step_seconds"])
    plain, slowed = statistics.median(apart), statistics.median(beside)
    named = statistics.median(last - first for first, last in saves)
    lost = (sum(apart) + sum(beside) + sum(copies)) / (plain * (len(apart) + len(beside))) - 1
    print(f"checkpoint  {size / 2**20:.0f} MiB, whole after {named:.2f} s")
    print(f"copy        {statistics.median(copies):.3f} s, for which the steps wait")
    print(f"step        {plain:.3f} s, beside a save {slowed:.3f} s: {100 * (slowed / plain - 1):+.1f} %")
    print(f"in all      a save every {INTERVAL} steps costs {100 * lost:.1f} % of the time")


if __name__ == "__main__":
    main(*sys.argv[1:])
