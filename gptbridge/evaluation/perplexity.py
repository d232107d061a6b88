"""Perplexity of a text: windows over its tokens, blocks of them, or records of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gptbridge.errors import BadInput
from gptbridge.evaluation.detokenizer import detokenize
from gptbridge.evaluation.encoding import Encoder, Tokens
from gptbridge.evaluation.protocols import Cleaning, Plan, batched
from gptbridge.evaluation.records import Record, read_records, read_text, text_lines
from gptbridge.evaluation.result import Measures, exp_of
from gptbridge.evaluation.scoring import Job, Row, Scored, target_tokens


def perplexity(path: Path, plan: Plan, encoder: Encoder) -> Job:
    """Return the perplexity of the text in `path`, or of its records, as the plan's protocol has it."""
    if plan.protocol.cut == "records":
        return _mean_job(_record_rows(path, plan, encoder), plan, encoder, {})
    original = read_text(path)
    tokens = encoder.encode(_cleaned(original, plan.cleaning), path)
    counts = {"original_tokens": len(original.strip().split(" ")), "tokens": len(tokens)}
    if plan.protocol.cut == "blocks":
        return _mean_job(_blocks(tokens, plan.window, path), plan, encoder, counts)
    if len(tokens) < 2:
        raise BadInput(f"holds {len(tokens)} tokens: there is nothing to predict", where=path)
    return _windows_job(list(_windows(tokens, plan, encoder)), plan, counts)


def _windows_job(rows: list[Row], plan: Plan, counts: dict[str, int]) -> Job:
    denominator, others, cap = counts["tokens"] - 1, counts["original_tokens"] - 1, plan.protocol.cap
    ratio = denominator / others if others else None

    def measure(scored: Sequence[Scored]) -> Measures:
        loss = plan.total([math.fsum(each.losses) for each in scored]) / denominator
        return Measures(
            {
                "loss": loss,
                "perplexity": exp_of(loss, cap),
                "adjusted_perplexity": None if ratio is None else exp_of(loss * ratio, cap),
                "token_ratio": ratio,
            },
            {
                **counts,
                "windows": len(rows),
                "scored": target_tokens(rows),
                "denominator": denominator,
                "ratio_denominator": others,
            },
        )

    return Job(rows, measure)


def _mean_job(rows: list[Row], plan: Plan, encoder: Encoder, counts: dict[str, int]) -> Job:
    """Return a mean over rows of equal length, all of whose positions count."""
    by_batch = plan.protocol.mean == "batches"
    light = encoder.tokenizer.end_of_text if by_batch else None  # a label that weighs half of another
    weights = [np.where(row.labels == light, 1.0, 2.0) for row in rows]
    batches = list(batched(range(len(rows)), plan.batch_size if by_batch else len(rows)))

    def measure(scored: Sequence[Scored]) -> Measures:
        means = [
            math.fsum(float(scored[n].losses @ weights[n]) for n in batch)
            / math.fsum(float(weights[n].sum()) for n in batch)
            for batch in batches
        ]
        loss = math.fsum(means) / len(means)
        return Measures(
            {"loss": loss, "perplexity": exp_of(loss, plan.protocol.cap)},
            {
                **counts,
                "rows": len(rows),
                "scored": target_tokens(rows),
                "denominator": len(batches) if by_batch else target_tokens(rows),
            },
        )

    return Job(rows, measure)


def _windows(tokens: Tokens, plan: Plan, encoder: Encoder) -> Iterator[Row]:
    """Yield the windows; after the first, the last `stride` positions of each are scored."""
    window, stride, padding = plan.window, plan.stride or plan.window, plan.protocol.padding
    targets = len(tokens) - 1
    if padding == "none":
        count = 1 + max(0, -(-(targets - window) // stride))
        padded, end = tokens, -1
    else:
        count = max(1, 1 + -(-max(targets - stride, 0) // stride))
        end = encoder.end_of_text("pads the last windows")
        padded = np.concatenate([tokens, np.full(window + 1, end, np.int32)])
    for number in range(count):
        begin = number * stride
        piece = padded[begin : begin + window + 1]
        inputs, labels = piece[:-1], piece[1:]
        at = np.arange(window - stride if number else 0, len(inputs), dtype=np.int32)
        if padding == "masked":
            at = at[inputs[at] != end]
        seen = int(at[-1]) + 1 if len(at) else 0
        yield Row(inputs[:seen], labels[at], at)


def _blocks(tokens: Tokens, window: int, path: Path) -> list[Row]:
    count = len(tokens) // window
    if not count or window < 2:
        raise BadInput(
            f"holds {len(tokens)} tokens in its articles but the last: not one block of {window}", where=path
        )
    blocks = tokens[: count * window].reshape(count, window)
    return [_whole(block) for block in blocks]


def _whole(tokens: Tokens) -> Row:
    return Row(tokens[:-1], tokens[1:], np.arange(len(tokens) - 1, dtype=np.int32))


def _record_rows(path: Path, plan: Plan, encoder: Encoder) -> list[Row]:
    is_jsonl = path.name.endswith((".jsonl", ".ndjson", ".json"))
    records = read_records(path) if is_jsonl else list(text_lines(path))
    if not records:
        raise BadInput("holds no record", where=path)
    return [_whole(_record_tokens(record, plan.window, encoder)) for record in records]


def _record_tokens(record: Record, window: int, encoder: Encoder) -> Tokens:
    texts = [record.get("src_txt", "a string")]
    if "tgt_txt" in record.content:
        texts.append(record.get("tgt_txt", "a string"))
    separator = getattr(encoder.tokenizer, "separator", None)
    if separator is None:
        separator = encoder.end_of_text("stands for <sep>")
    parts = [encoder.encode(text, record.where) for text in texts]
    tokens = np.concatenate([*parts, np.array([separator], np.int32)])[:window]
    return np.pad(tokens, (0, window - len(tokens)))


def _cleaned(text: str, cleaning: Cleaning) -> str:
    if cleaning == "none":
        return text
    if cleaning == "wikitext":
        return detokenize(text)
    articles = [[detokenize(line, every_full_stop=True) for line in lines] for lines in _articles(text)]
    return "\n".join(" ".join(lines).strip() for lines in articles).strip().split("\t")[0]


def _articles(text: str) -> Iterator[list[str]]:
    """Yield the lines between headings; what follows the last heading with text before it is left out."""
    lines: list[str] = []
    for raw in text.split("\n"):
        line = raw.strip()
        if line.startswith("=") and line.endswith("="):
            if lines:
                yield lines
            lines = []
        elif line:
            lines.append(line)
