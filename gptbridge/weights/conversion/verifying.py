"""Do two checkpoints compute the same? Their logits on random tokens, through the NumPy reference."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.errors import RunFailed
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.conversion.arrays import CanonicalArrays
from gptbridge.weights.conversion.convert import Converted, Request
from gptbridge.weights.conversion.source import Source, Told, open_source

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

    def require_passed(self, path: Path) -> None:
        """Raise RunFailed, naming the checkpoint at `path`, unless the logits are the same."""
        if not self.passed:
            raise RunFailed(str(self), where=path)

    def __str__(self) -> str:
        if not np.isfinite(self.max_logit):
            return "NO LOGITS TO COMPARE: the source itself computes NaN or infinity"
        word = "same logits" if self.passed else "DIFFERENT LOGITS"
        return f"{word}: max |d logits| {self.max_difference:.2e} of max |logit| {self.max_logit:.3g}"


def verify_conversion(request: Request, done: Converted, *, wanted: bool | None) -> Verdict | None:
    """Compare what was converted with its source; for `wanted` None only a small model, which is quick."""
    if wanted is False or (wanted is None and count_parameters(done.model) > SMALL_MODEL):
        return None
    return verify(request.source, request.output, told=request.told, dialect=request.to)


def verify(first: Path, second: Path, *, told: Told | None = None, dialect: str | None = None) -> Verdict:
    """Compare the logits of two checkpoints on seeded random tokens; padded vocabulary does not count.

    `told` is what the user says about the first, `dialect` what the second is. LoRA that both keep
    apart, or only the first, counts as part of the weights.
    """
    with ExitStack() as stack:
        sources = [open_source(first, stack, told), open_source(second, stack, Told(dialect))]
        vocabulary = min(source.model.vocab_size for source in sources)
        length = min(_TOKENS[1], sources[0].model.max_position_embeddings)
        tokens = np.random.default_rng(0).integers(0, vocabulary, (_TOKENS[0], length), np.int32)
        scores = [_scores(source.merged(), tokens, vocabulary) for source in sources]
        dtypes = {weight.dtype for source in sources for weight in source.weights.values()}
    if scores[0].shape != scores[1].shape:
        return Verdict(float("inf"), float(np.max(np.abs(scores[0]))), 0.0)
    difference = float(np.max(np.abs(scores[0] - scores[1])))
    return Verdict(difference, float(np.max(np.abs(scores[0]))), max(_TOLERANCE[dtype] for dtype in dtypes))


def _scores(source: Source, tokens: NDArray[np.int32], vocabulary: int) -> NDArray[np.float64]:
    """Return the logits of the model's head, and those of a classifier's head beside them."""
    arrays = CanonicalArrays(source)
    scores = [reference.logits(source.model, arrays, tokens)[..., :vocabulary]]
    if source.num_labels is not None:
        classifier = source.model.model_copy(update={"tie_word_embeddings": False})
        weights = {**arrays, "lm_head.weight": arrays["score.weight"]}
        scores.append(reference.logits(classifier, weights, tokens))
    return np.concatenate(scores, axis=-1)
