"""Options that say of a checkpoint what it does not say itself: of convert, inspect and generate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    from gptbridge.api import HintWords

DIALECTS = "DIALECTS"  # stands for their names in the help

From = Annotated[str | None, typer.Option("--from", help=f"{DIALECTS}; absent: found by content.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Model preset or YAML file, where the files say too little.")
]
Heads = Annotated[
    int | None, typer.Option("--num-attention-heads", min=1, help="Heads, where no file says them.")
]
Strategy = Annotated[
    Path | None,
    typer.Option(help="MindSpore strategy file, or the folder of them, of the ranks."),
]
LoraAlpha = Annotated[float | None, typer.Option(help="Alpha of the LoRA, where no file says it.")]


def words(
    dialect: str | None,
    model: str | None,
    num_attention_heads: int | None,
    strategy: Path | None,
    lora_alpha: float | None,
) -> HintWords:
    """Return the hints as the functions of `gptbridge.api` take them."""
    return {
        "dialect": dialect,
        "model": model,
        "num_attention_heads": num_attention_heads,
        "strategy_file": strategy,
        "lora_alpha": lora_alpha,
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
