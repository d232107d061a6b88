"""Which of several continuations a model holds for the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptbridge.errors import BadInput
from gptbridge.evaluation.encoding import Encoder
from gptbridge.evaluation.protocols import Plan
from gptbridge.evaluation.records import Record, read_records
from gptbridge.evaluation.result import Measures
from gptbridge.evaluation.scoring import Job, Row, Scored, continuation, target_tokens


def multiple_choice(path: Path, plan: Plan, encoder: Encoder) -> Job:
    """Return how often choice number `label` is the likeliest after `context`, as a whole or by character."""
    rows: list[Row] = []
    questions = []
    for record in read_records(path):
        rows += _rows(record, plan, encoder)
        questions.append((_label(record), np.array([len(choice) for choice in record.content["choices"]])))

    def measure(scored: Sequence[Scored]) -> Measures:
        sums = iter([-math.fsum(each.losses) for each in scored])
        right = np.zeros(2, np.int64)
        for label, lengths in questions:
            scores = np.array([next(sums) for _ in lengths])
            right += [each.argmax() == label for each in (scores, scores / lengths)]
        plain, normalised = map(int, right)
        return Measures(
            {"accuracy": plain / len(questions), "normalised_accuracy": normalised / len(questions)},
            {
                "correct": plain,
                "normalised_correct": normalised,
                "denominator": len(questions),
                "choices": len(rows),
                "target_tokens": target_tokens(rows),
            },
        )

    return Job(rows, measure)


def _label(record: Record) -> int:
    label: int = record.get("label", "an integer")
    count = len(record.content["choices"])
    if not 0 <= label < count:
        raise BadInput(f"label is {label}", where=record.where, allowed=f"0 to {count - 1}")
    return label


def _rows(record: Record, plan: Plan, encoder: Encoder) -> list[Row]:
    """Return a row for each choice: it comes after the context with a space between, unless one has one.

    White space at the end of the context belongs to the choice: so it is in the tokens of a text.
    """
    context: str = record.get("context", "a string")
    choices: list[str] = record.get("choices", "a list of two or more strings")
    shared = context.rstrip()
    rows = []
    for choice in choices:
        if not choice.strip():
            raise BadInput("a choice is empty", where=record.where)
        between = context[len(shared) :] or ("" if choice[0].isspace() or not shared else " ")
        whole = encoder.encode(shared + between + choice, record.where)
        before = len(encoder.encode(shared, record.where))
        rows.append(continuation(whole[:before], whole[before:], plan.window, encoder, record.where))
    return rows
