"""`gptbridge train` as a person or a script meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import load_run
from tests.training.conftest import TINY, gptbridge, options

SEED_FIELDS = [
    "global step",
    "epoch",
    "batch",
    "loss",
    "avg_reader_cost",
    "avg_batch_cost",
    "speed",
    "ips_total",
    "ips",
    "learning rate",
    "grad_norm",
]


def test_plain_lines_have_the_seeds_fields_and_the_gradient_norm(tmp_path: Path) -> None:
    """Lines every 3 steps; tensorboard files on the side; nothing on standard error."""
    run = tmp_path / "run"
    result = gptbridge("train", "--tensorboard", "--run", run, *options([*TINY, "training.log_interval=3"]))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "no --backend: torch is taken"
    steps = [line for line in lines if line.startswith("global step")]
    assert len(steps) == 3
    fields = dict(part.split(": ", 1) for part in steps[1].split(", "))
    assert list(fields) == SEED_FIELDS
    assert fields["global step"] == "6"
    assert fields["batch"] == "5"
    assert fields["ips"].endswith(" tokens/s")
    parameters = count_parameters(load_run("gpt2-tiny", TINY).model)
    head = "\n".join(lines[:7])
    for fact in (
        "fp32",
        f"{parameters:,} parameters",
        "8 steps of 128 tokens",
        str(run),
        "the embedded corpus",
    ):
        assert fact in head
    assert lines[-1] == "complete at step 8"
    (scalars,) = (run / "tensorboard").iterdir()
    assert b"step/learning_rate" in scalars.read_bytes()


def test_json_prints_every_event(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = gptbridge("train", "-b", "torch", "--run", run, "--json", *options(TINY))
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    written = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert printed == written
    assert printed[-1]["reason"] == "complete"


def test_a_dry_run_says_all_and_launches_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = gptbridge("train", "gpt2-tiny", "--dry-run", "--run", run, "-o", "training.max_steps=7")
    assert result.returncode == 0
    file = tmp_path / "spec.yaml"
    file.write_text(result.stdout.partition("\n\n")[0])
    assert load_run(str(file)) == load_run("gpt2-tiny", ["training.max_steps=7"])
    for fact in ("parameters: 3,290,880", "tokens_per_step: 2,048", "optimizer_bytes: 26,327,040"):
        assert fact in result.stdout
    assert not run.exists()
    facts = json.loads(gptbridge("train", "--dry-run", "--json").stdout)
    assert facts["parameters"] == 3_290_880
    assert facts["spec"]["training"]["max_steps"] == 300


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("gpt2-tyni",), 2, "Did you mean gpt2-tiny?"),
        (("-o", "training.max_stpes=3"), 2, "Did you mean training.max_steps?"),
        (("-o", "training.max_steps=many"), 2, "training.max_steps"),
        (("-o", "data.split=[1,0,0]"), 2, "data.split"),
        (("-o", "data.path=nowhere"), 5, "nowhere"),
        (("-o", "parallel.tensor=2"), 2, "parallel.tensor"),
        (("--backend", "troch"), 3, "Did you mean 'torch'"),
        (("--resume", "nowhere"), 5, "nowhere: no such file or folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, words: tuple[str, ...], code: int, named: str
) -> None:
    run = tmp_path / "run"
    result = gptbridge("train", "--run", run, *words)
    assert result.returncode == code, result.stderr
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not run.exists()


def test_what_nobody_foresaw_is_one_line_too(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from gptbridge_cli import main\n"
        "def broken() -> None: raise OverflowError('too\\nlarge')\n"
        "main.app.command('broken')(broken)\n"
        "main.main()\n"
    )

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60
        )

    done = run("broken")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: OverflowError: too large. gptbridge --debug COMMAND shows where; please report it"
    ]
    assert "Traceback" in run("--debug", "broken").stderr


@pytest.mark.parametrize(
    ("words", "message", "command"),
    [
        ("train --quit", "No such option: --quit (Possible options: --quiet).", "train"),
        ("convert x", "Missing argument 'OUT'.", "convert"),
        ("data inspect --bogus", "No such option: --bogus.", "data inspect"),
        ("nosuch", "No such command 'nosuch'.", ""),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(words: str, message: str, command: str) -> None:
    result = gptbridge(*words.split())
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {message} ")
    assert f"{command} --help tells more." in result.stderr


def test_no_arguments_print_the_help() -> None:
    result = gptbridge()
    assert (result.returncode, result.stderr) == (2, "")
    assert "Usage:" in result.stdout
