"""Options that say of a checkpoint what it does not say itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from gptbridge_cli.passing import Options

DIALECTS = "DIALECTS"  # stands for their names in the help

HINTS: Options = {
    "dialect": (str | None, typer.Option(None, "--from", help=f"{DIALECTS}; absent: found by content.")),
    "model": (
        str | None,
        typer.Option(None, help="Model preset or YAML file, where the files say too little."),
    ),
    "num_attention_heads": (int | None, typer.Option(None, min=1, help="Heads, where no file says them.")),
    "strategy_file": (
        Path | None,
        typer.Option(None, "--strategy", help="MindSpore strategy file, or the folder of the ranks' files."),
    ),
    "lora_alpha": (float | None, typer.Option(None, help="Alpha of the LoRA, where no file says it.")),
    "base": (Path | None, typer.Option(None, help="Base model of an adapter, where it is not as that says.")),
}


class DialectCommand(TyperCommand):
    """A command whose help lists the dialects that are registered; nothing is looked for before it runs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's parameters."""
        from gptbridge.weights.dialects.registry import dialect_names

        params: list[Any] = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.help:
                param.help = param.help.replace(DIALECTS, ", ".join(dialect_names()))
        return params
