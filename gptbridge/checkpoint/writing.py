"""The files of one checkpoint: a Hugging Face GPT-2 folder, with the moments and the state beside it."""

from __future__ import annotations

from pathlib import Path

from gptbridge.checkpoint.state import TrainingState, write_state
from gptbridge.checkpoint.tensor_files import write_tensors
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.files import write_json
from gptbridge.session import EXP_AVG, EXP_AVG_SQ, Session
from gptbridge.weights.canonical import parameters
from gptbridge.weights.dialects.gptbridge import config_of

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "model"
MOMENTS_STEM = "optimizer"


def write_checkpoint(folder: Path, session: Session, state: TrainingState, tokenizer: Tokenizer) -> None:
    """Write config.json, weights, moments, tokenizer files and state.json into an empty folder.

    Tensors stream from the session to the disk one at a time, under their canonical names.
    """
    spec = state.spec
    write_json(folder / CONFIG_FILE, config_of(spec.model, end_of_text=tokenizer.end_of_text))
    shapes = {p.name: p.shape for p in parameters(spec.model)}
    write_tensors(folder, WEIGHTS_STEM, shapes, session.export_weights())
    if spec.optimizer.name != "sgd":
        moments = {name + part: shape for name, shape in shapes.items() for part in (EXP_AVG, EXP_AVG_SQ)}
        write_tensors(folder, MOMENTS_STEM, moments, session.export_optimizer())
    tokenizer.save(folder)
    write_state(folder, state)
