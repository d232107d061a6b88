"""`gptbridge generate`: continue texts with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli import hint_options as hints
from gptbridge_cli.lines import say


def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint of any dialect.")],
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
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|byte", help="The tokenizer; absent: the one beside the weights."),
    ] = None,
    from_: hints.From = None,
    model: hints.ModelName = None,
    num_attention_heads: hints.Heads = None,
    strategy: hints.Strategy = None,
    lora_alpha: hints.LoraAlpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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
        dialect=from_,
        model=model,
        num_attention_heads=num_attention_heads,
        strategy_file=strategy,
        lora_alpha=lora_alpha,
    )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    for result in results:
        typer.echo(visible(result.prompt + result.text))
