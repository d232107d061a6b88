"""Every format once, by the commands of docs/export.md and two more: a process for each framework."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.evaluation.test_docs import SCRIPT
from tests.exporting.sources import MODELS, write_source
from tests.training.conftest import ENVIRONMENT

PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text()
# By format: the folder that a command makes, and the model that lies under that name.
MADE = {
    "huggingface": ("for-transformers", "run"),
    "gguf": ("for-llama", "run"),
    "onnx": ("for-onnxruntime", "run"),
    "torch-export": ("for-torch", "run"),
    "paddle-inference": ("for-paddle", "plain"),
    "mindir": ("for-mindspore", "odd"),
}


def block(language: str) -> list[str]:
    """Return the lines of the page's one block in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text).splitlines()


def executed(folder: Path, words: list[str]) -> str:
    """Run Python there and return what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@dataclass(frozen=True)
class Artefacts:
    """What the commands made in `folder`, and what those of the page printed."""

    folder: Path
    printed: str

    def __getitem__(self, format: str) -> Path:
        return self.folder / MADE[format][0]


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    folder = tmp_path_factory.mktemp("artefacts")
    for name, model in MODELS.items():
        write_source(folder / name, model)
    groups: Mapping[str, list[str]] = {
        "torch": [line for line in block("bash") if line.startswith("gptbridge ")],
        "paddle": ["gptbridge export plain for-paddle --format paddle-inference --verify"],
        "mindspore": ["gptbridge export odd for-mindspore --format mindir --verify"],
    }
    with ThreadPoolExecutor(len(groups)) as pool:
        printed = list(pool.map(partial(executed, folder), (["-c", SCRIPT, *g] for g in groups.values())))
    return Artefacts(folder, printed[0])
