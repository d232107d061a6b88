"""What every rank of a layout test does: train each case of a job, and write down what it then holds.

`python -m tests.parallel.rank JOB` under a framework's launcher, or alone for what one process holds.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from gptbridge.plugins.backend import load_backend
from gptbridge.process.world import World
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import MOMENTS, Batch, Kind, LanguageModel, Trainer
from gptbridge.testing import cases
from gptbridge.weights.architecture import outputs, parameters
from gptbridge.weights.shards import from_arrays, load
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.run import TaskSpec


def batch(spec: RunSpec, step: int, world: World) -> Batch:
    """Return this replica's share of a step: micro-batch a is a x replicas + replica of all of them."""
    stream = np.random.default_rng(step)
    training, micro = spec.training, spec.micro_batch_size
    shape = (training.global_batch_size // micro, micro, training.seq_length)
    tokens = stream.integers(0, spec.model.vocab_size, (*shape[:2], shape[2] + 1), dtype=np.int32)
    mask = stream.random(shape) < 0.8
    mine = range(world.replica, shape[0], world.replicas)
    seeds = tuple(dropout_seed(training.seed, step, number) for number in mine)
    chosen = list(mine)
    labels = tokens[chosen, :, 1:] % outputs(spec.model, spec.task)
    starts = cases.starts(shape)[chosen] if spec.task.records.packed else None
    return Batch(tokens[chosen, :, :-1], labels, mask[chosen], int(mask.sum()), seeds, starts)


def weights(model: ModelSpec, task: TaskSpec) -> cases.Arrays:
    """Return seeded weights, none alike, small enough that rounding does not grow over the steps."""
    drawn = cases.weights(model, task=task)
    ones = {p.name for p in parameters(model, task) if p.initial == "ones"}
    return {name: array if name in ones else 0.2 * array for name, array in drawn.items()}


def held(trainer: Trainer, kind: Kind) -> list[dict[str, Any]]:
    """Return what this rank holds of every tensor of `kind`."""
    return [
        {"name": shard.name, "box": dict(shard.box), "owned": shard.owned, "array": shard.read()}
        for shard in trainer.shards(kind)
    ]


def decoded(model: LanguageModel, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return what follows two rows of unlike length, and what follows them exchanged and one token longer."""
    decoder, rows = model.decoder(2, 7), tokens[[0, -1]]
    before = decoder.feed(rows[:, :5], np.array([5, 3], np.int32))
    decoder.keep(np.array([1, 0], np.int32))
    return np.stack([before, decoder.feed(rows[:, 5:6], np.array([1, 1], np.int32))])


def train(spec: RunSpec, backend: str, steps: int, *, reads: bool) -> tuple[World, dict[str, NDArray[Any]]]:
    """Train `steps` steps; return the ranks and what to write, boxes as JSON beside the arrays."""
    trainer, _, world = load_backend(backend).open_trainer(spec)
    load(trainer.shards(), from_arrays(spec.model, weights(spec.model, spec.task), spec.task))
    results = [trainer.step(batch(spec, step, world), spec.schedule.max_lr) for step in range(1, steps + 1)]
    first = batch(spec, 1, world)
    logged: dict[str, NDArray[Any]] = {
        "loss": np.array([result.loss for result in results]),
        "grad_norm": np.array([result.grad_norm for result in results]),
    }
    if reads:
        logged |= {
            "token_losses": trainer.token_losses(first.inputs[0], first.labels[0]),
            "logits": trainer.logits(first.inputs[0]),
            "decoded": decoded(trainer, first.inputs[0]),
        }
    kinds: tuple[Kind, ...] = ("weight", *(MOMENTS if spec.optimizer.name == "adamw" else ()))
    for kind in kinds:
        for number, shard in enumerate(held(trainer, kind)):
            logged[f"{kind} {number}"] = shard.pop("array")
            logged[f"{kind} {number} box"] = np.array(json.dumps(shard))
    trainer.close()
    return world, logged


@contextmanager
def broken(place: str | None) -> Iterator[None]:
    """Make the function `module:name` do nothing but return its first argument, or be `=module:name`."""
    if place is None:
        yield
        return
    function, _, instead = place.partition("=")
    module, name = function.split(":")
    other = (lambda first, *others, **named: first) if not instead else pkgutil.resolve_name(instead)
    with patch.object(importlib.import_module(module), name, other):
        yield


def main(job: Path) -> None:
    """Run all cases of the job in this one process group."""
    content = json.loads(job.read_text())
    for name, case in content["cases"].items():
        spec = RunSpec.model_validate(case)
        with broken(content["broken"].get(name)):
            reads = name in content["read"]
            world, logged = train(spec, content["backend"], content["steps"], reads=reads)
        np.savez(job.with_name(f"{name}-{world.rank}.npz"), **logged)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    if "mindspore" not in sys.modules:  # its ranks must take leave of their launcher
        os._exit(0)  # nothing that a framework still waits for holds the test up
