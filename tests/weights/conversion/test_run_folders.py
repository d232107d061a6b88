"""A run's checkpoints are compared with their manifest, and a damaged one is never passed over unsaid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbridge import convert, inspect
from gptbridge.checkpoint.manifest import verify
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import BadInput
from gptbridge.testing.cases import weights
from gptbridge.weights.conversion.facts import CheckpointFacts
from tests.checkpoint.conftest import spec_of, writer
from tests.weights.conversion.checkpoints import assert_identical, converted, facts_of, together, weights_of
from tests.weights.conversion.commands import Outcome, assert_refused


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 10 and 20."""
    store = CheckpointStore(tmp_path / "mine" / "checkpoints")
    for step in (10, 20):
        store.save(step, writer(spec_of(), step))
    return tmp_path / "mine"


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def inspected(path: Path) -> CheckpointFacts:
    facts = inspect(path)
    assert isinstance(facts, CheckpointFacts)
    return facts


def assert_step(output: Path, step: int) -> None:
    assert_identical(weights_of(output), together(weights(spec_of().model, step)))


def test_the_newest_checkpoint_of_a_run_is_taken(run_folder: Path, tmp_path: Path) -> None:
    done = convert(run_folder, tmp_path / "out", to="torch")
    assert done.notes == ()
    assert inspected(run_folder).warnings == []
    assert_step(tmp_path / "out", 20)


def test_a_damaged_newest_one_is_told_and_the_one_before_taken(run_folder: Path, tmp_path: Path) -> None:
    newest = run_folder / "checkpoints" / "step-00000020"
    flip_last_bit(newest / "model.safetensors")
    done = convert(run_folder, tmp_path / "out", to="torch")
    (note,) = done.notes
    assert note.startswith(f"checkpoint {newest} cannot be used: {newest}/model.safetensors: damaged")
    assert inspected(run_folder).warnings == [note]
    assert_step(tmp_path / "out", 10)


@pytest.mark.parametrize("named", [".", "model.safetensors"])
@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "optimizer.safetensors"])
def test_a_checkpoint_that_is_named_is_compared_with_its_manifest(
    named: str, damaged: str, run: Callable[..., Outcome], run_folder: Path, tmp_path: Path
) -> None:
    step = run_folder / "checkpoints" / "step-00000020"
    assert_step(converted(step / named, tmp_path / "good", "torch"), 20)
    flip_last_bit(step / damaged)
    outcome = run("convert", step / named, tmp_path / "out", "--to", "torch")
    assert_refused(outcome, 5, f"{damaged}: damaged: its bytes are not those that were written", tmp_path)
    assert run("inspect", step / named)[0] == 5


@pytest.mark.parametrize("left_out", ["optimizer.safetensors", "tokenizer.json", "state.json"])
def test_a_manifest_vouches_for_every_file_that_is_used(
    left_out: str, run: Callable[..., Outcome], run_folder: Path, tmp_path: Path
) -> None:
    step = run_folder / "checkpoints" / "step-00000020"
    (step / "notes.txt").write_text("the user's own")
    assert run("inspect", step)[0] == 0
    manifest = step / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"][left_out]
    manifest.write_text(json.dumps(content))
    outcome = run("convert", step, tmp_path / "out", "--to", "torch")
    assert_refused(outcome, 5, f"{left_out}: is not in manifest.json", tmp_path)


@pytest.mark.parametrize("laid", ["sentencepiece.model", "encoder.json", "model-00001-of-00002.safetensors"])
def test_a_file_that_would_be_used_and_is_laid_beside_is_damage(laid: str, run_folder: Path) -> None:
    step = run_folder / "checkpoints" / "step-00000020"
    (step / "generation_config.json").write_text("{}")
    verify(step)
    (step / laid).write_bytes(b"")
    with pytest.raises(BadInput, match=f"{laid}: is not in manifest.json"):
        verify(step)


def test_another_folder_called_checkpoints_makes_no_run(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "paddle", "paddle")
    (folder / "checkpoints" / "model_1000").mkdir(parents=True)
    facts = facts_of(folder)
    assert (facts.dialect, facts.digest) == ("paddle", facts_of(original).digest)


def test_another_manifest_is_no_obstacle(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "out", "torch")
    (folder / "manifest.json").write_text(json.dumps({"name": "a web page"}))
    assert facts_of(folder).dialect == "torch"


def test_conversion_does_not_load_the_tokenizers() -> None:
    script = """
import sys
import gptbridge.weights.conversion.convert
print([name for name in sys.modules if name.startswith("gptbridge.data")])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
