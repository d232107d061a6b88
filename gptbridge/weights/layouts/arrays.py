"""Whole tensors of a layout from canonical arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.layouts.boxes import Box, whole_boxes
from gptbridge.weights.layouts.rules import NativeTensor

Read = Callable[[str, Box], NDArray[np.float32]]  # canonical name, box -> that slice in its canonical shape


def stored_array(native: NativeTensor, whole: Mapping[str, int], read: Read) -> NDArray[np.float32]:
    """Return a tensor of a layout, put together from the weights that it holds.

    `whole` has the sizes of the model's letters. ValueError for a weight of another shape than theirs.
    """
    boxes = whole_boxes(native.axes, whole)
    result = np.empty(native.axes.shape(whole), np.float32)
    for number, (name, box) in enumerate(zip(native.canonicals, boxes, strict=True)):
        order = weight_axes(name)
        array = read(name, box)
        if array.shape != order.shape(whole):
            raise ValueError(f"{name} has shape {array.shape}, not {order.shape(whole)}")
        part = order.spread(array, whole).transpose(order.order_of(native.axes.parts[number]))
        if len(boxes) == 1 and part.flags.c_contiguous:
            return part.reshape(result.shape)
        native.axes.view(result, number, whole)[...] = part
    return result
