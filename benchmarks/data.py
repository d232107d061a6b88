"""Data preparation against what others do: the same text to the same bytes, in one run.

`python benchmarks/data.py` prints a table and writes it to benchmarks/results/data.md. The text is
the Python source on this machine; the vocabulary is trained on it, as large as GPT-2's. Every
pipeline runs in a process of its own, start to end, imports and reading the tokenizer included;
rounds are interleaved and the best of each counts. The slow ones get a part of the text, on which
ours is measured too. All must write the same .bin.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import reports

HERE = Path(__file__).parent
GPTBRIDGE = str(Path(sys.executable).with_name("gptbridge"))
SAMPLE_MEGABYTES = 20  # of text to train the vocabulary on
CHARACTERS = 4000  # of a document, about as long as a web page's text


@dataclass(frozen=True)
class Pipeline:
    """`command` sees the paths TEXT, TOKENIZER and OUT; `whole` gets all the text, else a part."""

    name: str
    command: tuple[str, ...]
    whole: bool = False


def peer(style: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "data_peers.py"), style, "TEXT", "TOKENIZER", "OUT.bin")


def ours(workers: int) -> tuple[str, ...]:
    options = (
        "--tokenizer",
        "TOKENIZER",
        "--output",
        "OUT",
        "--append-eos",
        "--workers",
        str(workers),
        "--quiet",
    )
    return (GPTBRIDGE, "data", "prepare", "TEXT", *options)


PIPELINES = (
    Pipeline("gptbridge", ours(1), whole=True),
    Pipeline("gptbridge, 2 workers", ours(2), whole=True),
    Pipeline("gigatoken, bare loop", peer("gigatoken"), whole=True),
    Pipeline("gptbridge, part", ours(1)),
    Pipeline("tiktoken", peer("tiktoken")),
    Pipeline("tokenizers, batches (nanoGPT style)", peer("batches")),
    Pipeline("tokenizers, one by one (Megatron style)", peer("one-by-one")),
)


@dataclass
class Measured:
    seconds: float  # CPU, user and system, of the process and its children
    wall: float
    megabytes: float  # resident at the most, of the largest process
    digest: str


def run(pipeline: Pipeline, text: Path, tokenizer: Path, folder: Path) -> Measured:
    out = Path(tempfile.mkdtemp(dir=folder)) / "out"
    paths = {"TEXT": str(text), "TOKENIZER": str(tokenizer), "OUT": str(out), "OUT.bin": f"{out}.bin"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [paths.get(word, word) for word in pipeline.command], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{pipeline.name} failed")
    with Path(f"{out}.bin").open("rb") as file:
        # in pieces: a child's peak begins at what this process holds
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Measured(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024, digest)


def write_text(path: Path, megabytes: float) -> None:
    """Write documents of Python source, `megabytes` of JSON lines, the same order on each machine."""
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))]
    with path.open("wb") as file:
        for source in (source for root in roots for source in sorted(root.rglob("*.py"))):
            if comes_twice(source, roots[0]) or not source.is_file():
                continue
            text = source.read_bytes().decode(errors="replace")
            for begin in range(0, len(text), CHARACTERS):
                line = {"path": source.name, "text": text[begin : begin + CHARACTERS]}
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            if file.tell() > megabytes * 1e6:
                return


def comes_twice(source: Path, stdlib: Path) -> bool:
    """Whether `source` is a package's, which may lie within the standard library too."""
    return "site-packages" in source.relative_to(stdlib).parts if source.is_relative_to(stdlib) else False


def part_of(text: Path, path: Path, megabytes: float) -> None:
    """Write every n-th document of `text`."""
    step = max(1, round(text.stat().st_size / (megabytes * 1e6)))
    with text.open("rb") as lines, path.open("wb") as file:
        file.writelines(line for number, line in enumerate(lines) if number % step == 0)


def table(best: dict[str, Measured], sizes: dict[str, float]) -> str:
    rates = {name: sizes[name] / measured.seconds for name, measured in best.items()}
    slowest = rates[PIPELINES[-1].name]
    lines = [
        "| pipeline | MB | CPU s | wall s | MB per CPU-second | x Megatron style | peak MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, measured in best.items():
        numbers = (
            f"{sizes[name]:.1f}",
            f"{measured.seconds:.2f}",
            f"{measured.wall:.2f}",
            f"{rates[name]:.1f}",
            f"{rates[name] / slowest:.1f}",
            f"{measured.megabytes:.0f}",
        )
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def measure_all(rounds: int, text: Path, part: Path, tokenizer: Path, folder: Path) -> dict[str, Measured]:
    best: dict[str, Measured] = {}
    for _ in range(rounds):
        for pipeline in PIPELINES:
            measured = run(pipeline, text if pipeline.whole else part, tokenizer, folder)
            kept = best.setdefault(pipeline.name, measured)
            if measured.seconds < kept.seconds:
                best[pipeline.name] = measured
    for whole in (True, False):
        if len({best[pipeline.name].digest for pipeline in PIPELINES if pipeline.whole is whole}) != 1:
            sys.exit("the pipelines wrote different bytes")
    return best


def main() -> None:
    parser = reports.options(__doc__, "data.md")
    parser.add_argument("--megabytes", type=float, default=200, help="of text for the fast ones")
    parser.add_argument("--part", type=float, default=6, help="megabytes of text for the slow ones")
    parser.add_argument("--vocab-size", type=int, default=50257)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, part, sample = folder / "text.jsonl", folder / "part.jsonl", folder / "sample.jsonl"
        write_text(text, arguments.megabytes)
        part_of(text, part, arguments.part)
        part_of(text, sample, SAMPLE_MEGABYTES)
        tokenizer = folder / "tokenizer"
        options = ("--vocab-size", str(arguments.vocab_size), "--output", str(tokenizer), "--quiet")
        subprocess.run([GPTBRIDGE, "tokenizer", "train", str(sample), *options], check=True)
        best = measure_all(arguments.rounds, text, part, tokenizer, folder)
        sizes = {p.name: (text if p.whole else part).stat().st_size / 1e6 for p in PIPELINES}
    what = f"JSON lines to .bin, a vocabulary of {arguments.vocab_size}, all bytes equal"
    what += f"; best of {arguments.rounds} rounds."
    reports.publish("Data preparation", what, table(best, sizes), arguments.output)


if __name__ == "__main__":
    main()
