"""Begin a run from the weights of a checkpoint of any dialect: its model, its weights, where it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.state import Origin
from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.architecture import sizes
from gptbridge.weights.conversion.facts import digest
from gptbridge.weights.initial import InitialWeights
from gptbridge.weights.layouts.boxes import Box
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.loading import load_run_of
from gptbridge_specs.run import TaskSpec

Array = NDArray[np.float32]
Places = NDArray[Any]  # numbers of rows, or between them
Warn = Callable[[str], None]

# Fields of the model that a spec may set otherwise than the checkpoint that the run begins from.
MAY_DIFFER = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "max_position_embeddings",
    "vocab_size",
)
MAY_DIFFER_BESIDE_ADAPTERS = MAY_DIFFER[:3]  # they are trained beside the weights as they are


@dataclass(frozen=True, slots=True)
class Beginning:
    """A checkpoint to begin from: a file or folder of any dialect, or a run folder."""

    checkpoint: Path
    hints: Hints

    def open(self, warn: Warn) -> Opened:
        """Open it. BadInput for anything damaged."""
        return open_checkpoint(locate(self.checkpoint, warn), self.hints)

    def spec(
        self, named: str | RunSpec | None, overrides: Sequence[str], devices: int | None = None
    ) -> RunSpec:
        """Return the run of a preset, file or spec, of this checkpoint's model.

        UsageError with a line for each field that the spec sets otherwise and may not; BadInput for a
        classifier, unless classes are what the run learns.
        """
        with self.open(lambda message: None) as opened:
            spec = _with_tokenizer(load_run_of(opened.model, named, overrides, devices), opened)
            _require_beginning(opened, spec.task)
            _require_model(spec, opened, self.checkpoint)
        return spec


class BegunWeights:
    """The weights of a checkpoint as a run's model has them, read in slices.

    Rows of the vocabulary and positions that the model has not are cut off. Those that it has beyond the
    checkpoint's are drawn as initial weights are; positions by training.new_positions. Adapters are drawn,
    and a head for as many classes as the checkpoint has none for.
    """

    def __init__(self, opened: Opened, spec: RunSpec) -> None:
        _require_model(spec, opened, opened.path)
        self._held = opened.merged()  # with its adapter
        self._spec = spec
        self._has_head = opened.num_labels == spec.task.num_labels
        self._drawn = InitialWeights(spec.model, spec.training.seed, spec.task)
        self._held_rows = {x: sizes(opened.model)[x] for x in "tv"}
        self._rows = {x: sizes(spec.model)[x] for x in "tv"}

    def read(self, name: str, box: Box) -> Array:
        """Return the slice `box` of a weight in its canonical shape."""
        if name not in self._held.weights or (name == "score.weight" and not self._has_head):
            return self._drawn.read(name, box)
        letter = next((x for x in box if self._held_rows.get(x, 0) < self._rows.get(x, 0)), None)
        if letter is None:
            return self._held.read(name, box)
        held, (start, stop) = self._held_rows[letter], box[letter]
        if letter == "t" and (place := _PLACES.get(self._spec.training.new_positions)):
            rows = self._held.read(name, {**box, letter: (0, held)})
            return _between(rows, place(np.arange(start, stop), held, self._rows[letter]))
        end = min(max(held, start), stop)
        parts = [self._held.read(name, {**box, letter: (start, end)})] if start < end else []
        return np.concatenate([*parts, self._drawn.read(name, {**box, letter: (end, stop)})])


# training.new_positions -> positions, how many there are in the checkpoint and in the run -> rows to take
_PLACES: dict[str, Callable[[Places, int, int], Places]] = {
    "repeated": lambda positions, held, whole: positions % held,
    "interpolated": lambda positions, held, whole: positions * (held - 1) / (whole - 1),
}


def _with_tokenizer(spec: RunSpec, opened: Opened) -> RunSpec:
    """Return `spec` with the checkpoint's tokenizer for records, unless it names one or there is none."""
    if spec.task.name == "language_modeling" or spec.data.tokenizer is not None:
        return spec
    with suppress(BadInput):
        opened.tokenizer()
        data = spec.data.model_copy(update={"tokenizer": str(opened.tokenizer_folder)})
        return spec.model_copy(update={"data": data})
    return spec


def _require_beginning(opened: Opened, task: TaskSpec) -> None:
    """Refuse a checkpoint that a run of `task` cannot begin from."""
    if task.name != "classification":
        opened.require_language_head()
    if task.lora is not None and opened.adapter is not None:
        raise UsageError(
            "has adapters already, and new ones would stand beside the weights without them",
            where=opened.path,
            hint="Add them to the weights: gptbridge convert --merge-lora",
        )


def _require_model(spec: RunSpec, opened: Opened, checkpoint: Path) -> None:
    """Refuse, with a line for each, fields of a model that is not the checkpoint's and may not differ."""
    may_differ = MAY_DIFFER_BESIDE_ADAPTERS if spec.task.lora else MAY_DIFFER
    refused = [
        f"model.{field}: {ours} in the spec, {theirs} in {checkpoint}"
        for field, ours, theirs in _differences(spec.model, opened.model)
        if field not in may_differ
    ]
    if refused:
        free = ", ".join(may_differ)
        refused[-1] += f". The checkpoint decides the model: leave them out. Of the model {free} may differ"
        raise UsageError("\n".join(refused))


def origin_of(opened: Opened) -> Origin:
    """Return what a run keeps of where it began; every weight is read for the digest."""
    return Origin(path=str(opened.path), dialect=opened.dialect, digest=f"sha256:{digest(opened)}")


def advise_beginning(opened: Opened, spec: RunSpec, tokenizer: str) -> list[str]:
    """Return what to warn of a run of `spec`, whose data has `tokenizer` (identity), that begins here."""
    advice = [*opened.warnings, *opened.assumed]
    advice += [
        f"model.{field} is {ours}, the checkpoint has {theirs}"
        for field, ours, theirs in _differences(spec.model, opened.model)
        if field in ("max_position_embeddings", "vocab_size")
    ]
    if opened.adapter is not None:
        advice.append("its adapters are added to the weights, and all of them trained")
    classes = opened.num_labels
    if classes is not None and spec.task.num_labels not in (None, classes):
        advice.append(f"the head of {classes} classes is left out: one of {spec.task.num_labels} is drawn")
    with suppress(BadInput):
        own = opened.tokenizer().identity
        if own != tokenizer:
            advice.append(
                f"the data were made with tokenizer {tokenizer[:12]}, beside the checkpoint lies {own[:12]}: "
                "the same number may mean another word"
            )
    return advice


def _differences(ours: ModelSpec, theirs: ModelSpec) -> list[tuple[str, object, object]]:
    """Return the fields in which two models differ; an absent feed-forward size is its default."""
    mine = ours.model_dump() | {"ffn_hidden_size": ours.ffn_size}
    other = theirs.model_dump() | {"ffn_hidden_size": theirs.ffn_size}
    return [(field, mine[field], other[field]) for field in mine if mine[field] != other[field]]


def _between(rows: Array, places: Places) -> Array:
    """Return `rows` (N, H) at `places` (M,), (M, H), linear between neighbours."""
    below = np.floor(places).astype(np.int64)
    share = (places - below)[:, None]
    between: Array = rows[below] * (1 - share) + rows[np.minimum(below + 1, len(rows) - 1)] * share
    return between.astype(np.float32)
