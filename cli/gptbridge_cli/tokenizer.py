"""`gptbridge tokenizer`: train a vocabulary."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)
