"""Train: from a spec and a folder to a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.resuming import RunCheckpoint, open_run_checkpoint
from gptbridge.checkpoint.saving import Saver
from gptbridge.checkpoint.state import Origin
from gptbridge.data.batches import RunData, open_data
from gptbridge.errors import BridgeError, Interrupted
from gptbridge.plan.fitting import require_room
from gptbridge.plan.machine import host_memory
from gptbridge.plugins.backend import Backend, load_backend
from gptbridge.process.signals import StopRequest
from gptbridge.rules.loss_scale import continued, initial_state
from gptbridge.session import Trainer
from gptbridge.training.advice import advise
from gptbridge.training.beginning import BegunWeights, advise_beginning, origin_of
from gptbridge.training.environment import describe_environment
from gptbridge.training.events import EVENTS_FILE, Event, EventLog, Events, Observer, history, read_events
from gptbridge.training.facts import spec_facts
from gptbridge.training.loop import Loop, Reason
from gptbridge.training.resume import allow_resume
from gptbridge.training.run_folder import locked
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


def train(plan: RunPlan, *, backend: str, observers: Sequence[Observer] = (), force: bool = False) -> Outcome:
    """Train as `plan` says on `backend`, and return how it ended.

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
            return _train(stack, plan, plugin, observers, force)
    except KeyboardInterrupt as error:
        # While the loop runs, StopRequest has the signals: this one came before or after it.
        raise Interrupted(f"{plan.run}: interrupted outside the training loop", exit_code=130) from error


def _train(
    stack: ExitStack, plan: RunPlan, plugin: Backend, observers: Sequence[Observer], force: bool
) -> Outcome:
    spec, run, warnings = plan.spec, plan.run, list[str]()
    folder = stack.enter_context(locked(run))
    source = choose_checkpoint(folder, plan.resume, warnings.append)
    data = stack.enter_context(open_data(spec))
    checkpoint = None if source is None else _open_allowed(source, stack, spec, data, warnings)
    trainer, device, world = plugin.open_trainer(spec)
    stack.callback(trainer.close)
    if not force and device.kind != "cpu":
        require_room(spec, plugin.info, device)
    data = data.of_rank(world.replica, world.replicas)
    if checkpoint is not None:
        done, origin = _go_on(trainer, spec, checkpoint), checkpoint.state.origin
    else:
        done, origin = 0, _begin(trainer, plan, data.tokenizer.identity, warnings)
    warnings += advise(spec, tokenizer_vocab_size=data.tokenizer.vocab_size, done=done)
    environment = describe_environment(plugin, device)
    folder.describe(spec, environment)
    log = EventLog(folder.events)
    stack.callback(log.close)
    events = Events([log, plugin.notify, *observers])
    facts = {**spec_facts(spec), **_data_facts(data), **environment, "run": str(run)}
    if origin is not None:
        facts["origin"] = origin.model_dump()
    saver = Saver(folder.store, spec.checkpoint, _room_for_copies, world.rank, world.size)
    stack.callback(saver.close)
    with _end_told(events), StopRequest() as stop:
        watch = Watch(spec.evaluation, checkpoint.state.best if checkpoint is not None else None)
        loop = Loop(spec, trainer, world, data, folder.store, saver, events, stop, plugin.name, origin, watch)
        if checkpoint is not None and checkpoint.weights.path.parent != folder.store.folder:
            loop.save(done)  # first of all: a branch must not depend on the run that it came from
            loop.settle()
        _announce(events, facts, checkpoint, done, warnings)
        step, reason = loop.run(done)
        events.emit("end", step=step, reason=reason)
    return Outcome(run, step, reason)


def _room_for_copies() -> int:
    """Return how many bytes a copy of what is saved may take beside the steps."""
    return host_memory() // 2


def _open_allowed(
    source: Path, stack: ExitStack, spec: RunSpec, data: RunData, warnings: list[str]
) -> RunCheckpoint:
    """Open the checkpoint to continue from; UsageError where `spec` may not continue it."""
    checkpoint = open_run_checkpoint(source, stack)
    held = checkpoint.state.data.digest
    digest = held if held in (data.digest, data.dataset.sampled_digest) else data.digest
    warnings += allow_resume(checkpoint.state, spec, digest=digest, tokenizer=data.tokenizer.identity)
    return checkpoint


def _begin(trainer: Trainer, plan: RunPlan, tokenizer: str, warnings: list[str]) -> Origin | None:
    """Fill the trainer with drawn weights, or with those of a checkpoint, and return where they are from."""
    spec, beginning = plan.spec, plan.beginning
    trainer.state = initial_state(spec.precision)
    if beginning is None:
        load(trainer.shards(), InitialWeights(spec.model, spec.training.seed).read)
        return None
    with beginning.open(warnings.append) as opened:
        warnings += advise_beginning(opened, spec, tokenizer)
        load(trainer.shards(), BegunWeights(opened, spec).read)
        return origin_of(opened)


def _go_on(trainer: Trainer, spec: RunSpec, checkpoint: RunCheckpoint) -> int:
    """Fill the trainer with what a run's checkpoint holds; return the steps already done."""
    load(trainer.shards(), checkpoint.weights.read)
    for kind, moments in checkpoint.moments.items():
        load(trainer.shards(kind), moments.read)
    state = checkpoint.state
    trainer.state = continued(state.trainer_state(), spec.precision, state.spec.precision)
    return state.step


def _data_facts(data: RunData) -> dict[str, Any]:
    samples = data.samples("training")
    return {
        "data": str(data.dataset.where),
        "data_digest": data.digest,
        "training_tokens": samples.tokens,
        "samples_per_epoch": samples.per_epoch,
    }


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
