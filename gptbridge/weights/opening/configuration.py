"""The configuration beside a checkpoint's weights, or inside their file."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from gptbridge.errors import BadInput
from gptbridge.files import list_folder
from gptbridge.weights.configs.table import ConfigFacts, ConfigTable
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.formats import Namespace, Tree, WeightFile, open_weights

_NESTING = (".pt",)


def find_configuration(root: Path, weights: WeightFile, dialect: Dialect) -> tuple[ConfigFacts, str]:
    """Return what the checkpoint's own configuration says, and its name.

    Without one, what the system's software takes for granted, and no name.
    """
    folders = [root, weights.path.parent]
    if weights.path.parent.name in dialect.files.folders:
        folders.append(weights.path.parent.parent)
    for system in (dialect, *map(find_dialect, dialect.same_names)):
        if facts := read_inside(weights.tree, system.config, weights.path):
            return facts, system.config.in_weights[0]
        for folder in dict.fromkeys(folders):
            if file := _config_file(folder, system.config):
                return _read(file, system.config), file.name
    return ConfigFacts(dialect.config.unsaid), ""


def _read(file: Path, table: ConfigTable) -> ConfigFacts:
    """Return what a file of its own says, which may be one that nests as files of weights do."""
    if file.suffix not in _NESTING:
        return table.read_file(file)
    with open_weights(file) as content:
        return read_inside(content.tree, table, file) or ConfigFacts()


def read_inside(tree: Tree, table: ConfigTable, path: Path) -> ConfigFacts | None:
    """Return what stands in the file of the weights itself, at `path`; BadInput for another architecture."""
    parts = [tree.get(name) for name in table.in_weights] if isinstance(tree, dict) else []
    if not parts or not isinstance(parts[0], Namespace | dict):
        return None
    content = {str(key): x for part in parts if isinstance(part, Namespace | dict) for key, x in part.items()}
    try:
        return table.read(content, f"its {table.in_weights[0]}")
    except BadInput as error:
        error.where = f"{path}, {table.in_weights[0]}"
        raise


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
