"""The model from which every other form is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.weights.conversion.checkpoints import MODEL, random_weights, write_hugging_face


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model in Hugging Face's form."""
    return write_hugging_face(tmp_path_factory.mktemp("hf") / "original", MODEL, random_weights(MODEL))
