"""Weight file formats, decoded and encoded from their bytes: no framework, no object from a pickle.

Reading: `with open_weights(path) as weights:` gives `weights.tensors`, `read`, `rows`, `chunks`, `tree`.
Writing: `WRITERS[format](path, entries)`, each entry a TensorInfo and a call that gives its chunks; or
`TREE_WRITERS[format](path, entries, tree)`, where the file nests.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gptbridge.weights.formats.ckpt_writer import write_ckpt
from gptbridge.weights.formats.dcp_writer import write_dcp
from gptbridge.weights.formats.open import open_weights
from gptbridge.weights.formats.pdparams_writer import write_pdparams
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.shards import write_sharded
from gptbridge.weights.formats.tensor import (
    STORAGE_DTYPES,
    Chunks,
    Entry,
    Extent,
    Namespace,
    TensorInfo,
    TensorRef,
    Tree,
)
from gptbridge.weights.formats.torch_writer import write_torch, write_torch_legacy
from gptbridge.weights.formats.weight_file import WeightFile

# Formats that nest: None is a dict of the tensors by name.
TREE_WRITERS: Mapping[str, Callable[[Path, Iterable[Entry], Tree], None]] = {
    "torch": write_torch,
    "torch-legacy": write_torch_legacy,
    "pdparams": write_pdparams,
    "dcp": write_dcp,
}
WRITERS: Mapping[str, Callable[[Path, Iterable[Entry]], None]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "torch-legacy": write_torch_legacy,
    "pdparams": write_pdparams,
    "ckpt": write_ckpt,
    "dcp": write_dcp,
}

__all__ = [
    "STORAGE_DTYPES",
    "TREE_WRITERS",
    "WRITERS",
    "Chunks",
    "Entry",
    "Extent",
    "Namespace",
    "TensorInfo",
    "TensorRef",
    "Tree",
    "WeightFile",
    "open_weights",
    "write_ckpt",
    "write_dcp",
    "write_pdparams",
    "write_safetensors",
    "write_sharded",
    "write_torch",
    "write_torch_legacy",
]
