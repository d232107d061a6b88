"""The model from which every other form is made, and a Hugging Face to ask."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge_cli.main import main
from tests.weights.conversion.checkpoints import MODEL, random_weights, write_hugging_face
from tests.weights.conversion.commands import Outcome

Register = Callable[..., None]
TOKENS = np.arange(12, dtype=np.int32).reshape(1, 12) + 9
_SERVER = Path(__file__).with_name("frameworks") / "transformers_server.py"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model in Hugging Face's form."""
    return write_hugging_face(tmp_path_factory.mktemp("hf") / "original", MODEL, random_weights(MODEL))


class HuggingFace:
    """transformers in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process = process
        self._errors = errors

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, self._errors.read_text()[-3000:]
        answer: dict[str, Any] = json.loads(reply)
        return answer

    def save(self, folder: Path, form: str) -> NDArray[np.float32]:
        """Save a random GPT-2 in one of transformers_server.FORMS; return its logits."""
        self._ask(save=str(folder), form=form, ids=TOKENS.tolist())
        return np.load(folder / "logits.npy")  # type: ignore[no-any-return]

    def logits(
        self, folder: Path, ids: NDArray[np.int32] = TOKENS, *, classifier: bool = False
    ) -> NDArray[np.float32]:
        """Open a folder, which must hold every weight and no other; return its logits of some tokens."""
        answer = self._ask(open=str(folder), ids=ids.tolist(), classifier=classifier)
        assert answer["missing"] == answer["unexpected"] == [], folder
        return np.load(folder / "logits.npy")  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HuggingFace]:
    errors = tmp_path_factory.mktemp("server") / "errors"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(_SERVER)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        yield HuggingFace(process, errors)
        process.communicate(timeout=30)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command line; return its exit code and what it wrote to stderr."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["gptbridge", *map(str, arguments)])
        start = time.process_time()
        with pytest.raises(SystemExit) as caught:
            main()
        assert time.process_time() - start < 10
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hugging_face(tmp_path / "in", MODEL, random_weights(MODEL))


@pytest.fixture
def register(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Return a function that installs a package with one dialect where this process sees it."""
    site = tmp_path_factory.mktemp("site")

    def write(source: str, name: str = "toy", package: str = "gptbridge-toy") -> None:
        module = f"{package}_{site.name}".replace("-", "_")
        (site / f"{module}.py").write_text(source)
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[gptbridge.dialects]\n{name} = {module}:DIALECT\n")
        monkeypatch.syspath_prepend(site)

    return write
