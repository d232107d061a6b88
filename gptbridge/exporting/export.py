"""Export a checkpoint: the artefact, its tokenizer, a script that runs it, a card; tested, or absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gptbridge.checkpoint.locating import locate
from gptbridge.errors import RunFailed
from gptbridge.exporting.card import model_card
from gptbridge.exporting.draft import Draft, draft
from gptbridge.exporting.formats import (
    EXACT,
    Format,
    absent,
    choose_dtype,
    find_format,
    require_held,
    require_packages,
)
from gptbridge.exporting.selftest import INFER, self_test
from gptbridge.files import sync_file, write_json, write_synced
from gptbridge.plan.fitting import require_room_to_open
from gptbridge.plugins.backend import load_backend
from gptbridge.weights.architecture import count_parameters
from gptbridge.weights.conversion.output_folder import new_folder, refuse_output, umask
from gptbridge.weights.conversion.verdict import Verdict
from gptbridge.weights.opening import Hints, open_checkpoint
from gptbridge_specs import RunSpec
from gptbridge_specs.loading import build

Tell = Callable[[str], None]
_BESIDE = (r"README\.md", r"(infer|model)\.py", r"__pycache__", r"(infer|model)\.cpython-\d+\.pyc")


@dataclass(frozen=True)
class Export:
    """What is to be exported, where to and how. None: as the source has it."""

    source: Path
    output: Path
    format: str
    hints: Hints = field(default_factory=Hints)
    dtype: str | None = None
    tokenizer: str | None = None
    verify: bool | None = None  # None: where what the artefact takes to run is installed
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    format: str
    dtype: str
    parameters: int
    files: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...]  # what the user should know of the result
    verdict: Verdict | None  # None: it was not tested


def export_checkpoint(asked: Export, warn: Tell) -> Exported:
    """Export; raises BadInput for the source, UsageError for what is asked, BackendMissing for packages
    that are not installed, RunFailed for the disk or for logits that are not the checkpoint's.
    """
    form = find_format(asked.format)
    refuse_output(asked.output, asked.source, overwrite=asked.overwrite, names=(*_BESIDE, *form.files))
    with open_checkpoint(locate(asked.source, warn), asked.hints) as opened:
        dtype = choose_dtype(asked.format, asked.dtype, opened)
        made, notes = draft(opened, dtype, asked.hints, asked.tokenizer)
        require_held(asked.format, made)
        write = _writer(asked.format, form, made)
        tested = _is_tested(asked, form)
        with new_folder(asked.output, 4 * count_parameters(made.model)) as folder:
            write(folder)
            _write_companions(asked.format, made, folder)
            tolerance = form.dtypes[made.dtype] if made.rounds else EXACT
            verdict = _tested(made, folder, tolerance) if tested else None
            write_synced(folder / "README.md", model_card(asked.format, form, made, verdict).encode())
            files = _settled(folder)
    if verdict is not None and verdict.tolerance > tolerance:
        notes.append("the weights are such that float32's own rounding moves the logits further than usual")
    if verdict is None:
        needed = f": it needs {' and '.join(absent(form.running))}" if asked.verify is None else ""
        notes.append(f"the artefact was not tested{needed}")
    return Exported(
        asked.format,
        made.dtype,
        count_parameters(made.model),
        tuple(files),
        sum(files.values()),
        (*notes, *form.cautions(made)),
        verdict,
    )


def _writer(name: str, form: Format, made: Draft) -> Callable[[Path], object]:
    """Return what writes the artefact into a folder, everything that can be refused refused."""
    require_packages(name, form.writing)
    if form.write is not None:
        write = form.write
        return lambda folder: write(made, folder)
    backend = load_backend(form.backend)
    spec = _spec(made)
    backend.check(spec)
    require_room_to_open(spec, backend.info)
    return lambda folder: backend.export(spec, name, made.reading(), folder)


def _spec(made: Draft) -> RunSpec:
    """Return the spec under which a framework builds the model: on a CPU, where every machine has one."""
    model = {**made.model.model_dump(), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return build(RunSpec, {"model": model, "training": {"seq_length": 1, "device": "cpu"}})


def _is_tested(asked: Export, form: Format) -> bool:
    if asked.verify:
        require_packages(asked.format, form.running)
    return not absent(form.running) if asked.verify is None else asked.verify


def _write_companions(name: str, made: Draft, folder: Path) -> None:
    """Write the tokenizer, the configuration, and the two files of Python that run the artefact."""
    for file, content in made.words.items():
        write_synced(folder / file, content)
    write_json(folder / "config.json", made.config)
    for file, script in (("infer.py", "infer"), ("model.py", name.replace("-", "_"))):
        write_synced(folder / file, (INFER / f"{script}.py").read_bytes())


def _tested(made: Draft, folder: Path, tolerance: float) -> Verdict:
    verdict = self_test(folder, made.model, made.opened.arrays, tolerance)
    if not verdict.passed:
        raise RunFailed(f"{verdict}: nothing is exported", where=folder)
    return verdict


def _settled(folder: Path) -> dict[str, int]:
    """Return the bytes of each file under `folder`, by its name there; the disk has them.

    Frameworks neither wait for the disk nor heed the umask.
    """
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.chmod(0o666 & ~umask())
        sync_file(path)
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes
