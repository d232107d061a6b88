"""From the fields of a record to a row of tokens, and which of its positions count in the loss.

A text to go on with keeps the tokens that it was given: all of a continuation counts, from its second token
to the separator; of a pair the target and the separator do, and the source with records.prompt_loss. These
are ModelScope's positions, of a row that is cut too. A class counts at the last token of its text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import UsageError
from gptbridge.finetuning.lines import LABELS, BadRecord, Fields, number_in
from gptbridge_specs import RunSpec

_FIELD = re.compile(r"\{(\w+)\}")
# Alpaca's two prompts, as they were published: with and without an input.
_ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens to read, the token, class or value to say at each, and which positions [start, stop) count."""

    inputs: Sequence[int]
    labels: Sequence[float]
    start: int
    stop: int


class Rows:
    """Makes the rows of one run. BadRecord for a record that cannot be one."""

    def __init__(self, spec: RunSpec, tokenizer: Tokenizer) -> None:
        self._spec = spec
        self._records = spec.task.records
        self._tokenizer = tokenizer
        self._pairs: bool | None = None  # what the records before have been
        self._make: Callable[[Fields], Row] = self._of_class
        if spec.task.name == "instruction":
            self._separator = separator_of(spec, tokenizer)
            self._make = self._of_text
        else:
            self._classes = _classes(spec)

    def of(self, fields: Fields) -> Row:
        """Return the row of a record."""
        return self._make(fields)

    def _of_text(self, fields: Fields) -> Row:
        source, target = self.texts(fields)
        if self._pairs not in (None, target is not None):
            kinds = ("a source alone", "a source and a target")
            raise BadRecord(f"has {kinds[target is not None]}, those before it {kinds[self._pairs or 0]}")
        first = self._encoded(source, "source")
        ids = [*first, *(self._encoded(target, "target") if target else []), self._separator]
        most = self._spec.training.seq_length + 1
        if len(ids) > most and self._records.too_long == "refuse":
            raise BadRecord(f"{len(ids)} tokens, more than training.seq_length + 1 = {most}")
        if target is None:
            start, stop = 0, min(len(first), most)
        else:
            start, stop = 0 if self._records.prompt_loss else len(first) - 1, min(len(ids), most) - 1
        if start >= min(stop, most - 1):
            raise BadRecord(f"its source alone has {len(first)} tokens, and the row {most}: nothing counts")
        self._pairs = target is not None
        ids = ids[:most]
        return Row(ids[:-1], ids[1:], start, min(stop, len(ids) - 1))

    def _of_class(self, fields: Fields) -> Row:
        if self._records.format == "mindrecord":
            ids, label = _tokenized(fields, self._spec.model.vocab_size)
        else:
            ids = self._encoded(_text(self._records.source, _pair_of(fields), fields), "text")
            label = _filled(self._records.target or "{label}", fields, (str, int, float)).strip()
        most = self._spec.training.seq_length
        if len(ids) > most and self._records.too_long == "refuse":
            raise BadRecord(f"{len(ids)} tokens, more than training.seq_length = {most}")
        ids = ids[:most]
        return Row(ids, [self._wanted(label)] * len(ids), len(ids) - 1, len(ids))

    def _wanted(self, label: str) -> float:
        """Return the number of a class, or a value that is learned."""
        number = self._classes.get(label) if self._classes else number_in(label)
        if number is None:
            kind, allowed = (
                ("class", ", ".join(list(self._classes)[:8])) if self._classes else ("value", "numbers")
            )
            raise BadRecord(f"its {kind} is {label[:40]!r}, none of {allowed}")
        return number

    def texts(self, fields: Fields) -> tuple[str, str | None]:
        """Return source and target; no target where the record has not its fields."""
        records = self._records
        if records.format == "alpaca":
            prompt = _ALPACA if fields.get("input") else _ALPACA_ALONE
            return _text(records.source, prompt, fields), _text(records.target, "{output}", fields)
        names = _FIELD.findall(records.target or "{tgt_txt}")
        target = _text(records.target, "{tgt_txt}", fields) if all(name in fields for name in names) else None
        return _text(records.source, "{src_txt}", fields), target

    def _encoded(self, text: str, what: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).tolist()
        except UnicodeEncodeError as error:
            raise BadRecord(f"its {what} holds a lone surrogate, which is no text") from error
        if not ids and what != "target":
            raise BadRecord(f"its {what} is empty")
        if ids and max(ids) >= self._spec.model.vocab_size:
            raise BadRecord(f"token {max(ids)} is beyond model.vocab_size={self._spec.model.vocab_size}")
        return ids


def _tokenized(fields: Fields, vocab_size: int) -> tuple[list[int], str]:
    """Return the tokens of a row of MindRecord, without its padding, and its class."""
    ids, labels = fields["input_ids"], fields.get("labels", ())
    mask = fields.get("attention_mask", np.ones_like(ids))
    length = int(mask.sum())
    if len(mask) != len(ids) or not length or (mask != (np.arange(len(mask)) < length)).any():
        raise BadRecord("its attention_mask is not 1 for its tokens and 0 for the padding after them")
    if len(labels) != 1:
        raise BadRecord(f"{len(labels)} labels, not one")
    if not 0 <= ids[:length].min() <= ids[:length].max() < vocab_size:
        raise BadRecord(f"a token that is not 0 to model.vocab_size - 1 = {vocab_size - 1}")
    return ids[:length].tolist(), str(int(labels[0]))


def _text(template: str | None, usual: str, fields: Fields) -> str:
    """Return a user's template filled, in which numbers are texts too; else the usual one, of texts alone."""
    return _filled(template, fields, (str, int)) if template else _filled(usual, fields, (str,))


def _filled(template: str, fields: Fields, kinds: tuple[type, ...]) -> str:
    """Return a template with the fields of a record in the places of their names."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in fields:
            raise BadRecord(f"no field {name!r}")
        found = fields[name]
        if not isinstance(found, kinds) or isinstance(found, bool):
            raise BadRecord(f"{name} is {str(found)[:40]!r}, not a text")
        return str(found)

    return _FIELD.sub(value, template)


def _pair_of(fields: Fields) -> str:
    """Return the template of a text, or of two without anything between, as PaddleNLP and FleetX have it."""
    return "{text}{text_pair}" if "text_pair" in fields else "{text}"


def _classes(spec: RunSpec) -> Mapping[str, int]:
    """Return the number of each class by what a record calls it; none where values are learned."""
    records = spec.task.records
    if spec.task.regression and not (records.labels or LABELS.get(records.format)):
        return {}
    return {name: number for number, name in enumerate(class_names(spec))}


def class_names(spec: RunSpec) -> Sequence[str]:
    """Return what records call the classes, in the order of their numbers; UsageError for another count."""
    count, records = spec.task.num_labels or 1, spec.task.records
    if records.format == "sts-b":
        raise UsageError(f"{count}: {records.format} has one value", where="task.num_labels", allowed="1")
    names = records.labels or LABELS.get(records.format) or [str(number) for number in range(count)]
    if len(names) != count:
        problem = f"{count}, but there are {len(names)} classes: {', '.join(names)}"
        raise UsageError(problem, where="task.num_labels")
    return names


def separator_of(spec: RunSpec, tokenizer: Tokenizer) -> int:
    """Return the token that ends a record; UsageError where the tokenizer has none."""
    asked = spec.task.records.separator
    found: int | None = getattr(tokenizer, "separator", tokenizer.end_of_text) if asked is None else asked
    if found is None or found >= spec.model.vocab_size:
        problem = "the tokenizer has no end-of-text token" if found is None else f"{found} is no token"
        raise UsageError(problem, where="task.records.separator", allowed="a token that ends a record")
    return found
