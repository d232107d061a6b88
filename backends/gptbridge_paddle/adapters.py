"""LoRA beside the linear layers of Paddle: (x A^T) B^T, scaled, is added to what a layer returns."""

from __future__ import annotations

from collections.abc import Mapping

import paddle
from paddle import Tensor, nn

from gptbridge.rules.dropout import Drawing, site_seed
from gptbridge.weights.layouts.gpt2 import adapted_in
from gptbridge_paddle.parts import dropped
from gptbridge_specs.run import LoraSpec


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
        seed = self._drawing.seed
        if self._dropout and self.training and seed is not None:
            x = dropped(x, self._dropout, site_seed(seed, *self._site), 1, 0, x.shape[1])
        held = zip(self._parts, paddle.split(y, len(self._parts), -1), strict=True)
        changed = [part + self._scale * self[name](x) if name in self else part for name, part in held]
        return paddle.concat(changed, -1) if len(changed) > 1 else changed[0]


def adapt(blocks: Mapping[str, nn.Layer], lora: LoraSpec, drawing: Drawing) -> None:
    """Put adapters beside the linear layers that `lora` targets, of `blocks` by layer number."""
    for linear, parts, site in adapted_in(blocks, lora):
        linear.adapters = Adapters(parts, lora, linear.weight.shape, site, drawing)
