"""Continue texts with a model: one token a pass, every prompt of the batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.state import TrainingState, is_of_a_run, read_state
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.generation.advice import advise, parts_used
from gptbridge.plan.fitting import require_room_to_open
from gptbridge.plugins.backend import load_backend
from gptbridge.rules.decoding import next_token
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge.weights.shards import load
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.loading import build
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.run import GenerationSpec

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]  # without the end-of-text token that ended them
    ended: bool  # by that token, not by max_new_tokens


@dataclass(frozen=True, slots=True)
class _Work:
    """Contexts to continue, and how."""

    spec: RunSpec
    tokenizer: Tokenizer
    contexts: Sequence[Sequence[int]]
    window: int

    def written_by(self, model: LanguageModel) -> list[list[int]]:
        return continue_tokens(
            model,
            self.contexts,
            self.spec.generation,
            window=self.window,
            vocab_size=min(self.tokenizer.vocab_size, self.spec.model.vocab_size),
            end_of_text=self.tokenizer.end_of_text,
        )


def generate(
    checkpoint: Path,
    prompts: Sequence[str],
    *,
    backend: str,
    hints: Hints,
    tokenizer: str | None,
    overrides: Sequence[str],
    warn: Tell,
    note: Tell,
) -> list[Continuation]:
    """Continue each prompt with the model in `checkpoint`, a run folder or a checkpoint of any dialect.

    An adapter beside the weights is added to them. `tokenizer` is a folder or `byte`; None for the one that
    lies beside the weights. `overrides` set fields of the spec, such as generation.top_k=50; without them
    the decoding is the run's own and computes in fp32. `warn` hears of a damaged checkpoint that is
    passed over, of what was taken for granted, a prompt longer than the model's window, which is cut from
    the left, and an override that changes nothing; `note` of an adapter that is used.
    BadInput for a damaged checkpoint or a classifier, UsageError for a bad override, hint or prompt.
    """
    plugin = load_backend(backend)
    with open_checkpoint(locate(checkpoint, warn), hints) as opened:
        opened.require_language_head()
        weights = opened.merged()
        work = _work(opened, prompts, tokenizer, overrides)
        advice = advise(work.spec, overrides, work.contexts, work.window)
        for message in (*opened.warnings, *opened.assumed, *advice):
            warn(message)
        for message in parts_used(opened):
            note(message)
        require_room_to_open(work.spec, plugin.info)
        with closing(plugin.open_model(work.spec)) as model:
            load(model.shards(), weights.read)
            written = work.written_by(model)
    longest = work.spec.generation.max_new_tokens
    return [
        Continuation(prompt, work.tokenizer.decode(tokens), tuple(tokens), len(tokens) < longest)
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def _work(opened: Opened, prompts: Sequence[str], tokenizer: str | None, overrides: Sequence[str]) -> _Work:
    state = read_state(opened.folder) if is_of_a_run(opened.folder) else None
    spec = _spec(opened.model, state, overrides)
    words = load_tokenizer(tokenizer) if tokenizer is not None else _tokenizer_of(opened)
    contexts = [_encoded(text, words, spec.model.vocab_size) for text in prompts]
    return _Work(spec, words, contexts, _window(spec, state))


def visible(text: str) -> str:
    """Return `text` with control characters escaped, but for line ends and tabs: fit for a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def continue_tokens(
    model: LanguageModel,
    contexts: Sequence[Sequence[int]],
    spec: GenerationSpec,
    *,
    window: int,
    vocab_size: int,
    end_of_text: int | None,
) -> list[list[int]]:
    """Return the new tokens of each context, up to `end_of_text` (left out) or spec.max_new_tokens.

    The model sees the last `window` tokens: a longer context is cut from the left. Tokens from
    `vocab_size` on, which the tokenizer does not know, are never chosen.
    """
    written: list[list[int]] = [[] for _ in contexts]
    rows = list(range(len(contexts)))  # the contexts that are still being continued
    new = [list(context[-window:]) for context in contexts]  # what each of them has to be fed
    decoder = model.decoder(len(rows), min(window, max(map(len, new)) + spec.max_new_tokens))
    for position in range(spec.max_new_tokens):
        logits = decoder.feed(*_padded(new))
        tokens = [
            next_token(scores[:vocab_size], spec, row=row, position=position)
            for row, scores in zip(rows, logits, strict=True)
        ]
        kept = [place for place, token in enumerate(tokens) if token != end_of_text]
        for place in kept:
            written[rows[place]].append(tokens[place])
        rows = [rows[place] for place in kept]
        if not rows:
            break
        seen = [[*contexts[row], *written[row]][-window - 1 :] for row in rows]
        full = [len(tokens) > window for tokens in seen]  # learned positions: the window is read anew
        new = [tokens[1:] if slides else tokens[-1:] for tokens, slides in zip(seen, full, strict=True)]
        if len(kept) < len(tokens) or any(full):
            before = [-1 if slides else place for place, slides in zip(kept, full, strict=True)]
            decoder.keep(np.array(before, np.int32))
    return written


def _padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows as (R, T) with zeros after them, and their lengths (R,)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens, lengths


def _tokenizer_of(opened: Opened) -> Tokenizer:
    """Return the tokenizer beside the weights; BadInput says what to do where there is none."""
    try:
        return opened.tokenizer()
    except BadInput as error:
        error.hint = error.hint or "Name another: --tokenizer FOLDER, or --tokenizer byte"
        raise


def _encoded(text: str, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Return the ids of a prompt; an empty one begins a document."""
    try:
        tokens = [int(i) for i in tokenizer.encode(text)]
    except UnicodeEncodeError as error:
        raise UsageError("is not valid Unicode text", where="--prompt") from error
    if not tokens and tokenizer.end_of_text is not None:
        tokens = [tokenizer.end_of_text]
    if not tokens:
        raise UsageError("an empty prompt needs a tokenizer with an end-of-text token", where="--prompt")
    if max(tokens) >= vocab_size:
        raise BadInput(
            f"the tokenizer's token {max(tokens)} is beyond the model's vocabulary of {vocab_size}",
            hint="The tokenizer is that of another model: --tokenizer names one",
        )
    return tokens


def _spec(model: ModelSpec, state: TrainingState | None, overrides: Sequence[str]) -> RunSpec:
    """Return the spec under which a checkpoint is read: decoding as in its run, fp32 unless overridden."""
    content: dict[str, Any] = {"model": model.model_dump(), "training": {"seq_length": 1}}
    if state is not None:
        content["generation"] = state.spec.generation.model_dump()
    spec = build(RunSpec, apply_overrides(content, overrides))
    if spec.model != model:
        raise UsageError("the checkpoint decides the model: -o model.* has no place here", where="-o")
    return spec


def _window(spec: RunSpec, state: TrainingState | None) -> int:
    """Return how many tokens the model may see: as many as it was trained at, unless another is asked for."""
    positions = spec.model.max_position_embeddings
    asked = spec.generation.window
    if asked is not None and asked > positions:
        raise UsageError(f"{asked} is more than the model's {positions} positions", where="generation.window")
    return asked or (state.spec.training.seq_length if state is not None else positions)
