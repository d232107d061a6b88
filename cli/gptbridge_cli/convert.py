"""`gptbridge convert` and `gptbridge inspect`: weights from any dialect to any other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptbridge_cli.hint_options import DIALECTS, HINTS
from gptbridge_cli.lines import facts, say
from gptbridge_cli.passing import Options, passing

if TYPE_CHECKING:
    from gptbridge.weights.conversion.convert import Converted


Input = Annotated[Path, typer.Argument(metavar="IN", help="A weight file, or the folder of a checkpoint.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Inspected = Annotated[Path, typer.Argument(help="A checkpoint, or the PREFIX of a token dataset.")]
To = Annotated[str, typer.Option("--to", help=DIALECTS)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]

# In which form the result is written.
FORM: Options = {
    "variant": (str | None, typer.Option(None, help="Which of the dialect's layouts to write.")),
    "merge_lora": (bool, typer.Option(False, "--merge-lora", help="Add IN's LoRA to the weights.")),
    "vocab_size": (
        int | None,
        typer.Option(None, min=1, help="Rows of the embedding to write: padding is added or cut."),
    ),
    "tensor_parallel": (int, typer.Option(1, min=1, help="Tensor ranks to cut the output for.")),
    "pipeline_parallel": (int, typer.Option(1, min=1, help="Pipeline stages to cut it for.")),
    "dtype": (
        str | None,
        typer.Option(None, help="float32, float16, bfloat16 or float64; absent: as it is."),
    ),
    "verify": (
        bool | None,
        typer.Option(None, help="Compare the logits of source and result; by default for small models."),
    ),
    "overwrite": (bool, typer.Option(False, "--overwrite", help="Replace OUT.")),
}


@passing(HINTS, FORM)
def convert(
    source: Input,
    output: Output,
    to: To,
    quiet: Quiet = False,
    as_json: AsJson = False,
    **words: Any,
) -> None:
    """Convert a checkpoint: weights, configuration and tokenizer; no framework is needed."""
    from gptbridge import api
    from gptbridge.process.allocator import keep_freed_memory
    from gptbridge.weights.conversion.verifying import DifferentLogits
    from gptbridge_cli.progress import transfer_progress

    keep_freed_memory(False)  # slabs come and go, and malloc would keep several megabytes of them
    show = partial(_show, to, output, as_json=as_json, quiet=quiet)
    try:
        with transfer_progress(f"{source} -> {output}", quiet=quiet or as_json) as progress:
            done = api.convert(source, output, to=to, progress=progress, **words)
    except DifferentLogits as error:
        show(error.done)
        raise
    show(done)


def _show(to: str, output: Path, done: Converted, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(_facts(to, done), indent=2))
    elif not quiet:
        _print(to, output, done)


def _facts(to: str, done: Converted) -> dict[str, object]:
    from gptbridge.weights.architecture import count_parameters

    return {
        "from": done.source_dialect,
        "variant": done.source_variant,
        "to": to,
        "parameters": count_parameters(done.model),
        "bytes": done.nbytes,
        "files": [*done.files, *done.companions],
        "left_out": list(done.left_out),
        "notes": list(done.notes),
        "max_logit_difference": done.verdict.max_difference if done.verdict else None,
    }


def _print(to: str, output: Path, done: Converted) -> None:
    read = f"{done.source_dialect} ({done.source_variant})"
    say(f"{read} -> {to}: {output}, {done.nbytes:,} bytes")
    if done.left_out:
        say(f"left out, being no weights: {len(done.left_out)} tensors such as {done.left_out[0]}")
    for note in done.notes:
        say(f"note: {note}")
    say(str(done.verdict) if done.verdict else "not verified: --verify compares the logits")


@passing(HINTS)
def inspect(path: Inspected, as_json: AsJson = False, **words: Any) -> None:
    """Tell what a checkpoint or a token dataset is. Nothing in it is executed."""
    from gptbridge import api

    found = api.inspect(path, **words).as_dict()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    facts(found)
