"""Generation: GPT-2 small's shapes, random weights, greedy, unequal prompts, against peers and the memory.

`python benchmarks/generate.py` prints a table and writes it to benchmarks/results/generate.md. Each peer
runs in a process of its own with one thread, in turn, so that all meet the same machine; the best round
counts. What a peer compiles or packs once is done before its clock starts. Ids that are not transformers'
are told; llama.cpp tells none of tokens without a text. CTranslate2 takes part where it is installed
(`pip install --group peers`). "bandwidth" is as fast as one thread reads all weights once a token, and does
nothing else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import reports

ROOT = Path(__file__).parents[1]
for folder in ("", "specs", "backends"):
    sys.path.insert(0, str(ROOT / folder))

OURS = ("torch", "paddle", "mindspore")
PEERS = ("transformers", "ctranslate2", "llama.cpp", *OURS, "bandwidth")
OPTIONAL = {"ctranslate2": "ctranslate2", "llama.cpp": "xllamacpp"}  # by the module that they need
MODEL = "model"  # the folder of its checkpoint; others hold what peers make of it
VOCABULARY, POSITIONS = 50257, 1024
Ids = list[list[int]]
Generate = Callable[[Ids, int], Ids]  # of prompts and the number of new tokens


def prompts(count: int) -> Ids:
    """Return prompts of 8 to 32 tokens; a lone one has 32."""
    stream = np.random.default_rng(7)
    return [stream.integers(0, VOCABULARY, 32 - 24 * n // max(count, 2)).tolist() for n in range(count)]


def write_model(folder: Path) -> None:
    """Write a checkpoint of random weights, large enough for the text to vary; its words are numbers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    set_seed(1)
    config = GPT2Config(initializer_range=0.1)
    GPT2LMHeadModel(config).save_pretrained(folder / MODEL)
    last = str(VOCABULARY - 1)
    words = Tokenizer(WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token=last))
    named = {f"{name}_token": last for name in ("bos", "eos", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder / MODEL)


def transformers_peer(folder: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder / MODEL).eval()
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


def ctranslate2_peer(folder: Path) -> Generate:
    import ctranslate2

    converted = folder / "ctranslate2"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(str(folder / MODEL)).convert(str(converted))
    model = ctranslate2.Generator(str(converted), compute_type="float32", inter_threads=1, intra_threads=1)

    def generate(contexts: Ids, new: int) -> Ids:
        words = [[str(token) for token in row] for row in contexts]
        options = {"max_length": new, "min_length": new, "include_prompt_in_result": False, "end_token": []}
        return [each.sequences_ids[0] for each in model.generate_batch(words, sampling_topk=1, **options)]

    return generate


def llama_peer(folder: Path) -> Generate:
    import xllamacpp as llama

    from gptbridge import export

    if not (folder / "gguf").exists():
        source, output = folder / MODEL, folder / "gguf"
        export(source, output, format="gguf", tokenizer="byte", verify=False, warn=lambda _: None)
    params = llama.CommonParams()
    (file,) = (folder / "gguf").glob("*.gguf")
    params.model.path, params.n_parallel, params.n_ctx, params.verbosity = str(file), 8, 8 * 256, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.sampling.ignore_eos = True
    server = llama.Server(params)

    def generate(contexts: Ids, new: int) -> Ids:
        def one(row: list[int]) -> None:
            asked = {"prompt": row, "max_tokens": new, "temperature": 0, "cache_prompt": False}
            count = server.handle_completions(asked)["usage"]["completion_tokens"]
            assert count == new, f"llama.cpp ended after {count} tokens"

        with ThreadPoolExecutor(len(contexts)) as rows:
            list(rows.map(one, contexts))
        return []

    return generate


def bandwidth_peer(folder: Path) -> Generate:
    weights = np.ones((folder / MODEL / "model.safetensors").stat().st_size // 4, np.float32)

    def read(contexts: Ids, new: int) -> Ids:
        for _ in range(new):
            weights.max()
        return []

    return read


def backend_peer(name: str, folder: Path) -> Generate:
    from gptbridge.generation.engine import Engine
    from gptbridge.generation.requests import Ending, request
    from gptbridge.plugins.backend import load_backend
    from gptbridge.weights.opening import hints_of, open_checkpoint
    from gptbridge.weights.shards import load
    from gptbridge_specs import RunSpec
    from gptbridge_specs.generation import GenerationSpec

    with open_checkpoint(folder / MODEL, hints_of()) as opened:
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
    others = {
        "transformers": transformers_peer,
        "ctranslate2": ctranslate2_peer,
        "llama.cpp": llama_peer,
        "bandwidth": bandwidth_peer,
    }
    generate = backend_peer(peer, folder) if peer in OURS else others[peer](folder)
    found = {}
    for batch in batches:
        contexts = prompts(batch)
        generate(contexts, new)  # what is compiled or packed once
        began, cpu = time.perf_counter(), time.process_time()
        ids = generate(contexts, new)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        found[str(batch)] = {"cpu": batch * new / cpu, "wall": batch * new / wall, "ids": ids}
    return found


def run(peer: str, folder: Path, batches: Sequence[int], new: int) -> dict[str, Any]:
    """Measure a peer in a process of its own."""
    words = ["--worker", peer, "--folder", str(folder), "--new", str(new), "--batches", *map(str, batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, env=environment, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def table(rounds: Sequence[dict[str, Any]], batches: Sequence[int]) -> str:
    """Return the best rounds of all peers, as Markdown."""
    lines = [
        "| batch | | tokens per CPU-second | x transformers | tokens/s | ids |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(rounds[0]))
    for batch in map(str, batches):
        for peer in rounds[0]:
            cpu, wall = (max(found[peer][batch][kind] for found in rounds) for kind in ("cpu", "wall"))
            ratio = cpu / max(found[first][batch]["cpu"] for found in rounds)
            ids = rounds[0][peer][batch]["ids"]
            same = "" if not ids else "equal" if ids == rounds[0][first][batch]["ids"] else "differ"
            lines.append(f"| {batch} | {peer} | {cpu:.1f} | {ratio:.2f} | {wall:.1f} | {same} |")
    return "\n".join(lines)


def main() -> None:
    parser = reports.options(__doc__, "generate.md")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--worker", choices=PEERS)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.worker, given.folder, given.batches, given.new)))
        return
    absent = [peer for peer, module in OPTIONAL.items() if not importlib.util.find_spec(module)]
    peers = [peer for peer in given.peers if peer not in absent]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / MODEL).exists():
            write_model(folder)
        rounds = [
            {peer: run(peer, folder, given.batches, given.new) for peer in peers} for _ in range(given.rounds)
        ]
    what = f"GPT-2 small's shapes, fp32, {given.new} new tokens, greedy, one thread; best of {given.rounds}."
    reports.publish("Generation", what, table(rounds, given.batches), given.output)


if __name__ == "__main__":
    main()
