"""A rank's part of the model: its pipeline stages, of each its part of the weights; reading through all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gptbridge.process.place import Place
from gptbridge.weights.shards import held_tensors
from gptbridge_specs import RunSpec
from gptbridge_torch.cache import Cache
from gptbridge_torch.collectives import Cut, broadcast, receive, send
from gptbridge_torch.model import GPT, LAYOUT
from gptbridge_torch.parallel import Groups

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# fp16 ends at 65504, which the residual stream of a deep model can pass.
STREAM = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}


def held_as(dtype: torch.dtype, stage: GPT) -> GPT:
    """Return the stage with weights of `dtype`; those of norms are of the stream's, where that is wider."""
    stage.to(dtype)
    for module in stage.modules():
        if isinstance(module, nn.LayerNorm):
            module.to(torch.promote_types(dtype, stage.stream_dtype))
    return stage


def build(spec: RunSpec, place: Place, cut: Cut) -> list[GPT]:
    """Return the stages of the rank at `place`, without memory; tensor parallelism has cut their weights."""
    runs = place.layers(spec.model.num_layers)
    stages = []
    for number, layers in enumerate(runs):
        with torch.device("meta"):  # draws no initial weights: they are written
            stage = GPT(
                spec.model,
                layers,
                first=place.first and number == 0,
                last=place.last and number == len(runs) - 1,
                recompute=spec.training.recompute,
                dtype=COMPUTE[spec.precision.compute],
                stream_dtype=STREAM[spec.precision.compute],
                cut=cut,
                task=spec.task,
            )
        weights = dict(stage.named_parameters())
        for name, held in held_tensors(spec.model, LAYOUT, weights, place, task=spec.task).items():
            weights[name].data = weights[name].new_empty(held.shape)
        stages.append(stage)
    return stages


def allocate(stage: GPT, device: torch.device, *, sharded: bool) -> GPT:
    """Give the weights of a stage memory; `to_empty` would import torch's compiler for it."""
    if sharded:
        return stage.to_empty(device=device)
    for module in stage.modules():
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            setattr(module, name, nn.Parameter(empty, weight.requires_grad))
    return stage


def weights_of(stages: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of all stages by name; no two have one."""
    return {name: weight for stage in stages for name, weight in stage.named_parameters()}


def own_parts(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Return what this rank has of each tensor, where sharding has cut it too."""
    return {
        name: getattr(tensor, "to_local", lambda tensor=tensor: tensor)()
        for name, tensor in tensors.items()
        if tensor is not None
    }


def read(
    stages: Sequence[GPT],
    place: Place,
    groups: Groups,
    tokens: Tensor,
    cache: Cache | None,
    finish: Callable[[Tensor], Tensor],
    shape: Sequence[int],
) -> Tensor:
    """Return what `finish` makes of the final hidden states of (B, T) `tokens`: fp32 of `shape`.

    It is called by the ranks of the last stage.
    """
    ranks, mine = place.degree("pipeline"), place.index("pipeline")
    group, x = groups.pipeline, tokens
    for number in range(mine, ranks * len(stages), ranks):
        stage = stages[number // ranks]
        if group is not None and not stage.first:
            hidden = torch.empty((*tokens.shape, stage.width), dtype=stage.stream_dtype, device=tokens.device)
            x = receive(hidden, group, (mine - 1) % ranks)
        x = stage(x, cache.positions if cache else None, cache)
        if group is not None and not stage.last:
            send(x, group, (mine + 1) % ranks)
    if group is None:
        return finish(x)
    found = finish(x) if place.last else torch.empty(tuple(shape), device=tokens.device)
    return broadcast(found.contiguous(), group, ranks - 1)
