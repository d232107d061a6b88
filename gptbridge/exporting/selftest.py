"""Does an exported folder compute what its checkpoint does? Asked in a fresh process without gptbridge."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
# How many times as far as a rounding of each weight moves the logits, float32 may be off: up to 9 was seen.
_ROUNDINGS = 16

Arrays = Mapping[str, NDArray[np.floating[Any]]]
Logits = Mapping[str, NDArray[np.floating[Any]]]


def self_test(folder: Path, model: ModelSpec, weights: Arrays, tolerance: float) -> Verdict:
    """Compare the logits of the folder's model.py with the NumPy reference's, on seeded random tokens.

    The verdict's tolerance is larger than what is asked where float32 itself is that far off.
    RunFailed where the process has no answer.
    """
    asked = questions(model)
    found = answered(folder, asked)
    expected = _expected(model, weights, asked)
    for name, logits in expected.items():
        if found[name].shape != logits.shape:
            raise RunFailed(
                f"the self-test gave logits {found[name].shape}, not {logits.shape}", where=folder
            )
    largest = max(float(np.abs(logits).max()) for logits in expected.values())
    verdict = Verdict(_apart(found, expected), largest, tolerance)
    if verdict.passed or not np.isfinite(verdict.max_difference):
        return verdict
    rounded = {name: _rounded(array) for name, array in weights.items()}
    moved = _apart(_expected(model, rounded, asked), expected)
    return replace(verdict, tolerance=max(tolerance, _ROUNDINGS * moved / max(largest, 1.0)))


def _expected(model: ModelSpec, weights: Arrays, asked: Mapping[str, NDArray[np.int64]]) -> Logits:
    """Return the reference's logits of each of the tokens in `asked`."""
    tokens = {name: array.astype(np.int32) for name, array in asked.items() if "." not in name}
    return {name: reference.logits(model, weights, array) for name, array in tokens.items()}


def _apart(first: Logits, second: Logits) -> float:
    """Return the largest difference; NaN where there is one."""
    return float(np.max([np.abs(first[name] - second[name]).max() for name in second]))


def _rounded(array: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return numbers that float32 would hardly tell from those of `array`."""
    draw = np.random.default_rng(array.size)
    return array * (1 + draw.normal(0, 2**-24, array.shape))


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
