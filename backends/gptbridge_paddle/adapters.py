"""LoRA beside the linear layers of Paddle: (x A^T) B^T, scaled, is added to what a layer returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import paddle
from paddle import Tensor, nn

from gptbridge.rules.dropout import site_seed
from gptbridge.weights.layouts.gpt2 import ADAPTED
from gptbridge_paddle.parts import dropped
from gptbridge_specs.run import LoraSpec


@dataclass(slots=True)
class Drawing:
    """The seed of the micro-batch that a model is computing."""

    seed: int = 0


class Pair(nn.Layer):
    """The two factors: A (rank, in) and B (out, rank)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_a = self.create_parameter([rank, inputs])
        self.lora_b = self.create_parameter([outputs, rank])

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        return paddle.matmul(paddle.matmul(x, self.lora_a, transpose_y=True), self.lora_b, transpose_y=True)


class Adapters(nn.LayerDict):
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
            seed = site_seed(self._drawing.seed, *self._site)
            x = dropped(x, self._dropout, seed, 1, 0, x.shape[1])
        held = zip(self._parts, paddle.split(y, len(self._parts), -1), strict=True)
        changed = [part + self._scale * self[name](x) if name in self else part for name, part in held]
        return paddle.concat(changed, -1) if len(changed) > 1 else changed[0]


def adapt(blocks: Mapping[str, nn.Layer], lora: LoraSpec, drawing: Drawing) -> None:
    """Put adapters beside the linear layers that `lora` targets, of `blocks` by layer number."""
    for layer, block in blocks.items():
        for name, parts in ADAPTED.items():
            if set(parts) & set(lora.targets):
                branch, _, own = name.partition(".")
                linear = getattr(getattr(block, branch), own)
                site = int(layer), f"{name} adapters"
                linear.adapters = Adapters(parts, lora, linear.weight.shape, site, drawing)
