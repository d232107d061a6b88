"""What a run needs to continue beside weights and moments: the content of state.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from gptbridge.checkpoint.manifest import MANIFEST_FILE
from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json, write_json
from gptbridge.session import TrainerState
from gptbridge_specs import RunSpec
from gptbridge_specs.base import Part

STATE_FILE = "state.json"
# Dropout streams are keyed, not carried: (seed, step, micro-batch) is the whole state.
RngAlgorithm = Literal["blake2b(seed, step, micro_batch)"]


class DataPosition(Part):
    """Where in the data the run stands. The next batch is a pure function of seed and step."""

    digest: str = Field(description="Identity of the dataset and of how it is cut into samples.")
    tokenizer: str = Field(description="Identity of the tokenizer.")
    samples: int = Field(ge=0, description="Samples of the training split used so far.")


class Origin(Part):
    """The checkpoint whose weights a run began from."""

    path: str
    dialect: str
    digest: str = Field(description="Of its canonical weights, as gptbridge inspect shows it.")


class Best(Part):
    """The best evaluation so far."""

    metric: str
    value: float
    step: int = Field(ge=0)
    since: int = Field(0, ge=0, description="Evaluations after it.")


class RngState(Part):
    """From where every random number of the next steps follows."""

    algorithm: RngAlgorithm = "blake2b(seed, step, micro_batch)"
    seed: int = Field(ge=0)
    step: int = Field(ge=0)


class OptimizerState(Part):
    """The optimizer's numbers beside its moments."""

    updates: int = Field(ge=0, description="Updates applied: steps that were not skipped.")
    loss_scale: float | None = Field(None, gt=0, description="fp16 only.")
    good_steps: int = Field(0, ge=0, description="fp16 with dynamic scale: steps since it last changed.")


class TrainingState(Part):
    """A run after `step` steps."""

    version: Literal[1] = 1
    step: int = Field(ge=0)
    tokens: int = Field(ge=0, description="Tokens seen.")
    data: DataPosition
    rng: RngState
    optimizer: OptimizerState
    backend: str = Field(description="Who wrote the checkpoint.")
    spec_sha256: str
    spec: RunSpec
    origin: Origin | None = Field(None, description="Absent: the initial weights were drawn.")
    best: Best | None = Field(None, description="Absent: nothing was evaluated yet.")

    def trainer_state(self) -> TrainerState:
        """Return what a trainer of the run goes on from."""
        return TrainerState(**self.optimizer.model_dump())


def state_after(
    step: int,
    spec: RunSpec,
    trainer: TrainerState,
    *,
    backend: str,
    digest: str,
    tokenizer: str,
    origin: Origin | None = None,
    best: Best | None = None,
) -> TrainingState:
    """Return the state of a run of `spec` that has done `step` steps."""
    samples = step * spec.training.global_batch_size
    return TrainingState(
        step=step,
        tokens=step * spec.tokens_per_step,
        data=DataPosition(digest=digest, tokenizer=tokenizer, samples=samples),
        rng=RngState(seed=spec.training.seed, step=step),
        optimizer=OptimizerState.model_validate(asdict(trainer)),
        backend=backend,
        spec_sha256=spec_hash(spec),
        spec=spec,
        origin=origin,
        best=best,
    )


def spec_hash(spec: RunSpec) -> str:
    """Return the sha256 of the spec's canonical JSON: sorted keys, no spaces."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_state(folder: Path, state: TrainingState) -> None:
    """Write state.json into `folder`."""
    write_json(folder / STATE_FILE, state.model_dump(mode="json"))


def is_of_a_run(folder: Path) -> bool:
    """Tell whether `folder` is a checkpoint that a run wrote: either file may as well be someone else's."""
    return (folder / STATE_FILE).exists() and (folder / MANIFEST_FILE).exists()


def read_state(folder: Path) -> TrainingState:
    """Read state.json of `folder`; BadInput when it is not one."""
    path = folder / STATE_FILE
    try:
        return TrainingState.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{printable(field)}: {printable(first['msg'])}", where=path) from error
