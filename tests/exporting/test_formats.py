"""Each format gives the checkpoint's logits without gptbridge, and names no folder of this machine."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.errors import RunFailed
from gptbridge.exporting.formats import FORMATS
from gptbridge.exporting.selftest import answered, questions, self_test
from tests.exporting.conftest import MADE, Artefacts, executed
from tests.exporting.sources import MODELS, blocks_swapped, canonical

VERDICT = re.compile(r"against the checkpoint: same logits: max \|d logits\| (\S+) of max \|logit\| (\S+)")


def test_every_format_is_here() -> None:
    assert MADE.keys() == FORMATS.keys()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("format", FORMATS)
def test_it_gives_the_same_logits(format: str, artefacts: Artefacts) -> None:
    """By the verdict of its self-test, which its card holds."""
    found = VERDICT.search((artefacts[format] / "README.md").read_text())
    assert found is not None
    assert float(found[1]) < 1e-5
    assert float(found[2]) > 1
    files = {path.name for path in artefacts[format].iterdir()}
    assert files >= {"README.md", "infer.py", "model.py", "config.json", "tokenizer.json"}
    allowed = re.compile("|".join((*FORMATS[format].files, r".*\.(md|py|json|txt|safetensors)")))
    assert all(allowed.fullmatch(name) for name in files)


@pytest.mark.parametrize("format", FORMATS)
def test_no_path_of_this_machine_is_left(format: str, artefacts: Artefacts) -> None:
    here = [str(path).encode() for path in (artefacts.folder, Path(sys.prefix), Path(__file__).parents[2])]
    for path in artefacts[format].rglob("*"):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        for content in contents:
            found = [place for place in (*here, b"site-packages", b".partial") if place in content]
            assert not found, path
    assert here[0] in str(artefacts[format]).encode(), "the check looks for what there is"


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_the_comparison_notices_another_model(format: str, artefacts: Artefacts) -> None:
    model = MODELS["run"]
    right = canonical(model)
    assert self_test(artefacts[format], model, right, 1e-5).passed
    assert self_test(artefacts[format], model, blocks_swapped(right), 1e-5).max_difference > 0.1


def test_the_pieces_are_fed_one_after_the_other(artefacts: Artefacts) -> None:
    """Logits that come of keys and values are those of the whole, and not those of the piece alone."""
    model, asked = MODELS["run"], questions(MODELS["run"])
    assert list(asked["2.pieces"]) == [4, 1, 1, 5]  # cut at the model's positions
    whole = asked["2"]
    alone = reference.logits(model, canonical(model), whole[:, 4:].astype(np.int32))
    found = answered(artefacts["onnx"], asked)["2"][:, 4:]
    assert np.abs(found - alone).max() > 0.1


def test_a_script_goes_along_that_continues_texts(artefacts: Artefacts) -> None:
    model, tokens = MODELS["run"], list(b"The")
    for _ in range(4):
        logits = reference.logits(model, canonical(model), np.array([tokens], np.int32))
        tokens.append(int(logits[0, -1].argmax()))
    assert len(set(tokens)) > 5
    for words, printed in (
        (["--prompt", "The"], bytes(tokens).decode(errors="replace")),
        (["--ids", *map(str, b"The")], " ".join(map(str, tokens[3:]))),
    ):
        assert executed(artefacts["gguf"], ["-B", "infer.py", *words, "--new", "4"]) == f"{printed}\n"


def test_an_artefact_that_needs_gptbridge_fails(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import gptbridge.reference")
    with pytest.raises(RunFailed, match=r"must do without gptbridge"):
        answered(tmp_path, questions(MODELS["plain"]))
