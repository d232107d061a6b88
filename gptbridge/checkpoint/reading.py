"""Open a checkpoint of ours, or any Hugging Face GPT-2 folder, without loading it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.manifest import MANIFEST_FILE, verify
from gptbridge.checkpoint.state import STATE_FILE, TrainingState, read_state
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.writing import CONFIG_FILE, MOMENTS_STEM, WEIGHTS_STEM
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import BadInput, printable
from gptbridge.files import nearby
from gptbridge.session import EXP_AVG, EXP_AVG_SQ
from gptbridge.weights.canonical import parameters
from gptbridge.weights.dialects.gptbridge import read_model
from gptbridge.weights.formats import WeightFile, open_weights
from gptbridge_specs import ModelSpec

_PREFIX = "transformer."
# Causal masks that old files carry as buffers, and the output projection of a tied head.
_IGNORED = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_HEAD = "lm_head.weight"
_FLOATS = ("float32", "float16", "bfloat16", "float64")

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint. Arrays are read one by one, when they are asked for."""

    folder: Path
    model: ModelSpec
    weights: Arrays  # canonical names, float32
    moments: Arrays | None  # NAME.exp_avg and NAME.exp_avg_sq; None when the folder has none
    state: TrainingState | None  # None for a folder that no run of ours wrote

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
            allowed="a run folder, a checkpoint folder or a Hugging Face GPT-2 folder",
            hint=None if path.exists() else nearby(path),
        )
    return found


def open_checkpoint(folder: Path) -> Checkpoint:
    """Verify and open a checkpoint folder; BadInput names the file that is missing or damaged.

    A folder without state.json is taken for a Hugging Face GPT-2: config.json and
    model.safetensors (or shards), with or without the `transformer.` prefix.
    """
    ours = (folder / STATE_FILE).exists() or (folder / MANIFEST_FILE).exists()
    if ours:
        verify(folder)
    model = read_model(folder / CONFIG_FILE)
    shapes = {p.name: p.shape for p in parameters(model)}
    weights = _Renamed(_tensor_files(folder, WEIGHTS_STEM), shapes)
    if not ours:
        return Checkpoint(folder, model, weights, None, None)
    state = read_state(folder)
    if state.spec.model != model:
        raise BadInput(f"another model than {CONFIG_FILE} describes", where=folder / STATE_FILE)
    moments = None
    if state.spec.optimizer.name != "sgd":
        names = {name + part: shape for name, shape in shapes.items() for part in (EXP_AVG, EXP_AVG_SQ)}
        moments = _Renamed(_tensor_files(folder, MOMENTS_STEM), names)
    return Checkpoint(folder, model, weights, moments, state)


def _tensor_files(folder: Path, stem: str) -> WeightFile:
    index = folder / f"{stem}.safetensors.index.json"
    files = open_weights(index if index.exists() else folder / f"{stem}.safetensors")
    if files.format != "safetensors":
        raise BadInput(f"this is {files.format}", where=files.path, allowed="safetensors")
    return files


class _Renamed(Mapping[str, NDArray[np.float32]]):
    """Stored tensors under canonical names: exactly the wanted ones, each of its shape, in float32."""

    def __init__(self, files: WeightFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
        stored = {name.removeprefix(_PREFIX): info for name, info in files.tensors.items()}
        for name, shape in shapes.items():
            if name not in stored:
                raise BadInput(f"no tensor {name}", where=files.path)
            info = stored[name]
            if info.shape != shape:
                problem = f"{name} has shape {info.shape}, {CONFIG_FILE} says {shape}"
                raise BadInput(problem, where=files.path)
            if info.dtype not in _FLOATS:
                problem = f"{name} has type {info.dtype}"
                raise BadInput(problem, where=files.path, allowed=", ".join(_FLOATS))
        for name, info in stored.items():
            if name not in shapes and name != _HEAD and not _IGNORED.fullmatch(name):
                raise BadInput(f"unknown tensor {printable(info.name)}", where=files.path)
        self._files = files
        self._stored = {name: stored[name] for name in shapes}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        info = self._stored[name]
        raw = self._files.read(info.name)
        if info.dtype == "bfloat16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return np.array(raw, np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)
