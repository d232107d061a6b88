"""The files of one checkpoint: config.json and weights, with the moments and the state beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptbridge.checkpoint.state import TrainingState, write_state
from gptbridge.checkpoint.tensor_files import write_tensors
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.files import write_json
from gptbridge.weights.dialects.gptbridge import config_of
from gptbridge.weights.layouts.arrays import Read

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "model"
MOMENTS_STEM = "optimizer"


def write_checkpoint(
    folder: Path, weights: Read, moments: Mapping[str, Read], state: TrainingState, tokenizer: Tokenizer
) -> None:
    """Write config.json, weights, moments, tokenizer files and state.json into an empty folder.

    `weights` and `moments`, by kind (`exp_avg`, ...; none for SGD), read slices of canonical tensors: each
    is asked for one tensor after the other, as they go to the disk.
    """
    model = state.spec.model
    write_json(folder / CONFIG_FILE, config_of(model, end_of_text=tokenizer.end_of_text))
    write_tensors(folder, WEIGHTS_STEM, model, {"": weights})
    if moments:
        write_tensors(folder, MOMENTS_STEM, model, {f".{kind}": read for kind, read in moments.items()})
    tokenizer.save(folder)
    write_state(folder, state)
