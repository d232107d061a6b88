"""`gptbridge convert` and `gptbridge inspect`: weights from any dialect to any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptbridge_cli import convert_options as options
from gptbridge_cli.lines import say

if TYPE_CHECKING:
    from gptbridge.weights.conversion.convert import Converted, Request
    from gptbridge.weights.conversion.source import Told
    from gptbridge.weights.conversion.verifying import Verdict


def convert(
    source: options.Input,
    output: options.Output,
    to: options.To,
    from_: options.From = None,
    variant: options.Variant = None,
    model: options.ModelName = None,
    num_attention_heads: options.Heads = None,
    strategy: options.Strategy = None,
    lora_alpha: options.LoraAlpha = None,
    merge_lora: options.MergeLora = False,
    vocab_size: options.VocabSize = None,
    tensor_parallel: options.TensorParallel = 1,
    pipeline_parallel: options.PipelineParallel = 1,
    dtype: options.Dtype = None,
    verify: options.Verify = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Convert a checkpoint: weights, configuration and tokenizer; no framework is needed."""
    from gptbridge.weights.conversion.convert import Request, convert_checkpoint, float_type
    from gptbridge.weights.conversion.target import Split
    from gptbridge.weights.conversion.verifying import verify_conversion
    from gptbridge_cli.progress import transfer_progress

    told = _told(from_, model, num_attention_heads, strategy, lora_alpha)
    split, element_type = Split(tensor_parallel, pipeline_parallel), float_type(dtype)
    request = Request(
        source, output, to, told, variant, vocab_size, element_type, split, merge_lora, overwrite
    )
    with transfer_progress(f"{source} -> {output}", quiet=quiet or as_json) as progress:
        done = convert_checkpoint(request, progress)
    verdict = verify_conversion(request, done, wanted=verify)
    if as_json:
        typer.echo(json.dumps(_facts(request, done, verdict), indent=2))
    elif not quiet:
        _print(request, done, verdict)
    if verdict:
        verdict.require_passed(output)


def _facts(request: Request, done: Converted, verdict: Verdict | None) -> dict[str, object]:
    from gptbridge.weights.architecture import count_parameters

    return {
        "from": done.source_dialect,
        "variant": done.source_variant,
        "to": request.to,
        "parameters": count_parameters(done.model),
        "bytes": done.nbytes,
        "files": [*done.files, *done.companions],
        "left_out": list(done.left_out),
        "notes": list(done.notes),
        "max_logit_difference": verdict.max_difference if verdict else None,
    }


def _print(request: Request, done: Converted, verdict: Verdict | None) -> None:
    read = f"{done.source_dialect} ({done.source_variant})"
    say(f"{read} -> {request.to}: {request.output}, {done.nbytes:,} bytes")
    if done.left_out:
        say(f"left out, being no weights: {len(done.left_out)} tensors such as {done.left_out[0]}")
    for note in done.notes:
        say(f"note: {note}")
    say(str(verdict) if verdict else "not verified: --verify compares the logits")


def inspect(
    path: options.Inspected,
    from_: options.From = None,
    model: options.ModelName = None,
    num_attention_heads: options.Heads = None,
    strategy: options.Strategy = None,
    lora_alpha: options.LoraAlpha = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell what a checkpoint or a token dataset is. Nothing in it is executed."""
    from gptbridge.inspecting import inspect_path

    facts = inspect_path(path, _told(from_, model, num_attention_heads, strategy, lora_alpha))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        say(f"{name.replace('_', ' '):18} {value}")


def _told(
    dialect: str | None,
    model: str | None,
    num_attention_heads: int | None,
    strategy: Path | None,
    lora_alpha: float | None,
) -> Told:
    """Return what the options state about a checkpoint."""
    from gptbridge.weights.configs.table import ConfigFacts
    from gptbridge.weights.conversion.source import Told
    from gptbridge.weights.dialects.registry import find_dialect
    from gptbridge_specs import load_model

    fields = load_model(model).model_dump() if model else {}
    if num_attention_heads is not None:
        fields["num_attention_heads"] = num_attention_heads
    given = ConfigFacts(fields, f"--model {model}" if model else "--num-attention-heads")
    return Told(find_dialect(dialect).name if dialect else None, given, strategy, lora_alpha)
