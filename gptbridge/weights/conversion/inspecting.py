"""What a checkpoint is, from its names, shapes and bytes."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gptbridge.weights.configs.reading import Declared
from gptbridge.weights.conversion.arrays import digest
from gptbridge.weights.conversion.source import open_source


def inspect_checkpoint(
    path: Path, *, given: Declared | None = None, dialect: str | None = None
) -> dict[str, Any]:
    """Return the facts of the checkpoint at `path`; the digest is that of its canonical weights."""
    with ExitStack() as stack:
        source = open_source(path, stack, dialect=dialect, given=given)
        tensors = [info for weights in source.opened for info in weights.tensors.values()]
        return {
            "path": str(path),
            "dialect": source.dialect,
            "variant": source.variant,
            "format": source.opened[0].format,
            "files": len(source.files),
            "tensor_parallel": max(file.tensor for file in source.files) + 1,
            "pipeline_parallel": max(file.pipeline for file in source.files) + 1,
            "tensors": len(tensors),
            "dtypes": dict(Counter(info.dtype for info in tensors)),
            "bytes": sum(info.nbytes for info in tensors),
            "parameters": source.model.num_parameters,
            "model": source.model.model_dump(),
            "configuration": source.config_file or None,
            "embedding_rows": source.sizes["v"],
            "left_out": list(source.dropped),
            "lora": len(source.lora),
            "digest": f"sha256:{digest(source)}",
        }
