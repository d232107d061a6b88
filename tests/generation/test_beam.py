"""Beam search: its ids are Hugging Face's; groups against the definition, written down anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptbridge.rules.decoding import log_softmax
from gptbridge_specs.generation import GenerationSpec
from tests.generation.models import Table, ask, through_engine

V = 40
END = 7


class HuggingFace:
    """Hugging Face's model behind the engine: no cache, one row at a time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # many processes share few cores
        torch.manual_seed(3)
        config = GPT2Config(
            vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5,
            bos_token_id=END, eos_token_id=END, pad_token_id=0,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()
        end = self.model.transformer.wte.weight.data[END]
        self.model.transformer.ln_f.bias.data += 4 * end / (end @ end)  # texts end, now and then

    def decoder(self, rows: int, capacity: int) -> Any:
        table = Table(V)
        table.logits_after = self._logits_after  # type: ignore[method-assign, assignment]
        return table.decoder(rows, capacity)

    @torch.inference_mode()
    def _logits_after(self, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        found = self.model(torch.tensor([tokens or [0]])).logits[0, -1]
        return np.asarray(found)

    def beams(self, prompt: list[int], **options: Any) -> tuple[list[list[int]], list[float]]:
        out = self.model.generate(
            torch.tensor([prompt]), do_sample=False, output_scores=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip
        texts = [row[len(prompt) :].tolist() for row in out.sequences]
        return texts, out.sequences_scores.tolist()


@pytest.fixture(scope="module")
def peer() -> HuggingFace:
    return HuggingFace()


def up_to_end(tokens: list[int]) -> tuple[int, ...]:
    return tuple(tokens[: tokens.index(END)] if END in tokens else tokens)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"length_penalty": 0.0},
    {"length_penalty": 2.5},
    {"length_penalty": -1.0},
    {"early_stopping": True},
    {"early_stopping": True, "length_penalty": 0.5, "min_new_tokens": 6},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram": 2},
    {"repetition_penalty": 0.8, "no_repeat_ngram": 3, "min_new_tokens": 3},
    {"beams": 1, "num_return_sequences": 1},
    {"beams": 8, "num_return_sequences": 8},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_beams_are_those_of_hugging_face(peer: HuggingFace, options: dict[str, Any]) -> None:
    spec = GenerationSpec(
        **{"strategy": "beam", "beams": 4, "num_return_sequences": 3, "max_new_tokens": 24, **options}
    )
    names = {"beams": "num_beams", "no_repeat_ngram": "no_repeat_ngram_size"}
    given = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 24}
    given |= {names.get(name, name): value for name, value in options.items()}
    ended = 0
    for prompt in ([1, 2, 3], [9], [30, 31, 5, 5, 8]):
        if spec.beams == 1:
            tokens = peer.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
            texts, scores = [tokens[len(prompt) :].tolist()], None
        else:
            texts, scores = peer.beams(prompt, **given)
        (found,) = through_engine(peer, [ask(prompt, spec, end_of_text=END)], window=64)
        assert [each.tokens for each in found] == [up_to_end(text) for text in texts]
        if scores is not None:
            assert [each.score for each in found] == pytest.approx(scores, rel=1e-4)
        ended += sum(each.reason == "end_of_text" for each in found)
    assert ended, "no text ends: weak"


def grouped(model: HuggingFace, prompt: list[int], spec: GenerationSpec) -> list[tuple[int, ...]]:
    """Diverse beam search as Vijayakumar et al. define it, without caches, for texts of full length."""
    size = spec.beams // spec.beam_groups
    groups: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(spec.beam_groups)]
    for _ in range(spec.max_new_tokens):
        taken = np.zeros(V)
        for number, group in enumerate(groups):
            longer = []
            for total, tokens in group:
                shares = log_softmax(model._logits_after([*prompt, *tokens]).astype(np.float64))
                shares = shares - spec.diversity_penalty * taken
                longer += [(total + float(shares[token]), (*tokens, token)) for token in range(V)]
            groups[number] = sorted(longer, reverse=True)[:size]
            for _, tokens in groups[number]:
                taken[tokens[-1]] += 1
    every = sorted((text for group in groups for text in group), reverse=True)
    return [tokens for _, tokens in every[: spec.num_return_sequences]]


def test_groups_are_as_defined(peer: HuggingFace) -> None:
    spec = GenerationSpec(
        strategy="beam",
        beams=6,
        beam_groups=3,
        diversity_penalty=0.9,
        num_return_sequences=6,
        max_new_tokens=9,
    )
    plain = spec.model_copy(update={"beam_groups": 1, "diversity_penalty": 0.0})
    for prompt in ([1, 2, 3], [9]):
        (found,) = through_engine(peer, [ask(prompt, spec, end_of_text=None)], window=64)
        assert [each.tokens for each in found] == grouped(peer, prompt, spec)
        (other,) = through_engine(peer, [ask(prompt, plain, end_of_text=None)], window=64)
        assert [each.tokens for each in found] != [each.tokens for each in other], "groups change nothing"
