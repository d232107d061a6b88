"""`gptbridge generate`: continue texts with a checkpoint."""

from __future__ import annotations

import json

import typer

from gptbridge_cli import generate_options as options
from gptbridge_cli import hint_options as hints
from gptbridge_cli.lines import say


def generate(
    checkpoint: options.Checkpoint,
    prompts: options.Prompts,
    backend: options.Backend = None,
    overrides: options.Overrides = None,
    tokenizer: options.Tokenizer = None,
    from_: hints.From = None,
    model: hints.ModelName = None,
    num_attention_heads: hints.Heads = None,
    strategy: hints.Strategy = None,
    lora_alpha: hints.LoraAlpha = None,
    as_json: options.AsJson = False,
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
        **hints.words(from_, model, num_attention_heads, strategy, lora_alpha),
    )
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=2))
        return
    for result in results:
        typer.echo(visible(result.prompt + result.text))
