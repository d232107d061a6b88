"""The conformance kit's tests: a backend that passes them trains the same model as every other one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.errors import BridgeError, UsageError
from gptbridge.hookspecs import API_VERSION
from gptbridge.plugins.finding import backend_names, hardware_names
from gptbridge.rules.stepping import Stepper
from gptbridge.session import MOMENTS, Batch, Kind, LanguageModel, StepResult, Trainer, TrainerState
from gptbridge.testing import cases, mistakes
from gptbridge.testing.comparison import require, require_equal_bits
from gptbridge.testing.decoding import DecoderTests
from gptbridge.testing.dropout import DropoutTests
from gptbridge.testing.harness import (
    MODELS,
    fill,
    fill_moments,
    gradients_of,
    moments_of,
    weights_of,
    with_joined_biases,
)
from gptbridge.testing.sharding import ShardTests
from gptbridge.testing.tasks import TaskTests
from gptbridge.weights.shards import arrays

LEARNING_RATE = 0.5

# What a backend may refuse, each with the field that its Problem must name.
REFUSABLE: dict[str, dict[str, Any]] = {
    "parallel.data": {"parallel": {"data": 2}},
    "parallel.tensor": {"parallel": {"tensor": 3}, "model": {"ffn_hidden_size": 54}},
    "parallel.pipeline": {"parallel": {"pipeline": 2}, "training": {"micro_batch_size": 1}},
    "parallel.sharding": {"parallel": {"sharding": 2}},
}

IMPORT_CHECK = """
import json, sys
from gptbridge.plugins.backend import load_backend
from gptbridge_specs import RunSpec
backend = load_backend(sys.argv[1])
backend.problems(RunSpec())
print(json.dumps([name for name in backend.info.modules if name in sys.modules]))
"""


class BackendConformance(ShardTests, DecoderTests, DropoutTests, TaskTests):
    """Subclass it in a pytest file and name the backend: every test here then runs against it.

    Each comparison also proves that it would notice the mistakes of `gptbridge.testing.mistakes`.
    """

    # The plugin

    def test_info_names_the_entry_point(self) -> None:
        """`BackendInfo` describes the entry point that it was loaded through."""
        info = self._plugin().info
        require(info.name == self.backend, f"BackendInfo.name is {info.name!r}, not {self.backend!r}")
        require(info.api_version == API_VERSION, f"BackendInfo.api_version is not {API_VERSION}")
        require(self.backend in backend_names(), f"{self.backend} is no entry point")
        require(info.title.strip() and info.install.strip(), "BackendInfo lacks title or install command")
        kinds = {*info.hardware, *hardware_names(self.backend)}
        require(kinds and kinds <= {"cpu", "gpu", "ascend"}, f"BackendInfo.hardware is {info.hardware}")

    def test_plugin_module_imports_no_framework(self) -> None:
        """Listing and checking a backend must cost no framework import."""
        info = self._plugin().info
        absent = [name for name in info.modules if importlib.util.find_spec(name) is None]
        require(not absent, f"BackendInfo.modules names {absent}, which cannot be imported")
        command = [sys.executable, "-c", IMPORT_CHECK, self.backend]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        require(run.returncode == 0, f"the plugin does not load in a fresh process:\n{run.stderr}")
        imported = json.loads(run.stdout.splitlines()[-1])
        require(not imported, f"loading or checking the plugin imports {imported}: import it in worker hooks")

    def test_trainers_and_models_have_every_method(self) -> None:
        """Both implement their whole protocols, and one opens beside another."""
        spec = self._spec("gelu_tanh-tied")
        for name, kind, opened in (
            ("trainer", Trainer, self._open(spec)),
            ("model", LanguageModel, self._plugin().open_model(spec)),
        ):
            require(isinstance(opened, kind), f"the {name} lacks methods of {kind.__name__}")
            opened.close()

    # The model

    @pytest.mark.parametrize("model", MODELS)
    def test_logits_match_the_reference(self, model: str) -> None:
        """The forward pass is GPT's, from canonical weights, at any length."""
        spec, weights, batch = self._case(model)
        tokens = batch.inputs[0]
        expected = reference.logits(spec.model, weights, tokens)
        wrong = {
            name: {"logits": reference.logits(bad_model, bad_weights, tokens)}
            for name, (bad_model, bad_weights) in mistakes.in_weights(spec.model, weights).items()
        }
        trainer = self._start(spec, weights)
        self._compare("logits", trainer.logits(tokens), expected, wrong)
        if model == next(iter(MODELS)):  # every new shape is one more compilation for some
            self._compare("logits of 5 tokens", trainer.logits(tokens[:2, :5]), expected[:2, :5], {})

    def test_logits_at_positions(self) -> None:
        """`logits(tokens, at)` picks rows of the full logits."""
        spec = self._spec("gelu_erf-untied")
        tokens = cases.batch(spec.model).inputs[0]
        trainer = self._start(spec, cases.weights(spec.model))
        at = np.array([[10, 0], [3, 7], [5, 5], [1, 9]], np.int32)
        full = trainer.logits(tokens)
        wrong = {"row": {"logits at": full[:, :2]}, "sample": {"logits at": _rows(full[::-1], at)}}
        self._compare("logits at", trainer.logits(tokens, at), _rows(full, at), wrong)

    def test_a_model_without_an_optimizer_reads_the_same(self) -> None:
        """What `open_model` returns has weights alone, and the logits and losses of a trainer."""
        spec, weights, batch = self._case("gelu_erf-untied")
        opened = self._plugin().open_model(spec)
        fill(opened, spec.model, weights)
        require_equal_bits("weights of the model", weights_of(opened), weights)
        for kind in ("gradient", *MOMENTS):
            require(not opened.shards(kind), f"a model that is read alone has shards({kind!r})")
        self._compare_reading(opened, spec.model, weights, batch)
        opened.close()

    @pytest.mark.parametrize("model", MODELS)
    def test_gradients_match_the_reference(self, model: str) -> None:
        """Loss and gradient are those of the analytic backward pass, and computing them changes nothing."""
        spec, weights, batch = self._case(model)
        trainer = self._start(spec, weights)
        found = gradients_of(trainer, batch)
        _, expected = reference.loss_and_gradients(spec.model, weights, batch)
        self._compare_all("gradient", found, expected, mistakes.in_gradients(spec.model, weights, batch))
        require_equal_bits("weights after accumulate()", weights_of(trainer), weights)

    def test_token_losses_match_the_reference(self) -> None:
        """`token_losses` is the negative log likelihood of each label, masked or not."""
        spec, weights, batch = self._case("quick_gelu-tied")
        inputs, labels = batch.inputs[1, :3], batch.labels[1, :3]
        expected = reference.token_losses(spec.model, weights, inputs, labels)
        shifted = reference.token_losses(spec.model, weights, inputs, np.roll(labels, 1, 1))
        wrong = {"labels are shifted": {"token losses": shifted}}
        trainer = self._start(spec, weights)
        self._compare("token losses", trainer.token_losses(inputs, labels), expected, wrong)
        at = np.array([[10, 0], [3, 7], [5, 5]], np.int32)
        chosen = trainer.token_losses(inputs, np.take_along_axis(labels, at, 1), at)
        wrong = {"row": {"token losses at": expected[:, :2]}}
        self._compare("token losses at", chosen, np.take_along_axis(expected, at, 1), wrong)

    # The step

    def test_sgd_step_matches_the_reference(self) -> None:
        """Plain SGD without clipping: the one update that shows a wrong scale of loss or gradient."""
        spec, weights, batch = self._case("gelu_tanh-tied")
        loss, gradients = reference.loss_and_gradients(spec.model, weights, batch)
        trainer = self._start(spec, weights)
        result = trainer.step(batch, LEARNING_RATE)
        self._compare_result(result, loss, gradients)
        wrong = {
            name: {key: -LEARNING_RATE * g for key, g in bad.items()}
            for name, bad in mistakes.in_gradients(spec.model, weights, batch).items()
        }
        clipped = reference.clip(gradients, 1.0)
        wrong["gradients are clipped to 1"] = {key: -LEARNING_RATE * g for key, g in clipped.items()}
        updated = reference.sgd_step(spec.model, spec.optimizer, weights, gradients, LEARNING_RATE)
        found = _change(weights_of(trainer), weights)
        self._compare_all("change of", found, _change(updated, weights), wrong)
        require(not moments_of(trainer), "SGD has no moments to export")

    def test_adamw_step_matches_the_reference(self) -> None:
        """The fifth update of AdamW from given moments, with clipping and decoupled decay."""
        spec = self._spec("gelu_erf-untied")
        weights, moments = cases.weights(spec.model), cases.moments(spec.model)
        batch = cases.batch(spec.model)
        loss, gradients = reference.loss_and_gradients(spec.model, weights, batch)

        def updated(optimizer: Any, update: int = 5) -> dict[str, NDArray[Any]]:
            arguments = (spec.model, optimizer, weights, moments, gradients, LEARNING_RATE, update)
            new_weights, new_moments = reference.adamw_step(*arguments)
            return {**_change(new_weights, weights), **new_moments}

        trainer = self._start(spec, weights)
        fill_moments(trainer, spec.model, moments)
        trainer.state = TrainerState(updates=4)
        self._compare_result(trainer.step(batch, LEARNING_RATE), loss, gradients)
        found = {**_change(weights_of(trainer), weights), **moments_of(trainer)}
        wrong = {name: updated(bad) for name, bad in mistakes.in_adamw(spec.optimizer).items()}
        wrong["the update is not counted"] = updated(spec.optimizer, 4)
        wrong["moments are not corrected for their bias"] = updated(spec.optimizer, 10**9)
        self._compare_all("AdamW:", found, updated(spec.optimizer), wrong)
        require(trainer.state.updates == 5, "state.updates does not count the update")

    def test_clipping_has_a_threshold(self) -> None:
        """Gradients above the largest norm are scaled down to it, others are left as they are."""
        spec = self._spec("quick_gelu-tied")
        weights, limit = cases.weights(spec.model), spec.optimizer.clip_grad_norm
        sides = {}
        for kept in (0.7, 0.1):  # few labels that count make a larger gradient
            batch = cases.batch(spec.model, kept=kept)
            loss, gradients = reference.loss_and_gradients(spec.model, weights, batch)
            sides[reference.gradient_norm(gradients) > (limit or 0)] = kept
            trainer = self._start(spec, weights)
            self._compare_result(trainer.step(batch, LEARNING_RATE), loss, gradients)
            updated = reference.sgd_step(spec.model, spec.optimizer, weights, gradients, LEARNING_RATE)
            found = _change(weights_of(trainer), weights)
            self._compare_all("change of", found, _change(updated, weights), {})
        require(len(sides) == 2, f"the kit's batches lie on one side of {limit}: {sides}")

    @pytest.mark.parametrize("micro_batches", [1, 2, 4])
    def test_micro_batches_add_up(self, micro_batches: int) -> None:
        """The same 8 samples give the same loss and gradient norm in 1 x 8, 2 x 4 and 4 x 2."""
        spec = self._spec("gelu_tanh-tied")
        weights = cases.weights(spec.model)
        batch = cases.batch(spec.model, micro_batches=micro_batches)
        loss, gradients = reference.loss_and_gradients(spec.model, weights, batch)
        self._compare_result(self._start(spec, weights).step(batch, LEARNING_RATE), loss, gradients)

    # What travels

    @pytest.mark.parametrize("model", MODELS)
    def test_weights_survive_a_round_trip(self, model: str) -> None:
        """What is imported is exported: names, order, float32 bits; and an export is a copy."""
        spec = self._spec(model)
        trainer = self._start(spec, cases.weights(spec.model, seed=7))
        for seed in (8, 7):  # the second import proves that the first was not merely remembered
            weights = cases.weights(spec.model, seed=seed)
            fill(trainer, spec.model, weights)
            exported = weights_of(trainer)
            require_equal_bits("exported weights", exported, weights)
        trainer.step(cases.batch(spec.model), LEARNING_RATE)
        require_equal_bits("weights exported before a step", exported, weights)
        before, after = with_joined_biases(weights), with_joined_biases(weights_of(trainer))
        kept = sorted(name for name, array in after.items() if np.array_equal(array, before[name]))
        require(not kept, f"a step leaves {kept} unchanged")

    def test_moments_survive_a_round_trip(self) -> None:
        """AdamW's moments and the counters are exported as they were imported."""
        spec = self._spec("gelu_erf-untied")
        trainer = self._start(spec, cases.weights(spec.model))
        for seed, updates in ((2, 3), (5, 11)):
            moments, state = cases.moments(spec.model, seed), TrainerState(updates=updates)
            fill_moments(trainer, spec.model, moments)
            trainer.state = state
            require_equal_bits("exported moments", moments_of(trainer), moments)
            require(trainer.state == state, f"exported state is {trainer.state}")

    def test_resume_repeats_every_bit(self) -> None:
        """A new trainer with the weights, moments and state of step 2 repeats steps 3 and 4, with dropout."""
        spec, has_dropout = self._dropout_spec()
        first = self._start(spec, cases.weights(spec.model))
        for step in (1, 2):
            first.step(cases.batch(spec.model, step=step), 0.01)
        weights, moments = weights_of(first), moments_of(first)
        state = first.state
        expected = [first.step(cases.batch(spec.model, step=step), 0.01) for step in (3, 4)]
        second = self._open(spec)

        def resume(moments: cases.Arrays, *steps: int) -> list[StepResult]:
            fill(second, spec.model, weights)
            fill_moments(second, spec.model, moments)
            second.state = state
            return [second.step(cases.batch(spec.model, step=step), 0.01) for step in steps]

        forgotten = resume(cases.zero_moments(spec.model), 3, 4)
        require(forgotten[1] != expected[1], "the moments make no difference: this test could not fail")
        found = resume(moments, 3, 4)
        require(found == expected, f"resumed steps give {found}, uninterrupted ones {expected}")
        require_equal_bits("weights after step 4", weights_of(second), weights_of(first))
        if has_dropout:
            other = resume(moments, 5)[0]
            require(other.loss != expected[0].loss, "dropout does not depend on the step")
        second.close()

    def test_a_save_reads_beside_the_gradients(self) -> None:
        """Until a step calls `before_update`, once, what it holds is what the step before left.

        Read by another thread while the gradients are computed, and by the one that calls.
        """
        spec = self._spec("gelu_erf-untied")
        weights, moments = cases.weights(spec.model), cases.moments(spec.model)
        trainer = self._start(spec, weights)
        if not isinstance(trainer, Stepper):
            return  # what it holds is copied before the step
        fill_moments(trainer, spec.model, moments)
        trainer.state = TrainerState(updates=4)
        for step in (1, 2):  # the first step compiles where there is something to compile
            _require_read_before_update(trainer, cases.batch(spec.model, step=step))

    # What is refused

    @pytest.mark.parametrize("field", REFUSABLE)
    def test_unsupported_fields_are_refused(self, field: str) -> None:
        """What one process cannot honour is refused before launch by a Problem that names the field."""
        backend = self._plugin()
        plain = cases.run_spec(self.device)
        require(not backend.problems(plain), f"a plain spec is refused: {backend.problems(plain)}")
        spec = cases.run_spec(self.device, **REFUSABLE[field])
        problems = backend.problems(spec)
        if not problems:  # then it must not train on one device as if nothing had been asked
            with pytest.raises(BridgeError):
                backend.open_trainer(spec)
            return
        require([p.field for p in problems] == [field], f"problems are {problems}, not one on {field}")
        require(len(problems[0].reason) > 10, f"{field}: the reason is {problems[0].reason!r}")
        with pytest.raises(UsageError, match=field):
            backend.open_trainer(spec)


def _rows(logits: NDArray[Any], at: NDArray[np.int32]) -> NDArray[Any]:
    picked: NDArray[Any] = np.take_along_axis(logits, at[..., None], 1)
    return picked


def _require_read_before_update(trainer: Any, batch: Batch) -> None:
    kinds: tuple[Kind, ...] = ("weight", *MOMENTS)
    expected = [arrays(trainer.shards(kind)) for kind in kinds]
    shards = [trainer.shards(kind) for kind in kinds]
    read: list[list[dict[str, NDArray[np.float32]]]] = []
    with ThreadPoolExecutor(1) as thread:
        beside = thread.submit(list, map(arrays, shards))
        trainer.before_update = lambda: read.extend((beside.result(), list(map(arrays, shards))))
        trainer.step(batch, LEARNING_RATE)
    require(len(read) == 2, f"a step calls before_update {len(read) // 2} times")
    for kind, kept, *found, held in zip(kinds, expected, *read, shards, strict=True):
        for copy in found:
            require_equal_bits(f"{kind} before the update", copy, kept)
        moved = arrays(held)
        still = all(np.array_equal(moved[name], array) for name, array in kept.items())
        require(not still, f"a step leaves every {kind} unchanged")


def _change(new: Mapping[str, NDArray[Any]], old: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.astype(np.float64) - old[name] for name, array in new.items()}
