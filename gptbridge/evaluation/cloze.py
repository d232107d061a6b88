"""The last word of a text from all that comes before it, as LAMBADA asks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from gptbridge.errors import BadInput
from gptbridge.evaluation.encoding import Encoder, Tokens
from gptbridge.evaluation.protocols import Plan
from gptbridge.evaluation.records import read_records
from gptbridge.evaluation.result import Measures, exp_of
from gptbridge.evaluation.scoring import Job, Row, Scored, continuation, target_tokens


def cloze(path: Path, plan: Plan, encoder: Encoder) -> Job:
    """Return how many last words of the records' `text` are right in all their tokens, each the likeliest."""
    rows = []
    for record in read_records(path):
        text = record.get("text", "a string")
        words = text.split()
        if not words:
            raise BadInput("text is empty: there is no last word", where=record.where)
        context = encoder.encode(text[: text.rfind(words[-1])].strip(), record.where)
        target = encoder.encode(" " + words[-1], record.where)
        rows.append(_row(context, target, plan, encoder, record.where))

    def measure(scored: Sequence[Scored]) -> Measures:
        right = plan.total([float(each.hits.all()) for each in scored])
        loss = math.fsum(math.fsum(each.losses) for each in scored) / len(rows)
        return Measures(
            {"accuracy": right / len(rows), "word_loss": loss, "word_perplexity": exp_of(loss, None)},
            {"correct": round(right), "denominator": len(rows), "target_tokens": target_tokens(rows)},
        )

    return Job(rows, measure, hits=True)


def _row(context: Tokens, target: Tokens, plan: Plan, encoder: Encoder, where: str) -> Row:
    room = plan.window + 1 - len(target)
    if plan.protocol.right_cut:
        if not len(context):
            return Row(context, context, context)  # nothing to be wrong in
        context = context[: plan.window]
        if len(context) > room:
            raise BadInput(
                f"{len(context)} tokens and {len(target)} to predict: {plan.protocol.name} fails beyond "
                f"{plan.window + 1}",
                where=where,
                hint="--protocol strict takes the last tokens of the context",
            )
    return continuation(context, target, plan.window, encoder, where)
