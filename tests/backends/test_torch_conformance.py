"""The kit on torch, and wrong dropouts that it must notice: the example backend has none."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from gptbridge.session import Trainer
from gptbridge.testing import BackendConformance
from gptbridge_specs import RunSpec
from gptbridge_torch import hardware
from gptbridge_torch.session import TorchTrainer


class TestTorch(BackendConformance):
    backend = "torch"


class Unscaled(TorchTrainer):
    """Its gradients are those of a dropout of 0.4 without its 1 / (1 - p)."""

    def scale_gradients(self, factor: float) -> None:
        super().scale_gradients(0.6 * factor)

    def _accumulate(self, batch: Any) -> Tensor:
        total = super()._accumulate(batch)
        self.scale_gradients(1.0)
        return total


class OneDraw(TorchTrainer):
    """All micro-batches of a step see the same dropout."""

    def _accumulate(self, batch: Any) -> Tensor:
        self._seed = batch.dropout_seeds[0]
        return super()._accumulate(batch)

    def backward(
        self, inputs: Any, labels: Any, mask: Any, factor: float, seed: int, starts: Any = None
    ) -> Tensor:
        return super().backward(inputs, labels, mask, factor, self._seed)


class Unseeded(TorchTrainer):
    """Dropout goes on where the generator stands."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._random = False


class Reseeded(TorchTrainer):
    """Dropout depends on the number of the micro-batch on this rank."""

    def clear_gradients(self) -> None:
        super().clear_gradients()
        self._number = 0

    def backward(
        self, inputs: Any, labels: Any, mask: Any, factor: float, seed: int, starts: Any = None
    ) -> Tensor:
        self._number += 1
        return super().backward(inputs, labels, mask, factor, self._number)


class Joined(TorchTrainer):
    """Packed records see each other."""

    def backward(
        self, inputs: Any, labels: Any, mask: Any, factor: float, seed: int, starts: Any = None
    ) -> Tensor:
        return super().backward(inputs, labels, mask, factor, seed)


def wrong_kit(kind: type[TorchTrainer]) -> BackendConformance:
    class Wrong(BackendConformance):
        backend = "torch"

        def _open(self, spec: RunSpec) -> Trainer:
            device = hardware.setup("cpu")
            assert device is not None
            return kind(spec, device)

    return Wrong()


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
@pytest.mark.parametrize(
    ("wrong", "words"), [(Unscaled, "what is kept is not scaled"), (OneDraw, "two dropouts")]
)
def test_the_kit_notices_a_wrong_dropout(kind: str, wrong: type[TorchTrainer], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        getattr(wrong_kit(wrong), f"test_{kind}_has_its_rate_and_its_scale")()


@pytest.mark.parametrize("wrong", [OneDraw, Unseeded, Reseeded])
def test_the_kit_notices_a_dropout_of_another_seed(wrong: type[TorchTrainer]) -> None:
    with pytest.raises(AssertionError, match="gradient of two replicas"):
        wrong_kit(wrong).test_dropout_of_a_micro_batch_depends_on_its_seed_alone()


def test_the_kit_notices_that_packed_records_see_each_other() -> None:
    with pytest.raises(AssertionError, match="Nearest known mistake: records see those before"):
        wrong_kit(Joined).test_packed_records_are_apart()


def test_the_kit_notices_that_a_dropout_is_not_resumed() -> None:
    with pytest.raises(AssertionError, match="resumed steps give"):
        wrong_kit(Unseeded).test_resume_repeats_every_bit()
