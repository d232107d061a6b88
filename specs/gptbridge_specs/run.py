"""Everything that defines one run: the RunSpec and its parts."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gptbridge_specs.base import Part
from gptbridge_specs.generation import GenerationSpec
from gptbridge_specs.model import ModelSpec
from gptbridge_specs.parallel import AUTO, broken_equations, divisors, multiples, next_to
from gptbridge_specs.records import RecordsSpec


class MixturePart(Part):
    """One dataset of a mixture."""

    path: str = Field(description="Token dataset, named as data.path names one.")
    weight: float = Field(gt=0, description="Its share of the samples, beside the weights of the others.")


class DataSpec(Part):
    """Which tokens, and how they are cut into samples."""

    path: str | None = Field(
        None,
        description="Token dataset: the PREFIX of .bin/.idx, a .bin, an _ids.npy, a .mindrecord, or a folder "
        "of them; absent: the embedded corpus (the Python standard library of this machine, byte-level).",
    )
    mixture: tuple[MixturePart, ...] = Field(
        (),
        description="Several datasets in place of data.path, each with its path and weight, of which samples "
        "are taken in turn: WEIGHT PATH WEIGHT PATH ..., or a list.",
    )
    validation_path: str | None = Field(
        None,
        description="Token dataset to evaluate on, whole; absent: the validation split of the data. "
        "data.split cuts these as before.",
    )
    tokenizer: str | None = Field(
        None,
        description="byte, or a folder with the files of a tokenizer; absent: the one that lies beside the "
        "dataset, else byte.",
    )
    split: tuple[float, float, float] = Field(
        (949.0, 50.0, 1.0), description="Shares of the documents for training, validation and test."
    )
    shuffle: bool = Field(True, description="Visit the samples of each epoch in a seeded random order.")
    mask_end_of_text: bool = Field(
        False, description="Leave positions whose input is the end-of-text token out of the loss."
    )

    @field_validator("split", mode="before")
    @classmethod
    def _split_as_text(cls, value: Any) -> Any:
        """Take the seeds' form too: `949,50,1`, with absent parts 0."""
        if not isinstance(value, str):
            return value
        parts = value.replace("/", ",").split(",")
        return [*parts, *["0"] * (3 - len(parts))]

    @field_validator("mixture", mode="before")
    @classmethod
    def _mixture_as_text(cls, value: Any) -> Any:
        """Take Megatron's form too: `0.7 data/a 0.3 data/b`."""
        words = value.split() if isinstance(value, str) else value
        several = isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)
        if not words or not several:
            return () if words in ("", None, []) else words
        if len(words) % 2:
            raise ValueError("a weight before each path: 0.7 data/a 0.3 data/b")
        return [
            {"weight": weight, "path": path} for weight, path in zip(words[::2], words[1::2], strict=True)
        ]

    @model_validator(mode="after")
    def _one_place_says_the_data(self) -> Self:
        if self.mixture and self.path is not None:
            raise ValueError(f"path={self.path}: data.mixture names the datasets; leave data.path out")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The datasets to train on; none: the embedded corpus."""
        return tuple(part.path for part in self.mixture) or ((self.path,) if self.path is not None else ())

    @model_validator(mode="after")
    def _split_is_a_share(self) -> Self:
        if min(self.split) < 0 or sum(self.split) <= 0:
            raise ValueError(f"split={self.split}: shares are 0 or more, and not all 0")
        return self


class LoraSpec(Part):
    """Low-rank adapters beside frozen weights."""

    rank: int = Field(8, ge=1, description="Rank of the adapters.")
    alpha: float = Field(16.0, gt=0, description="Scale; the delta is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the first adapter matrix.")
    targets: tuple[Literal["q", "k", "v", "out", "fc", "proj"], ...] = Field(
        ("q", "v"), min_length=1, description="Which linear layers of a block get adapters."
    )


class TaskSpec(Part):
    """What is learned."""

    name: Literal["language_modeling", "classification", "instruction"] = Field(
        "language_modeling",
        description="Next-token prediction, sequence classification or prompt-answer pairs.",
    )
    num_labels: int | None = Field(
        None,
        ge=1,
        description="Classes of a classification task; 1: a value is learned, by its squared error.",
    )
    lora: LoraSpec | None = Field(None, description="Train low-rank adapters only.")
    records: RecordsSpec = Field(
        default_factory=RecordsSpec, description="What a fine-tuning task makes of the lines of its file."
    )

    @property
    def regression(self) -> bool:
        """Whether a value is learned instead of a class."""
        return self.name == "classification" and self.num_labels == 1


class OptimizerSpec(Part):
    """The update rule; the learning rate is the schedule's."""

    name: Literal["adamw", "sgd"] = Field(
        "adamw", description="AdamW with decoupled decay and bias correction, or plain SGD."
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled: weights shrink by learning rate x this.")
    decay: Literal["matrices", "all"] = Field(
        "matrices", description="matrices: matrices and embeddings only; all: biases and LayerNorm too."
    )
    clip_grad_norm: float | None = Field(
        1.0, gt=0, description="Largest global gradient norm, applied before the update; null: no clipping."
    )


class ScheduleSpec(Part):
    """The learning rate of each step."""

    name: Literal["cosine", "linear", "polynomial", "noam", "constant", "plugin"] = Field(
        "cosine", description="Shape after (noam: including) the warm-up; plugin: a function of a package's."
    )
    plugin: str | None = Field(
        None, description="Name of the function, among the entry points in the group gptbridge.schedules."
    )
    arguments: tuple[float, ...] = Field((), description="Numbers for it, in an order of its own.")
    max_lr: float = Field(
        1e-3, gt=0, description="Learning rate at the end of the warm-up; noam: the base rate."
    )
    min_lr: float = Field(1e-4, ge=0, description="Learning rate from decay_steps on.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps of linear warm-up; absent: warmup_rate x decay_steps, not rounded."
    )
    warmup_rate: float = Field(0.01, ge=0, le=1, description="Warm-up as a share of decay_steps.")
    decay_steps: int | None = Field(
        None, ge=1, description="Step at which min_lr is reached; absent: max_steps."
    )
    power: float = Field(1.0, gt=0, description="Exponent of the polynomial schedule.")

    @model_validator(mode="after")
    def _rates_are_ordered(self) -> Self:
        if self.name in ("cosine", "linear", "polynomial") and self.min_lr > self.max_lr:
            raise ValueError(f"min_lr={self.min_lr} is above max_lr={self.max_lr}: swap them")
        if (self.name == "plugin") != (self.plugin is not None):
            raise ValueError(
                f"name={self.name}, plugin={self.plugin}: schedule.name=plugin and its name go together"
            )
        return self


class PrecisionSpec(Part):
    """The number format of the forward and backward pass; master weights stay fp32."""

    compute: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Type of matrix products.")
    loss_scale: Literal["dynamic"] | float = Field(
        "dynamic", description="fp16 only: dynamic, or a fixed factor on the loss."
    )
    initial_loss_scale: float = Field(65536.0, gt=0, description="fp16 dynamic: the first factor.")
    loss_scale_window: int = Field(1000, ge=1, description="fp16 dynamic: double after this many good steps.")

    @model_validator(mode="after")
    def _loss_scale_is_positive(self) -> Self:
        if self.loss_scale != "dynamic" and self.loss_scale <= 0:
            raise ValueError(f"loss_scale={self.loss_scale}: dynamic, or a number above 0")
        return self


class ParallelSpec(Part):
    """How the model and the batch are cut over devices."""

    data: int = Field(
        1, ge=1, description="Replicas that share the batch; auto: as many as --devices leaves them."
    )
    tensor: int = Field(1, ge=1, description="Devices that share each matrix, cut by heads.")
    pipeline: int = Field(1, ge=1, description="Stages that share the layers.")
    virtual_pipeline: int = Field(1, ge=1, description="Runs of layers of each stage; above 1: interleaved.")
    pipeline_schedule: Literal["gpipe", "1f1b"] = Field(
        "1f1b", description="Order of the micro-batches: all forward first, or one forward, one backward."
    )
    sharding: int = Field(1, ge=1, description="Devices that share optimizer state, gradients or weights.")
    sharding_stage: int = Field(
        0, ge=0, le=3, description="1: optimizer state, 2: and gradients, 3: and weights are sharded."
    )
    sequence: bool = Field(False, description="Cut activations between tensor-parallel regions by sequence.")

    @field_validator("data", mode="before")
    @classmethod
    def _auto_is_one_alone(cls, value: Any) -> Any:
        return 1 if value == AUTO else value

    @property
    def world_size(self) -> int:
        """Devices in all."""
        return self.data * self.tensor * self.pipeline * self.sharding


class TrainingSpec(Part):
    """Steps, batches, the device and how memory is spared."""

    max_steps: int = Field(300, ge=1, le=10**9, description="Optimizer steps of the whole run.")
    epochs: float | None = Field(
        None,
        gt=0,
        le=10**6,
        description="Passes over the training split, each sample once in each; they decide max_steps.",
    )
    stop_after_steps: int | None = Field(
        None, ge=1, description="End early at this step, with a checkpoint; the schedule does not change."
    )
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="End early with a checkpoint after so many minutes, as a job's time limit asks; "
        "a resumed run has as many again.",
    )
    global_batch_size: int = Field(8, ge=1, le=2**24, description="Samples of one optimizer step.")
    global_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens of one optimizer step; they decide global_batch_size, in whole micro-batches of "
        "every replica.",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Samples of one forward pass; absent: the whole share of a device."
    )
    seq_length: int = Field(256, ge=1, le=2**24, description="Tokens of one sample.")
    seed: int = Field(1234, ge=0, lt=2**63, description="Seed of weights, sample order and dropout.")
    device: Literal["auto", "cpu", "gpu", "ascend"] = Field(
        "auto", description="Hardware; auto: the best there is."
    )
    recompute: Literal["none", "core_attn", "full_attn", "full"] = Field(
        "none", description="Forget activations and compute them again; memory falls in this order."
    )
    compile: bool = Field(False, description="Compile the model, where the backend can.")
    new_positions: Literal["drawn", "repeated", "interpolated"] = Field(
        "drawn", description="With --init-from: what positions beyond the checkpoint's begin as."
    )
    log_interval: int = Field(1, ge=1, description="Steps between printed lines; events hold every step.")

    @model_validator(mode="after")
    def _micro_divides_global(self) -> Self:
        micro = self.micro_batch_size
        if micro is not None and self.global_batch_size % micro:
            near = next_to(micro, divisors(self.global_batch_size))
            raise ValueError(
                f"micro_batch_size={micro} does not divide global_batch_size={self.global_batch_size}: {near}"
            )
        return self


class CheckpointSpec(Part):
    """When the run is saved and how much is kept."""

    interval: int = Field(100, ge=1, description="Steps between checkpoints; the last step is always saved.")
    keep: int = Field(2, ge=2, description="Newest checkpoints kept; at least 2, so that one may be damaged.")
    keep_every: int | None = Field(
        None, ge=1, description="Also keep every checkpoint at a multiple of this."
    )
    keep_best: bool = Field(
        False,
        description="Save at the best evaluation so far and keep it: checkpoints/best leads there.",
    )


class EvaluationSpec(Part):
    """Loss on the validation split while training."""

    interval: int = Field(100, ge=0, description="Steps between evaluations; 0: never.")
    batches: int = Field(10, ge=1, description="Batches of one evaluation, at the most.")
    global_batch_size: int | None = Field(
        None, ge=1, description="Samples of one batch; absent: training.global_batch_size."
    )
    metric: Literal["loss", "perplexity"] = Field(
        "loss", description="Number of an evaluation that says which is the best."
    )
    patience: int | None = Field(
        None, ge=1, description="End early after so many evaluations in turn without a better one."
    )
    min_delta: float = Field(0.0, ge=0, description="By how much more a better one must be better.")


class RunSpec(Part):
    """One run, whole: model, data, task and everything that decides its numbers."""

    model: ModelSpec = Field(default_factory=ModelSpec, description="What the model is.")
    data: DataSpec = Field(default_factory=DataSpec, description="What it reads.")
    task: TaskSpec = Field(default_factory=TaskSpec, description="What it learns.")
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec, description="How weights change.")
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec, description="How fast, at each step.")
    precision: PrecisionSpec = Field(default_factory=PrecisionSpec, description="In which number format.")
    parallel: ParallelSpec = Field(default_factory=ParallelSpec, description="On how many devices.")
    training: TrainingSpec = Field(default_factory=TrainingSpec, description="For how long.")
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="What is saved.")
    generation: GenerationSpec = Field(default_factory=GenerationSpec, description="How it writes text.")
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec, description="How it is measured.")

    @model_validator(mode="before")
    @classmethod
    def _batch_of_tokens(cls, values: Any) -> Any:
        """Count the samples of training.global_batch_tokens, to the nearest batch that can be cut."""
        if not isinstance(values, dict):
            return values
        training, parallel = (_plain(values.get(name)) for name in ("training", "parallel"))
        tokens = training.get("global_batch_tokens")
        if tokens is None:
            return values
        try:
            sizes = (parallel.get(name, 1) for name in ("data", "sharding"))
            parts = [1 if size == AUTO else int(size) for size in sizes]
            unit = parts[0] * parts[1] * int(training.get("micro_batch_size") or 1)
            length = int(training.get("seq_length", TrainingSpec.model_fields["seq_length"].default))
            samples = max(round(int(tokens) / length / unit), 1) * unit
        except (TypeError, ValueError, ZeroDivisionError):
            return values  # each is refused by its own field
        return {**values, "training": {**training, "global_batch_size": samples}}

    @model_validator(mode="after")
    def _sample_fits_positions(self) -> Self:
        if self.training.seq_length > self.model.max_position_embeddings:
            raise ValueError(
                f"training.seq_length={self.training.seq_length} exceeds "
                f"model.max_position_embeddings={self.model.max_position_embeddings}"
            )
        replicas = self.parallel.data * self.parallel.sharding
        micro = self.training.micro_batch_size or 1
        if self.training.global_batch_size % (replicas * micro):
            near = multiples(self.training.global_batch_size, replicas * micro * self.parallel.pipeline)
            raise ValueError(
                f"training.global_batch_size={self.training.global_batch_size} is not a multiple of "
                f"parallel.data x parallel.sharding x micro_batch_size = {replicas * micro}: {near}"
            )
        if broken := list(broken_equations(self)):
            raise ValueError("\n".join(broken))
        return self

    @model_validator(mode="after")
    def _task_and_length_fit(self) -> Self:
        watches = self.checkpoint.keep_best or self.evaluation.patience is not None
        if watches and not self.evaluation.interval:
            raise ValueError(
                "evaluation.interval=0: evaluation.patience and checkpoint.keep_best go by evaluations"
            )
        if self.data.mixture and self.training.epochs is not None:
            raise ValueError(
                f"training.epochs={self.training.epochs:g} counts passes over one dataset: with data.mixture "
                "training.max_steps says the length"
            )
        if self.task.name == "classification" and self.task.num_labels is None:
            raise ValueError("task.num_labels is needed for task.name=classification")
        if self.task.name == "classification" and self.evaluation.metric == "perplexity":
            raise ValueError("evaluation.metric=perplexity: a classifier has none, but loss")
        return self

    @property
    def micro_batch_size(self) -> int:
        """Samples of one forward pass on one device."""
        share = self.training.global_batch_size // (self.parallel.data * self.parallel.sharding)
        return self.training.micro_batch_size or share

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all devices."""
        return self.training.global_batch_size * self.training.seq_length


def _plain(section: Any) -> dict[str, Any]:
    """Return what a section is given as: a mapping, or fields that are set."""
    if isinstance(section, Part):
        return section.model_dump(exclude_unset=True)
    return section if isinstance(section, dict) else {}
