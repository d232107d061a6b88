"""A model's tensors among all that a training run saved with them, below names of the run's own making."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from gptbridge.errors import BadInput, printable
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.layouts.wrappers import peeled

# A part of a name below which there are no weights, whatever stands in the other parts.
_TRAINING = (
    r"(?:optim\w*|\w*(?:scheduler|rng_state\w*|sampler)|rng_tracker_states|train(?:er)?_state|"
    r"data_?loader\w*|rerun_state_machine_state|adam_[mv]|muon_\w+|moment[12s]|accu_grads|main_param)"
)
STATE = rf"(?:.*\.)?{_TRAINING}(?:[./].*)?"  # matches the names of what `is_state`
_ELSEWHERE = "."  # before a name outside the model, which no layout has


def is_state(name: str) -> bool:
    """Tell whether a name is that of something that training keeps beside the weights."""
    return re.fullmatch(STATE, name) is not None


def prefix_of_model(layout: Layout, names: Iterable[str], where: object) -> str:
    """Return what stands before the layout's names, such as `app.model.`, found by the embedding.

    BadInput where there are two models.
    """
    embedding = next(rule.native for rule in layout.rules if rule.canonical == ("wte.weight",))
    prefixes = _prefixes(embedding, names)
    if len(prefixes) > 1:
        named = " and ".join(printable(f"{prefix}{embedding}", 80) for prefix in prefixes[:2])
        raise BadInput(f"holds several models: {named}", where=where)
    return prefixes[0] if prefixes else ""


def amid_training(layout: Layout, prefix: str) -> Layout:
    """Return `layout` for names that begin with `prefix`; any others, and training's state, are left out."""
    inner = layout.plain_name

    def plain_name(name: str) -> str:
        if not name.startswith(prefix) or is_state(name):
            return _ELSEWHERE + name
        return inner(name.removeprefix(prefix))

    return replace(layout, plain_name=plain_name, dropped=(*layout.dropped, rf"\{_ELSEWHERE}.*"))


def _prefixes(embedding: str, names: Iterable[str]) -> list[str]:
    """Return what stands before each embedding that is a weight."""
    found = (name.removesuffix(embedding) for name in map(peeled, names) if name.endswith(embedding))
    return [prefix for prefix in found if prefix[-1:] in ("", ".") and not is_state(prefix)]
