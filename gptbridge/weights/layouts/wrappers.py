"""Wrappers that training code leaves in the names of tensors, peeled in one place for every dialect."""

from __future__ import annotations

import re
from functools import lru_cache

WRAPPERS = (
    "module",  # data parallelism
    "_orig_mod",  # compilation
    "_fsdp_wrapped_module",  # sharding
    "_checkpoint_wrapped_module",  # recomputation
    "network",  # a cell around the model
    "state_dict",  # beside an optimizer, as people's own loops save them
    "model_state_dict",
)
_ANYWHERE = re.compile(rf"(?<![^.])(?:{'|'.join(WRAPPERS)})\.")
_LEADING = re.compile(rf"(?:(?:{'|'.join(WRAPPERS)})\.)*")


def is_wrapped(name: str) -> bool:
    """Tell whether a part of `name` is a wrapper."""
    return _ANYWHERE.search(name) is not None


@lru_cache(1 << 16)  # a file's names are tried with every layout
def peeled(name: str) -> str:
    """Return `name` without the wrappers in it: `module.h.0._orig_mod.ln_1.bias` is `h.0.ln_1.bias`."""
    return _ANYWHERE.sub("", name)


def leading_wrappers(name: str) -> str:
    """Return the wrappers that `name` begins with, such as `module.module`; empty for none."""
    found = _LEADING.match(name)
    return found[0].rstrip(".") if found else ""
