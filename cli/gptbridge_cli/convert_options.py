"""Options of `gptbridge convert` and `gptbridge inspect`; those of hints are in hint_options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.hint_options import DIALECTS
from gptbridge_cli.passing import Options

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
