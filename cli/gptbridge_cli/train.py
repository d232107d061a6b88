"""`gptbridge train`: train a spec, or say what that would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    spec: Annotated[
        str | None,
        typer.Argument(help="A run preset or a YAML file; gpt2-tiny when absent."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="torch, paddle, ...; the first installed when absent."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Set one field of the spec."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run's folder; runs/SPEC when absent.")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|PATH",
            help="Go on from the run's newest checkpoint, or from a folder.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole spec and its size; launch nothing.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write RUN/tensorboard for TensorBoard.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
) -> None:
    """Train a GPT on one backend; stop it, move it, resume it."""
    from gptbridge.plugins import load_backend
    from gptbridge.training.facts import memory_facts, spec_facts
    from gptbridge.training.run import train as run_training
    from gptbridge.training.start import choose_backend, resolve
    from gptbridge_specs import dump_yaml

    request = resolve(spec, overrides or (), run, resume)
    if backend is not None:
        load_backend(backend).check(request.spec)
    if dry_run:
        facts = {**spec_facts(request.spec), **memory_facts(request.spec), "run": str(request.run)}
        if as_json:
            typer.echo(json.dumps({"spec": request.spec.model_dump(mode="json"), **facts}, indent=2))
            return
        typer.echo(dump_yaml(request.spec))
        for name, value in facts.items():
            typer.echo(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")
        return
    from gptbridge_cli.displays import choose_display

    if backend is None:
        backend = choose_backend(request)
        if not quiet and not as_json:
            typer.echo(f"no --backend: {backend} is taken")
    observers = choose_display(request.spec.training.log_interval, quiet=quiet, as_json=as_json)
    if tensorboard:
        from gptbridge.training.tensorboard import TensorBoard

        observers.append(TensorBoard(request.run))
    run_training(request.spec, backend=backend, run=request.run, resume=request.resume, observers=observers)
