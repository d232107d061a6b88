"""Train: from a spec and a folder to a finished run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.resuming import RunCheckpoint, open_run_checkpoint
from gptbridge.checkpoint.saving import Saver
from gptbridge.checkpoint.state import Origin
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.data.batches import RunData, open_data
from gptbridge.errors import BridgeError, Interrupted, UsageError
from gptbridge.finetuning.batches import RecordData, open_records
from gptbridge.plan.fitting import require_room
from gptbridge.plan.machine import host_memory
from gptbridge.plugins.backend import Backend, load_backend
from gptbridge.process.signals import StopRequest
from gptbridge.process.world import World
from gptbridge.rules.loss_scale import continued, initial_state
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Device, Trainer
from gptbridge.training.advice import advise
from gptbridge.training.beginning import BegunWeights, advise_beginning, origin_of
from gptbridge.training.environment import describe_environment
from gptbridge.training.events import EVENTS_FILE, Event, EventLog, Events, Observer, history, read_events
from gptbridge.training.facts import spec_facts
from gptbridge.training.loop import Loop, Reason
from gptbridge.training.resume import allow_resume
from gptbridge.training.run_folder import RunFolder, locked
from gptbridge.training.start import RunPlan, choose_checkpoint
from gptbridge.training.watching import Watch
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.shards import load
from gptbridge_specs import RunSpec


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    run: Path
    step: int
    reason: Reason

    def events(self) -> list[Event]:
        """Return the events of the run as it counts in the end: each step once, with its loss."""
        return history(read_events(self.run / EVENTS_FILE))


def train_here(
    plan: RunPlan, *, backend: str, observers: Sequence[Observer] = (), force: bool = False
) -> Outcome:
    """Train as `plan` says on `backend` in this process; return how the run ended.

    `observers` see each event after it is written to events.jsonl. `force` starts a run also where its
    estimate exceeds the memory at hand. Raises a BridgeError: UsageError for what cannot be, RunFailed when
    the run breaks, Interrupted when a signal ended it after saving.
    """
    plugin = load_backend(backend)
    plugin.check(plan.spec)
    if not force:
        require_room(plan.spec, plugin.info)
    try:
        with ExitStack() as stack:
            ready = prepare(stack, plan)
            return begin(stack, plan, plugin, ready, plugin.open_trainer(plan.spec), observers, force)
    except KeyboardInterrupt as error:
        # While the loop runs, StopRequest has the signals: this one came before or after it.
        raise Interrupted(f"{plan.run}: interrupted outside the training loop", exit_code=130) from error


@dataclass(frozen=True, slots=True)
class Ready:
    """What a run begins or goes on with; all that can be refused before a framework is loaded has been."""

    folder: RunFolder
    data: RunData | RecordData
    checkpoint: RunCheckpoint | None
    warnings: list[str]


def prepare(stack: ExitStack, plan: RunPlan) -> Ready:
    """Lock the run's folder and open what the run goes on from; `stack` closes both."""
    warnings: list[str] = []
    folder = stack.enter_context(locked(plan.run))
    source = choose_checkpoint(folder, plan.resume, warnings.append)
    if source is None:
        require_weights(plan)
    return open_ready(stack, plan, folder, source, warnings)


def require_weights(plan: RunPlan) -> None:
    """Refuse a new run of adapters without the weights that they stand beside."""
    if plan.beginning is None and plan.spec.task.lora is not None:
        raise UsageError(
            "adapters stand beside the weights of a checkpoint, and none is named",
            where="task.lora",
            hint="Give --init-from CHECKPOINT, of any dialect",
        )


def open_ready(
    stack: ExitStack, plan: RunPlan, folder: RunFolder, source: Path | None, warnings: list[str]
) -> Ready:
    """Open the data and the checkpoint `source`; UsageError where the spec may not continue it."""
    data = stack.enter_context(_open_data(plan.spec, warnings.append))
    if source is None:
        return Ready(folder, data, None, warnings)
    base = plan.beginning.checkpoint if plan.beginning is not None else None
    checkpoint = open_run_checkpoint(source, stack, base)
    held = checkpoint.state.data.digest
    digest = held if data.is_called(held) else data.digest
    allowed = allow_resume(checkpoint.state, plan.spec, digest=digest, tokenizer=data.tokenizer.identity)
    return Ready(folder, data, checkpoint, [*warnings, *allowed])


def _open_data(spec: RunSpec, warn: Callable[[str], None]) -> AbstractContextManager[RunData | RecordData]:
    """Open what a run of `spec` reads: tokens, or the records of a fine-tuning task."""
    return open_data(spec) if spec.task.name == "language_modeling" else open_records(spec, warn)


def begin(
    stack: ExitStack,
    plan: RunPlan,
    plugin: Backend,
    ready: Ready,
    opened: tuple[Trainer, Device, World],
    observers: Sequence[Observer],
    force: bool,
    *,
    words: str | None = StopRequest.WORDS,
) -> Outcome:
    """Train what is ready; `stack` closes the trainer. `words` are those of a StopRequest."""
    spec, store, (trainer, device, world) = plan.spec, ready.folder.store, opened
    stack.callback(trainer.close)
    if not force and device.kind != "cpu":
        require_room(spec, plugin.info, device)
    data = ready.data.of_rank(world.replica, world.replicas)
    done, origin = _fill(trainer, plan, ready, leads=world.rank == 0)
    facts = {**spec_facts(spec), **data.facts(), "run": str(plan.run)}
    if origin is not None:
        facts["origin"] = origin.model_dump()
    heard = list(observers)
    if world.rank == 0:
        environment = describe_environment(plugin, device)
        facts |= environment
        heard = [*_log(stack, plan, ready.folder, environment), plugin.notify, *observers]
    events = Events(heard)
    saver = _saver(trainer, store, spec, world)
    stack.callback(saver.close)
    with _end_told(events), StopRequest(words) as stop:
        watch = Watch(spec.evaluation, ready.checkpoint.state.best if ready.checkpoint is not None else None)
        loop = Loop(spec, trainer, world, data, store, saver, events, stop, plugin.name, origin, watch)
        if ready.checkpoint is not None and ready.checkpoint.weights.path.parent != store.folder:
            loop.save(done, wait=True)  # first of all: a branch must not depend on the run that it came from
            loop.settle()
        advice = advise(spec, tokenizer_vocab_size=data.tokenizer.vocab_size, done=done)
        _announce(events, facts, ready.checkpoint, done, [*ready.warnings, *advice])
        step, reason = loop.run(done)
        events.emit("end", step=step, reason=reason)
    return Outcome(plan.run, step, reason)


def _log(
    stack: ExitStack, plan: RunPlan, folder: RunFolder, environment: dict[str, object]
) -> list[Observer]:
    """Write what the run is, and return what logs it; `stack` closes the log."""
    folder.describe(plan.spec, environment)
    log = EventLog(folder.events)
    stack.callback(log.close)
    return [log]


def _fill(trainer: Trainer, plan: RunPlan, ready: Ready, *, leads: bool) -> tuple[int, Origin | None]:
    """Give the trainer what the run goes on or begins with; return the steps done, and where it began."""
    if ready.checkpoint is not None:
        return _go_on(trainer, plan.spec, ready.checkpoint), ready.checkpoint.state.origin
    return 0, _begin(trainer, plan, ready.data.tokenizer.identity, ready.warnings, leads=leads)


def _saver(trainer: Trainer, store: CheckpointStore, spec: RunSpec, world: World) -> Saver:
    """Return what saves the run; a trainer that is no Stepper may change its weights at any time."""
    asks, room = isinstance(trainer, Stepper), partial(_room_for_copies, world.size)
    saver = Saver(store, spec.checkpoint, room, world.rank, world.size, asked=asks)
    if isinstance(trainer, Stepper):
        trainer.before_update = saver.wait_for_copy
    return saver


def _room_for_copies(ranks: int) -> int:
    """Return how many bytes the copy of what one of `ranks` saves may take beside the steps."""
    return host_memory() // (2 * ranks)


def _begin(
    trainer: Trainer, plan: RunPlan, tokenizer: str, warnings: list[str], *, leads: bool
) -> Origin | None:
    """Fill the trainer with drawn weights, or with those of a checkpoint.

    Return, to the rank that leads, where they are from: for that it reads them all.
    """
    spec, beginning = plan.spec, plan.beginning
    trainer.state = initial_state(spec.precision)
    if beginning is None:
        load(trainer.shards(), InitialWeights(spec.model, spec.training.seed, spec.task).read)
        return None
    with beginning.open(warnings.append) as opened:
        warnings += advise_beginning(opened, spec, tokenizer)
        load(trainer.shards(), BegunWeights(opened, spec).read)
        if not leads:
            return None
        origin = origin_of(opened)
        # what adapters name as their base is found from any folder
        return origin.model_copy(update={"path": str(opened.path.absolute())}) if spec.task.lora else origin


def _go_on(trainer: Trainer, spec: RunSpec, checkpoint: RunCheckpoint) -> int:
    """Fill the trainer with what a run's checkpoint holds; return the steps already done."""
    load(trainer.shards(), checkpoint.weights.read)
    for kind, moments in checkpoint.moments.items():
        load(trainer.shards(kind), moments.read)
    state = checkpoint.state
    trainer.state = continued(state.trainer_state(), spec.precision, state.spec.precision)
    return state.step


def _announce(
    events: Events,
    facts: Mapping[str, Any],
    checkpoint: RunCheckpoint | None,
    done: int,
    warnings: Sequence[str],
) -> None:
    if checkpoint is None:
        events.emit("start", **facts)
    else:
        before = {"checkpoint": str(checkpoint.weights.path), "written_by": checkpoint.state.backend}
        events.emit("resume", step=done, **before, **facts)
    for message in warnings:
        events.emit("warning", message=message)


@contextmanager
def _end_told(events: Events) -> Iterator[None]:
    """Tell the observers of a run that ends before its end."""
    try:
        yield
    except BaseException as error:
        with suppress(BridgeError):
            reason = "interrupted" if isinstance(error, Interrupted) else "failed"
            events.emit("end", reason=reason, message=str(error))
        raise
