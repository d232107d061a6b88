"""Canonical names and layout to and from MindSpore tensors: one table, both ways.

This backend computes with canonical tensors: (in, out) matrices under their own names. So the table
transposes nothing; weights, gradients and moments go through it alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from gptbridge.weights.canonical import parameters
from gptbridge_specs import ModelSpec


def empty_weights(model: ModelSpec) -> dict[str, Tensor]:
    """Return a tensor for every weight of `model`, in canonical order."""
    return {p.name: Tensor(np.zeros(p.shape, np.float32)) for p in parameters(model)}


def export_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield a copy of each tensor, one at a time."""
    for name, tensor in tensors.items():
        yield name, np.array(tensor.asnumpy(), np.float32)


def import_tensors(tensors: Mapping[str, Tensor], arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Fill `tensors` from `arrays`, which must name exactly these.

    Raises KeyError for an absent or unknown name, ValueError for a wrong shape.
    """
    for name in [*(tensors.keys() - arrays.keys()), *(arrays.keys() - tensors.keys())]:
        raise KeyError(name)
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(arrays[name], np.float32)
        if array.shape != tuple(tensor.shape):
            raise ValueError(f"{name} has shape {array.shape}, the model {tuple(tensor.shape)}")
        tensor.assign_value(Tensor(array))
