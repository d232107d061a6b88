"""The one opener: a checkpoint of any dialect, any split, as a model and its canonical weights."""

from __future__ import annotations

from gptbridge.weights.opening.hints import Hints, hints_of
from gptbridge.weights.opening.open import open_checkpoint
from gptbridge.weights.opening.opened import Opened

__all__ = ["Hints", "Opened", "hints_of", "open_checkpoint"]
