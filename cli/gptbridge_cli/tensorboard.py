"""`gptbridge tensorboard`: files for TensorBoard from a run's events."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptbridge_cli.lines import say


def tensorboard(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Write RUN/tensorboard again from RUN/events.jsonl."""
    from gptbridge.training.tensorboard import draw_again

    say(f"{run / 'tensorboard'}: {draw_again(run)} steps")
