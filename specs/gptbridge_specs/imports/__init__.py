"""Configurations of other systems, read into a RunSpec: each key is taken, without effect, or refused."""

from gptbridge_specs.imports.importing import Imported, import_file
from gptbridge_specs.imports.reading import Facts

__all__ = ["Facts", "Imported", "import_file"]
