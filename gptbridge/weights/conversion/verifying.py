"""Do two checkpoints compute the same? Their logits on random tokens, through the NumPy reference."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptbridge import reference
from gptbridge.weights.configs.reading import Declared
from gptbridge.weights.conversion.arrays import CanonicalArrays
from gptbridge.weights.conversion.source import open_source

SMALL_MODEL = 20_000_000  # parameters up to which a conversion is verified without being asked
# Largest |d logits| / largest |logit| for a target in each element type: its rounding, with room.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 2e-2, "bfloat16": 1e-1}
_TOKENS = (2, 16)


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
        word = "same logits" if self.passed else "DIFFERENT LOGITS"
        return f"{word}: max |d logits| {self.max_difference:.2e} of max |logit| {self.max_logit:.3g}"


def verify(
    first: Path,
    second: Path,
    *,
    dialects: tuple[str | None, str | None] = (None, None),
    given: Declared | None = None,
    seed: int = 0,
) -> Verdict:
    """Compare the logits of two checkpoints on seeded random tokens; padded vocabulary does not count.

    `given` states fields of the first one's model, as for `open_source`.
    """
    with ExitStack() as stack:
        sources = [
            open_source(first, stack, dialect=dialects[0], given=given),
            open_source(second, stack, dialect=dialects[1]),
        ]
        vocabulary = min(source.model.vocab_size for source in sources)
        length = min(_TOKENS[1], sources[0].model.max_position_embeddings)
        tokens = np.random.default_rng(seed).integers(0, vocabulary, (_TOKENS[0], length), np.int32)
        scores = [
            reference.logits(source.model, CanonicalArrays(source), tokens)[..., :vocabulary]
            for source in sources
        ]
        dtypes = {weight.dtype for source in sources for weight in source.weights.values()}
    difference = float(np.max(np.abs(scores[0] - scores[1])))
    return Verdict(difference, float(np.max(np.abs(scores[0]))), max(_TOLERANCE[dtype] for dtype in dtypes))
