"""The loss scale of fp16 training: one policy for every backend."""

from __future__ import annotations

from dataclasses import replace

from gptbridge.session import TrainerState
from gptbridge_specs.run import PrecisionSpec

_SMALLEST = 2.0**-24  # fp16's smallest number: a scale below it leaves nothing of any gradient


def initial_state(precision: PrecisionSpec) -> TrainerState:
    """Return the state before the first step; the scale is None unless compute is fp16."""
    if precision.compute != "fp16":
        return TrainerState()
    fixed = precision.loss_scale
    return TrainerState(loss_scale=precision.initial_loss_scale if fixed == "dynamic" else fixed)


def after_step(state: TrainerState, precision: PrecisionSpec, *, overflowed: bool) -> TrainerState:
    """Return the state after a step: halve the scale on overflow, double it after a window of good steps."""
    updates = state.updates + (not overflowed)
    if state.loss_scale is None or precision.loss_scale != "dynamic":
        return replace(state, updates=updates)
    if overflowed:
        return TrainerState(updates, max(state.loss_scale / 2, min(state.loss_scale, _SMALLEST)), 0)
    if state.good_steps + 1 >= precision.loss_scale_window:
        return TrainerState(updates, state.loss_scale * 2, 0)
    return TrainerState(updates, state.loss_scale, state.good_steps + 1)


def continued(state: TrainerState, precision: PrecisionSpec, before: PrecisionSpec) -> TrainerState:
    """Return where a run at `precision` goes on from `state`, which a run at `before` has come to.

    The scale goes on as it is, unless the settings that it began with are others now.
    """
    same = _beginning(precision) == _beginning(before)
    return state if same else replace(initial_state(precision), updates=state.updates)


def _beginning(precision: PrecisionSpec) -> tuple[object, ...]:
    """Return what decides the first scale."""
    return precision.compute == "fp16", precision.loss_scale, precision.initial_loss_scale
