"""The files of one checkpoint: config.json and weights, with the moments and the state beside them.

Of a run that trains adapters, an adapter's two files stand in the place of config.json and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptbridge.checkpoint.state import TrainingState, write_state
from gptbridge.checkpoint.tensor_files import TensorFiles
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.files import write_json
from gptbridge.session import MOMENTS, Kind, Shard
from gptbridge.weights.canonical.lora import trained_lora
from gptbridge.weights.dialects.gptbridge import config_of
from gptbridge.weights.dialects.peft import write_adapter_files
from gptbridge.weights.shards import arrays, from_arrays

CONFIG_FILE = "config.json"
WEIGHTS_STEM = "model"
MOMENTS_STEM = "optimizer"


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds. Of the tensors these are one rank's `shards`, by kind: those that it owns.

    They are read one after the other, as they go to the disk. Adapters are written by one rank, which has
    them whole.
    """

    state: TrainingState
    tokenizer: Tokenizer
    shards: Mapping[Kind, Sequence[Shard]]

    def create(self, folder: Path) -> None:
        """Write into an empty folder all but the tensors, whose files get their full size."""
        model, task = self.state.spec.model, self.state.spec.task
        if task.lora is not None:
            self._create_adapter(folder)
        else:
            labels = task.num_labels if task.name == "classification" else None
            config = config_of(model, end_of_text=self.tokenizer.end_of_text, num_labels=labels)
            write_json(folder / CONFIG_FILE, config)
        for files, _ in self._tensors():
            files.create(folder)
        self.tokenizer.save(folder)
        write_state(folder, self.state)

    def write_tensors(self, folder: Path) -> None:
        """Write the shards into the files that one of the ranks has created."""
        for files, shards in self._tensors():
            files.write(folder, shards)

    def _create_adapter(self, folder: Path) -> None:
        """Write the adapter; its base is where the run began."""
        model, task, origin = self.state.spec.model, self.state.spec.task, self.state.origin
        lora = trained_lora(model, task, from_arrays(model, arrays(self.shards["weight"]), task))
        dtypes = dict.fromkeys(lora.all_weights, "float32")
        base = None if origin is None else str(Path(origin.path).absolute())
        dropout = task.lora.dropout if task.lora is not None else 0.0
        write_adapter_files(lora, model, dtypes, folder, base=base, dropout=dropout)

    def _tensors(self) -> Iterator[tuple[TensorFiles, Mapping[str, Sequence[Shard]]]]:
        model, task = self.state.spec.model, self.state.spec.task
        if task.lora is None:
            yield TensorFiles(WEIGHTS_STEM, model, task=task), {"": self.shards["weight"]}
        if moments := {f".{kind}": self.shards[kind] for kind in kinds_of(self.state)[1:]}:
            yield TensorFiles(MOMENTS_STEM, model, tuple(moments), task=task), moments


def kinds_of(state: TrainingState) -> tuple[Kind, ...]:
    """Return the kinds of tensors of a run: weights, then their moments unless it is plain SGD."""
    return ("weight",) if state.spec.optimizer.name == "sgd" else ("weight", *MOMENTS)
