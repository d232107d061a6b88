"""What came of comparing the logits of two checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the logits of two checkpoints are apart."""

    max_difference: float
    max_logit: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """The difference is no more than the element type's rounding. NaN never passes."""
        return self.max_difference <= self.tolerance * max(self.max_logit, 1.0)

    def __str__(self) -> str:
        if not np.isfinite(self.max_logit):
            return "NO LOGITS TO COMPARE: the source itself computes NaN or infinity"
        word = "same logits" if self.passed else "DIFFERENT LOGITS"
        return f"{word}: max |d logits| {self.max_difference:.2e} of max |logit| {self.max_logit:.3g}"
