"""The conformance kit goes red for each known way to be wrong: backends that are wrong in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbridge.testing import BackendConformance
from tests.plugins.conftest import WritePlugin

EXAMPLE = Path(__file__).parents[2] / "examples" / "gptbridge-numpy"

# The example backend under another name, with a session that overrides something.
MUTANT = """
{top}
from dataclasses import replace
import gptbridge_numpy.plugin as right
from gptbridge.hookspecs import hookimpl

gptbridge_check = right.gptbridge_check
gptbridge_setup_hardware = right.gptbridge_setup_hardware

@hookimpl
def gptbridge_backend_info():
    return replace(right.gptbridge_backend_info(), name="mutant", modules=("colorsys",))

@hookimpl
def gptbridge_open_session(spec, device):
    from gptbridge_numpy.session import NumpySession
    from gptbridge.session import TrainerState
    import numpy as np

    class Mutant(NumpySession):
{body}

    return Mutant(spec)
{end}
"""

TRANSPOSED = "h.0.attn.c_proj.weight"

# mistake: (test that must fail, its arguments, part of the message, source of the session's override)
MUTANTS = {
    "gradients are doubled": (
        "test_gradients_match_the_reference",
        ("gelu_tanh-tied",),
        "Nearest known mistake: the loss is scaled by 2",
        """
        def _accumulate(self, batch):
            loss, gradients = super()._accumulate(batch)
            return loss, {name: 2 * g for name, g in gradients.items()}
        """,
    ),
    "gradients are doubled, seen by SGD": (
        "test_sgd_step_matches_the_reference",
        (),
        "grad_norm is off by 1 of",
        """
        def _accumulate(self, batch):
            loss, gradients = super()._accumulate(batch)
            return loss, {name: 2 * g for name, g in gradients.items()}
        """,
    ),
    "a square matrix is transposed, both ways": (
        "test_logits_match_the_reference",
        ("gelu_tanh-tied",),
        "Nearest known mistake: attn.c_proj.weight is transposed",
        f"""
        def import_weights(self, weights):
            super().import_weights({{n: w.T if n == "{TRANSPOSED}" else w for n, w in weights.items()}})
        def export_weights(self):
            return ((n, w.T if n == "{TRANSPOSED}" else w) for n, w in super().export_weights())
        """,
    ),
    "micro-batch means are averaged": (
        "test_micro_batches_add_up",
        (4,),
        "is off by",
        """
        def _accumulate(self, batch):
            shares = batch.loss_mask.sum((1, 2))
            mask = batch.loss_mask
            parts = [
                super(Mutant, self)._accumulate(replace(
                    batch, inputs=batch.inputs[n:n+1], labels=batch.labels[n:n+1],
                    loss_mask=mask[n:n+1], loss_tokens=int(shares[n]) * len(shares)))
                for n in range(len(shares))
            ]
            return sum(p[0] for p in parts), {k: sum(p[1][k] for p in parts) for k in parts[0][1]}
        """,
    ),
    "AdamW forgets its bias correction": (
        "test_adamw_step_matches_the_reference",
        (),
        "Nearest known mistake: moments are not corrected for their bias",
        """
        def step(self, batch, learning_rate):
            state, self._state = self._state, TrainerState(updates=10**9)
            result = super().step(batch, learning_rate)
            self._state = TrainerState(updates=state.updates + 1)
            return result
        """,
    ),
    "the norm is taken after clipping": (
        "test_clipping_has_a_threshold",
        (),
        "grad_norm is off by",
        """
        def step(self, batch, learning_rate):
            result = super().step(batch, learning_rate)
            return replace(result, grad_norm=min(result.grad_norm, self._spec.optimizer.clip_grad_norm))
        """,
    ),
    "positions are ignored": (
        "test_logits_at_positions",
        (),
        "logits at has shape (4, 11, 37), not (4, 2, 37)",
        """
        def logits(self, tokens, at=None):
            return super().logits(tokens)
        """,
    ),
    "labels are shifted in evaluation": (
        "test_token_losses_match_the_reference",
        (),
        "Nearest known mistake: labels are shifted",
        """
        def token_losses(self, inputs, labels):
            return super().token_losses(inputs, np.roll(labels, 1, 1))
        """,
    ),
    "moments are not loaded": (
        "test_moments_survive_a_round_trip",
        (),
        "exported moments: wte.weight.exp_avg differs",
        """
        def import_optimizer(self, moments):
            pass
        """,
    ),
    "the update count is lost on resume": (
        "test_resume_repeats_every_bit",
        (),
        "resumed steps give",
        """
        def import_state(self, state):
            super().import_state(TrainerState())
        """,
    ),
    "exports are views": (
        "test_weights_survive_a_round_trip",
        ("gelu_tanh-tied",),
        "weights exported before a step: wte.weight differs",
        """
        def export_weights(self):
            return iter(self._weights.items())
        def step(self, batch, learning_rate):
            before = dict(self._weights)
            result = super().step(batch, learning_rate)
            for name, array in before.items():
                array[...] = self._weights[name]
            self._weights.update(before)
            return result
        """,
    ),
    "a weight is frozen": (
        "test_weights_survive_a_round_trip",
        ("quick_gelu-tied",),
        "a step leaves ['ln_f.bias'] unchanged",
        """
        def step(self, batch, learning_rate):
            before = self._weights["ln_f.bias"]
            result = super().step(batch, learning_rate)
            self._weights["ln_f.bias"] = before
            return result
        """,
    ),
    "unknown names are ignored": (
        "test_wrong_names_and_shapes_are_refused",
        ("import_weights",),
        "import_weights accepts an unknown tensor",
        """
        def import_weights(self, weights):
            super().import_weights({n: w for n, w in weights.items() if n != "h.9.odd"})
        """,
    ),
    "an odd parallel layout is accepted": (
        "test_unsupported_fields_are_refused",
        ("parallel.tensor",),
        "DID NOT RAISE",
        "del gptbridge_check",
    ),
    "the wrong field is blamed": (
        "test_unsupported_fields_are_refused",
        ("task.lora",),
        "not one on task.lora",
        "from gptbridge.hookspecs import Problem\n@hookimpl\ndef gptbridge_check(spec):\n"
        "    return [Problem('training.device', 'not on a Sunday')] if spec.task.lora else []",
    ),
    "the plugin module imports its framework": (
        "test_plugin_module_imports_no_framework",
        (),
        "imports ['colorsys']",
        "TOP import colorsys",
    ),
}


@pytest.fixture
def make_mutant(write_plugin: WritePlugin, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that registers the backend `mutant`; its children see the example too."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLE), os.environ["PYTHONPATH"]]))

    def make(source: str) -> None:
        session = source if source.startswith("\n") else "\n        pass"
        module = "" if source.startswith("\n") else source
        top = module.removeprefix("TOP ") if module.startswith("TOP ") else ""
        end = "" if top else module
        write_plugin("mutant", MUTANT.format(body=session, top=top, end=end))

    return make


def kit() -> BackendConformance:
    class Kit(BackendConformance):
        backend = "mutant"

    return Kit()


@pytest.mark.parametrize("mistake", MUTANTS)
def test_the_kit_notices(mistake: str, make_mutant: Callable[[str], None]) -> None:
    test, arguments, message, source = MUTANTS[mistake]
    make_mutant(source)
    with pytest.raises((AssertionError, pytest.fail.Exception)) as caught:
        getattr(kit(), test)(*arguments)
    assert message in str(caught.value)


def test_the_kit_passes_what_is_right(make_mutant: Callable[[str], None]) -> None:
    make_mutant("")
    for test, arguments, _, _ in MUTANTS.values():
        getattr(kit(), test)(*arguments)
