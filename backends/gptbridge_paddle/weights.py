"""Canonical names to and from Paddle tensors: one table, both ways. The layouts are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from paddle import Tensor, nn

from gptbridge.weights.canonical import parameters
from gptbridge_specs import ModelSpec


class Weights:
    """The tensors of a model by canonical name, and whatever else has their shape: moments, gradients."""

    def __init__(self, model: ModelSpec, layer: nn.Layer) -> None:
        native = dict(layer.named_parameters())
        self.table: dict[str, Tensor] = {p.name: native[p.name] for p in parameters(model)}

    def export(
        self, select: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield, as fp32 copies, the tensors that `select` finds for each parameter.

        `select` returns them by the suffix of their name: {"": parameter} for the weight itself.
        """
        for name, parameter in self.table.items():
            for suffix, tensor in select(parameter).items():
                yield name + suffix, np.asarray(tensor.numpy(), np.float32)

    def load(
        self,
        select: Callable[[Tensor], Mapping[str, Tensor]],
        arrays: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Fill the tensors that `select` finds from canonical `arrays`, which must name exactly these.

        Raises KeyError for an absent or unknown name, ValueError for a wrong shape.
        """
        targets = {
            name + suffix: tensor
            for name, parameter in self.table.items()
            for suffix, tensor in select(parameter).items()
        }
        for name in [*(targets.keys() - arrays.keys()), *(arrays.keys() - targets.keys())]:
            raise KeyError(name)
        for name, tensor in targets.items():
            array = np.asarray(arrays[name], np.float32)
            if array.shape != tuple(tensor.shape):
                raise ValueError(f"{name} has shape {array.shape}, the model {tuple(tensor.shape)}")
            tensor.set_value(array)
