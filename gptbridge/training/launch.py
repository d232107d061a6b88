"""Train on the devices of a spec: in this process, or in ranks that the framework's launcher starts."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptbridge.errors import BridgeError, Interrupted, UsageError
from gptbridge.files import read_json, write_json
from gptbridge.hookspecs import Launch
from gptbridge.plan.fitting import require_room
from gptbridge.plan.machine import gpu_count
from gptbridge.plugins.backend import load_backend
from gptbridge.plugins.launching import command_of, run_ranks, write_request
from gptbridge.plugins.verdict import INTERRUPTED
from gptbridge.process.records import OwnRecord, Record
from gptbridge.process.signals import StopRequest
from gptbridge.training.beginning import Beginning
from gptbridge.training.events import EVENTS_FILE, Event, EventLog, Events, Follower, Observer
from gptbridge.training.run import Outcome, begin, open_ready, prepare, train_here
from gptbridge.training.run_folder import RunFolder, locked
from gptbridge.training.start import RunPlan, choose_checkpoint
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.opening import Hints
from gptbridge_specs import RunSpec

RANKS = "ranks"  # the folder in a run's folder of what each rank printed
_SOURCE_FILE = "source.json"  # from rank 0 to the others: which checkpoint the run goes on from


def train(plan: RunPlan, *, backend: str, observers: Sequence[Observer] = (), force: bool = False) -> Outcome:
    """Train as `plan` says on `backend`, and return how the run ended.

    One device is this process; more are ranks, which are started here and ended here. `observers`, `force`
    and the errors are those of `train_here`; RunFailed names a rank that failed, was killed or hangs.
    """
    if plan.spec.parallel.world_size == 1:
        return train_here(plan, backend=backend, observers=observers, force=force)
    require_devices(plan, backend, force=force)
    run, launch = plan.run, _launch(plan)
    source: Path | None = None
    if launch.node_rank == 0:
        with ExitStack() as stack:
            checkpoint = prepare(stack, plan).checkpoint
            source = checkpoint.weights.path if checkpoint is not None else None
    follower = Follower(run / EVENTS_FILE, observers if launch.node_rank == 0 else ())
    fields = _request(plan, backend, force) | {"source": _text(source), "chosen": True}
    with StopRequest("stopping all ranks after this step") as stop:
        try:
            records = run_ranks(
                load_backend(backend),
                launch,
                train_rank,
                fields,
                run / RANKS,
                stop=stop,
                hang_seconds=plan.devices.hang_seconds,
                meanwhile=follower.read,
            )
        except BaseException as error:
            if follower.open:
                _end_told(run, follower, error)
            raise
    return _outcome(run, records, stop)


def print_command(plan: RunPlan, backend: str, *, force: bool = False) -> str:
    """Return the command that starts the ranks of this machine, for whoever starts them in another way."""
    require_devices(plan, backend, force=force)
    request = (plan.run / RANKS / "request.json").absolute()
    fields = _request(plan, backend, force) | {"source": None, "chosen": False}
    write_request(request, train_rank, fields, supervised=False)
    launch = _launch(plan)
    return shlex.join(command_of(load_backend(backend), launch, request))


def require_devices(plan: RunPlan, backend: str, *, force: bool) -> None:
    """Refuse what cannot be, before anything is launched."""
    plugin = load_backend(backend)
    plugin.check(plan.spec)
    here = plan.devices.processes(plan.spec.parallel)
    on_gpus = plan.spec.training.device in ("auto", "gpu") and "gpu" in plugin.info.hardware
    found = gpu_count() if on_gpus else 0
    if found and here > found:
        raise UsageError(
            f"{here} devices are asked for on this machine, which has {found}",
            where="parallel",
            hint=f"--devices {found}, or --nodes for more machines",
        )
    if not force:
        require_room(plan.spec, plugin.info, ranks=1 if found else here)


def train_rank(
    record: OwnRecord,
    folder: Path,
    *,
    backend: str,
    spec: Mapping[str, Any],
    run: str,
    resume: str | None,
    beginning: Mapping[str, Any] | None,
    force: bool,
    source: str | None,
    chosen: bool,
) -> dict[str, Any]:
    """Do what one rank does of a run; return how it ended.

    Nothing is closed at the end of a rank, which leaves at once: a thread may wait for one that has failed.
    """
    begun = None if beginning is None else _beginning(**beginning)
    plan = RunPlan(RunSpec.model_validate(spec), Path(run), resume, begun)
    plugin, stack, warnings = load_backend(backend), ExitStack(), list[str]()
    opened = plugin.open_trainer(plan.spec)
    world, seat = opened[2], RunFolder(plan.run)
    if world.rank == 0:
        seat = stack.enter_context(locked(plan.run))
        found = source if chosen else choose_checkpoint(seat, plan.resume, warnings.append)
        seat.store.clean()
        write_json(folder / _SOURCE_FILE, {"source": None if found is None else str(found)})
    world.barrier()
    agreed = read_json(folder / _SOURCE_FILE)["source"]
    ready = open_ready(stack, plan, seat, None if agreed is None else Path(agreed), warnings)

    def note(event: Event) -> None:
        if event["event"] == "step":
            record.say(step=event["step"])

    try:
        done = begin(stack, plan, plugin, ready, opened, [note], force, words=None)
    except Interrupted:
        world.barrier()  # a launcher ends all once one has ended: none may still be saving
        raise
    world.barrier()
    return {"step": done.step, "reason": done.reason}


def _launch(plan: RunPlan) -> Launch:
    devices = plan.devices
    host, _, port = (devices.master or f"127.0.0.1:{_free_port()}").rpartition(":")
    return Launch(
        processes=devices.processes(plan.spec.parallel),
        logs=plan.run / RANKS,
        port=int(port),
        master=host,
        nodes=devices.nodes,
        node_rank=devices.node_rank,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _request(plan: RunPlan, backend: str, force: bool) -> dict[str, Any]:
    """Return the fields of `train_rank` that follow from the plan."""
    beginning = plan.beginning and {
        "checkpoint": str(plan.beginning.checkpoint.absolute()),
        "hints": asdict(plan.beginning.hints) | {"strategy": _text(plan.beginning.hints.strategy)},
    }
    return {
        "backend": backend,
        "spec": plan.spec.model_dump(mode="json"),
        "run": str(plan.run.absolute()),
        "resume": plan.resume,
        "beginning": beginning,
        "force": force,
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _beginning(checkpoint: str, hints: Mapping[str, Any]) -> Beginning:
    strategy = None if hints["strategy"] is None else Path(hints["strategy"])
    return Beginning(
        Path(checkpoint), Hints(**{**hints, "model": ConfigFacts(**hints["model"]), "strategy": strategy})
    )


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
