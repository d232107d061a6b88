"""Options of `gptbridge train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.device_options import DEVICES, HANG_TIMEOUT
from gptbridge_cli.passing import Options

Spec = Annotated[
    str | None,
    typer.Argument(help="A run preset or a YAML file; gpt2-tiny when absent."),
]
Backend = Annotated[
    str | None,
    typer.Option("--backend", "-b", help="torch, paddle, ...; the first installed when absent."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="FIELD=VALUE", help="Set one field of the spec."),
]
Run = Annotated[Path | None, typer.Option("--run", help="The run's folder; runs/SPEC when absent.")]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="auto|PATH",
        help="Go on from the run's newest checkpoint, or from a folder.",
    ),
]
InitFrom = Annotated[
    Path | None,
    typer.Option(
        "--init-from",
        metavar="CHECKPOINT",
        help="Begin with these weights, of any dialect, or hf:ORG/NAME: they decide the model.",
    ),
]
PrintLaunch = Annotated[
    bool,
    typer.Option("--print-launch", help="Print the command that starts this machine's ranks."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the whole spec and its size; launch nothing.")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave bad records of a fine-tuning task out, and count them.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Start also where the estimate exceeds the memory at hand.")
]
WriteTensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write RUN/tensorboard; a resumed run goes on with it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only, on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")]

# By the field of gptbridge.training.start.Devices.
MACHINES: Options = {
    "here": (int | None, DEVICES),
    "nodes": (int, typer.Option(1, min=1, help="Machines, each with as many devices.")),
    "node_rank": (int, typer.Option(0, min=0, help="Which of them this is; 0 keeps the log.")),
    "master": (
        str | None,
        typer.Option(None, metavar="HOST:PORT", help="Where they meet: the first machine."),
    ),
    "hang_seconds": (float, HANG_TIMEOUT),
}
