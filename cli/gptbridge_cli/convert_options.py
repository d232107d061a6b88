"""Options of `gptbridge convert` and `gptbridge inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

_DIALECTS = "DIALECTS"  # stands for their names in the help

Input = Annotated[Path, typer.Argument(metavar="IN", help="A weight file, or the folder of a checkpoint.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Inspected = Annotated[Path, typer.Argument(help="A checkpoint, or the PREFIX of a token dataset.")]
To = Annotated[str, typer.Option("--to", help=_DIALECTS)]
From = Annotated[str | None, typer.Option("--from", help=f"{_DIALECTS}; absent: found by content.")]
Variant = Annotated[str | None, typer.Option(help="Which of the dialect's layouts to write.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Model preset or YAML file, where the files say too little.")
]
Heads = Annotated[
    int | None, typer.Option("--num-attention-heads", min=1, help="Heads, where no file says them.")
]
Strategy = Annotated[
    Path | None,
    typer.Option(help="MindSpore strategy file, or the folder of them, of IN's ranks."),
]
LoraAlpha = Annotated[float | None, typer.Option(help="Alpha of IN's LoRA, where no file says it.")]
MergeLora = Annotated[bool, typer.Option("--merge-lora", help="Add IN's LoRA to the weights.")]
VocabSize = Annotated[
    int | None, typer.Option(min=1, help="Rows of the embedding to write: padding is added or cut.")
]
TensorParallel = Annotated[int, typer.Option(min=1, help="Tensor ranks to cut the output for.")]
PipelineParallel = Annotated[int, typer.Option(min=1, help="Pipeline stages to cut it for.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or float64; absent: as it is.")]
Verify = Annotated[
    bool | None,
    typer.Option(help="Compare the logits of source and result; by default for small models."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")]


class DialectCommand(TyperCommand):
    """A command whose help lists the dialects that are registered; nothing is looked for before it runs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's parameters."""
        from gptbridge.weights.dialects.registry import dialect_names

        params: list[Any] = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.help:
                param.help = param.help.replace(_DIALECTS, ", ".join(dialect_names()))
        return params
