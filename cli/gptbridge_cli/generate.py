"""`gptbridge generate`: continue texts with a checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from gptbridge_cli import generate_options as options
from gptbridge_cli.device_options import READING
from gptbridge_cli.hint_options import HINTS
from gptbridge_cli.lines import note, say, warn
from gptbridge_cli.passing import passing

if TYPE_CHECKING:
    from gptbridge.generation.generate import Writer


@passing(HINTS, READING)
def generate(
    checkpoint: options.Checkpoint,
    prompts: options.Prompts = None,
    prompt_file: options.PromptFiles = None,
    interactive: options.Interactive = False,
    backend: options.Backend = None,
    overrides: options.Overrides = None,
    preset: options.Preset = None,
    stop: options.Stop = None,
    tokenizer: options.Tokenizer = None,
    rows: options.Rows = 8,
    stream: options.Stream = None,
    as_json: options.AsJson = False,
    **said: Any,
) -> None:
    """Continue texts: greedy, drawn with -o generation.strategy=sample, or =beam."""
    from gptbridge import api

    _refuse(("--json", as_json), ("--interactive", interactive), ("--stream", stream is not None))
    _refuse(("--interactive", interactive), ("a prompt", prompts or prompt_file))
    given = [] if interactive else _prompts(prompts or [], prompt_file or [])
    said |= {name: word for name, word in (("preset", preset), ("stop", stop)) if word}
    opened = api.open_writer(
        checkpoint,
        backend=backend,
        tokenizer=tokenizer,
        overrides=overrides or (),
        rows=rows,
        prompts=given,
        warn=warn,
        note=note,
        **said,
    )
    with opened as writer:
        if interactive:
            _converse(writer)
        elif as_json:
            typer.echo(json.dumps([asdict(each) for each in writer.write(given)], indent=2))
        else:
            _print(writer, given, live=sys.stdout.isatty() if stream is None else stream)


def _refuse(*options: tuple[str, object]) -> None:
    """Refuse the first two options that are given: they exclude each other."""
    from gptbridge.errors import UsageError

    given = [name for name, value in options if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")


def _prompts(texts: Sequence[str], files: Sequence[str]) -> list[str]:
    """Return the prompts that are given; where none is, what comes on stdin."""
    from gptbridge.errors import UsageError

    if not texts and not files and not sys.stdin.isatty():
        files = ["-"]
    found = [*texts, *map(_read, files)]
    if not found or (files == ["-"] and found == [""]):
        raise UsageError("no text to continue: give --prompt TEXT, --prompt-file FILE, or text on stdin")
    return found


def _read(file: str) -> str:
    """Return the text of a file, without the end of its last line."""
    from pathlib import Path

    from gptbridge.errors import BadInput

    if Path(file).is_fifo() and not file.startswith("/dev/"):  # where none may ever write
        raise BadInput("is a FIFO", where=file, hint="--prompt-file - reads what comes through a pipe")
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise BadInput((error.strerror or str(error)).lower(), where=file) from error
    except UnicodeDecodeError as error:
        where = "stdin" if file == "-" else file
        raise BadInput(f"is not UTF-8 at byte {error.start}", where=where) from error


def _print(writer: Writer, prompts: Sequence[str], *, live: bool) -> None:
    """Print each prompt with its continuation, in order: the first that has not ended as it grows."""
    from gptbridge.generation.generate import Piece, visible

    count = writer.spec.generation.num_return_sequences
    order = [(prompt, sequence) for prompt in range(len(prompts)) for sequence in range(count)]
    held = {place: prompts[place[0]] for place in order}
    ended: set[tuple[int, int]] = set()

    def show(piece: Piece) -> None:
        place = (piece.prompt, piece.sequence)
        held[place] += piece.text
        if piece.reason is not None:
            ended.add(place)
        while order and (live or order[0] in ended):
            last = order[0] in ended
            typer.echo(visible(held[order[0]]), nl=last)
            held[order[0]] = ""
            if not last:
                sys.stdout.flush()
                break
            order.pop(0)

    writer.write(prompts, show)


def _converse(writer: Writer) -> None:
    """Continue each line that is typed; an interrupt ends a text, or, between texts, the conversation."""
    from gptbridge.errors import BadInput, UsageError

    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
        try:
            _print(writer, [line], live=True)
        except KeyboardInterrupt:
            typer.echo()
        except (BadInput, UsageError) as error:
            say(f"error: {error}", err=True)
