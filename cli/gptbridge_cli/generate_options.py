"""Options of `gptbridge generate`; those of hints are in hint_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="A run folder, or a checkpoint of any dialect.")]
Prompts = Annotated[
    list[str], typer.Option("--prompt", "-p", metavar="TEXT", help="A text to continue; repeatable.")
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", "-b", help="torch, paddle, ...; the first installed when absent."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Such as generation.top_k=50."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|byte", help="The tokenizer; absent: the one beside the weights."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
