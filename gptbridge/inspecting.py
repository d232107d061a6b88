"""What a path is: a token dataset, or a checkpoint of any dialect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptbridge.data.dataset import is_dataset
from gptbridge.data.inspection import inspect_dataset
from gptbridge.errors import BadInput
from gptbridge.weights.conversion.inspecting import inspect_checkpoint
from gptbridge.weights.conversion.source import Told


def inspect_path(path: Path, told: Told | None = None) -> dict[str, Any]:
    """Return the facts of the dataset or checkpoint at `path`; `told` is for a checkpoint alone.

    A dialect that is told makes it a checkpoint, whatever its name looks like; so do the weights in a
    folder, where a .bin beside them may look like tokens.
    """
    dataset = is_dataset(path) and not (told and told.dialect)
    if dataset and not path.is_dir():
        return inspect_dataset(str(path))
    try:
        return inspect_checkpoint(path, told)
    except BadInput:
        if not dataset:
            raise
    return inspect_dataset(str(path))
