"""Conversion against `cp` and against loading everything: layers of GPT-3 1.3B, one run.

`python benchmarks/convert.py` prints a table and writes it to benchmarks/results/convert.md. Every
contestant runs in a process of its own on a source that lies in the page cache; its clock starts
when its imports are done. Rounds are interleaved and the best of each counts. "memory" leaves what
is written in the page cache, as torch.save and cp do; "disk" waits until the disk has it, as gptbridge
always does. Anonymous memory is what a process takes beyond what it holds after its imports; the
pages of mapped files, which the kernel takes back when it likes, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import reports

HIDDEN, HEADS, VOCABULARY, POSITIONS = 2048, 16, 50304, 1024
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Contestant:
    """`job` is a name of JOBS, `synced` whether the time ends on the disk."""

    name: str
    job: str
    synced: bool = False


CONTESTANTS = (
    Contestant("cp", "cp"),
    Contestant("gptbridge, names only: torch -> gptbridge", "gptbridge"),
    Contestant("gptbridge, names only: torch -> paddle", "paddle"),
    Contestant("gptbridge, transposing: torch -> megatron", "megatron"),
    Contestant("gptbridge, transposing: torch -> mindspore", "mindspore"),
    Contestant("cp and sync", "cp", synced=True),
    Contestant("gptbridge: torch -> paddle", "paddle", synced=True),
    Contestant("gptbridge: torch -> megatron", "megatron", synced=True),
    Contestant("torch: load all, transpose, torch.save", "load-torch"),
    Contestant("paddle: load all, to_tensor, paddle.save", "load-paddle"),
    Contestant("mindspore: load all, transpose, save_checkpoint", "load-mindspore"),
)


@dataclass
class Measured:
    seconds: float
    cpu: float
    anonymous: float  # MB beyond what the process held after its imports


def job_cp(source: Path, output: Path) -> Callable[[], None]:
    def copy() -> None:
        output.mkdir()
        subprocess.run(["cp", str(source / "model.safetensors"), str(output / "copy")], check=True)

    return copy


def job_ours(dialect: str) -> Callable[[Path, Path], Callable[[], None]]:
    def job(source: Path, output: Path) -> Callable[[], None]:
        from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint

        def convert() -> None:
            convert_checkpoint(Conversion(source, output, dialect))

        return convert

    return job


def is_linear(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def job_load_torch(source: Path, output: Path) -> Callable[[], None]:
    import torch
    from safetensors.torch import load_file

    def convert() -> None:
        weights = load_file(source / "model.safetensors")
        renamed = {f"model.{n}": w.T.contiguous() if is_linear(n) else w for n, w in weights.items()}
        output.mkdir()
        torch.save(renamed, output / "model_optim_rng.pt")

    return convert


def job_load_paddle(source: Path, output: Path) -> Callable[[], None]:
    import paddle
    from safetensors.numpy import load_file

    def convert() -> None:
        weights = load_file(source / "model.safetensors")
        renamed = {f"gpt.{n}": paddle.to_tensor(w) for n, w in weights.items()}
        output.mkdir()
        paddle.save(renamed, str(output / "model_state.pdparams"))

    return convert


def job_load_mindspore(source: Path, output: Path) -> Callable[[], None]:
    import mindspore
    import numpy as np
    from safetensors.numpy import load_file

    def convert() -> None:
        weights = load_file(source / "model.safetensors")
        listed = [
            {"name": n, "data": mindspore.Tensor(np.ascontiguousarray(w.T) if "c_attn" in n else w)}
            for n, w in weights.items()
        ]
        output.mkdir()
        mindspore.save_checkpoint(listed, str(output / "gpt2.ckpt"))

    return convert


# Each imports what it needs, then returns what is timed.
JOBS: dict[str, Callable[[Path, Path], Callable[[], None]]] = {
    "cp": job_cp,
    **{dialect: job_ours(dialect) for dialect in ("gptbridge", "paddle", "megatron", "mindspore")},
    "load-torch": job_load_torch,
    "load-paddle": job_load_paddle,
    "load-mindspore": job_load_mindspore,
}


LOADERS = ("load-torch", "load-paddle", "load-mindspore")


def sync_files(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def anonymous_megabytes(process: int | str) -> float:
    """Return the anonymous memory that a process holds now; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon")]
    return int(lines[0][1]) / 1024 if lines else 0.0


def work(job: str, source: Path, output: Path, *, synced: bool) -> None:
    """The contestant's process: import, say so, do the job, print the times."""
    run = JOBS[job](source, output)
    if not synced:
        # leave it in the page cache, as the others do
        os.fsync = lambda fd: None
        os.posix_fadvise = lambda fd, offset, nbytes, advice: None
    print(json.dumps({"anonymous": anonymous_megabytes("self")}), flush=True)
    before = os.times()
    start = time.perf_counter()
    run()
    if synced:
        sync_files(output)
    seconds = time.perf_counter() - start
    after = os.times()
    print(json.dumps({"seconds": seconds, "cpu": sum(after[:4]) - sum(before[:4])}), flush=True)


def measure(contestant: Contestant, source: Path, output: Path) -> Measured:
    flags = ["--synced"] if contestant.synced else []
    command = [sys.executable, __file__, "--job", contestant.job, str(source), str(output), *flags]
    peak = 0.0
    with tempfile.TemporaryFile() as said, subprocess.Popen(command, stdout=said) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_megabytes(process.pid))
            time.sleep(POLL_SECONDS)
        said.seek(0)
        facts = [json.loads(line) for line in said.read().splitlines()]
    if process.returncode:
        sys.exit(f"{contestant.name} failed")
    return Measured(facts[1]["seconds"], facts[1]["cpu"], peak - facts[0]["anonymous"])


def write_source(folder: Path, layers: int) -> int:
    """Write a checkpoint of random weights as Hugging Face does; return its size in bytes."""
    import numpy as np

    from gptbridge.weights.architecture import parameters, sizes
    from gptbridge.weights.dialects.gptbridge import DIALECT
    from gptbridge.weights.dialects.huggingface import config_of
    from gptbridge.weights.formats import Entry, TensorInfo, write_safetensors
    from gptbridge_specs import ModelSpec

    model = ModelSpec(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    stream = np.random.default_rng(0)

    def entry(name: str, shape: tuple[int, ...]) -> Entry:
        return TensorInfo(name, "float32", shape), lambda: [stream.standard_normal(shape, np.float32)]

    natives = DIALECT.layouts[0].natives([p.name for p in parameters(model)], layers)
    shapes = {native.name: native.axes.shape(sizes(model)) for native in natives}
    write_safetensors(folder / "model.safetensors", [entry(name, shape) for name, shape in shapes.items()])
    return (folder / "model.safetensors").stat().st_size


def warm(source: Path) -> None:
    """Bring the source into the page cache."""
    with (source / "model.safetensors").open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def measure_all(
    contestants: Sequence[Contestant], rounds: int, source: Path, folder: Path
) -> dict[Contestant, Measured]:
    best: dict[Contestant, Measured] = {}
    for _ in range(rounds):
        for contestant in contestants:
            warm(source)
            output = folder / "output"
            measured = measure(contestant, source, output)
            shutil.rmtree(output)
            os.sync()  # nobody pays for what another left to write
            kept = best.setdefault(contestant, measured)
            kept.seconds, kept.cpu = min(kept.seconds, measured.seconds), min(kept.cpu, measured.cpu)
            kept.anonymous = max(kept.anonymous, measured.anonymous)
    return best


def table(best: dict[Contestant, Measured], nbytes: int) -> str:
    lines = [
        "| contestant | ends | GB/s | of cp | x load-all | CPU s per GB | anonymous MB |",
        "|---|---|---|---|---|---|---|",
    ]
    slow = max(nbytes / m.seconds for c, m in best.items() if c.job.startswith("load"))
    copies = {c.synced: nbytes / m.seconds for c, m in best.items() if c.job == "cp"}
    for contestant, measured in best.items():
        rate = nbytes / measured.seconds
        numbers = (
            f"{rate / 1e9:.2f}",
            f"{rate / copies[contestant.synced]:.2f}",
            f"{rate / slow:.1f}",
            f"{measured.cpu / nbytes * 1e9:.2f}",
            f"{measured.anonymous:.0f}",
        )
        ends = "disk" if contestant.synced else "memory"
        lines.append(f"| {contestant.name} | {ends} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def main() -> None:
    parser = reports.options(__doc__, "convert.md", rounds=3)
    parser.add_argument("--layers", type=int, default=4, help="24 is the whole model, 5.3 GB")
    parser.add_argument(
        "--load-all", nargs="+", choices=LOADERS, default=LOADERS, help="the peers to measure"
    )
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--synced", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        work(arguments.job, *arguments.paths, synced=arguments.synced)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        nbytes = write_source(folder / "source", arguments.layers)
        contestants = [c for c in CONTESTANTS if c.job not in set(LOADERS) - set(arguments.load_all)]
        best = measure_all(contestants, arguments.rounds, folder / "source", folder)
    what = f"{arguments.layers} layers of hidden size {HIDDEN}, fp32, {nbytes / 1e9:.2f} GB"
    what += f"; best of {arguments.rounds} rounds."
    reports.publish("Conversion", what, table(best, nbytes), arguments.output)


if __name__ == "__main__":
    main()
