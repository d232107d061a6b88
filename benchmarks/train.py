"""Training speed: each backend's session against the bare loop in its framework, and Hugging Face Trainer.

`python benchmarks/train.py` prints the tables and writes them to benchmarks/results/train.md. All
train the same model from the same weights on the same tokens (workload.py), and must report the same
losses. Each measurement is a process of its own; a round measures everybody once, so that a busy
machine is busy for all. CPU seconds count every thread: read them where the machine is shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import reports

HERE = Path(__file__).parent
LOSS_TOLERANCE = 1e-4  # relative, at every step


@dataclass(frozen=True)
class Contestant:
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Race:
    """`ours` is to reach `aim` times the tokens of `theirs`."""

    ours: Contestant
    theirs: Contestant
    aim: float


@dataclass
class Figures:
    """One entry a round."""

    per_second: list[float] = field(default_factory=list)
    per_cpu_second: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # of the last round, one a step


def session(backend: str) -> Contestant:
    return Contestant(f"gptbridge, {backend}", ("session.py", "--backend", backend))


def bare(backend: str) -> Contestant:
    return Contestant(f"bare {backend} loop", (f"bare_{backend}.py",))


TRAINER = Contestant("Hugging Face Trainer", ("hf_trainer.py",))
RACES = {
    "torch": (Race(session("torch"), bare("torch"), 0.97), Race(session("torch"), TRAINER, 1.2)),
    "paddle": (Race(session("paddle"), bare("paddle"), 0.97),),
    "mindspore": (Race(session("mindspore"), bare("mindspore"), 0.97),),
}


def run(contestant: Contestant, options: list[str]) -> Any:
    """Return what workload.report prints."""
    command = [sys.executable, str(HERE / contestant.command[0]), *contestant.command[1:], *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if finished.returncode:
        sys.exit(f"{contestant.name} failed:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def measure(contestants: list[Contestant], rounds: int, options: list[str]) -> dict[Contestant, Figures]:
    measured = {contestant: Figures() for contestant in contestants}
    for number in range(rounds):
        # Every other round runs backwards: a load that comes or goes hits nobody always last.
        for contestant in contestants[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}: {contestant.name}", file=sys.stderr)
            figures, kept = run(contestant, options), measured[contestant]
            kept.per_second.append(figures["tokens_per_second"])
            kept.per_cpu_second.append(figures["tokens_per_cpu_second"])
            kept.losses = figures["losses"]
    return measured


def check_losses(measured: dict[Contestant, Figures]) -> None:
    """Leave with an error unless all contestants report the same losses."""
    (first, expected), *others = measured.items()
    for contestant, figures in others:
        for step, (ours, theirs) in enumerate(zip(expected.losses, figures.losses, strict=True), start=1):
            if abs(ours - theirs) > LOSS_TOLERANCE * abs(ours):
                sys.exit(f"step {step}: {first.name} has loss {ours}, {contestant.name} {theirs}")


def figures_table(measured: dict[Contestant, Figures]) -> str:
    lines = [
        "| | tokens per CPU-second, best | median | tokens/s, best | median |",
        "|---|---|---|---|---|",
    ]
    for contestant, figures in measured.items():
        columns = (figures.per_cpu_second, figures.per_second)
        numbers = [f"{number:.0f}" for column in columns for number in (max(column), median(column))]
        lines.append(f"| {contestant.name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def races_table(measured: dict[Contestant, Figures], races: list[Race]) -> str:
    lines = ["| | per CPU-second, best | median | per second, best | aim |", "|---|---|---|---|---|"]
    for race in races:
        ours, theirs = measured[race.ours], measured[race.theirs]
        ratios = (
            max(ours.per_cpu_second) / max(theirs.per_cpu_second),
            median(ours.per_cpu_second) / median(theirs.per_cpu_second),
            max(ours.per_second) / max(theirs.per_second),
        )
        numbers = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {race.ours.name} / {race.theirs.name} | {numbers} | {race.aim} |")
    return "\n".join(lines)


def main() -> None:
    parser = reports.options(__doc__, "train.md", rounds=3)
    parser.add_argument("--backends", nargs="+", choices=RACES, default=list(RACES))
    parser.add_argument("--threads", type=int, help="threads of each contestant; all cores when absent")
    arguments, options = parser.parse_known_args()  # the rest describes the workload
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    races = [race for backend in arguments.backends for race in RACES[backend]]
    contestants = list(dict.fromkeys(c for race in races for c in (race.ours, race.theirs)))
    measured = measure(contestants, arguments.rounds, options)
    check_losses(measured)
    what = " ".join(options) or "4 layers, 256 wide, vocabulary 8192, 8 samples of 256 tokens, fp32"
    what += f"; {arguments.rounds} rounds; threads: {arguments.threads or 'all'}."
    tables = f"{figures_table(measured)}\n\n{races_table(measured, races)}"
    reports.publish("Training", what, tables, arguments.output)


if __name__ == "__main__":
    main()
