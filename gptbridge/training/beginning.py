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


@dataclass(frozen=True, slots=True)
class Beginning:
    """A checkpoint to begin from: a file or folder of any dialect, or a run folder."""

    checkpoint: Path
    hints: Hints

    def open(self, warn: Warn) -> Opened:
        """Open it. BadInput for a classifier or anything damaged."""
        opened = open_checkpoint(locate(self.checkpoint, warn), self.hints)
        try:
            opened.require_language_head()
        except BadInput:
            opened.close()
            raise
        return opened

    def spec(
        self, named: str | RunSpec | None, overrides: Sequence[str], devices: int | None = None
    ) -> RunSpec:
        """Return the run of a preset, file or spec, of this checkpoint's model.

        UsageError with a line for each field that the spec sets otherwise and may not.
        """
        with self.open(lambda message: None) as opened:
            model = opened.model
        spec = load_run_of(model, named, overrides, devices)
        refused = [
            f"model.{field}: {ours} in the spec, {theirs} in {self.checkpoint}"
            for field, ours, theirs in _differences(spec.model, model)
            if field not in MAY_DIFFER
        ]
        if refused:
            free = ", ".join(MAY_DIFFER)
            refused[-1] += (
                f". The checkpoint decides the model: leave them out. Of the model {free} may differ"
            )
            raise UsageError("\n".join(refused))
        return spec


class BegunWeights:
    """The weights of a checkpoint as a run's model has them, read in slices.

    Rows of the vocabulary and positions that the model has not are cut off. Those that it has beyond the
    checkpoint's are drawn as initial weights are; positions by training.new_positions.
    """

    def __init__(self, opened: Opened, spec: RunSpec) -> None:
        self._held = opened.merged()  # with its adapter
        self._spec = spec
        self._drawn = InitialWeights(spec.model, spec.training.seed)
        self._held_rows = {x: sizes(opened.model)[x] for x in "tv"}
        self._rows = {x: sizes(spec.model)[x] for x in "tv"}

    def read(self, name: str, box: Box) -> Array:
        """Return the slice `box` of a weight in its canonical shape."""
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
