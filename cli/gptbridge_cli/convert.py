"""`gptbridge convert` and `gptbridge inspect`: weights from any dialect to any other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptbridge_cli import convert_options as options
from gptbridge_cli import hint_options as hints
from gptbridge_cli.lines import say

if TYPE_CHECKING:
    from gptbridge.weights.conversion.convert import Converted


def convert(
    source: options.Input,
    output: options.Output,
    to: options.To,
    from_: hints.From = None,
    variant: options.Variant = None,
    model: hints.ModelName = None,
    num_attention_heads: hints.Heads = None,
    strategy: hints.Strategy = None,
    lora_alpha: hints.LoraAlpha = None,
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
    from gptbridge import api
    from gptbridge.weights.conversion.verifying import DifferentLogits
    from gptbridge_cli.progress import transfer_progress

    show = partial(_show, to, output, as_json=as_json, quiet=quiet)
    form = options.form(variant, vocab_size, dtype, tensor_parallel, pipeline_parallel)
    about = hints.words(from_, model, num_attention_heads, strategy, lora_alpha)
    try:
        with transfer_progress(f"{source} -> {output}", quiet=quiet or as_json) as progress:
            form.update(merge_lora=merge_lora, verify=verify, overwrite=overwrite, progress=progress)
            done = api.convert(source, output, to=to, **form, **about)
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


def inspect(
    path: options.Inspected,
    from_: hints.From = None,
    model: hints.ModelName = None,
    num_attention_heads: hints.Heads = None,
    strategy: hints.Strategy = None,
    lora_alpha: hints.LoraAlpha = None,
    as_json: options.AsJson = False,
) -> None:
    """Tell what a checkpoint or a token dataset is. Nothing in it is executed."""
    from gptbridge import api

    about = hints.words(from_, model, num_attention_heads, strategy, lora_alpha)
    found = api.inspect(path, **about)
    facts = found.as_dict()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        say(f"{name.replace('_', ' '):18} {value}")
