"""Each format gives the checkpoint's logits without gptbridge, and names no folder of this machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.errors import RunFailed
from gptbridge.exporting.formats import FORMATS
from gptbridge.exporting.selftest import answered, questions, self_test
from tests.exporting.conftest import MADE_OF
from tests.exporting.sources import MODELS, blocks_swapped, canonical

Artefacts = tuple[Path, dict[str, Any]]


def test_every_format_is_here() -> None:
    assert MADE_OF.keys() == FORMATS.keys()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("format", FORMATS)
def test_it_gives_the_same_logits(format: str, artefacts: Artefacts) -> None:
    folder, done = artefacts
    verdict = done[format]["verdict"]
    assert verdict["max_difference"] < 1e-5
    assert verdict["max_logit"] > 1
    files = {path.name for path in (folder / format).iterdir()}
    assert files == set(done[format]["files"])
    assert files >= {"README.md", "infer.py", "model.py", "config.json", "tokenizer.json"}
    assert "same logits" in (folder / format / "README.md").read_text()


@pytest.mark.parametrize("format", FORMATS)
def test_no_path_of_this_machine_is_left(format: str, artefacts: Artefacts) -> None:
    folder, _ = artefacts
    here = [str(path).encode() for path in (folder, Path(sys.prefix), Path(__file__).parents[2])]
    for path in (folder / format).rglob("*"):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        for content in contents:
            found = [place for place in (*here, b"site-packages", b".partial") if place in content]
            assert not found, path
    assert here[0] in str(folder / format).encode(), "the check looks for what there is"


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_the_comparison_notices_another_model(format: str, artefacts: Artefacts) -> None:
    """Each way round: the artefact against other weights, and another artefact."""
    folder, _ = artefacts
    model = MODELS[MADE_OF[format]]
    right = canonical(model)
    assert self_test(folder / format, model, right, 1e-5).passed
    assert self_test(folder / format, model, blocks_swapped(right), 1e-5).max_difference > 0.1


def test_the_pieces_are_fed_one_after_the_other(artefacts: Artefacts) -> None:
    """Logits that come of keys and values are those of the whole, and not those of the piece alone."""
    folder, _ = artefacts
    model, asked = MODELS["odd"], questions(MODELS["odd"])
    assert list(asked["2.pieces"]) == [4, 1, 1, 5]  # cut at the model's positions
    whole = asked["2"]
    alone = reference.logits(model, canonical(model), whole[:, 4:].astype(np.int32))
    found = answered(folder / "onnx", asked)["2"][:, 4:]
    assert np.abs(found - alone).max() > 0.1


def test_a_script_goes_along_that_continues_texts(artefacts: Artefacts) -> None:
    folder, _ = artefacts
    tokens = list(b"def ")
    for _ in range(8):
        logits = reference.logits(MODELS["plain"], canonical(MODELS["plain"]), np.array([tokens], np.int32))
        tokens.append(int(logits[0, -1].argmax()))
    for words, printed in (
        (["--prompt", "def "], bytes(tokens).decode(errors="replace")),
        (["--ids", *map(str, b"def ")], " ".join(map(str, tokens[4:]))),
    ):
        command = [sys.executable, "infer.py", *words, "--new", "8"]
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=folder / "gguf", check=False
        )
        assert run.stdout == f"{printed}\n", run.stderr[-2000:]


def test_an_artefact_that_needs_gptbridge_fails(artefacts: Artefacts, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import gptbridge.reference")
    with pytest.raises(RunFailed, match=r"must do without gptbridge"):
        answered(tmp_path, questions(MODELS["plain"]))
