"""Events as TensorBoard scalars, in RUN/tensorboard. Needs the extra `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptbridge.errors import UsageError, from_checkout
from gptbridge.files import discard
from gptbridge.training.events import EVENTS_FILE, Event, history, read_events

# Event kind -> its numbers that become scalars, each under "KIND/NAME".
_SCALARS = {
    "step": ("loss", "learning_rate", "grad_norm", "tokens_per_second", "loss_scale"),
    "evaluate": ("loss", "perplexity"),
}


_FOLDER = "tensorboard"


def is_written(run: Path) -> bool:
    """Tell whether a run has files for TensorBoard, which it then goes on with."""
    return (run / _FOLDER).is_dir()


class TensorBoard:
    """An observer that writes what TensorBoard shows; first, at a resume, all that was before.

    The files are made anew from events.jsonl then: what was drawn without them, beyond the step that
    is resumed from, or in a file that a kill cut short, is right again.
    """

    def __init__(self, run: Path) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise UsageError(
                "TensorBoard files need tensorboardX", hint=from_checkout("tensorboard")
            ) from error
        self._module = tensorboardX
        self._run = run
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write the scalars of one event."""
        kind = event["event"]
        if kind in ("start", "resume"):
            self._begin()
        elif self._writer is not None:
            self._draw(event)
        if kind == "end" and self._writer is not None:
            self._writer.close()

    def _begin(self) -> None:
        folder, log = self._run / _FOLDER, self._run / EVENTS_FILE
        if folder.is_symlink():
            raise UsageError("is a link, and nothing is written through one", where=folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            discard(old)
        self._writer = self._module.SummaryWriter(str(folder))
        for event in history(read_events(log)) if log.exists() else ():
            self._draw(event)

    def _draw(self, event: Event) -> None:
        kind = event["event"]
        for name in _SCALARS.get(kind, ()):
            if isinstance(value := event.get(name), (int, float)):  # null is no number
                self._writer.add_scalar(f"{kind}/{name}", value, event["step"], event.get("time"))


def draw_again(run: Path) -> int:
    """Make RUN/tensorboard again from events.jsonl; return the number of steps that it shows."""
    events = history(read_events(run / EVENTS_FILE))
    board = TensorBoard(run)
    board({"event": "start"})
    board({"event": "end"})
    return sum(event["event"] == "step" for event in events)
