"""A Cell of MindSpore that does nothing."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn


class Passed(nn.Cell):  # type: ignore[misc]
    """What ranks exchange in its place is not exchanged."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def construct(self, *tensors: Tensor) -> Any:
        """Return the tensors, or the only one, as they are."""
        return tensors if len(tensors) > 1 else tensors[0]
