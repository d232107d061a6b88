"""The loss scale of fp16 from step to step, and over a resume that changes its settings."""

from __future__ import annotations

from typing import Any

import pytest

from gptbridge.rules.loss_scale import after_step, continued, initial_state
from gptbridge.session import TrainerState
from gptbridge_specs.run import PrecisionSpec

HALFWAY = TrainerState(updates=30, loss_scale=1024.0, good_steps=7)


def fp16(**settings: Any) -> PrecisionSpec:
    return PrecisionSpec.model_validate({"compute": "fp16", **settings})


@pytest.mark.parametrize(
    ("before", "now", "scale"),
    [
        ({}, {}, 1024.0),
        ({}, {"loss_scale_window": 5}, 1024.0),
        ({}, {"initial_loss_scale": 0.5}, 0.5),
        ({}, {"loss_scale": 65536.0}, 65536.0),
        ({"loss_scale": 1024.0}, {"loss_scale": 0.25}, 0.25),
        ({"loss_scale": 1024.0}, {"loss_scale": "dynamic", "initial_loss_scale": 8.0}, 8.0),
        ({"compute": "bf16"}, {}, 65536.0),
        ({}, {"compute": "fp32"}, None),
    ],
)
def test_changed_settings_take_effect(
    before: dict[str, Any], now: dict[str, Any], scale: float | None
) -> None:
    state = continued(HALFWAY, fp16(**now), fp16(**before))
    assert (state.loss_scale, state.updates) == (scale, 30)
    assert state.good_steps == (7 if scale == 1024.0 else 0)


def test_a_window_that_has_passed_already_doubles_at_the_next_good_step() -> None:
    short = fp16(loss_scale_window=5)
    after = after_step(HALFWAY, short, overflowed=False)
    assert (after.loss_scale, after.good_steps) == (2048.0, 0)
    assert after_step(HALFWAY, fp16(loss_scale_window=9), overflowed=False).loss_scale == 1024.0


@pytest.mark.parametrize("first", [4.0, 1.0, 0.5])
def test_a_scale_below_one_is_halved_like_any_other(first: float) -> None:
    precision = fp16(initial_loss_scale=first)
    assert after_step(initial_state(precision), precision, overflowed=True).loss_scale == first / 2


def test_a_scale_never_becomes_nothing() -> None:
    precision = fp16(initial_loss_scale=2.0**-22)
    state = initial_state(precision)
    for _ in range(2000):
        state = after_step(state, precision, overflowed=True)
    assert state.loss_scale == 2.0**-24


def test_a_fixed_scale_stays() -> None:
    precision = fp16(loss_scale=0.25)
    assert after_step(initial_state(precision), precision, overflowed=True).loss_scale == 0.25
