"""The torch trainer on one GPU: `python benchmarks/gpu.py [--model gpt2-small] [--micro 16 32]`.

First the numbers are checked against the NumPy reference, then each model and micro-batch is timed
in a process of its own: bf16, 1024 tokens, random tokens, dropout 0. One JSON line each. MFU counts
6N + 12LhT FLOPs a token (`flops_per_token`) against the dense bf16 peak of an H100 or H200.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from gptbridge import reference
from gptbridge.plugins.backend import load_backend
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import Batch, Trainer
from gptbridge.weights.architecture import flops_per_token
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.shards import arrays, load
from gptbridge_specs import RunSpec, load_run

PEAK = 989e12
SIZES = {"gpt2-small": (16, 32, 64), "fleetx-345m": (16, 32), "fleetx-1.3b": (8, 16)}
ACCUMULATED = 8  # micro-batches of one step
WARM_UP, STEPS = 3, 5
SECONDS = 240  # for one measurement, compilation included


def batches(spec: RunSpec, seed: int = 0) -> Iterator[Batch]:
    """Yield steps of random tokens, uniform over the vocabulary."""
    stream = np.random.default_rng(seed)
    training = spec.training
    micro = spec.micro_batch_size
    shape = (training.global_batch_size // micro, micro, training.seq_length + 1)
    step = 0
    while True:
        step += 1
        tokens = stream.integers(0, spec.model.vocab_size, shape, np.int32)
        mask = np.ones((*shape[:2], training.seq_length), np.bool_)
        seeds = tuple(dropout_seed(seed, step, number) for number in range(shape[0]))
        yield Batch(tokens[..., :-1], tokens[..., 1:], mask, mask.size, seeds)


def spec_of(model: str, micro: int, *more: str) -> RunSpec:
    return load_run(
        model,
        [
            "model.hidden_dropout_prob=0",
            "model.attention_probs_dropout_prob=0",
            "precision.compute=bf16",
            "training.device=gpu",
            "training.compile=true",
            f"training.micro_batch_size={micro}",
            f"training.global_batch_size={micro * ACCUMULATED}",
            "training.seq_length=1024",
            *more,
        ],
    )


def opened(spec: RunSpec) -> tuple[Trainer, str]:
    trainer, device, _ = load_backend("torch").open_trainer(spec)
    load(trainer.shards(), InitialWeights(spec.model, spec.training.seed).read)
    return trainer, device.name


def check(precision: str, *more: str) -> dict[str, object]:
    """Compare loss, gradients and logits on the GPU with the reference; largest relative differences."""
    small = ["model.num_layers=3", "training.seq_length=64", f"precision.compute={precision}"]
    spec = spec_of("gpt2-tiny", 2, *small, "training.compile=false", *more)
    trainer, device = opened(spec)
    weights = InitialWeights(spec.model, spec.training.seed)
    batch = next(batches(spec))
    loss, gradients = reference.loss_and_gradients(spec.model, weights, batch)
    trainer.accumulate(batch)
    worst = max(
        float(np.abs(found - gradients[name]).max() / np.abs(gradients[name]).max())
        for name, found in arrays(trainer.shards("gradient")).items()
        if not name.endswith("attn.k.bias")  # 0 but for rounding
    )
    tokens = batch.inputs[0]
    logits = np.abs(trainer.logits(tokens) - reference.logits(spec.model, weights, tokens)).max()
    step = trainer.step(batch, 1e-3)
    return {
        "check": precision,
        "device": device,
        "loss_difference": abs(step.loss - loss) / loss,
        "gradient_difference": worst,
        "logit_difference": float(logits),
    }


def repeatable(*changes: str) -> dict[str, object]:
    """Train the same five steps twice, with dropout; tell whether the bits are equal."""
    more = ["model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", *changes]
    spec = spec_of("gpt2-tiny", 4, "training.seq_length=256", *more)
    runs = []
    for _ in range(2):
        trainer, _ = opened(spec)
        source = batches(spec)
        runs.append([trainer.step(next(source), 1e-3).loss for _ in range(5)])
        trainer.close()
    return {"check": "same bits twice", "equal": runs[0] == runs[1], "losses": runs[0]}


def measure(model: str, micro: int, more: list[str]) -> dict[str, object]:
    """Time one model and micro-batch."""
    import torch

    spec = spec_of(model, micro, *more)
    trainer, device = opened(spec)
    source = batches(spec)
    started = time.perf_counter()
    losses = [trainer.step(next(source), 1e-4).loss for _ in range(WARM_UP)]
    first = time.perf_counter() - started
    ready = [next(source) for _ in range(STEPS)]
    started = time.perf_counter()
    losses += [trainer.step(batch, 1e-4).loss for batch in ready]
    seconds = (time.perf_counter() - started) / STEPS
    rate = spec.tokens_per_step / seconds
    return {
        "model": model,
        "micro_batch": micro,
        "device": device,
        "torch": torch.__version__,
        "options": more,
        "tokens_per_second": round(rate),
        "mfu": round(rate * flops_per_token(spec.model, 1024) / PEAK, 4),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "first_steps_seconds": round(first, 1),
        "losses": [round(loss, 3) for loss in (losses[0], losses[-1])],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, action="append")
    parser.add_argument("--micro", type=int, nargs="+")
    parser.add_argument("--only", action="store_true", help="no checks")
    parser.add_argument("-o", dest="more", action="append", default=[])
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process:
        print(json.dumps(measure(options.model[0], options.micro[0], options.more)), flush=True)
        return
    if not options.only:
        for precision in ("fp32", "bf16", "fp16"):
            print(json.dumps(check(precision, *options.more)), flush=True)
        print(json.dumps(repeatable(*options.more)), flush=True)
    for model in options.model or SIZES:
        for micro in options.micro or SIZES[model]:
            more = [part for change in options.more for part in ("-o", change)]
            command = [
                sys.executable,
                __file__,
                "--in-process",
                "--model",
                model,
                "--micro",
                str(micro),
                *more,
            ]
            subprocess.run(command, timeout=SECONDS, check=False)


if __name__ == "__main__":
    main()
