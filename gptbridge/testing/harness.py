"""How the kit's tests reach a backend: its specs, its shared trainers, its tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.plugins.backend import Backend, load_backend
from gptbridge.session import MOMENTS, Batch, LanguageModel, StepResult, Trainer, TrainerState
from gptbridge.testing import cases
from gptbridge.testing.comparison import require, require_close
from gptbridge.weights import shards
from gptbridge_specs import ModelSpec, RunSpec

# Three models cover each activation, and a tied and a separate head.
MODELS: dict[str, dict[str, Any]] = {
    "gelu_tanh-tied": {},
    "gelu_erf-untied": {"activation": "gelu_erf", "tie_word_embeddings": False},
    "quick_gelu-tied": {"activation": "quick_gelu"},
}
# Each model trains with another optimizer, so that three trainers serve nearly every test.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "gelu_tanh-tied": {},
    "gelu_erf-untied": {
        "name": "adamw",
        "beta1": 0.8,
        "beta2": 0.95,
        "epsilon": 1e-2,
        "weight_decay": 0.3,
        "clip_grad_norm": 0.5,
    },
    "quick_gelu-tied": {"clip_grad_norm": 6.0},
}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


class Harness:
    """A backend under test. `tolerance` is relative to the largest value of the tensor compared."""

    backend: ClassVar[str] = ""
    device: ClassVar[str] = "auto"
    tolerance: ClassVar[float] = 2e-5

    _trainers: ClassVar[dict[str, Trainer]] = {}

    def __init_subclass__(cls) -> None:
        cls._trainers = {}

    @classmethod
    def teardown_class(cls) -> None:
        """Close the shared trainers."""
        for trainer in cls._trainers.values():
            trainer.close()
        cls._trainers.clear()

    @classmethod
    def _plugin(cls) -> Backend:
        require(cls.backend, f'{cls.__name__} needs a class attribute: backend = "NAME"')
        return load_backend(cls.backend)

    def _spec(self, model: str) -> RunSpec:
        spec = cases.run_spec(self.device, MODELS[model], optimizer=OPTIMIZERS[model])
        problems = self._plugin().problems(spec)
        if any(problem.field.startswith("model.") for problem in problems):
            pytest.skip(f"{self.backend} refuses the model: {problems}")
        return spec

    def _case(self, model: str) -> tuple[RunSpec, cases.Arrays, Batch]:
        spec = self._spec(model)
        return spec, cases.weights(spec.model), cases.batch(spec.model)

    def _dropout_spec(self) -> tuple[RunSpec, bool]:
        """Return a run with AdamW and dropout, or without dropout where the backend refuses that."""
        optimizer = {"name": "adamw", "clip_grad_norm": 1.0, "weight_decay": 0.1}
        spec = cases.run_spec(self.device, DROPOUT, optimizer=optimizer)
        if not self._plugin().problems(spec):
            return spec, True
        return cases.run_spec(self.device, optimizer=optimizer), False

    def _open(self, spec: RunSpec) -> Trainer:
        return self._plugin().open_trainer(spec)[0]

    def _start(self, spec: RunSpec, weights: cases.Arrays) -> Trainer:
        """Return the shared trainer of `spec` as if it were new. Compilers make new ones expensive."""
        key = spec.model_dump_json()
        if key not in self._trainers:
            self._trainers[key] = self._open(spec)
        trainer = self._trainers[key]
        fill(trainer, spec.model, weights)
        if spec.optimizer.name == "adamw":
            fill_moments(trainer, spec.model, cases.zero_moments(spec.model))
        trainer.state = TrainerState()
        return trainer

    def _start_dropout(self, fields: dict[str, Any]) -> tuple[Trainer, ModelSpec, cases.Arrays]:
        """Return a trainer for `cases.one_token`, its model under a dropout, and weights without blocks."""
        lone = {"global_batch_size": 1, "seq_length": 1}
        spec = cases.run_spec(self.device, {"num_layers": 3, **fields}, training=lone)
        if self._plugin().problems(spec):
            pytest.skip(f"{self.backend} refuses dropout")
        weights = cases.without_blocks(spec.model)
        return self._start(spec, weights), spec.model, weights

    def _compare(
        self, what: str, found: NDArray[Any], expected: NDArray[Any], wrong: Mapping[str, Any]
    ) -> None:
        self._compare_all(what, {what: found}, {what: expected}, wrong)

    def _compare_all(
        self,
        what: str,
        found: Mapping[str, NDArray[Any]],
        expected: Mapping[str, NDArray[Any]],
        wrong: Mapping[str, Any],
    ) -> None:
        require_close(
            f"{self.backend}: {what}",
            with_joined_biases(found),
            with_joined_biases(expected),
            {mistake: with_joined_biases(tensors) for mistake, tensors in wrong.items()},
            self.tolerance,
        )

    def _compare_reading(
        self, opened: LanguageModel, model: ModelSpec, weights: cases.Arrays, batch: Batch
    ) -> None:
        tokens, labels = batch.inputs[0], batch.labels[0]
        self._compare("logits", opened.logits(tokens), reference.logits(model, weights, tokens), {})
        expected = reference.token_losses(model, weights, tokens, labels)
        self._compare("token losses", opened.token_losses(tokens, labels), expected, {})

    def _compare_result(self, result: StepResult, loss: float, gradients: Mapping[str, NDArray[Any]]) -> None:
        norm = reference.gradient_norm(gradients)
        found = {"loss": np.array(result.loss), "grad_norm": np.array(result.grad_norm)}
        expected = {"loss": np.array(loss), "grad_norm": np.array(norm)}
        wrong = {
            "the loss is scaled": {"loss": np.array(2 * loss), "grad_norm": np.array(norm)},
            "the norm is of clipped gradients": {"loss": np.array(loss), "grad_norm": np.array(norm / 1.01)},
        }
        self._compare_all("step", found, expected, wrong)
        require(not result.skipped, "the step says that it was skipped")


def with_joined_biases(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return `tensors` with the biases of q, k and v joined.

    A key's bias moves all scores of a softmax alike, so its gradient is 0 but for rounding, which has no
    scale of its own to be compared by, and perhaps moves nothing.
    """
    joined = dict(tensors)
    for name in tensors:
        if name.partition("attn.k.bias")[1]:
            parts = [name.replace("attn.k.bias", f"attn.{part}.bias") for part in "qkv"]
            joined[name.replace("attn.k.bias", "attn.{q,k,v}.bias")] = np.concatenate(
                [joined.pop(part) for part in parts]
            )
    return joined


def fill(model: LanguageModel, spec: ModelSpec, weights: cases.Arrays) -> None:
    """Write every weight of `model`."""
    shards.load(model.shards(), shards.from_arrays(spec, weights))


def fill_moments(trainer: Trainer, spec: ModelSpec, moments: cases.Arrays) -> None:
    """Write every moment of `trainer` from arrays called NAME.exp_avg and NAME.exp_avg_sq."""
    for kind in MOMENTS:
        suffix = f".{kind}"
        own = {n.removesuffix(suffix): array for n, array in moments.items() if n.endswith(suffix)}
        shards.load(trainer.shards(kind), shards.from_arrays(spec, own))


def weights_of(model: LanguageModel) -> cases.Arrays:
    """Return every weight by name."""
    return shards.arrays(model.shards())


def moments_of(trainer: Trainer) -> cases.Arrays:
    """Return every moment, NAME.exp_avg and NAME.exp_avg_sq, weight by weight."""
    by_kind = {kind: shards.arrays(trainer.shards(kind)) for kind in MOMENTS}
    return {f"{name}.{kind}": by_kind[kind][name] for name in by_kind[MOMENTS[0]] for kind in MOMENTS}


def gradients_of(trainer: Trainer, batch: Batch) -> cases.Arrays:
    """Return the gradient of the step's loss for each weight by name."""
    trainer.accumulate(batch)
    return shards.arrays(trainer.shards("gradient"))
