"""Dropout: whether there is any, and its seeds, the whole random state of a run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptbridge_specs import ModelSpec
    from gptbridge_specs.run import TaskSpec


@dataclass(slots=True)
class Drawing:
    """The seed of the micro-batch that a model computes; None where a compiled one draws for all sites."""

    seed: int | None = None


def drops_out(model: ModelSpec, task: TaskSpec | None = None) -> bool:
    """Tell whether training drops anything, in the model or before an adapter."""
    lora = task.lora if task is not None else None
    probabilities = (
        model.hidden_dropout_prob,
        model.attention_probs_dropout_prob,
        lora.dropout if lora else 0,
    )
    return max(probabilities) > 0


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """Return the 63-bit seed of one micro-batch's dropout.

    `micro_batch` is its number among those of all ranks, so that the same samples see the same dropout
    however they are shared out.
    """
    return _seed(f"dropout:{seed}:{step}:{micro_batch}")


def site_seed(seed: int, layer: int | None, site: str) -> int:
    """Return the 63-bit seed of one place that drops: `site` of `layer`, or of what is outside the layers.

    `seed` is the micro-batch's. A mask is drawn whole from it, and a rank keeps its part: so every layout
    draws the same, in any order of micro-batches, and once more where activations are recomputed.
    """
    return _seed(f"site:{seed}:{layer}:{site}")


def _seed(words: str) -> int:
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
