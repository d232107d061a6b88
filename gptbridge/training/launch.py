"""Train on the devices of a spec: in this process, or in ranks that the framework's launcher starts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gptbridge.errors import BridgeError, Interrupted, UsageError
from gptbridge.files import discard, read_json, write_json
from gptbridge.hookspecs import Launch
from gptbridge.hub import fetched
from gptbridge.plan.fitting import require_devices_here, require_room
from gptbridge.plugins.backend import load_backend
from gptbridge.plugins.launching import command_of, free_port, remove_secrets, run_ranks, write_request
from gptbridge.plugins.verdict import INTERRUPTED
from gptbridge.process.records import OwnRecord, Record
from gptbridge.process.signals import StopRequest
from gptbridge.training.beginning import Beginning
from gptbridge.training.events import EVENTS_FILE, Event, EventLog, Events, Follower, Observer
from gptbridge.training.run import Outcome, begin, open_ready, prepare, require_weights, train_here
from gptbridge.training.run_folder import RunFolder, locked
from gptbridge.training.start import RunPlan, choose_checkpoint
from gptbridge.weights.opening import Hints
from gptbridge_specs import RunSpec

RANKS = "ranks"  # the folder in a run's folder of what each rank printed
_SOURCE_FILE = "source.json"  # from rank 0 to the others: which checkpoint the run goes on from


def train(plan: RunPlan, *, backend: str, observers: Sequence[Observer] = (), force: bool = False) -> Outcome:
    """Train as `plan` says on `backend`, and return how the run ended.

    One device is this process; more are ranks, which are started here and ended here. `observers`, `force`
    and the errors are those of `train_here`; RunFailed names a rank that failed, was killed or hangs.
    """
    if plan.devices.processes(plan.spec.parallel) == 1 and plan.devices.nodes == 1:
        return train_here(plan, backend=backend, observers=observers, force=force)
    require_devices(plan, backend, force=force)
    run, launch = plan.run, _launch(plan)
    source = _source(plan) if launch.node_rank == 0 else None
    request = replace(_request(plan, backend, force), source=_text(source), chosen=True)
    follower = Follower(run / EVENTS_FILE, observers if launch.node_rank == 0 else ())
    with StopRequest("stopping all ranks after this step") as stop:
        try:
            records = run_ranks(
                load_backend(backend),
                launch,
                train_rank,
                asdict(request),
                _folder(plan),
                stop=stop,
                hang_seconds=plan.devices.hang_seconds,
                meanwhile=follower.read,
            )
        except BaseException as error:
            if follower.open and launch.node_rank == 0:
                _end_told(run, follower, error)
            raise
    return _outcome(run, records, stop)


def _source(plan: RunPlan) -> Path | None:
    """Return the checkpoint that the run goes on from; refuse here what the ranks would refuse later."""
    with ExitStack() as stack:
        checkpoint = prepare(stack, plan).checkpoint
        return None if checkpoint is None else checkpoint.weights.path


def print_command(plan: RunPlan, backend: str, *, force: bool = False) -> str:
    """Return the command that starts the ranks of this machine, for whoever starts them in another way."""
    require_devices(plan, backend, force=force)
    if plan.resume is None:
        require_weights(plan)
    request = (_folder(plan) / "request.json").absolute()
    launch = _launch(plan)
    fields = asdict(replace(_request(plan, backend, force), logs=str(launch.logs)))
    discard(request)  # which may be a link
    write_request(request, train_rank, fields)
    return shlex.join(command_of(load_backend(backend), launch, request))


def require_devices(plan: RunPlan, backend: str, *, force: bool) -> None:
    """Refuse what cannot be, before anything is launched."""
    plugin = load_backend(backend)
    plugin.check(plan.spec)
    here = plan.devices.processes(plan.spec.parallel)
    sharing = require_devices_here(plan.spec, plugin.info, here, ", or --nodes for more machines")
    if not force:
        require_room(plan.spec, plugin.info, ranks=sharing)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """What a rank must know of its run, in JSON."""

    backend: str
    spec: Mapping[str, Any]
    run: str
    resume: str | None
    beginning: Mapping[str, Any] | None
    force: bool
    chosen: bool = False  # whether `source` is what the run goes on from; else rank 0 finds it
    source: str | None = None
    logs: str = ""  # the launcher's, where it may leave what must not stay

    def plan(self) -> RunPlan:
        """Return what the ranks train."""
        beginning = None
        if self.beginning is not None:
            beginning = Beginning(Path(self.beginning["checkpoint"]), Hints.of(self.beginning["hints"]))
        return RunPlan(RunSpec.model_validate(self.spec), Path(self.run), self.resume, beginning)


def train_rank(record: OwnRecord, **fields: Any) -> dict[str, Any]:
    """Do what one rank does of a run, by the fields of a RankRequest; return how it ended.

    Nothing is closed at the end of a rank, which leaves at once: a thread may wait for one that has failed.
    """
    request, stack, warnings = RankRequest(**fields), ExitStack(), list[str]()
    plan, plugin = request.plan(), load_backend(request.backend)
    opened = plugin.open_trainer(plan.spec)
    world, seat = opened[2], RunFolder(plan.run)
    if world.rank == 0:
        seat, found = _lead(stack, plan, request, warnings)
        write_json(plan.run / RANKS / _SOURCE_FILE, {"source": _text(found)})
    world.barrier()
    remove_secrets(Path(request.logs))
    agreed = read_json(plan.run / RANKS / _SOURCE_FILE)["source"]
    ready = open_ready(stack, plan, seat, None if agreed is None else Path(agreed), warnings)

    def note(event: Event) -> None:
        if event["event"] == "step":
            record.say(step=event["step"])

    try:
        done = begin(stack, plan, plugin, ready, opened, [note], request.force, words=None)
    except Interrupted:
        world.barrier()  # a launcher ends all once one has ended: none may still be saving
        raise
    world.barrier()
    return {"step": done.step, "reason": done.reason}


def _lead(
    stack: ExitStack, plan: RunPlan, request: RankRequest, warnings: list[str]
) -> tuple[RunFolder, Path | None]:
    """Lock the run's folder for all ranks; return it and what the run goes on from."""
    folder = stack.enter_context(locked(plan.run))
    if not request.chosen:
        return folder, choose_checkpoint(folder, plan.resume, warnings.append)
    folder.store.clean()
    return folder, None if request.source is None else Path(request.source)


def _folder(plan: RunPlan) -> Path:
    """Return where this machine's ranks have their records and logs."""
    folder = plan.run / RANKS
    if folder.is_symlink():
        raise UsageError("is a link, and nothing is written through one", where=folder)
    return folder if plan.devices.nodes == 1 else folder / f"node-{plan.devices.node_rank}"


def _launch(plan: RunPlan) -> Launch:
    devices = plan.devices
    host, port = devices.meeting or ("127.0.0.1", free_port())
    return Launch(
        processes=devices.processes(plan.spec.parallel),
        logs=_folder(plan).absolute(),
        port=port,
        master=host,
        nodes=devices.nodes,
        node_rank=devices.node_rank,
    )


def _request(plan: RunPlan, backend: str, force: bool) -> RankRequest:
    beginning = None
    if plan.beginning is not None:
        hints = plan.beginning.hints.fields()
        beginning = {"checkpoint": _text(fetched(plan.beginning.checkpoint)), "hints": hints}
    return RankRequest(
        backend=backend,
        spec=plan.spec.model_dump(mode="json"),
        run=str(plan.run.absolute()),
        resume=plan.resume,
        beginning=beginning,
        force=force,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _outcome(run: Path, records: Sequence[Record], stop: StopRequest) -> Outcome:
    """Return how the ranks ended; Interrupted where a signal ended them after saving."""
    ended = max(records, key=lambda record: record.exit_code or 0)
    if (ended.exit_code or 0) >= INTERRUPTED:
        raise Interrupted(ended.message, exit_code=stop.exit_code if stop.received else ended.exit_code or 0)
    return Outcome(run, ended.result["step"], ended.result["reason"])


def _end_told(run: Path, follower: Follower, error: BaseException) -> None:
    """Let the events and their observers know of an end that rank 0 could not tell."""
    with suppress(BridgeError):
        log = EventLog(run / EVENTS_FILE)
        Events([log]).emit("end", reason="failed", message=str(error))
        log.close()
        follower.read()
