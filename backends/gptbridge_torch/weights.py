"""Canonical names and layout to and from torch tensors: one table, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptbridge.weights.canonical import parameters
from gptbridge_specs import ModelSpec

# nn.Linear keeps (out, in), canonical weights are (in, out). All other tensors and all names are the same.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class Weights:
    """The tensors of a model by canonical name, and whatever else has their shape: moments, gradients."""

    def __init__(self, model: ModelSpec, module: nn.Module) -> None:
        native = dict(module.named_parameters())
        self.table: dict[str, nn.Parameter] = {p.name: native[p.name] for p in parameters(model)}

    def export(
        self, select: Callable[[nn.Parameter], Mapping[str, Tensor]]
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield, as canonical fp32 copies, the tensors that `select` finds for each parameter.

        `select` returns them by the suffix of their name: {"": parameter} for the weight itself.
        """
        for name, parameter in self.table.items():
            for suffix, tensor in select(parameter).items():
                yield name + suffix, _to_canonical(name, tensor)

    def load(
        self,
        select: Callable[[nn.Parameter], Mapping[str, Tensor]],
        arrays: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Fill the tensors that `select` finds from canonical `arrays`, which must name exactly these.

        Raises KeyError for an absent or unknown name, ValueError for a wrong shape.
        """
        targets = {
            name + suffix: (name, tensor)
            for name, parameter in self.table.items()
            for suffix, tensor in select(parameter).items()
        }
        for name in [*(targets.keys() - arrays.keys()), *(arrays.keys() - targets.keys())]:
            raise KeyError(name)
        for key, (name, tensor) in targets.items():
            _from_canonical(name, tensor, arrays[key])


def _is_transposed(name: str) -> bool:
    return name.endswith(TRANSPOSED)


def _to_canonical(name: str, tensor: Tensor) -> NDArray[np.float32]:
    array = tensor.detach().float().cpu().numpy()
    return np.array(array.T if _is_transposed(name) else array, order="C")


def _from_canonical(name: str, tensor: Tensor, array: NDArray[np.float32]) -> None:
    target = tensor.detach().t() if _is_transposed(name) else tensor.detach()
    if tuple(target.shape) != array.shape:
        raise ValueError(f"{name} has shape {array.shape}, the model {tuple(target.shape)}")
    target.copy_(torch.tensor(array))
