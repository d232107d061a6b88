"""From a path to a token dataset."""

from __future__ import annotations

from gptbridge.data.corpus import embedded_corpus
from gptbridge.data.tokens import TokenDataset
from gptbridge.errors import BadInput

__all__ = ["TokenDataset", "open_dataset"]


def open_dataset(path: str | None) -> TokenDataset:
    """Open the token dataset at `path`; None: the embedded corpus."""
    if path is None:
        return embedded_corpus()
    raise BadInput("no token dataset", where=path)
