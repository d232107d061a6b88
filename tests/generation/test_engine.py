"""The engine: what a request is given does not depend on what runs beside it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from gptbridge.data.tokenizers import Tokenizer
from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.generation.generate import Continuation, Writer
from gptbridge.generation.requests import Written
from gptbridge.generation.texts import Stream, Texts
from gptbridge.rules.decoding import Past, log_softmax, next_token
from gptbridge_specs import RunSpec
from gptbridge_specs.generation import GenerationSpec
from tests.generation.models import BYTES, Table, ask, through_engine


def random_request(number: int) -> tuple[list[int], GenerationSpec]:
    stream = random.Random(number)
    prompt = [stream.randrange(256) for _ in range(stream.choice((1, 2, 5, 9, 17, 40)))]
    options: dict[str, object] = {
        "max_new_tokens": stream.randrange(1, 25),
        "repetition_penalty": stream.choice((1.0, 1.2)),
        "no_repeat_ngram": stream.choice((0, 2)),
        "stop_tokens": stream.choice(((), (10, 20, 30))),
        "stop": stream.choice(((), ("a",), ("ab", "\n"))),
    }
    options |= stream.choice(
        (
            {},
            {"strategy": "sample", "seed": number, "top_k": 30, "top_p": 0.9},
            {"strategy": "sample", "num_return_sequences": 3, "min_p": 0.01, "temperature": 1.5},
            {"strategy": "beam", "beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
            {"strategy": "beam", "beams": 6, "beam_groups": 3, "diversity_penalty": 0.7},
        )
    )
    return prompt, GenerationSpec.model_validate(options)


def test_sixty_requests_in_any_order_give_what_each_gives_alone() -> None:
    cases = [random_request(number) for number in range(60)]
    alone = [through_engine(Table(), [ask(*case)], rows=1, window=20)[0] for case in cases]
    assert {each.reason for found in alone for each in found} >= {"length", "stop"}
    for rows, seed in ((1, 0), (5, 1), (8, 2), (64, 3)):
        order = random.Random(seed).sample(range(60), 60)
        model = Table()
        found = through_engine(model, [ask(*cases[number]) for number in order], rows, window=20)
        assert found == [alone[number] for number in order]
        assert model.widest <= max(rows, 6), "more rows than there is room for"
        assert rows < 8 or model.widest > 6, "nothing ran side by side"


def test_another_model_gives_other_texts() -> None:
    """The negative control: the comparison above can tell."""
    case = random_request(3)
    assert through_engine(Table(), [ask(*case)]) != through_engine(Table(seed=1), [ask(*case)])


@pytest.mark.parametrize("window", [160, 6])
def test_sampled_ids_are_those_of_the_logits(window: int) -> None:
    """An independent loop: the model's logits of the last `window` tokens, and one rule."""
    model, prompt = Table(), [72, 105, 33]
    spec = GenerationSpec(strategy="sample", num_return_sequences=2, max_new_tokens=30, top_k=20, seed=9)
    (found,) = through_engine(model, [ask(prompt, spec, end_of_text=None)], window=window)
    for sequence, written in enumerate(found):
        tokens: list[int] = []
        for position in range(30):
            seen = [*prompt, *tokens][-window:]
            logits = model.logits_after(seen)
            tokens.append(next_token(logits, spec, Past((), position), sequence=sequence))
            assert written.log_probs[position] == pytest.approx(log_softmax(logits)[tokens[-1]], abs=1e-6)
        assert written == Written(tuple(tokens), written.log_probs, "length")
    assert found[0].tokens != found[1].tokens


def test_why_a_text_ends() -> None:
    model, spec = Table(), GenerationSpec(max_new_tokens=40)
    ((whole,),) = through_engine(model, [ask([1], spec, end_of_text=None)])
    assert (whole.reason, len(whole.tokens), len(whole.log_probs)) == ("length", 40, 40)
    end = whole.tokens[9]
    first = whole.tokens.index(end)
    ((ended,),) = through_engine(model, [ask([1], spec, end_of_text=end)])
    assert ended == Written(whole.tokens[:first], whole.log_probs[:first], "end_of_text")
    stopping = spec.model_copy(update={"stop_tokens": (end,)})
    ((stopped,),) = through_engine(model, [ask([1], stopping, end_of_text=None)])
    assert stopped == Written(whole.tokens[:first], whole.log_probs[:first], "stop")
    longer = spec.model_copy(update={"min_new_tokens": 20})
    ((least,),) = through_engine(model, [ask([1], longer, end_of_text=end)])
    assert len(least.tokens) >= 20
    assert end not in least.tokens[:20]


def test_tokens_are_told_as_they_come() -> None:
    told: list[tuple[int, int, float]] = []
    spec = GenerationSpec(strategy="sample", num_return_sequences=2, max_new_tokens=5)
    asked = ask([1], spec, end_of_text=None, on_token=lambda *token: told.append(token))
    (found,) = through_engine(Table(), [asked])
    for sequence, written in enumerate(found):
        of_it = [(token, log_prob) for number, token, log_prob in told if number == sequence]
        assert of_it == list(zip(written.tokens, written.log_probs, strict=True))


@pytest.mark.parametrize("stops", [(), ("ß",), ("st", "straße"), ("e🙂",), ("zz",)])
@pytest.mark.parametrize("end", ["", "🙂"])
def test_pieces_are_the_whole_text_and_no_half_character(stops: tuple[str, ...], end: str) -> None:
    """Every byte is a token; what is shown is never taken back, and no stop string is shown."""
    text = f"Die große Straße ist 北京 e🙂 \ufffd {end}"
    texts = Texts(BYTES, stops)
    stream, tokens, shown = Stream(texts), [], ""
    for byte in text.encode():
        tokens.append(byte)
        shown += stream.add(byte)
        assert text.startswith(shown)
        if texts.stopped(tokens):
            break
    whole = texts.whole(tokens)
    assert whole == text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]
    assert shown + stream.end(whole) == whole


def test_what_is_not_utf8_is_shown_in_the_end() -> None:
    texts = Texts(BYTES, ())
    stream = Stream(texts)
    assert [stream.add(byte) for byte in b"a\xff\xe4b"] == ["a", "", "\ufffd", "\ufffdb"]
    unfinished = Stream(texts)
    assert [unfinished.add(byte) for byte in b"a\xf0\x9f"] == ["a", "", ""]
    assert unfinished.end(texts.whole(list(b"a\xf0\x9f"))) == "\ufffd"


def test_stop_strings_over_tokens_are_found_at_once() -> None:
    texts = Texts(BYTES, ("end of it",))
    tokens = list(b"to the end of it all")
    found = [count for count in range(1, len(tokens) + 1) if texts.stopped(tokens[:count])]
    assert found[0] == len(b"to the end of it")
    assert np.all(np.diff(found) == 1)


def test_a_separator_ends_a_text_as_it_ends_a_record() -> None:
    model: Any = Table()
    spec = RunSpec.model_validate({"generation": {"max_new_tokens": 12}})

    class Separated(ByteTokenizer):
        separator = -1

    def written(tokenizer: Tokenizer) -> Continuation:
        (found,) = Writer(model, spec, tokenizer, 160, print, 1).write(["ab"])
        return found

    whole = written(BYTES)
    assert (whole.reason, len(whole.tokens)) == ("length", 12)
    Separated.separator = whole.tokens[5]
    ended = written(Separated())
    assert ended.reason == "stop"
    assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[5])]
