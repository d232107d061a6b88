"""Options of `gptbridge convert` and `gptbridge inspect`; those of hints are in hint_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptbridge_cli.hint_options import DIALECTS

Input = Annotated[Path, typer.Argument(metavar="IN", help="A weight file, or the folder of a checkpoint.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")]
Inspected = Annotated[Path, typer.Argument(help="A checkpoint, or the PREFIX of a token dataset.")]
To = Annotated[str, typer.Option("--to", help=DIALECTS)]
Variant = Annotated[str | None, typer.Option(help="Which of the dialect's layouts to write.")]
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


def form(
    variant: str | None, vocab_size: int | None, dtype: str | None, tensor: int, pipeline: int
) -> dict[str, Any]:
    """Return in which form the result is written, as `gptbridge.convert` takes it."""
    return {
        "variant": variant,
        "vocab_size": vocab_size,
        "dtype": dtype,
        "tensor_parallel": tensor,
        "pipeline_parallel": pipeline,
    }
