"""Tokens per CPU-second of generation: GPT-2 small's shapes, random weights, greedy, unequal prompts.

    python benchmarks/generate.py [--peers transformers torch paddle mindspore] [--batches 1 8] [--rounds 2]

Each peer runs in a process of its own with one thread, in turn, so that all meet the same machine; the best
round counts. The ids must be transformers'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
for folder in ("", "specs", "backends"):
    sys.path.insert(0, str(ROOT / folder))

PEERS = ("transformers", "torch", "paddle", "mindspore")
VOCABULARY, POSITIONS = 50257, 1024
Ids = list[list[int]]
Generate = Callable[[Ids, int], Ids]  # of prompts and the number of new tokens


def prompts(count: int) -> Ids:
    """Return prompts of 8 to 32 tokens; a lone one has 32."""
    stream = np.random.default_rng(7)
    return [stream.integers(0, VOCABULARY, 32 - 24 * n // max(count, 2)).tolist() for n in range(count)]


def write_model(folder: Path) -> None:
    """Write a checkpoint of random weights, large enough for the text to vary."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    set_seed(1)
    config = GPT2Config(initializer_range=0.1)
    GPT2LMHeadModel(config).save_pretrained(folder)


def transformers_peer(folder: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None

    def generate(contexts: Ids, new: int) -> Ids:
        width = max(map(len, contexts))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in contexts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in contexts])
        with torch.inference_mode():
            out = model.generate(
                padded, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        return [[int(token) for token in row] for row in out[:, width:]]

    return generate


def backend_peer(name: str, folder: Path) -> Generate:
    from gptbridge.generation.engine import Engine
    from gptbridge.generation.requests import Ending, request
    from gptbridge.plugins.backend import load_backend
    from gptbridge.weights.opening import hints_of, open_checkpoint
    from gptbridge.weights.shards import load
    from gptbridge_specs import RunSpec
    from gptbridge_specs.generation import GenerationSpec

    with open_checkpoint(folder, hints_of()) as opened:
        spec = RunSpec(model=opened.model, training={"seq_length": 1, "device": "cpu"})
        model = load_backend(name).open_model(spec)
        load(model.shards(), opened.read)

    def generate(contexts: Ids, new: int) -> Ids:
        spec = GenerationSpec(max_new_tokens=new)
        requests = [request(context, spec, Ending(new)) for context in contexts]
        engine = Engine(
            model,
            rows=len(contexts),
            window=POSITIONS,
            vocab_size=VOCABULARY,
            capacity=len(contexts[0]) + new,
        )
        for each in requests:
            engine.submit(each)
        while engine.busy:
            engine.step()
        return [list(each.results()[0].tokens) for each in requests]

    return generate


def measure(peer: str, folder: Path, batches: Sequence[int], new: int) -> dict[str, Any]:
    """Return the speed and ids of one peer at each batch size."""
    generate = transformers_peer(folder) if peer == "transformers" else backend_peer(peer, folder)
    found = {}
    for batch in batches:
        contexts = prompts(batch)
        generate(contexts, 4)  # what is compiled or packed once
        began, cpu = time.perf_counter(), time.process_time()
        ids = generate(contexts, new)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        found[str(batch)] = {"cpu": batch * new / cpu, "wall": batch * new / wall, "ids": ids}
    return found


def run(peer: str, folder: Path, batches: Sequence[int], new: int) -> dict[str, Any]:
    """Measure a peer in a process of its own."""
    words = ["--worker", peer, "--folder", str(folder), "--new", str(new), "--batches", *map(str, batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLOG_v": "4"}
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.worker, given.folder, given.batches, given.new)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "config.json").exists():
            write_model(folder)
        rounds = [
            {peer: run(peer, folder, given.batches, given.new) for peer in given.peers}
            for _ in range(given.rounds)
        ]
    first = given.peers[0]
    for batch in map(str, given.batches):
        for peer in given.peers:
            speeds = [found[peer][batch]["cpu"] for found in rounds]
            ratio = max(speeds) / max(found[first][batch]["cpu"] for found in rounds)
            same = rounds[0][peer][batch]["ids"] == rounds[0][first][batch]["ids"]
            print(
                f"batch {batch:>2}  {peer:<13} {max(speeds):7.1f} tokens/CPU-s  {ratio:5.2f} x {first}  "
                f"ids {'equal' if same else 'DIFFER'}  rounds {' '.join(f'{speed:.1f}' for speed in speeds)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
