"""From what was asked for to a run: which spec, which folder, which checkpoint, which backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.state import TrainingState, read_state
from gptbridge.checkpoint.store import CHECKPOINTS, CheckpointStore
from gptbridge.data.batches import samples_of
from gptbridge.data.dataset import open_dataset
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BackendMissing, BadInput, UsageError, from_checkout
from gptbridge.files import nearby
from gptbridge.finetuning.batches import count_rows
from gptbridge.plugins.backend import load_plugin
from gptbridge.plugins.finding import backend_names, missing_framework
from gptbridge.rules.schedule import learning_rate
from gptbridge.training.beginning import Beginning
from gptbridge.training.run_folder import SPEC_FILE, RunFolder
from gptbridge_specs import RunSpec, load_run
from gptbridge_specs.loading import DEFAULT_RUN, build, recipe_of
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.parallel import laid_out
from gptbridge_specs.run import ParallelSpec

AUTO = "auto"
RUNS = Path("runs")
_UNNAMED = "run"  # the folder in RUNS of a spec that has no name
_PREFERRED = ("torch", "paddle", "mindspore")
# A run that was to stop early goes on to its end, unless it is to stop early again.
_NOT_INHERITED = ("training.stop_after_steps=null",)


@dataclass(frozen=True, slots=True)
class Devices:
    """Which machines a run has. Without `here`, this one takes its share of what the layout needs."""

    here: int | None = None  # devices of this machine, as of each other
    nodes: int = 1
    node_rank: int = 0
    master: str | None = None  # HOST:PORT where the ranks meet, of the first machine
    hang_seconds: float = 300.0  # after which a rank that does nothing is given up

    @property
    def total(self) -> int | None:
        """How many devices there are in all, if that was said."""
        return self.here and self.here * self.nodes

    @property
    def meeting(self) -> tuple[str, int] | None:
        """The host and port where the ranks meet, if that was said; UsageError where it is no such pair."""
        if self.master is None:
            return None
        host, _, port = self.master.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port[:6]) < 1 << 16:
            raise UsageError(
                "is no HOST:PORT with a port from 1 to 65535",
                where=f"--master {self.master}",
                hint="Give the first machine's name and a port that is free there: --master first:29500",
            )
        return host, int(port)

    def processes(self, parallel: ParallelSpec) -> int:
        """Return how many ranks this machine starts; UsageError where machines cannot share them alike."""
        if self.meeting is None and self.nodes > 1:
            raise UsageError("machines need a place to meet", where="--nodes", hint="Give --master HOST:PORT")
        if not 0 <= self.node_rank < self.nodes:
            raise UsageError(f"is not below --nodes {self.nodes}", where=f"--node-rank {self.node_rank}")
        if parallel.world_size % self.nodes:
            problem = f"{parallel.world_size} devices are no whole number for each of {self.nodes} machines"
            raise UsageError(problem, where="--nodes")
        return parallel.world_size // self.nodes


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run that can begin, in the folder `run`.

    `resume` is None for a new run, "auto" for the newest good checkpoint in `run`, or a new run where there
    is none, or the path of a run or checkpoint folder to go on from. A new run has the weights of
    `beginning`, from whose model `spec` was made; without it they are drawn.
    """

    spec: RunSpec
    run: Path
    resume: str | None = None
    beginning: Beginning | None = None
    devices: Devices = field(default_factory=Devices)


def spec_of(named: str | RunSpec, overrides: Sequence[str], devices: int | None = None) -> RunSpec:
    """Return the spec of a preset or YAML file, or the one that is given, with `overrides` applied.

    Of `devices` in all, parallel.data takes what the other dimensions leave, unless it is set.
    """
    if isinstance(named, str):
        return load_run(named, overrides, devices)
    if not overrides and devices is None:
        return named
    return build(
        RunSpec,
        laid_out(apply_overrides(named.model_dump(mode="json", exclude_unset=True), overrides), devices),
    )


_ONE = Devices()


def resolve(
    named: str | RunSpec | None,
    overrides: Sequence[str],
    run: Path | None,
    resume: str | None,
    beginning: Beginning | None = None,
    devices: Devices = _ONE,
) -> RunPlan:
    """Return the spec and folder of a run; `named` is a preset, a YAML file or a spec.

    Without it, a resumed run goes on with its own spec, and a new one takes the default preset.
    Without `run`, a resumed run goes on in its own folder, and a new one takes runs/NAME. A run with a
    `beginning` has its model; one with adapters that goes on has its base model there. BadInput for a
    folder that cannot be looked into.
    """
    source = Path(resume) if resume is not None and resume != AUTO else None
    name = _UNNAMED if isinstance(named, RunSpec) else Path(named or DEFAULT_RUN).stem
    try:
        if source is not None and not source.exists():
            raise BadInput("no such file or folder", where=source, hint=nearby(source))
        folder = run or (source and _run_of(source)) or RUNS / name
        goes_on = source is not None or (resume is not None and (folder / SPEC_FILE).is_file())
        if beginning is not None and (named is not None or not goes_on):
            spec = beginning.spec(named, overrides, devices.total)
        elif named is not None or resume is None:
            spec = _with_vocabulary(spec_of(named or DEFAULT_RUN, overrides, devices.total))
        else:
            spec = _stored_spec(source or folder, overrides, devices.total)
        if beginning is not None and source is not None and spec.task.lora is None:
            raise UsageError(
                "goes on from a run's checkpoint, --init-from begins from weights: give one of them",
                where=f"--resume {resume}",
            )
        return RunPlan(_settled(spec, overrides), folder, resume, beginning, devices)
    except OSError as error:
        raise BadInput(error.strerror or str(error), where=source or run) from error


def require_data(plan: RunPlan, name: str | None) -> None:
    """Raise UsageError where the spec called `name` is a published recipe and names no data."""
    recipe = recipe_of(name) if name and plan.resume is None else None
    if recipe and not plan.spec.data.paths:
        raise UsageError(
            f"{recipe} is a recipe for data of its own, and none is named",
            where="data.path",
            hint="Give -o data.path=PREFIX (gptbridge data prepare makes one); --dry-run shows the run",
        )


def _with_vocabulary(spec: RunSpec) -> RunSpec:
    """Return `spec` with the vocabulary of its data, unless it says one or the data do not."""
    if "vocab_size" in spec.model.model_fields_set or not spec.data.paths:
        return spec
    reads_tokens = spec.task.name == "language_modeling"
    size = open_dataset(spec.data.paths[0]).vocab_size if reads_tokens else None
    if size is None and spec.data.tokenizer is not None:
        size = load_tokenizer(spec.data.tokenizer).vocab_size
    return (
        spec.model_copy(update={"model": spec.model.model_copy(update={"vocab_size": size})})
        if size
        else spec
    )


def _settled(spec: RunSpec, overrides: Sequence[str]) -> RunSpec:
    """Return `spec` with the max_steps of its epochs, if it counts them.

    UsageError for an override of what it decides, and of a batch that is counted in tokens; for a schedule
    that is not there.
    """
    learning_rate(spec.schedule, spec.training.max_steps, 1)
    if tokens := spec.training.global_batch_tokens:
        _refuse_decided("training.global_batch_size", "training.global_batch_tokens", tokens, overrides)
    epochs = spec.training.epochs
    if epochs is None:
        return spec
    _refuse_decided("training.max_steps", "training.epochs", epochs, overrides)
    if spec.task.name == "language_modeling":
        samples = samples_of(spec, open_dataset(spec.data.path), "training").of_epochs(epochs)
    else:
        samples = max(1, round(epochs * count_rows(spec)))
    steps = -(-samples // spec.training.global_batch_size)
    return spec.model_copy(update={"training": spec.training.model_copy(update={"max_steps": steps})})


def _refuse_decided(field: str, by: str, value: float, overrides: Sequence[str]) -> None:
    """Refuse an override of a field that another one decides."""
    if any(text.startswith(f"{field}=") for text in overrides):
        raise UsageError(
            f"{by}={value:g} decides it",
            where=field,
            hint=f"Give -o {by}=N, or -o {by}=null beside it",
        )


def choose_checkpoint(folder: RunFolder, resume: str | None, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint that the run continues from; None for a new run.

    UsageError where that would overwrite a run or the user's own spec.yaml, or mix two histories in one
    folder.
    """
    folder.store.clean()
    if resume == AUTO:
        newest = _newest_of(folder, warn)
        if newest is None:
            _require_no_users_spec(folder)
        return newest
    if resume is None:
        _require_empty(folder)
        return None
    source = Path(resume)
    if os.path.realpath(source) == os.path.realpath(folder.path):
        return _newest_of(folder, warn) or locate(source, warn)
    found = locate(source, warn)
    if found.resolve().parent != folder.store.folder.resolve():
        _require_empty(folder)
        return found
    newest = _newest_of(folder, warn)
    if newest is None or newest.resolve() != found.resolve():
        raise UsageError(
            "the run has newer checkpoints: going on from here would mix two histories",
            where=found,
            hint="Give the new branch its own folder with --run",
        )
    return newest


def choose_backend(plan: RunPlan | None = None) -> str:
    """Return the backend to use where none is named, of those whose framework is installed.

    A resumed run stays with the backend that wrote its newest checkpoint; otherwise the first of
    torch, paddle, mindspore and others.
    """
    before: list[str] = []
    if plan is not None and plan.resume is not None:
        source = plan.run if plan.resume == AUTO else Path(plan.resume)
        before = [state.backend for state in _states_in(source)][:1]
    for name in (*before, *_PREFERRED, *backend_names()):
        if name in backend_names() and missing_framework(load_plugin(name).info) is None:
            return name
    raise BackendMissing(
        "no backend has its framework installed",
        hint=f"gptbridge backends says how to get one. {from_checkout('torch')}",
    )


def likely_backend(plan: RunPlan) -> str:
    """Return the backend that a run would take, or the first there is where none is installed."""
    try:
        return choose_backend(plan)
    except BackendMissing:
        return _PREFERRED[0]


def _newest_of(folder: RunFolder, warn: Callable[[str], None]) -> Path | None:
    newest = folder.store.newest_good(warn)
    if newest is not None:
        folder.store.set_aside_after(newest)
    return newest


def _require_empty(folder: RunFolder) -> None:
    if folder.holds_run():
        raise UsageError(
            "there is a run in this folder already",
            where=folder.path,
            hint="Continue it with --resume auto, or give another folder with --run",
        )
    _require_no_users_spec(folder)


def _require_no_users_spec(folder: RunFolder) -> None:
    if folder.holds_users_spec():
        raise UsageError(
            "no run has written this file, and a run here would replace it",
            where=folder.path / SPEC_FILE,
            hint="Give another folder with --run",
        )


def _run_of(source: Path) -> Path | None:
    """Return the run folder that `source` is, or is a checkpoint of."""
    candidates = (source, source.parent.parent) if source.parent.name == CHECKPOINTS else (source,)
    return next((path for path in candidates if (path / SPEC_FILE).is_file()), None)


def _stored_spec(source: Path, overrides: Sequence[str], devices: int | None) -> RunSpec:
    """Return the spec that `source`, a run or checkpoint folder, was trained with.

    On other `devices` it is another layout: then it keeps all of it but parallel.data.
    """
    changed = [*_NOT_INHERITED, *(["parallel.data=auto"] if devices else []), *overrides]
    if (source / SPEC_FILE).is_file():
        return load_run(str(source / SPEC_FILE), changed, devices)
    for state in _states_in(source):
        content = apply_overrides(state.spec.model_dump(mode="json"), changed)
        return build(RunSpec, laid_out(content, devices))
    return load_run(DEFAULT_RUN, overrides, devices)


def _states_in(source: Path) -> Iterator[TrainingState]:
    """Yield the states of a checkpoint, or of those in a run folder, the newest first."""
    store = CheckpointStore(source / CHECKPOINTS)
    for folder in (source, *(store.path(step) for step in reversed(store.steps()))):
        with suppress(BadInput):  # a damaged one is named when the run goes on
            yield read_state(folder)
