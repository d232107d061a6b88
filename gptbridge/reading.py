"""A checkpoint that is read and not trained: at which length it was, and its model open on a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from gptbridge.checkpoint.resuming import require_base
from gptbridge.checkpoint.state import TrainingState, is_of_a_run, read_state
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput
from gptbridge.plan.fitting import require_devices_here, require_room_to_open
from gptbridge.plugins.backend import Backend
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Opened
from gptbridge.weights.shards import load
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.loading import build
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.parallel import cut_to_read


def run_state(opened: Opened) -> TrainingState | None:
    """Return what the run that wrote a checkpoint says of itself; None for one of no run.

    BadInput for a base model that somebody names, and that its adapters were not trained beside.
    """
    if not is_of_a_run(opened.folder):
        return None
    state = read_state(opened.folder)
    if opened.hints.base is not None:
        require_base(opened.base, state.origin)
    return state


def trained_length(opened: Opened, state: TrainingState | None) -> int:
    """Return the tokens of a sample in training, or all the model's positions where no run says it."""
    return opened.model.max_position_embeddings if state is None else state.spec.training.seq_length


def run_tokenizer(opened: Opened, state: TrainingState | None, named: str | None) -> Tokenizer:
    """Return the tokenizer `named`, or whose files lie in the folder; BadInput for one not the run's."""
    tokenizer = opened.tokenizer(named)
    if state is not None and state.data.tokenizer != tokenizer.identity:
        raise BadInput(
            f"is not the tokenizer that the run was trained with: {tokenizer.identity[:16]}, "
            f"not {state.data.tokenizer[:16]}",
            where=named or opened.folder,
        )
    return tokenizer


def unknown_tokens(tokenizer: Tokenizer, model: ModelSpec) -> str | None:
    """Return how many of the model's tokens the tokenizer lacks, in words; None where it lacks none."""
    unknown = model.vocab_size - tokenizer.vocab_size
    words = f"{unknown} of the model's {model.vocab_size} tokens are none of the tokenizer's"
    return words if unknown > 0 else None


@dataclass(frozen=True, slots=True)
class Devices:
    """On how many devices of this machine a model is read; None: on as many as the spec's layout has."""

    count: int | None = None
    hang_seconds: float = 300.0  # after which ranks that do nothing are given up


ONE = Devices()


def reading_spec(
    model: ModelSpec, content: dict[str, Any], overrides: Sequence[str], devices: Devices
) -> RunSpec:
    """Return the spec that `model` is read by; `content` says how much of what is read at once.

    SpecError with every problem; for a layout, with the equation that it breaks.
    """
    changed = apply_overrides({"model": model.model_dump(), **content}, overrides)
    return build(RunSpec, cut_to_read(changed, model, devices.count))


@contextmanager
def open_model(
    spec: RunSpec, backend: Backend, opened: Opened, devices: Devices = ONE
) -> Iterator[LanguageModel]:
    """Open the model of `spec` on `backend` with the weights of a checkpoint; close it in the end.

    On several devices it is open on ranks, which this process starts. UsageError, before the framework is
    loaded, where the memory at hand does not hold it.
    """
    ranks, weights = spec.parallel.world_size, opened.merged()
    if ranks > 1:
        from gptbridge.reading_ranks import open_on_ranks

        backend.check(spec)
        sharing = require_devices_here(spec, backend.info, ranks)
        require_room_to_open(spec, backend.info, ranks=sharing)
        with open_on_ranks(spec, backend, opened, devices.hang_seconds) as model:
            yield model
        return
    require_room_to_open(spec, backend.info)
    with closing(backend.open_model(spec)) as model:
        load(model.shards(), weights.read)
        yield model
