"""Do two checkpoints compute the same? Their logits on random tokens, through the NumPy reference."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.conversion.convert import Conversion, Converted
from gptbridge.weights.conversion.verdict import Verdict
from gptbridge.weights.opening import Hints, Opened, open_checkpoint

SMALL_MODEL = 20_000_000  # parameters up to which a conversion is verified without being asked
# Largest |d logits| / largest |logit| for a target in each element type: its rounding, with room.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-6, "float16": 2e-2, "bfloat16": 1e-1}
_TOKENS = (2, 16)
_NO_HINTS = Hints()


class DifferentLogits(RunFailed):
    """A conversion whose result does not compute what its source does; `done` says all the rest of it."""

    def __init__(self, done: Converted, verdict: Verdict, output: Path) -> None:
        super().__init__(str(verdict), where=output)
        self.done = done


def verified(conversion: Conversion, done: Converted, *, wanted: bool | None) -> Converted:
    """Compare what was converted with its source; for `wanted` None only a small model, which is quick.

    Returns what was done with the verdict, or raises DifferentLogits.
    """
    if wanted is False or (wanted is None and count_parameters(done.model) > SMALL_MODEL):
        return done
    verdict = verify(conversion.source, conversion.output, hints=conversion.hints, dialect=conversion.to)
    done = replace(done, verdict=verdict)
    if not verdict.passed:
        raise DifferentLogits(done, verdict, conversion.output)
    return done


def verify(first: Path, second: Path, *, hints: Hints = _NO_HINTS, dialect: str | None = None) -> Verdict:
    """Compare the logits of two checkpoints on seeded random tokens; padded vocabulary does not count.

    `hints` is what the user says about the first, `dialect` what the second is. LoRA that both keep
    apart, or only the first, counts as part of the weights.
    """
    with ExitStack() as stack:
        sides = ((first, hints), (second, Hints(dialect)))
        sources = [stack.enter_context(open_checkpoint(path, known)) for path, known in sides]
        vocabulary = min(source.model.vocab_size for source in sources)
        length = min(_TOKENS[1], sources[0].model.max_position_embeddings)
        tokens = np.random.default_rng(0).integers(0, vocabulary, (_TOKENS[0], length), np.int32)
        scores = [_scores(source.merged(), tokens, vocabulary) for source in sources]
        dtypes = {weight.dtype for source in sources for weight in source.weights.values()}
    if scores[0].shape != scores[1].shape:
        return Verdict(float("inf"), float(np.max(np.abs(scores[0]))), 0.0)
    difference = float(np.max(np.abs(scores[0] - scores[1])))
    return Verdict(difference, float(np.max(np.abs(scores[0]))), max(_TOLERANCE[dtype] for dtype in dtypes))


def _scores(source: Opened, tokens: NDArray[np.int32], vocabulary: int) -> NDArray[np.float64]:
    """Return the logits of the model's head, and those of a classifier's head beside them."""
    from gptbridge import reference  # 4 MB, which most conversions have no use for

    arrays = source.arrays
    scores = [reference.logits(source.model, arrays, tokens)[..., :vocabulary]]
    if source.num_labels is not None:
        classifier = source.model.model_copy(update={"tie_word_embeddings": False})
        weights = {**arrays, "lm_head.weight": arrays["score.weight"]}
        scores.append(reference.logits(classifier, weights, tokens))
    return np.concatenate(scores, axis=-1)
