"""What every benchmark's report says of its machine, and where reports go."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def options(description: str | None, report: str, *, rounds: int = 2) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", type=Path, default=RESULTS / report)
    return parser


def publish(title: str, what: str, tables: str, output: Path) -> None:
    """Print a report and write it: `what` was measured, on which machine, and the tables."""
    report = f"# {title}\n\n{what}\n{machine()}\n\n{tables}\n"
    print(report)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(report)


def machine() -> str:
    """Return the processor, its cores, their load and Python's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{number:.1f}" for number in os.getloadavg())
    return f"{models[0]}, {os.cpu_count()} cores, load {load}; Python {platform.python_version()}"
