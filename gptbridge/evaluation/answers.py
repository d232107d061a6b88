"""What a model answers to the sources of records, and how near that is to their targets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptbridge.data.tokenizers import Tokenizer
from gptbridge.data.tokenizers.optional import require
from gptbridge.errors import UsageError
from gptbridge.evaluation.recorded import MeasuredRecords, Reading, read_with
from gptbridge.evaluation.result import exp_of
from gptbridge.evaluation.scoring import Row, Scored, Scorer, target_tokens
from gptbridge.files import write_lines
from gptbridge.finetuning.rows import Rows, separator_of
from gptbridge.finetuning.table import read_rows
from gptbridge.generation.generate import Writer
from gptbridge.session import LanguageModel
from gptbridge_specs import RunSpec

Tell = Callable[[str], None]
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_WORDS = re.compile("[a-z0-9]+|[\u3400-\u4dbf\u4e00-\u9fff]")  # rouge-score's own know no Chinese


class Words:
    """A tokenizer of rouge-score: as its own has them, and each Chinese character."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in lower case."""
        return _WORDS.findall(text.lower())


def answer(reading: Reading, warn: Tell) -> MeasuredRecords:
    """Measure the language model of `reading` on its records: loss, and of pairs what it answers.

    UsageError for predictions of what has no answers.
    """
    with read_with(reading, {"name": "instruction"}, warn) as (spec, words, open_it):
        rows = Rows(spec, words)
        read = list(read_rows(reading.data, rows, spec.task.records, warn))
        texts = [rows.texts(fields) for fields, _ in read]
        pairs = [(source, target) for source, target in texts if target is not None]
        if reading.predictions is not None and not pairs:
            raise UsageError("these records have no targets to answer with", where="--predictions")
        if pairs:
            _libraries()
        scored = [
            Row(
                np.array(row.inputs, np.int32),
                np.array(row.labels[row.start : row.stop], np.int32),
                np.arange(row.start, row.stop, dtype=np.int32),
            )
            for _, row in read
        ]
        with open_it() as model:
            room = reading.batch_size * spec.training.seq_length
            losses = Scorer(model, room, spec.model.vocab_size, reading.progress).score(scored, hits=False)
            said = _said(model, spec, words, [source for source, _ in pairs], reading, warn)
    if reading.predictions is not None:
        write_lines(Path(reading.predictions), _lines(pairs, said, losses))
    loss = float(np.concatenate([each.losses for each in losses]).mean())
    counts = {"records": len(read), "tokens": target_tokens(scored)}
    measures: dict[str, float | None] = {"loss": loss, "perplexity": exp_of(loss, None)}
    if pairs:
        measures |= nearness(said, [target for _, target in pairs])
    return MeasuredRecords(measures, counts, spec.training.seq_length, words.identity)


def _said(
    model: LanguageModel,
    spec: RunSpec,
    words: Tokenizer,
    sources: Sequence[str],
    reading: Reading,
    warn: Tell,
) -> list[str]:
    """Return the text that follows each source; a record's separator ends it."""
    generation = spec.generation
    ends = (*generation.stop_tokens, separator_of(spec, words))
    spec = spec.model_copy(update={"generation": generation.model_copy(update={"stop_tokens": ends})})
    window = generation.window or spec.training.seq_length
    written = Writer(model, spec, words, window, warn, reading.batch_size).write(sources)
    return [each.text for each in written[:: generation.num_return_sequences]]


def nearness(said: Sequence[str], wanted: Sequence[str]) -> dict[str, float | None]:
    """Return how near texts are to those that were wanted.

    `exact_match` is the share that is the same but for white space around it; `bleu`, of 100, is sacrebleu's
    of the whole, by characters (`bleu_zh`) where any text wanted is Chinese; the others are the means of
    rouge-score's F.
    """
    bleu, rouge = _libraries()
    chinese = any(map(_HAN.search, wanted))
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = rouge.RougeScorer(list(kinds), tokenizer=Words())
    scores = [scorer.score(target, text) for target, text in zip(wanted, said, strict=True)]
    whole = bleu.corpus_bleu(list(said), [list(wanted)], tokenize="zh" if chinese else "13a")
    same = [text.strip() == target.strip() for text, target in zip(said, wanted, strict=True)]
    return {
        "exact_match": float(np.mean(same)),
        "bleu_zh" if chinese else "bleu": float(whole.score),
        **{kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds},
    }


def _libraries() -> tuple[Any, Any]:
    what = "how near an answer is"
    names = ("sacrebleu", "rouge_score.rouge_scorer")
    bleu, rouge = (require(name, what, extra="metrics") for name in names)
    return bleu, rouge


def _lines(pairs: Sequence[tuple[str, str]], said: Sequence[str], losses: Sequence[Scored]) -> Iterator[str]:
    """Yield a line of JSON for each record."""
    for (source, target), text, scored in zip(pairs, said, losses, strict=True):
        loss = float(scored.losses.mean())
        line = {"source": source, "target": target, "predicted": text, "loss": loss}
        yield json.dumps(line, ensure_ascii=False)
