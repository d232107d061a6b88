"""One writer a format: the tensors of a file, in the structure that its dialect expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptbridge.weights.conversion.target import Target
from gptbridge.weights.formats import Entry, Namespace, TensorRef, Tree
from gptbridge.weights.formats.ckpt_writer import write_ckpt
from gptbridge.weights.formats.pdparams_writer import write_pdparams
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.torch_writer import write_torch
from gptbridge.weights.layouts.registry import MEGATRON_VERSION

Writer = Callable[[Path, Sequence[Entry], Target], None]


def _safetensors(path: Path, entries: Sequence[Entry], target: Target) -> None:
    write_safetensors(path, entries)


def _pdparams(path: Path, entries: Sequence[Entry], target: Target) -> None:
    write_pdparams(path, entries)


def _ckpt(path: Path, entries: Sequence[Entry], target: Target) -> None:
    write_ckpt(path, entries)


def _torch(path: Path, entries: Sequence[Entry], target: Target) -> None:
    names = [info.name for info, _ in entries]
    if target.dialect == "megatron":
        write_torch(path, entries, _megatron(names, target))
    elif target.layout.variant == "large":
        write_torch(path, entries, _nested(names, depth=1))
    else:
        write_torch(path, entries)


def _megatron(names: Sequence[str], target: Target) -> Tree:
    """Return Megatron-LM's dict: nested modules down to the blocks, args, checkpoint_version."""
    version, _, number = target.layout.variant.partition("-")
    args = {
        **target.config(),
        "tensor_model_parallel_size": target.split.tensor,
        "pipeline_model_parallel_size": target.split.pipeline,
        "untie_embeddings_and_output_weights": not target.model.tie_word_embeddings,
        "position_embedding_type": "learned_absolute",
    }
    tree: dict[Any, Tree] = {
        "args": Namespace(args),
        "checkpoint_version": float(number) if version == "version" else float(MEGATRON_VERSION),
        "iteration": 0,
    }
    flat = version == "core"
    return {**tree, **_nested(names, depth=1 if flat else 5)}


def _nested(names: Sequence[str], *, depth: int) -> dict[Any, Tree]:
    """Return a dict of dicts, at most `depth` deep; what is below a module of layers stays one key."""
    tree: dict[Any, Any] = {}
    for name in names:
        module, layers, below = name.partition(".layers.")
        steps = module.split(".", depth) if not layers else [*module.split("."), f"layers.{below}"]
        if len(steps) > depth + 1:
            steps = name.split(".", depth)
        inner = tree
        for step in steps[:-1]:
            inner = inner.setdefault(step, {})
        inner[steps[-1]] = TensorRef(name)
    return tree


WRITERS: Mapping[str, Writer] = {
    "safetensors": _safetensors,
    "pdparams": _pdparams,
    "ckpt": _ckpt,
    "torch": _torch,
}
