"""What a backend hands to the core: one rank's model and optimizer. NumPy crosses this boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DeviceKind = Literal["cpu", "gpu", "ascend"]

EXP_AVG = ".exp_avg"
EXP_AVG_SQ = ".exp_avg_sq"


@dataclass(frozen=True, slots=True)
class Device:
    """Where a session computes. `handle` is the framework's own object, `name` is for people."""

    kind: DeviceKind
    name: str
    handle: Any


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one optimizer step: A micro-batches of B samples of T tokens.

    The loss of the step is the sum of the unmasked tokens' negative log likelihood / `loss_tokens`,
    where `loss_tokens` counts the unmasked tokens of the global batch, over all ranks.
    """

    step: int  # 1 is the first update; keys the dropout streams
    inputs: NDArray[np.int32]  # (A, B, T)
    labels: NDArray[np.int32]  # (A, B, T)
    loss_mask: NDArray[np.bool_]  # (A, B, T), True where the label counts
    loss_tokens: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did."""

    loss: float
    grad_norm: float  # global L2 norm before clipping
    skipped: bool = False  # the gradients overflowed and no weight changed
    loss_scale: float | None = None  # fp16 only


@dataclass(frozen=True, slots=True)
class SessionState:
    """The few numbers beside weights and moments that a run needs to continue on any backend."""

    updates: int = 0  # optimizer updates applied: AdamW's bias correction counts them
    loss_scale: float | None = None  # fp16 only
    good_steps: int = 0  # fp16 with dynamic scale: steps since the scale last changed


@runtime_checkable
class Session(Protocol):
    """One rank's model and optimizer on its device.

    Weights carry canonical names and layout (`gptbridge.weights.canonical`) and are float32.
    Dropout of a step depends on (seed, batch.step, micro-batch) alone, so that a resumed run
    repeats the uninterrupted one bit for bit.
    """

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight, one at a time, in canonical order."""

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every weight; KeyError for an absent or unknown name, ValueError for a wrong shape."""

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield `NAME.exp_avg` and `NAME.exp_avg_sq` of each weight, in canonical order; nothing for SGD."""

    def import_optimizer(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every moment, under the same rules as `import_weights`."""

    def export_state(self) -> SessionState:
        """Return the numbers that `import_state` needs to continue."""

    def import_state(self, state: SessionState) -> None:
        """Continue from `state`."""

    def close(self) -> None:
        """Free the device."""
