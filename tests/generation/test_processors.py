"""Each processor and cut against transformers' own, and a whole request's draws against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptbridge.errors import RunFailed
from gptbridge.rules.decoding import Past, probabilities, processed
from gptbridge_specs.errors import SpecError
from gptbridge_specs.generation import PRESETS, GenerationSpec
from gptbridge_specs.loading import build

V, ENDS = 12, (3, 7)
TOKENS = st.lists(st.integers(0, V - 1), min_size=1, max_size=30)
# Each field, and what is transformers' for a value of it; a text has 4 new tokens.
THEIRS: dict[str, Callable[[float, int], LogitsProcessor]] = {
    "repetition_penalty": lambda value, length: RepetitionPenaltyLogitsProcessor(float(value)),
    "no_repeat_ngram": lambda value, length: NoRepeatNGramLogitsProcessor(int(value)),
    "min_new_tokens": lambda value, length: MinNewTokensLengthLogitsProcessor(
        length - 4, int(value), list(ENDS)
    ),
}


def scores_of(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 3, V).astype(np.float32)


def theirs(processors: list[LogitsProcessor], tokens: list[int], scores: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    found = LogitsProcessorList(processors)(torch.tensor([tokens]), torch.from_numpy(scores.copy())[None])
    return np.asarray(found[0])


@pytest.mark.parametrize(
    ("field", "values"),
    [("repetition_penalty", (1.0, 1.3, 0.7)), ("no_repeat_ngram", (1, 2, 3, 5)), ("min_new_tokens", (4, 5))],
)
@given(seed=st.integers(0, 2**31), tokens=TOKENS.filter(lambda tokens: len(tokens) >= 4))
@settings(max_examples=60)
def test_each_processor_is_transformers(
    field: str, values: tuple[float, ...], seed: int, tokens: list[int]
) -> None:
    scores = scores_of(seed)
    for value in values:
        expected = theirs([THEIRS[field](value, len(tokens))], tokens, scores)
        spec = GenerationSpec.model_validate({field: value})
        if expected.max() == -np.inf:
            with pytest.raises(RunFailed, match="no token is left"):
                processed(scores, spec, Past(tokens, 4, ENDS))
        else:
            np.testing.assert_array_equal(processed(scores, spec, Past(tokens, 4, ENDS)), expected)


def test_each_processor_changes_something() -> None:
    """The negative control of the comparison above."""
    tokens, scores = [1, 2, 9, 1, 2, 1], scores_of(1)
    for field, value in (("repetition_penalty", 1.3), ("no_repeat_ngram", 2), ("min_new_tokens", 5)):
        spec = GenerationSpec.model_validate({field: value})
        assert (processed(scores, spec, Past(tokens, 4, ENDS)) != scores).any(), field
    untouched = processed(scores, GenerationSpec(min_new_tokens=4), Past(tokens, 4, ENDS))
    np.testing.assert_array_equal(untouched, scores)


@given(
    seed=st.integers(0, 2**31),
    tokens=TOKENS,
    penalty=st.floats(0.5, 2),
    temperature=st.floats(0.3, 2),
    top_k=st.integers(1, V),
    top_p=st.floats(0.1, 1),
    min_p=st.floats(0, 0.9),
)
@settings(max_examples=200)
def test_all_together_in_transformers_order(
    seed: int, tokens: list[int], penalty: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    spec = GenerationSpec(
        strategy="sample",
        repetition_penalty=penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    scores = scores_of(seed).astype(np.float64)
    warpers = [
        RepetitionPenaltyLogitsProcessor(penalty),
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p),
    ]
    warped = torch.from_numpy(theirs(warpers, tokens, scores))
    ours = probabilities(processed(scores, spec, Past(tokens)), spec)
    np.testing.assert_allclose(ours / ours.sum(), warped.softmax(-1).numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens=5 is above max_new_tokens=4"),
        ({"num_return_sequences": 2}, "greedy has one text"),
        ({"strategy": "beam", "num_return_sequences": 5}, "exceeds beams=4"),
        ({"strategy": "beam", "beam_groups": 3}, "beam_groups=3 does not divide beams=4"),
        ({"strategy": "beam", "diversity_penalty": 1.0}, "it needs beam_groups above 1"),
        ({"stop": [""]}, "an empty string would end every text at once"),
        (
            {"preset": "megatron"},
            "there is no preset 'megatron'; allowed: paddlenlp, fleetx, mindformers, modelscope",
        ),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"strategy": "beams"}, "Did you mean beam?"),
    ],
)
def test_options_that_cannot_be_are_one_line(fields: dict[str, object], line: str) -> None:
    with pytest.raises(SpecError) as caught:
        build(GenerationSpec, fields)
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_preset_stands_below_what_is_said() -> None:
    assert build(GenerationSpec, {"preset": "fleetx", "top_k": 3}) == GenerationSpec(
        **{**PRESETS["fleetx"], "top_k": 3}
    )
    for name in PRESETS:
        assert GenerationSpec.model_validate(name) == GenerationSpec(**PRESETS[name])
