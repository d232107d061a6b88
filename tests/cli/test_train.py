"""`gptbridge train` as a person or a script meets it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.training.run import Outcome
from gptbridge.training.tensorboard import TensorBoard
from gptbridge.weights.architecture import count_parameters
from gptbridge_cli.displays import choose_display, describe
from gptbridge_cli.train import _say_next
from gptbridge_specs import load_run
from tests.data.test_readers_hostile import write_prepared
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
    assert lines[-5] == "complete at step 8"
    assert lines[-4].split() == ["checkpoint", str(run / "checkpoints" / "step-00000008")]
    assert Path(lines[-4].split()[1]).is_dir()
    assert all(f"gptbridge {word} {run}" in "\n".join(lines[-3:]) for word in ("generate", "convert"))
    assert f"train --resume {run} " in lines[-1]
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
    for fact in ("parameters: 3,290,880", "tokens_per_step: 2,048", "total_tokens: 14,336", "moments 25 MiB"):
        assert fact in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.partition("memory of")[2].splitlines())
    assert not run.exists()
    facts = json.loads(gptbridge("train", "--dry-run", "--json").stdout)
    assert facts["parameters"] == 3_290_880
    assert facts["optimizer_bytes"] == 26_327_040
    assert list(facts["peak_bytes_by_recompute"]) == ["none", "core_attn", "full_attn", "full"]
    assert facts["fits"] is True
    assert facts["spec"]["training"]["max_steps"] == 300


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("gpt2-tyni",), 2, "Did you mean gpt2-tiny?"),
        (("-o", "training.max_stpes=3"), 2, "Did you mean training.max_steps?"),
        (("-o", "training.max_steps=many"), 2, "training.max_steps"),
        (("-o", "data.split=[1,0,0]"), 2, "data.split"),
        (("-o", "data.path=nowhere"), 5, "nowhere"),
        (("-o", "parallel.data=3"), 2, "parallel.data"),
        (("--backend", "troch"), 3, "Did you mean 'torch'"),
        (("--resume", "nowhere"), 5, "nowhere: no such file or folder"),
        (("--resume", "nowhere", "--dry-run"), 5, "nowhere: no such file or folder"),
        (("--lr", "1e-4"), 2, "Did you mean -o schedule.max_lr=1e-4?"),
        (("--device", "cuda"), 2, "Did you mean -o training.device=gpu?"),
        (("--training.max_steps", "3"), 2, "Did you mean -o training.max_steps=3?"),
        (("--data", "x"), 2, "Did you mean -o data.path=PREFIX?"),
        (("--keep-best",), 2, "Did you mean -o checkpoint.keep_best=true?"),
        (("--model", "gpt2-xl"), 2, "--model: says what the weights of --init-from do not"),
        (("--from", "torch"), 2, "--from: says what the weights of --init-from do not"),
        (("--skip-bad",), 2, "--skip-bad: leaves out records"),
        (("-c", "a.yaml"), 2, "The spec stands by itself: gptbridge train FILE.yaml."),
        (("--output_dir", "x"), 2, "--output_dir. --run FOLDER names the run's folder."),
        (
            ("fleetx-345m-single-card",),
            2,
            "data.path: fleetx-345m-single-card is a recipe for data of its own",
        ),
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
    script = script.replace("OverflowError('too\\nlarge')", "MemoryError")
    assert run("broken").stderr == (
        "error: there is not enough memory for this. Is a limit set? ulimit -v shows it\n"
    )


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


def test_a_recipe_asks_for_its_data(tmp_path: Path) -> None:
    for name in ("fleetx-345m-single-card", "mindformers-gpt2-13b", "paddlenlp-gpt2-en"):
        result = gptbridge("train", name, "--run", tmp_path / "run")
        assert result.returncode == 2
        assert "data.path: " in result.stderr
        assert "-o data.path=PREFIX" in result.stderr
        assert gptbridge("train", name, "--dry-run").returncode == 0
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_is_that_of_the_data(tmp_path: Path) -> None:
    content = {"identity": "x", "vocab_size": 777}
    write_prepared(tmp_path / "set", content)

    def vocabulary(*words: str) -> int:
        result = gptbridge("train", *words, "--dry-run", "--json", "-o", f"data.path={tmp_path / 'set'}")
        assert result.returncode == 0, result.stderr
        size: int = json.loads(result.stdout)["spec"]["model"]["vocab_size"]
        return size

    assert vocabulary() == 777
    assert vocabulary("-o", "model.vocab_size=800") == 800
    assert vocabulary("gpt2-small") == 50257


def test_options_of_other_systems_are_answered() -> None:
    for words, meant in (
        (("--lr", "1e-4"), "-o schedule.max_lr=1e-4"),
        (("--device", "cuda"), "-o training.device=gpu"),
        (("-c", "x.yaml"), "gptbridge train FILE.yaml"),
        (("--seq-length", "8"), "-o training.seq_length="),
    ):
        result = gptbridge("train", *words)
        assert result.returncode == 2
        assert meant in result.stderr
    assert "Did you mean" not in gptbridge("convert", "--lr", "1").stderr


def test_text_from_files_moves_no_cursor() -> None:
    event = {"event": "warning", "message": "a\x1b[2J\nb\u202e"}
    (line,) = describe(event)
    assert line.isprintable()
    assert "\\x1b[2J" in line


def test_quiet_still_tells_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    for observer in choose_display(1, quiet=True, as_json=False):
        observer({"event": "warning", "message": "the newest checkpoint is damaged: an older one is taken"})
        observer({"event": "checkpoint", "path": "x", "seconds": 1.0})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: the newest checkpoint is damaged: an older one is taken\n"


def test_tensorboard_is_made_again_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    run = tmp_path
    steps = [step_event(n) for n in (1, 2, 3)]
    beyond = step_event(4)
    events = [{"event": "start"}, *steps, beyond, {"event": "resume", "step": 3}]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    result = gptbridge("tensorboard", run)
    assert result.returncode == 0, result.stderr
    assert drawn(run) == [1, 2, 3]
    board = TensorBoard(run)
    board({"event": "resume", "step": 3})
    board(step_event(4) | {"loss": 0.5})
    board({"event": "end"})
    assert drawn(run) == [1, 2, 3, 4]
    (run / "events.jsonl").unlink()
    missing = gptbridge("tensorboard", run)
    assert (missing.returncode, len(missing.stderr.splitlines())) == (5, 1)


def step_event(number: int) -> dict[str, object]:
    return {
        "event": "step",
        "time": 1.0 + number,
        "step": number,
        "loss": 1.0 / number,
        "learning_rate": 1e-3,
    }


def drawn(run: Path) -> list[int]:
    """Return the steps of the losses in the one file of events: records of length, CRC, protobuf, CRC."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = (run / "tensorboard").iterdir()
    data, steps = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        steps += [event.step for value in event.summary.value if value.tag.endswith("loss")]
        data = data[16 + size :]
    return steps


NEXT = {  # overrides of a run: what it is used with, how long a longer one is
    "training.max_steps=3": ("generate", "training.max_steps=6"),
    "training.epochs=1.5": ("generate", "training.epochs=3"),
    'task={"name": "classification", "num_labels": 2}': ("evaluate", "training.max_steps=600"),
}


@pytest.mark.parametrize("override", NEXT)
def test_what_is_to_be_typed_next_can_be_typed(override: str, capsys: pytest.CaptureFixture[str]) -> None:
    _say_next(Outcome(Path("my runs/a"), 3, "complete"), load_run(overrides=[override]))
    typed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert all("my runs/a" in words for words in typed)
    assert "my runs/a-longer" in typed[-1]
    assert (typed[0][2], typed[-1][-1]) == NEXT[override]
