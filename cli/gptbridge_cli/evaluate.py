"""`gptbridge evaluate`: measure a checkpoint."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer

from gptbridge_cli import evaluate_options as options
from gptbridge_cli import generate_options as common
from gptbridge_cli.device_options import READING
from gptbridge_cli.hint_options import HINTS
from gptbridge_cli.lines import say, warn
from gptbridge_cli.passing import passing

if TYPE_CHECKING:
    from gptbridge.evaluation.result import Evaluation


@passing(options.NUMBERS, HINTS, READING)
def evaluate(
    checkpoint: common.Checkpoint,
    task: options.Task,
    data: options.Data,
    protocol: options.ProtocolName = "strict",
    backend: common.Backend = None,
    overrides: options.Overrides = None,
    tokenizer: common.Tokenizer = None,
    as_json: common.AsJson = False,
    **words: Any,
) -> None:
    """Measure a model on a file: perplexity, the last word of texts, one of several choices, classes."""
    from gptbridge import api

    found = api.evaluate(
        checkpoint,
        task=task,
        data=data,
        protocol=protocol,
        backend=backend,
        tokenizer=tokenizer,
        overrides=overrides or (),
        warn=warn,
        progress=_show_progress,
        **words,
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        _print(found)


def _show_progress(done: int, rows: int) -> None:
    if sys.stderr.isatty():
        end = "\r\x1b[K" if done == rows else ""
        typer.echo(f"\r\x1b[K{done:,} of {rows:,} scored{end}", err=True, nl=False)


def _print(found: Evaluation) -> None:
    """Print what was measured, how, and what was counted, a line each."""
    said = found.as_dict()
    said["tokenizer"] = f"sha256 {found.tokenizer[:16]}..."
    measures, counts, quirks = said.pop("measures"), said.pop("counts"), said.pop("quirks")
    rows = {name: "beyond any number" if number is None else number for name, number in measures.items()}
    for name, value in {**rows, **said, **counts}.items():
        if value is not None:
            form = ".6g" if isinstance(value, float) else ",d" if isinstance(value, int) else ""
            say(f"{name.replace('_', ' '):20} {value:{form}}")
    for quirk in quirks:
        say(f"not strict: {quirk}")
