"""One rank of a layout that `parallel.py` measures: `parallel_rank.py JOB`, under a framework's launcher.

Writes JOB's folder / NAME-RANK.json: bytes that the rank holds, and the CPU seconds of its steps.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from parallel_bare import LOOPS

from gptbridge.plugins.backend import load_backend
from gptbridge.process.world import World
from gptbridge.session import MOMENTS, Batch, Trainer
from gptbridge_specs import RunSpec

STEPS = 3


def main(job: Path) -> None:
    content = json.loads(job.read_text())
    backend = content["backend"]
    for name, layout in content["layouts"].items():
        spec = RunSpec.model_validate(layout)
        trainer, _, world = load_backend(backend).open_trainer(spec)
        figures = measure(backend, spec, trainer, world)
        trainer.close()
        job.with_name(f"{name}-{world.rank}.json").write_text(json.dumps(figures))
        if name == "data 2":
            cpu = fastest(LOOPS[backend](spec.model, random_batch(spec, world)), world)
            job.with_name(f"{content['bare']}-{world.rank}.json").write_text(json.dumps({"cpu": cpu}))


def measure(backend: str, spec: RunSpec, trainer: Trainer, world: World) -> dict[str, Any]:
    """Return what a rank of the layout holds and how long its steps take."""
    stream = np.random.default_rng(1)
    for shard in trainer.shards():
        shard.write(stream.normal(0, 0.02, shard.shape).astype(np.float32))
    batch = random_batch(spec, world)
    with KEPT.get(backend, lambda: nullcontext(None))() as kept:
        trainer.accumulate(batch)
    trainer.step(batch, 1e-3)
    figures: dict[str, Any] = {
        "parameters": held(trainer, "weight"),
        "gradients": held(trainer, "gradient"),
        "moments": sum(held(trainer, kind) for kind in MOMENTS),
        "in all": LIVE[backend]() if backend in LIVE else None,
        "activations": kept.most if kept is not None else None,
    }
    figures["cpu"] = fastest(lambda: trainer.step(batch, 1e-3), world)
    return figures


def random_batch(spec: RunSpec, world: World) -> Batch:
    training, micro = spec.training, spec.micro_batch_size
    shape = (training.global_batch_size // micro // world.replicas, micro, training.seq_length)
    tokens = np.random.default_rng(world.replica).integers(0, spec.model.vocab_size, shape, dtype=np.int32)
    every = np.ones(shape, bool)
    return Batch(tokens, tokens, every, every.size * world.replicas, tuple(range(shape[0])))


def held(trainer: Trainer, kind: Any) -> int:
    return sum(shard.read().nbytes for shard in trainer.shards(kind))


def fastest(step: Callable[[], object], world: World) -> float:
    """Return the CPU seconds of the best of some steps."""
    found = []
    for _ in range(1 + STEPS):
        world.barrier()
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return min(found[1:])


def torch_live() -> int:
    """Return the bytes of all tensors, each storage once."""
    import torch

    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


class TorchKept(AbstractContextManager["TorchKept"]):
    """The most bytes that were kept at once for backward passes, weights aside."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._count: Counter[int] = Counter()

    def __enter__(self) -> TorchKept:
        import torch

        kept = self

        class Entry:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor, storage = tensor, tensor.untyped_storage()
                weight = any(isinstance(each, torch.nn.Parameter) for each in (tensor, tensor._base))
                self.key, self.size = storage.data_ptr(), 0 if weight else storage.nbytes()
                kept.add(self.key, self.size)

            def __del__(self) -> None:
                kept.drop(self.key, self.size)

        self._hooks = torch.autograd.graph.saved_tensors_hooks(Entry, lambda entry: entry.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def add(self, key: int, size: int) -> None:
        self._count[key] += 1
        if self._count[key] == 1:
            self._now += size
            self.most = max(self.most, self._now)

    def drop(self, key: int, size: int) -> None:
        self._count[key] -= 1
        if self._count[key] == 0:
            self._now -= size


class PaddleKept(AbstractContextManager["PaddleKept"]):
    """The bytes that a CPU's memory has more when the first backward pass begins; there are no gradients yet.

    Hooks on what is saved would tell more, and Paddle has one pair of them, which sharding takes.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def __enter__(self) -> PaddleKept:
        import paddle

        def allocated() -> int:
            return int(paddle.base.core.host_memory_stat_current_value("Allocated", 0))

        def noted(tensor: paddle.Tensor, *others: Any) -> None:
            if self.most is None:
                self.most = allocated() - before
            backward(tensor, *others)

        before, backward = allocated(), paddle.Tensor.backward
        self._patch = patch.object(paddle.Tensor, "backward", noted)
        self._patch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.__exit__(None, None, None)


LIVE: dict[str, Callable[[], int]] = {"torch": torch_live}
KEPT: dict[str, Callable[[], Any]] = {"torch": TorchKept, "paddle": PaddleKept}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if "mindspore" not in sys.modules:  # its ranks must take leave of their launcher
        os._exit(0)
