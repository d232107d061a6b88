"""gptbridge: one GPT spec, trained on PyTorch, PaddlePaddle or MindSpore.

The public names are imported on first use, so that `import gptbridge` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gptbridge.errors import require_posix

if TYPE_CHECKING:
    from gptbridge.api import convert as convert
    from gptbridge.api import evaluate as evaluate
    from gptbridge.api import export as export
    from gptbridge.api import generate as generate
    from gptbridge.api import inspect as inspect
    from gptbridge.api import open_checkpoint as open_checkpoint
    from gptbridge.api import open_writer as open_writer
    from gptbridge.api import parity as parity
    from gptbridge.api import train as train
    from gptbridge.hookspecs import hookimpl as hookimpl
    from gptbridge_specs import ModelSpec as ModelSpec
    from gptbridge_specs import RunSpec as RunSpec

__version__ = "0.1.0"

_PUBLIC = {
    "ModelSpec": "gptbridge_specs",
    "RunSpec": "gptbridge_specs",
    "convert": "gptbridge.api",
    "evaluate": "gptbridge.api",
    "export": "gptbridge.api",
    "generate": "gptbridge.api",
    "hookimpl": "gptbridge.hookspecs",
    "inspect": "gptbridge.api",
    "open_checkpoint": "gptbridge.api",
    "open_writer": "gptbridge.api",
    "parity": "gptbridge.api",
    "train": "gptbridge.api",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gptbridge' has no attribute {name!r}")
    require_posix()
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
