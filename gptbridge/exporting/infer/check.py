"""Compute logits with the model.py of an exported folder, in a process that cannot import gptbridge.

    python check.py FOLDER ASKED.npz ANSWER.npz

ASKED holds arrays of (B, T) tokens, fed in pieces as long as the arrays NAME.pieces say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

import numpy as np


class _Hidden(MetaPathFinder):
    """Finds no gptbridge, installed or not."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0].startswith("gptbridge"):
            raise ModuleNotFoundError(f"an exported model must do without {name}")


def main(folder: str, asked: str, answer: str) -> None:
    """Answer one question."""
    sys.meta_path.insert(0, _Hidden())
    sys.path.insert(0, folder)
    from model import Model

    model = Model(Path(folder))
    questions = np.load(asked)
    answers = {}
    for name in [name for name in questions.files if "." not in name]:
        past, found = None, []
        for piece in np.split(questions[name], np.cumsum(questions[f"{name}.pieces"])[:-1], axis=1):
            logits, past = model.feed(piece, past)
            found.append(logits)
        answers[name] = np.concatenate(found, axis=1)
    np.savez(answer, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
