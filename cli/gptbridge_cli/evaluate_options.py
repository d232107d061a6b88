"""Options of `gptbridge evaluate`; those that generate has as well are in generate_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Task = Annotated[str, typer.Option("--task", help="perplexity, cloze, multiple-choice or classification.")]
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
Window = Annotated[
    int | None, typer.Option("--window", min=1, help="Tokens that the model sees; absent: the protocol's.")
]
Stride = Annotated[
    int | None, typer.Option("--stride", min=1, help="Tokens from one window of a text to the next.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Windows in one pass; some protocols average them.")
]
LoggingInterval = Annotated[
    int | None,
    typer.Option("--logging-interval", min=1, help="fleetx-develop: batches a line of its log."),
]
Detokenize = Annotated[
    bool | None,
    typer.Option("--detokenize/--no-detokenize", help="Take WikiText's spaces out; absent: the protocol's."),
]
Predictions = Annotated[
    Path | None,
    typer.Option("--predictions", metavar="FILE", help="classification: write what it says of each record."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Such as precision.compute=bf16."),
]
