"""Continue texts with the model in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.state import TrainingState
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.generation.advice import advise, length_advice, parts_used
from gptbridge.generation.engine import Engine
from gptbridge.generation.requests import Ending, Reason, Request, Written, request
from gptbridge.generation.texts import Stream, Texts
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import (
    ONE,
    Devices,
    open_model,
    reading_spec,
    run_state,
    run_tokenizer,
    trained_length,
    unknown_tokens,
)
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import ModelSpec, RunSpec

Tell = Callable[[str], None]
ROWS = 8  # texts that are continued at once, unless more are asked for


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str  # cut before the stop string that ended it
    tokens: tuple[int, ...]  # without the end-of-text or stop token that ended them
    log_probs: tuple[float, ...]  # the model's, of each token, before temperature and all else
    reason: Reason  # of the end: "end_of_text", "stop" or "length"
    score: float | None = None  # beam search: the sum of log-probabilities by length


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of a text that is being written; with the last piece comes the reason of the end."""

    prompt: int  # its number, from 0
    sequence: int  # which of the prompt's texts
    text: (
        str  # the pieces of a text together are the whole; often empty, for characters and stops may be long
    )
    token: int | None = None
    log_prob: float | None = None
    reason: Reason | None = None


OnPiece = Callable[[Piece], None]


def unheard(piece: Piece) -> None:
    """Hear of no piece."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A model that is open to continue texts, with what it needs to know of them."""

    model: LanguageModel
    spec: RunSpec
    tokenizer: Tokenizer
    window: int  # tokens that the model sees at the most
    warn: Tell
    rows: int

    def write(self, prompts: Sequence[str], on_piece: OnPiece = unheard) -> list[Continuation]:
        """Continue each prompt, in `num_return_sequences` texts each; `on_piece` hears of them as they grow.

        UsageError for a prompt that cannot be encoded, and one that is too long where those are refused.
        """
        texts = Texts(self.tokenizer, self.spec.generation.stop)
        contexts = []
        for context, warning in _contexts(prompts, self.tokenizer, self.spec, self.window):
            contexts.append(context)
            if warning:
                self.warn(warning)
        streams = [[Stream(texts) for _ in range(self._count)] for _ in prompts]

        def hear(prompt: int, sequence: int, token: int, log_prob: float) -> None:
            on_piece(Piece(prompt, sequence, streams[prompt][sequence].add(token), token, log_prob))

        requests = [
            self._request(context, texts, partial(hear, number)) for number, context in enumerate(contexts)
        ]
        numbers = {id(each): number for number, each in enumerate(requests)}
        continued: list[list[Continuation]] = [[] for _ in prompts]
        for ended in self._ended(requests):
            number = numbers[id(ended)]
            for sequence, written in enumerate(ended.results()):
                whole = _continuation(prompts[number], texts, written)
                continued[number].append(whole)
                rest = streams[number][sequence].end(whole.text)
                on_piece(Piece(number, sequence, rest, reason=whole.reason))
        return [each for of_prompt in continued for each in of_prompt]

    @property
    def _count(self) -> int:
        return self.spec.generation.num_return_sequences

    def _request(
        self, context: Sequence[int], texts: Texts, hear: Callable[[int, int, float], None]
    ) -> Request:
        spec = self.spec.generation
        room = spec.max_length - len(context) if spec.max_length else spec.max_new_tokens
        separator: int | None = getattr(
            self.tokenizer, "separator", None
        )  # ends a record, as it does in training
        stops = spec.stop_tokens if separator is None else (*spec.stop_tokens, separator)
        ending = Ending(min(spec.max_new_tokens, room), self.tokenizer.end_of_text, stops, texts.stopped)
        return request(context, spec, ending, hear)

    def _ended(self, requests: Sequence[Request]) -> Iterator[Request]:
        widths = [each.width for each in requests]
        longest = max((len(each.prompt) for each in requests), default=0)
        engine = Engine(
            self.model,
            rows=max(min(self.rows, sum(widths)), *widths, 1),
            window=self.window,
            vocab_size=min(self.tokenizer.vocab_size, self.spec.model.vocab_size),
            capacity=longest + self.spec.generation.max_new_tokens,
        )
        for each in requests:
            engine.submit(each)
        while engine.busy:
            yield from engine.step()


def _continuation(prompt: str, texts: Texts, written: Written) -> Continuation:
    text = texts.whole(written.tokens)
    return Continuation(prompt, text, written.tokens, written.log_probs, written.reason, written.score)


@contextmanager
def open_writer(
    checkpoint: Path,
    *,
    backend: str,
    hints: Hints,
    tokenizer: str | None,
    overrides: Sequence[str],
    rows: int,
    warn: Tell,
    note: Tell,
    first: Sequence[str] = (),
    devices: Devices = ONE,
) -> Iterator[Writer]:
    """Open the model in `checkpoint`, a run folder or a checkpoint of any dialect, to continue texts.

    An adapter beside the weights is added to them. `tokenizer` is a folder or `byte`; None for the one that
    lies beside the weights. `overrides` set fields of the spec, such as generation.top_k=50; without them
    the decoding is the run's own and computes in fp32. At most `rows` texts are continued at once. `warn`
    hears of a damaged checkpoint that is passed over, of what was taken for granted, a prompt longer than
    the model's window and an override that changes nothing; `note` of an adapter that is used and of
    tokens that the tokenizer lacks. The prompts in `first` are looked at before the weights are.
    BadInput for a damaged checkpoint, a classifier or a tokenizer that is not the run's, UsageError for a
    bad override, hint or prompt.
    """
    plugin = load_backend(backend)
    with open_checkpoint(locate(checkpoint, warn), hints) as opened:
        opened.require_language_head()
        opened.merged()  # refused without LoRA's alpha, before anything is said
        state = run_state(opened)
        spec = _spec(opened.model, state, overrides, devices)
        words = run_tokenizer(opened, state, tokenizer)
        _require_known(spec.generation.stop_tokens, words, spec.model)
        window = _window(spec, trained_length(opened, state))
        for message in (*opened.warnings, *opened.assumed, *advise(spec, overrides)):
            warn(message)
        for message in _notes(opened, words, state):
            note(message)
        list(_contexts(first, words, spec, window))
        with open_model(spec, plugin, opened, devices) as model:
            yield Writer(model, spec, words, window, warn, rows)


def _notes(opened: Opened, tokenizer: Tokenizer, state: TrainingState | None) -> Iterator[str]:
    """Yield what is used beside the weights, and how many tokens are never chosen; a run's own are known."""
    yield from parts_used(opened)
    if state is None and (unknown := unknown_tokens(tokenizer, opened.model)):
        yield f"{unknown}, and never chosen"


def visible(text: str) -> str:
    """Return `text` with control characters escaped, but for line ends and tabs: fit for a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _contexts(
    prompts: Sequence[str], tokenizer: Tokenizer, spec: RunSpec, window: int
) -> Iterator[tuple[list[int], str | None]]:
    """Yield the tokens of each prompt, and what to warn of."""
    for number, text in enumerate(prompts, start=1):
        context = _encoded(text, tokenizer, spec.model.vocab_size)
        yield context, length_advice(f"prompt {number}", len(context), spec.generation, window)


def _encoded(text: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Return the ids of a prompt; an empty one begins a document."""
    try:
        tokens = [int(i) for i in tokenizer.encode(text)]
    except UnicodeEncodeError as error:
        raise UsageError("is not valid Unicode text", where="prompt") from error
    if not tokens and tokenizer.end_of_text is not None:
        tokens = [tokenizer.end_of_text]
    if not tokens:
        raise UsageError("an empty one needs a tokenizer with an end-of-text token", where="prompt")
    if max(tokens) >= vocab_size:
        raise BadInput(
            f"the tokenizer's token {max(tokens)} is beyond the model's vocabulary of {vocab_size}",
            hint="The tokenizer is that of another model: --tokenizer names one",
        )
    return tokens


def _spec(
    model: ModelSpec, state: TrainingState | None, overrides: Sequence[str], devices: Devices
) -> RunSpec:
    """Return the spec under which a checkpoint is read: decoding as in its run, fp32 unless overridden."""
    content: dict[str, Any] = {"training": {"seq_length": 1}}
    if state is not None:
        content["generation"] = state.spec.generation.model_dump()
    spec = reading_spec(model, content, overrides, devices)
    if spec.model != model:
        raise UsageError("the checkpoint decides the model: -o model.* has no place here", where="-o")
    return spec


def _window(spec: RunSpec, trained: int) -> int:
    """Return how many tokens the model may see: as many as it was trained at, unless another is asked for."""
    positions = spec.model.max_position_embeddings
    asked = spec.generation.window
    if asked is not None and asked > positions:
        raise UsageError(f"{asked} is more than the model's {positions} positions", where="generation.window")
    return asked or trained


def _require_known(tokens: Sequence[int], tokenizer: Tokenizer, model: ModelSpec) -> None:
    """Refuse a stop token that is never chosen."""
    known = min(tokenizer.vocab_size, model.vocab_size)
    for token in tokens:
        if not 0 <= token < known:
            raise UsageError(
                f"{token} is no token of the model",
                where="generation.stop_tokens",
                allowed=f"0 to {known - 1}",
            )
