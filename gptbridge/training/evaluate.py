"""The loss on the validation split."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gptbridge.process.world import World
from gptbridge.session import Batch, LanguageModel


def mean_loss(model: LanguageModel, batches: Iterable[Batch], world: World) -> tuple[float, int]:
    """Return the mean negative log likelihood of all replicas' unmasked tokens, and how many they are.

    Every token weighs the same, whatever batch it is in; 0.0 where no token counts.
    """
    total, tokens = 0.0, 0
    for batch in batches:
        for inputs, labels, mask in zip(batch.inputs, batch.labels, batch.loss_mask, strict=True):
            losses = model.token_losses(inputs, labels)
            total += float(losses[mask].sum(dtype=np.float64))
            tokens += int(mask.sum())
    total, counted = world.total((total, tokens))
    return (total / counted if counted else 0.0), int(counted)
