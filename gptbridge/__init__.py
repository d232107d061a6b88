"""gptbridge: one GPT spec, trained on PyTorch, PaddlePaddle or MindSpore.

The public names are imported on first use, so that `import gptbridge` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptbridge.hookspecs import hookimpl as hookimpl
    from gptbridge_specs import ModelSpec as ModelSpec
    from gptbridge_specs import RunSpec as RunSpec

__version__ = "0.1.0"

_PUBLIC = {
    "ModelSpec": "gptbridge_specs",
    "RunSpec": "gptbridge_specs",
    "hookimpl": "gptbridge.hookspecs",
}
__all__ = ["ModelSpec", "RunSpec", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gptbridge' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
