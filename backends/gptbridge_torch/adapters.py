"""LoRA beside the linear layers of torch: (x A^T) B^T, scaled, is added to what a layer returns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptbridge.rules.dropout import Drawing
from gptbridge.weights.layouts.gpt2 import adapted_in
from gptbridge_specs.run import LoraSpec
from gptbridge_torch.parts import sow


class Pair(nn.Module):
    """The two factors: A (rank, in) and B (out, rank)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, inputs))
        self.lora_b = nn.Parameter(torch.empty(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        return F.linear(F.linear(x, self.lora_a), self.lora_b)


class Adapters(nn.ModuleDict):
    """Pairs for some of the `parts` that lie side by side in a layer's output, one dropout before all."""

    def __init__(
        self,
        parts: tuple[str, ...],
        lora: LoraSpec,
        shape: tuple[int, int],
        site: tuple[int, str],
        drawing: Drawing,
    ) -> None:
        inputs, outputs = shape
        width = outputs // len(parts)
        super().__init__({part: Pair(inputs, width, lora.rank) for part in parts if part in lora.targets})
        self._parts = parts
        self._scale = lora.alpha / lora.rank
        self._dropout = lora.dropout
        self._site = site
        self._drawing = drawing

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return y (..., out) and the change that x (..., in) makes to it."""
        if self._dropout and self.training:
            sow(x.device, self._drawing.seed, *self._site)
            x = F.dropout(x, self._dropout)
        held = zip(self._parts, y.chunk(len(self._parts), -1), strict=True)
        changed = [
            torch.add(part, self[name](x), alpha=self._scale) if name in self else part for name, part in held
        ]
        return torch.cat(changed, -1) if len(changed) > 1 else changed[0]


def adapt(blocks: nn.ModuleDict, lora: LoraSpec, drawing: Drawing) -> None:
    """Put adapters beside the linear layers that `lora` targets, of `blocks` by layer number."""
    for linear, parts, site in adapted_in(dict(blocks.items()), lora):
        shape = linear.in_features, linear.out_features
        linear.adapters = Adapters(parts, lora, shape, site, drawing)
