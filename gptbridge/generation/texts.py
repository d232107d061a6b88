"""From tokens to text as it grows: nothing is shown that a later token could change, no stop string is."""

from __future__ import annotations

from collections.abc import Sequence

from gptbridge.data.tokenizers import Tokenizer

_UNKNOWN = "\ufffd"  # stands for bytes that are not UTF-8, perhaps not yet


class Texts:
    """The texts of tokens, cut before the first of the strings in `stops`."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        # A token adds a byte or more; what adds none, and a decoder that wants context, get a little room.
        self._tail = max((len(stop.encode()) for stop in stops), default=0) + 8

    def whole(self, tokens: Sequence[int]) -> str:
        """Return the text of a continuation that has ended."""
        text = self._tokenizer.decode(list(tokens))
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(places, default=len(text))]

    def stopped(self, tokens: Sequence[int]) -> bool:
        """Tell whether a stop string is in the text of the last tokens."""
        if not self._stops:
            return False
        tail = self._tokenizer.decode(list(tokens[-self._tail :]))
        return any(stop in tail for stop in self._stops)

    def certain(self, tokens: Sequence[int]) -> str:
        """Return the text of a continuation that goes on, without what later tokens may complete or cut."""
        text = self.whole(tokens)
        text = text[: len(text) - text.endswith(_UNKNOWN)]
        begun = [size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return text[: len(text) - max(begun, default=0)]


class Stream:
    """One text that is shown piece by piece; the pieces together are the whole."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """Return what the token adds for certain, perhaps nothing."""
        self._tokens.append(token)
        return self._piece(self._texts.certain(self._tokens))

    def end(self, text: str) -> str:
        """Return what is left of the whole text."""
        return self._piece(text)

    def _piece(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece
