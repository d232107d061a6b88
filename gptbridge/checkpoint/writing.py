"""The files of one checkpoint: config.json and weights, with the moments and the state beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptbridge.checkpoint.state import TrainingState, write_state
from gptbridge.checkpoint.tensor_files import TensorFiles
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.files import write_json
from gptbridge.session import MOMENTS, Kind, Shard
from gptbridge.weights.dialects.gptbridge import config_of

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "model"
MOMENTS_STEM = "optimizer"


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. Of the tensors these are one rank's `shards`, by kind: those that it owns.

    They are read one after the other, as they go to the disk.
    """

    state: TrainingState
    tokenizer: Tokenizer
    shards: Mapping[Kind, Sequence[Shard]]

    def create(self, folder: Path) -> None:
        """Write into an empty folder all but the tensors, whose files get their full size."""
        model = self.state.spec.model
        write_json(folder / CONFIG_FILE, config_of(model, end_of_text=self.tokenizer.end_of_text))
        for files, _ in self._tensors():
            files.create(folder)
        self.tokenizer.save(folder)
        write_state(folder, self.state)

    def write_tensors(self, folder: Path) -> None:
        """Write the shards into the files that one of the ranks has created."""
        for files, shards in self._tensors():
            files.write(folder, shards)

    def _tensors(self) -> Iterator[tuple[TensorFiles, Mapping[str, Sequence[Shard]]]]:
        model = self.state.spec.model
        yield TensorFiles(WEIGHTS_STEM, model), {"": self.shards["weight"]}
        if moments := {f".{kind}": self.shards[kind] for kind in kinds_of(self.state)[1:]}:
            yield TensorFiles(MOMENTS_STEM, model, tuple(moments)), moments


def kinds_of(state: TrainingState) -> tuple[Kind, ...]:
    """Return the kinds of tensors of a run: weights, then their moments unless it is plain SGD."""
    return ("weight",) if state.spec.optimizer.name == "sgd" else ("weight", *MOMENTS)
