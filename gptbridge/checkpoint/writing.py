"""The files of one checkpoint: config.json and weights, with the moments and the state beside them.

Of a run that trains adapters, an adapter's two files stand in the place of config.json and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gptbridge.checkpoint.state import TrainingState, write_state
from gptbridge.checkpoint.tensor_files import write_tensors
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.files import write_json
from gptbridge.weights.canonical.lora import trained_lora
from gptbridge.weights.dialects.gptbridge import config_of
from gptbridge.weights.dialects.peft import write_adapter_files
from gptbridge.weights.layouts.arrays import Read

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "model"
MOMENTS_STEM = "optimizer"


def write_checkpoint(
    folder: Path,
    weights: Read,
    moments: Mapping[str, Read],
    state: TrainingState,
    tokenizer: Tokenizer,
    base: Path | None = None,
) -> None:
    """Write config.json, weights, moments, tokenizer files and state.json into an empty folder.

    `weights` and `moments`, by kind (`exp_avg`, ...; none for SGD), read slices of canonical tensors: each
    is asked for one tensor after the other, as they go to the disk. `base` is the checkpoint whose weights
    adapters stand beside.
    """
    model, task = state.spec.model, state.spec.task
    if task.lora is not None:
        lora = trained_lora(model, task, weights)
        dtypes = dict.fromkeys(lora.all_weights, "float32")
        named = None if base is None else str(base.absolute())
        write_adapter_files(lora, model, dtypes, folder, base=named, dropout=task.lora.dropout)
    else:
        labels = task.num_labels if task.name == "classification" else None
        config = config_of(model, end_of_text=tokenizer.end_of_text, num_labels=labels)
        write_json(folder / CONFIG_FILE, config)
        write_tensors(folder, WEIGHTS_STEM, model, {"": weights}, task)
    if moments:
        write_tensors(folder, MOMENTS_STEM, model, {f".{kind}": read for kind, read in moments.items()}, task)
    tokenizer.save(folder)
    write_state(folder, state)
