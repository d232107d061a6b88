"""The model that is measured: a checkpoint with its tokenizer, and a backend to compute with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gptbridge.checkpoint.locating import locate
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import UsageError
from gptbridge.evaluation.scoring import Progress, Scorer
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import (
    ONE,
    Devices,
    open_model,
    reading_spec,
    run_state,
    run_tokenizer,
    trained_length,
    unknown_tokens,
)
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.overrides import parse_override

Tell = Callable[[str], None]

HOW_TO_COMPUTE = ("precision", "parallel", "training.device")


@dataclass(frozen=True, slots=True)
class Subject:
    """An open checkpoint. `trained_length` is that of its run, or all the model's positions."""

    opened: Opened
    tokenizer: Tokenizer
    trained_length: int

    @property
    def model(self) -> ModelSpec:
        """What the model is."""
        return self.opened.model

    @contextmanager
    def scorer(
        self,
        backend: str,
        window: int,
        rows: int,
        overrides: Sequence[str] = (),
        progress: Progress = lambda done, rows: None,
        devices: Devices = ONE,
    ) -> Iterator[Scorer]:
        """Open the model on a backend for rows of up to `window` tokens, about `rows` of these at a time."""
        plugin = load_backend(backend)
        spec = spec_of(self.model, window, rows, overrides, devices)
        with open_model(spec, plugin, self.opened, devices) as model:
            yield Scorer(model, rows * window, self.model.vocab_size, progress)


@contextmanager
def open_subject(checkpoint: Path, hints: Hints, tokenizer: str | None, warn: Tell) -> Iterator[Subject]:
    """Open a run's newest checkpoint, or one of any dialect, and the tokenizer that is named or lies there.

    BadInput for a classifier, and for a tokenizer that is not the run's.
    """
    with open_checkpoint(locate(checkpoint, warn), hints) as opened:
        opened.require_language_head()
        state = run_state(opened)
        words = run_tokenizer(opened, state, tokenizer)
        unknown = unknown_tokens(words, opened.model)
        doubts = [f"{unknown}, but count"] if unknown else []
        for message in (*opened.warnings, *opened.assumed, *doubts):
            warn(message)
        yield Subject(opened, words, trained_length(opened, state))


def spec_of(
    model: ModelSpec, window: int, rows: int, overrides: Sequence[str], devices: Devices = ONE
) -> RunSpec:
    """Return the spec to compute by. UsageError for an override of anything but how to compute."""
    require_heeded(overrides)
    sizes = {"seq_length": window, "global_batch_size": rows}
    return reading_spec(model, {"training": sizes}, overrides, devices)


def require_heeded(overrides: Sequence[str], *others: str) -> None:
    """Refuse an override of anything but how to compute, and of `others`, fields and sections of fields."""
    allowed = (*HOW_TO_COMPUTE, *others)
    for override in overrides:
        field = ".".join(map(str, parse_override(override)[0]))
        if not any(f"{field}.".startswith(f"{heeded}.") for heeded in allowed):
            raise UsageError(f"{override} has no place here", where="-o", allowed=", ".join(allowed))
