"""The training workload that every contestant of `train.py` runs: sizes, data, clock.

`--layers --hidden --heads --vocab --seq --batch --steps` set it; the result is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.dialects.gptbridge import DIALECT
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.layouts.arrays import stored_array
from gptbridge_specs import ModelSpec

WARM_UP = 3  # steps before the clock starts
SEED = 1234
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Workload:
    """One model and the batches it is trained on: random tokens, dropout 0, fp32 unless told otherwise."""

    layers: int
    hidden: int
    heads: int
    vocab: int
    seq: int
    batch: int
    steps: int
    precision: str

    @property
    def model(self) -> ModelSpec:
        return ModelSpec(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.seq,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )

    def batches(self) -> Iterator[tuple[Tokens, Tokens]]:
        """Yield the inputs and labels (batch, seq) of the warm-up and then of each timed step."""
        stream = np.random.default_rng(SEED)
        for _ in range(WARM_UP + self.steps):
            tokens = stream.integers(0, self.vocab, (self.batch, self.seq + 1), dtype=np.int32)
            yield tokens[:, :-1], tokens[:, 1:]


def initial_weights(model: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Return gptbridge's initial weights as Hugging Face has them, q, k and v in one matrix."""
    names = [parameter.name for parameter in parameters(model)]
    whole, read = sizes(model), InitialWeights(model, SEED).read
    natives = DIALECT.layouts[0].natives(names, model.num_layers)
    return {native.name: stored_array(native, whole, read) for native in natives}


def read_arguments(parser: argparse.ArgumentParser) -> Workload:
    """Return the workload that the command line describes; adds its options to `parser`."""
    defaults = {"layers": 4, "hidden": 256, "heads": 4, "vocab": 8192, "seq": 256, "batch": 8, "steps": 20}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    known = vars(parser.parse_args())
    return Workload(precision=known["precision"], **{name: known[name] for name in defaults})


def measure(workload: Workload, step: Callable[[Tokens, Tokens], float]) -> None:
    """Train and print tokens/s by the wall clock and by CPU time, and every step's loss.

    `step` takes inputs and labels and returns the loss, all of its work done.
    """
    clock = Clock()
    losses = []
    for number, (inputs, labels) in enumerate(workload.batches()):
        if number == WARM_UP:
            clock = Clock()
        losses.append(step(inputs, labels))
    report(workload, clock, losses)


class Clock:
    """Wall and CPU seconds since it was made; CPU time counts every thread of the process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def report(workload: Workload, clock: Clock, losses: list[float]) -> None:
    """Print the figures of the timed steps as one JSON line."""
    wall, cpu = clock.seconds()
    tokens = workload.steps * workload.batch * workload.seq
    figures = {"tokens_per_second": tokens / wall, "tokens_per_cpu_second": tokens / cpu, "losses": losses}
    print(json.dumps(figures))
