"""The kit's tests of decoders: rows of any length, fed in any pieces, give the logits of the whole text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.testing import cases
from gptbridge.testing.harness import MODELS, Harness, fill
from gptbridge_specs import ModelSpec

LENGTHS = (3, 9, 1)  # of the rows' prompts
Ids = NDArray[np.int32]


class DecoderTests(Harness):
    """A decoder computes what the model does, token by token; a model without an optimizer has one too."""

    @pytest.mark.parametrize("model", MODELS)
    def test_a_decoder_gives_the_logits_of_the_whole_text(self, model: str) -> None:
        """Rows of unequal length are fed, then grow by one token, then by some, each from its own place."""
        spec = self._spec(model)
        weights = cases.weights(spec.model)
        rows = [row[:length] for row, length in zip(_texts(spec.model.vocab_size), LENGTHS, strict=True)]
        opened = self._plugin().open_model(spec)
        fill(opened, spec.model, weights)
        decoder = opened.decoder(len(rows), spec.model.max_position_embeddings)
        new: Sequence[Ids] = rows
        for more in (1, 3):
            found = decoder.feed(*_padded(new))
            expected = _last_logits(spec.model, weights, rows)
            lone = _last_logits(spec.model, weights, [row[-1:] for row in rows])
            wrong = {"only the last token is seen": {"logits of a decoder": lone}}
            self._compare("logits of a decoder", found, expected, wrong)
            new = [_texts(spec.model.vocab_size)[n][:more] for n in range(len(rows))]
            rows = [np.concatenate((row, more_of_it)) for row, more_of_it in zip(rows, new, strict=True)]
        opened.close()

    @pytest.mark.parametrize("count", [2, 8, 16, 33])
    def test_a_decoder_has_any_number_of_rows(self, count: int) -> None:
        """A framework multiplies few rows and many in ways of their own: each grows by one token."""
        spec = self._spec("gelu_tanh-tied")
        weights = cases.weights(spec.model)
        texts = np.random.default_rng(7).integers(0, spec.model.vocab_size, (count, 6), np.int32)
        rows = [text[: 1 + number % 5] for number, text in enumerate(texts)]
        decoder = self._start(spec, weights).decoder(count, 6)
        decoder.feed(*_padded(rows))
        found = decoder.feed(texts[:, 5:], np.ones(count, np.int32))
        rows = [np.append(row, text[5]) for row, text in zip(rows, texts, strict=True)]
        expected = _last_logits(spec.model, weights, rows)
        name = f"logits of {count} rows"
        wrong = {"every row is the last one": {name: np.tile(expected[-1:], (count, 1))}}
        self._compare(name, found, expected, wrong)

    def test_rows_wait_while_others_grow(self) -> None:
        """One row, some or all grow, by a token or by more; the others keep what they have."""
        spec = self._spec("gelu_tanh-tied")
        weights = cases.weights(spec.model)
        texts = np.random.default_rng(11).integers(0, spec.model.vocab_size, (4, 8), np.int32)
        decoder = self._start(spec, weights).decoder(len(texts), 8)
        held = np.zeros(len(texts), np.int32)
        for turn in ((1, 3, 2, 1), (0, 1, 0, 0), (1, 0, 0, 1), (0, 0, 3, 0), (0, 2, 0, 1), (1, 1, 1, 1)):
            after = held + np.array(turn, np.int32)
            found = decoder.feed(*_padded([texts[n, held[n] : after[n]] for n in range(len(texts))]))
            held, grown = after, np.flatnonzero(turn)
            expected = _last_logits(spec.model, weights, [texts[n, : held[n]] for n in grown])
            others = _last_logits(spec.model, weights, [texts[n - 1, : held[n - 1]] for n in grown])
            name = "logits of the rows that grow"
            self._compare(name, found[grown], expected, {"they are another row's": {name: others}})

    def test_a_decoder_keeps_the_rows_that_are_named(self) -> None:
        """Rows are exchanged, doubled, dropped and begun anew."""
        spec = self._spec("gelu_tanh-tied")
        weights = cases.weights(spec.model)
        trainer = self._start(spec, weights)
        texts = [text[:length] for text, length in zip(_texts(spec.model.vocab_size), (5, 3, 4), strict=True)]
        decoder = trainer.decoder(3, spec.model.max_position_embeddings)
        decoder.feed(*_padded(texts))
        for chosen in ([2, 0], [1, 1, -1, 0]):
            decoder.keep(np.array(chosen, np.int32))
            more = _texts(spec.model.vocab_size)[0][: len(chosen)]
            texts = [
                np.concatenate((texts[row] if row >= 0 else more[:0], more[place : place + 1]))
                for place, row in enumerate(chosen)
            ]
            found = decoder.feed(*_padded([text[-1:] for text in texts]))
            expected = _last_logits(spec.model, weights, texts)
            wrong = {"rows are not exchanged": {"logits after keep": expected[::-1]}}
            self._compare("logits after keep", found, expected, wrong)

    def test_a_decoder_has_a_capacity(self) -> None:
        """A row that outgrows it is refused with a ValueError."""
        spec = self._spec("gelu_tanh-tied")
        decoder = self._start(spec, cases.weights(spec.model)).decoder(1, 4)
        decoder.feed(np.zeros((1, 4), np.int32), np.array([4], np.int32))
        with pytest.raises(ValueError, match="4"):
            decoder.feed(np.zeros((1, 1), np.int32), np.array([1], np.int32))


def _last_logits(model: ModelSpec, weights: cases.Arrays, rows: Sequence[Ids]) -> NDArray[np.float64]:
    """Return the (R, V) logits after each row's last token."""
    return np.stack([reference.logits(model, weights, row[None])[0, -1] for row in rows])


def _texts(vocab_size: int) -> Ids:
    return np.random.default_rng(5).integers(0, vocab_size, (3, 9), np.int32)


def _padded(rows: Sequence[Ids]) -> tuple[Ids, Ids]:
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)
