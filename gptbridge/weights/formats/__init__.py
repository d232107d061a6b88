"""Weight file formats, decoded and encoded from their bytes: no framework, no object from a pickle.

Reading: `with open_weights(path) as weights:` gives `weights.tensors`, `read`, `rows`, `chunks`, `tree`.
"""

from gptbridge.weights.formats.open import open_weights
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
from gptbridge.weights.formats.weight_file import WeightFile

__all__ = [
    "STORAGE_DTYPES",
    "Chunks",
    "Entry",
    "Extent",
    "Namespace",
    "TensorInfo",
    "TensorRef",
    "Tree",
    "WeightFile",
    "open_weights",
]
