"""The kit's tests of dropout: seeds, rates, scales, and that evaluation has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.testing import cases
from gptbridge.testing.comparison import require, require_share
from gptbridge.testing.harness import Harness, fill, gradients_of


class DropoutTests(Harness):
    """Dropout is drawn from a micro-batch's seed alone, at its rate, and in training alone."""

    def test_dropout_of_a_micro_batch_depends_on_its_seed_alone(self) -> None:
        """Two micro-batches in one step, or apart as two replicas have them, see the same dropout."""
        spec, has_dropout = self._dropout_spec()
        if not has_dropout:
            pytest.skip(f"{self.backend} refuses dropout")
        trainer = self._start(spec, cases.weights(spec.model))
        both = cases.batch(spec.model)

        def one(number: int, seed: int) -> cases.Arrays:
            half = slice(number, number + 1)
            return gradients_of(
                trainer,
                replace(
                    both,
                    inputs=both.inputs[half],
                    labels=both.labels[half],
                    loss_mask=both.loss_mask[half],
                    dropout_seeds=(both.dropout_seeds[seed],),
                ),
            )

        def summed(*seeds: int) -> cases.Arrays:
            parts = [one(number, seed) for number, seed in enumerate(seeds)]
            return {name: parts[0][name] + parts[1][name] for name in parts[0]}

        wrong = {"every replica draws the same": summed(0, 0), "seeds are exchanged": summed(1, 0)}
        self._compare_all("gradient of two replicas", gradients_of(trainer, both), summed(0, 1), wrong)

    def test_evaluation_has_no_dropout(self) -> None:
        """`logits` and `token_losses` ignore the dropout that `step` applies."""
        spec, has_dropout = self._dropout_spec()
        weights, batch = cases.weights(spec.model), cases.batch(spec.model)
        trainer = self._start(spec, weights)
        trained = trainer.step(batch, 0.0).loss
        loss, _ = reference.loss_and_gradients(spec.model, weights, batch)
        if has_dropout:
            require(abs(trained - loss) > 1e-3, "a training step applies no dropout")
        fill(trainer, spec.model, weights)
        self._compare_reading(trainer, spec.model, weights, batch)

    def test_dropout_has_its_rate_and_its_scale(self) -> None:
        """Of the gradient that passes a dropout each number is 0, or the reference's / (1 - p).

        The blocks add nothing here, so that the zeros in the gradient of the positions show what the
        dropout before them left of the input. Two micro-batches with the same token, each under a
        dropout of its own, leave p * p zeros in their sum.
        """
        p = 0.4
        trainer, model, weights = self._start_dropout({"hidden_dropout_prob": p})
        places = ["wpe.weight", *(name for name in weights if name.endswith("c_proj.bias"))]
        zeros, both_zero = [], []
        for step in range(1, 11):
            found = _first_rows(gradients_of(trainer, cases.one_token(step)), places)
            kept = found["wpe.weight"] != 0
            expected = cases.one_token_gradient(model, weights, kept / (1 - p))
            passed = {name: np.where(found[name] != 0, expected / (1 - p), 0) for name in places}
            unscaled = {"what is kept is not scaled": {n: g * (1 - p) for n, g in passed.items()}}
            self._compare_all("gradient under dropout", found, passed, unscaled)
            zeros += [gradient == 0 for gradient in found.values()]
            two = _first_rows(gradients_of(trainer, cases.one_token(step, micro_batches=2)), places)
            both_zero += [gradient == 0 for gradient in two.values()]
        require_share("zeros under one dropout", np.array(zeros), p)
        require_share("zeros under two dropouts", np.array(both_zero), p * p)

    def test_attention_dropout_has_its_rate_and_its_scale(self) -> None:
        """A lone token attends to itself alone: a head gives 0, or the token's value / (1 - p).

        That output times the gradient of its projection is the gradient of attn.c_proj.weight. The
        blocks add nothing here, so that no dropout changes the gradient that comes to the projection.
        """
        p, heads = 0.4, 32
        fields = {"attention_probs_dropout_prob": p, "num_attention_heads": heads, "hidden_size": 8 * heads}
        trainer, model, weights = self._start_dropout(fields)
        places = [name for name in weights if name.endswith("attn.c_proj.weight")]
        _, right = reference.loss_and_gradients(model, weights, cases.one_token(1))
        zeros, both_zero = [], []
        for step in range(1, 21):
            found = _by_head(gradients_of(trainer, cases.one_token(step)), places, heads)
            kept = {name: gradient.any(1) for name, gradient in found.items()}
            undropped = _by_head(right, places, heads)
            unscaled = {name: gradient * kept[name][:, None] for name, gradient in undropped.items()}
            passed = {name: gradient / (1 - p) for name, gradient in unscaled.items()}
            wrong = {"what is kept is not scaled": unscaled}
            self._compare_all("gradient by head under attention dropout", found, passed, wrong)
            zeros += [~head for head in kept.values()]
            two = _by_head(gradients_of(trainer, cases.one_token(step, micro_batches=2)), places, heads)
            both_zero += [~gradient.any(1) for gradient in two.values()]
        require_share("heads dropped by one dropout", np.array(zeros), p)
        require_share("heads dropped by two dropouts", np.array(both_zero), p * p)


def _first_rows(gradients: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the gradients called `names`, of matrices the first row."""
    return {name: gradients[name][0] if gradients[name].ndim > 1 else gradients[name] for name in names}


def _by_head(
    gradients: Mapping[str, NDArray[Any]], names: Sequence[str], heads: int
) -> dict[str, NDArray[Any]]:
    """Return the gradients called `names`, all that belongs to a head in its row."""
    return {name: gradients[name].reshape(heads, -1) for name in names}
