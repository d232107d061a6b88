"""`gptbridge data`: make token datasets and look into them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gptbridge.errors import UsageError
from gptbridge_cli.lines import say
from gptbridge_cli.text_options import AsJson, AsText, Glob, Inputs, JsonKey, Quiet, Separator

app = typer.Typer(no_args_is_help=True)

TokenizerName = Annotated[str, typer.Option(help="byte, or a folder with the files of a tokenizer.")]
Output = Annotated[str, typer.Option(metavar="PREFIX", help="Write PREFIX.bin, .idx and .json.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that encode; the output is the same.")]
AppendEos = Annotated[bool, typer.Option("--append-eos", help="End each document with its token.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Count bad documents, go on.")]
Format = Annotated[str, typer.Option(help="megatron, or mindrecord as MindFormers' scripts write it.")]
Length = Annotated[int | None, typer.Option(min=2, help="mindrecord: tokens of a row; absent: 1025.")]
Records = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="mindrecord: texts with classes, such as sst2 or jsonl.")
]
NumLabels = Annotated[int | None, typer.Option(min=2, help="With --records jsonl: how many classes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of this name.")]


@app.command()
def prepare(
    context: typer.Context,
    inputs: Inputs,
    tokenizer: TokenizerName,
    output: Output,
    workers: Workers = 1,
    append_eos: AppendEos = False,
    json_key: JsonKey = "text",
    document_separator: Separator = None,
    skip_bad: SkipBad = False,
    glob: Glob = None,
    as_text: AsText = False,
    overwrite: Overwrite = False,
    format: Format = "megatron",
    length: Length = None,
    records: Records = None,
    num_labels: NumLabels = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn text into a token dataset. Run the same command again to continue after a kill."""
    from gptbridge.data import prepare as preparing
    from gptbridge.data.sources import Selection
    from gptbridge_cli.progress import transfer_progress

    _require_used(context, format, records)
    with transfer_progress("preparing", quiet=quiet) as report:
        how: dict[str, Any] = {
            "options": preparing.TextOptions(append_eos, json_key, document_separator, skip_bad),
            "workers": workers,
            "selection": Selection(glob, as_text),
            "on_progress": lambda consumed, total, n: report(consumed, total, _count(n, "document")),
            "on_problem": lambda line: say(line, err=True),
        }
        if format == "mindrecord":
            content = _write_mindrecord(inputs, tokenizer, output, length or 1025, records, num_labels, how)
        else:
            content = preparing.prepare(inputs, tokenizer, output, overwrite=overwrite, **how)
    for line in [json.dumps(content, indent=2)] if as_json else _made(output, content):
        (typer.echo if as_json else say)(line)


def _require_used(context: typer.Context, format: str, records: str | None) -> None:
    """Refuse a format that is none, and options that were given and say nothing with it."""
    if format not in ("megatron", "mindrecord"):
        raise UsageError(f"no format {format!r}", where="--format", allowed="megatron, mindrecord")
    for here, options, is_here in (
        ("--format mindrecord", "overwrite", format == "mindrecord"),
        ("--format megatron", "length records num_labels", format == "megatron"),
        ("no --records", "num_labels", records is None),
        ("--records", "append_eos json_key document_separator glob as_text workers", records is not None),
    ):
        for name in options.split() if is_here else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise UsageError(f"has no effect with {here}", where=f"--{name.replace('_', '-')}")


def _write_mindrecord(
    inputs: list[str],
    tokenizer: str,
    output: str,
    length: int,
    records: str | None,
    num_labels: int | None,
    how: dict[str, Any],
) -> dict[str, Any]:
    from pathlib import Path

    from gptbridge.finetuning import mindrecord

    path = Path(output if output.endswith(".mindrecord") else f"{output}.mindrecord")
    if records is None:
        rows = mindrecord.write_text(inputs, tokenizer, path, length, **how)
    elif len(inputs) != 1:
        raise UsageError("one file of records at a time", where="INPUTS")
    else:
        fields = {"format": records, "skip_bad": how["options"].skip_bad}
        given = (Path(inputs[0]), tokenizer, path, length, fields, num_labels)
        rows = mindrecord.write_classes(*given, how["on_problem"])
    return {"path": str(path), "rows": rows, "length": length}


def _made(output: str, content: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what a preparation has made."""
    if "rows" in content:  # of a MindRecord
        return [f"{content['path']}: {_count(content['rows'], 'row')} of {content['length']} tokens"]
    documents, tokens = _count(content["documents"], "document"), _count(content["tokens"], "token")
    lines = [f"{output}: {documents}, {tokens} ({content['dtype']})"]
    bad = sum(content["bad_documents"].values())
    if bad or content["empty_documents"]:
        lines.append(f"left out: {bad} bad, {content['empty_documents']} empty")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@app.command()
def inspect(
    path: Annotated[
        str | None,
        typer.Argument(metavar="PREFIX", help="A token dataset or a folder; absent: the embedded corpus."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read a token dataset whole: check every token, tell what it holds."""
    from gptbridge.data.inspection import inspect_dataset

    facts = inspect_dataset(path).as_dict()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if name == "document_tokens" else value
        if name == "splits":
            shown = "; ".join(
                f"{k} {_count(v['documents'], 'document')} {_count(v['tokens'], 'token')}"
                for k, v in value.items()
            )
        say(f"{name.replace('_', ' ')}: {'-' if shown is None else shown}")
