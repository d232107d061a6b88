"""`gptbridge convert` and `gptbridge inspect`: weights from any dialect to any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gptbridge.weights.conversion.source import Told

_DIALECTS = "torch, paddle, mindspore, fleetx, modelscope, megatron or gptbridge"
Heads = Annotated[
    int | None, typer.Option("--num-attention-heads", min=1, help="Heads, where no file says them.")
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Model preset or YAML file, where the files say too little.")
]
From = Annotated[str | None, typer.Option("--from", help=f"{_DIALECTS}; absent: found by content.")]
Strategy = Annotated[
    Path | None, typer.Option(help="MindSpore strategy file, or the folder of them, of IN's ranks.")
]
LoraAlpha = Annotated[float | None, typer.Option(help="Alpha of IN's LoRA, where no file says it.")]


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A weight file, or the folder of a checkpoint.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", help=_DIALECTS)],
    from_: From = None,
    variant: Annotated[str | None, typer.Option(help="Which of the dialect's layouts to write.")] = None,
    model: ModelName = None,
    num_attention_heads: Heads = None,
    strategy: Strategy = None,
    lora_alpha: LoraAlpha = None,
    merge_lora: Annotated[bool, typer.Option("--merge-lora", help="Add IN's LoRA to the weights.")] = False,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of the embedding to write: padding is added or cut.")
    ] = None,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Tensor ranks to cut the output for.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Pipeline stages to cut it for.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; absent: as it is.")] = None,
    verify: Annotated[
        bool | None,
        typer.Option(help="Compare the logits of source and result; by default for small models."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Convert a checkpoint: weights, configuration and tokenizer; no framework is needed."""
    from gptbridge.errors import RunFailed
    from gptbridge.weights.conversion.convert import Request, convert_checkpoint, float_type
    from gptbridge.weights.conversion.target import Split
    from gptbridge.weights.conversion.verifying import SMALL_MODEL
    from gptbridge.weights.conversion.verifying import verify as compare
    from gptbridge_cli.progress import transfer_progress

    told = _told(from_, model, num_attention_heads, strategy, lora_alpha)
    request = Request(
        source,
        output,
        to,
        told,
        variant,
        vocab_size,
        float_type(dtype),
        Split(tensor_parallel, pipeline_parallel),
        merge_lora,
        overwrite,
    )
    with transfer_progress(f"{source} -> {output}", quiet=quiet or as_json) as progress:
        done = convert_checkpoint(request, progress)
    verdict = None
    if verify or (verify is None and done.model.num_parameters <= SMALL_MODEL):
        verdict = compare(source, output, told=told, dialect=to)
    facts = {
        "from": done.source_dialect,
        "variant": done.source_variant,
        "to": to,
        "parameters": done.model.num_parameters,
        "bytes": done.nbytes,
        "files": [*done.files, *done.companions],
        "left_out": list(done.left_out),
        "notes": list(done.notes),
        "max_logit_difference": verdict.max_difference if verdict else None,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    elif not quiet:
        typer.echo(f"{done.source_dialect} ({done.source_variant}) -> {to}: {output}, {done.nbytes:,} bytes")
        if done.left_out:
            typer.echo(f"left out, being no weights: {len(done.left_out)} tensors such as {done.left_out[0]}")
        for note in done.notes:
            typer.echo(f"note: {note}")
        typer.echo(str(verdict) if verdict else "not verified: --verify compares the logits")
    if verdict and not verdict.passed:
        raise RunFailed(str(verdict), where=output)


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or the PREFIX of a token dataset.")],
    from_: From = None,
    model: ModelName = None,
    num_attention_heads: Heads = None,
    strategy: Strategy = None,
    lora_alpha: LoraAlpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Tell what a checkpoint or a token dataset is. Nothing in it is executed."""
    from gptbridge.inspecting import inspect_path

    facts = inspect_path(path, _told(from_, model, num_attention_heads, strategy, lora_alpha))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):18} {value}")


def _told(
    dialect: str | None,
    model: str | None,
    num_attention_heads: int | None,
    strategy: Path | None,
    lora_alpha: float | None,
) -> Told:
    """Return what the options state about a checkpoint."""
    from gptbridge.weights.configs.reading import Declared
    from gptbridge.weights.conversion.source import Told
    from gptbridge.weights.layouts.registry import require_dialect
    from gptbridge_specs import load_model

    fields = load_model(model).model_dump() if model else {}
    if num_attention_heads is not None:
        fields["num_attention_heads"] = num_attention_heads
    given = Declared(fields, f"--model {model}" if model else "--num-attention-heads")
    return Told(require_dialect(dialect) if dialect else None, given, strategy, lora_alpha)
