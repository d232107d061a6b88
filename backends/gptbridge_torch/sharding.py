"""Optimizer state, gradients and weights cut over the ranks of a sharding group: torch's FSDP2.

All stages store a rank's part of the weights, and their optimizer updates it; they differ in how long whole
weights and whole gradients live. 1: both through a step. 2: the weights; gradients are cut after each
micro-batch. 3: neither outlives its layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from gptbridge_torch.model import GPT


class Sharding:
    """What is cut of a rank's `stages`: parameters along their rows, by torch.chunk's rule."""

    def __init__(self, stages: Sequence[GPT], group: ProcessGroup, device_type: str, level: int) -> None:
        self._stages, self._level = stages, level
        mesh = DeviceMesh.from_group(group, device_type)
        for stage in stages:
            for block in stage.h.values():
                fully_shard(block, mesh=mesh, reshard_after_forward=level == 3)
            fully_shard(
                stage, mesh=mesh, reshard_after_forward=False
            )  # the loss takes its head after forward

    def before_backward(self, *, last: bool) -> None:
        """Keep whole, until the `last` micro-batch of a step, what its level keeps."""
        for stage in self._modules(self._stages):
            stage.set_requires_gradient_sync(last or self._level > 1)
            stage.set_reshard_after_backward(last or self._level > 2)

    def reshard(self) -> None:
        """Free the whole weights that reading has left."""
        for stage in self._stages:
            for module in self._modules([stage, *stage.h.values()]):
                module.reshard()

    @staticmethod
    def _modules(modules: Sequence[object]) -> Iterator[FSDPModule]:
        return (module for module in modules if isinstance(module, FSDPModule))
