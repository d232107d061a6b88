"""Kill real commands at random moments and look for what was lost: `kill.py FOLDER [KILLS] [JOB ...]`.

A story is one output: its command is killed a few times, each time begun again, and at last left alone. What
it leaves must be what the unkilled command left, and nothing of the user's beside it may have changed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gptbridge.checkpoint.manifest import verify
from gptbridge.checkpoint.store import CheckpointStore
from tests.checkpoint.conftest import opened_run, spec_of, writer
from tests.data.prepared import library_texts
from tests.data.test_prepare_interrupted import command as prepare_command
from tests.training.conftest import ENVIRONMENT, TINY, command, numbers_of, options

SECONDS = 600  # after which a command hangs
KILLS_OF_A_STORY = 5

Files = dict[str, str]


def files_in(folder: Path) -> Files:
    """Return the sha256 of every file below `folder` by its path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@dataclass(frozen=True)
class Job:
    """`words` is the command that makes out/ of a story's folder; `result` is what it must come to.

    `begins` is the first file that it writes; `look` raises AssertionError or BadInput for damage after
    a kill, and returns how far the command had come.
    """

    words: Callable[[Path], list[str]]
    begins: str
    result: Callable[[Path], object]
    look: Callable[[Path], int]
    lay: Callable[[Path], None] = lambda folder: None


@dataclass
class Report:
    """What came of one job."""

    kills: int = 0
    stories: int = 0
    ended_before: int = 0
    lost: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = f"{self.kills} kills in {self.stories} stories, {self.ended_before} ended before their kill"
        return f"{counts}, {len(self.lost)} lost something"


def training(backend: str) -> Job:
    spec = [*TINY, "training.max_steps=40", "checkpoint.interval=2", "evaluation.interval=10"]

    def words(folder: Path) -> list[str]:
        run = folder / "out"
        return command("train", "-b", backend, "--run", run, "--resume", "auto", "--quiet", *options(spec))

    def result(folder: Path) -> object:
        (last,) = (folder / "out/checkpoints").glob("step-00000040")
        files = files_in(last)
        return numbers_of(folder / "out"), files["model.safetensors"], files["optimizer.safetensors"]

    def look(folder: Path) -> int:
        checkpoints = sorted((folder / "out/checkpoints").glob("step-*"))
        for checkpoint in checkpoints:
            verify(checkpoint)
            with opened_run(checkpoint) as opened:
                assert opened.state.step == int(checkpoint.name.removeprefix("step-"))
        return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0

    def lay(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out/notes.txt").write_text("the user's")

    return Job(words, "out/checkpoints", result, look, lay)


def preparation(workers: int, source: Path) -> Job:
    def words(folder: Path) -> list[str]:
        places = [str(source / "in.txt"), "--output", str(folder / "out")]
        return prepare_command(*places, "--workers", str(workers), pause=0.002)

    def look(folder: Path) -> int:
        journal = folder / "out.partial/journal.jsonl"
        whole = all((folder / f"out.{ending}").exists() for ending in ("bin", "idx", "json"))
        return 1 << 30 if whole else journal.read_bytes().count(b"\n") if journal.exists() else 0

    return Job(words, "out.partial/journal.jsonl", files_in, look)


def conversion(dialect: str, source: Path) -> Job:
    """Over a folder that is there, as somebody does again what he did with an older checkpoint."""
    older = files_in(source / "older")

    def words(folder: Path) -> list[str]:
        places = [source / "checkpoints/step-00000010", folder / "out"]
        return command("convert", *places, "--to", dialect, "--overwrite")

    def look(folder: Path) -> int:
        found = files_in(folder / "out")
        assert found == older or (found and not set(found) & set(older)), f"half an output: {sorted(found)}"
        return int(found != older)

    def lay(folder: Path) -> None:
        shutil.copytree(source / "older", folder / "out")

    return Job(words, "out", files_in, look, lay)


def jobs(source: Path) -> dict[str, Job]:
    """Return every job by its name; `source` is a new folder that gets what they read."""
    spec = spec_of(hidden_size=384, num_layers=8, num_attention_heads=6)
    CheckpointStore(source / "checkpoints").save(10, writer(spec, 10))
    (source / "older").mkdir()
    (source / "older/older.bin").write_bytes(bytes(1000))
    (source / "in.txt").write_text("\n".join(library_texts()[:4000]))
    found = {f"train-{backend}": training(backend) for backend in ("torch", "paddle", "mindspore")}
    found |= {f"prepare-{workers}": preparation(workers, source) for workers in (1, 2)}
    return found | {f"convert-{to}": conversion(to, source) for to in ("torch", "paddle", "mindspore")}


class Killer:
    """Runs the stories of one job."""

    def __init__(self, job: Job, folder: Path, seed: int) -> None:
        self.job, self.folder, self.draw = job, folder, random.Random(seed)
        self.report = Report()
        whole = self.new_story("whole")
        began = time.monotonic()
        process = self.start(whole)
        while not (whole / job.begins).exists() and process.poll() is None:
            time.sleep(0.002)
        self.first = time.monotonic() - began
        self.finish(process)
        self.life = time.monotonic() - began
        self.expected = job.result(whole)

    def new_story(self, name: str) -> Path:
        story = self.folder / name
        story.mkdir(parents=True)
        (story / "mine.txt").write_text("the user's")
        self.job.lay(story)
        return story

    def start(self, story: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.job.words(story),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def finish(self, process: subprocess.Popen[str]) -> None:
        _, problem = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, problem[-2000:]

    def kill_once(self, story: Path) -> bool:
        """Kill the command, three times in four after its first writing; return False where it had ended."""
        begin = self.first * 0.9 if self.draw.random() < 0.75 else 0
        with self.start(story) as process:
            try:
                process.wait(self.draw.uniform(begin, self.life))
            except subprocess.TimeoutExpired:
                process.kill()
            assert process.stderr
            problem = process.stderr.read()
        if process.returncode == 0:
            return False
        assert process.returncode == -9, problem[-2000:]
        self.report.kills += 1
        return True

    def tell(self, name: str) -> None:
        """Run one story to its end, and keep it where something is wrong."""
        story, reached = self.new_story(name), 0
        self.report.stories += 1
        try:
            for _ in range(KILLS_OF_A_STORY):
                if not self.kill_once(story):
                    self.report.ended_before += 1
                    break
                now = self.job.look(story)
                assert now >= reached, f"{reached} was reached before, {now} now"
                reached = now
            self.finish(self.start(story))
            assert self.job.result(story) == self.expected, "the result is another than without kills"
            for own in story.rglob("mine.txt"), story.rglob("notes.txt"):
                assert all(path.read_text() == "the user's" for path in own)
            shutil.rmtree(story)
        except Exception as error:
            self.report.lost.append(f"{story}: {type(error).__name__}: {error}")


def kill(name: str, job: Job, folder: Path, kills: int) -> Report:
    """Kill `job` at least `kills` times."""
    killer = Killer(job, folder / name, seed=len(name) + kills)
    for number in itertools.count():
        if killer.report.kills >= kills or number > 3 * kills:
            return killer.report
        killer.tell(f"story-{number}")
    raise AssertionError


def main(folder: str, kills: str = "40", *names: str) -> int:
    """Kill each job `kills` times; return 1 where anything was lost."""
    shutil.rmtree(folder, ignore_errors=True)
    source = Path(folder, "source")
    source.mkdir(parents=True)
    lost = 0
    for name, job in jobs(source).items():
        if not names or name in names:
            report = kill(name, job, Path(folder), int(kills))
            print(f"{name:18}{report}", *report.lost, sep="\n  ", flush=True)  # noqa: T201
            lost += len(report.lost)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
