"""Options of `gptbridge train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the whole spec and its size; launch nothing.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start also where the estimate exceeds the memory at hand.")
]
WriteTensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write RUN/tensorboard; a resumed run goes on with it.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only, on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")]
