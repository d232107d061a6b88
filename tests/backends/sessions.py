"""The small runs on which the tests of each framework's trainer stand, and the tests that all share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import MOMENTS, Batch, Device, Kind, LanguageModel, Trainer
from gptbridge.testing.harness import gradients_of, with_joined_biases
from gptbridge.weights import shards
from gptbridge.weights.initial import InitialWeights
from gptbridge_specs import RunSpec

M = TypeVar("M", bound=LanguageModel)

GRANULARITIES = ("none", "core_attn", "full_attn", "full")
VOCAB, LENGTH = 67, 16
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


WIDE = {"vocab_size": 2000, "hidden_size": 256, "num_layers": 4}  # weights weigh more than all else


def make_spec(**parts: dict[str, Any]) -> RunSpec:
    """Return a tiny run without dropout, with weights large enough for mistakes to show."""
    model = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_layers": 2,
        "max_position_embeddings": LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
    }
    training = {"seq_length": LENGTH, "global_batch_size": 4, "device": "cpu"}
    parts["model"] = model | parts.get("model", {})
    parts["training"] = training | parts.get("training", {})
    return RunSpec.model_validate(parts)


def make_batch(step: int = 1) -> Batch:
    """Return random tokens, keyed by the step."""
    tokens = np.random.default_rng(step).integers(0, VOCAB, (1, 4, LENGTH + 1), dtype=np.int32)
    mask = np.ones((1, 4, LENGTH), np.bool_)
    return Batch(tokens[..., :-1], tokens[..., 1:], mask, mask.size, (dropout_seed(1, step, 0),))


def opened(kind: Callable[[RunSpec, Device], M], spec: RunSpec, device: Device | None) -> M:
    """Return a model or a trainer of this kind with initial weights."""
    assert device is not None
    model = kind(spec, device)
    shards.load(model.shards(), InitialWeights(spec.model, seed=7).read)
    return model


def gradients(trainer: Trainer) -> dict[str, NDArray[np.float32]]:
    """Return the gradient for each weight, those of the biases of q, k and v joined."""
    return with_joined_biases(gradients_of(trainer, make_batch()))


def everything(trainer: Trainer) -> dict[str, NDArray[np.float32]]:
    """Return all that a step may change."""
    kinds: tuple[Kind, ...] = ("weight", *MOMENTS)
    return {f"{shard.name} {kind}": shard.read() for kind in kinds for shard in trainer.shards(kind)}


class SessionTests(ABC):
    """Subclass it in a framework's test file: what its trainers do with dropout and recompute."""

    @staticmethod
    @abstractmethod
    def open_trainer(spec: RunSpec) -> Trainer: ...

    @pytest.fixture(scope="class")
    @classmethod
    def dropout_gradients(cls) -> dict[str, NDArray[np.float32]]:
        return gradients(cls.open_trainer(make_spec(model=DROPOUT)))

    @pytest.mark.parametrize("granularity", GRANULARITIES[1:])
    def test_recompute_repeats_every_bit_through_dropout(
        self, granularity: str, dropout_gradients: dict[str, NDArray[np.float32]]
    ) -> None:
        spec = make_spec(model=DROPOUT, training={"recompute": granularity})
        recomputed = gradients(self.open_trainer(spec))
        for name, gradient in dropout_gradients.items():
            np.testing.assert_array_equal(gradient, recomputed[name], err_msg=name)

    def test_dropout_of_a_step_depends_on_its_seeds_alone(self) -> None:
        spec = make_spec(model=DROPOUT, optimizer={"name": "sgd"})
        first, second = self.open_trainer(spec), self.open_trainer(spec)
        second.step(make_batch(9), 0.0)  # draws from a generator that the first trainer has not used
        assert first.step(make_batch(3), 0.0) == second.step(make_batch(3), 0.0)
        assert first.step(make_batch(4), 0.0) != second.step(make_batch(3), 0.0)


class KeptBytesTests(SessionTests):
    """The same, for a framework that says what it keeps for the backward pass."""

    @staticmethod
    @abstractmethod
    def kept_bytes(trainer: Any) -> int:
        """Return the bytes that the trainer's model keeps of 4 samples for the backward pass."""

    def test_recompute_keeps_less_at_each_granularity(self) -> None:
        specs = [make_spec(model=DROPOUT, training={"recompute": name}) for name in GRANULARITIES]
        kept = [self.kept_bytes(self.open_trainer(spec)) for spec in specs]
        assert kept == sorted(kept, reverse=True)
        assert len(set(kept)) == len(kept)
