"""Convert a checkpoint from one dialect to another, streaming; the output is complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from gptbridge.errors import UsageError
from gptbridge.process.cores import usable_cores
from gptbridge.weights.canonical.casting import FLOATS
from gptbridge.weights.conversion.companions import write_companions
from gptbridge.weights.conversion.output_folder import new_folder, refuse_output
from gptbridge.weights.conversion.streaming import Stream
from gptbridge.weights.conversion.target import Split, Target, TargetFile, plan_files
from gptbridge.weights.conversion.verdict import Verdict
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.formats import TREE_WRITERS, WRITERS, Chunks
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import ModelSpec

ByteProgress = Callable[[int, int, str], None]  # bytes written, bytes in all, the file being written


@dataclass(frozen=True)
class Conversion:
    """One conversion. None: as the source has it."""

    source: Path
    output: Path
    to: str
    hints: Hints = field(default_factory=Hints)
    variant: str | None = None
    vocab_size: int | None = None
    dtype: str | None = None
    split: Split = field(default_factory=Split)
    merge_lora: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    source_dialect: str
    source_variant: str
    model: ModelSpec
    files: tuple[str, ...]
    nbytes: int
    companions: tuple[str, ...]
    left_out: tuple[str, ...]  # tensors of the source that are no weights
    notes: tuple[str, ...]  # what the user should know of the result
    verdict: Verdict | None = None  # None: the logits were not compared


def convert_checkpoint(conversion: Conversion, progress: ByteProgress | None = None) -> Converted:
    """Convert; raises BadInput for the source, UsageError for what is asked, RunFailed for the disk."""
    dialect = find_dialect(conversion.to)
    layout = choose_layout(dialect, conversion.variant, conversion.split)
    refuse_output(conversion.output, conversion.source, overwrite=conversion.overwrite)
    with open_checkpoint(conversion.source, conversion.hints, verify=False) as opened:
        source = _merged(opened) if conversion.merge_lora else opened
        target = _target(source, dialect, layout, conversion)
        files = plan_files(target)
        _require_zeros(source, target)
        nbytes = sum(tensor.info.nbytes for file in files for tensor in file.tensors)
        with new_folder(conversion.output, nbytes) as folder, _verifying(source):
            _Writing(source, nbytes, progress).write(files, folder)
            companions = write_companions(source, target, files, folder)
    return Converted(
        source.dialect,
        source.variant,
        target.model,
        tuple(file.name for file in files),
        nbytes,
        tuple(companions),
        source.dropped,
        tuple(_notes(source, target)),
    )


def _notes(source: Opened, target: Target) -> Iterator[str]:
    """Yield what was taken for granted of the source, and what the target's software does not compute."""
    yield from source.warnings
    model = target.model
    if model.vocab_size < source.sizes["v"]:
        yield f"the embedding keeps {model.vocab_size} of its {source.sizes['v']} rows"
    yield from source.assumed
    config, name = target.dialect.config, target.dialect.name
    if source.tokens and not config.holds_tokens:
        named = ", ".join(f"{token}={number}" for token, number in source.tokens.items())
        yield f"{name}'s configuration has no place for {named}"
    if missing := config.not_said(model):
        yield f"{name}'s configuration has no place for {', '.join(missing)}"
    for difference in config.not_computed(model):
        yield f"{name} itself always computes {difference}"


def choose_layout(dialect: Dialect, variant: str | None, split: Split) -> Layout:
    """Return the layout to write; UsageError names the variants that there are."""
    layouts = {layout.variant: layout for layout in dialect.written_layouts}
    if variant is not None and variant not in layouts:
        raise UsageError(f"{dialect.name} has no variant {variant!r}", allowed=", ".join(layouts))
    fitting = [layout for layout in layouts.values() if layout.staged in (None, split.pipeline > 1)]
    if not fitting:
        raise UsageError(f"{dialect.name} has no pipeline parallelism", hint="Leave out --pipeline-parallel")
    chosen = fitting[0] if variant is None else layouts[variant]
    if chosen not in fitting:
        raise UsageError(
            f"{dialect.name} has no --variant {variant} with --pipeline-parallel {split.pipeline}",
            hint="Leave out --variant",
        )
    return chosen


def _merged(source: Opened) -> Opened:
    if source.adapter is None:
        raise UsageError("the checkpoint has no LoRA to merge", where=source.path)
    return source.merged()


def _target(source: Opened, dialect: Dialect, layout: Layout, conversion: Conversion) -> Target:
    model = source.model
    if conversion.vocab_size is not None:
        model = _with_vocabulary(source, conversion.vocab_size)
    if source.adapter is not None:
        source.adapter.require_alpha()
    return Target(
        dialect,
        layout,
        model,
        {name: conversion.dtype or weight.dtype for name, weight in source.all_weights.items()},
        conversion.split,
        source.num_labels,
        source.tokens,
        source.adapter,
    )


def _require_zeros(source: Opened, target: Target) -> None:
    """Refuse a weight that the layout leaves out as zeros, and that is not."""
    for name in filter(target.layout.leaves_out, source.names):
        if source.arrays[name].any():
            others = [layout.variant for layout in target.dialect.written_layouts if not layout.zeros]
            raise UsageError(
                f"{name} is not zero, and {target.name} has no place for it",
                where=source.path,
                hint=f"Write another variant: --variant {' or '.join(others)}" if others else None,
            )


def _with_vocabulary(source: Opened, rows: int) -> ModelSpec:
    for name, token in source.tokens.items():
        if token >= rows:
            raise UsageError(f"--vocab-size {rows} cuts {name}={token} off", where=source.path)
    try:
        return ModelSpec.model_validate({**source.model.model_dump(), "vocab_size": rows})
    except ValidationError as error:
        raise UsageError(f"--vocab-size {rows}: {error.errors()[0]['msg']}") from error


@contextmanager
def _verifying(source: Opened) -> Iterator[None]:
    """Check the CRCs that the source's files declare beside the block, and end it with what they say."""
    with ThreadPoolExecutor(1) as pool:
        checks: list[Future[None]] = [pool.submit(file.verify) for file in source.files]
        try:
            yield
            for check in checks:
                check.result()
        finally:
            for check in checks:
                check.cancel()


class _Writing:
    """Writes the planned files of one conversion, `nbytes` of tensors in all."""

    def __init__(self, source: Opened, nbytes: int, progress: ByteProgress | None) -> None:
        self._source = source
        self._nbytes = nbytes
        self._progress = progress
        self._done = 0

    def write(self, files: Sequence[TargetFile], folder: Path) -> None:
        """Write every file under `folder`."""
        with ThreadPoolExecutor(usable_cores()) as workers:
            for file in files:
                path = folder / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                stream = Stream(file.tensors, self._source.all_weights, workers)
                entries = [
                    (tensor.info, partial(self._chunks, stream, number, file.name))
                    for number, tensor in enumerate(file.tensors)
                ]
                if file.tree is None:
                    WRITERS[file.format](path, entries)
                else:
                    TREE_WRITERS[file.format](path, entries, file.tree)

    def _chunks(self, stream: Stream, number: int, name: str) -> Chunks:
        for chunk in stream.chunks(number):
            yield chunk
            self._done += chunk.nbytes
            if self._progress is not None:
                self._progress(self._done, self._nbytes, name)


def float_type(name: str | None) -> str | None:
    """Return the element type that a user names (float32, fp32, bf16, ...); None for None."""
    if name is None or name in FLOATS:
        return name
    if name not in _SHORT:
        raise UsageError(f"there is no element type {name!r}", allowed=", ".join(FLOATS))
    return _SHORT[name]


_SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
