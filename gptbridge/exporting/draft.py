"""What is about to be exported: an open checkpoint, the element type, the tokenizer that goes along."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.state import TrainingState
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.data.tokenizers.bpe import BpeTokenizer
from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.reading import run_state, run_tokenizer, unknown_tokens
from gptbridge.weights.architecture import count_parameters, weight_axes
from gptbridge.weights.configs.rows import Described
from gptbridge.weights.dialects.huggingface import CONFIG
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.opening import Hints, Opened
from gptbridge_specs import ModelSpec


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is open, its adapter, if it has one, added to the weights."""

    opened: Opened
    adapted: bool  # whether an adapter was added
    dtype: str  # of the matrices that are written
    hints: Hints
    tokenizer: Tokenizer | None
    state: TrainingState | None  # of the run that wrote it, if one did
    without: str = ""  # why there is no tokenizer

    @property
    def model(self) -> ModelSpec:
        """What the model is."""
        return self.opened.model

    def reading(self, dtype: str = "float32") -> Read:
        """Return what reads a slice of a weight; it raises BadInput for a number beyond `dtype`."""
        weights = self.opened.weights
        return lambda name, box: weights[name].read(box, weight_axes(name), dtype)

    @property
    def title(self) -> str:
        """What to call the model, in words that say its size and no folder."""
        return f"GPT of {count_parameters(self.model):,} parameters"

    @property
    def rounds(self) -> bool:
        """Whether the type that is written holds less than what the checkpoint has."""
        stored = {weight.dtype for weight in self.opened.weights.values()}
        return self.dtype != "float32" and (self.adapted or stored != {self.dtype})

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of config.json, as transformers has it."""
        end = {} if self.end_of_text is None else {"eos_token_id": self.end_of_text}
        tokens = {"bos_token_id": end["eos_token_id"], **self.opened.tokens, **end} if end else {}
        computes = {"q8_0": "float32"}.get(self.dtype, self.dtype)
        return CONFIG.write(Described(self.model, tokens=tokens or self.opened.tokens, dtype=computes))

    @property
    def end_of_text(self) -> int | None:
        """The token that ends a text: the tokenizer's, or what the checkpoint's configuration says."""
        by_tokenizer = self.tokenizer.end_of_text if self.tokenizer is not None else None
        return self.opened.tokens.get("eos_token_id") if by_tokenizer is None else by_tokenizer

    @cached_property
    def words(self) -> Mapping[str, bytes]:
        """The files of the tokenizer as gptbridge writes them, which name no folder of anybody's."""
        if self.tokenizer is None:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save(Path(folder))
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        if "tokenizer_config.json" in files:
            longest = {"model_max_length": self.model.max_position_embeddings}
            config = {**json.loads(files["tokenizer_config.json"]), **longest}
            files["tokenizer_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        return files

    @cached_property
    def bpe(self) -> Mapping[str, Any]:
        """The content of tokenizer.json; empty for a tokenizer that is no byte-level BPE."""
        if not isinstance(self.tokenizer, BpeTokenizer | ByteTokenizer):
            return {}
        content: Mapping[str, Any] = json.loads(self.words["tokenizer.json"])
        return content


def draft(opened: Opened, dtype: str, hints: Hints, named: str | None = None) -> tuple[Draft, list[str]]:
    """Return the draft of an export, and what to tell about it; `named` is the tokenizer, None for its own.

    BadInput for a classifier, or a run whose tokenizer is another; UsageError for one that does not fit.
    """
    opened.require_language_head()
    state = run_state(opened)
    notes = [*opened.warnings, *opened.assumed]
    if opened.adapter is not None:
        notes.append("the adapter in the checkpoint is added to the weights")
    tokenizer, without = None, ""
    try:
        tokenizer = run_tokenizer(opened, state, named)
        notes += _unlike(tokenizer, opened, named)
    except BadInput as error:
        if named is not None or state is not None:
            raise
        without = f"{error.where}: {error.problem}"
        notes.append(f"no tokenizer goes along: {error}")
    adapted = opened.adapter is not None
    return Draft(opened.merged(), adapted, dtype, hints, tokenizer, state, without), notes


def _unlike(tokenizer: Tokenizer, opened: Opened, named: str | None) -> Iterator[str]:
    """Yield that a tokenizer has fewer tokens than the model; UsageError for one that has more."""
    tokens, rows = tokenizer.vocab_size, opened.model.vocab_size
    if tokens > rows:
        raise UsageError(
            f"the tokenizer has {tokens} tokens, the model {rows}",
            where=named or opened.folder,
            hint="The tokenizer is that of another model: --tokenizer names one",
        )
    if unknown := unknown_tokens(tokenizer, opened.model):
        yield unknown
