"""`gptbridge data`: make token datasets and look into them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gptbridge_cli.text_options import AsJson, Inputs, JsonKey, Quiet, Separator

app = typer.Typer(no_args_is_help=True)


@app.command()
def prepare(
    inputs: Inputs,
    tokenizer: Annotated[str, typer.Option(help="byte, or a folder with the files of a tokenizer.")],
    output: Annotated[str, typer.Option(metavar="PREFIX", help="Write PREFIX.bin, .idx and .json.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes that encode; the output is the same.")] = 1,
    append_eos: Annotated[
        bool, typer.Option("--append-eos", help="End each document with its token.")
    ] = False,
    json_key: JsonKey = "text",
    document_separator: Separator = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Count bad documents, go on.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset of this name.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn text into a token dataset. Run the same command again to continue after a kill."""
    from gptbridge.data.prepare import TextOptions
    from gptbridge.data.prepare import prepare as prepare_dataset
    from gptbridge_cli.progress import transfer_progress

    options = TextOptions(
        append_end_of_text=append_eos,
        json_key=json_key,
        document_separator=document_separator,
        skip_bad=skip_bad,
    )
    with transfer_progress("preparing", quiet=quiet) as report:
        content = prepare_dataset(
            inputs,
            tokenizer,
            output,
            options,
            workers=workers,
            overwrite=overwrite,
            on_progress=lambda at: report(at.consumed, at.total, f"{at.documents} documents"),
            on_problem=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    bad = sum(content["bad_documents"].values())
    typer.echo(f"{output}: {content['documents']} documents, {content['tokens']} tokens ({content['dtype']})")
    if bad or content["empty_documents"]:
        typer.echo(f"left out: {bad} bad, {content['empty_documents']} empty")


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

    facts = inspect_dataset(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if name == "document_tokens" else value
        if name == "splits":
            shown = "; ".join(
                f"{k} {v['documents']} documents {v['tokens']} tokens" for k, v in value.items()
            )
        typer.echo(f"{name.replace('_', ' ')}: {'-' if shown is None else shown}")
