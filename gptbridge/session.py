"""What a backend hands to the core: one rank's model, and its optimizer. NumPy crosses this boundary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gptbridge.weights.layouts.axes import Axes

DeviceKind = Literal["cpu", "gpu", "ascend"]
Kind = Literal["weight", "gradient", "exp_avg", "exp_avg_sq"]

MOMENTS: tuple[Kind, ...] = ("exp_avg", "exp_avg_sq")  # AdamW's, of each trained weight


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session computes. `handle` is the framework's own object, `name` is for people."""

    kind: DeviceKind
    name: str
    handle: Any
    memory: int | None = None  # its free bytes, where the framework says; a CPU's are the machine's


@dataclass(frozen=True, slots=True)
class Shard:
    """What this rank holds of one tensor of the model: a weight, its gradient or a moment of it.

    `read` and `write` carry float32 arrays in the canonical shape of `box` (`axes`, sizes of the box).
    """

    name: str  # canonical, from gptbridge.weights.architecture
    axes: Axes
    box: Mapping[str, tuple[int, int]]  # letter of `axes` -> [start, stop) within the whole tensor
    owned: bool  # of the ranks that hold this box, the one that saves it and counts it in norms
    read: Callable[[], NDArray[np.float32]]
    write: Callable[[NDArray[np.float32]], None]

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical shape of the box."""
        return self.axes.shape({letter: stop - start for letter, (start, stop) in self.box.items()})


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one optimizer step: A micro-batches of B samples of T tokens.

    The loss of the step is the sum of the unmasked tokens' negative log likelihood / `loss_tokens`,
    where `loss_tokens` counts the unmasked tokens of the global batch, over all ranks. Labels of float32
    are values of a regression: the loss of each is the squared error of the model's one output.
    """

    inputs: NDArray[np.int32]  # (A, B, T)
    labels: NDArray[Any]  # (A, B, T), int32 or float32
    loss_mask: NDArray[np.bool_]  # (A, B, T), True where the label counts
    loss_tokens: int
    dropout_seeds: tuple[int, ...]  # A seeds below 2^63: a micro-batch's dropout depends on its own alone
    # (A, B, T), where in its row each token's record begins: a token sees no other record, and its position
    # is counted from there. None: every row is one.
    starts: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    grad_norm: float  # global L2 norm before clipping
    skipped: bool = False  # the gradients overflowed and no weight changed
    loss_scale: float | None = None  # fp16 only


@dataclass(frozen=True, slots=True)
class TrainerState:
    """The few numbers beside weights and moments that a run needs to continue on any backend."""

    updates: int = 0  # optimizer updates applied: AdamW's bias correction counts them
    loss_scale: float | None = None  # fp16 only
    good_steps: int = 0  # fp16 with dynamic scale: steps since the scale last changed


@runtime_checkable
class Decoder(Protocol):
    """Rows of tokens that grow, with the keys and values of what was fed kept between calls."""

    def feed(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append to each of R rows the first `lengths` (R,) of its `tokens` (R, T); return (R, V) logits.

        The logits are those after a row's last token; a row of length 0 has any. ValueError where a row
        outgrows the decoder's capacity.
        """

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row. Rows that are not named are dropped."""


@runtime_checkable
class LanguageModel(Protocol):
    """One rank's model on its device, without an optimizer."""

    def shards(self, kind: Kind = "weight") -> Sequence[Shard]:
        """Return what this rank holds of each tensor of `kind`, in the order of the architecture table.

        A model has weights alone. A trainer has moments unless it is SGD, and gradients after
        `accumulate`.
        """

    def token_losses(
        self,
        inputs: NDArray[np.int32],
        labels: NDArray[Any],
        at: NDArray[np.int32] | None = None,
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood, or squared error, of each of (B, T) `labels`, without dropout.

        With positions `at` (B, K) of the (B, T) inputs, `labels` and the result are (B, K).
        """

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""

    def decoder(self, rows: int, capacity: int) -> Decoder:
        """Return a decoder of `rows` empty rows that hold at most `capacity` tokens each.

        `capacity` is at most the model's positions. It reads the weights as they are at each call.
        """

    def close(self) -> None:
        """Free the device."""


@runtime_checkable
class Trainer(LanguageModel, Protocol):
    """A model with its optimizer.

    Dropout of a micro-batch depends on its seed in the batch alone, so that a resumed run repeats the
    uninterrupted one bit for bit.
    """

    state: TrainerState

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""

    def accumulate(self, batch: Batch) -> None:
        """Leave the gradient of the step's loss, unclipped, in `shards("gradient")`; change nothing else."""
