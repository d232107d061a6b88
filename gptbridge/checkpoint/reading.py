"""Open a checkpoint of ours, or any folder of the same form, without loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.manifest import MANIFEST_FILE, verify
from gptbridge.checkpoint.state import STATE_FILE, TrainingState, read_state
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.tensor_files import TensorFiles, open_tensors
from gptbridge.checkpoint.writing import CONFIG_FILE, MOMENTS_STEM, WEIGHTS_STEM
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import BadInput
from gptbridge.files import nearby
from gptbridge.session import MOMENTS
from gptbridge.weights.dialects.gptbridge import read_model
from gptbridge.weights.layouts.boxes import Box
from gptbridge_specs import ModelSpec


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. Arrays are read one by one, when they are asked for."""

    folder: Path
    model: ModelSpec
    weights: TensorFiles
    moments: Mapping[str, TensorFiles]  # by kind: exp_avg, exp_avg_sq; none when the folder has none
    state: TrainingState | None  # None for a folder that no run of ours wrote

    def read_weight(self, name: str, box: Box) -> NDArray[np.float32]:
        """Return a slice of a weight in its canonical shape."""
        return self.weights.read(name, box)

    def read_moment(self, kind: str, name: str, box: Box) -> NDArray[np.float32]:
        """Return a slice of a moment of a weight in its canonical shape."""
        return self.moments[kind].read(name, box)

    def tokenizer(self) -> Tokenizer:
        """Open the tokenizer whose files lie in the folder."""
        return load_tokenizer(str(self.folder))


def find_checkpoint(path: Path, warn: Callable[[str], None]) -> Path:
    """Return the checkpoint folder that `path` means: itself, or the newest good one of a run folder."""
    try:
        if (path / CONFIG_FILE).is_file() or (path / MANIFEST_FILE).is_file():
            return path
        found = CheckpointStore(path / "checkpoints").newest_good(warn)
    except OSError as error:
        raise BadInput(error.strerror or str(error), where=path) from error
    if found is None:
        raise BadInput(
            "no checkpoint here" if path.is_dir() else "no such folder",
            where=path,
            allowed="a run folder, or a folder with config.json and model.safetensors",
            hint=None if path.exists() else nearby(path),
        )
    return found


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open a checkpoint folder; BadInput names the file that is missing or damaged.

    A folder without state.json has config.json and model.safetensors (or shards), with or without the
    `transformer.` prefix.
    """
    ours = (folder / STATE_FILE).exists() or (folder / MANIFEST_FILE).exists()
    if ours:
        verify(folder)
    model = read_model(folder / CONFIG_FILE)
    weights = open_tensors(folder, WEIGHTS_STEM, model, "")[""]
    if not ours:
        return Checkpoint(folder, model, weights, {}, None)
    state = read_state(folder)
    if state.spec.model != model:
        raise BadInput(f"another model than {CONFIG_FILE} describes", where=folder / STATE_FILE)
    moments = {}
    if state.spec.optimizer.name != "sgd":
        found = open_tensors(folder, MOMENTS_STEM, model, *(f".{kind}" for kind in MOMENTS))
        moments = {end.removeprefix("."): tensors for end, tensors in found.items()}
    return Checkpoint(folder, model, weights, moments, state)
