"""What a save costs the steps beside it: `saving.py [BACKEND] [ROUNDS] [SAMPLES]`.

Trains a small model in this process on SAMPLES of 256 tokens a step, and prints what the steps beside a
save take longer than those after them: in seconds, and in CPU seconds without those of the thread that
writes, which other programs on the machine do not change. 32 samples are the 8,192 tokens of the smallest
recipes; with 2, the checkpoint is large beside its steps. Where a framework keeps every core busy, the steps
lose what a save computes, about 0.3 s for each 100 MiB; with OMP_NUM_THREADS=1 on two cores, torch and paddle
leave it a core.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
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
    "training.seq_length": 256,
    "training.micro_batch_size": 2,
    "training.device": "cpu",
    "evaluation.interval": 0,
}
INTERVAL = 10


def main(backend: str = "torch", rounds: str = "3", samples: str = "32") -> None:
    copies: list[float] = []
    begin = Saver.begin

    def timed(*words: Any, **more: Any) -> object:
        started = time.perf_counter()
        try:
            return begin(*words, **more)
        finally:
            copies.append(time.perf_counter() - started)

    Saver.begin = timed  # type: ignore[method-assign, assignment]
    ends: list[tuple[float, float]] = []  # of the steps: by the clock, and in CPU seconds
    saves: list[tuple[int, float]] = []  # the steps done when one began, and when it was whole

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            ends.append((event["time"], time.process_time() - writing()))
        elif event["event"] == "checkpoint":
            saves.append((event["step"], event["time"]))

    steps = INTERVAL * (int(rounds) + 1)
    often = {"training.max_steps": steps, "checkpoint.interval": INTERVAL}
    overrides = {**SPEC, **often, "training.global_batch_size": int(samples)}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        train("gpt2-tiny", backend=backend, run=run, overrides=overrides, observers=[note])
        size = sum(path.stat().st_size for path in (run / f"checkpoints/step-{steps:08d}").iterdir())
    rows = [lost(ends, begun, whole) for begun, whole in saves[:-1]]
    beside, seconds, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"checkpoint  {size / 2**20:.0f} MiB, whole after {beside:.0f} steps")
    print(f"copy        {statistics.median(copies):.3f} s, for which the steps wait")
    print(f"steps       {100 * seconds:+.1f} % beside a save, copy included; CPU {100 * cpu:+.1f} %")


def lost(ends: list[tuple[float, float]], begun: int, whole: float) -> tuple[int, float, float]:
    """Return the steps beside a save, and by how much they take longer than those before the next one."""
    beside = sum(end < whole for end, _ in ends[begun:]) + 1
    first, middle, last = (ends[begun - 1 + n] for n in (0, beside, INTERVAL))
    rest = INTERVAL - beside
    seconds, cpu = ((middle[n] - first[n]) / beside / ((last[n] - middle[n]) / rest) - 1 for n in (0, 1))
    return beside, seconds, cpu


def writing() -> float:
    """Return the CPU seconds of the thread that writes."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("gptbridge-save")]
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None]
    return sum(map(time.clock_gettime, clocks))


if __name__ == "__main__":
    main(*sys.argv[1:])
