"""Which evaluation was the best so far: what early stopping and the best checkpoint go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gptbridge.checkpoint.state import Best
from gptbridge_specs.run import EvaluationSpec


class Watch:
    """Compares the evaluations of a run by one of their numbers; goes on from `best` of a checkpoint."""

    def __init__(self, spec: EvaluationSpec, best: Best | None = None) -> None:
        self._spec = spec
        self.best = best if best is not None and best.metric == spec.metric else None

    @property
    def exhausted(self) -> bool:
        """Tell whether so many evaluations came without a better one that the run ends."""
        patience = self._spec.patience
        return patience is not None and self.best is not None and self.best.since >= patience

    def take(self, step: int, facts: Mapping[str, Any], agreed: Callable[[bool], bool] = bool) -> bool:
        """Take note of an evaluation; tell whether it is the best so far, as `agreed` by all ranks.

        Null, which is no number, is never the best.
        """
        metric, best = self._spec.metric, self.best
        value = facts[metric]
        gain = -math.inf if value is None else math.inf if best is None else best.value - value
        if agreed(gain > self._spec.min_delta):
            self.best = Best(metric=metric, value=value, step=step)
            return True
        if best is not None:
            self.best = best.model_copy(update={"since": best.since + 1})
        return False
