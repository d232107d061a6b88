"""`gptbridge generate`: continue texts with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.lines import say


def generate(
    checkpoint: Annotated[
        Path, typer.Argument(help="A run folder, a checkpoint or a Hugging Face GPT-2 folder.")
    ],
    prompts: Annotated[
        list[str], typer.Option("--prompt", "-p", metavar="TEXT", help="A text to continue; repeatable.")
    ],
    backend: Annotated[
        str | None,
        typer.Option("--backend", "-b", help="torch, paddle, ...; the first installed when absent."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Such as generation.top_k=50."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue texts: greedy, or drawn with -o generation.strategy=sample."""
    from dataclasses import asdict

    from gptbridge.generation.generate import generate as continue_texts
    from gptbridge.generation.generate import visible
    from gptbridge.training.start import choose_backend

    results = continue_texts(
        checkpoint,
        prompts,
        backend=backend or choose_backend(),
        overrides=overrides or (),
        warn=lambda message: say(f"warning: {message}", err=True),
    )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    for result in results:
        typer.echo(visible(result.prompt + result.text))
