"""`gptbridge export`: a model for other software to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptbridge_cli import generate_options as common
from gptbridge_cli.convert import AsJson, Output, Quiet
from gptbridge_cli.hint_options import HINTS
from gptbridge_cli.lines import say, warn
from gptbridge_cli.passing import Options, passing

if TYPE_CHECKING:
    from gptbridge.exporting.export import Exported

FormatName = Annotated[
    str,
    typer.Option(
        "--format",
        help="huggingface, gguf, onnx, torch-export (whose loader can run code that lies in the file), "
        "paddle-inference or mindir.",
    ),
]
FORM: Options = {
    "dtype": (
        str | None,
        typer.Option(None, help="Of the matrices: float32, float16, bfloat16, q8_0, as the format has them."),
    ),
    "verify": (
        bool | None,
        typer.Option(
            None, help="Compare logits in a fresh process; by default where what runs them is installed."
        ),
    ),
    "overwrite": (bool, typer.Option(False, "--overwrite", help="Replace OUT.")),
}


@passing(HINTS, FORM)
def export(
    checkpoint: common.Checkpoint,
    output: Output,
    format: FormatName,
    tokenizer: common.Tokenizer = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **words: Any,
) -> None:
    """Write a model for other software, with its tokenizer, a script that runs it and a model card."""
    from gptbridge import api

    done = api.export(checkpoint, output, format=format, tokenizer=tokenizer, warn=warn, **words)
    if as_json:
        typer.echo(json.dumps(_facts(done), indent=2))
    elif not quiet:
        _print(output, done)


def _facts(done: Exported) -> dict[str, object]:
    return {
        "format": done.format,
        "dtype": done.dtype,
        "parameters": done.parameters,
        "bytes": done.nbytes,
        "files": list(done.files),
        "notes": list(done.notes),
        "max_logit_difference": done.verdict.max_difference if done.verdict else None,
    }


def _print(output: Path, done: Exported) -> None:
    say(f"{done.format} ({done.dtype}): {output}, {done.nbytes:,} bytes")
    for note in done.notes:
        say(f"note: {note}")
    if done.verdict:
        say(f"{done.verdict}, in a process without gptbridge")
