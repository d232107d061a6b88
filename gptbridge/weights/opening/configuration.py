"""The configuration beside a checkpoint's weights, or inside their file."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from gptbridge.files import list_folder
from gptbridge.weights.configs.table import ConfigFacts, ConfigTable
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.formats import Namespace, WeightFile


def find_configuration(root: Path, weights: WeightFile, dialect: Dialect) -> tuple[ConfigFacts, str]:
    """Return what the checkpoint's own configuration says, and its name.

    Without one, what the system's software takes for granted, and no name.
    """
    folders = [root, weights.path.parent]
    if weights.path.parent.name in dialect.files.folders:
        folders.append(weights.path.parent.parent)
    for system in (dialect, *map(find_dialect, dialect.same_names)):
        if facts := _inside(weights, system.config):
            return facts, system.config.in_weights[0]
        for folder in dict.fromkeys(folders):
            if file := _config_file(folder, system.config):
                return system.config.read_file(file), file.name
    return ConfigFacts(dialect.config.unsaid), ""


def _inside(weights: WeightFile, table: ConfigTable) -> ConfigFacts | None:
    """Return what stands in the file of the weights itself."""
    tree = weights.tree if isinstance(weights.tree, dict) else {}
    parts = [tree.get(name) for name in table.in_weights]
    if not parts or not isinstance(parts[0], Namespace | dict):
        return None
    content = {str(key): x for part in parts if isinstance(part, Namespace | dict) for key, x in part.items()}
    return table.read(content, f"its {table.in_weights[0]}")


def _config_file(folder: Path, table: ConfigTable) -> Path | None:
    for name in table.files:
        if "*" not in name:
            if os.path.lexists(folder / name):
                return folder / name
            continue
        files = [file for file in list_folder(folder) if fnmatchcase(file, name)]
        if len(files) == 1:
            return folder / files[0]
    return None
