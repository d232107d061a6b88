"""The files that go along with converted weights: configuration, tokenizer, pointers."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gptbridge.files import write_json, write_synced
from gptbridge.weights.conversion.peft import write_adapter
from gptbridge.weights.conversion.source import Source
from gptbridge.weights.conversion.strategies import TensorLayout
from gptbridge.weights.conversion.strategy_files import encode_strategy
from gptbridge.weights.conversion.target import Target, TargetFile, holds_lora

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


def _hugging_face(target: Target) -> Contents:
    return {"config.json": {**target.config(), "torch_dtype": target.dtypes["wte.weight"]}}


def _paddle(target: Target) -> Contents:
    content = target.config()
    kind = "GPTForPretraining" if target.num_labels is None else "GPTForSequenceClassification"
    older: dict[str, Any] = {"init_args": [{**content, "init_class": "GPTModel"}], "init_class": kind}
    if target.num_labels is not None:
        older["num_classes"] = target.num_labels
    return {
        "config.json": {"architectures": [kind], **content},  # PaddleNLP 2.5 and later
        "model_config.json": older,  # before
    }


def _fleetx(target: Target) -> Contents:
    content = target.config()
    if target.num_labels is not None:
        content["Model"]["module"] = "GPTFinetuneModule"
    content["Model"]["fuse_attn_qkv"] = target.layout.variant != "split"
    degrees = {"mp_degree": target.split.tensor, "pp_degree": target.split.pipeline}
    return {"model.yaml": {**content, "Distributed": degrees}}


def _mindspore(target: Target) -> Contents:
    content = target.config()
    kind = "GPT2LMHeadModel" if target.num_labels is None else "GPT2ForSequenceClassification"
    content["model"]["arch"] = {"type": kind}
    if target.lora is not None:
        content["model"]["model_config"]["pet_config"] = {
            "pet_type": "lora",
            "lora_rank": target.lora.rank,
            "lora_alpha": target.lora.alpha,
            "target_modules": "|".join(f".*dense{part + 1}" for part in target.lora.all_parts),
        }
    return {"model.yaml": content}


def _modelscope(target: Target) -> Contents:
    base = target.layout.variant == "base"
    tensor = target.split.tensor
    content: dict[str, Any] = {
        "framework": "pytorch",
        "task": "text-generation",
        "model": {"type": "gpt3"},
        "pipeline": {"type": "text-generation" if base else "gpt3-generation"},
    }
    if not base:  # ModelScope takes the model class of the larger sizes where it finds this section
        content["megatron"] = {
            "world_size": tensor,
            "tensor_model_parallel_size": tensor,
            "checkpoint_tensor_model_parallel_size": tensor,
        }
    return {"config.json": target.config(), "configuration.json": content}


def _megatron(target: Target) -> Contents:
    return {"latest_checkpointed_iteration.txt": "release\n"}


_CONTENTS: Mapping[str, Callable[[Target], Contents]] = {
    "torch": _hugging_face,
    "gptbridge": _hugging_face,
    "paddle": _paddle,
    "fleetx": _fleetx,
    "mindspore": _mindspore,
    "modelscope": _modelscope,
    "megatron": _megatron,
}


def write_companions(source: Source, target: Target, files: Sequence[TargetFile], folder: Path) -> list[str]:
    """Write the configuration and copy the source's tokenizer; return the names of the files.

    `files` are the weight files in `folder` that they accompany.
    """
    written = []
    for name, content in _CONTENTS[target.dialect](target).items():
        if name.endswith(".json"):
            write_json(folder / name, content)
        else:
            text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
            write_synced(folder / name, text.encode())
        written.append(name)
    if target.dialect == "mindspore" and not target.split.whole:
        written += _write_strategies(files, target, folder)
    if target.lora is not None and not holds_lora(target.layout):
        written += write_adapter(target.lora, target.model, target.dtypes, folder)
    root = source.path if source.path.is_dir() else source.path.parent
    for name in TOKENIZER_FILES:
        if name not in written and _is_plain(root / name):
            write_synced(folder / name, (root / name).read_bytes())
            written.append(name)
    return written


def _write_strategies(files: Sequence[TargetFile], target: Target, folder: Path) -> list[str]:
    """Write what MindSpore needs to merge or split the ranks' files: a strategy file for each."""
    (folder / "strategy").mkdir()
    written = []
    for rank, file in enumerate(files):
        layouts = {
            tensor.info.name: TensorLayout(
                (target.split.tensor,),
                tuple((0,) if number == tensor.cut else () for number in range(len(tensor.info.shape))),
            )
            for tensor in file.tensors
        }
        name = f"strategy/ckpt_strategy_rank_{rank}.ckpt"
        write_synced(folder / name, encode_strategy(layouts, rank // target.split.tensor))
        written.append(name)
    return written


def _is_plain(path: Path) -> bool:
    """Tell whether `path` is a regular file of a size that a tokenizer may have."""
    try:
        status = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_TOKENIZER_BYTES
