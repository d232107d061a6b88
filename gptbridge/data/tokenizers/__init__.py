"""Tokenizers: `load_tokenizer` opens any of them, `Tokenizer` is what they have in common."""

from __future__ import annotations

from gptbridge.data.tokenizers.interface import END_OF_TEXT, Tokenizer
from gptbridge.data.tokenizers.loading import load_tokenizer

__all__ = ["END_OF_TEXT", "Tokenizer", "load_tokenizer"]
