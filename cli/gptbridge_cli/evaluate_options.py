"""Options of `gptbridge evaluate`; those that generate has as well are in generate_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.passing import Options

Task = Annotated[
    str, typer.Option("--task", help="perplexity, cloze, multiple-choice, classification or instruction.")
]
Data = Annotated[
    Path, typer.Option("--data", metavar="FILE", help="A text; for the other tasks records, .jsonl.")
]
ProtocolName = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="strict, or as others measure: paddlenlp, fleetx, fleetx-develop, mindformers, modelscope.",
    ),
]
# Numbers that are not to be the protocol's own, and a file to write.
NUMBERS: Options = {
    "window": (
        int | None,
        typer.Option(None, min=1, help="Tokens that the model sees; absent: the protocol's."),
    ),
    "stride": (int | None, typer.Option(None, min=1, help="Tokens from one window of a text to the next.")),
    "batch_size": (
        int | None,
        typer.Option(None, min=1, help="Windows in one pass; some protocols average them."),
    ),
    "logging_interval": (
        int | None,
        typer.Option(None, min=1, help="fleetx-develop: batches a line of its log."),
    ),
    "detokenize": (
        bool | None,
        typer.Option(
            None,
            "--detokenize/--no-detokenize",
            help="Take WikiText's spaces out; absent: the protocol's.",
        ),
    ),
    "predictions": (
        Path | None,
        typer.Option(
            None, metavar="FILE", help="classification, instruction: write what it says of each record."
        ),
    ),
}
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Such as precision.compute=bf16."),
]
