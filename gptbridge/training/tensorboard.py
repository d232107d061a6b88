"""Events as TensorBoard scalars, in RUN/tensorboard. Needs the extra `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.training.events import Event

# Event kind -> its numbers that become scalars, each under "KIND/NAME".
_SCALARS = {
    "step": ("loss", "learning_rate", "grad_norm", "tokens_per_second", "loss_scale"),
    "evaluate": ("loss", "perplexity"),
}


class TensorBoard:
    """An observer that writes what TensorBoard shows."""

    def __init__(self, run: Path) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise UsageError(
                "TensorBoard files need tensorboardX", hint="Run: pip install 'gptbridge[tensorboard]'"
            ) from error
        self._module = tensorboardX
        self._folder = run / "tensorboard"
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Write the scalars of one event."""
        kind = event["event"]
        if kind in ("start", "resume"):
            # What was drawn beyond the resumed step is taken back.
            beyond = event.get("step", 0) + 1
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=beyond)
        for name in _SCALARS.get(kind, ()):
            if event.get(name) is not None:
                self._writer.add_scalar(f"{kind}/{name}", event[name], event["step"], event["time"])
        if kind == "end" and self._writer is not None:
            self._writer.close()
