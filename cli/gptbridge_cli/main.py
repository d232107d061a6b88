"""The `gptbridge` command. Nothing but typer is imported until a command runs."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Annotated

import typer

from gptbridge import __version__
from gptbridge.errors import BadInput, RunFailed, require_posix
from gptbridge_cli import (
    backends,
    convert,
    data,
    evaluate,
    export,
    generate,
    parity,
    spec,
    tensorboard,
    tokenizer,
    train,
)
from gptbridge_cli.hint_options import DialectCommand
from gptbridge_cli.lines import say
from gptbridge_cli.quick_help import QuickGroup

app = typer.Typer(
    name="gptbridge",
    help="Train one GPT spec on PyTorch, PaddlePaddle or MindSpore; move weights and runs between them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    cls=QuickGroup,
)
app.command(cls=DialectCommand)(train.train)
app.command(cls=DialectCommand)(generate.generate)
app.command(cls=DialectCommand)(evaluate.evaluate)
app.command()(parity.parity)
app.command()(backends.backends)
app.command(cls=DialectCommand)(convert.convert)
app.command(cls=DialectCommand)(convert.inspect)
app.command(cls=DialectCommand)(export.export)
app.command()(tensorboard.tensorboard)
app.add_typer(spec.app, cls=QuickGroup, name="spec", help="List, show, check and import specs.")
app.add_typer(tokenizer.app, cls=QuickGroup, name="tokenizer", help="Train a vocabulary.")
app.add_typer(data.app, cls=QuickGroup, name="data", help="Make token datasets and look into them.")


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


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main() -> None:
    """Run the command line; turn every error that a user can mend into its lines and exit code."""
    try:
        require_posix()
        sys.exit(app(standalone_mode=False))
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            error = BadInput("File name too long", where=error.filename)
        elif isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error = RunFailed(f"the output cannot be written: {error.strerror}")
        elif isinstance(error, MemoryError):
            error = RunFailed(
                "there is not enough memory for this", hint="Is a limit set? ulimit -v shows it"
            )
        exit_code = getattr(error, "exit_code", None)
        with suppress(OSError):  # a terminal that hung up: the exit code says it all the same
            for line in _lines(error) if exit_code else [_unexpected(error)]:
                say(f"error: {line}", err=True)
        sys.exit(exit_code or 1)


def _lines(error: Exception) -> list[str]:
    """Return what an error says; one of the command line itself names its option and the help."""
    message = getattr(error, "format_message", None)
    if message is None:
        return str(error).splitlines()
    words = " ".join(message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    command = getattr(context, "command", None)
    takes_fields = any(param.name == "overrides" for param in getattr(command, "params", ()))
    if takes_fields and (option := getattr(error, "option_name", None)):
        from gptbridge_specs.elsewhere import typed_instead

        value = _value_of(option)
        meant = typed_instead(option, value, context and context.info_name) or _as_override(option, value)
        words += (
            f". Did you mean {meant}?" if meant and meant.startswith("-o ") else f". {meant}" if meant else ""
        )
    hint = f" {context.command_path} --help tells more." if context else ""
    return (
        [f"{words.rstrip('.')}{'' if words.endswith('?') else '.'}{hint}"] if words else []
    )  # a command without arguments has printed its help


def _value_of(option: str) -> str | None:
    """Return what was typed as the value of an option, if anything was."""
    for word, after in pairwise([*sys.argv, "--"]):
        if word.partition("=")[0] == option:
            value = word.partition("=")[2] or after
            return None if value.startswith("--") else value
    return None


def _as_override(option: str, value: str | None) -> str | None:
    """Return the -o that sets the field which `option` names, if one does, to its `value` or an example."""
    from gptbridge_specs.fields import describe_fields
    from gptbridge_specs.run import RunSpec

    name = option.lstrip("-").replace("-", "_")
    found = [row for row in describe_fields(RunSpec) if name in (row.name, row.name.rpartition(".")[2])]
    example = {"false": "true", "null": "VALUE", "": "VALUE"}  # what nobody types, who wants it otherwise
    usual = [example.get(row.default, row.default) for row in found]
    return f"-o {found[0].name}={value or usual[0]}" if found else None


def _unexpected(error: Exception) -> str:
    """Return one line for what nobody foresaw."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}. gptbridge --debug COMMAND shows where; please report it"
