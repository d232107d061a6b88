"""Options of `gptbridge data prepare` alone."""

from __future__ import annotations

from typing import Annotated

import typer

TokenizerName = Annotated[str, typer.Option(help="byte, or a folder with the files of a tokenizer.")]
Output = Annotated[str, typer.Option(metavar="PREFIX", help="Write PREFIX.bin, .idx and .json.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that encode; the output is the same.")]
AppendEos = Annotated[bool, typer.Option("--append-eos", help="End each document with its token.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad documents, go on.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of this name.")]
