"""The Python door, behind `from gptbridge import train`: plain words and paths in, typed results out.

Each function raises a BridgeError for what a user can mend. What it needs is imported when it is called.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from gptbridge.comparing import Parity, StepProgress
    from gptbridge.data.inspection import DatasetFacts
    from gptbridge.evaluation.result import Evaluation
    from gptbridge.evaluation.scoring import Progress as RowProgress
    from gptbridge.exporting.export import Exported
    from gptbridge.generation.generate import Continuation, OnPiece, Tell, Writer
    from gptbridge.training.events import Observer
    from gptbridge.training.run import Outcome
    from gptbridge.weights.conversion.convert import ByteProgress, Converted
    from gptbridge.weights.conversion.facts import CheckpointFacts
    from gptbridge.weights.opening import Opened
    from gptbridge_specs import ModelSpec, RunSpec

# Fields of a spec by name, such as {"training.max_steps": 20}, or as on the command line: "FIELD=VALUE".
Overrides = Mapping[str, Any] | Sequence[str]


class HintWords(TypedDict, total=False):
    """What to say of a checkpoint that does not say so itself."""

    dialect: str | None  # what wrote it; absent: found by content
    model: str | ModelSpec | None  # a preset or a YAML file
    num_attention_heads: int | None
    strategy_file: str | Path | None  # of ranks, or the folder of them
    lora_alpha: float | None
    base: str | Path | None  # of an adapter in a folder of its own


_HINTS = tuple(HintWords.__annotations__)


class DecodingWords(HintWords, total=False):
    """How texts are continued (`gptbridge_specs.generation` says what each means), and hints.

    What is absent is the run's own, or the default.
    """

    preset: str  # "paddlenlp", "fleetx", "mindformers" or "modelscope": that system's defaults
    strategy: str  # "greedy", "sample" or "beam"
    max_new_tokens: int
    min_new_tokens: int
    max_length: int
    num_return_sequences: int
    temperature: float
    top_k: int
    top_p: float
    top_p_rule: str
    min_p: float
    repetition_penalty: float
    no_repeat_ngram: int
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    beams: int
    beam_groups: int
    diversity_penalty: float
    length_penalty: float
    early_stopping: bool
    seed: int
    window: int  # tokens that the model sees at the most
    long_prompts: str  # "window" or "refuse"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def _silent(message: str) -> None:
    """Drop the message."""


def train(
    spec: str | Path | RunSpec | None = None,
    *,
    backend: str | None = None,
    run: str | Path | None = None,
    resume: str | Path | None = None,
    init_from: str | Path | None = None,
    overrides: Overrides = (),
    observers: Sequence[Observer] = (),
    force: bool = False,
    devices: int | None = None,
    **hints: Unpack[HintWords],
) -> Outcome:
    """Train and return how the run ended; the result's `events()` has the loss of every step.

    `spec` is a preset's name, a YAML file or a RunSpec; None for the spec of the run that is resumed, else
    gpt2-tiny. `run` is the folder, by default runs/NAME. `resume` is "auto" for the newest checkpoint in
    `run`, or the path of a run or checkpoint. `init_from` is a checkpoint of any dialect, for whose hints
    see `HintWords`: it decides the model, and the run begins with its weights. `observers` are called with
    each event. `force` starts a run also where its estimate exceeds the memory at hand. On several `devices`
    of this machine, by default as many as the spec's layout has, the run is as many processes.
    """
    from gptbridge.checkpoint.locating import hints_of
    from gptbridge.training.beginning import Beginning
    from gptbridge.training.launch import train as train_run
    from gptbridge.training.start import Devices, choose_backend, require_data, resolve

    named = str(spec) if isinstance(spec, Path) else spec
    folder = Path(run) if run is not None else None
    beginning = Beginning(Path(init_from), hints_of(**hints)) if init_from is not None else None
    resumed = str(resume) if resume is not None else None
    plan = resolve(named, _lines(overrides), folder, resumed, beginning, Devices(devices))
    require_data(plan, named if isinstance(named, str) else None)
    return train_run(plan, backend=backend or choose_backend(plan), observers=observers, force=force)


def generate(
    checkpoint: str | Path,
    prompts: str | Sequence[str],
    *,
    backend: str | None = None,
    tokenizer: str | Path | None = None,
    overrides: Overrides = (),
    rows: int = 8,
    devices: int | None = None,
    hang_seconds: float = 300.0,
    on_piece: OnPiece | None = None,
    warn: Tell = _warn,
    note: Tell = _silent,
    **words: Unpack[DecodingWords],
) -> list[Continuation]:
    """Continue each prompt with a run's newest checkpoint, or a checkpoint of any dialect.

    The result has `num_return_sequences` texts for each prompt, in order. A text depends on its prompt and
    the words alone, whatever else is continued. `tokenizer` is a folder or "byte"; None for the one beside
    the weights. `rows` texts are continued at once. `on_piece` is called as the texts grow. `words` are
    those of `DecodingWords`, such as strategy="sample", top_k=50. `overrides` set any other field of the
    spec. On several `devices` of this machine, by default as many as parallel.tensor and parallel.pipeline
    say, the model is cut over as many processes; RunFailed names one that does nothing for `hang_seconds`.
    """
    given = [prompts] if isinstance(prompts, str) else prompts
    opened = open_writer(
        checkpoint,
        backend=backend,
        tokenizer=tokenizer,
        overrides=overrides,
        rows=rows,
        devices=devices,
        hang_seconds=hang_seconds,
        prompts=given,
        warn=warn,
        note=note,
        **words,
    )
    with opened as writer:
        return writer.write(given, *(() if on_piece is None else (on_piece,)))


def open_writer(
    checkpoint: str | Path,
    *,
    backend: str | None = None,
    tokenizer: str | Path | None = None,
    overrides: Overrides = (),
    rows: int = 8,
    devices: int | None = None,
    hang_seconds: float = 300.0,
    prompts: Sequence[str] = (),
    warn: Tell = _warn,
    note: Tell = _silent,
    **words: Unpack[DecodingWords],
) -> AbstractContextManager[Writer]:
    """Open a model once, to continue texts many times: the result of `with` has `write(prompts)`.

    The words are those of `generate`; `prompts` are checked before the weights are read.
    """
    from gptbridge.generation import generate as module

    if unknown := words.keys() - DecodingWords.__annotations__.keys():
        raise TypeError(f"generate() has no keyword {min(unknown)!r}: see gptbridge.api.DecodingWords")
    asked = {f"generation.{name}": word for name, word in words.items() if name not in _HINTS}
    if isinstance(stop := words.get("stop"), str):
        asked["generation.stop"] = [stop]  # as text it may look like JSON
    hints = {name: word for name, word in words.items() if name in _HINTS}
    return module.open_writer(
        Path(checkpoint),
        **_reading(backend, tokenizer, (devices, hang_seconds), hints),
        overrides=[*_lines(asked), *_lines(overrides)],
        rows=rows,
        first=prompts,
        warn=warn,
        note=note,
    )


def evaluate(
    checkpoint: str | Path,
    *,
    task: str,
    data: str | Path,
    protocol: str = "strict",
    window: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    logging_interval: int | None = None,
    detokenize: bool | None = None,
    predictions: str | Path | None = None,
    backend: str | None = None,
    tokenizer: str | Path | None = None,
    overrides: Overrides = (),
    devices: int | None = None,
    hang_seconds: float = 300.0,
    warn: Tell = _warn,
    progress: RowProgress = lambda done, rows: None,
    **hints: Unpack[HintWords],
) -> Evaluation:
    """Measure a run's newest checkpoint, or a checkpoint of any dialect, on the file `data`.

    `task` is "perplexity", "cloze", "multiple-choice", "classification" or "instruction"; of the last two
    `predictions` is a file to write. `protocol` is "strict", or the system whose published numbers it
    repeats: what is None is its own. `tokenizer` and `devices` are those of `generate`; `overrides` say how
    to compute.
    """
    from gptbridge.evaluation import evaluate as measuring

    numbers = (window, stride, batch_size, logging_interval, detokenize)
    return measuring.evaluate(
        Path(checkpoint),
        measuring.Asked(task, Path(data), protocol, *numbers, predictions),
        **_reading(backend, tokenizer, (devices, hang_seconds), hints),
        overrides=_lines(overrides),
        warn=warn,
        progress=progress,
    )


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: str,
    variant: str | None = None,
    vocab_size: int | None = None,
    dtype: str | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    merge_lora: bool = False,
    verify: bool | None = None,
    overwrite: bool = False,
    progress: ByteProgress | None = None,
    **hints: Unpack[HintWords],
) -> Converted:
    """Convert a checkpoint of any dialect, or a run's newest, to the dialect `to`, into the folder `output`.

    `verify` compares the logits of source and result; None: where the model is small. DifferentLogits, a
    RunFailed, where they differ: the output is left for inspection.
    """
    from gptbridge.checkpoint.locating import hints_of, locate
    from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint, float_type
    from gptbridge.weights.conversion.output_folder import refuse_output
    from gptbridge.weights.conversion.target import Split
    from gptbridge.weights.conversion.verifying import verified

    notes: list[str] = []
    given, made = Path(source), Path(output)
    refuse_output(made, given, overwrite=overwrite)  # also where that is a run's folder
    located, about = locate(given, notes.append), hints_of(**hints)
    dtype, split = float_type(dtype), Split(tensor_parallel, pipeline_parallel)
    conversion = Conversion(
        located, made, to, about, variant, vocab_size, dtype, split, merge_lora, overwrite
    )
    done = convert_checkpoint(conversion, progress)
    return verified(conversion, replace(done, notes=(*notes, *done.notes)), wanted=verify)


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    format: str,
    dtype: str | None = None,
    tokenizer: str | Path | None = None,
    verify: bool | None = None,
    overwrite: bool = False,
    warn: Tell = _warn,
    **hints: Unpack[HintWords],
) -> Exported:
    """Write a run's newest checkpoint, or a checkpoint of any dialect, for other software to run.

    `format` is "huggingface", "gguf", "onnx", "torch-export", "paddle-inference" or "mindir". The folder
    `output` holds the artefact, its tokenizer, a script that runs it and a card; a process without
    gptbridge computes its logits, and RunFailed, with nothing written, where they are not the
    checkpoint's. `verify` None: where what that takes is installed. `tokenizer` is a folder or "byte".
    """
    from gptbridge.checkpoint.locating import hints_of
    from gptbridge.exporting.export import Export, export_checkpoint

    about = hints_of(**hints)
    words = str(tokenizer) if tokenizer is not None else None
    asked = Export(Path(checkpoint), Path(output), format, about, dtype, words, verify, overwrite)
    return export_checkpoint(asked, warn)


def inspect(path: str | Path, **hints: Unpack[HintWords]) -> CheckpointFacts | DatasetFacts:
    """Return the facts of the checkpoint, run folder or token dataset at `path`; hints are for a checkpoint.

    A dialect that is named makes it a checkpoint, whatever its name looks like; so do the weights in a
    folder, where a .bin beside them may look like tokens.
    """
    from gptbridge.data.dataset import is_dataset
    from gptbridge.data.inspection import inspect_dataset
    from gptbridge.errors import BadInput

    dataset = is_dataset(Path(path)) and not hints.get("dialect")
    if not dataset or Path(path).is_dir():
        try:
            return _checkpoint_facts(Path(path), hints)
        except BadInput:
            if not dataset:
                raise
    return inspect_dataset(str(path))


def _checkpoint_facts(path: Path, hints: HintWords) -> CheckpointFacts:
    from gptbridge.checkpoint.locating import hints_of, locate
    from gptbridge.weights.conversion.facts import checkpoint_facts
    from gptbridge.weights.opening import open_checkpoint as open_located

    notes: list[str] = []
    with open_located(locate(path, notes.append), hints_of(**hints)) as opened:
        facts = checkpoint_facts(opened)
    return replace(facts, path=str(path), warnings=[*notes, *facts.warnings])


def open_checkpoint(path: str | Path, *, warn: Tell = _warn, **hints: Unpack[HintWords]) -> Opened:
    """Open a run's newest checkpoint, or a checkpoint of any dialect; a context manager that closes it.

    The result has the `model`, its weights as `arrays` by canonical name, and the `tokenizer()`.
    """
    from gptbridge.checkpoint.locating import hints_of, locate
    from gptbridge.weights.opening import open_checkpoint as open_located

    return open_located(locate(Path(path), warn), hints_of(**hints))


def parity(
    spec: str | Path | RunSpec = "gpt2-tiny",
    backends: Sequence[str] = ("torch", "paddle", "mindspore"),
    *,
    steps: int = 20,
    tolerance: float = 1e-4,
    overrides: Overrides = (),
    progress: StepProgress = lambda backend, step, loss: None,
) -> Parity:
    """Train one spec on several backends, each in a process of its own, and compare.

    The result's `rows` are the table; its `require()` raises RunFailed for a difference beyond `tolerance`.
    """
    from gptbridge.comparing import compare_backends
    from gptbridge.training.start import spec_of

    named = str(spec) if isinstance(spec, Path) else spec
    run = spec_of(named, _lines(overrides))
    return compare_backends(run, backends, steps=steps, tolerance=tolerance, progress=progress)


def _reading(
    backend: str | None, tokenizer: str | Path | None, on: tuple[int | None, float], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how a checkpoint is opened to be read."""
    from gptbridge.checkpoint.locating import hints_of
    from gptbridge.reading import Devices
    from gptbridge.training.start import choose_backend

    return {
        "backend": backend or choose_backend(),
        "tokenizer": str(tokenizer) if tokenizer is not None else None,
        "devices": Devices(*on),
        "hints": hints_of(**hints),
    }


def _lines(overrides: Overrides) -> list[str]:
    """Return overrides as FIELD=VALUE, as the command line has them."""
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [
        f"{field}={value if isinstance(value, str | Path) else json.dumps(value)}"
        for field, value in overrides.items()
    ]
