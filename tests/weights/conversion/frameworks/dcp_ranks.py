"""Save models with torch's own distributed checkpoint, from ranks of FSDP2 and of tensor parallelism.

python dcp_ranks.py SOURCE OUTPUT: SOURCE holds the safetensors files that cases name;
OUTPUT/CASE is a checkpoint of each of CASES.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.shard import Shard as LocalShard
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

# The dimension that tensor parallelism cuts, by the end of a name.
HF = {
    "c_attn.weight": 1,
    "c_attn.bias": 0,
    "c_fc.weight": 1,
    "c_fc.bias": 0,
    "c_proj.weight": 0,
    "wte.weight": 0,
}
CORE = {
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_proj.weight": 1,
    "linear_fc1.weight": 0,
    "linear_fc1.bias": 0,
    "linear_fc2.weight": 1,
    "word_embeddings.weight": 0,
}


@dataclass(frozen=True)
class Case:
    """`tensor` ranks cut each tensor, the rest of the ranks are FSDP's. `wrapper` leads to the weights."""

    weights: str
    ranks: int
    tensor: int
    wrapper: tuple[str, ...] = ()
    training: bool = True  # with the optimizer's state
    writer: Callable[[Path], Any] | None = None


def hugging_face_writer(path: Path) -> Any:
    """What saves the ranks' parts in safetensors files, without .metadata."""
    return HuggingFaceStorageWriter(str(path), save_distributed=True)


CASES = {
    "hf-fsdp2-tp2": Case("hf", 4, 2, ("app", "model")),
    "hf-fsdp4": Case("hf", 4, 1, ("model",)),
    "hf-tp2": Case("hf", 2, 2),
    "hf-safetensors": Case("hf", 2, 1, training=False, writer=hugging_face_writer),
    "core-fsdp2-tp2": Case("core", 4, 2, ("model",)),
    "stacked-fsdp2-tp2": Case("stacked", 4, 2, ("model",)),
    "stacked-pp2-tp2": Case("stacked", 4, 2),
    "large-fsdp2-tp2": Case("hf-large", 4, 2, ("model",), training=False),
    "large-stacked-fsdp2-tp2": Case("stacked-large", 4, 2, training=False),
}


def module_of(weights: dict[str, torch.Tensor], mesh: Any, case: Case) -> nn.Module:
    """A tree of modules whose parameters have these names, each cut for this rank."""
    root = nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, nn.Module())
            module = module.get_submodule(step)
        cuts = HF if case.weights.startswith("hf") else CORE
        cut = next((dim for end, dim in cuts.items() if name.endswith(end)), None)
        if cut is not None and case.tensor > 1:
            cut += case.weights.startswith("stacked") and ".layers." in name
            tensor = distribute_tensor(tensor, mesh["tp"], [Shard(cut)])
        module.register_parameter(last, nn.Parameter(tensor))
    return root


def layers_of(root: nn.Module) -> Iterator[nn.Module]:
    for name, module in root.named_modules():
        if name.rpartition(".")[2].isdigit():
            yield module


def optimizer_state(root: nn.Module) -> dict[str, Any]:
    """The state of AdamW after a step of no size."""
    optimizer = torch.optim.AdamW(root.parameters(), lr=0.0)
    for parameter in root.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    return get_optimizer_state_dict(root, optimizer, options=options)


def save_modules(case: Case, weights: dict[str, torch.Tensor], output: Path) -> None:
    """FSDP2 over tensor parallelism."""
    shape = (case.ranks // case.tensor, case.tensor)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp"))
    root = module_of(weights, mesh, case)
    if shape[0] > 1:
        for layer in layers_of(root):
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(root, mesh=mesh["dp"])
    model = get_model_state_dict(root)
    content: dict[str, Any] = {**model} if not case.wrapper else {case.wrapper[-1]: model}
    if case.training:
        state = {"step": 1, "rng_state": torch.get_rng_state()}
        content |= {"optimizer": optimizer_state(root), "train_state": state}
    if case.writer:
        save(content, storage_writer=case.writer(output))
        return
    for key in case.wrapper[-2::-1]:
        content = {key: content}
    save(content, checkpoint_id=output)


def save_stages(case: Case, weights: dict[str, torch.Tensor], output: Path) -> None:
    """As Megatron-Core does: each rank has the layers of its stage, in pieces of one layer."""
    stage, rank = divmod(dist.get_rank(), case.tensor)
    content: dict[str, Any] = {"optimizer": {"param_state": {}}}
    for name, tensor in weights.items():
        cut = next((dim for end, dim in CORE.items() if name.endswith(end)), None)
        layered = ".layers." in name
        share = len(tensor) * case.tensor // case.ranks
        shards = []
        for layer in range(stage * share, (stage + 1) * share) if layered else [0]:
            offsets, sizes = [0] * tensor.ndim, list(tensor.shape)
            if layered:
                offsets[0], sizes[0] = layer, 1
            if cut is not None:
                parts = torch.arange(tensor.shape[cut + layered]).chunk(case.tensor)
                offsets[cut + layered], sizes[cut + layered] = int(parts[rank][0]), len(parts[rank])
            elif rank:
                continue
            if not layered and stage:
                continue
            piece = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].clone()
            where = f"rank:{dist.get_rank()}/cpu"
            shards.append(LocalShard(piece, ShardMetadata(offsets, sizes, where)))
        content[name] = ShardedTensor._init_from_local_shards(shards, tensor.shape)
        content[f"optimizer.state.exp_avg.{name}"] = content[name]
    save(content, checkpoint_id=output)
    if dist.get_rank() == 0:
        args = Namespace(num_attention_heads=4, num_layers=4, hidden_size=48, padded_vocab_size=61)
        torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 1}, output / "common.pt")


def run_rank(rank: int, size: int, source: Path, output: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{output}/store-{size}", rank=rank, world_size=size)
    for name, case in CASES.items():
        if case.ranks == size:
            weights = load_file(source / f"{case.weights}.safetensors")
            save_case = save_stages if name == "stacked-pp2-tp2" else save_modules
            save_case(case, weights, output / name)
            dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:])
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size in (2, 4):
        start_processes(  # type: ignore[no-untyped-call]
            run_rank, (size, source, output), nprocs=size, start_method="fork"
        )
