"""What a checkpoint is, from its names, shapes and bytes."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.conversion.arrays import digest
from gptbridge.weights.conversion.lora import QKV
from gptbridge.weights.conversion.source import Source, Told, open_source


def inspect_checkpoint(path: Path, told: Told | None = None) -> dict[str, Any]:
    """Return the facts of the checkpoint at `path`; the digest is that of its canonical weights."""
    with ExitStack() as stack:
        source = open_source(path, stack, told)
        tensors = [info for file in source.files for info in file.tensors.values()]
        return {
            "path": str(path),
            "dialect": source.dialect,
            "variant": source.variant,
            "format": source.files[0].format,
            "files": len(source.files),
            "tensor_parallel": source.stages[0].cutting.degree,
            "pipeline_parallel": len({stage.ranks[0] for stage in source.stages}),
            "tensors": len(tensors),
            "dtypes": dict(Counter(info.dtype for info in tensors)),
            "bytes": sum(info.nbytes for info in tensors),
            "parameters": count_parameters(source.model),
            "model": source.model.model_dump(),
            "num_labels": source.num_labels,
            "configuration": printable(source.config_file) or None,
            "embedding_rows": source.sizes["v"],
            "left_out": list(source.dropped),
            "warnings": list(source.warnings),
            "lora": _lora(source),
            "digest": f"sha256:{digest(source)}",
        }


def _lora(source: Source) -> dict[str, Any] | None:
    if source.lora is None:
        return None
    return {
        "rank": source.lora.rank,
        "alpha": source.lora.alpha,
        "layers": len(source.lora.layers),
        "parts": [QKV[part] for part in source.lora.all_parts],
    }
