"""A checkpoint of any dialect, opened."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput
from gptbridge.weights.architecture import parameters, weight_axes
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.canonical.cutting import Stage
from gptbridge.weights.canonical.lora import Lora
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.boxes import Box
from gptbridge.weights.opening.hints import Hints
from gptbridge_specs import ModelSpec

if TYPE_CHECKING:
    from gptbridge.data.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint: its model, and its canonical weights, read in slices. A context manager that closes it.

    `sizes` are those of the stored tensors: `v` counts rows of padding too. `language_head` is False for a
    classifier that has no head over the vocabulary. `assumed` is what was taken for granted because no
    file and no hint says it; `warnings` are of a configuration that was overruled, of dialects that do
    not load.
    """

    path: Path
    dialect: str
    variant: str
    model: ModelSpec
    sizes: Mapping[str, int]
    weights: Mapping[str, CanonicalWeight]
    adapter: Lora | None
    language_head: bool
    stages: tuple[Stage, ...]
    dropped: tuple[str, ...]  # tensors that are no weights
    config_file: str  # "" for none
    tokens: Mapping[str, int]  # special tokens, by TOKEN_KEYS
    assumed: tuple[str, ...]
    warnings: tuple[str, ...]
    _open_files: ExitStack
    base: Path | None = None  # where the weights are from, of an adapter in a folder of its own
    hints: Hints = field(default_factory=Hints)  # it was opened with

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint, where its configuration and its tokenizer lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def files(self) -> list[WeightFile]:
        """The weight files of all ranks, stage by stage."""
        return list(dict.fromkeys(file for stage in self.stages for file in stage.ranks))

    @property
    def num_labels(self) -> int | None:
        """How many classes the classifier's head has, if there is one."""
        return self.sizes["c"] if "score.weight" in self.weights else None

    @property
    def names(self) -> list[str]:
        """The model's weights in canonical order."""
        known = [parameter.name for parameter in parameters(self.model)]
        return [name for name in (*known, "score.weight") if name in self.weights]

    @property
    def all_weights(self) -> Mapping[str, CanonicalWeight]:
        """The weights of the model and of its adapter, if that is kept apart."""
        return {**self.weights, **(self.adapter.weights if self.adapter else {})}

    @property
    def whole(self) -> Mapping[str, int]:
        """The sizes of the model's weights, the vocabulary without padding."""
        return {**self.sizes, "v": self.model.vocab_size}

    @property
    def arrays(self) -> CanonicalArrays:
        """The model's weights by name, as whole float32 arrays in canonical shape."""
        return CanonicalArrays({name: self.weights[name] for name in self.names}, self.whole)

    def read(self, name: str, box: Box) -> NDArray[np.float32]:
        """Return a slice of a weight, or of a factor, in its canonical shape.

        BadInput for what float32 cannot hold.
        """
        return self.all_weights[name].read(box, weight_axes(name), "float32")

    def merged(self) -> Opened:
        """Return the checkpoint with its adapter, if it has one, added to the weights as they are read."""
        if self.adapter is None:
            return self
        return replace(self, weights=self.adapter.merged(self.weights), adapter=None)

    def require_language_head(self) -> None:
        """Raise BadInput for a classifier that has no head over the vocabulary."""
        if not self.language_head:
            raise BadInput(
                f"is a classifier with {self.num_labels} classes (score.weight): it has no language head",
                where=self.path,
                hint="gptbridge inspect shows it, gptbridge convert carries it to other systems",
            )

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer lies: beside an adapter, or else beside the base model."""
        base = self.base
        if base is None or any(self.folder.glob("tokenizer*")) or any(self.folder.glob("vocab*")):
            return self.folder
        return base if base.is_dir() else base.parent

    def tokenizer(self, named: str | None = None) -> Tokenizer:
        """Return the tokenizer `named`, or whose files lie in the folder; BadInput where there is none."""
        from gptbridge.data.tokenizers import load_tokenizer

        try:
            return load_tokenizer(str(self.tokenizer_folder) if named is None else named)
        except BadInput as error:
            error.hint = error.hint or "Name another: --tokenizer FOLDER, or --tokenizer byte"
            raise

    def close(self) -> None:
        """Close the files; arrays that were read stay."""
        self._open_files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
