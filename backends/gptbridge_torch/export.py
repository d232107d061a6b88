"""The model as a graph for other software: ONNX, and torch.export's own program.

Shapes: B samples, T new tokens, P tokens before them, L layers, N heads of D, V vocabulary.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from gptbridge.session import Device
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.shards import load
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_torch.model import GPT
from gptbridge_torch.session import TorchModel


class Held:
    """Keys and values as the model asks a cache for them: those given, and behind them the new ones."""

    def __init__(self, past: Tensor, new: int) -> None:
        self._past = past
        places = torch.arange(past.shape[4] + new)
        self.positions = places[past.shape[4] :]
        self.mask = torch.where(places <= self.positions[:, None], 0.0, -torch.inf)
        self.grown: list[Tensor] = []

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, N, P + T, D) of a layer."""
        k = torch.cat([self._past[layer, 0], k], 2)
        v = torch.cat([self._past[layer, 1], v], 2)
        self.grown.append(torch.stack([k, v]))
        return k, v


class Step(nn.Module):
    """From tokens (B, T) and past (L, 2, B, N, P, D), logits (B, T, V) and present (L, 2, B, N, P + T, D)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one step; P is 0 at the start of a text."""
        held = Held(past, tokens.shape[1])
        hidden = self.model(tokens, held.positions, held)
        return F.linear(hidden, self.model.head), torch.stack(held.grown)


def export(spec: RunSpec, device: Device, format: str, read: Read, folder: Path) -> list[str]:
    """Write model.onnx, with the weights beside it, or model.pt2; return the names of the files."""
    model = TorchModel(spec, device)
    load(model.shards(), read)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own functions
        WRITERS[format](_traced(Step(model._model).eval(), spec.model), folder)
    return sorted(path.name for path in folder.iterdir())


def _traced(step: Step, model: ModelSpec) -> ExportedProgram:
    batch, new = Dim("batch", min=1), Dim("new", min=1, max=model.max_position_embeddings)
    held = Dim("held", min=0, max=model.max_position_embeddings)
    past = torch.zeros(model.num_layers, 2, 2, model.num_attention_heads, 6, model.head_size)
    program = torch.export.export(
        step,
        (torch.zeros(2, 5, dtype=torch.int64), past),
        dynamic_shapes=({0: batch, 1: new}, {2: batch, 4: held}),
    )
    graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        node.meta.pop("stack_trace", None)  # where the code lies on this machine
    return program


def _write_onnx(program: ExportedProgram, folder: Path) -> None:
    exported: Any = torch.onnx.export(
        program,
        input_names=["tokens", "past"],
        output_names=["logits", "present"],
        dynamo=True,
        verbose=False,
    )
    for node in exported.model.graph:
        node.metadata_props.clear()  # where it comes from in the code: most of the file
    exported.save(folder / "model.onnx", external_data=True)


def _write_program(program: ExportedProgram, folder: Path) -> None:
    torch.export.save(program, folder / "model.pt2")


WRITERS = {"onnx": _write_onnx, "torch-export": _write_program}
