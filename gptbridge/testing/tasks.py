"""The kit's tests of what else a model is trained for: adapters beside frozen weights, and classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.errors import UsageError
from gptbridge.session import MOMENTS, Trainer
from gptbridge.testing import cases
from gptbridge.testing.comparison import require
from gptbridge.testing.harness import Harness, gradients_of, weights_of
from gptbridge.weights import shards
from gptbridge.weights.architecture import LORA_A, LORA_B, parameters
from gptbridge_specs import ModelSpec, RunSpec

TARGETS = ["q", "v", "fc", "proj"]
CLASSES = 3


class TaskTests(Harness):
    """A backend trains adapters and classifiers as the architecture table has them, or refuses them."""

    def _task(self, task: dict[str, Any], *fields: str) -> RunSpec:
        """Return a run of `task`; skip where the backend refuses it by Problems that name `fields`."""
        optimizer = {"name": "adamw", "clip_grad_norm": None}
        spec = cases.run_spec(self.device, task=task, optimizer=optimizer)
        problems = self._plugin().problems(spec)
        if problems:
            found = {problem.field for problem in problems}
            require(found <= {*fields}, f"problems are {problems}, not on {fields}")
            with pytest.raises(UsageError, match=fields[0]):
                self._plugin().open_trainer(spec)
            pytest.skip(f"{self.backend} refuses {', '.join(sorted(found))}")
        return spec

    def _filled(self, spec: RunSpec, weights: cases.Arrays) -> Trainer:
        trainer = self._open(spec)
        shards.load(trainer.shards(), shards.from_arrays(spec.model, weights, spec.task))
        return trainer

    def test_adapters_are_trained_beside_frozen_weights(self) -> None:
        """Logits are those of the merged weights, gradients those of the factors; nothing else moves."""
        spec = self._task({"lora": {"rank": 2, "alpha": 3.0, "targets": TARGETS}}, "task.lora")
        weights, batch = cases.weights(spec.model, task=spec.task), cases.batch(spec.model)
        merged = _merged(weights, 1.5)
        trainer = self._filled(spec, weights)
        tokens = batch.inputs[0]
        wrong = {
            mistake: {"logits": reference.logits(spec.model, bad, tokens)}
            for mistake, bad in {
                "alpha is not divided by the rank": _merged(weights, 3.0),
                "adapters change nothing": _merged(weights, 0.0),
            }.items()
        }
        self._compare("logits", trainer.logits(tokens), reference.logits(spec.model, merged, tokens), wrong)
        _, of_merged = reference.loss_and_gradients(spec.model, merged, batch)
        expected = _of_factors(weights, of_merged, 1.5)
        mistakes = {"the scale is left out": _of_factors(weights, of_merged, 1.0)}
        self._compare_all("gradient", gradients_of(trainer, batch), expected, mistakes)
        trainer.step(batch, 0.01)
        self._require_moved(spec, trainer, weights)
        trainer.close()

    def test_a_classifier_learns_classes(self) -> None:
        """Loss and gradients are those of a projection onto the classes in the place of the vocabulary."""
        spec = self._task({"name": "classification", "num_labels": CLASSES}, "task.name")
        weights, batch = cases.weights(spec.model, task=spec.task), _of_classes(cases.batch(spec.model))
        trainer = self._filled(spec, weights)
        model, expected = _as_language_model(spec.model, weights)
        found = trainer.logits(batch.inputs[0])
        require(found.shape[-1] == CLASSES, f"logits are {found.shape}, not of {CLASSES} classes")
        self._compare("logits", found, reference.logits(model, expected, batch.inputs[0]), {})
        _, of_model = reference.loss_and_gradients(model, expected, batch)
        right = {name.replace("lm_head", "score"): array for name, array in of_model.items()}
        wrong = {"the head is not trained": {**right, "score.weight": 0 * right["score.weight"]}}
        self._compare_all("gradient", gradients_of(trainer, batch), right, wrong)
        trainer.close()

    def test_a_regression_learns_values(self) -> None:
        """With one class the loss is the squared error of the output."""
        spec = self._task({"name": "classification", "num_labels": 1}, "task.name")
        weights, batch = cases.weights(spec.model, task=spec.task), cases.batch(spec.model)
        batch = replace(batch, labels=batch.labels.astype(np.float32) / 7)
        trainer = self._filled(spec, weights)
        model, expected = _as_language_model(spec.model, weights)
        loss, of_model = reference.loss_and_gradients(model, expected, batch)
        right = {name.replace("lm_head", "score"): array for name, array in of_model.items()}
        halved = {name: array / 2 for name, array in right.items()}
        self._compare_all("gradient", gradients_of(trainer, batch), right, {"half the square": halved})
        self._compare("loss", np.array(trainer.step(batch, 0.0).loss), np.array(loss), {})
        found = trainer.token_losses(batch.inputs[0], batch.labels[0])
        wanted = reference.token_losses(model, expected, batch.inputs[0], batch.labels[0])
        self._compare("squared errors", found, wanted, {})
        trainer.close()

    def test_a_classifier_has_adapters(self) -> None:
        """Beside the factors the head alone moves."""
        task = {"name": "classification", "num_labels": CLASSES, "lora": {"rank": 2, "targets": ["k", "out"]}}
        spec = self._task(task, "task.name", "task.lora")
        weights = cases.weights(spec.model, task=spec.task)
        trainer = self._filled(spec, weights)
        trainer.step(_of_classes(cases.batch(spec.model)), 0.01)
        self._require_moved(spec, trainer, weights)
        trainer.close()

    def test_packed_records_are_apart(self) -> None:
        """Each record of a row has the loss that it has alone, and their gradients add up."""
        spec = self._task(
            {"name": "instruction", "records": {"packed": True}}, "task.name", "task.records.packed"
        )
        model, weights = spec.model, cases.weights(spec.model)
        packed = cases.packed(cases.batch(model))
        table = weights["wpe.weight"]
        losses: dict[str, list[float]] = {"found": [], "alone": [], "seen": [], "going on": []}
        trainer = self._filled(spec, weights)
        for start, counting, lone in cases.records(packed):
            losses["found"].append(trainer.step(counting, 0.0).loss)
            later = {**weights, "wpe.weight": np.roll(table, -start, 0)}
            for name, held, batch in (
                ("alone", weights, lone),
                ("seen", weights, replace(counting, starts=None)),
                ("going on", later, lone),
            ):
                losses[name].append(reference.loss_and_gradients(model, held, batch)[0])
        found, alone, seen, going_on = map(np.array, losses.values())
        wrong = {
            "records see those before": {"losses of records": seen},
            "positions go on": {"losses of records": going_on},
        }
        self._compare("losses of records", found, alone, wrong)
        gradients = [
            reference.loss_and_gradients(model, weights, b)[1] for b in (packed, replace(packed, starts=None))
        ]
        mistakes = {"records see those before": gradients[1]}
        self._compare_all("gradient", gradients_of(trainer, packed), gradients[0], mistakes)
        trainer.close()

    def _require_moved(self, spec: RunSpec, trainer: Trainer, before: cases.Arrays) -> None:
        """Fail unless a step has changed what is trained, which alone has moments and gradients."""
        trained = [p.name for p in parameters(spec.model, spec.task) if p.trainable]
        after = weights_of(trainer)
        moved = [name for name in after if not np.array_equal(after[name], before[name])]
        require(moved == trained, f"a step moved {sorted({*moved} ^ {*trained})} against the table")
        for kind in ("gradient", *MOMENTS):
            names = [shard.name for shard in trainer.shards(kind)]
            require(names == trained, f"shards({kind!r}) are {names[:4]}, not those of what is trained")


def _merged(weights: cases.Arrays, scale: float) -> cases.Arrays:
    """Return the model's own weights with the adapters added."""
    result = {name: array for name, array in weights.items() if not name.endswith((LORA_A, LORA_B))}
    for name, a in weights.items():
        if name.endswith(LORA_A):
            layer = name.removesuffix(LORA_A)
            change = scale * (weights[layer + LORA_B] @ a).T
            result[f"{layer}.weight"] = result[f"{layer}.weight"] + change.astype(np.float32)
    return result


def _of_factors(weights: cases.Arrays, gradients: dict[str, Any], scale: float) -> dict[str, Any]:
    """Return the gradients of the factors, from those of the merged weights."""
    found = {}
    for name in weights:
        layer = name.removesuffix(LORA_A)
        if name.endswith(LORA_A):
            of_change = scale * gradients[f"{layer}.weight"].T  # (out, in)
            found[name] = weights[layer + LORA_B].T @ of_change
            found[layer + LORA_B] = of_change @ weights[name].T
    return found


def _of_classes(batch: Any) -> Any:
    return replace(batch, labels=batch.labels % CLASSES)


def _as_language_model(model: ModelSpec, weights: cases.Arrays) -> tuple[ModelSpec, cases.Arrays]:
    """Return a classifier as a model with a head of its own, whose tokens are the classes."""
    own = {name: array for name, array in weights.items() if name != "score.weight"}
    untied = model.model_copy(update={"tie_word_embeddings": False})
    return untied, {**own, "lm_head.weight": weights["score.weight"]}
