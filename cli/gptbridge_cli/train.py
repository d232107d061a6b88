"""`gptbridge train`: train a spec, or say what that would be."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import typer

from gptbridge.errors import UsageError
from gptbridge_cli.hint_options import HINTS
from gptbridge_cli.lines import say
from gptbridge_cli.passing import passing
from gptbridge_cli.train_options import (
    MACHINES,
    AsJson,
    Backend,
    DryRun,
    Force,
    InitFrom,
    Overrides,
    PrintLaunch,
    Quiet,
    Resume,
    Run,
    SkipBad,
    Spec,
    WriteTensorBoard,
)

if TYPE_CHECKING:
    from gptbridge.training.events import Observer
    from gptbridge.training.run import Outcome
    from gptbridge.training.start import RunPlan
    from gptbridge_specs import RunSpec

_SKIP_BAD = "task.records.skip_bad=true"


@passing(HINTS, MACHINES)
def train(
    spec: Spec = None,
    backend: Backend = None,
    overrides: Overrides = None,
    run: Run = None,
    resume: Resume = None,
    init_from: InitFrom = None,
    print_launch: PrintLaunch = False,
    dry_run: DryRun = False,
    force: Force = False,
    skip_bad: SkipBad = False,
    tensorboard: WriteTensorBoard = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **words: Any,
) -> None:
    """Train a GPT on one backend; stop it, move it, resume it."""
    from gptbridge.plugins.backend import load_backend
    from gptbridge.training.launch import print_command
    from gptbridge.training.start import require_data
    from gptbridge_cli.displays import choose_display

    changed = [*(overrides or ()), *([_SKIP_BAD] if skip_bad else [])]
    plan = _plan(spec, changed, run, resume, init_from, words)
    if backend is not None:
        load_backend(backend).check(plan.spec)
    if dry_run:
        _tell(plan, backend, as_json=as_json)
        return
    require_data(plan, spec)
    backend = backend or _chosen(plan, quiet=quiet or as_json)
    if print_launch:
        typer.echo(print_command(plan, backend, force=force))
        return
    display = choose_display(plan.spec.training.log_interval, quiet=quiet, as_json=as_json)
    done = _run(plan, backend, display, force=force, tensorboard=tensorboard)
    if not quiet and not as_json:
        _say_next(done, plan.spec)


def _plan(
    spec: Spec, overrides: list[str], run: Run, resume: Resume, init_from: InitFrom, words: dict[str, Any]
) -> RunPlan:
    """Return the run that was asked for; `words` are those of the machines, and hints."""
    from gptbridge.checkpoint.locating import hints_of
    from gptbridge.training.beginning import Beginning
    from gptbridge.training.start import Devices, resolve

    machines = Devices(**{name: words.pop(name) for name in MACHINES})
    if init_from is None:
        _refuse_hints(words)
    beginning = Beginning(init_from, hints_of(**words)) if init_from is not None else None
    plan = resolve(spec, overrides, run, resume, beginning, machines)
    if _SKIP_BAD in overrides and plan.spec.task.name == "language_modeling":
        raise UsageError("leaves out records of a task, and this run reads tokens", where="--skip-bad")
    return plan


def _refuse_hints(words: dict[str, Any]) -> None:
    """Raise UsageError where one was given, there being nothing that it is a hint on."""
    given = next((name for name, value in words.items() if value is not None), None)
    if given is not None:
        option = (HINTS[given][1].param_decls or [f"--{given.replace('_', '-')}"])[0]
        raise UsageError("says what the weights of --init-from do not, and none are given", where=option)


def _run(plan: RunPlan, backend: str, display: list[Observer], *, force: bool, tensorboard: bool) -> Outcome:
    from gptbridge.training.launch import train as run_training
    from gptbridge.training.tensorboard import TensorBoard, is_written

    written = tensorboard or (plan.resume and is_written(plan.run))
    observers: list[Observer] = [*display, TensorBoard(plan.run)] if written else display
    return run_training(plan, backend=backend, observers=observers, force=force)


def _chosen(plan: RunPlan, *, quiet: bool) -> str:
    from gptbridge.training.start import choose_backend

    backend = choose_backend(plan)
    if not quiet:
        typer.echo(f"no --backend: {backend} is taken")
    return backend


def _say_next(done: Outcome, spec: RunSpec) -> None:
    """Say where the checkpoint is and what can be typed now."""
    from gptbridge.training.run_folder import RunFolder

    run = shlex.quote(str(done.run))
    other = shlex.quote(str(done.run.with_name(f"{done.run.resolve().name}-longer")))
    epochs = spec.training.epochs
    length = f"epochs={2 * epochs:g}" if epochs else f"max_steps={2 * spec.training.max_steps}"
    longer = f"--run {other} -o training.{length}"
    classes = spec.task.name == "classification"
    use = f"evaluate {run} --task classification --data FILE" if classes else f"generate {run} --prompt TEXT"
    for line in (
        f"checkpoint  {RunFolder(done.run).store.path(done.step)}",
        f"next        gptbridge {use}",
        f"            gptbridge convert {run} FOLDER --to torch",
        f"            gptbridge train --resume {run}" + (f" {longer}" if done.reason == "complete" else ""),
    ):
        say(line)


def _tell(plan: RunPlan, backend: str | None, *, as_json: bool) -> None:
    """Print the whole spec of a run, and what it costs."""
    from gptbridge.plan.fitting import plan_memory
    from gptbridge.plugins.backend import load_plugin
    from gptbridge.training.facts import spec_facts
    from gptbridge.training.start import likely_backend
    from gptbridge_specs import dump_yaml

    backend = backend or likely_backend(plan)
    here = plan.devices.processes(plan.spec.parallel)
    memory = plan_memory(plan.spec, load_plugin(backend).info, ranks=here)
    tokens = plan.spec.tokens_per_step * plan.spec.training.max_steps
    facts = {**spec_facts(plan.spec), "total_tokens": tokens, "backend": backend, "run": str(plan.run)}
    if as_json:
        spec = plan.spec.model_dump(mode="json")
        typer.echo(json.dumps({"spec": spec, **facts, **memory.facts()}, indent=2))
        return
    typer.echo(dump_yaml(plan.spec))
    for name, value in facts.items():
        say(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
    for line in memory.lines(plan.spec.training.recompute):
        say(line)
