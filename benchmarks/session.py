"""One backend's trainer on the workload of `train.py`: `python benchmarks/session.py --backend torch`.

The trainer is what `gptbridge train` drives; the loop, checkpoints and events are not in these figures.
"""

from __future__ import annotations

import argparse

import numpy as np
from workload import (
    BETAS,
    CLIP,
    EPSILON,
    LEARNING_RATE,
    SEED,
    WEIGHT_DECAY,
    Tokens,
    Workload,
    measure,
    read_arguments,
)

from gptbridge.plugins.backend import load_backend
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import Batch
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.shards import load
from gptbridge_specs import RunSpec


def run_spec(workload: Workload) -> RunSpec:
    """Return the run that the bare loops train."""
    return RunSpec.model_validate(
        {
            "model": workload.model,
            "optimizer": {
                "beta1": BETAS[0],
                "beta2": BETAS[1],
                "epsilon": EPSILON,
                "weight_decay": WEIGHT_DECAY,
                "clip_grad_norm": CLIP,
            },
            "precision": {"compute": workload.precision},
            "training": {
                "seed": SEED,
                "seq_length": workload.seq,
                "global_batch_size": workload.batch,
                "device": "cpu",
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True)
    workload, backend = read_arguments(parser), parser.parse_known_args()[0].backend
    spec = run_spec(workload)
    trainer, _, _ = load_backend(backend).open_trainer(spec)
    load(trainer.shards(), InitialWeights(spec.model, SEED).read)
    taken = 0

    def step(inputs: Tokens, labels: Tokens) -> float:
        nonlocal taken
        taken += 1
        mask = np.ones((1, *labels.shape), np.bool_)
        batch = Batch(inputs[None], labels[None], mask, mask.size, (dropout_seed(SEED, taken, 0),))
        return trainer.step(batch, LEARNING_RATE).loss

    measure(workload, step)
    trainer.close()


if __name__ == "__main__":
    main()
