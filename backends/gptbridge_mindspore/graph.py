"""Functions of tensors, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore import Tensor, nn


class Graph(nn.Cell):
    """A function of tensors that is compiled for each set of shapes, once.

    As a cell in graph mode (see hardware.py) and not by `mindspore.jit`: the threads that hand a
    jit function over to the runtime spin while it works, a tenth of all CPU time. An argument or an
    attribute may be None; an argument may not be a tuple, which would be compiled in as a constant.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def construct(self, *arguments: Tensor | None) -> Any:
        """Compute the function."""
        return self.function(*arguments)
