"""Every dialect by name."""

from __future__ import annotations

from gptbridge.errors import UsageError
from gptbridge.weights.layouts.fleetx import FLEETX
from gptbridge.weights.layouts.huggingface import GPTBRIDGE, TORCH
from gptbridge.weights.layouts.megatron import MODELSCOPE, megatron
from gptbridge.weights.layouts.mindformers import MINDSPORE
from gptbridge.weights.layouts.paddlenlp import PADDLE
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs.errors import suggestion

MEGATRON_VERSION = 3  # what today's Megatron-LM writes

# In the order of preference where tensor names fit several.
_LAYOUTS = {
    "torch": TORCH,
    "gptbridge": GPTBRIDGE,
    "paddle": PADDLE,
    "mindspore": MINDSPORE,
    "fleetx": FLEETX,
    "modelscope": MODELSCOPE,
}
DIALECTS = (*_LAYOUTS, "megatron")


def require_dialect(name: str) -> str:
    """Return `name` if it is a dialect; UsageError with the list otherwise."""
    if name not in DIALECTS:
        raise UsageError(
            f"there is no dialect {name!r}.{suggestion(name, DIALECTS)}", allowed=", ".join(DIALECTS)
        )
    return name


def layouts_of(dialect: str | None, *, checkpoint_version: int = MEGATRON_VERSION) -> tuple[Layout, ...]:
    """Return the layouts of a dialect, the one to write first; of every dialect for None."""
    if dialect == "megatron":
        return megatron(checkpoint_version)
    if dialect is not None:
        return _LAYOUTS[dialect]
    known = tuple(layout for layouts in _LAYOUTS.values() for layout in layouts)
    return (*known, *megatron(checkpoint_version))
