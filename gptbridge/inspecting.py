"""What a path is: a token dataset, or a checkpoint of any dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptbridge.data.inspection import inspect_dataset
from gptbridge.weights.conversion.inspecting import inspect_checkpoint
from gptbridge.weights.conversion.source import Told

# How the files of a token dataset end; its PREFIX is no file at all.
_DATASET_ENDINGS = (".idx", "_ids.npy", "_idx.npz", "_ids.npz", ".mindrecord", ".mindrecord.db")


def inspect_path(path: Path, told: Told | None = None) -> dict[str, Any]:
    """Return the facts of the dataset or checkpoint at `path`; `told` is for a checkpoint alone."""
    return inspect_dataset(str(path)) if is_dataset(path) else inspect_checkpoint(path, told)


def is_dataset(path: Path) -> bool:
    """Tell whether `path` is the PREFIX or a file of a token dataset, by its name and neighbours."""
    if path.name.endswith(_DATASET_ENDINGS):
        return True
    if path.suffix == ".bin" and path.with_suffix(".idx").exists():
        return True
    return not path.exists() and any(Path(f"{path}{ending}").exists() for ending in _DATASET_ENDINGS)
