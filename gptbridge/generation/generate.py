"""Continue texts with a session: one token a pass, every prompt of the batch at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.reading import Checkpoint, find_checkpoint, open_checkpoint
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.generation.advice import advise
from gptbridge.plugins.backend import load_backend
from gptbridge.rules.decoding import next_token
from gptbridge.session import Session
from gptbridge_specs import RunSpec
from gptbridge_specs.loading import build
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.run import GenerationSpec

# Backends that compile do it once for each length: contexts are padded to powers of two.
_SHORTEST = 32


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]  # without the end-of-text token that ended them
    ended: bool  # by that token, not by max_new_tokens


def generate(
    checkpoint: Path,
    prompts: Sequence[str],
    *,
    backend: str,
    overrides: Sequence[str] = (),
    warn: Callable[[str], None] = lambda message: None,
) -> list[Continuation]:
    """Continue each prompt with the model in `checkpoint`, under its tokenizer.

    `checkpoint` is a run folder, a checkpoint folder or a Hugging Face GPT-2 folder. `overrides`
    set fields of the spec, such as generation.top_k=50; without them the decoding is the run's own
    and computes in fp32. `warn` is told of a damaged checkpoint that is passed over, a prompt longer
    than the model's positions, which is cut from the left, and an override that changes nothing.
    BadInput for a damaged checkpoint, UsageError for a bad override or prompt.
    """
    plugin = load_backend(backend)
    opened = open_checkpoint(find_checkpoint(checkpoint, warn))
    spec = _spec(opened, overrides)
    tokenizer = opened.tokenizer()
    contexts = [_encoded(text, tokenizer, spec.model.vocab_size) for text in prompts]
    for message in advise(spec, overrides, contexts):
        warn(message)
    session, _ = plugin.open(spec)
    with closing(session):
        session.import_weights(opened.weights)
        written = continue_tokens(
            session,
            contexts,
            spec.generation,
            max_positions=spec.model.max_position_embeddings,
            vocab_size=min(tokenizer.vocab_size, spec.model.vocab_size),
            end_of_text=tokenizer.end_of_text,
        )
    longest = spec.generation.max_new_tokens
    return [
        Continuation(prompt, tokenizer.decode(tokens), tuple(tokens), len(tokens) < longest)
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def visible(text: str) -> str:
    """Return `text` with control characters escaped, but for line ends and tabs: fit for a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def continue_tokens(
    session: Session,
    contexts: Sequence[Sequence[int]],
    spec: GenerationSpec,
    *,
    max_positions: int,
    vocab_size: int,
    end_of_text: int | None,
) -> list[list[int]]:
    """Return the new tokens of each context, up to `end_of_text` (left out) or spec.max_new_tokens.

    A context longer than the model's positions is cut from the left. Tokens from `vocab_size` on,
    which the tokenizer does not know, are never chosen.
    """
    written: list[list[int]] = [[] for _ in contexts]
    open_rows = set(range(len(contexts)))
    for position in range(spec.max_new_tokens):
        windows = [[*c, *w][-max_positions:] for c, w in zip(contexts, written, strict=True)]
        logits = session.logits(_padded(windows, max_positions), _last_positions(windows))
        for row in sorted(open_rows):
            token = next_token(logits[row, 0, :vocab_size], spec, row=row, position=position)
            if token == end_of_text:
                open_rows.discard(row)
            else:
                written[row].append(token)
        if not open_rows:
            break
    return written


def _padded(windows: Sequence[Sequence[int]], max_positions: int) -> NDArray[np.int32]:
    """Return the windows as (B, T), T a power of two or max_positions; what fills them is never seen.

    Attention is causal, so tokens on the right change nothing on the left.
    """
    longest = max(len(window) for window in windows)
    length = min(max(_SHORTEST, 1 << (longest - 1).bit_length()), max_positions)
    tokens = np.zeros((len(windows), length), np.int32)
    for row, window in zip(tokens, windows, strict=True):
        row[: len(window)] = window
    return tokens


def _last_positions(windows: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return np.array([[len(window) - 1] for window in windows], np.int32)


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
            hint="The tokenizer files beside the weights are those of another model",
        )
    return tokens


def _spec(checkpoint: Checkpoint, overrides: Sequence[str]) -> RunSpec:
    """Return the spec of a session that only reads: no moments, no dropout, fp32 unless overridden."""
    model = checkpoint.model.model_dump()
    content: dict[str, Any] = {
        "model": model,
        "optimizer": {"name": "sgd"},
        "training": {"seq_length": 1, "global_batch_size": 1},
    }
    if checkpoint.state is not None:
        content["generation"] = checkpoint.state.spec.generation.model_dump()
    spec = build(RunSpec, apply_overrides(content, overrides))
    if spec.model != checkpoint.model:
        raise UsageError("the checkpoint decides the model: -o model.* has no place here", where="-o")
    return spec
