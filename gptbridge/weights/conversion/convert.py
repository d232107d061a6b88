"""Convert a checkpoint from one dialect to another, streaming; the output is complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from gptbridge.errors import UsageError
from gptbridge.process.cores import usable_cores
from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.conversion.arrays import canonical_box
from gptbridge.weights.conversion.casting import FLOATS
from gptbridge.weights.conversion.companions import write_companions
from gptbridge.weights.conversion.output_folder import new_folder, refuse_output
from gptbridge.weights.conversion.source import Source, Told, open_source
from gptbridge.weights.conversion.streaming import Stream
from gptbridge.weights.conversion.target import Split, Target, TargetFile, plan_files
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.registry import find_dialect
from gptbridge.weights.formats import TREE_WRITERS, WRITERS, Chunks
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, the file being written


@dataclass(frozen=True)
class Request:
    """One conversion. None: as the source has it."""

    source: Path
    output: Path
    to: str
    told: Told = field(default_factory=Told)
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


def convert_checkpoint(request: Request, progress: Progress | None = None) -> Converted:
    """Convert; raises BadInput for the source, UsageError for what is asked, RunFailed for the disk."""
    dialect = find_dialect(request.to)
    layout = choose_layout(dialect, request.variant, request.split)
    refuse_output(request.output, request.source, overwrite=request.overwrite)
    with ExitStack() as stack:
        source = open_source(request.source, stack, request.told, verify=False)
        source = _merged(source) if request.merge_lora else source
        target = _target(source, dialect, layout, request)
        files = plan_files(target)
        _require_zeros(source, target)
        nbytes = sum(tensor.info.nbytes for file in files for tensor in file.tensors)
        with new_folder(request.output, nbytes) as folder, _verifying(source):
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
        tuple(_notes(source, target, request.told)),
    )


def _notes(source: Source, target: Target, told: Told) -> Iterator[str]:
    """Yield what was taken for granted of the source, and what the target's software does not compute."""
    yield from source.warnings
    model = target.model
    if model.vocab_size < source.sizes["v"]:
        yield f"the embedding keeps {model.vocab_size} of its {source.sizes['v']} rows"
    if not source.config_file and "activation" not in told.model.fields:
        fields = ("layernorm_epsilon",) if source.activation_is_fixed else ("activation", "layernorm_epsilon")
        taken = " and ".join(f"{name}={getattr(model, name)}" for name in fields)
        yield f"no configuration beside the weights: {taken} taken, --model PRESET|FILE says otherwise"
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


def _merged(source: Source) -> Source:
    if source.lora is None:
        raise UsageError("the checkpoint has no LoRA to merge", where=source.path)
    return source.merged()


def _target(source: Source, dialect: Dialect, layout: Layout, request: Request) -> Target:
    model = source.model
    if request.vocab_size is not None:
        model = _with_vocabulary(source, request.vocab_size)
    if source.lora is not None:
        source.lora.require_alpha()
    return Target(
        dialect,
        layout,
        model,
        {name: request.dtype or weight.dtype for name, weight in source.all_weights.items()},
        request.split,
        source.num_labels,
        source.tokens,
        source.lora,
    )


def _require_zeros(source: Source, target: Target) -> None:
    """Refuse a weight that the layout leaves out as zeros, and that is not."""
    for name in filter(target.layout.leaves_out, source.names):
        if source.weights[name].read(canonical_box(name, source), weight_axes(name), "float32").any():
            others = [layout.variant for layout in target.dialect.written_layouts if not layout.zeros]
            raise UsageError(
                f"{name} is not zero, and {target.name} has no place for it",
                where=source.path,
                hint=f"Write another variant: --variant {' or '.join(others)}" if others else None,
            )


def _with_vocabulary(source: Source, rows: int) -> ModelSpec:
    for name, token in source.tokens.items():
        if token >= rows:
            raise UsageError(f"--vocab-size {rows} cuts {name}={token} off", where=source.path)
    try:
        return ModelSpec.model_validate({**source.model.model_dump(), "vocab_size": rows})
    except ValidationError as error:
        raise UsageError(f"--vocab-size {rows}: {error.errors()[0]['msg']}") from error


@contextmanager
def _verifying(source: Source) -> Iterator[None]:
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

    def __init__(self, source: Source, nbytes: int, progress: Progress | None) -> None:
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
