"""Canonical weights in and out of the Paddle model: one table for weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor, nn

from gptbridge.weights.canonical import Parameter


def canonical_tensors(model: nn.Layer, table: Sequence[Parameter]) -> dict[str, Tensor]:
    """Return the model's own parameters under their canonical names, in canonical order.

    Paddle's Linear is (in, out) as the canonical layout is, and the sublayers have the canonical
    names, so that nothing is renamed or transposed.
    """
    native = dict(model.named_parameters())
    return {parameter.name: native[parameter.name] for parameter in table}


def export_tensors(
    tensors: Mapping[str, Tensor], suffix: str = ""
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield `NAME + suffix` and a float32 copy of each tensor, one at a time."""
    for name, tensor in tensors.items():
        yield name + suffix, np.array(tensor.numpy(), np.float32)


def check_arrays(arrays: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, Tensor]) -> None:
    """Raise KeyError for an absent or unknown name, ValueError for a wrong shape."""
    absent = sorted(tensors.keys() - arrays.keys())
    unknown = sorted(arrays.keys() - tensors.keys())
    if absent or unknown:
        raise KeyError(f"absent: {', '.join(absent) or 'none'}; unknown: {', '.join(unknown) or 'none'}")


def import_tensors(arrays: Mapping[str, NDArray[np.float32]], tensors: Mapping[str, Tensor]) -> None:
    """Copy each array into the tensor of its name.

    Raises KeyError for an absent or unknown name and ValueError for a wrong shape; names are
    checked before anything is copied.
    """
    check_arrays(arrays, tensors)
    for name, tensor in tensors.items():
        array = np.ascontiguousarray(arrays[name], np.float32)
        if list(array.shape) != tensor.shape:
            raise ValueError(f"{name} has shape {array.shape}, not {tuple(tensor.shape)}")
        paddle.assign(paddle.to_tensor(array, place=tensor.place), tensor)
