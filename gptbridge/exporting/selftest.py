"""Does an exported folder compute what its checkpoint does? Asked in a fresh process without gptbridge."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.errors import RunFailed, printable
from gptbridge.weights.conversion.verdict import Verdict
from gptbridge_specs import ModelSpec

INFER = Path(__file__).with_name("infer")
# Samples, and the lengths of the pieces that are fed one after the other.
SHAPES = ((1, (5,)), (3, (17,)), (2, (4, 1, 1, 6)))
_SECONDS = 1800


def self_test(
    folder: Path, model: ModelSpec, weights: Mapping[str, NDArray[np.float32]], tolerance: float
) -> Verdict:
    """Compare the logits of the folder's model.py with the NumPy reference's, on seeded random tokens.

    RunFailed where the process has no answer.
    """
    asked = questions(model)
    answers = answered(folder, asked)
    farthest, largest = 0.0, 0.0
    for name, found in answers.items():
        expected = reference.logits(model, weights, asked[name].astype(np.int32))
        if found.shape != expected.shape:
            raise RunFailed(f"the self-test gave logits {found.shape}, not {expected.shape}", where=folder)
        farthest = max(farthest, float(np.abs(found - expected).max()), key=_nan_first)
        largest = max(largest, float(np.abs(expected).max()), key=_nan_first)
    return Verdict(farthest, largest, tolerance)


def _nan_first(number: float) -> float:
    return float("inf") if np.isnan(number) else number


def questions(model: ModelSpec) -> dict[str, NDArray[np.int64]]:
    """Return tokens by name, and the lengths of their pieces as NAME.pieces; none longer than the model."""
    draw = np.random.default_rng(0)
    asked: dict[str, NDArray[np.int64]] = {}
    for number, (samples, lengths) in enumerate(SHAPES):
        total = np.minimum(np.cumsum(lengths), model.max_position_embeddings)
        pieces = np.diff(total, prepend=0)
        asked[f"{number}"] = draw.integers(0, model.vocab_size, (samples, int(total[-1])))
        asked[f"{number}.pieces"] = pieces[pieces > 0]
    return asked


def answered(folder: Path, asked: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
    """Return the logits of each of `asked`, by its name."""
    with tempfile.TemporaryDirectory() as scratch:
        question, answer = Path(scratch, "asked.npz"), Path(scratch, "answer.npz")
        np.savez(question, **asked)
        command = [sys.executable, "-PB", str(INFER / "check.py"), str(folder), str(question), str(answer)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, cwd=scratch, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"the self-test did not end within {_SECONDS} seconds", where=folder) from error
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no word"]
            raise RunFailed(
                f"the self-test ended with exit code {done.returncode}: {printable(lines[-1])}", where=folder
            )
        with np.load(answer) as answers:
            return dict(answers)
