"""The files that go along with converted weights: configuration, tokenizer, pointers."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gptbridge.weights.configs.writing import config_content
from gptbridge.weights.conversion.source import Source
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.json_files import write_json, write_synced
from gptbridge_specs import ModelSpec

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.model",
    "tokenizer.model",
    "generation_config.json",
)
_MAX_TOKENIZER_BYTES = 64 << 20

Contents = Mapping[str, Any]  # file name -> content: text, or data for JSON or YAML by its ending


def _hugging_face(model: ModelSpec, split: Split) -> Contents:
    return {"config.json": config_content(model, "torch")}


def _paddle(model: ModelSpec, split: Split) -> Contents:
    content = config_content(model, "paddle")
    return {
        "config.json": {"architectures": ["GPTForPretraining"], **content},  # PaddleNLP 2.5 and later
        "model_config.json": {  # before
            "init_args": [{**content, "init_class": "GPTModel"}],
            "init_class": "GPTForPretraining",
        },
    }


def _fleetx(model: ModelSpec, split: Split) -> Contents:
    degrees = {"mp_degree": split.tensor, "pp_degree": split.pipeline}
    return {"model.yaml": {**config_content(model, "fleetx"), "Distributed": degrees}}


def _mindspore(model: ModelSpec, split: Split) -> Contents:
    content = config_content(model, "mindspore")
    content["model"]["arch"] = {"type": "GPT2LMHeadModel"}
    return {"model.yaml": content}


def _modelscope(model: ModelSpec, split: Split) -> Contents:
    return {
        "config.json": config_content(model, "modelscope"),
        "configuration.json": {
            "framework": "pytorch",
            "task": "text-generation",
            "model": {"type": "gpt3"},
            "pipeline": {"type": "gpt3-generation"},
            "megatron": {
                "world_size": split.tensor,
                "tensor_model_parallel_size": split.tensor,
                "checkpoint_tensor_model_parallel_size": split.tensor,
            },
        },
    }


def _megatron(model: ModelSpec, split: Split) -> Contents:
    return {"latest_checkpointed_iteration.txt": "release\n"}


_CONTENTS: Mapping[str, Callable[[ModelSpec, Split], Contents]] = {
    "torch": _hugging_face,
    "gptbridge": _hugging_face,
    "paddle": _paddle,
    "fleetx": _fleetx,
    "mindspore": _mindspore,
    "modelscope": _modelscope,
    "megatron": _megatron,
}


def write_companions(source: Source, model: ModelSpec, dialect: str, folder: Path, split: Split) -> list[str]:
    """Write the configuration for `dialect` and copy the source's tokenizer; return the files' names."""
    written = []
    for name, content in _CONTENTS[dialect](model, split).items():
        if name.endswith(".json"):
            write_json(folder / name, content)
        else:
            text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
            write_synced(folder / name, text.encode())
        written.append(name)
    root = source.path if source.path.is_dir() else source.path.parent
    for name in TOKENIZER_FILES:
        if name not in written and _is_plain(root / name):
            shutil.copyfile(root / name, folder / name)
            written.append(name)
    return written


def _is_plain(path: Path) -> bool:
    """Tell whether `path` is a regular file of a size that a tokenizer may have."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_TOKENIZER_BYTES
