"""open_weights: a weight file or a sharded set of them, of whatever format its content is."""

from __future__ import annotations

import os
from pathlib import Path

from gptbridge.weights.formats.detection import READERS, detect
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.weight_file import WeightFile


def open_weights(path: str | os.PathLike[str], *, verify: bool = True) -> WeightFile:
    """Open a weight file of any format, or the index of a sharded one, as a WeightFile.

    Everything that can be checked without the tensors' bytes is checked here; the CRCs that the format
    declares as well, unless `verify` is False and the caller runs `WeightFile.verify` itself. A file that
    is damaged, malicious or of no known format is BadInput; nothing in it is ever executed.
    """
    source = SourceFile(Path(path))
    try:
        weights = WeightFile(source.path, [READERS[detect(source)](source)])
        if verify:
            weights.verify()
    except BaseException:
        source.close()
        raise
    return weights
