"""`gptbridge generate`: continue texts with a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import typer

from gptbridge_cli import generate_options as options
from gptbridge_cli.hint_options import HINTS
from gptbridge_cli.lines import say
from gptbridge_cli.passing import passing


@passing(HINTS)
def generate(
    checkpoint: options.Checkpoint,
    prompts: options.Prompts,
    backend: options.Backend = None,
    overrides: options.Overrides = None,
    tokenizer: options.Tokenizer = None,
    as_json: options.AsJson = False,
    **words: Any,
) -> None:
    """Continue texts: greedy, or drawn with -o generation.strategy=sample."""
    from dataclasses import asdict

    from gptbridge import api
    from gptbridge.generation.generate import visible

    results = api.generate(
        checkpoint,
        prompts,
        backend=backend,
        tokenizer=tokenizer,
        overrides=overrides or (),
        warn=lambda message: say(f"warning: {message}", err=True),
        note=lambda message: say(f"note: {message}", err=True),
        **words,
    )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    for result in results:
        typer.echo(visible(result.prompt + result.text))
