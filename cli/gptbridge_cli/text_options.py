"""Options of the commands that read text."""

from __future__ import annotations

from typing import Annotated

import typer

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT...", help="Files or folders: .txt, .jsonl, also .gz, .zst, .bz2, .xz."),
]
JsonKey = Annotated[str, typer.Option(help="Where a line of .jsonl has its text.")]
Separator = Annotated[
    str | None,
    typer.Option(help="In .txt, a line that ends a document; '' is a blank line. Absent: a file is one."),
]
Glob = Annotated[
    str | None,
    typer.Option(metavar="PATTERN", help="In a folder, read the files of such a name alone: '*.md'."),
]
AsText = Annotated[bool, typer.Option("--as-text", help="Read files of any name, as text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
