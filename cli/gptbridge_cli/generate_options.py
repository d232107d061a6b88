"""Options of `gptbridge generate`; those of hints are in hint_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="A run folder, a checkpoint of any dialect, hf:ORG/NAME.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="A text to continue; repeatable."),
]
PromptFiles = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|-", help="A file whose text is continued, - for stdin; repeatable."),
]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="Continue each line that is typed, until end of file.")
]
Stream = Annotated[
    bool | None,
    typer.Option(help="Print texts as they grow; absent: on a terminal.", show_default=False),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="A string that ends a text, which is cut before it; repeatable."),
]
Preset = Annotated[
    str | None,
    typer.Option(metavar="SYSTEM", help="Decode as paddlenlp, fleetx, mindformers or modelscope do."),
]
Rows = Annotated[int, typer.Option(min=1, help="Texts that are continued at once.")]
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
