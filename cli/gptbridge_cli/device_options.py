"""Options of the commands that start ranks."""

from __future__ import annotations

from typing import Any

import typer

from gptbridge_cli.passing import Options

DEVICES: Any = typer.Option(
    None, "--devices", min=1, metavar="N", help="Devices of this machine; as the spec when absent."
)
HANG_TIMEOUT: Any = typer.Option(
    300.0, "--hang-timeout", min=1, help="Seconds after which an idle rank is given up."
)

# Of the commands that read a model: by the keyword that a function of `gptbridge.api` has for it.
READING: Options = {"devices": (int | None, DEVICES), "hang_seconds": (float, HANG_TIMEOUT)}
