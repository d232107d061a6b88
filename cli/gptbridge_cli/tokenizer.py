"""`gptbridge tokenizer`: train a vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.lines import say
from gptbridge_cli.text_options import AsJson, AsText, Glob, Inputs, JsonKey, Quiet, Separator

app = typer.Typer(no_args_is_help=True)


@app.callback()
def tokenizer() -> None:
    """Train a vocabulary."""


@app.command()
def train(
    inputs: Inputs,
    vocab_size: Annotated[
        int, typer.Option(help="Tokens, with the special ones; of a bpe, the 256 bytes too.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    kind: Annotated[str, typer.Option(help="bpe, or for Chinese jieba-bpe (ModelScope) or cpm.")] = "bpe",
    json_key: JsonKey = "text",
    document_separator: Separator = None,
    glob: Glob = None,
    as_text: AsText = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a byte-level BPE, or a Chinese vocabulary, and write the tokenizer's files."""
    from gptbridge.data.sources import Selection
    from gptbridge.data.tokenizers.training import train_tokenizer
    from gptbridge_cli.progress import transfer_progress

    with transfer_progress("reading", quiet=quiet) as report:
        trained = train_tokenizer(
            inputs,
            vocab_size,
            output,
            kind=kind,
            json_key=json_key,
            document_separator=document_separator,
            selection=Selection(glob, as_text),
            on_progress=lambda consumed, total: report(consumed, total, ""),
            on_problem=lambda line: say(line, err=True),
        )
    facts = {"folder": str(output), "vocab_size": trained.vocab_size, "identity": trained.identity}
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    say(f"{output}: {trained.vocab_size} tokens, identity {trained.identity}")
    if trained.vocab_size < vocab_size:
        typer.echo(f"fewer than {vocab_size}: the text has nothing left to merge", err=True)
