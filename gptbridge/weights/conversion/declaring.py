"""The configuration beside a checkpoint's weights, or inside its file."""

from __future__ import annotations

import os
from pathlib import Path

from gptbridge.weights.configs.reading import Declared, assumed_by, declared_by, read_config_file
from gptbridge.weights.conversion.discovery import list_folder
from gptbridge.weights.formats import Namespace, WeightFile

# Where each dialect keeps its configuration, the first that exists.
_FILES = {
    "torch": ("config.json",),
    "gptbridge": ("config.json",),
    "paddle": ("model_config.json", "config.json"),
    "fleetx": ("model.yaml", "config.yaml"),
    "mindspore": ("model.yaml", "config.yaml"),
    "modelscope": ("config.json",),
}
# FleetX's split qkv has PaddleNLP's names, and PaddleNLP's fused qkv (since 2.6) FleetX's.
_SAME_NAMES = {"paddle": ("fleetx",), "fleetx": ("paddle",)}


def declared_beside(root: Path, weights: WeightFile, dialect: str) -> tuple[Declared, str]:
    """Return what the checkpoint's own configuration declares, and its name.

    Without one, what the system's software takes for granted, and no name.
    """
    if dialect == "megatron":
        return _megatron_args(weights)
    folders = [root, weights.path.parent]
    if dialect == "modelscope" and weights.path.parent.name == "model":
        folders.append(weights.path.parent.parent)
    for system in (dialect, *_SAME_NAMES.get(dialect, ())):
        for folder in dict.fromkeys(folders):
            file = _config_file(folder, system)
            if file is not None:
                return read_config_file(file, system), file.name
    return assumed_by(dialect), ""


def _config_file(folder: Path, dialect: str) -> Path | None:
    for name in _FILES[dialect]:
        if os.path.lexists(folder / name):
            return folder / name
    if dialect not in ("fleetx", "mindspore"):
        return None
    files = [name for name in list_folder(folder) if name.endswith(".yaml")]
    return folder / files[0] if len(files) == 1 else None


def _megatron_args(weights: WeightFile) -> tuple[Declared, str]:
    args = weights.tree.get("args") if isinstance(weights.tree, dict) else None
    if not isinstance(args, Namespace | dict):
        return assumed_by("megatron"), ""
    content = {str(key): value for key, value in args.items()}
    return declared_by(content, "megatron", "its args"), "args"
