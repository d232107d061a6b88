"""The `gptbridge` command. Nothing but typer is imported until a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gptbridge import __version__

app = typer.Typer(
    name="gptbridge",
    help="Train one GPT spec on PyTorch, PaddlePaddle or MindSpore; move weights and runs between them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that come before any command."""


def main() -> None:
    """Run the command line; turn every BridgeError into one line and its exit code."""
    try:
        app()
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None or "--debug" in sys.argv:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(exit_code)
