"""Measure a checkpoint on a file: a task, by a protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.evaluation.answers import answer
from gptbridge.evaluation.choices import multiple_choice
from gptbridge.evaluation.classification import classify
from gptbridge.evaluation.cloze import cloze
from gptbridge.evaluation.encoding import Encoder
from gptbridge.evaluation.perplexity import perplexity
from gptbridge.evaluation.protocols import Plan, Protocol, find_protocol
from gptbridge.evaluation.recorded import MeasuredRecords, Reading
from gptbridge.evaluation.result import Evaluation, Measures
from gptbridge.evaluation.scoring import Job, Progress
from gptbridge.evaluation.subject import Subject, Tell, open_subject, spec_of
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import ONE, Devices
from gptbridge.weights.opening import Hints

TASKS: Mapping[str, Callable[[Path, Plan, Encoder], Job]] = {
    "perplexity": perplexity,
    "cloze": cloze,
    "multiple-choice": multiple_choice,
}
OF_RECORDS: Mapping[str, Callable[[Reading, Tell], MeasuredRecords]] = {
    "classification": classify,
    "instruction": answer,
}
_LOGGING_INTERVAL = 10
_RECORDS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure, and the numbers that are not to be the protocol's own, which None stands for."""

    task: str
    data: Path
    protocol: str = "strict"
    window: int | None = None
    stride: int | None = None
    batch_size: int | None = None
    logging_interval: int | None = None
    detokenize: bool | None = None
    predictions: str | Path | None = None  # a file to write, of what is measured on records


def evaluate(
    checkpoint: Path,
    asked: Asked,
    *,
    backend: str,
    hints: Hints,
    tokenizer: str | None,
    overrides: Sequence[str],
    warn: Tell,
    progress: Progress,
    devices: Devices = ONE,
) -> Evaluation:
    """Measure the model in `checkpoint`, a run folder or a checkpoint of any dialect, on a file.

    `tokenizer` is a folder or `byte`; None for the one that lies beside the weights. `overrides` say how to
    compute. `warn` hears of a damaged checkpoint that is passed over and of what was taken for granted.
    BadInput for a file, checkpoint or tokenizer that does not fit, UsageError for options that do not.
    """
    if asked.task in OF_RECORDS:
        words = {"backend": backend, "hints": hints, "tokenizer": tokenizer, "overrides": overrides}
        return _of_records(asked, checkpoint, warn, **words, progress=progress, devices=devices)
    protocol = _protocol(asked)
    load_backend(backend)  # one that is not there is named before anything is read
    with open_subject(checkpoint, hints, tokenizer, warn) as subject:
        plan = _plan(asked, protocol, subject)
        spec_of(subject.model, plan.window, plan.batch_size, overrides, devices)
        encoder = Encoder(subject.tokenizer, subject.model.vocab_size, protocol.special_tokens)
        job = TASKS[asked.task](asked.data, plan, encoder)
        sizes = plan.window, plan.batch_size
        with subject.scorer(backend, *sizes, overrides, progress, devices) as scorer:
            found = job.measure(scorer.score(job.rows, hits=job.hits))
        identity = subject.tokenizer.identity
    return _evaluation(asked, plan, found, checkpoint=str(checkpoint), backend=backend, tokenizer=identity)


def _of_records(asked: Asked, checkpoint: Path, warn: Tell, **words: Any) -> Evaluation:
    """Measure a model on records of its own kind, which know no protocol."""
    useless = {
        "--protocol": asked.protocol != "strict",
        "--stride": asked.stride is not None,
        "--detokenize": asked.detokenize is not None,
        "--logging-interval": asked.logging_interval is not None,
    }
    for option, found in useless.items():
        if found:
            raise UsageError(f"has no place in {asked.task}", where=option)
    reading = Reading(
        checkpoint,
        asked.data,
        window=asked.window,
        batch_size=asked.batch_size or _RECORDS_AT_ONCE,
        predictions=asked.predictions,
        **words,
    )
    done = OF_RECORDS[asked.task](reading, warn)
    return Evaluation(
        task=asked.task,
        protocol=asked.protocol,
        checkpoint=str(checkpoint),
        backend=reading.backend,
        data=str(asked.data),
        tokenizer=done.tokenizer,
        window=done.window,
        stride=None,
        batch_size=reading.batch_size,
        logging_interval=None,
        detokenizer="none",
        measures=done.measures,
        counts=done.counts,
        quirks=(),
    )


def _evaluation(asked: Asked, plan: Plan, found: Measures, **where: str) -> Evaluation:
    return Evaluation(
        task=asked.task,
        protocol=plan.protocol.name,
        data=str(asked.data),
        window=plan.window,
        stride=plan.stride,
        batch_size=plan.batch_size,
        logging_interval=plan.logging_interval,
        detokenizer=plan.cleaning,
        measures=found.measures,
        counts=found.counts,
        quirks=plan.protocol.quirks[asked.task],
        **where,
    )


def _protocol(asked: Asked) -> Protocol:
    """Return the protocol that is asked for. UsageError for options that it has no use for."""
    if asked.task not in TASKS:
        allowed = ", ".join((*TASKS, *OF_RECORDS))
        raise UsageError(f"no task {asked.task!r}", where="--task", allowed=allowed)
    if asked.predictions is not None:
        raise UsageError(f"has no place in {asked.task}", where="--predictions")
    protocol = find_protocol(asked.protocol, asked.task)
    windows = asked.task == "perplexity" and protocol.cut == "windows"
    useless = {
        "--stride": asked.stride is not None and not windows,
        "--detokenize": asked.detokenize is not None and not windows,
        "--logging-interval": asked.logging_interval is not None and protocol.mean != "log",
    }
    for option, found in useless.items():
        if found:
            raise UsageError(f"has no place in {asked.task} by {protocol.name}", where=option)
    numbers = {
        "--window": asked.window,
        "--stride": asked.stride,
        "--batch-size": asked.batch_size,
        "--logging-interval": asked.logging_interval,
    }
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{number} is too few", where=option, allowed="1 or more")
    return protocol


def _plan(asked: Asked, protocol: Protocol, subject: Subject) -> Plan:
    """Return the protocol with its numbers: the window is as long as the model allows, if that is less."""
    positions = subject.model.max_position_embeddings
    if asked.window is not None and asked.window > positions:
        raise UsageError(f"{asked.window} is more than the model's {positions} positions", where="--window")
    window = asked.window or min(protocol.window or subject.trained_length, positions)
    stride = None
    if asked.task == "perplexity" and protocol.cut == "windows":
        stride = asked.stride or min(protocol.stride or (window + 1) // 2, window)
        if stride > window:
            raise UsageError(f"{stride} is more than the window of {window}", where="--stride")
    cleaning = protocol.cleaning
    if asked.detokenize is not None:
        cleaning = "wikitext" if asked.detokenize else "none"
    return Plan(
        protocol,
        window,
        stride,
        asked.batch_size or protocol.batch_size,
        (asked.logging_interval or _LOGGING_INTERVAL) if protocol.mean == "log" else None,
        cleaning if asked.task == "perplexity" else "none",
    )
