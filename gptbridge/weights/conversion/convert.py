"""Convert a checkpoint from one dialect to another, streaming; the output is complete or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gptbridge.errors import RunFailed, UsageError
from gptbridge.weights.configs.reading import Declared
from gptbridge.weights.conversion.casting import FLOATS
from gptbridge.weights.conversion.companions import write_companions
from gptbridge.weights.conversion.source import Source, open_source
from gptbridge.weights.conversion.streaming import target_bytes
from gptbridge.weights.conversion.target import Split, TargetFile, TargetTensor, plan_files
from gptbridge.weights.conversion.writers import WRITERS, Frame
from gptbridge.weights.formats import Chunks
from gptbridge.weights.layouts.registry import MEGATRON_VERSION, layouts_of, require_dialect
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, the file being written


@dataclass(frozen=True)
class Request:
    """One conversion. None: as the source has it."""

    source: Path
    output: Path
    to: str
    from_: str | None = None
    variant: str | None = None
    given: Declared = field(default_factory=Declared)
    vocab_size: int | None = None
    dtype: str | None = None
    split: Split = field(default_factory=Split)
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


def convert_checkpoint(request: Request, progress: Progress | None = None) -> Converted:
    """Convert; raises BadInput for the source, UsageError for what is asked, RunFailed for the disk."""
    layout = choose_layout(require_dialect(request.to), request.variant, request.split)
    _refuse_existing(request)
    with ExitStack() as stack:
        source = open_source(request.source, stack, dialect=request.from_, given=request.given)
        model = _target_model(source, request)
        dtypes = {name: request.dtype or weight.dtype for name, weight in source.weights.items()}
        labels = source.sizes["c"]
        files = plan_files(request.to, layout, model, dtypes, request.split, num_labels=labels)
        frame = Frame(request.to, layout.variant, model, request.split)
        with _new_folder(request.output) as folder:
            nbytes = _Writing(source, frame, progress).write(files, folder)
            companions = write_companions(source, model, request.to, folder, request.split)
    return Converted(
        source.dialect,
        source.variant,
        model,
        tuple(file.name for file in files),
        nbytes,
        tuple(companions),
    )


def choose_layout(dialect: str, variant: str | None, split: Split) -> Layout:
    """Return the layout to write; UsageError names the variants that there are."""
    if variant is None:
        pipeline = dialect == "fleetx" and split.pipeline > 1
        return layouts_of(dialect)[2 if pipeline else 0]
    versions = range(MEGATRON_VERSION + 1) if dialect == "megatron" else (MEGATRON_VERSION,)
    found = [layout for version in versions for layout in layouts_of(dialect, checkpoint_version=version)]
    layouts = {layout.variant: layout for layout in found if " " not in layout.variant}
    if variant not in layouts:
        raise UsageError(f"{dialect} has no variant {variant!r}", allowed=", ".join(layouts))
    return layouts[variant]


def _target_model(source: Source, request: Request) -> ModelSpec:
    if request.vocab_size is None:
        return source.model
    return source.model.model_copy(update={"vocab_size": request.vocab_size})


def _refuse_existing(request: Request) -> None:
    output = request.output
    if output.resolve() == request.source.resolve():
        raise UsageError("input and output are the same", where=output)
    if output.exists() and not request.overwrite:
        raise UsageError("exists already", where=output, hint="Choose another name, or give --overwrite")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Give a folder that takes the name `path` when the block ends well, and vanishes otherwise."""
    parent = path.absolute().parent
    folder: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=parent))
        yield folder
        folder.chmod(0o777 & ~_umask())
        _remove(path)
        folder.rename(path)
    except OSError as error:
        raise RunFailed(f"cannot be written: {error.strerror}", where=path) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Writing:
    """Writes the planned files of one conversion."""

    def __init__(self, source: Source, frame: Frame, progress: Progress | None) -> None:
        self._source = source
        self._frame = frame
        self._progress = progress
        self._done = 0

    def write(self, files: Sequence[TargetFile], folder: Path) -> int:
        """Write every file under `folder`; return how many bytes their tensors have."""
        total = sum(tensor.info.nbytes for file in files for tensor in file.tensors)
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            for file in files:
                path = folder / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                entries = [(t.info, self._chunks(t, workers, file.name, total)) for t in file.tensors]
                WRITERS[file.format](path, entries, self._frame)
        return total

    def _chunks(self, tensor: TargetTensor, workers: Executor, name: str, total: int) -> Callable[[], Chunks]:
        def chunks() -> Chunks:
            weight = self._source.weights[tensor.canonical]
            for chunk in target_bytes(weight, tensor.box, tensor.axes, tensor.info.dtype, workers):
                yield chunk
                self._done += chunk.nbytes
                if self._progress is not None:
                    self._progress(self._done, total, name)

        return chunks


def float_type(name: str | None) -> str | None:
    """Return the element type that a user names (float32, fp32, bf16, ...); None for None."""
    if name is None or name in FLOATS:
        return name
    if name not in _SHORT:
        raise UsageError(f"there is no element type {name!r}", allowed=", ".join(FLOATS))
    return _SHORT[name]


_SHORT = {"fp64": "float64", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
