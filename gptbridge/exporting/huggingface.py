"""A folder that transformers opens, and whatever opens what transformers does."""

from __future__ import annotations

from pathlib import Path

from gptbridge.exporting.draft import Draft
from gptbridge.weights.conversion.companions import COPIED
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint


def write_huggingface(draft: Draft, folder: Path) -> None:
    """Write the weights into `folder`. The tokenizer that conversion copies is another's writing."""
    apart = folder / "converted"
    adapted = draft.adapted
    convert_checkpoint(
        Conversion(draft.opened.path, apart, "torch", draft.hints, dtype=draft.dtype, merge_lora=adapted)
    )
    for file in apart.iterdir():
        if file.name not in COPIED:
            file.rename(folder / file.name)
        else:
            file.unlink()
    apart.rmdir()
