"""The configuration beside a checkpoint's weights, or inside its file."""

from __future__ import annotations

from pathlib import Path

from gptbridge.weights.configs.reading import Declared, declared_by, read_config_file
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


def declared_beside(root: Path, weights: WeightFile, dialect: str) -> tuple[Declared, str]:
    """Return what the checkpoint's own configuration declares, and its name; nothing when it has none."""
    if dialect == "megatron":
        return _megatron_args(weights)
    for folder in dict.fromkeys((root, weights.path.parent)):
        for name in _FILES[dialect]:
            if (folder / name).is_file():
                return read_config_file(folder / name, dialect), name
        yaml_files = sorted(folder.glob("*.yaml")) if dialect in ("fleetx", "mindspore") else []
        if len(yaml_files) == 1:
            return read_config_file(yaml_files[0], dialect), yaml_files[0].name
    return Declared(), ""


def _megatron_args(weights: WeightFile) -> tuple[Declared, str]:
    args = weights.tree.get("args") if isinstance(weights.tree, dict) else None
    if not isinstance(args, Namespace | dict):
        return Declared(), ""
    declared = declared_by(
        {str(key): value for key, value in args.items()}, "megatron", f"{weights.path}: args"
    )
    return declared, "args"
